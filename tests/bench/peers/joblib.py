"""joblib.Parallel, kept open as its documentation advises for many loops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tests.bench.peers.base import Peer


class Joblib(Peer):
    def start(self, workers: int) -> None:
        """with Parallel(n_jobs=workers)"""
        from joblib import Parallel, delayed

        self.workers, self.delayed = workers, delayed
        self.parallel = Parallel(n_jobs=workers)
        self.parallel.__enter__()
        self.single = Parallel(n_jobs=workers, batch_size=1)
        self.single.__enter__()

    def stop(self) -> None:
        from joblib.externals.loky import get_reusable_executor

        self.single.__exit__(None, None, None)
        self.parallel.__exit__(None, None, None)
        get_reusable_executor().shutdown(wait=True)

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """parallel([delayed(fn)(x)])"""
        return self.parallel([self.delayed(fn)(*args)])[0]

    def calls(self, fn: Callable[..., Any], arguments: Sequence[Any]) -> list[Any]:
        """parallel(delayed(fn)(x) for x in …), batch_size=1: one dispatch for each"""
        return list(self.single(self.delayed(fn)(item) for item in arguments))

    def map(self, fn: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        """parallel(delayed(fn)(x) for x in …), its own batches"""
        return list(self.parallel(self.delayed(fn)(item) for item in items))

    def uneven(self, fn: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        """the same, batch_size=1"""
        return list(self.single(self.delayed(fn)(item) for item in items))

    def shared(self, fn: Callable[..., Any], array: Any, items: Sequence[Any]) -> list[Any]:
        """an argument of each call, which joblib maps into memory by itself"""
        return list(self.single(self.delayed(fn)(item, array) for item in items))
