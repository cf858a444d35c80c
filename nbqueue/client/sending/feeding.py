"""Where a batch's items come from: its input, drawn as results come back.

::

    your iterable ─▶ draw and prepare ─▶ a chunk of measured size ─▶ batch: noted and sent
                          ▲                                            │
                          └────── room: a bounded number in flight ◀───┘

Always true here: one thread draws at a time, the caller's first and then the feeder's; no more of the input is drawn
than may be in flight, and of a generator no more than somebody may want; what was drawn does not wait for long while
the input is slow; an error of the input, which is the user's code, is kept for the batch.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, Protocol

from nbqueue.client.sending.chunking import Chunker
from nbqueue.client.sending.listener import Link
from nbqueue.client.sending.recipe import Prepared, Recipe
from nbqueue.errors import NotSendable

__all__ = ["AtHand", "Feeder"]

# Items that were drawn from the input do not wait longer than this for the rest of their chunk.
STALLED_S = 0.05


class Intake(Protocol):
    """What takes the items: those of a batch that are `Arriving`."""

    @property
    def _changed(self) -> threading.Condition:
        """Notified when a call has ended, and when no more items are wanted."""

    @property
    def _calls(self) -> Sized:
        """Those in flight."""

    @property
    def _cancelled(self) -> bool: ...

    @property
    def _exhausted(self) -> bool:
        """No more items will be taken."""

    @property
    def open_items(self) -> int: ...

    def _wanted(self) -> int:
        """How many items may be drawn now."""

    def _more(self) -> bool:
        """Whether more will be sent, as far as is known. Takes no lock."""

    def _look_after(self) -> None:
        """Called from time to time, as long as there may be more input."""

    def _take(self, items: list[Prepared]) -> None:
        """Note and send items; they follow those of the time before."""

    def _input_ended(self) -> None: ...

    def cancel(self) -> None: ...


class AtHand(zip):  # type: ignore[type-arg]
    """Argument tuples from lists and the like: to draw them takes no time, and cannot fail."""


class Feeder:
    """Draws the `items` of a batch, of which there are `total` if that is known.

    It is given its batch where it needs it, and does not hold it: a batch that nobody holds is gone at once.

    Attributes
    ----------
    chunker : Chunker
        Is to be told how long items take.
    error : pair of BaseException and its traceback, or None
        What the input raised, as it came.
    """

    def __init__(self, items: Iterable[tuple[Any, ...]], total: int | None, recipe: Recipe, link: Link) -> None:
        concurrency = recipe.options.concurrency
        # Items of an async function travel alone, each to where there is room for it.
        self.chunker = Chunker(total, recipe.options.chunksize if concurrency is None else 1, concurrency or 1)
        self.error: tuple[BaseException, TracebackType | None] | None = None
        self._source: Iterator[tuple[Any, ...]] = iter(items)
        self._at_hand = isinstance(items, AtHand)
        self._total = total
        self._recipe = recipe
        self._link = link
        self._drawing = threading.Lock()  # guards what was drawn from the input and not sent yet
        self._drawn: list[Prepared] = []
        self._drawn_since = 0.0
        self._given = 0

    def check_first(self, intake: Intake) -> None:
        """Pickle the first item at once: what cannot be sent at all is refused where it is made.

        Raises
        ------
        NotSendable
        Exception
            What the input raised, which is in `error` then.
        """
        try:
            first = next(self._source, None)
        except Exception as error:
            self.error = error, error.__traceback__
            raise
        if first is None:
            intake._input_ended()
            return
        item = self._recipe.prepare(first)
        # A plain one travels without the keywords; with them it may be too large.
        frame = self._recipe.frame(item) if isinstance(item, tuple) else item
        if isinstance(frame, NotSendable):
            raise frame
        self._drawn.append(item)

    def start(self, intake: Intake) -> None:
        """Fill what may be in flight. Later a thread goes on, if more is left."""
        while self._room(intake):
            if not self._give_chunk(intake):
                return
            if self._total is None:
                # A generator may take its time; it must not take the caller's.
                break
        self._link.begin_input(intake)
        self._link.watch(lambda: self._give_stalled(intake))
        threading.Thread(target=self._keep_feeding, args=(intake,), name="nbqueue-feeder", daemon=True).start()

    def _keep_feeding(self, intake: Intake) -> None:
        more = True
        try:
            while more:
                with intake._changed:
                    intake._changed.wait_for(lambda: intake._exhausted or self._room(intake))
                more = not intake._exhausted and self._give_chunk(intake)
        finally:
            # A generator that was not drawn to its end closes what it has open.
            self._source = iter(())
            self._link.end_input(intake)

    def _room(self, intake: Intake) -> bool:
        return len(intake._calls) < self.chunker.in_flight(self._link.planned_workers) and intake._wanted() > 0

    def _give_chunk(self, intake: Intake) -> bool:
        """Take items from the input and hand them over together. False when there are no more."""
        size = max(1, min(self.chunker.next_size(self._link.planned_workers), intake._wanted()))
        drawn = len(self._drawn)  # the first item, at the first time
        try:
            if self._at_hand:
                items = self._recipe.prepare_all(list(itertools.islice(self._source, size - drawn)))
                with self._drawing:
                    self._drawn += items
                drawn += len(items)
            while drawn < size and not intake._cancelled:
                item = self._recipe.prepare(next(self._source))
                with self._drawing:
                    if not self._drawn:
                        self._drawn_since = time.monotonic()
                    self._drawn.append(item)
                drawn += 1
        except StopIteration:
            self._source = iter(())
        except Exception as error:  # noqa: BLE001 - the input is the user's code; its error is the batch's
            self.error = error, error.__traceback__
            self._source = iter(())
        except BaseException:
            intake.cancel()
            raise
        self.chunker.took(drawn)
        self._give_drawn(intake)
        if drawn < size or (self._total is not None and self._given >= self._total and self._at_end()):
            intake._input_ended()
            return False
        return True

    def _give_drawn(self, intake: Intake) -> None:
        with self._drawing:
            items, self._drawn = self._drawn, []
            if items and not intake._cancelled:
                self._given += len(items)
                intake._take(items)

    def _give_stalled(self, intake: Intake) -> bool:
        """Hand over what was drawn while the input keeps the thread waiting. False when the input has ended."""
        if self._drawn and time.monotonic() - self._drawn_since > STALLED_S:
            self._give_drawn(intake)
        intake._look_after()
        return not intake._exhausted

    def _at_end(self) -> bool:
        # A sized input that has given all its items: do not leave the last wake-up to a thread.
        item = next(self._source, None)
        if item is None:
            return True
        self._source = itertools.chain((item,), self._source)
        return False
