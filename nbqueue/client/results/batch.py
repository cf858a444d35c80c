"""`Batch`: the results of a map, still arriving. What is behind it is `arriving`, which it alone leads to."""

from __future__ import annotations

import asyncio
import itertools
import operator
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Generic, Literal, TypeVar, cast, overload
from weakref import finalize

from nbqueue.client.results.account.looking_back import LookingBack
from nbqueue.client.results.arriving import Arriving
from nbqueue.client.results.awaiting import Completed, Turns, until
from nbqueue.client.results.failures import Failures, not_an_end
from nbqueue.client.results.frames import hand_out, user_frames_only
from nbqueue.client.results.future import TaskFuture, call_soon
from nbqueue.client.results.items import Futures, check_index
from nbqueue.client.results.waiting import because, tick
from nbqueue.client.sending.listener import Link
from nbqueue.client.sending.recipe import Recipe
from nbqueue.codec.inputs import Unfit
from nbqueue.progress.page import Page
from nbqueue.progress.tally import Snapshot, Tally
from nbqueue.progress.views import Handle, open_view, show_again

__all__ = ["Batch"]

R = TypeVar("R")


class Batch(LookingBack, Generic[R]):
    """Results of a map, in order, as they arrive.

    Iterating and indexing wait for the item in question; ``async for`` lets others
    run meanwhile. ``len`` is the number of items (for a generator, once it has
    been consumed). An item that failed raises its exception where it is asked for,
    and only there.

    A generator is drawn as results come back, so it need not fit into memory, nor
    end. Once a loop reads the results, at most 100,000 of them, or about 100 MB
    (of larger ones, two for each worker), lie ahead of it, and as much is kept
    behind it; those before can no longer be asked for. A loop that is left draws
    no more, until there is another, or somebody waits for all results or asks for
    an item. When nobody holds the batch any more, one that was being read is
    cancelled, and one that never was ends after 100,000 items. Nothing of this
    concerns an input whose length is known: it runs to its end, and all is kept.

    Attributes
    ----------
    futures : sequence of TaskFuture
        One for each item, made when asked for.
    progress : Snapshot
        Counts, rate and remaining time now.
    seed : int or None
        Of its random numbers, where its task has the option ``rng``.

    Examples
    --------
    >>> batch = queue.map(pow, range(5), [2] * 5)
    >>> batch.results()
    [0, 1, 4, 9, 16]
    >>> batch[3], batch[-2:], len(batch)
    (9, [9, 16], 5)
    >>> for value in batch:
    ...     print(value, end=" ")
    0 1 4 9 16
    """

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
        self._items = arriving = Arriving(link, recipe, items, total)
        arriving.check_first()
        try:
            self._view: Handle | None = open_view(self.tally, arriving.cancel) if show else None
            arriving.start(page())
            finalize(self, arriving.drop).atexit = False
        except BaseException:
            # An interrupt, say. A part may be on its way, and nobody will ever have this.
            arriving.cancel()
            link.abandon(arriving)
            raise

    def __reduce_ex__(self, _protocol: Any) -> Any:
        raise Unfit("a batch is many results. Use its results(), or single ones of its futures.")

    def __repr__(self) -> str:
        s = self.progress
        total = "?" if s.total is None else s.total
        more = f", {s.failed} failed" if s.failed else ""
        return f"<Batch {self.name} {s.done}/{total} done{more}>"

    def _ipython_display_(self) -> None:
        """The card, in this cell too. Raises NotImplementedError where only the repr can be shown."""
        self._view = show_again(self._view, self.tally, self._items.cancel)

    @property
    def name(self) -> str:
        """What its card is called.

        Examples
        --------
        >>> queue.map(abs, [-1], name="distances").name
        'distances'
        """
        return self._items.name

    @property
    def tally(self) -> Tally:
        """What counts for the card; `progress` is a look at it."""
        return self._items.tally

    @property
    def seed(self) -> int | None:
        """What its random numbers are made from, where its task has the option ``rng``; else None.

        Examples
        --------
        >>> def draw(n, rng):
        ...     return [rng.random() for _ in range(n)]
        >>> batch = queue.map(draw, [2, 2], rng="rng")
        >>> again = queue.map(draw, [2, 2], rng="rng", seed=batch.seed)
        >>> batch.results() == again.results()
        True
        """
        return self._items.seed

    # Asking

    def __len__(self) -> int:
        """Raises TypeError while the length of a generator is not known yet."""
        with user_frames_only:
            total = self._items.total
            if total is None:
                raise TypeError("The length of this batch is not known until its input has been consumed.")
            return total

    def __bool__(self) -> bool:
        """False only for a batch that is known to be empty."""
        return self._items.total != 0

    def __iter__(self) -> Iterator[R]:
        items = self._items
        index = 0
        with items.reading():
            while True:
                # As most are when they are asked for.
                run = items.next_run(index)
                index += len(run)
                run.reverse()
                while run:
                    yield run.pop()
                with user_frames_only:
                    if not self._wait_for(index):
                        return
                    value = items.get_in_loop(index)
                yield value
                del value
                index += 1

    def _given_away(self, deadline: float | None) -> Iterator[R]:
        """The values in order, each forgotten when it is given. The loop's end, or leaving it, cancels what is left.

        Raises TimeoutError for an item that is not there at the `deadline`, which is of `time.monotonic`.
        """
        items = self._items
        index = 0
        try:
            with items.reading():
                while True:
                    with user_frames_only:
                        left = None if deadline is None else max(0.0, deadline - time.monotonic())
                        if not self._wait_for(index, left):
                            return
                        run = items.give(index)
                    index += len(run)
                    run.reverse()
                    while run:
                        yield run.pop()
        finally:
            if not self.done:
                self.cancel()

    async def __aiter__(self) -> AsyncIterator[R]:
        items, turns = self._items, Turns(self._items)
        index = 0
        with items.reading():
            while True:
                run = items.next_run(index)
                index += len(run)
                run.reverse()
                while run:
                    yield run.pop()
                    if turns.due:
                        with user_frames_only:
                            await turns.give()
                with user_frames_only:
                    ready = items.asked_for(index)
                    if ready is not None:
                        await until(items, ready, None, self._link)
                    if self.done:
                        self._close_view()
                    if not items.has(index):
                        return
                    value = items.get_in_loop(index)
                yield value
                del value
                index += 1

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> list[R]: ...
    def __getitem__(self, index: int | slice) -> R | list[R]:
        with user_frames_only:
            check_index(index, "A batch")
            if isinstance(index, slice):
                values = []
                # A comprehension would be a frame of ours, in Python 3.11.
                for i in range(*index.indices(len(self))):
                    values.append(self[i])
                return values
            index = operator.index(index)
            if index < 0:
                index += len(self)
            if index < 0 or not self._wait_for(index):
                raise IndexError(f"This batch has no item {index}.")
            return cast(R, self._items.get(index))

    @overload
    def results(self, *, return_exceptions: Literal[False] = False, timeout: float | None = None) -> list[R]: ...
    @overload
    def results(self, *, return_exceptions: bool, timeout: float | None = None) -> list[R | BaseException]: ...
    def results(self, *, return_exceptions: bool = False, timeout: float | None = None) -> list[Any]:
        """All values, in order; waits for them. Interrupting the wait cancels the batch, see `on_interrupt`.

        Parameters
        ----------
        return_exceptions : bool
            Put exceptions into the list instead of raising the first. An error of the
            input itself is raised all the same: the list would be too short.
        timeout : float, optional
            Seconds to wait for all of them.

        Raises
        ------
        TimeoutError
            If they have not all arrived in time; the batch goes on.
        Exception
            What the first failed item, or the input itself, raised. The others'
            results stay: ask again with ``return_exceptions=True``.

        Examples
        --------
        >>> batch = queue.map(int, ["1", "x", "3"])
        >>> batch.results(return_exceptions=True)
        [1, ValueError("invalid literal for int() with base 10: 'x'"), 3]
        """
        with user_frames_only:
            if not self._wait(timeout):
                raise TimeoutError(f"{self!r} has not ended within {timeout:g} s; it goes on.{because(self._link)}")
            try:
                values = self._items.all_values(or_errors=return_exceptions)
            except Exception as error:
                self._items.add_summary(error)
                raise
            self._items.check_input()
        return values

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until every item has ended. False if they have not within `timeout` seconds.

        Raises
        ------
        Exception
            What the input itself raised: then there are fewer items than there should
            be. Those that there are have ended, and what items raise is no matter
            here.

        Examples
        --------
        >>> batch = queue.map(abs, range(-3, 0))
        >>> batch.wait(timeout=60)
        True
        """
        with user_frames_only:
            ended = self._wait(timeout)
            if ended:
                self._items.check_input()
        return ended

    def _wait(self, timeout: float | None) -> bool:
        ended = self._items.wait(timeout)
        if ended:
            self._close_view()
        return ended

    @property
    def done(self) -> bool:
        """True when every item has ended, however.

        Examples
        --------
        >>> batch = queue.map(abs, range(-3, 0))
        >>> batch.wait(), batch.done
        (True, True)
        """
        return self._items.done

    @property
    def progress(self) -> Snapshot:
        """Counts, rate and remaining time as they are now.

        Returns
        -------
        Snapshot
            ``.total``, ``.done``, ``.failed``, ``.cancelled``, ``.running``,
            ``.retried`` in items; ``.elapsed_s`` and ``.eta_s`` in seconds, ``.rate``
            in items a second; ``.fraction`` from 0 to 1. What is not known is None.

        Examples
        --------
        >>> batch = queue.map(abs, range(-3, 0))
        >>> batch.wait()
        True
        >>> batch.progress.done, batch.progress.total, batch.progress.fraction
        (3, 3, 1.0)
        """
        return self.tally.snapshot()

    @property
    def futures(self) -> Sequence[TaskFuture[R]]:
        """One for each item, made when asked for.

        Examples
        --------
        >>> batch = queue.map(print, ["one", "two"])
        >>> batch.wait()
        True
        >>> [future.stdout for future in batch.futures]
        ['one\\n', 'two\\n']
        """
        return Futures(self)

    def as_completed(self, timeout: float | None = None) -> Completed[R]:
        """Futures of the items in the order in which they end, for ``for`` and ``async for``; also of endless inputs.

        Raises
        ------
        TimeoutError
            If no further item ends within `timeout` seconds of being asked for.

        Examples
        --------
        >>> batch = queue.map(abs, [-3, 2])
        >>> sorted((future.name, future.result()) for future in batch.as_completed())
        [('abs[0]', 3), ('abs[1]', 2)]
        """
        return Completed(self._completed(timeout), self._completed_later(timeout))

    def _completed(self, timeout: float | None) -> Generator[TaskFuture[R], None, None]:
        items = self._items
        items.keep_order()
        with items.reading():
            for seen in itertools.count():
                with user_frames_only:
                    more = items.wait_for_ended(seen, timeout)
                    if more is False:
                        raise self._too_late(timeout)
                    if more is None:
                        self._close_view()
                        items.check_input()
                        return
                    future = items.ended(seen)
                yield future
                del future

    async def _completed_later(self, timeout: float | None) -> AsyncGenerator[TaskFuture[R], None]:
        items, turns = self._items, Turns(self._items)
        items.keep_order()
        with items.reading():
            for seen in itertools.count():
                with user_frames_only:
                    if turns.due:
                        await turns.give()
                    if not items.has_ended(seen) and not await until(
                        items, items.more_than(seen), timeout, self._link
                    ):
                        raise self._too_late(timeout)
                    if not items.has_ended(seen):
                        self._close_view()
                        items.check_input()
                        return
                    future = items.ended(seen)
                yield future
                del future

    def _too_late(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(f"No item of {self!r} has ended within {timeout:g} s.{because(self._link)}")

    @property
    def failed(self) -> Failures[R]:
        """Futures of the items that ended with an exception so far, in order.

        A list, which a notebook shows as a table of what failed, by type and line.

        Examples
        --------
        >>> batch = queue.map(int, ["1", "x", "3"])
        >>> batch.wait()
        True
        >>> [future.name for future in batch.failed]
        ['int[1]']
        """
        return Failures(map(self.future, self._items.failed_places()), self._items.total)

    def future(self, index: int) -> TaskFuture[R]:
        """The future of one item; the same one as long as somebody holds it.

        Raises
        ------
        BadCall
            If it is no number.
        IndexError
            If there is no such item.

        Examples
        --------
        >>> batch = queue.map(abs, [-3, 2])
        >>> batch.future(0).result()
        3
        """
        with user_frames_only:
            check_index(index, "A batch")
            return self._items.future(operator.index(index))

    def cancel(self) -> None:
        """End every item that has not ended, queued and running alike. What has arrived stays.

        Examples
        --------
        >>> import time
        >>> batch = queue.map(time.sleep, [60] * 100)
        >>> batch.cancel()
        >>> batch.progress.cancelled
        100
        """
        self._items.cancel()

    def retry_failed(self) -> Batch[R]:
        """Run the failed items again, with the function as it is now. Their futures are made anew.

        Returns
        -------
        Batch
            This batch.

        Examples
        --------
        >>> @queue.task
        ... def check(x):
        ...     return x // limit
        >>> limit = 0
        >>> batch = check.map([3, 5])
        >>> len(batch.failed) if batch.wait() else 0
        2
        >>> limit = 2
        >>> batch.retry_failed().results()
        [1, 2]
        """
        places, items = self._items.reopen_failed()
        if places and self._view is not None:
            self._view = open_view(self.tally, self._items.cancel)
        self._items.send_again(places, items)
        return self

    def __await__(self) -> Generator[Any, None, list[R]]:
        return self._awaited().__await__()

    async def _awaited(self) -> list[R]:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        self._items.when_done(lambda: call_soon(loop, ended.set))
        with user_frames_only:
            self._items.want(1)
            try:
                await tick(ended, self._items.interrupted, self._link)
            finally:
                self._items.want(-1)
            try:
                with user_frames_only:
                    return self.results()
            except StopIteration as error:
                # Out of a coroutine none may come.
                hand_out(not_an_end(self.name, error))

    def _wait_for(self, index: int, timeout: float | None = None) -> bool:
        """True when the item has ended, False when there is none."""
        there = self._items.wait_for(index, timeout)
        if self.done:
            self._close_view()
        return there

    def _close_view(self) -> None:
        if self._view is not None and threading.current_thread() is threading.main_thread():
            # Now, so that the settled card belongs to the cell that waited.
            self._view.close()
