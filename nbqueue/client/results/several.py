"""Ways to wait for several futures: ours, and those of any other executor."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, DoneAndNotDoneFutures, _Waiter
from typing import Any, Literal, TypeVar, overload
from weakref import ref

from nbqueue.client.results.arriving import Arriving
from nbqueue.client.results.frames import user_frames_only
from nbqueue.client.results.future import TaskFuture
from nbqueue.client.results.waiting import Interrupted, because, begun, wait_until
from nbqueue.codec.messages import VALUE
from nbqueue.errors import BadCall

__all__ = ["as_completed", "gather", "interrupt_all", "interrupt_sinks", "told", "wait", "wait_for"]

R = TypeVar("R")
AnyFuture = concurrent.futures.Future[R]


class _Watch(_Waiter):
    """Hears of the end of futures, each once, as `concurrent.futures` tells its own waiters."""

    def __init__(self, futures: Iterable[AnyFuture[Any]]) -> None:
        super().__init__()
        self.condition = threading.Condition()
        self.ended: deque[AnyFuture[Any]] = deque()
        self.number = 0  # ended so far
        self.failed = False  # one of them with an exception
        self.open = dict.fromkeys(futures)
        self._left: list[ref[AnyFuture[Any]]] = []  # those that were open when the loop was left
        # Whom to ask for the reason when nothing comes.
        self.link = next((future._link for future in self.open if isinstance(future, TaskFuture)), None)

    def __enter__(self) -> _Watch:
        for future in list(self.open):
            with future._condition:
                if future._state in (CANCELLED_AND_NOTIFIED, FINISHED):
                    self._end(future, _has_failed(future))
                else:
                    future._waiters.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        for future in self.open:
            with future._condition:
                if self in future._waiters:
                    future._waiters.remove(self)
        # Whoever still asks for these must not keep their results.
        self._left = [ref(future) for future in self.open]
        self.open = {}
        self.ended.clear()

    def interrupt(self) -> str:
        """Whoever waited was interrupted, or left a loop for it. Says what has become of what was open, if anything."""
        futures = [*self.open, *(future for each in self._left if (future := each()) is not None)]
        return interrupt_all(futures) if any(not future.done() for future in futures) else ""

    def _end(self, future: AnyFuture[Any], failed: bool = False) -> None:
        with self.condition:
            self.ended.append(future)
            self.number += 1
            self.failed |= failed
            self.condition.notify_all()

    def add_result(self, future: AnyFuture[Any]) -> None:
        self._end(future)

    def add_exception(self, future: AnyFuture[Any]) -> None:
        self._end(future, failed=True)

    def add_cancelled(self, future: AnyFuture[Any]) -> None:
        self._end(future)

    def until(self, ready: Callable[[], bool], timeout: float | None) -> bool:
        """Wait; an interrupt cancels what is open. Raises as `wait_until` does."""
        return wait_until(self.condition, ready, timeout, self.link, lambda: interrupt_all(list(self.open)))


def _has_failed(future: AnyFuture[Any]) -> bool:
    if isinstance(future, TaskFuture) and future._outcome is not None:
        return future._outcome.kind != VALUE
    return future._exception is not None


def interrupt_all(futures: Sequence[AnyFuture[Any]]) -> str:
    """Whoever waited for these was interrupted. Says what has become of them."""
    cancelled = going_on = 0
    # The last first: cancelling what runs makes room, in which what is still queued must not start.
    last_first = futures[::-1]
    for future in sorted(last_first, key=_number, reverse=True):
        if future.done():
            continue
        if isinstance(future, TaskFuture):
            future._interrupted()
        else:
            future.cancel()
        cancelled += future.cancelled()
        going_on += not future.done()
    return told(cancelled, going_on)


def _number(future: AnyFuture[Any]) -> int:
    call = future._call if isinstance(future, TaskFuture) else None
    return call.call.n if call is not None else 0


def interrupt_sinks(sinks: Sequence[TaskFuture[Any] | Arriving]) -> str:
    """Whoever waited for all of these calls and batches was interrupted. Says what has become of them."""
    # The last first: cancelling what runs makes room, in which what is still queued must not start.
    last_first = sinks[::-1]
    said = [sink._interrupted() if isinstance(sink, TaskFuture) else sink.interrupted() for sink in last_first]
    if len(said) == 1:
        return said[0]
    ended = sum(sink.done() if isinstance(sink, TaskFuture) else sink.done for sink in sinks)
    return told(ended, len(sinks) - ended)


def told(cancelled: int, going_on: int) -> str:
    """What an interrupt has done to several calls."""
    parts = []
    if cancelled or not going_on:
        parts.append("1 call was cancelled" if cancelled == 1 else f"{cancelled:,} calls were cancelled")
    if going_on:
        parts.append("1 call goes on" if going_on == 1 else f"{going_on:,} calls go on")
    return ", ".join(parts) + "."


def as_completed(futures: Iterable[AnyFuture[R]], timeout: float | None = None) -> Iterator[AnyFuture[R]]:
    """Futures in the order in which they end. Interrupting the loop cancels those that have not.

    Parameters
    ----------
    futures : iterable of Future
        Of this package, or of any other executor.
    timeout : float, optional
        Seconds for all of them together.

    Raises
    ------
    BadCall
        If one of them is no future.
    TimeoutError
        If they have not all ended within `timeout` seconds.

    Examples
    --------
    >>> from nbqueue import as_completed
    >>> sorted(future.result() for future in as_completed([queue.submit(abs, x) for x in (-3, 2, -1)]))
    [1, 2, 3]
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    with user_frames_only:
        watch = _Watch(_futures_in(futures, "as_completed"))
    # So that a result is gone when the loop has done with it.
    del futures
    with begun(watch.interrupt), watch:
        while watch.open:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            with user_frames_only:
                if not watch.ended and not watch.until(lambda: bool(watch.ended), left):
                    raise TimeoutError(
                        f"{len(watch.open):,} calls have not ended within {timeout:g} s; they go on."
                        f"{because(watch.link)}"
                    )
            future = watch.ended.popleft()
            del watch.open[future]
            yield future
            del future


@overload
def gather(
    futures: Iterable[AnyFuture[R]], *, return_exceptions: Literal[False] = False, timeout: float | None = None
) -> list[R]: ...
@overload
def gather(
    futures: Iterable[AnyFuture[R]], *, return_exceptions: bool, timeout: float | None = None
) -> list[R | BaseException]: ...
def gather(
    futures: Iterable[AnyFuture[R]],
    *,
    return_exceptions: bool = False,
    timeout: float | None = None,
) -> list[Any]:
    """Results of several futures, in their order. Interrupting it cancels those that have not ended.

    Parameters
    ----------
    futures : iterable of Future
    return_exceptions : bool
        Put exceptions into the list instead of raising the first.
    timeout : float, optional
        Seconds to wait for all of them together.

    Raises
    ------
    BadCall
        If one of them is no future.
    TimeoutError
        If they have not all ended in time; they go on.
    Exception
        What the first failed future raised; the others go on.

    Examples
    --------
    >>> from nbqueue import gather
    >>> gather([queue.submit(pow, 2, n) for n in range(4)])
    [1, 2, 4, 8]
    >>> gather([queue.submit(int, "1"), queue.submit(int, "x")], return_exceptions=True)
    [1, ValueError("invalid literal for int() with base 10: 'x'")]
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    results: list[Any] = []
    with user_frames_only:
        waited_for = _futures_in(futures, "gather")
        for future in waited_for:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                _wait_for_one(future, left, waited_for)
                results.append(future.result(left))
            except TimeoutError:
                if not future.done() or not return_exceptions:
                    raise
                results.append(future.exception())
            except Exception as error:
                if not return_exceptions:
                    raise
                results.append(error)
    return results


def _futures_in(given: Any, who: str) -> list[AnyFuture[Any]]:
    """All of them, before any is waited for. Raises BadCall for what is none."""
    if isinstance(given, concurrent.futures.Future):
        raise BadCall(f"{who} takes several futures: {who}([first, second]). One alone gives its result().")
    if not isinstance(given, Iterable):
        raise BadCall(f"{who} takes several futures, not {type(given).__name__}.")
    futures: list[AnyFuture[Any]] = []
    for place, each in enumerate(given):
        if not isinstance(each, concurrent.futures.Future):
            raise BadCall(
                f"{who} takes futures, and number {place} of what it was given is {each!r:.80} ({type(each).__name__})."
                " A call of a task gives a future, `batch.futures` those of a batch."
            )
        futures.append(each)
    return futures


def wait_for(future: AnyFuture[Any], interrupted: Interrupted) -> None:
    """Wait for a future of anybody's. Raises as `wait_until` does."""
    with _Watch([future]) as watch:
        wait_until(watch.condition, lambda: bool(watch.ended), None, None, interrupted)


def _wait_for_one(future: AnyFuture[Any], timeout: float | None, all_of_them: Sequence[AnyFuture[Any]]) -> None:
    if isinstance(future, TaskFuture):
        future._wait(timeout, lambda: interrupt_all(all_of_them))
    elif not future.done():
        with _Watch([future]) as watch:
            wait_until(watch.condition, lambda: bool(watch.ended), timeout, None, lambda: interrupt_all(all_of_them))


def wait(
    futures: Iterable[AnyFuture[R]],
    timeout: float | None = None,
    return_when: str = concurrent.futures.ALL_COMPLETED,
) -> DoneAndNotDoneFutures[R]:
    """As ``concurrent.futures.wait``: wait for some or all. Interrupting it cancels what has not ended.

    Parameters
    ----------
    futures : iterable of Future
    timeout : float, optional
        Seconds to wait; then what has not ended is in `not_done`.
    return_when : str
        ``ALL_COMPLETED``, ``FIRST_COMPLETED`` or ``FIRST_EXCEPTION`` of
        `concurrent.futures`.

    Returns
    -------
    (done, not_done)
        Two sets of futures.

    Examples
    --------
    >>> from nbqueue import wait
    >>> done, not_done = wait([queue.submit(abs, x) for x in (-3, 2)])
    >>> sorted(future.result() for future in done), not_done
    ([2, 3], set())
    """
    with user_frames_only:
        watch = _Watch(_futures_in(futures, "wait"))
    with user_frames_only, begun(watch.interrupt), watch:
        everything = watch.open
        wanted = 1 if return_when == concurrent.futures.FIRST_COMPLETED and everything else len(everything)
        on_failure = return_when == concurrent.futures.FIRST_EXCEPTION
        watch.until(lambda: watch.number >= wanted or (on_failure and watch.failed), timeout)
        done = set(watch.ended)
    return DoneAndNotDoneFutures(done, set(everything) - done)
