"""ipyparallel: a controller and engines on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tests.bench.peers.base import Peer


class Ipyparallel(Peer):
    def start(self, workers: int) -> None:
        """ipp.Cluster(n=workers).start_and_connect_sync()"""
        import logging

        import ipyparallel as ipp

        self.workers, self.ipp = workers, ipp
        self.cluster = ipp.Cluster(n=workers, log_level=logging.ERROR)
        self.client = self.cluster.start_and_connect_sync(activate=False)
        self.balanced, self.direct = self.client.load_balanced_view(), self.client[:]

    def stop(self) -> None:
        self.client.close()
        self.cluster.stop_cluster_sync()

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """load-balanced view, apply_sync"""
        return self.balanced.apply_sync(fn, *args)

    def calls(self, fn: Callable[..., Any], arguments: Sequence[Any]) -> list[Any]:
        """load-balanced view: apply_async for each, then get() of each"""
        return [result.get() for result in [self.balanced.apply_async(fn, item) for item in arguments]]

    def map(self, fn: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        """direct view, map_sync: an equal share to each engine"""
        return list(self.direct.map_sync(fn, items if hasattr(items, "__len__") else list(items)))

    def uneven(self, fn: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        """load-balanced view, map_sync, chunksize=1"""
        return list(self.balanced.map_sync(fn, items, chunksize=1))

    def shared(self, fn: Callable[..., Any], array: Any, items: Sequence[Any]) -> list[Any]:
        """push once to each engine, then a Reference for each call"""
        self.direct.push({"array": array}, block=True)
        reference = self.ipp.Reference("array")
        return [result.get() for result in [self.balanced.apply_async(fn, item, reference) for item in items]]
