"""What is known of a batch's single items: which worker ran them, and their futures, made on access."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Generic, TypeVar, overload

from nbqueue.client.results.future import TaskFuture
from nbqueue.codec.messages import ReplyBody

if TYPE_CHECKING:
    from nbqueue.client.results.batch import Batch

__all__ = ["Details", "Futures"]

R = TypeVar("R")


class Details:
    """Which worker ran which items of a batch: one line a reply, found by the place of an item."""

    def __init__(self) -> None:
        self._lines: list[tuple[int, int, str, int, float]] = []
        self._sorted = True

    def add(self, start: int, body: ReplyBody) -> None:
        self._sorted = self._sorted and (not self._lines or self._lines[-1][0] <= start)
        self._lines.append((start, body.items, body.worker, body.attempt, body.seconds / body.items))

    def forget(self, before: int) -> None:
        """Items before that place are no longer kept."""
        self._sort()
        end = bisect.bisect_left(self._lines, before, key=itemgetter(0))
        # The last of them may reach further.
        del self._lines[: max(0, end - 1)]

    def of(self, place: int) -> tuple[str | None, int, float | None]:
        """Worker, attempt and seconds of an item; nothing known is ``(None, 0, None)``."""
        self._sort()
        # The last reply that begins at the item or before: a later attempt is a later line.
        at = bisect.bisect_right(self._lines, place, key=itemgetter(0)) - 1
        if at >= 0 and place < self._lines[at][0] + self._lines[at][1]:
            return self._lines[at][2:]
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
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._batch.future(index + len(self) if index < 0 else index)
