"""ray on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tests.bench.peers.base import Peer


class Ray(Peer):
    def start(self, workers: int) -> None:
        """ray.init(num_cpus=workers)"""
        import ray

        self.workers, self.ray = workers, ray
        ray.init(
            num_cpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=os.path.join(os.environ["TMPDIR"], "ray"),
        )
        self.remotes: dict[Any, Any] = {}
        self.pool: Any = None

    def stop(self) -> None:
        if self.pool is not None:
            self.pool.terminate()
        self.ray.shutdown()

    def _remote(self, fn: Callable[..., Any]) -> Any:
        # Decorated once, as in a notebook.
        if fn not in self.remotes:
            self.remotes[fn] = self.ray.remote(fn)
        return self.remotes[fn]

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """ray.get(f.remote(x))"""
        return self.ray.get(self._remote(fn).remote(*args))

    def calls(self, fn: Callable[..., Any], arguments: Sequence[Any]) -> list[Any]:
        """f.remote(x) for each, then one ray.get"""
        remote = self._remote(fn)
        return list(self.ray.get([remote.remote(item) for item in arguments]))

    def map(self, fn: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        """ray.util.multiprocessing.Pool.map, its own chunksize"""
        if self.pool is None:
            from ray.util.multiprocessing import Pool

            self.pool = Pool(self.workers)
        return list(self.pool.map(fn, items))

    def uneven(self, fn: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        """f.remote(x) for each, then one ray.get"""
        return self.calls(fn, items)

    def shared(self, fn: Callable[..., Any], array: Any, items: Sequence[Any]) -> list[Any]:
        """ray.put(array) once, its reference for each call"""
        remote, there = self._remote(fn), self.ray.put(array)
        return list(self.ray.get([remote.remote(item, there) for item in items]))
