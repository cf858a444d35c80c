"""nbqueue as the README shows it: a private server, tasks, maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tests.bench.peers.base import Peer


class Nbqueue(Peer):
    queue: Any = None

    def start(self, workers: int) -> None:
        """TaskQueue(workers=workers)"""
        from nbqueue import TaskQueue

        self.workers = workers
        self.queue = TaskQueue(workers=workers)
        self.tasks: dict[Any, Any] = {}

    def stop(self) -> None:
        if self.queue is not None:
            self.queue.shutdown()

    def task(self, fn: Callable[..., Any]) -> Any:
        # Decorated once, as in a notebook.
        if fn not in self.tasks:
            self.tasks[fn] = self.queue.task(fn)
        return self.tasks[fn]

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """task(x).result()"""
        return self.task(fn)(*args).result()

    def calls(self, fn: Callable[..., Any], arguments: Sequence[Any]) -> list[Any]:
        """task(x) for each, then result() of each"""
        task = self.task(fn)
        return [future.result() for future in [task(item) for item in arguments]]

    def map(self, fn: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        """task.map(items).results()"""
        return self.task(fn).map(items).results()

    def uneven(self, fn: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        """task.map(items).results()"""
        return self.task(fn).map(items).results()

    def shared(self, fn: Callable[..., Any], array: Any, items: Sequence[Any]) -> list[Any]:
        """queue.put(array) once, as a fixed keyword of a map"""
        return self.task(fn).map(items, array=self.queue.put(array)).results()
