"""concurrent.futures.ProcessPoolExecutor, and loky, which has the same verbs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tests.bench.peers.base import Peer, chunk_of

_array: Any = None


def _keep(array: Any) -> None:
    global _array
    _array = array


def _with_array(call: tuple[Callable[..., Any], Any]) -> Any:
    fn, item = call
    return fn(item, _array)


def forking() -> Any:
    """How these start processes on Linux before Python 3.14; what came then finds no function of a notebook."""
    import multiprocessing

    return multiprocessing.get_context("fork" if sys.platform == "linux" else None)


class _Executor(Peer):
    executor: Any

    def stop(self) -> None:
        self.executor.shutdown()

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """submit(fn, x).result()"""
        return self.executor.submit(fn, *args).result()

    def calls(self, fn: Callable[..., Any], arguments: Sequence[Any]) -> list[Any]:
        """submit for each, then result() of each"""
        return [future.result() for future in [self.executor.submit(fn, item) for item in arguments]]

    def map(self, fn: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        """executor.map with the chunksize that Pool would take (its own, 1, is not for tiny items)"""
        items = list(items)
        return list(self.executor.map(fn, items, chunksize=chunk_of(items, self.workers)))

    def uneven(self, fn: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        """executor.map, chunksize 1 (its own)"""
        return list(self.executor.map(fn, items))


class ProcessPool(_Executor):
    def start(self, workers: int) -> None:
        """ProcessPoolExecutor(workers)"""
        from concurrent.futures import ProcessPoolExecutor

        self.workers = workers
        self.executor = ProcessPoolExecutor(workers, mp_context=forking())

    def shared(self, fn: Callable[..., Any], array: Any, items: Sequence[Any]) -> list[Any]:
        """a new executor that inherits the array through initializer=; its start counts"""
        from concurrent.futures import ProcessPoolExecutor

        context = forking()
        with ProcessPoolExecutor(self.workers, context, initializer=_keep, initargs=(array,)) as executor:
            return list(executor.map(_with_array, [(fn, item) for item in items]))


class Loky(_Executor):
    def start(self, workers: int) -> None:
        """get_reusable_executor(workers)"""
        from loky import get_reusable_executor

        self.workers = workers
        self.executor = get_reusable_executor(max_workers=workers)

    def shared(self, fn: Callable[..., Any], array: Any, items: Sequence[Any]) -> list[Any]:
        """the array as an argument of each call"""
        return list(self.executor.map(fn, items, [array] * len(items)))
