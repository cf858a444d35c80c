"""Uneven work ends everywhere at once: chunks of a map, simulated to the millisecond, without a process or a clock."""

from __future__ import annotations

import heapq
import math
import random
import statistics
from collections.abc import Callable
from itertools import count

import pytest

from nbqueue.client.sending.chunking import Chunker

# As measured: a message's way, what a call costs a worker, what it fetches ahead, when that goes back.
WAY_S, CALL_S = 0.0005, 0.0003
AHEAD_S, MOST_AHEAD = 0.004, 64
LONG_S, BACK_S = 0.05, 0.1
FLUSH_S = 0.1


class Simulation:
    """One map of items that take `times`: client, queue and workers as they are, in a time of their own."""

    def __init__(self, times: list[float], workers: int, chunker: Chunker) -> None:
        self.times, self.workers, self.chunker = times, workers, chunker
        self.calls = self.open = self.sent = 0
        self.ended_at = 0.0
        self._queue: list[range] = []
        self._ahead: list[list[range]] = [[] for _ in range(workers)]
        self._pace = [0.0] * workers
        self._idle = list(range(workers))
        self._serial = count()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []

    def run(self) -> float:
        self._feed(0.0)
        while self._events:
            now, _, event = heapq.heappop(self._events)
            event(now)
        assert self.sent == len(self.times)
        return self.ended_at

    def _at(self, when: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._serial), event))

    def _feed(self, now: float) -> None:
        while self.sent < len(self.times) and self.open < self.chunker.in_flight(self.workers):
            size = min(self.chunker.next_size(self.workers), len(self.times) - self.sent)
            self.chunker.took(size)
            call = range(self.sent, self.sent + size)
            self.calls, self.open, self.sent = self.calls + 1, self.open + 1, call.stop
            self._at(now + WAY_S, lambda now, call=call: self._queued([call], now))  # type: ignore[misc]

    def _queued(self, calls: list[range], now: float) -> None:
        self._queue += calls
        while self._queue and self._idle:
            self._work(self._idle.pop(0), now)

    def _work(self, worker: int, now: float) -> None:
        ahead = self._ahead[worker]
        if not ahead:
            pace = self._pace[worker]
            fetched = min(MOST_AHEAD, max(1, int(AHEAD_S / pace))) if pace else 1
            ahead += self._queue[:fetched]
            del self._queue[:fetched]
        if not ahead:
            self._idle.append(worker)
            return
        call = ahead.pop(0)
        began, items, seconds = now, 0, 0.0
        for place in call:
            now, items, seconds = now + self.times[place], items + 1, seconds + self.times[place]
            if self.times[place] > LONG_S:
                self._at(now - self.times[place] + BACK_S, lambda now: self._give_back(worker, now))
            if seconds > FLUSH_S or place + 1 == call.stop:
                # The last piece leaves with the next fetch.
                self._reply(now + CALL_S + WAY_S, items, seconds, over=place + 1 == call.stop)
                items, seconds = 0, 0.0
        self.ended_at = max(self.ended_at, now + CALL_S)
        took = now - began
        self._pace[worker] = took if not self._pace[worker] else 0.7 * self._pace[worker] + 0.3 * took
        self._at(now + CALL_S, lambda now: self._work(worker, now))

    def _reply(self, when: float, items: int, seconds: float, *, over: bool) -> None:
        def arrive(now: float) -> None:
            self.chunker.observe(items, seconds)
            self.open -= over
            self._feed(now)

        self._at(when, arrive)

    def _give_back(self, worker: int, now: float) -> None:
        calls, self._ahead[worker] = self._ahead[worker], []
        self._queued(calls, now)


def ideal_s(times: list[float], workers: int) -> float:
    """Of a pool that hands out one item at a time, in this order, and that costs nothing."""
    ends = [0.0] * workers
    for time in times:
        heapq.heapreplace(ends, ends[0] + time)
    return max(ends)


def evenly(seed: int) -> list[float]:
    draw = random.Random(seed)
    return [draw.uniform(0.0001, 0.2) for _ in range(200)]


def mostly_short(seed: int) -> list[float]:
    draw = random.Random(seed)
    return [math.exp(draw.uniform(math.log(0.0001), math.log(0.2))) for _ in range(200)]


ORDERS: dict[str, Callable[[list[float]], list[float]]] = {
    "as they come": lambda times: times,
    "ascending": sorted,
    "descending": lambda times: sorted(times, reverse=True),
    "short at both ends": lambda times: sorted(times)[::2] + sorted(times)[1::2][::-1],
    "one giant at the end": lambda times: [*times[:-1], sum(times) / 8],
}


def efficiency(times: list[float], workers: int, expected_s: float | None = None) -> float:
    """Of the ideal, where items of the same function once took `expected_s`."""
    took_s = Simulation(times, workers, Chunker(len(times), expected_s=expected_s)).run()
    return ideal_s(times, workers) / took_s


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("draw", [evenly, mostly_short])
@pytest.mark.parametrize("workers", [2, 4, 8])
@pytest.mark.parametrize(("expected_s", "reached"), [(None, 0.97), (1e-7, 0.93)])
def test_two_hundred_uneven_tasks_reach_97_percent_of_the_ideal(
    draw: Callable[[int], list[float]], order: str, workers: int, expected_s: float | None, reached: float
) -> None:
    """Chunks once were as long as the items before them had been short: ascending work ran at half the speed. Where
    items were tiny the last time and are not now, the first chunks are longer, and the worst case somewhat worse."""
    for seed in range(8):
        assert efficiency(ORDERS[order](draw(seed)), workers, expected_s) > reached, f"seed {seed}"


@pytest.mark.parametrize("expected_s", [None, 1e-6])
@pytest.mark.parametrize("tiny", [40, 200, 1_000])
def test_tiny_items_before_long_ones_and_behind_them_keep_no_worker_waiting(
    tiny: int, expected_s: float | None
) -> None:
    times = [1e-6] * tiny + [0.005] * (2_000 - tiny)
    assert efficiency(times, 2, expected_s) > 0.98
    assert efficiency(times[::-1], 2, expected_s) > 0.98


@pytest.mark.parametrize("workers", [2, 8])
def test_a_generator_of_uneven_tasks_is_balanced_too(workers: int) -> None:
    """As well as can be where each item may be the last."""
    reached = []
    for seed in range(9):
        times = mostly_short(seed)
        reached.append(ideal_s(times, workers) / Simulation(times, workers, Chunker(None)).run())
    assert statistics.median(reached) > 0.97
    assert min(reached) > 0.8


@pytest.mark.parametrize(("items", "most_calls"), [(200_000, 20), (10_000, 20), (1_000, 20)])
def test_what_was_tiny_the_last_time_travels_in_few_calls(items: int, most_calls: int) -> None:
    each_s = 0.03 / items
    first, second = (Simulation([each_s] * items, 2, Chunker(items, expected_s=known)) for known in (None, each_s))
    assert second.run() < first.run()
    assert second.calls < first.calls
    assert second.calls <= most_calls


@pytest.mark.parametrize(
    ("items", "each_s", "most_calls"), [(200_000, 5e-7, 60), (10_000, 1e-5, 40), (1_000, 1e-3, 150)]
)
@pytest.mark.parametrize("sized", [True, False])
def test_even_work_is_not_cut_smaller_than_it_must_be(items: int, each_s: float, most_calls: int, sized: bool) -> None:
    simulation = Simulation([each_s] * items, 2, Chunker(items if sized else None))
    simulation.run()
    assert simulation.calls <= most_calls


def test_what_waits_behind_a_long_item_goes_to_whoever_is_idle() -> None:
    """Twenty short calls, then one of half a second that hides among short ones: the others do not wait for it."""
    times = [0.0002] * 40 + [0.5] + [0.0002] * 40
    assert Simulation(times, 2, Chunker(len(times), fixed=1)).run() < 0.5 + 0.02
