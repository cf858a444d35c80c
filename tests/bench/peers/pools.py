"""multiprocessing.Pool and mpire.WorkerPool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tests.bench.peers.base import Peer
from tests.bench.peers.executors import _keep, _with_array, forking


class Pool(Peer):
    def start(self, workers: int) -> None:
        """multiprocessing.Pool(workers)"""
        self.workers = workers
        self.pool = forking().Pool(workers)

    def stop(self) -> None:
        self.pool.terminate()
        self.pool.join()

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """pool.apply(fn, (x,))"""
        return self.pool.apply(fn, args)

    def calls(self, fn: Callable[..., Any], arguments: Sequence[Any]) -> list[Any]:
        """apply_async for each, then get() of each"""
        return [result.get() for result in [self.pool.apply_async(fn, (item,)) for item in arguments]]

    def map(self, fn: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        """pool.map, its own chunksize"""
        return self.pool.map(fn, items)

    def uneven(self, fn: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        """pool.map, chunksize=1"""
        return self.pool.map(fn, items, chunksize=1)

    def shared(self, fn: Callable[..., Any], array: Any, items: Sequence[Any]) -> list[Any]:
        """a new pool that inherits the array through initializer=; its start counts"""
        with forking().Pool(self.workers, initializer=_keep, initargs=(array,)) as pool:
            return pool.map(_with_array, [(fn, item) for item in items], chunksize=1)


class Mpire(Peer):
    def start(self, workers: int) -> None:
        """WorkerPool(workers, keep_alive=True)"""
        from mpire import WorkerPool

        self.workers = workers
        self.pool = WorkerPool(n_jobs=workers, keep_alive=True)

    def stop(self) -> None:
        self.pool.terminate()

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """pool.apply(fn, (x,))"""
        return self.pool.apply(fn, args)

    def calls(self, fn: Callable[..., Any], arguments: Sequence[Any]) -> list[Any]:
        """apply_async for each, then get() of each"""
        return [result.get() for result in [self.pool.apply_async(fn, (item,)) for item in arguments]]

    def map(self, fn: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        """pool.map, its own chunks"""
        return list(self.pool.map(fn, items if hasattr(items, "__len__") else list(items)))

    def uneven(self, fn: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        """pool.map, chunk_size=1"""
        return list(self.pool.map(fn, items, chunk_size=1))

    def shared(self, fn: Callable[..., Any], array: Any, items: Sequence[Any]) -> list[Any]:
        """a new pool with shared_objects=array; its start counts"""
        from mpire import WorkerPool

        with WorkerPool(n_jobs=self.workers, shared_objects=(fn, array)) as pool:
            return list(pool.map(_with_shared, items, chunk_size=1))


def _with_shared(shared: tuple[Callable[..., Any], Any], item: Any) -> Any:
    fn, array = shared
    return fn(item, array)
