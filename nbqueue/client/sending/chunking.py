"""How many items travel together, and how many calls are in flight. Pure: no clock, no Redis.

The first items go alone, to be measured. Then a chunk aims at about 100 ms of work: long enough that sending it costs
little, short enough that workers stay balanced and results keep arriving. Three things make it shorter, since what
lies in a chunk can help no idle worker: little work that is left (guided self-scheduling, Polychronopoulos and Kuck
1987, in time rather than in items), items that have been seen to be slow once, and that few have been measured yet.
`tests/client/test_balance.py` simulates what comes of it.
"""

from __future__ import annotations

__all__ = ["Chunker"]

# Of 200 uneven tasks, each call costs as much as the balance gains: half as long, they are a quarter more calls, which
# take 0.3 % of the work.
TARGET_S = 0.1
# A worker's share of what is left goes in so many chunks at least, unless they would be shorter than this: sending them
# would then cost more than a worker that idles at the end. Below that it goes in two, unless these would be `SHORT_S`.
SHARES = 4
SHORTEST_S = 0.006
LEAST_SHARES = 2
# What is in flight is no more than was measured: when that many are, later items may have been found to be slow. Of
# many items, and of very short ones, it may be this part of what is left.
OF_MANY, OF_SHORT = 1 / 8, 1 / 2
SHORT_S = 0.001  # such a chunk; to send it costs as much
# A wrong first measurement must not make one huge chunk.
MOST_GROWTH = 16
LARGEST = 50_000
# Calls in flight for each worker: what is queued must last while this process is busy with something else.
IN_FLIGHT = 4
# And those at first, which are single items: more would be sent before any of them has been measured.
FIRST = 2
# What an input of unknown length is taken to give.
UNKNOWN = 10_000


class Chunker:
    """Decides sizes for one batch.

    Parameters
    ----------
    total : int or None
        Number of items, None while unknown.
    fixed : int or None
        Items a chunk if the user has chosen it.
    at_a_time : int
        Calls that one worker runs at a time.
    """

    def __init__(self, total: int | None, fixed: int | None = None, at_a_time: int = 1) -> None:
        self.total = total
        self._fixed = fixed
        self._flights = max(IN_FLIGHT, 2 * at_a_time)
        self._first = FIRST if fixed is None else self._flights
        self._mean_s: float | None = None
        self._high_s = 0.0  # an item may well take so long
        self._last = 1
        self._sent = 0
        self._measured = 0

    def observe(self, items: int, seconds: float) -> None:
        """`items` took `seconds` of a worker's time together."""
        mean = max(seconds / items, 1e-7)
        # Recent items count most, a large chunk more than a single.
        weight = min(0.8, 0.3 + items / 100)
        self._mean_s = mean if self._mean_s is None else (1 - weight) * self._mean_s + weight * mean
        # What is slow is believed at once, and forgotten over some replies.
        weight = min(0.8, 0.1 + items / 100)
        self._high_s = max(mean, (1 - weight) * self._high_s + weight * mean)
        self._measured += items

    def next_size(self, workers: int) -> int:
        """Items for the next chunk; `took` tells how many were really put in."""
        if self._fixed is not None:
            return self._fixed
        if self._mean_s is None:
            return 1
        if self.total is None:
            # Each may be among the last.
            size = TARGET_S / self._high_s
        else:
            share = (self.total - self._sent) / max(1, workers)
            shortest = max(SHORT_S / self._high_s, min(SHORTEST_S / self._high_s, share / LEAST_SHARES))
            size = min(TARGET_S / self._mean_s, max(shortest, share * self._mean_s / SHARES / self._high_s))
        return max(1, int(min(size, self._known(max(1, workers)), self._last * MOST_GROWTH, LARGEST)))

    def _known(self, workers: int) -> float:
        """Items a chunk for which those that were measured can vouch."""
        if self._measured < self._first * workers:
            return 1
        flights = self._flights * workers
        left = UNKNOWN if self.total is None else self.total - self._sent
        short = min(SHORT_S / self._high_s, left * OF_SHORT / flights)
        many = 0 if self.total is None else left * OF_MANY / flights
        return max(self._measured / flights, many, short)

    def took(self, items: int) -> None:
        self._sent += items
        self._last = max(1, items)

    def in_flight(self, workers: int) -> int:
        """How many calls may be open at once."""
        workers = max(1, workers)
        return (self._flights if self._measured >= self._first * workers else self._first) * workers
