"""What may be asked of a batch's items: how each has ended.

Asked by any thread, while the listener brings what is asked for. Always true here: waiting is for facts in the ledger,
under one condition; futures are made for the items that somebody asks for, and kept here until they have ended.
`looping` is built on it.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures._base import RUNNING
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

from nbqueue.client.results.demand import Demand
from nbqueue.client.results.failures import annotate, note_of, summary_of
from nbqueue.client.results.frames import hand_out
from nbqueue.client.results.future import TaskFuture
from nbqueue.client.results.items import Details, Line
from nbqueue.client.results.ledger import CANCELLED, FORGOTTEN, OPEN, Ledger
from nbqueue.client.results.outcome import Outcome
from nbqueue.client.results.replay import Kept
from nbqueue.client.results.waiting import Heard, because, wait_until
from nbqueue.client.sending.feeding import Feeder
from nbqueue.client.sending.listener import Link, OpenCall
from nbqueue.client.sending.recipe import Prepared, Recipe
from nbqueue.codec.messages import ERROR, EXCEPTION, VALUE
from nbqueue.errors import TaskCancelled
from nbqueue.progress.prints import Prints
from nbqueue.progress.tally import Tally

__all__ = ["Asked"]


class Asked(ABC):
    """The items of one batch, as those see them who ask. `Arriving` fills it."""

    def __init__(
        self,
        link: Link,
        recipe: Recipe,
        items: Iterable[tuple[Any, ...]],
        total: int | None,
    ) -> None:
        self._link = link
        self._recipe = recipe
        self.name = recipe.options.name
        self._lock = threading.Lock()
        self._changed = Heard(self._lock)
        self._ledger = Ledger()
        self._total = total
        self._demand = Demand(known=total is not None)
        self._arguments: dict[int, Prepared] = {}  # of failed items, to run them again
        self._unfinished: list[OpenCall] = []  # calls with items that were cancelled or broken
        self._summaries: set[str] = set()  # notes on all failures that were made so far
        self._settled = 0
        self._exhausted = False  # no more items will be taken
        self._futures: dict[int, TaskFuture[Any]] = {}  # of open items
        self._ended: WeakValueDictionary[int, TaskFuture[Any]] = WeakValueDictionary()  # of others
        self._order: list[int] | None = None  # of completion, once somebody wants to know
        self._order_first = 0  # so many are in it no longer
        self._calls: dict[int, OpenCall] = {}
        self._callbacks: list[Callable[[], object]] = []
        self._details = Details()
        self._feeder = Feeder(items, total, recipe, link)
        self.tally = Tally(self.name, total, unserved=lambda: link.unserved)
        name = self.name  # alone, so that nothing here leads back
        self._prints = Prints(None, name, lambda place: f"{name}[{place}]")

    @abstractmethod
    def interrupted(self) -> str:
        """Whoever waited was interrupted. Says what has become of the batch."""

    @abstractmethod
    def _cancel_items(self, places: Iterable[int]) -> None: ...

    @abstractmethod
    def _is_running(self, place: int) -> bool: ...

    # Asking

    @property
    def seed(self) -> int | None:
        return self._recipe.seed

    @property
    def seconds(self) -> float | None:
        """How long all attempts took that have ended."""
        return self._details.seconds

    def lines(self) -> list[Line]:
        """Who ran what when, by the replies that are kept."""
        with self._lock:
            return self._details.lines()

    @property
    def total(self) -> int | None:
        return self._total

    @property
    def done(self) -> bool:
        return self._exhausted and self._settled >= len(self._ledger)

    @property
    def open_items(self) -> int:
        """How many have not ended, sent or not, as far as they are known."""
        return max(0, max(self._total or 0, len(self._ledger)) - self._settled)

    def wait(self, timeout: float | None) -> bool:
        """Wait until every item has ended."""
        self._link.check_process()
        self.want(1)
        try:
            return wait_until(self._changed, lambda: self.done, timeout, self._link, self.interrupted)
        finally:
            self.want(-1)

    def want(self, more: int) -> None:
        """So many more (or less) wait for all of it."""
        with self._changed:
            self._demand.wait(more)
            self._changed.notify_all()

    def when_done(self, callback: Callable[[], object]) -> None:
        """Call it at the end, at once if that has come."""
        with self._lock:
            if not self.done:
                self._callbacks.append(callback)
                return
        callback()

    def wait_for(self, place: int, timeout: float | None = None) -> bool:
        """Wait for one item. False where there is none.

        Raises
        ------
        IndexError
            If it was read before, and is no longer kept.
        TimeoutError
            If it has not ended within `timeout` seconds.
        """
        ready = self.asked_for(place)
        if ready is not None:
            self._link.check_process()
            if not wait_until(self._changed, ready, timeout, self._link, self.interrupted):
                raise TimeoutError(f"`{self.name}[{place}]` has not ended in time.{because(self._link)}")
        return self.has(place)

    def asked_for(self, place: int) -> Callable[[], bool] | None:
        """Whether one item has ended, or will never be there; None where it has ended already. It is drawn for that."""
        if self._ledger.kind(place) != OPEN:
            return None
        if place >= len(self._ledger):
            self._ask(place)
        return lambda: self._ledger.kind(place) != OPEN or (self._exhausted and place >= len(self._ledger))

    def has(self, place: int) -> bool:
        """Whether there is such an item, after it was waited for. Raises as `wait_for` does."""
        if place >= len(self._ledger):
            self.check_input()
            return False
        self.check_kept(place)
        return True

    @contextmanager
    def waking(self, wake: Callable[[], object]) -> Iterator[None]:
        """While this lasts, `wake` is called at each change, from any thread, and must return at once."""
        with self._lock:
            self._changed.wakers.add(wake)
        try:
            yield
        finally:
            with self._lock:
                self._changed.wakers.discard(wake)

    def is_so(self, ready: Callable[[], bool]) -> bool:
        """Ask what may change at any time."""
        with self._lock:
            return ready()

    def check_kept(self, place: int) -> None:
        """Raises IndexError for an item that is no longer kept."""
        if self._ledger.kind(place) == FORGOTTEN:
            raise IndexError(
                f"`{self.name}[{place}]` was read and is no longer kept: of an input of unknown length, only the last "
                f"{self._demand.kept:,} results that a loop has read are. Keep what you need, or map a list."
            )

    def _ask(self, place: int) -> None:
        with self._changed:
            self._demand.ask(place)
            self._changed.notify_all()

    def check_input(self) -> None:
        """Raises what the input has raised."""
        if self._feeder.error is not None:
            error, as_it_came = self._feeder.error
            hand_out(error.with_traceback(as_it_came))

    def get(self, place: int) -> Any:
        value, error = self._look(place)
        if error is not None:
            try:
                hand_out(error)
            finally:
                del error
        return value

    def all_values(self, *, or_errors: bool) -> list[Any]:
        """Of a batch that is done."""
        self.check_kept(0)
        values = self._ledger.all_values()
        if values is not None:
            return values
        get = self._value_or_error if or_errors else self.get
        return [
            value if kind == VALUE and type(value) is not Outcome else get(place)
            for place, kind, value in self._ledger.items()
        ]

    def _value_or_error(self, place: int) -> Any:
        value, error = self._look(place)
        return value if error is None else error

    def _look(self, index: int) -> tuple[Any, BaseException | None]:
        self.check_kept(index)
        kind, value = self._ledger.kind(index), self._ledger.value(index)
        if kind == CANCELLED:
            return None, TaskCancelled(f"`{self.name}[{index}]` was cancelled.")
        return value.get(lambda: self._note(index)) if isinstance(value, Outcome) else (value, None)

    def _note(self, index: int) -> str:
        with self._lock:
            worker, attempt, _ = self._details.of(index)
        return note_of(f"{self.name}[{index}]", self._kept(index), worker, attempt)

    def add_summary(self, error: BaseException) -> None:
        """Tell what else has failed, in place of what was told before."""
        places = self.failed_places()
        summary = summary_of(map(self._outcome, places), len(places), self._total)
        if summary or self._summaries:
            annotate(error, summary, instead_of=self._summaries)
            self._summaries.add(summary)

    def _kept(self, index: int) -> Kept | None:
        """What an item is made of, None once it has succeeded."""
        with self._lock:
            if self._ledger.kind(index) in (VALUE, FORGOTTEN):
                return None
            arguments = self._arguments.get(index)
            calls = [*self._calls.values(), *self._unfinished]
        recipe = self._recipe
        if arguments is None:
            for call in calls:
                if call.base <= index < call.base + call.call.items:
                    return Kept.of(recipe.fn, call, index - call.base)
        return Kept(recipe.fn, arguments, recipe.keywords, recipe.options.retries + 1, recipe.rng(index))

    def _outcome(self, place: int) -> Outcome:
        kind, value = self._ledger.kind(place), self._ledger.value(place)
        return value if isinstance(value, Outcome) else Outcome(kind, value, True)

    def failed_places(self) -> list[int]:
        with self._lock:
            return self._ledger.places((EXCEPTION, ERROR))

    def future(self, index: int) -> TaskFuture[Any]:
        """The future of one item; the same one as long as somebody holds it."""
        if index < 0 or (self._total is not None and index >= self._total):
            raise IndexError(f"This batch has no item {index}.")
        self.check_kept(index)
        if index >= len(self._ledger):
            self._ask(index)
        with self._lock:
            kind = self._ledger.kind(index)
            future = self._futures.get(index) or self._ended.get(index)
            if future is None:
                future = TaskFuture(
                    f"{self.name}[{index}]",
                    self._link,
                    lambda: self._cancel_items([index]),
                    transcript=lambda: self._prints.of(index),
                    kept=lambda: self._kept(index),
                )
                future._detached = self._recipe.options.detached
                future.seed = self._recipe.seed
                if kind == OPEN:
                    self._futures[index] = future
                else:
                    self._ended[index] = future
                if self._is_running(index):
                    future._state = RUNNING
                future.worker, future.attempts, future.seconds = self._details.of(index)
            outcome = self._outcome(index) if kind not in (OPEN, CANCELLED) else None
        if kind == CANCELLED:
            future.cancel()
        elif outcome is not None:
            future._arrive(outcome, None)
        return future
