"""What is known of a batch's single items: which worker ran them when, and their futures, made on access."""

from __future__ import annotations

import bisect
import operator
import sys
from collections.abc import Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar, overload

from nbqueue.client.results.frames import user_frames_only
from nbqueue.client.results.future import TaskFuture
from nbqueue.client.sending.listener import OpenCall
from nbqueue.codec.messages import ReplyBody
from nbqueue.errors import BadCall

if TYPE_CHECKING:
    from nbqueue.client.results.batch import Batch

__all__ = ["Details", "Futures", "Line", "check_index"]

R = TypeVar("R")


# Of calls that have ended, messages are kept that are no longer than this for each item, up to so much of one batch.
MESSAGE_BYTES, MESSAGES_BYTES = 1_000, 32_000_000


class Line(NamedTuple):
    """What one reply told of `items` items from place `start` on. `seconds` are each one's share of what they took
    together; `started` is when the first began and `sent_at` when their call was sent, in Unix time. `kinds` is as in
    a reply."""

    start: int
    items: int
    worker: str
    attempt: int
    seconds: float
    started: float
    sent_at: float
    kinds: bytes


class Details:
    """Which worker ran which items of a batch: one line a reply, found by the place of an item.

    Attributes
    ----------
    seconds : float or None
        How long all attempts took that replies have told of, those that are no longer kept included.
    """

    def __init__(self) -> None:
        self.seconds: float | None = None
        # A Line each, made when it is asked for.
        self._lines: list[tuple[int, int, str, int, float, float, float, bytes]] = []
        self._messages: list[tuple[int, int, bytes]] = []  # places from, to before, and the sealed message
        self._message_bytes = 0
        self._sorted = True
        self._longest = 0

    def add(self, start: int, body: ReplyBody, sent_at: float) -> None:
        lines, items, seconds = self._lines, body.items, body.seconds
        if lines and start < lines[-1][0]:
            self._sorted = False
        if items > self._longest:
            self._longest = items
        self.seconds = (self.seconds or 0.0) + seconds
        worker = sys.intern(body.worker)
        lines.append((start, items, worker, body.attempt, seconds / items, body.started, sent_at, body.kinds))

    def keep(self, call: OpenCall) -> None:
        """A call has ended: its arguments may be asked for."""
        size, number = len(call.call.payload), call.call.items
        if size <= MESSAGE_BYTES * number and self._message_bytes + size <= MESSAGES_BYTES:
            self._message_bytes += size
            self._messages.append((call.base, call.base + number, call.call.payload))

    def messages(self) -> list[tuple[int, int, bytes]]:
        """What is kept of calls that have ended: places from, to before, and the sealed message."""
        return list(self._messages)

    def lines(self) -> list[Line]:
        """All that is kept: of two that tell of one item, the later attempt comes later."""
        self._sort()
        return [Line(*line) for line in self._lines]

    def forget(self, before: int) -> None:
        """Items before that place are no longer kept."""
        self._sort()
        end = bisect.bisect_left(self._lines, before, key=itemgetter(0))
        # The last of them may reach further.
        del self._lines[: max(0, end - 1)]
        self._messages = [each for each in self._messages if each[1] > before]
        self._message_bytes = sum(len(message) for _, _, message in self._messages)

    def of(self, place: int) -> tuple[str | None, int, float | None]:
        """Worker, attempt and seconds of an item; nothing known is ``(None, 0, None)``."""
        self._sort()
        # The last reply that begins at the item or before: a later attempt is a later line. One of a single item that
        # ran again may lie within the line of a whole chunk.
        at = bisect.bisect_right(self._lines, place, key=itemgetter(0)) - 1
        while at >= 0 and place - self._lines[at][0] < self._longest:
            start, items, worker, attempt, seconds, *_ = self._lines[at]
            if place < start + items:
                return worker, attempt, seconds
            at -= 1
        return None, 0, None

    def _sort(self) -> None:
        if not self._sorted:
            self._lines.sort(key=itemgetter(0))
            self._sorted = True


class Futures(Sequence[TaskFuture[R]], Generic[R]):
    """A batch's futures, made on access."""

    def __init__(self, batch: Batch[R]) -> None:
        self._batch = batch

    def __len__(self) -> int:
        return len(self._batch)

    @overload
    def __getitem__(self, index: int) -> TaskFuture[R]: ...
    @overload
    def __getitem__(self, index: slice) -> list[TaskFuture[R]]: ...
    def __getitem__(self, index: int | slice) -> TaskFuture[R] | list[TaskFuture[R]]:
        with user_frames_only:
            check_index(index, "batch.futures")
            if isinstance(index, slice):
                return [self[i] for i in range(*index.indices(len(self)))]
            index = operator.index(index)
            return self._batch.future(index + len(self) if index < 0 else index)


def check_index(index: object, what: str) -> None:
    """Raises BadCall for what is neither a number nor a slice."""
    if not isinstance(index, slice) and not hasattr(index, "__index__"):
        raise BadCall(f"{what} has numbered items, from 0 on: {index!r:.80} ({type(index).__name__}) is none of them.")
