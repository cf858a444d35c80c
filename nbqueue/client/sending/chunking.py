"""How many items travel together, and how many calls are in flight. Pure: no clock, no Redis.

The first items go alone, to be measured. Then a chunk aims at about 150 ms of work: long enough that sending it costs
little, short enough that workers stay balanced, others get their turn and results keep arriving. Three things make it
shorter, since what lies in a chunk can help no idle worker: little work that is left (guided self-scheduling,
Polychronopoulos and Kuck 1987, in time rather than in items), items that have been seen to be slow once, and that few
have been measured yet. Of a function whose items were tiny the last time, the first are no longer sent alone.
`tests/client/test_balance.py` simulates what comes of it.
"""

from __future__ import annotations

__all__ = ["Chunker", "Paces"]

# Each call costs client, server and worker 2 ms together where all cores are busy. Of 200 uneven tasks, chunks of two
# thirds the length, in 4 shares, are some 120 calls instead of 90, and take 1 % longer.
TARGET_S = 0.15
# The same of an input of unknown length, where each may be among the last.
TARGET_OF_UNKNOWN_S = 0.1
# A worker's share of what is left goes in so many chunks at least, unless they would be shorter than this: sending them
# would then cost more than a worker that idles at the end.
SHARES = 1.5
SHORTEST_S = 0.006
# What is in flight is no more than was measured: when that many are, later items may have been found to be slow. Of
# many items, and of very short ones, it may be this part of what is left.
OF_MANY, OF_SHORT = 1 / 8, 1 / 2
SHORT_S = 0.001  # such a chunk; to send it costs as much
# Items that take less are tiny. Of them, a chunk is longer, and all that is left may be in flight: to make, send, run
# and read one costs client, server and worker 0.7 ms together, and each of them is at work on the same cores.
TINY_S = 0.00005
TINY_CHUNK_S, OF_TINY = 0.003, 1
# No item is taken to be shorter.
LEAST_S = 1e-7
# A wrong first measurement must not make one huge chunk.
MOST_GROWTH = 16
LARGEST = 50_000
# Calls in flight for each worker: what is queued must last while this process is busy with something else. Two are
# enough if the second lasts so long; what is sent later is cut better, and who comes later waits less.
IN_FLIGHT, LEAST_IN_FLIGHT = 4, 2
QUEUED_S = 0.25
# And those at first, which are single items unless their number was chosen: more would be sent before any of them has
# been measured.
FIRST = 2
# What an input of unknown length is taken to give.
UNKNOWN = 10_000
PACES_KEPT = 1_000


class Paces(dict[str, float]):
    """How many seconds a call of a function takes, or an item of it, by the function's digest. Of some of them."""

    def note(self, function: str, seconds: float) -> None:
        if len(self) >= PACES_KEPT:
            self.clear()
        self[function] = seconds


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
    expected_s : float or None
        What an item of the same function took before, at most, if that is known.

    Attributes
    ----------
    high_s : float
        An item may well take so long; 0.0 while nothing is known.
    """

    def __init__(
        self, total: int | None, fixed: int | None = None, at_a_time: int = 1, expected_s: float | None = None
    ) -> None:
        self.total = total
        self._fixed = fixed
        self._least = LEAST_IN_FLIGHT * at_a_time
        self._flights = max(IN_FLIGHT, self._least)
        self._first = FIRST if fixed is None else self._least
        self._mean_s: float | None = None
        self.high_s = 0.0
        self._last, self._last_s = 1, 0.0
        self._sent = 0
        self._measured = 0
        self._expected = False
        if expected_s is not None and expected_s < TINY_S:
            self._mean_s = self.high_s = expected_s
            self._last, self._expected = LARGEST, True

    def observe(self, items: int, seconds: float) -> None:
        """`items` took `seconds` of a worker's time together."""
        mean = max(seconds / items, LEAST_S)
        # Recent items count most, a large chunk more than a single.
        weight = min(0.8, 0.3 + items / 100)
        self._mean_s = mean if self._mean_s is None else (1 - weight) * self._mean_s + weight * mean
        # What is slow is believed at once, and forgotten over some replies.
        weight = min(0.8, 0.1 + items / 100)
        self.high_s = max(mean, (1 - weight) * self.high_s + weight * mean)
        self._measured += items

    def next_size(self, workers: int) -> int:
        """Items for the next chunk; `took` tells how many were really put in."""
        if self._fixed is not None:
            return self._fixed
        if self._mean_s is None:
            return 1
        if self.total is None:
            size = TARGET_OF_UNKNOWN_S / self.high_s
        else:
            share = (self.total - self._sent) / max(1, workers)
            shortest = max(self._short_s / self.high_s, min(SHORTEST_S / self.high_s, share / SHARES))
            size = min(TARGET_S / self._mean_s, max(shortest, share * self._mean_s / SHARES / self.high_s))
        return max(1, int(min(size, self._known(max(1, workers)), self._last * MOST_GROWTH, LARGEST)))

    def _known(self, workers: int) -> float:
        """Items a chunk for which those that were measured can vouch."""
        if not self._knows(workers):
            return 1
        flights = self._flights * workers
        left = UNKNOWN if self.total is None else self.total - self._sent
        # What is only expected may be another's.
        part = OF_TINY if self._measured and self._is_tiny else OF_SHORT
        short = min(self._short_s / self.high_s, left * part / flights)
        many = 0 if self.total is None else left * OF_MANY / flights
        return max(self._measured / flights, many, short)

    @property
    def _is_tiny(self) -> bool:
        return self.high_s < TINY_S

    @property
    def _short_s(self) -> float:
        return TINY_CHUNK_S if self._is_tiny else SHORT_S

    def _knows(self, workers: int) -> bool:
        return self._expected or self._measured >= self._first * workers

    def took(self, items: int) -> None:
        self._sent += items
        self._last = max(1, items)
        self._last_s = self._last * (self._mean_s or 0.0)

    def in_flight(self, workers: int) -> int:
        """How many calls may be open at once."""
        workers = max(1, workers)
        if not self._knows(workers):
            return self._first * workers
        for_each = 1 + QUEUED_S / max(self._last_s, LEAST_S)
        return int(min(self._flights, max(self._least, for_each)) * workers)
