"""Tracebacks without frames of ours: what is raised here looks as if it were raised where it was asked for.

Always true here: an exception that is no fault of ours leaves through `user_frames_only` with the frames of the one
who asked and of the task, whoever draws it: IPython in any mode, pytest, a plain terminal, pdb.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NoReturn, ParamSpec, TypeVar

from nbqueue.codec.standins import is_library
from nbqueue.errors import NbqueueError

__all__ = ["hand_out", "user_frames_only", "users_level"]

P = ParamSpec("P")
R = TypeVar("R")

_HOME = f"{Path(__file__).parents[2]}{os.sep}"
# What we raise on purpose. Of anything else that no user's code has raised, the place matters: it is a fault of ours.
_MEANT = (
    NbqueueError,
    TimeoutError,
    IndexError,
    KeyboardInterrupt,
    asyncio.CancelledError,
    concurrent.futures.CancelledError,
)


class _UserFramesOnly:
    """A ``with`` block, or a decorator, that takes away the frames of this package that lead to its exception.

    An interpreter adds a frame to a traceback when an exception reaches it, and not again when a ``with`` lets it
    pass: so what is taken away here is not put back.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if error is None or tb is None:
            return
        try:
            self._shorten(error, tb)
        except RecursionError:
            # There is no room here, at the end of a recursion without one: further out there is.
            return

    @staticmethod
    def _shorten(error: BaseException, tb: TracebackType) -> None:
        meant = isinstance(error, _MEANT)
        if meant and _is_ours(_last(tb)):
            # Also what lies between: a library that we have called.
            error.with_traceback(None)
            if isinstance(error, NbqueueError):
                _shorten_chain(error)
            return
        rest = _without_first_of_ours(tb)
        if rest is not None or tb.tb_next is None or meant or any(map(_hands_out, _walk(tb))):
            # Not by assignment: a class may forbid that.
            error.with_traceback(rest)

    def __call__(self, fn: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(fn)
        def without_our_frames(*args: P.args, **kwargs: P.kwargs) -> R:
            with self:
                return fn(*args, **kwargs)

        return without_our_frames


user_frames_only = _UserFramesOnly()


def hand_out(error: BaseException) -> NoReturn:
    """Raise what comes from a task or from an input, to which this package only gives passage.

    Such an error may have no frame of its own, as that of a compiled function: raised elsewhere in this package, it
    would look like a fault of ours.
    """
    try:
        raise error
    finally:
        # Break the circle frame → exception → traceback → frame.
        del error


def users_level() -> int:
    """The `stacklevel` at which whoever asks warns of a line outside of this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HOME):
        level, frame = level + 1, frame.f_back
    return level


def _is_ours(tb: TracebackType) -> bool:
    return tb.tb_frame.f_code.co_filename.startswith(_HOME)


def _hands_out(tb: TracebackType) -> bool:
    return tb.tb_frame.f_code is hand_out.__code__


def _is_users(tb: TracebackType) -> bool:
    return not _is_ours(tb) and not is_library(tb.tb_frame.f_code.co_filename)


def _walk(tb: TracebackType | None) -> Iterator[TracebackType]:
    while tb is not None:
        yield tb
        tb = tb.tb_next


def _last(tb: TracebackType) -> TracebackType:
    while tb.tb_next is not None:
        tb = tb.tb_next
    return tb


def _without_first_of_ours(tb: TracebackType) -> TracebackType | None:
    rest: TracebackType | None = tb
    while rest is not None and _is_ours(rest):
        rest = rest.tb_next
    return rest


def _shorten_chain(error: BaseException) -> None:
    """Of what led to an error of ours, show the messages, and the frames only where a user's code is among them."""
    seen = {id(error)}
    cause = error.__cause__ or error.__context__
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        tb = cause.__traceback__
        if tb is not None:
            cause.with_traceback(_without_first_of_ours(tb) if any(map(_is_users, _walk(tb))) else None)
        cause = cause.__cause__ or cause.__context__
