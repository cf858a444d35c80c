"""Where a batch's items come from: its input, drawn as results come back.

::

    your iterable ─▶ draw and prepare ─▶ a chunk of measured size ─▶ batch: noted and sent
                          ▲                                            │
                          └────── room: a bounded number in flight ◀───┘

Always true here: one thread draws at a time, the caller's first and then the feeder's, or whoever has the helm where
plain values of a list or the like are at hand; no more of the input is drawn than may be in flight, and of a generator
no more than somebody may want; what was drawn does not wait for long while the input is slow; whatever the input, which
is the user's code, raises is kept for the batch, as an `Exception`; what was drawn before ends.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from types import TracebackType
from typing import Any, Protocol

from nbqueue.client.sending.chunking import Chunker
from nbqueue.client.sending.listener import Link
from nbqueue.client.sending.recipe import Prepared, Recipe, are_short
from nbqueue.codec.columns import Columns
from nbqueue.codec.functions import PLAIN
from nbqueue.codec.tracebacks import dump_exception, load_exception
from nbqueue.errors import NbqueueError, NotSendable

__all__ = ["AtHand", "Feeder", "OneByOne"]

# Items that were drawn from the input do not wait longer than this for the rest of their chunk.
STALLED_S = 0.05
# Who has the helm makes chunks for so long before he looks for replies, and sends what he has made.
FEED_S = 0.0002


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

    def _take(self, items: Sequence[Prepared]) -> None:
        """Note and send items; they follow those of the time before."""

    def _input_ended(self) -> None: ...

    def on_lost(self, error: NbqueueError) -> None: ...

    def cancel(self) -> None: ...


class AtHand:
    """Argument tuples from lists and the like: to draw them takes no time, and runs nobody's code."""

    def __init__(self, *iterables: Iterable[Any]) -> None:
        self._sources: list[_Source | _Span] = [
            _Span(each) if isinstance(each, list | tuple | range) else _Source(each) for each in iterables
        ]
        self._back: Columns | None = None

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        back, self._back = self._back or (), None
        return itertools.chain(back, zip(*self._sources, strict=False))

    def draw(self, number: int) -> Columns:
        """So many items, or what is left."""
        back, self._back = self._back, None
        if back is not None:
            number -= len(back)
        columns: list[Sequence[Any]] = [source.take(number) for source in self._sources]
        shortest = min(map(len, columns))
        if any(len(column) > shortest for column in columns):
            columns = [column[:shortest] for column in columns]
        if back is not None:
            columns = [[*first, *column] for first, column in zip(back.columns, columns, strict=True)]
        return Columns(tuple(columns))

    def drop(self) -> None:
        """Hold nothing more of it."""
        self._sources, self._back = [_Span(())], None

    def first(self) -> tuple[Any, ...] | None:
        """The next item, which stays; None at the end."""
        if self._back is None:
            self._back = self.draw(1)
        return self._back[0] if self._back else None


class _Source:
    """A column of any kind."""

    def __init__(self, iterable: Iterable[Any]) -> None:
        self._iterator = iter(iterable)

    def __iter__(self) -> Iterator[Any]:
        return self._iterator

    def take(self, number: int) -> Sequence[Any]:
        return list(itertools.islice(self._iterator, number))


class _Span:
    """A column that can be cut, as it is when that is done: nobody makes a list of a range."""

    def __init__(self, values: Sequence[Any]) -> None:
        self._values = values
        self._taken = 0

    def __iter__(self) -> Iterator[Any]:
        while self._taken < len(self._values):
            self._taken += 1
            yield self._values[self._taken - 1]

    def take(self, number: int) -> Sequence[Any]:
        taken = self._values[self._taken : self._taken + number]
        self._taken += len(taken)
        return taken


class OneByOne:
    """Argument tuples of one value each, from an iterable that must be drawn in its turn: a generator, say.

    A tuple around each costs more than to draw it, and plain values need none.
    """

    def __init__(self, iterable: Iterable[Any]) -> None:
        self.values = iter(iterable)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return zip(self.values, strict=False)


class Feeder:
    """Draws the `items` of a batch, of which there are `total` if that is known.

    It is given its batch where it needs it, and does not hold it: a batch that nobody holds is gone at once.

    Attributes
    ----------
    chunker : Chunker
    error : pair of BaseException and its traceback, or None
        What the input raised, as it came. SystemExit and its like are what they are when a task raises them.
    """

    def __init__(self, items: Iterable[tuple[Any, ...]], total: int | None, recipe: Recipe, link: Link) -> None:
        concurrency = recipe.options.concurrency
        # Items of an async function travel alone, each to where there is room for it.
        fixed = recipe.options.chunksize if concurrency is None else 1
        self.chunker = Chunker(total, fixed, concurrency or 1, link.item_paces.get(recipe.function))
        self.error: tuple[BaseException, TracebackType | None] | None = None
        # As long as all that came from there was plain; else items are drawn one by one from the source.
        self._at_hand = items if isinstance(items, AtHand) else None
        # The same where they must be drawn one by one.
        self._values = items.values if isinstance(items, OneByOne) else None
        self._source: Iterator[tuple[Any, ...]] = iter(() if self._at_hand is not None else items)
        self._total = total
        self._recipe = recipe
        self._link = link
        self._drawing = threading.Lock()  # guards the beginning of what was drawn one by one and not sent yet
        self._plain: list[Any] = []  # of `_values`, before all that is in `_drawn`
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
        first = None
        try:
            first = next(self._source, None) if self._at_hand is None else self._at_hand.first()
        except BaseException as error:  # noqa: BLE001 - the input is the user's code
            self._keep_error(error)
        if self.error is not None:
            raise self.error[0]
        if first is None:
            intake._input_ended()
            return
        item = self._recipe.prepare(first)
        # A plain one travels without the keywords; with them it may be too large.
        frame = self._recipe.frame(item) if isinstance(item, tuple) else item
        if isinstance(frame, NotSendable):
            raise frame
        if self._at_hand is not None and isinstance(item, tuple):
            # It is drawn with those behind it.
            return
        if self._at_hand is not None:
            self._one_by_one(self._at_hand.draw(1)[1:])
        if self._values is not None and isinstance(item, tuple):
            self._plain += item
        else:
            self._values = None
            self._drawn.append(item)

    def start(self, intake: Intake) -> None:
        """Fill what may be in flight. Later a thread goes on, or the helm, if more is left."""
        while self._room(intake):
            if not self._give_chunk(intake):
                return
            if self._total is None:
                # A generator may take its time; it must not take the caller's.
                break
        self._link.begin_input(intake)
        if self._at_hand is not None:
            self._link.watch(lambda: self._feed(intake))
        else:
            self._start_thread(intake)

    def observe(self, items: int, seconds: float) -> None:
        """`items` took `seconds` of a worker's time together."""
        self.chunker.observe(items, seconds)
        self._link.item_paces.note(self._recipe.function, self.chunker.high_s)

    def _start_thread(self, intake: Intake) -> None:
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
            self._drop_input()
            self._link.end_input(intake)

    def _feed(self, intake: Intake) -> bool:
        """A part of the helm's turn: a chunk of what is at hand is made sooner than a thread is woken for it, and has
        the interpreter. False when nothing is left to be made here.

        What is given here is sent, and the answer to that is another turn: none is missed.
        """
        until = time.monotonic() + FEED_S
        while not intake._exhausted and self._room(intake):
            size = self._next_size(intake)
            columns = self._draw_columns(intake, size)
            if columns is None:
                # They are pickled with the user's code, for which nobody else must wait.
                self._start_thread(intake)
                return False
            if not self._give_columns(intake, columns, size) or time.monotonic() > until:
                break
        if intake._exhausted:
            self._link.end_input(intake)
        return not intake._exhausted

    def _keep_error(self, error: BaseException) -> None:
        """Keep what the input has raised. Raises an interrupt, which is meant for whoever draws it here."""
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise error
        if not isinstance(error, Exception):
            error = load_exception(dump_exception(error, "the input of the map"))
        self.error = error, error.__traceback__
        self._drop_input()

    def _drop_input(self) -> None:
        """A generator that was not drawn to its end closes what it has open, and nobody keeps a list for our sake."""
        self._source, self._values = iter(()), None
        if self._at_hand is not None:
            self._at_hand.drop()

    def _room(self, intake: Intake) -> bool:
        return len(intake._calls) < self.chunker.in_flight(self._link.planned_workers) and intake._wanted() > 0

    def _next_size(self, intake: Intake) -> int:
        return max(1, min(self.chunker.next_size(self._link.planned_workers), intake._wanted()))

    def _give_chunk(self, intake: Intake) -> bool:
        """Take items from the input and hand them over together. False when there are no more."""
        size = self._next_size(intake)
        columns = self._draw_columns(intake, size)
        if columns is not None:
            return self._give_columns(intake, columns, size)
        before = self._given  # the first item was drawn before, at the first time
        try:
            self._draw(intake, before + size)
        except BaseException as error:  # noqa: BLE001 - the input is the user's code; its error is the batch's
            self._keep_error(error)
        drawn = self._all_drawn() - before
        self.chunker.took(drawn)
        self._give_drawn(intake)
        return self._goes_on(intake, drawn == size)

    def _all_drawn(self) -> int:
        with self._drawing:
            return self._given + len(self._plain) + len(self._drawn)

    def _draw(self, intake: Intake, total: int) -> None:
        """Go on until so many items have been drawn."""
        if self._values is not None:
            self._draw_plain(intake, self._values, total - self._all_drawn())
            if self._values is not None:
                return
        # A lock for each item would take longer than all else here; who takes some away takes those that he has seen.
        drawn, prepare = self._drawn, self._recipe.prepare
        for args in itertools.islice(self._source, total - self._all_drawn()):
            item: Prepared = args
            for value in args:
                if type(value) not in PLAIN:
                    item = prepare(args)
                    break
            if not drawn:
                self._drawn_since = time.monotonic()
            drawn.append(item)
            if intake._cancelled:
                break

    def _draw_plain(self, intake: Intake, values: Iterator[Any], number: int) -> None:
        """Draw values as long as they are plain. From the first that is not, all travel in tuples."""
        plain, kind = self._plain, None
        for value in itertools.islice(values, number):
            if type(value) is not kind:
                kind = type(value)
                if kind not in PLAIN:
                    self._drawn_since = time.monotonic()
                    self._drawn.append(self._recipe.prepare((value,)))
                    self._values = None
                    return
            if not plain:
                self._drawn_since = time.monotonic()
            plain.append(value)
            if intake._cancelled:
                return

    def _draw_columns(self, intake: Intake, size: int) -> Columns | None:
        """What is at hand, if all of it is plain, as all before was. If not, it is drawn one by one from now on."""
        at_hand = self._at_hand
        if at_hand is None:
            return None
        try:
            columns = at_hand.draw(size)
        except Exception as error:  # noqa: BLE001 - a dict that has changed meanwhile
            self.error = error, error.__traceback__
            self._at_hand = None
            return None
        except BaseException:
            intake.cancel()
            raise
        if are_short(columns):
            return columns
        self._one_by_one(columns)
        return None

    def _one_by_one(self, columns: Columns) -> None:
        """Draw these first, and then what is at hand."""
        assert self._at_hand is not None
        self._source, self._at_hand = itertools.chain(columns, self._at_hand), None

    def _give_columns(self, intake: Intake, columns: Columns, size: int) -> bool:
        """Hand them over. False if there are no more."""
        self.chunker.took(len(columns))
        if columns and not intake._cancelled:
            self._given += len(columns)
            intake._take(columns)
        return self._goes_on(intake, len(columns) == size)

    def _give_drawn(self, intake: Intake) -> None:
        with self._drawing:
            # Some may come between the two looks: those in `_drawn` are behind all that are in `_plain`.
            items = self._drawn[:]
            plain = self._plain[:]
            del self._plain[: len(plain)], self._drawn[: len(items)]
            for drawn in (Columns((plain,)), items):
                if drawn and not intake._cancelled:
                    self._given += len(drawn)
                    intake._take(self._recipe.prepare_drawn(drawn))

    def _give_stalled(self, intake: Intake) -> bool:
        """Hand over what was drawn while the input keeps the thread waiting. False when the input has ended."""
        if (self._plain or self._drawn) and time.monotonic() - self._drawn_since > STALLED_S:
            self._give_drawn(intake)
        intake._look_after()
        return not intake._exhausted

    def _goes_on(self, intake: Intake, more: bool) -> bool:
        """Whether there may be more input, which there is not after less than was asked for. Says so to the batch."""
        if more and (self._total is None or self._given < self._total or not self._at_end()):
            return True
        self._drop_input()
        intake._input_ended()
        return False

    def _at_end(self) -> bool:
        # A sized input that has given all its items: do not leave the last wake-up to a thread.
        if self._at_hand is not None:
            return self._at_hand.first() is None
        self._values = item = None
        try:
            item = next(self._source, None)
        except BaseException as error:  # noqa: BLE001 - the input is the user's code
            self._keep_error(error)
        if item is None:
            return True
        self._source = itertools.chain((item,), self._source)
        return False
