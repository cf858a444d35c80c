"""Which streams the next fetch reads, so that priorities count and nothing starves. Pure: no clock, no Redis.

A read of several streams brings something of each that has it. So where more than one has work, the lower ones are
left out for a while: of two neighbours the first has a share that is `SHARE` times as large. A read that leaves some
out must not wait, since they may hold all that there is. Always true here: the first stream is part of every read;
while only one stream has work, all are read at once, as if there were no priorities.
"""

from __future__ import annotations

from nbqueue.stream.keys import STREAMS

__all__ = ["ALL", "SHARE", "Turns"]

ALL = len(STREAMS)
# Large enough that what can wait hardly delays the rest, small enough that one can see it go on.
SHARE = 6


class Turns:
    """One worker's. A fetch reads the first `next` streams; `brought` is told which of them had something.

    >>> turns = Turns()
    >>> turns.next()
    3
    >>> turns.brought(3, "1", "2")
    >>> [turns.next() for _ in range(6)]
    [2, 2, 2, 2, 2, 3]
    """

    __slots__ = ("_narrow", "_turn")

    def __init__(self) -> None:
        self._narrow = ALL  # so many are read until it is another's turn
        self._turn = 0

    def next(self) -> int:
        """How many streams to read, from the first on. Fewer than all of them: without waiting."""
        if self._narrow == ALL:
            return ALL
        self._turn += 1
        wider = (self._turn % SHARE == 0) + (self._turn % SHARE**2 == 0)
        return min(ALL, self._narrow + wider)

    def brought(self, read: int, first: str, last: str) -> None:
        """A read of so many streams has brought something: from `first` to `last`, which may be the same one."""
        if read == ALL:
            self._narrow = ALL if first == last else STREAMS.index(first) + 1
        else:
            # What was left out may have work as before.
            self._narrow = max(self._narrow, STREAMS.index(first) + 1)

    def nothing(self) -> None:
        """It has brought nothing."""
        self._narrow = ALL
