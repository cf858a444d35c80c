"""The verbs that the works use, and what they are where a library has no better way of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

VERBS = ("start", "call", "calls", "map", "uneven", "shared", "argument", "result")


class CannotDo(Exception):
    """The library has no way to do this work; says why."""


class Peer:
    """One library. `start` is called once, then verbs in any order, then `stop`, which leaves no process behind."""

    workers: int

    def start(self, workers: int) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        raise NotImplementedError

    def calls(self, fn: Callable[..., Any], arguments: Sequence[Any]) -> list[Any]:
        """Each call is sent by itself before any is waited for; all results."""
        raise NotImplementedError

    def map(self, fn: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        raise NotImplementedError

    def uneven(self, fn: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
        raise NotImplementedError

    def shared(self, fn: Callable[..., Any], array: Any, items: Sequence[Any]) -> list[Any]:
        """``fn(item, array)`` for each item. The pool runs already when the array appears."""
        raise NotImplementedError

    def argument(self, fn: Callable[..., Any], array: Any) -> Any:
        """an argument of one call"""
        return self.call(fn, array)

    def result(self, fn: Callable[..., Any], count: int) -> Any:
        """the result of one call"""
        return self.call(fn, count)


def way(kind: type[Peer], verb: str) -> str:
    """How a peer does a verb, in one line."""
    return (inspect.getdoc(getattr(kind, verb)) or "").partition("\n")[0]


def chunk_of(items: Sequence[Any], workers: int) -> int:
    """What multiprocessing.Pool takes by itself, for libraries whose own default of one item is not for tiny ones."""
    return max(1, -(-len(items) // (4 * workers)))
