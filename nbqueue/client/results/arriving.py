"""What is behind a `Batch`: its items, drawn, sent and arriving.

::

    your iterable ─▶ feeder: chunks of items, a bounded number in flight ─▶ listener ─▶ stream
    batch[i] ◀─ ledger ◀─ listener (as they arrive)             tally ─▶ progress bar

Always true here: nothing leads back to the `Batch`, which only its user holds, so it is known when nobody does any
more; `demand` decides how far a generator is drawn. Futures are made for the items that somebody asks for, and kept
here until they have ended.
"""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures._base import RUNNING
from typing import Any
from weakref import WeakValueDictionary

from nbqueue import context
from nbqueue.client.results.demand import Demand, Reader
from nbqueue.client.results.failures import annotate, note_of, summary_of
from nbqueue.client.results.frames import hand_out
from nbqueue.client.results.future import TaskFuture
from nbqueue.client.results.items import Details
from nbqueue.client.results.ledger import CANCELLED, FORGOTTEN, OPEN, Ledger
from nbqueue.client.results.outcome import Outcome, skipped
from nbqueue.client.results.replay import Kept
from nbqueue.client.results.waiting import Interrupted, begun, wait_until
from nbqueue.client.sending.feeding import Feeder
from nbqueue.client.sending.listener import Link, OpenCall
from nbqueue.client.sending.recipe import Packed, Prepared, Recipe, items_of
from nbqueue.codec.frames import size_of
from nbqueue.codec.messages import ERROR, EXCEPTION, RETRYING, SKIPPED, VALUE, ReplyBody
from nbqueue.errors import NbqueueError, TaskCancelled
from nbqueue.progress.page import Page
from nbqueue.progress.prints import Prints
from nbqueue.progress.tally import Lane, Tally

__all__ = ["Arriving"]

# Results that a loop takes together.
RUN = 1_000
# And how many futures it takes before the feeder hears of it.
LOOK_EVERY = 64


class Arriving:
    """The items of one batch. It is what takes the replies, and the feeder's items."""

    many = True

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
        self._changed = threading.Condition(self._lock)
        self._ledger = Ledger()
        self._total = total
        self._demand = Demand(known=total is not None)
        self._arguments: dict[int, Prepared] = {}  # of failed items, to run them again
        self._unfinished: list[OpenCall] = []  # calls with items that were cancelled or broken
        self._summaries: set[str] = set()  # notes on all failures that were made so far
        self._settled = 0
        self._exhausted = False
        self._cancelled = False
        self._futures: dict[int, TaskFuture[Any]] = {}  # of open items
        self._ended: WeakValueDictionary[int, TaskFuture[Any]] = WeakValueDictionary()  # of others
        self._order: list[int] | None = None  # of completion, once somebody wants to know
        self._order_first = 0  # so many are in it no longer
        self._running: set[int] = set()
        self._calls: dict[int, OpenCall] = {}
        self._callbacks: list[Callable[[], object]] = []
        self._unwanted: set[int] = set()  # places that were cancelled before they were drawn
        self._details = Details()
        self._feeder = Feeder(items, total, recipe, link)
        self.tally = Tally(self.name, total, unserved=lambda: link.unserved)
        name = self.name  # alone, so that nothing here leads back
        self._prints = Prints(None, name, lambda place: f"{name}[{place}]")

    def check_first(self) -> None:
        """Raises what the first item has against being sent."""
        try:
            self._feeder.check_first(self)
        except Exception:
            self.check_input()
            raise

    def start(self, page: Page | None) -> None:
        """Begin to draw and to send. What items print goes to `page`."""
        name = self.name
        self._prints = Prints(page, name, lambda place: f"{name}[{place}]")
        self._feeder.start(self)

    # Asking

    @property
    def total(self) -> int | None:
        return self._total

    @property
    def done(self) -> bool:
        return self._exhausted and self._settled >= len(self._ledger)

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

    def wait_for(self, place: int) -> bool:
        """Wait for one item. False where there is none.

        Raises
        ------
        IndexError
            If it was read before, and is no longer kept.
        """
        if self._ledger.kind(place) == OPEN:
            self._link.check_process()
            if place >= len(self._ledger):
                self._ask(place)

            def ready() -> bool:
                return self._ledger.kind(place) != OPEN or (self._exhausted and place >= len(self._ledger))

            wait_until(self._changed, ready, None, self._link, self.interrupted)
        if place >= len(self._ledger):
            self.check_input()
            return False
        self.check_kept(place)
        return True

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
        return Kept(recipe.fn, arguments, recipe.keywords, recipe.options.retries + 1)

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
                if kind == OPEN:
                    self._futures[index] = future
                else:
                    self._ended[index] = future
                if index in self._running:
                    future._state = RUNNING
                future.worker, future.attempts, future.seconds = self._details.of(index)
            outcome = self._outcome(index) if kind not in (OPEN, CANCELLED) else None
        if kind == CANCELLED:
            future.cancel()
        elif outcome is not None:
            future._arrive(outcome, None)
        return future

    # Reading in a loop

    def reading(self) -> Reading:
        """A loop over results: it is waited for, and the input is drawn as far as it wants."""
        return Reading(self._demand, self._changed, self.interrupted)

    def next_run(self, place: int) -> list[Any]:
        """Values from `place` on that are there and need no look. What lies before has been read."""
        if not self._limited:
            return self._ledger.run(place, RUN)
        with self._changed:
            self._demand.read(place)
            kept = self._demand.kept
            if place - kept - self._ledger.first > max(RUN, kept // 4):
                self._ledger.drop_before(place - kept)
                self._forget()
            self._changed.notify_all()
            return self._ledger.run(place, RUN)

    def keep_order(self) -> None:
        """Note from now on in which order items end."""
        with self._lock:
            if self._order is None:
                self._order = [place for place, kind, _ in self._ledger.items() if kind != OPEN]
                self._order_first = self._ledger.first

    def wait_for_ended(self, number: int, timeout: float | None) -> bool | None:
        """Wait until so many and one have ended. False at the timeout, None if no more will."""

        def ready() -> bool:
            return self._ended_number > number or self.done

        if not wait_until(self._changed, ready, timeout, self._link, self.interrupted):
            return False
        return True if self._ended_number > number else None

    @property
    def _ended_number(self) -> int:
        return self._order_first + len(self._order or ())

    def ended(self, number: int) -> TaskFuture[Any]:
        """The future of the item that was the `number`-th to end. Those before have been read."""
        assert self._order is not None
        if self._limited and number % LOOK_EVERY == 0:
            with self._changed:
                self._demand.read(number)
                past = number - self._demand.kept - self._order_first
                if past > max(RUN, self._demand.kept // 4):
                    self._ledger.drop(self._order[:past])
                    del self._order[:past]
                    self._order_first += past
                    self._forget()
                self._changed.notify_all()
        at = number - self._order_first
        if at < 0:
            self.check_kept(0)
        return self.future(self._order[max(0, at)])

    @property
    def _limited(self) -> bool:
        return not self._demand.known

    def _forget(self) -> None:
        """The ledger has forgotten its beginning. The lock is held."""
        first = self._ledger.first
        self._details.forget(first)
        for place in [place for place in self._arguments if self._ledger.kind(place) == FORGOTTEN]:
            del self._arguments[place]
        self._unfinished = [call for call in self._unfinished if call.base + call.call.items > first]

    # Nobody reads

    def drop(self) -> None:
        """Nobody holds the batch any more. Called by the collection of garbage, anywhere: it only leaves a note."""
        self._demand.dropped = True

    def _look_after(self) -> None:
        """Whether it is still wanted. Called by the listener from time to time, as long as there is more input."""
        demand = self._demand
        if not demand.left(len(self._ledger)):
            return
        if demand.unwanted:
            self.cancel()
        elif not self._exhausted:
            sys.stderr.write(
                f"nbqueue: `{self.name}` ends after {len(self._ledger):,} items. Its input has more, but nobody holds "
                "the batch, so nobody could read the results. Keep it in a variable, or map a list.\n"
            )
            self._input_ended()

    def _more(self) -> bool:
        return not self._exhausted and self._wanted() > 0

    def _wanted(self) -> int:
        """How many items may be drawn now."""
        return self._demand.room(len(self._ledger))

    # Ending

    def cancel(self) -> None:
        """End every item that has not ended, queued and running alike. What has arrived stays."""
        with self._changed:
            self._cancelled = True
            self._exhausted = self._demand.known = True
            open_items = self._ledger.places((OPEN,))
            # What was not sent yet ends as well, as far as it is known how much that is.
            start, unsent = len(self._ledger), max(0, (self._total or 0) - len(self._ledger))
            self._ledger.extend(unsent, CANCELLED)
            self._settled += unsent
            self._total = len(self._ledger)
            if self._order is not None:
                self._order.extend(range(start, self._total))
            futures = [future for i, future in self._futures.items() if i >= start]
            calls = list(self._calls.values())
            self._unfinished += calls
            self._calls.clear()
        self._link.cancel(calls)
        self.tally.expect(self._total)
        self.tally.settle(cancelled=unsent)
        self._cancel_items(open_items)
        for future in futures:
            future.cancel()
        self._finish_if_done()

    def interrupted(self) -> str:
        """Whoever waited was interrupted. Says what has become of the batch."""
        if self.done:
            return f"`{self.name}` has ended."
        total = "" if self._total is None else f" of {self._total:,}"
        so_far = f"{self._settled:,}{total} items had ended"
        # Inside a task nobody is left who could ask again.
        if self._recipe.options.detached and not context.in_task():
            return f"`{self.name}` goes on, {so_far}. Ask for its results() later, or cancel() it."
        self.cancel()
        return f"`{self.name}` was cancelled, {so_far}."

    def reopen_failed(self) -> tuple[list[int], list[Prepared]]:
        """Open the failed items once more, with the function as it is now. They are to be sent with `send_again`."""
        with self._lock:
            again = [i for i in self._ledger.places((EXCEPTION, ERROR)) if i in self._arguments]
        if not again:
            return [], []
        self._recipe.renew()
        with self._lock:
            # A cancelled batch has no more input, but what failed in it may be run again.
            self._cancelled = False
            items = [self._arguments.pop(i) for i in again]
            for i in again:
                self._ledger.set(i, OPEN, None)
                self._ended.pop(i, None)
            if self._order is not None:
                dropped = set(again)
                self._order = [i for i in self._order if i not in dropped]
            self._settled -= len(again)
        self.tally.reopen(len(again))
        return again, items

    def send_again(self, places: Sequence[int], items: Sequence[Prepared]) -> None:
        for place, item in zip(places, items, strict=True):
            self._send_items(place, [item])

    # Feeding

    def _take(self, items: list[Prepared]) -> None:
        with self._lock:
            start = len(self._ledger)
            self._ledger.extend(len(items))
        for place in [place for place in self._unwanted if start <= place < start + len(items)]:
            items[place - start] = None
            self._unwanted.discard(place)
        if self._total is None:
            self.tally.expect(len(self._ledger))
        self._send_items(start, items)

    def _input_ended(self) -> None:
        with self._changed:
            self._exhausted = self._demand.known = True
            self._total = total = len(self._ledger)
            self._changed.notify_all()
        self.tally.expect(total)
        self._finish_if_done()

    def _send_items(self, start: int, items: list[Prepared]) -> None:
        calls, refused = self._recipe.pack(items)
        for offset, error in refused:
            outcome = None if error is None else Outcome(ERROR, error, True)
            self._settle_one(start + offset, outcome, failed=error is not None)
        for packed in calls:
            self._send(range(start + packed.offset, start + packed.offset + packed.items), packed)

    def _send(self, places: Sequence[int], packed: Packed) -> None:
        # The lock is held until the call is noted, so that its reply cannot come first.
        with self._lock:
            if self._cancelled:
                return
            call = self._link.submit(
                packed.body,
                self._recipe.digests,
                self._recipe.blobs,
                self,
                puts=packed.puts,
                held=packed.held,
                items=len(places),
                base=places[0],
                splits=self._recipe.options.retries > 0,
            )
            self._calls[call.call.n] = call

    # Arriving (the listener's thread)

    def on_reply(self, call: OpenCall, item: int, body: ReplyBody) -> bool:
        start = call.base + item
        if body.printed or body.shown:
            self._prints.arrive(start, body.attempt, body.printed, body.shown)
        retried = 0
        arrived: list[int] = []
        failed = 0
        with self._changed:
            plain = pickle.loads(body.packed) if body.packed else None
            if plain is not None and not body.kinds and self._ledger.fill(start, plain):
                arrived.extend(range(start, start + body.items))
            else:
                kinds = body.kinds or bytes([VALUE]) * body.items
                items: Sequence[Prepared] = ()
                for offset, kind in enumerate(kinds):
                    place = start + offset
                    if kind == RETRYING:
                        retried += 1
                    elif self._ledger.kind(place) == OPEN:
                        value: Any
                        if kind == SKIPPED:
                            value, kind = skipped(), ERROR
                        elif plain is not None:
                            value = plain[offset]
                        else:
                            value = Outcome(kind, body.frames[offset], False)
                        self._ledger.set(place, kind, value)
                        arrived.append(place)
                        if kind != VALUE:
                            failed += 1
                            items = items or items_of(call)
                            self._arguments[place] = items[place - call.base]
            self._settled += len(arrived)
            was_running = len(self._running.intersection(range(start, start + body.items)))
            self._running.difference_update(range(start, start + body.items))
            if self._order is not None:
                self._order.extend(arrived)
            if self._limited:
                self._demand.arrived(body.items, len(body.packed) + sum(map(size_of, body.frames)))
            self._feeder.chunker.observe(body.items, body.seconds)
            self._details.add(start, body)
            ended = self._is_over(call)
            if ended:
                self._calls.pop(call.call.n, None)
                if self._ledger.places((CANCELLED,), call.base, call.base + call.call.items):
                    self._unfinished.append(call)
            futures = (
                [(self._to_ended(i), self._outcome(i)) for i in arrived if i in self._futures] if self._futures else []
            )
            self._changed.notify_all()
        self.tally.quiet(start, start + body.items)
        if retried:
            self.tally.retry(retried, was_running=min(was_running, retried))
            was_running = max(0, was_running - retried)
        self.tally.settle(done=len(arrived) - failed, failed=failed, was_running=was_running)
        for future, outcome in futures:
            future._arrive(outcome, body)
        self._finish_if_done()
        return ended

    def _to_ended(self, place: int) -> TaskFuture[Any]:
        future = self._ended[place] = self._futures.pop(place)
        return future

    def _is_over(self, call: OpenCall) -> bool:
        """None of its items is open: one that is being retried still is."""
        return not self._ledger.any_open(call.base, call.base + call.call.items)

    def on_event(self, call: OpenCall, item: int, event: Mapping[str, Any]) -> None:
        if event["kind"] == "started":
            self._started(call, call.base + item, event["worker"], event["attempt"])
        elif event["kind"] in ("output", "display"):
            self._prints.hear(call.base + item, event)
        elif event["kind"] == "lane":
            self._told(call.base + item, event)

    def _started(self, call: OpenCall, place: int, worker: str, attempt: int) -> None:
        with self._lock:
            if self._ledger.kind(place) != OPEN:
                return
            # A worker runs one item at a time: whatever else of this call was running has ended.
            others = {p for p in self._running if call.base <= p < call.base + call.call.items}
            self._running -= others
            self._running.add(place)
            future = self._futures.get(place)
        if not others:
            self.tally.start()
        for other in others:
            self.tally.quiet(other, other + 1)
        self.tally.begin(place, attempt)
        if future is not None:
            future._started(worker, attempt)

    def _told(self, place: int, news: Mapping[str, Any]) -> None:
        with self._lock:
            if self._ledger.kind(place) != OPEN:
                return
            future = self._futures.get(place)
            self.tally.tell(place, news["lane"], Lane.from_news(f"{self.name}[{place}]", news), news["attempt"])
        if future is not None:
            future._told(news)

    def on_broken(self, call: OpenCall, item: int, error: NbqueueError) -> bool:
        for place in range(call.base, call.base + call.call.items):
            self._settle_one(place, Outcome(ERROR, error, True), failed=True)
        with self._changed:
            self._unfinished.append(call)
            self._calls.pop(call.call.n, None)
            self._changed.notify_all()
        return True

    def first_open(self, call: OpenCall) -> int:
        return self._ledger.first_open(call.base, call.base + call.call.items) - call.base

    def unanswered(self, call: OpenCall) -> Sequence[int]:
        places = self._ledger.places((OPEN, CANCELLED), call.base, call.base + call.call.items)
        return [place - call.base for place in places]

    def _settle_one(self, place: int, outcome: Outcome | None, *, failed: bool) -> None:
        with self._changed:
            if self._ledger.kind(place) != OPEN:
                return
            self._ledger.set(place, outcome.kind if outcome is not None else CANCELLED, outcome)
            self._settled += 1
            was_running = place in self._running
            self._running.discard(place)
            if self._order is not None:
                self._order.append(place)
            future = self._to_ended(place) if place in self._futures else None
            self._changed.notify_all()
        self.tally.quiet(place, place + 1)
        self.tally.settle(failed=int(failed), cancelled=int(not failed), was_running=int(was_running))
        if future is not None and outcome is not None:
            future._arrive(outcome, None)
        elif future is not None:
            future.cancel()
        self._finish_if_done()

    def _cancel_items(self, places: Iterable[int]) -> None:
        for place in places:
            if place < len(self._ledger):
                self._settle_one(place, None, failed=False)
            elif not self._exhausted:
                self._unwanted.add(place)
        with self._changed:
            over = [call for call in self._calls.values() if self._is_over(call)]
            self._unfinished += over
            for call in over:
                del self._calls[call.call.n]
            self._changed.notify_all()
        if over:
            self._link.cancel(over)

    def _finish_if_done(self) -> None:
        with self._changed:
            if not self.done:
                return
            callbacks, self._callbacks = self._callbacks, []
            self._changed.notify_all()
        self.tally.finish()
        for callback in callbacks:
            callback()


class Reading(begun):
    """A loop over results, as a ``with`` block."""

    __slots__ = ("_changed", "_demand", "_reader")

    def __init__(self, demand: Demand, changed: threading.Condition, interrupted: Interrupted) -> None:
        super().__init__(interrupted)
        self._demand = demand
        self._changed = changed
        self._reader = Reader()

    def __enter__(self) -> None:
        super().__enter__()
        self._demand.begin(self._reader)
        if not self._demand.known:
            with self._changed:
                self._changed.notify_all()

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        # No lock: a loop may be ended by the collection of garbage, anywhere.
        self._demand.leave(self._reader)
        super().__exit__(kind, *details)
