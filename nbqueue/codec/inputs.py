"""What stands in a call's arguments for the value of another call, and is that value where it is unpickled.

`client` writes it in the place of a future that has not ended; `worker.supplies` fetches the values of a call before it
begins, and whoever replays the call in the kernel has them from the futures. Always true here: a value is unpickled
where its stand-in is, in the task's own time, and once for each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from nbqueue.errors import NbqueueError

__all__ = ["FutureMet", "Unfit", "hold", "holding", "let_go", "value_of"]


class FutureMet(Exception):
    """A future was met where it was not expected. Only the arguments of a single call may hold one."""


class Unfit(Exception):
    """Something that cannot be sent. The message says why and what to do, behind the name of the argument."""


_held: dict[str, Callable[[], Any]] = {}


def value_of(name: str, task: str) -> Any:
    """The value of the call `name` of `task`. Runs users' unpickling code.

    Raises
    ------
    NbqueueError
        If this process does not have it.
    """
    load = _held.get(name)
    if load is None:
        raise NbqueueError(f"The value of `{task}` is not in this process. Make the call again, with its future.")
    return load()


def hold(values: Mapping[str, Callable[[], Any]]) -> None:
    """Have these values here, each made by its callable, until they are let go."""
    _held.update(values)


def let_go(names: Iterable[str]) -> None:
    for name in names:
        _held.pop(name, None)


@contextmanager
def holding(values: Mapping[str, Callable[[], Any]]) -> Iterator[None]:
    """Meanwhile these values are there."""
    hold(values)
    try:
        yield
    finally:
        let_go(values)
