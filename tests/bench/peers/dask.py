"""dask.distributed: a scheduler and workers on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tests.bench.peers.base import Peer


class Dask(Peer):
    def start(self, workers: int) -> None:
        """Client(LocalCluster(n_workers=workers, threads_per_worker=1))"""
        from distributed import Client, LocalCluster

        self.workers = workers
        self.cluster = LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
        )
        self.client = Client(self.cluster)

    def stop(self) -> None:
        self.client.close()
        self.cluster.close()

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """client.submit(fn, x, pure=False).result()"""
        return self.client.submit(fn, *args, pure=False).result()

    def calls(self, fn: Callable[..., Any], arguments: Sequence[Any]) -> list[Any]:
        """client.submit for each, then client.gather"""
        return list(self.client.gather([self.client.submit(fn, item, pure=False) for item in arguments]))

    def map(self, fn: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        """dask.bag with 4 partitions a worker (client.map is a task an item, which its documents advise against)"""
        import dask.bag

        bag = dask.bag.from_sequence(items, npartitions=4 * self.workers)
        return list(self.client.compute(bag.map(fn)).result())

    def uneven(self, fn: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        """client.map, then client.gather"""
        return list(self.client.gather(self.client.map(fn, items, pure=False)))

    def shared(self, fn: Callable[..., Any], array: Any, items: Sequence[Any]) -> list[Any]:
        """client.scatter(array, broadcast=True), its future for each call"""
        there = self.client.scatter(array, broadcast=True, hash=False)
        return list(self.client.gather([self.client.submit(fn, item, there, pure=False) for item in items]))

    def argument(self, fn: Callable[..., Any], array: Any) -> Any:
        """client.scatter(array), its future as the argument"""
        return self.client.submit(fn, self.client.scatter(array, hash=False), pure=False).result()
