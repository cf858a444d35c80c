"""How a call or an item ended: bytes until somebody looks.

Values are decoded where they are asked for, in the asking thread: unpickling runs users' code, and a value that
cannot be unpickled must cost only the one who wants it.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from typing import Any, Protocol

from nbqueue.client.results.failures import annotate
from nbqueue.codec.blobs import as_it_is
from nbqueue.codec.frames import held_by, load_frame
from nbqueue.codec.messages import ERROR, SKIPPED, VALUE, ReplyBody
from nbqueue.codec.segments import Segment
from nbqueue.codec.tracebacks import Gist, gist_of, load_exception
from nbqueue.errors import BadMessage, InputFailed, RemoteError

__all__ = ["Outcome", "PlainOutcome", "Unmet", "first_outcome", "skipped"]


class Failed(Protocol):
    """A future of a call that ended without a value."""

    name: str

    def _decoded(self) -> tuple[Any, BaseException | None]: ...


class Outcome:
    """How one item ended, decoded at the first look.

    Parameters
    ----------
    kind : int
        One of `codec.messages`' kinds.
    data : object
        The value itself if `decoded`, else its bytes.
    """

    __slots__ = ("_data", "_decoded", "_gist", "_lock", "_traceback", "kind")

    def __init__(self, kind: int, data: Any, decoded: bool) -> None:
        self.kind = kind
        self._data = data
        self._decoded = decoded
        self._gist: Gist | None = None
        self._traceback = data.__traceback__ if isinstance(data, BaseException) else None
        self._lock = threading.Lock()

    def get(self, note: Callable[[], str] | None = None) -> tuple[Any, BaseException | None]:
        """``(value, None)`` or ``(None, exception)``; the exception has what `note` gives at the first look."""
        with self._lock:
            if not self._decoded:
                self._look(note)
        if self.kind == VALUE:
            return self._data, None
        # As it came: each raise adds the frames of the one who asked.
        return None, self._data.with_traceback(self._traceback)

    def gist(self) -> Gist:
        """What an exception is, in a line. Runs no user's code."""
        with self._lock:
            if self._gist is None:
                self._gist = self._find_gist()
            return self._gist

    def sent_on(self) -> tuple[tuple[Callable[..., Any], tuple[Any, ...]], tuple[Segment, ...]]:
        """A value as an argument of another call: what a pickle is to make of it, and where that lies.

        One that somebody has looked at travels as it is now, since it may lie nowhere else any more.
        """
        with self._lock:
            if self._decoded:
                return (as_it_is, (self._data,)), ()
            return (load_frame, (bytes(self._data),)), held_by(self._data)

    def _look(self, note: Callable[[], str] | None) -> None:
        if self.kind != VALUE and self._gist is None:
            self._gist = self._find_gist()
        try:
            self._data = self._decode()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - unpickling runs the value's own code
            self.kind = ERROR
            self._data = RemoteError(
                f"The result arrived, but cannot be unpickled here: {type(error).__name__}: {error}"
            )
            self._data.__cause__ = error
        self._decoded = True
        if self.kind != VALUE:
            self._traceback = self._data.__traceback__
            if note is not None:
                annotate(self._data, note())

    def _decode(self) -> Any:
        return load_frame(self._data) if self.kind == VALUE else load_exception(self._data)

    def _find_gist(self) -> Gist:
        try:
            # Decoded from the start: one of ours.
            return gist_of(pickle.dumps(self._data) if self._decoded else self._data)
        except Exception as error:  # noqa: BLE001 - bytes that make no sense
            return Gist("RemoteError", f"cannot be read: {type(error).__name__}")


class PlainOutcome(Outcome):
    """A plain value, which came with its reply: nothing is left to decode, and nothing to guard."""

    __slots__ = ()

    def __init__(self, value: object) -> None:
        self.kind, self._data, self._decoded = VALUE, value, True

    def get(self, note: Callable[[], str] | None = None) -> tuple[Any, BaseException | None]:
        return self._data, None

    def sent_on(self) -> tuple[tuple[Callable[..., Any], tuple[Any, ...]], tuple[Segment, ...]]:
        return (as_it_is, (self._data,)), ()


class Unmet(Outcome):
    """Of a call that did not run: the `error` tells of what it needs, of which `first` failed, because of `why`."""

    __slots__ = ("first", "why")

    def __init__(self, error: InputFailed, first: Failed, why: str) -> None:
        super().__init__(ERROR, error, False)
        self.first = first
        self.why = why

    def _decode(self) -> Any:
        self._data.__cause__ = self.first._decoded()[1]
        return self._data

    def _find_gist(self) -> Gist:
        return gist_of(pickle.dumps(self._data))


def first_outcome(kind: int, body: ReplyBody) -> Outcome:
    """The outcome of the first item of a reply."""
    if kind == SKIPPED:
        return skipped()
    if body.packed:
        # Packed are values only, all of them plain.
        return PlainOutcome(pickle.loads(body.packed)[0])
    return Outcome(kind, body.frames[0], False)


def skipped() -> Outcome:
    """Of an item that a worker did not run because it has ended, where nothing has told how."""
    return Outcome(ERROR, BadMessage("This call has ended before, but how it did never arrived."), True)
