"""How many items travel together, and how many calls are in flight. Pure: no clock, no Redis.

The first items go alone, to be measured. Then a chunk aims at about 50 ms of work: long enough that sending
it costs little, short enough that workers stay balanced and results keep arriving. Near the end chunks
shrink (guided self-scheduling, Polychronopoulos and Kuck 1987), so that the last worker is not left alone with
a long one.
"""

from __future__ import annotations

import math

__all__ = ["Chunker"]

TARGET_S = 0.05
# A wrong first measurement must not make one huge chunk.
MOST_GROWTH = 8
LARGEST = 50_000
# Calls in flight for each worker: what is queued must last while this process is busy with something else.
IN_FLIGHT = 4


class Chunker:
    """Decides sizes for one batch.

    Parameters
    ----------
    total : int or None
        Number of items, None while unknown.
    fixed : int or None
        Items a chunk if the user has chosen it.
    """

    def __init__(self, total: int | None, fixed: int | None = None) -> None:
        self.total = total
        self._fixed = fixed
        self._mean_s: float | None = None
        self._last = 1
        self._sent = 0

    def observe(self, items: int, seconds: float) -> None:
        """`items` took `seconds` of a worker's time together."""
        mean = max(seconds / items, 1e-7)
        # Recent items count most, a large chunk more than a single.
        weight = min(0.8, 0.3 + items / 100)
        self._mean_s = mean if self._mean_s is None else (1 - weight) * self._mean_s + weight * mean

    def next_size(self, workers: int) -> int:
        """Items for the next chunk; `took` tells how many were really put in."""
        if self._fixed is not None:
            return self._fixed
        if self._mean_s is None:
            return 1
        size = min(int(TARGET_S / self._mean_s), self._last * MOST_GROWTH, LARGEST)
        if self.total is not None:
            size = min(size, math.ceil((self.total - self._sent) / (2 * max(1, workers))))
        return max(1, size)

    def took(self, items: int) -> None:
        self._sent += items
        self._last = max(1, items)

    def in_flight(self, workers: int) -> int:
        """How many calls may be open at once."""
        return IN_FLIGHT * max(1, workers)
