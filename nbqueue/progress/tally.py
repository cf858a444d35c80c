"""Counts, rate and remaining time of one batch, as pure state.

The listener writes (`start`, `settle`, `retry`, `finish`), views read (`snapshot`), from any threads. The
clock is passed in, so every number here can be tested without waiting for it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any, Protocol

__all__ = ["Lane", "Lanes", "Snapshot", "Source", "Tally"]

# The rate looks back over this share of the run, and at least over this many seconds: steady enough to
# read when tasks take minutes, quick enough to follow a batch whose later items are slower.
MEMORY_SHARE = 0.25
MEMORY_MIN_S = 5.0

# No rate before this: the first arrivals measure how long the workers took to start.
RATE_AFTER_S = 0.25

# A task that is over sooner than this needs no bar of its own.
LANES_AFTER_S = 1.0
# More than fit below a card without pushing the next cell away; the rest is a number.
MOST_LANES = 8


@dataclass(frozen=True, slots=True)
class Lane:
    """How far one running task says it is: a thin bar under the batch's own.

    `label` names the task, or is empty where the lane above has named it. `total` is None while unknown.
    """

    label: str
    text: str
    done: float
    total: float | None

    @classmethod
    def from_news(cls, label: str, news: Mapping[str, Any]) -> Lane | None:
        """What the event "lane" of a running task says, None where the lane is gone."""
        if news.get("gone"):
            return None
        return cls(label, str(news["text"]), _finite(news["done"]) or 0.0, _finite(news["total"]))


def _finite(number: float | None) -> float | None:
    try:
        return number if number is not None and math.isfinite(number) else None
    except OverflowError:
        return None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a batch looked like at one moment.

    Attributes
    ----------
    label : str
        What the batch is called, usually the function's name.
    total : int or None
        How many items there are; None while a generator has not come to its end.
    done, failed, cancelled : int
        Items that are over, by how they ended.
    running : int
        Items seen running; informational, a lost event makes it wrong for a while.
    retried : int
        How many further attempts were made.
    elapsed_s : float
        Seconds since the start; stands still once finished.
    rate : float or None
        Settled items per second: lately, or of the whole run once finished.
    eta_s : float or None
        Seconds that the rest will take at that rate, None while unknown.
    finished : bool
        Nothing more will happen, whether or not every item has settled.
    lanes : tuple of Lane
        What running tasks tell of themselves, the first few of them.
    more_lanes : int
        How many lanes there are besides.
    single : bool
        This is one call, not a batch: it is queued, running or over.
    error : str
        How a single call failed, in short.
    unserved : bool
        Nobody is there who could do what is left.
    """

    label: str
    total: int | None
    done: int
    failed: int
    cancelled: int
    running: int
    retried: int
    elapsed_s: float
    rate: float | None
    eta_s: float | None
    finished: bool
    lanes: tuple[Lane, ...] = ()
    more_lanes: int = 0
    single: bool = False
    error: str = ""
    unserved: bool = False

    @property
    def settled(self) -> int:
        """Items that are over, however they ended."""
        return self.done + self.failed + self.cancelled

    @property
    def fraction(self) -> float | None:
        """Settled share of the total, 0 to 1; None while the total is unknown."""
        if self.total is None:
            return None
        return min(1.0, self.settled / self.total) if self.total else 1.0


class Source(Protocol):
    """Whatever can be shown: views ask it for a snapshot when they draw."""

    def snapshot(self) -> Snapshot: ...


class Tally:
    """The count of one batch. Every method may be called from any thread and returns at once.

    Parameters
    ----------
    label : str
        What the batch is called.
    total : int, optional
        How many items there are, where that is known.
    clock : callable
        Seconds that only grow.
    unserved : callable
        Whether nobody is there who could do what is left; asked for each snapshot.

    Examples
    --------
    >>> tally = Tally("simulate", total=3)
    >>> tally.settle(done=2)
    >>> tally.settle(failed=1)
    >>> tally.finish()
    >>> tally.snapshot().fraction
    1.0
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        unserved: Callable[[], bool] = lambda: False,
    ) -> None:
        self.label = label
        self._unserved = unserved
        self._clock = clock
        self._lock = threading.Lock()
        self._total = total
        self._done = self._failed = self._cancelled = self._running = self._retried = 0
        self._started_at = clock()
        self._finished_at: float | None = None
        self._lanes = Lanes(clock)
        self._forget_rate(self._started_at)

    def expect(self, total: int) -> None:
        """The total has become known, or has grown."""
        with self._lock:
            self._total = total

    def start(self, count: int = 1) -> None:
        """Items were seen running."""
        with self._lock:
            self._running += count

    def settle(self, *, done: int = 0, failed: int = 0, cancelled: int = 0, was_running: int = 0) -> None:
        """Items are over; `was_running` of them had been counted by `start`."""
        with self._lock:
            self._done += done
            self._failed += failed
            self._cancelled += cancelled
            self._running = max(0, self._running - was_running)
            # What is cancelled is over at once, so it says nothing about the speed of the rest.
            self._arrived(done + failed)

    def retry(self, count: int = 1, was_running: int = 0) -> None:
        """Items go back for a further attempt."""
        with self._lock:
            self._retried += count
            self._running = max(0, self._running - was_running)

    def tell(self, place: int, key: int, lane: Lane | None, attempt: int = 1) -> None:
        """News of the running item `place`: where its bar `key` is, or None where that is gone."""
        with self._lock:
            if self._finished_at is None:
                self._lanes.tell(place, key, lane, attempt)

    def begin(self, place: int, attempt: int) -> None:
        """A further attempt runs the item `place`: what earlier ones have told is over."""
        if self._lanes:
            with self._lock:
                self._lanes.begin(place, attempt)

    def quiet(self, first: int, last: int) -> None:
        """The items from `first` to before `last` run no longer, so their lanes go."""
        # Asked without the lock: nearly always there are none, and this is called for every reply.
        if self._lanes:
            with self._lock:
                self._lanes.drop(first, last)

    def reopen(self, count: int) -> None:
        """Failed items are to run again: they are open once more, and so is the tally.

        The time between `finish` and here does not count as elapsed.
        """
        with self._lock:
            self._failed = max(0, self._failed - count)
            now = self._clock()
            if self._finished_at is not None:
                self._started_at += now - self._finished_at
                self._finished_at = None
            self._forget_rate(now)

    def finish(self) -> None:
        """Nothing more will happen; a second call changes nothing."""
        with self._lock:
            if self._finished_at is None:
                self._finished_at = self._clock()
            self._running = 0
            self._lanes.clear()

    def snapshot(self) -> Snapshot:
        """All numbers as they are now."""
        with self._lock:
            finished = self._finished_at is not None
            now = self._clock() if self._finished_at is None else self._finished_at
            elapsed_s = max(0.0, now - self._started_at)
            settled = self._done + self._failed + self._cancelled
            ran = self._done + self._failed
            eta_s = None
            unserved = not finished and self._unserved()
            if unserved:
                # Nor does this time tell how fast the rest will be.
                self._forget_rate(now)
            if finished:
                # Of a batch that took no time, a rate would only measure the clock.
                rate = ran / elapsed_s if ran and elapsed_s >= 0.01 else None
            else:
                rate = self._rate(now)
                if rate and self._total is not None:
                    eta_s = max(0, self._total - settled) / rate
            lanes, more_lanes = self._lanes.first(now) if self._lanes else ((), 0)
            return Snapshot(
                label=self.label,
                total=self._total,
                done=self._done,
                failed=self._failed,
                cancelled=self._cancelled,
                running=self._running,
                retried=self._retried,
                elapsed_s=elapsed_s,
                rate=rate,
                eta_s=eta_s,
                finished=finished,
                lanes=lanes,
                more_lanes=more_lanes,
                unserved=unserved,
            )

    # The rate is (items, weighted by age) / (seconds, weighted by age), moved on only when items arrive:
    # a moment between two arrivals is no news that the work has become slower.

    def _forget_rate(self, now: float) -> None:
        self._rate_since = self._arrival_at = now
        self._items = self._seconds = 0.0
        self._last_count = 0

    def _fade(self, now: float) -> float:
        memory_s = max(MEMORY_MIN_S, MEMORY_SHARE * (now - self._rate_since))
        return math.exp(-(now - self._arrival_at) / memory_s)

    def _arrived(self, count: int) -> None:
        if not count:
            return
        now = self._clock()
        fade = self._fade(now)
        self._items = self._items * fade + count
        self._seconds = self._seconds * fade + now - self._arrival_at
        self._arrival_at = now
        self._last_count = count

    def _rate(self, now: float) -> float | None:
        if not self._items or now - self._rate_since < RATE_AFTER_S:
            return None
        # As if the next arrival came this very moment: the rate can be no better than that.
        fade = self._fade(now)
        seconds_if_now = self._seconds * fade + now - self._arrival_at
        bounds = [
            items / seconds
            for items, seconds in (
                (self._items, self._seconds),
                (self._items * fade + self._last_count, seconds_if_now),
            )
            if seconds > 0
        ]
        return min(bounds) if bounds else None


class Lanes:
    """The lanes of running items, by item and key; an item's are not shown before they are old enough."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._of: dict[int, _OfItem] = {}

    def __bool__(self) -> bool:
        return bool(self._of)

    def tell(self, place: int, key: int, lane: Lane | None, attempt: int) -> None:
        self.begin(place, attempt)
        if place not in self._of:
            self._of[place] = _OfItem(self._clock(), attempt)
        item = self._of[place]
        if item.attempt > attempt:
            return
        if lane is None:
            # The item keeps its age: a further lane of it need not wait again.
            item.lanes.pop(key, None)
        else:
            item.lanes[key] = lane

    def begin(self, place: int, attempt: int) -> None:
        # Not simply dropped: that it has started may be heard after what it has told.
        item = self._of.get(place)
        if item is not None and item.attempt < attempt:
            del self._of[place]

    def drop(self, first: int, last: int) -> None:
        if last - first == 1:
            self._of.pop(first, None)
            return
        for place in [place for place in self._of if first <= place < last]:
            del self._of[place]

    def clear(self) -> None:
        self._of.clear()

    def first(self, now: float) -> tuple[tuple[Lane, ...], int]:
        """The lanes to show and how many there are besides, in the order of the items."""
        lanes: list[Lane] = []
        for _, item in sorted(self._of.items(), key=itemgetter(0)):
            if now - item.since >= LANES_AFTER_S:
                for number, (_, lane) in enumerate(sorted(item.lanes.items(), key=itemgetter(0))):
                    lanes.append(replace(lane, label="") if number else lane)
        return tuple(lanes[:MOST_LANES]), max(0, len(lanes) - MOST_LANES)


@dataclass(slots=True)
class _OfItem:
    since: float
    attempt: int
    lanes: dict[int, Lane] = field(default_factory=dict)
