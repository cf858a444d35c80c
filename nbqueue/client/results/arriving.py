"""What is behind a `Batch`: its items, drawn, sent and arriving.

::

    your iterable ─▶ feeder: chunks of items, a bounded number in flight ─▶ listener ─▶ stream
    batch[i] ◀─ ledger ◀─ listener (as they arrive)             tally ─▶ progress bar

Always true here: nothing leads back to the `Batch`, which only its user holds, so it is known when nobody does any
more; `demand` decides how far a generator is drawn; the listener alone tells how items have ended.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

from nbqueue import context
from nbqueue.client.results.future import TaskFuture
from nbqueue.client.results.ledger import CANCELLED, OPEN
from nbqueue.client.results.looping import Looped
from nbqueue.client.results.outcome import Outcome, skipped
from nbqueue.client.sending.listener import Link, OpenCall
from nbqueue.client.sending.recipe import Packed, Prepared, Recipe, items_of
from nbqueue.codec.frames import size_of
from nbqueue.codec.messages import ERROR, EXCEPTION, RETRYING, SKIPPED, VALUE, ReplyBody
from nbqueue.errors import NbqueueError
from nbqueue.progress.page import Page
from nbqueue.progress.prints import Prints
from nbqueue.progress.tally import Lane

__all__ = ["Arriving"]

# So many items that were never drawn are counted one by one when a batch is cancelled.
MOST_CANCELLED = 10_000_000


class Arriving(Looped):
    """The items of one batch. It is what takes the replies, and the feeder's items."""

    many = True
    in_history = ""

    def __init__(
        self,
        link: Link,
        recipe: Recipe,
        items: Iterable[tuple[Any, ...]],
        total: int | None,
    ) -> None:
        super().__init__(link, recipe, items, total)
        self._cancelled = False
        self._running: set[int] = set()
        self._unwanted: set[int] = set()  # places that were cancelled before they were drawn

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
        return self._demand.room(len(self._ledger), self._link.planned_workers)

    # Ending

    def cancel(self, spared: Container[int] = ()) -> None:
        """End every item that has not ended, queued and running alike. What has arrived stays.

        Calls whose number is `spared` go on.
        """
        with self._changed:
            self._cancelled = True
            self._exhausted = self._demand.known = True
            calls = [call for n, call in self._calls.items() if n not in spared]
            open_items = self._ledger.places((OPEN,))
            if len(calls) < len(self._calls):
                going_on = [self._calls[n] for n in self._calls if n in spared]
                open_items = [i for i in open_items if not any(c.base <= i < c.base + c.call.items for c in going_on)]
            # What was not sent yet ends as well, as far as it is known how much that is.
            start, unsent = len(self._ledger), max(0, (self._total or 0) - len(self._ledger))
            if unsent > MOST_CANCELLED:
                # As of a generator: range(10**12) has no room here.
                unsent = 0
            self._ledger.extend(unsent, CANCELLED)
            self._settled += unsent
            self._total = len(self._ledger)
            if self._order is not None:
                self._order.extend(range(start, self._total))
            futures = [self._to_ended(i) for i in list(self._futures) if i >= start]
            self._unfinished += [call.apart() for call in calls]
            for call in calls:
                del self._calls[call.call.n]
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

    def _take(self, items: Sequence[Prepared]) -> None:
        with self._lock:
            if self._cancelled:
                return
            start = len(self._ledger)
            self._ledger.extend(len(items))
        unwanted = [place for place in self._unwanted if start <= place < start + len(items)]
        if unwanted:
            items = [None if start + at in self._unwanted else item for at, item in enumerate(items)]
            self._unwanted.difference_update(unwanted)
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

    def _send_items(self, start: int, items: Sequence[Prepared]) -> None:
        calls, refused = self._recipe.pack(items, start)
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
                stream=self._recipe.options.stream,
            )
            self._calls[call.call.n] = call

    # Arriving (the listener's thread)

    def on_reply(self, call: OpenCall, item: int, body: ReplyBody) -> bool:
        start = call.base + item
        if body.printed or body.shown:
            self._prints.arrive(start, body.attempt, body.printed, body.shown)
        retried = 0
        arrived: Sequence[int]
        failed = 0
        with self._changed:
            plain = pickle.loads(body.packed) if body.packed else None
            if plain is not None and not body.kinds and self._ledger.fill(start, plain):
                arrived = range(start, start + body.items)
            else:
                arrived = places = []
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
                        places.append(place)
                        if kind != VALUE:
                            failed += 1
                            items = items or items_of(call)
                            self._arguments[place] = items[place - call.base]
            self._settled += len(arrived)
            over = {place for place in self._running if start <= place < start + body.items}
            was_running = len(over)
            self._running -= over
            if self._order is not None:
                self._order.extend(arrived)
            if self._limited:
                self._demand.arrived(body.items, len(body.packed) + sum(map(size_of, body.frames)))
            self._feeder.observe(body.items, body.seconds)
            self._details.add(start, body, call.sent_at)
            ended = self._is_over(call)
            if ended:
                self._calls.pop(call.call.n, None)
                self._details.keep(call)
                if self._ledger.any_cancelled(call.base, call.base + call.call.items):
                    self._unfinished.append(call.apart())
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

    def _is_running(self, place: int) -> bool:
        return place in self._running

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
        elif event["kind"] == "cancelled":
            # By somebody else: `nbqueue cancel`. What is left of the input would only follow.
            self.cancel()

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
            self._unfinished.append(call.apart())
            self._calls.pop(call.call.n, None)
            self._changed.notify_all()
        return True

    def on_lost(self, error: NbqueueError) -> None:
        with self._changed:
            if self._exhausted:
                # What is open has been sent, and ends as calls do.
                return
            self._cancelled = self._exhausted = self._demand.known = True
            # Of a generator, the item that would have come next.
            unsent = 1 if self._total is None else max(0, self._total - len(self._ledger))
            self._ledger.extend(unsent if unsent <= MOST_CANCELLED else 1)
            self._total = total = len(self._ledger)
            places = self._ledger.places((OPEN,))
        self.tally.expect(total)
        for place in places:
            wanted = place not in self._unwanted
            self._settle_one(place, Outcome(ERROR, error, True) if wanted else None, failed=wanted)
        self._finish_if_done()

    def on_unmet(self, source: Any, note: Callable[[NbqueueError | None], None]) -> None:
        raise NotImplementedError("items of a batch need no other calls")

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
            self._unfinished += [call.apart() for call in over]
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
