"""`Batch`: the results of a map, still arriving.

::

    your iterable ─▶ feeder: chunks of items, a bounded number in flight ─▶ listener ─▶ stream
    batch[i] ◀─ outcomes ◀─ listener (as they arrive)            tally ─▶ progress bar

Results are kept in two flat arrays; futures are made only for the items that somebody asks for. The input is
consumed as results come back, so it may be longer than memory or have no end.
"""

from __future__ import annotations

import asyncio
import itertools
import pickle
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures._base import RUNNING
from typing import Any, Generic, TypeVar, cast, overload

from nbqueue import context
from nbqueue.client.results.failures import Failures, annotate, note_of, summary_of
from nbqueue.client.results.frames import hand_out, user_frames_only
from nbqueue.client.results.future import TaskFuture, call_soon
from nbqueue.client.results.items import Details, Futures
from nbqueue.client.results.outcome import Outcome, skipped
from nbqueue.client.results.replay import Kept
from nbqueue.client.results.waiting import because, begun, tick, wait_until
from nbqueue.client.sending.feeding import Feeder
from nbqueue.client.sending.listener import Link, OpenCall
from nbqueue.client.sending.recipe import Packed, Prepared, Recipe, items_of
from nbqueue.codec.messages import ERROR, EXCEPTION, RETRYING, SKIPPED, VALUE, ReplyBody
from nbqueue.errors import NbqueueError, TaskCancelled
from nbqueue.progress.page import Page
from nbqueue.progress.prints import Prints
from nbqueue.progress.tally import Lane, Snapshot, Tally
from nbqueue.progress.views import Handle, open_view, show_again

__all__ = ["Batch"]

R = TypeVar("R")

_OPEN, _CANCELLED = 0, ord("c")


class Batch(Generic[R]):
    """Results of a map, in order, as they arrive.

    Iterating and indexing wait for the item in question; ``len`` is the number of items (for a generator,
    once it has been consumed). An item that failed raises its exception where it is asked for, and only there.

    Attributes
    ----------
    futures : sequence of TaskFuture
        One for each item, made when asked for.
    progress : Snapshot
        Counts, rate and remaining time now.

    Examples
    --------
    >>> batch = simulate.map(range(1_000))   # doctest: +SKIP
    >>> batch.results()                      # doctest: +SKIP
    >>> for future in batch.as_completed():  # doctest: +SKIP
    ...     print(future.result())
    """

    many = True

    def __init__(
        self,
        link: Link,
        recipe: Recipe,
        items: Iterable[tuple[Any, ...]],
        total: int | None,
        show: bool,
        page: Callable[[], Page | None] = lambda: None,
    ) -> None:
        self._link = link
        self._recipe = recipe
        self.name = self._name = recipe.options.name
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._kinds = bytearray()
        self._values: list[Any] = []
        self._arguments: dict[int, Prepared] = {}  # of failed items, to run them again
        self._unfinished: list[OpenCall] = []  # calls with items that were cancelled or broken
        self._summaries: set[str] = set()  # notes on all failures that were made so far
        self._settled = 0
        self._total = total
        self._exhausted = False
        self._cancelled = False
        self._futures: dict[int, TaskFuture[R]] = {}
        self._finished: deque[int] | None = None  # in order of completion, once somebody wants to know
        self._running: set[int] = set()
        self._calls: dict[int, OpenCall] = {}
        self._callbacks: list[Callable[[], object]] = []
        self._unwanted: set[int] = set()  # places that were cancelled before they were drawn
        self._details = Details()
        self._feeder = Feeder(items, total, recipe, link)
        self.tally = Tally(self._name, total, unserved=lambda: link.unserved)
        try:
            self._feeder.check_first(self)
        except Exception:
            self._check_input()
            raise
        self._view: Handle | None = open_view(self.tally, self.cancel) if show else None
        # Below the card.
        name = self._name  # alone, so that nothing here leads back to the batch
        self._prints = Prints(page(), name, lambda place: f"{name}[{place}]")
        self._feeder.start(self)

    def __repr__(self) -> str:
        s = self.progress
        total = "?" if s.total is None else s.total
        more = f", {s.failed} failed" if s.failed else ""
        return f"<Batch {self._name} {s.done}/{total} done{more}>"

    def _ipython_display_(self) -> None:
        """The card, in this cell too. Raises NotImplementedError where only the repr can be shown."""
        self._view = show_again(self._view, self.tally, self.cancel)

    # Asking

    def __len__(self) -> int:
        """Raises TypeError while the length of a generator is not known yet."""
        with user_frames_only:
            if self._total is None:
                raise TypeError("The length of this batch is not known until its input has been consumed.")
            return self._total

    def __bool__(self) -> bool:
        """False only for a batch that is known to be empty."""
        return self._total != 0

    def __iter__(self) -> Iterator[R]:
        index = 0
        with begun(self._interrupted):
            while True:
                if index < len(self._kinds) and self._kinds[index] == VALUE:
                    value = self._values[index]
                    if type(value) is not Outcome:
                        # As most are when they are asked for.
                        yield value
                        del value
                        index += 1
                        continue
                with user_frames_only:
                    if not self._wait_for(index):
                        return
                    try:
                        value = self._get(index)
                    except Exception as error:
                        self._add_summary(error)
                        raise
                yield value
                del value
                index += 1

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> list[R]: ...
    def __getitem__(self, index: int | slice) -> R | list[R]:
        with user_frames_only:
            if isinstance(index, slice):
                values = []
                # A comprehension would be a frame of ours, in Python 3.11.
                for i in range(*index.indices(len(self))):
                    values.append(self[i])
                return values
            if index < 0:
                index += len(self)
            if index < 0 or not self._wait_for(index):
                raise IndexError(f"This batch has no item {index}.")
            return self._get(index)

    def results(self, *, return_exceptions: bool = False, timeout: float | None = None) -> list[Any]:
        """All values, in order; waits for them. Interrupting the wait cancels the batch, see `on_interrupt`.

        Parameters
        ----------
        return_exceptions : bool
            Put exceptions into the list instead of raising the first. An error of the input itself is raised all
            the same: the list would be too short.
        timeout : float, optional
            Seconds to wait for all of them.

        Raises
        ------
        TimeoutError
            If they have not all arrived in time; the batch goes on.
        Exception
            What the first failed item, or the input itself, raised. The others' results stay: ask again with
            ``return_exceptions=True``.
        """
        with user_frames_only:
            if not self._wait(timeout):
                raise TimeoutError(f"{self!r} has not ended within {timeout:g} s; it goes on.{because(self._link)}")
            get = self._value_or_error if return_exceptions else self._get
            arrived = enumerate(zip(self._kinds, self._values, strict=True))
            try:
                values = [
                    value if kind == VALUE and type(value) is not Outcome else get(place)
                    for place, (kind, value) in arrived
                ]
            except Exception as error:
                self._add_summary(error)
                raise
            self._check_input()
        return values

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until every item has ended. False if they have not within `timeout` seconds.

        Raises
        ------
        Exception
            What the input itself raised: then there are fewer items than there should be. Those that there are have
            ended, and what items raise is no matter here.
        """
        with user_frames_only:
            ended = self._wait(timeout)
            if ended:
                self._check_input()
        return ended

    def _wait(self, timeout: float | None) -> bool:
        self._link.check_process()
        ended = wait_until(self._changed, lambda: self.done, timeout, self._link, self._interrupted)
        if ended:
            self._close_view()
        return ended

    @property
    def done(self) -> bool:
        """True when every item has ended."""
        return self._exhausted and self._settled >= len(self._kinds)

    @property
    def progress(self) -> Snapshot:
        return self.tally.snapshot()

    @property
    def futures(self) -> Sequence[TaskFuture[R]]:
        return Futures(self)

    def as_completed(self, timeout: float | None = None) -> Iterator[TaskFuture[R]]:
        """Futures of the items in the order in which they end; works for inputs without an end.

        Raises
        ------
        TimeoutError
            If no further item ends within `timeout` seconds of being asked for.
        """
        with self._lock:
            if self._finished is None:
                self._finished = deque(i for i, kind in enumerate(self._kinds) if kind != _OPEN)
            finished = self._finished
        with begun(self._interrupted):
            for seen in itertools.count():

                def ready(seen: int = seen) -> bool:
                    return len(finished) > seen or self.done

                with user_frames_only:
                    if not wait_until(self._changed, ready, timeout, self._link, self._interrupted):
                        raise TimeoutError(
                            f"No item of {self!r} has ended within {timeout:g} s.{because(self._link)}"
                        )
                    if seen >= len(finished):
                        self._close_view()
                        self._check_input()
                        return
                yield self.future(finished[seen])

    @property
    def failed(self) -> Failures[R]:
        """Futures of the items that ended with an exception so far, in order.

        A list, which a notebook shows as a table of what failed, by type and line.
        """
        return Failures(map(self.future, self._failed_places()), self._total)

    def _failed_places(self) -> list[int]:
        with self._lock:
            return [i for i, kind in enumerate(self._kinds) if kind in (EXCEPTION, ERROR)]

    def future(self, index: int) -> TaskFuture[R]:
        """The future of one item; the same one every time.

        Raises
        ------
        IndexError
            If there is no such item.
        """
        if index < 0 or (self._total is not None and index >= self._total):
            raise IndexError(f"This batch has no item {index}.")
        with self._lock:
            future = self._futures.get(index)
            if future is None:
                future = TaskFuture(
                    f"{self._name}[{index}]",
                    self._link,
                    lambda: self._cancel_items([index]),
                    transcript=lambda: self._prints.of(index),
                    kept=lambda: self._kept(index),
                )
                future._detached = self._recipe.options.detached
                self._futures[index] = future
                if index in self._running:
                    future._state = RUNNING
                future.worker, future.attempts, future.seconds = self._details.of(index)
            kind = self._kinds[index] if index < len(self._kinds) else _OPEN
        if kind == _CANCELLED:
            future.cancel()
        elif kind != _OPEN:
            future._arrive(self._outcome(index), None)
        return future

    def cancel(self) -> None:
        """End every item that has not ended, queued and running alike. What has arrived stays."""
        with self._changed:
            self._cancelled = True
            self._exhausted = True
            open_items = [i for i, kind in enumerate(self._kinds) if kind == _OPEN]
            # What was not sent yet ends as well, as far as it is known how much that is.
            start, unsent = len(self._kinds), max(0, (self._total or 0) - len(self._kinds))
            self._kinds.extend(bytes([_CANCELLED]) * unsent)
            self._values.extend([None] * unsent)
            self._settled += unsent
            self._total = len(self._kinds)
            if self._finished is not None:
                self._finished.extend(range(start, self._total))
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

    def _interrupted(self) -> str:
        """Whoever waited was interrupted. Says what has become of the batch."""
        if self.done:
            return f"`{self._name}` has ended."
        total = "" if self._total is None else f" of {self._total:,}"
        so_far = f"{self._settled:,}{total} items had ended"
        # Inside a task nobody is left who could ask again.
        if self._recipe.options.detached and not context.in_task():
            return f"`{self._name}` goes on, {so_far}. Ask for its results() later, or cancel() it."
        self.cancel()
        return f"`{self._name}` was cancelled, {so_far}."

    def retry_failed(self) -> Batch[R]:
        """Run the failed items again, with the function as it is now. Their futures are made anew.

        Returns
        -------
        Batch
            This batch.
        """
        with self._lock:
            again = [
                i for i, kind in enumerate(self._kinds) if kind in (EXCEPTION, ERROR) and i in self._arguments
            ]
        if not again:
            return self
        self._recipe.renew()
        with self._lock:
            # A cancelled batch has no more input, but what failed in it may be run again.
            self._cancelled = False
            items = [self._arguments.pop(i) for i in again]
            for i in again:
                self._kinds[i] = _OPEN
                self._values[i] = None
                self._futures.pop(i, None)
            if self._finished is not None:
                dropped = set(again)
                self._finished = deque(i for i in self._finished if i not in dropped)
            self._settled -= len(again)
        self.tally.reopen(len(again))
        if self._view is not None:
            self._view = open_view(self.tally, self.cancel)
        for i, item in zip(again, items, strict=True):
            self._send_items(i, [item])
        return self

    def __await__(self) -> Generator[Any, None, list[R]]:
        return self._awaited().__await__()

    async def _awaited(self) -> list[R]:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        with self._lock:
            if not self.done:
                self._callbacks.append(lambda: call_soon(loop, ended.set))
            else:
                ended.set()
        with user_frames_only:
            await tick(ended, self._interrupted, self._link)
            return self.results()

    def _wait_for(self, index: int) -> bool:
        """True when the item has ended, False when there is none."""
        if not (index < len(self._kinds) and self._kinds[index] != _OPEN):
            self._link.check_process()

            def ready() -> bool:
                if index < len(self._kinds):
                    return self._kinds[index] != _OPEN
                return self._exhausted

            wait_until(self._changed, ready, None, self._link, self._interrupted)
        if self.done:
            self._close_view()
        if index < len(self._kinds):
            return True
        self._check_input()
        return False

    def _check_input(self) -> None:
        """Raises what the input has raised."""
        if self._feeder.error is not None:
            error, as_it_came = self._feeder.error
            hand_out(error.with_traceback(as_it_came))

    def _get(self, index: int) -> R:
        value, error = self._look(index)
        if error is not None:
            try:
                hand_out(error)
            finally:
                del error
        return cast(R, value)

    def _value_or_error(self, index: int) -> Any:
        value, error = self._look(index)
        return value if error is None else error

    def _look(self, index: int) -> tuple[Any, BaseException | None]:
        kind, value = self._kinds[index], self._values[index]
        if kind == _CANCELLED:
            return None, TaskCancelled(f"`{self._name}[{index}]` was cancelled.")
        return value.get(lambda: self._note(index)) if isinstance(value, Outcome) else (value, None)

    def _note(self, index: int) -> str:
        with self._lock:
            worker, attempt, _ = self._details.of(index)
        return note_of(f"{self._name}[{index}]", self._kept(index), worker, attempt)

    def _add_summary(self, error: BaseException) -> None:
        """Tell what else has failed, in place of what was told before."""
        places = self._failed_places()
        summary = summary_of(map(self._outcome, places), len(places), self._total)
        if summary or self._summaries:
            annotate(error, summary, instead_of=self._summaries)
            self._summaries.add(summary)

    def _kept(self, index: int) -> Kept | None:
        """What an item is made of, None once it has succeeded."""
        with self._lock:
            if index < len(self._kinds) and self._kinds[index] == VALUE:
                return None
            arguments = self._arguments.get(index)
            calls = [*self._calls.values(), *self._unfinished]
        recipe = self._recipe
        if arguments is None:
            for call in calls:
                if call.base <= index < call.base + call.call.items:
                    return Kept.of(recipe.fn, call, index - call.base)
        return Kept(recipe.fn, arguments, recipe.keywords, recipe.options.retries + 1)

    def _outcome(self, index: int) -> Outcome:
        value = self._values[index]
        return value if isinstance(value, Outcome) else Outcome(self._kinds[index], value, True)

    def _close_view(self) -> None:
        if self._view is not None and threading.current_thread() is threading.main_thread():
            # Now, so that the settled card belongs to the cell that waited.
            self._view.close()

    # Feeding

    def _take(self, items: list[Prepared]) -> None:
        with self._lock:
            start = len(self._kinds)
            self._kinds.extend(bytes(len(items)))
            self._values.extend([None] * len(items))
        for place in [place for place in self._unwanted if start <= place < start + len(items)]:
            items[place - start] = None
            self._unwanted.discard(place)
        if self._total is None:
            self.tally.expect(len(self._kinds))
        self._send_items(start, items)

    def _input_ended(self) -> None:
        with self._changed:
            self._exhausted = True
            self._total = total = len(self._kinds)
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
            if body.packed and not body.kinds and not any(self._kinds[start : start + body.items]):
                self._values[start : start + body.items] = pickle.loads(body.packed)
                self._kinds[start : start + body.items] = bytes([VALUE]) * body.items
                arrived.extend(range(start, start + body.items))
            else:
                kinds = body.kinds or bytes([VALUE]) * body.items
                plain = pickle.loads(body.packed) if body.packed else None
                items: Sequence[Prepared] = ()
                for offset, kind in enumerate(kinds):
                    place = start + offset
                    if kind == RETRYING:
                        retried += 1
                    elif self._kinds[place] == _OPEN:
                        if kind == SKIPPED:
                            self._values[place], kind = skipped(), ERROR
                        elif plain is not None:
                            self._values[place] = plain[offset]
                        else:
                            self._values[place] = Outcome(kind, body.frames[offset], False)
                        self._kinds[place] = kind
                        arrived.append(place)
                        if kind != VALUE:
                            failed += 1
                            items = items or items_of(call)
                            self._arguments[place] = items[place - call.base]
            self._settled += len(arrived)
            was_running = len(self._running.intersection(range(start, start + body.items)))
            self._running.difference_update(range(start, start + body.items))
            if self._finished is not None:
                self._finished.extend(arrived)
            self._feeder.chunker.observe(body.items, body.seconds)
            self._details.add(start, body)
            ended = self._is_over(call)
            if ended:
                self._calls.pop(call.call.n, None)
                if self._kinds.count(_CANCELLED, call.base, call.base + call.call.items):
                    self._unfinished.append(call)
            futures = [(self._futures[i], i) for i in arrived if i in self._futures] if self._futures else []
            self._changed.notify_all()
        self.tally.quiet(start, start + body.items)
        if retried:
            self.tally.retry(retried, was_running=min(was_running, retried))
            was_running = max(0, was_running - retried)
        self.tally.settle(done=len(arrived) - failed, failed=failed, was_running=was_running)
        for future, place in futures:
            future._arrive(self._outcome(place), body)
        self._finish_if_done()
        return ended

    def _is_over(self, call: OpenCall) -> bool:
        """None of its items is open: one that is being retried still is."""
        return not self._kinds.count(_OPEN, call.base, call.base + call.call.items)

    def on_event(self, call: OpenCall, item: int, event: Mapping[str, Any]) -> None:
        if event["kind"] == "started":
            self._started(call, call.base + item, event["worker"], event["attempt"])
        elif event["kind"] in ("output", "display"):
            self._prints.hear(call.base + item, event)
        elif event["kind"] == "lane":
            self._told(call.base + item, event)

    def _started(self, call: OpenCall, place: int, worker: str, attempt: int) -> None:
        with self._lock:
            if self._kinds[place] != _OPEN:
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
            if self._kinds[place] != _OPEN:
                return
            future = self._futures.get(place)
            self.tally.tell(place, news["lane"], Lane.from_news(f"{self._name}[{place}]", news), news["attempt"])
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
        place = self._kinds.find(_OPEN, call.base, call.base + call.call.items)
        return max(0, place - call.base)

    def unanswered(self, call: OpenCall) -> Sequence[int]:
        kinds = self._kinds[call.base : call.base + call.call.items]
        return [item for item, kind in enumerate(kinds) if kind in (_OPEN, _CANCELLED)]

    def _settle_one(self, place: int, outcome: Outcome | None, *, failed: bool) -> None:
        with self._changed:
            if self._kinds[place] != _OPEN:
                return
            self._values[place] = outcome
            self._kinds[place] = outcome.kind if outcome is not None else _CANCELLED
            self._settled += 1
            was_running = place in self._running
            self._running.discard(place)
            if self._finished is not None:
                self._finished.append(place)
            future = self._futures.get(place)
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
            if place < len(self._kinds):
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
