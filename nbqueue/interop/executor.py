"""A queue as a `concurrent.futures.Executor`, for whatever takes one. Made by `TaskQueue.executor`.

::

    queue.executor() ─▶ submit ─▶ TaskFuture ┐
                        map ─▶ Batch ────────┴─▶ _Pending: what is open, for shutdown and the end of Python

Always true here: an executor is as light as a queue's handle. It starts, holds and stops no worker; what it has sent
runs to its end also when nobody holds the executor any more; no open call leads back to it.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, overload
from weakref import WeakSet

from nbqueue.client.core import Core
from nbqueue.client.results.arriving import Arriving
from nbqueue.client.results.batch import Batch
from nbqueue.client.results.frames import hand_out, user_frames_only
from nbqueue.client.results.future import TaskFuture
from nbqueue.client.results.several import interrupt_sinks
from nbqueue.client.results.waiting import wait_until
from nbqueue.client.sending.options import Options
from nbqueue.client.task import Submitter, Task
from nbqueue.errors import BadOption, NbqueueError

__all__ = ["QueueExecutor"]

# The longest wait for the server to hear of what was cancelled.
CANCEL_TIMEOUT_S = 2.0
# The longest wait for what was just sent to reach the server, and for workers that have nothing to fetch some of it.
FETCH_TIMEOUT_S = 1.0

P = ParamSpec("P")
R = TypeVar("R")


class _Pending:
    """What one executor has sent and what has not ended. The open calls lead here, so it lives as long as they do."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.closed = False
        self.changed = threading.Condition()
        self._open: dict[TaskFuture[Any] | Arriving, None] = {}
        self._sending: set[int] = set()  # threads in which calls are on their way into it

    def __enter__(self) -> None:
        """Something is being sent: whoever shuts down meanwhile waits for it. Raises RuntimeError after that."""
        self._sending.add(threading.get_ident())
        if self.closed or _ending:
            self.__exit__()
            what = "interpreter shutdown" if _ending else "shutdown. Make another executor with queue.executor()"
            # In the words of the standard library's executors, which others may look for.
            hand_out(RuntimeError(f"cannot schedule new futures after {what}."))

    def __exit__(self, *_: object) -> None:
        self._sending.discard(threading.get_ident())
        self._tell()

    def add_future(self, future: TaskFuture[R]) -> TaskFuture[R]:
        self._open[future] = None
        future.add_done_callback(self._ended)
        return future

    def add_batch(self, batch: Batch[R]) -> Batch[R]:
        items = batch._items
        self._open[items] = None
        items.when_done(lambda: self._ended(items))
        return batch

    def _ended(self, what: Any) -> None:
        del self._open[what]
        self._tell()

    def _tell(self) -> None:
        if self.closed or _ending:
            with self.changed:
                self.changed.notify_all()

    @property
    def over(self) -> bool:
        return not (self._open or self._sending)

    def wait(self) -> None:
        """Wait until nothing is open."""
        wait_until(self.changed, lambda: self.over, None, self.core.link, self.interrupt)

    def wait_at_exit(self) -> None:
        """The same at the end of Python, for what somebody is there to do: nobody can start workers any more."""
        link = self.core.link
        if self.core.pid == os.getpid():
            wait_until(self.changed, lambda: self.over or link.unserved, None, link, self.interrupt)

    def interrupt(self) -> str:
        """Whoever waited for all was interrupted. Says what has become of it."""
        return interrupt_sinks(list(self._open))

    def cancel_queued(self) -> None:
        """End what no worker has fetched: whether it has begun that, only the worker knows."""
        link, sinks = self.core.link, list(self._open)
        try:
            fetched = self._fetched(sinks)
        except NbqueueError:
            # No answer, so no worker has news of it either: what is known here decides.
            fetched = set()
        # The last first: what is still queued must not start meanwhile.
        for sink in reversed(sinks):
            if isinstance(sink, Arriving):
                sink.cancel(spared=fetched)
            elif not sink.running() and fetched.isdisjoint(_numbers(sink)):
                sink.cancel()
        link.settle_cancels(CANCEL_TIMEOUT_S)

    def _fetched(self, sinks: Sequence[TaskFuture[Any] | Arriving]) -> set[int]:
        """The calls that workers have or had. Raises NbqueueError where the server does not answer."""
        link = self.core.link
        with contextlib.suppress(NbqueueError):  # a done-callback must not wait
            link.flush(FETCH_TIMEOUT_S)
        numbers = [n for sink in sinks for n in _numbers(sink)]
        if not numbers:
            return set()
        return link.fetched(numbers, 0.0 if link.unserved else FETCH_TIMEOUT_S)


def _numbers(sink: TaskFuture[Any] | Arriving) -> list[int]:
    """Of its calls that have not ended, as far as is known here."""
    if isinstance(sink, Arriving):
        return list(sink._calls)
    return [sink._call.call.n] if sink._call is not None else []


class QueueExecutor(Executor):
    """The queue's workers behind the interface of `concurrent.futures`. Made by ``queue.executor()``.

    Its futures are `TaskFuture`: cancelling one ends also a call that is running,
    and what tasks print appears as it always does. Once the executor is shut down,
    calls are refused; the queue itself goes on.

    Examples
    --------
    >>> with queue.executor(retries=2) as executor:
    ...     future = executor.submit(pow, 2, 10)
    ...     squares = list(executor.map(pow, range(4), [2] * 4))
    >>> future.result(), squares
    (1024, [0, 1, 4, 9])
    """

    def __init__(
        self,
        submitter: Submitter,
        core: Core,
        given: dict[str, Any],
        options_of: Callable[[Callable[..., Any], dict[str, Any]], Options],
    ) -> None:
        self._submitter = submitter
        self._given = given
        self._options_of = options_of
        self._pending = _Pending(core)
        _all.add(self._pending)

    def __repr__(self) -> str:
        pending = self._pending
        state = "shut down, " if pending.closed else ""
        return f"<QueueExecutor of {pending.core.queue!r}, {state}{len(pending._open)} open>"

    @property
    def _max_workers(self) -> int:
        """How many workers there are, where libraries look for it."""
        core = self._pending.core
        return core.link.workers or core.workers or (_cores() if core.private else core.link.planned_workers)

    @overload
    def submit(self, fn: Task[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[R]: ...
    @overload
    def submit(
        self, fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskFuture[R]: ...
    @overload
    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[R]: ...
    @user_frames_only
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture[Any]:
        """Call a function in a worker.

        Raises
        ------
        RuntimeError
            After `shutdown`.
        NotSendable
            If the function or an argument cannot be pickled; the message names it.

        Examples
        --------
        >>> with queue.executor() as executor:
        ...     future = executor.submit(pow, 2, 10)
        >>> future.result()
        1024
        """
        with self._pending:
            if isinstance(fn, Task):
                future = fn.options(**self._given).submit(*args, **kwargs)
            else:
                options = self._options_of(fn, self._given)
                future = self._submitter.submit_call(fn, args, dict(kwargs), options)
            return self._pending.add_future(future)

    @overload
    def map(
        self,
        fn: Task[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> Iterator[R]: ...
    @overload
    def map(
        self,
        fn: Callable[..., Coroutine[Any, Any, R]],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> Iterator[R]: ...
    @overload
    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> Iterator[R]: ...
    @user_frames_only
    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """Results of ``fn`` with the first items of all `iterables`, then the second, …, in order.

        A loop over them that is left, or that raises, cancels the rest; one that never
        begins leaves all running. A result is forgotten when it is given.

        Parameters
        ----------
        fn : callable
        *iterables : iterable
            Read to their end at once, unless there is a `buffersize`.
        timeout : float, optional
            Seconds from now in which a result must be there when it is asked for.
        chunksize : int, optional
            Items that travel together; measured by default. With a `buffersize`, 1 by
            default.
        buffersize : int, optional
            No more than so many chunks are sent whose results were not given yet: more
            is read when one is asked for.

        Raises
        ------
        RuntimeError
            After `shutdown`.
        TimeoutError
            By the iterator: a result was not there in time. The rest is cancelled.
        Exception
            By the iterator: whatever the task raised. The rest is cancelled.

        Examples
        --------
        >>> import itertools
        >>> with queue.executor() as executor:
        ...     powers = executor.map(pow, itertools.count(2), itertools.count(2), buffersize=4)
        ...     [next(powers), next(powers)]
        ...     powers.close()
        [4, 27]
        """
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise BadOption("buffersize must be None or > 0")
        if chunksize is not None and chunksize < 1:
            raise BadOption("chunksize must be >= 1.")
        deadline = None if timeout is None else time.monotonic() + timeout
        items = zip(*iterables, strict=False)
        if buffersize is not None and self._seed(fn) is not None:
            raise BadOption("buffersize= makes calls of their own of a map's chunks: with a seed= all draw the same.")
        if buffersize is None:
            return self._send_all(fn, list(items), chunksize)._given_away(deadline)
        pieces: Iterator[TaskFuture[Any] | Batch[Any]]
        if chunksize is None or chunksize == 1:
            pieces = (self.submit(fn, *args) for args in items)
        else:
            pieces = (self._send_all(fn, chunk, chunksize) for chunk in _chunks(items, chunksize))
        return _buffered(pieces, deque(itertools.islice(pieces, buffersize)), deadline)

    def _seed(self, fn: Callable[..., Any]) -> int | None:
        if isinstance(fn, Task):
            return fn.options(**self._given)._options.seed
        return self._options_of(fn, self._given).seed

    def _send_all(self, fn: Callable[..., Any], items: list[tuple[Any, ...]], chunksize: int | None) -> Batch[Any]:
        given = self._given if chunksize is None else {**self._given, "chunksize": chunksize}
        with self._pending:
            if isinstance(fn, Task):
                batch = fn.options(**given).starmap(items)
            else:
                batch = self._submitter.submit_items(fn, items, len(items), {}, self._options_of(fn, given))
            return self._pending.add_batch(batch)

    @user_frames_only
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. The queue and its workers go on: they belong to all who use the queue.

        Parameters
        ----------
        wait : bool
            Return when every call of this executor has ended. Interrupting that
            cancels them, as any waiting does.
        cancel_futures : bool
            Cancel what no worker has fetched. A chunk of a `map` counts as one.

        Examples
        --------
        >>> executor = queue.executor()
        >>> future = executor.submit(abs, -3)
        >>> executor.shutdown()
        >>> future.done()
        True
        """
        pending = self._pending
        pending.closed = True
        if cancel_futures:
            pending.cancel_queued()
        if wait:
            pending.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        """Wait for what was sent. An interrupt in the block cancels it."""
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._pending.interrupt()
            self.shutdown(wait=False)
        else:
            self.shutdown(wait=True)
        return None


def _cores() -> int:
    """Those that this process may use: so many workers the first call starts, unless there is a quota."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chunks(items: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def _buffered(
    more: Iterator[TaskFuture[R] | Batch[R]], sent: deque[TaskFuture[R] | Batch[R]], deadline: float | None
) -> Iterator[R]:
    """Values in order. Each result that is asked for makes room for more."""
    try:
        while sent:
            with user_frames_only:
                sent.extend(itertools.islice(more, 1))
            if isinstance(sent[0], TaskFuture):
                yield _value(sent, deadline)
            else:
                yield from sent.popleft()._given_away(deadline)  # type: ignore[union-attr]
    finally:
        # The last first: what is still queued must not start meanwhile.
        while sent:
            sent.pop().cancel()


def _value(sent: deque[Any], deadline: float | None) -> Any:
    """The first call's value; it is cancelled if it is not there in time. Here, so that the loop holds no result."""
    future = sent.popleft()
    with user_frames_only:
        try:
            return future.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
        finally:
            future.cancel()


# The end of Python: what was sent is waited for, as executors of the standard library do.

_all: WeakSet[_Pending] = WeakSet()
_ending = False


def _wait_at_exit() -> None:
    global _ending
    _ending = True
    if "ipykernel.kernelapp" in sys.modules:
        # A kernel that is restarted is to stop, and nobody is left who could look.
        return
    for pending in list(_all):
        try:
            pending.wait_at_exit()
        except KeyboardInterrupt as interrupt:
            # There is nobody to raise it to: Python would print where in here it struck.
            sys.stderr.write(f"nbqueue: interrupted at the end of Python: {interrupt}\n")
            return


# Where the standard library's executors register: before threads are waited for, so those cannot send more meanwhile.
getattr(threading, "_register_atexit", atexit.register)(_wait_at_exit)
