"""The event loop of a worker, in a thread of its own: calls of async functions run in it beside each other.

::

    pump (main thread)   begin ─▶ loop: a task for each call ─▶ ended ─▶ pump

The main thread goes on to fetch, to pickle and to report, and hears the supervisor's signals; here is nothing but the
users' coroutines. Loaded by the first call of an async function: a worker that has none never loads asyncio.

Always true here: a call ends once, whatever it raises; what it has started and left running is cancelled before it
ends, as `asyncio.run` does; while one of them waits for a call of its own, no other begins, since the one that is
waited for might be it, and a wait may hold the whole loop.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from functools import partial
from typing import Any

from nbqueue import context
from nbqueue.codec.messages import CallBody
from nbqueue.stream.records import Fetched
from nbqueue.worker.board import Slot
from nbqueue.worker.coroutines.voice import Voice
from nbqueue.worker.descriptors import size_of
from nbqueue.worker.seeded import seeded
from nbqueue.worker.telling.news import News

__all__ = ["Lane", "Running", "voice"]

_UNKNOWN = object()


class Running:
    """One call, from its place on the board to its end.

    Attributes
    ----------
    slot, place : Slot and int
        Its line on the board.
    why : int
        Why it is to stop; 0 while it is not.
    value, error
        How it has ended.
    """

    __slots__ = (
        *("began", "body", "call", "context", "error", "news", "place", "seconds", "slot", "task", "tasks"),
        *("value", "voice", "why"),
    )

    def __init__(self, call: Fetched, body: CallBody, place: int, slot: Slot) -> None:
        self.call = call
        self.body = body
        self.place = place
        self.slot = slot
        self.context: context.TaskContext | None = None
        self.voice = Voice()
        self.news = News()
        self.began = time.monotonic()
        self.seconds = 0.0
        self.why = 0
        self.value: Any = _UNKNOWN
        self.error: BaseException | None = None
        self.task: asyncio.Task[None] | None = None
        self.tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()  # that it has started

    def post(self, kind: str, key: object, details: context.Details | Callable[[], context.Details]) -> None:
        """News of it, for whoever called."""
        which = {"kind": kind, "item": 0, "attempt": self.call.attempt}
        event = (lambda: {**details(), **which}) if callable(details) else {**details, **which}
        self.news.post(event, None if key is None else (kind, key))


_speaking: ContextVar[Running | None] = ContextVar("nbqueue call", default=None)


def voice() -> Voice | None:
    """Of the call that asks; None for what belongs to none, as a thread of a library."""
    running = _speaking.get()
    return None if running is None else running.voice


class Lane:
    """The loop and its thread, as the main thread uses them."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()  # guards what is about to start, and who waits
        self._starting: dict[Running, None] = {}
        self._withdrawn: list[Running] = []
        self._waits = 0
        self._ended: queue.SimpleQueue[Running | None] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._loop.set_task_factory(_make_task)  # type: ignore[arg-type]
        self._ended_itself = False
        # What it waits on and is woken by; a loop of another make keeps them elsewhere.
        parts = [getattr(self._loop, name, None) for name in ("_selector", "_ssock", "_csock")]
        fds = [part.fileno() for part in parts if part is not None]
        self._descriptors = [(fd, os.fstat(fd).st_ino) for fd in fds]
        threading.Thread(target=self._run, name="nbqueue-loop", daemon=True).start()

    @property
    def broken(self) -> bool:
        """Whether the loop cannot go on: a task has closed what it waits on. What runs in it never ends."""
        return self._ended_itself or any(size_of(fd, inode) < 0 for fd, inode in self._descriptors)

    # The main thread

    def begin(
        self,
        running: Running,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        alone: bool,
    ) -> bool:
        """Have a call run. False while another one waits for a call of its own."""
        with self._lock:
            # Where it is alone, the one that waits is over, and has left a thread.
            if self._waits and not alone:
                return False
            self._starting[running] = None
        self._loop.call_soon_threadsafe(self._start, running, function, args, kwargs)
        return True

    def cancel(self, running: Running) -> None:
        """End a call whose `why` has been set; also from a signal handler."""
        self._loop.call_soon_threadsafe(self._cancel, running)

    def ended(self, timeout_s: float) -> list[Running]:
        """Calls that have ended; waits for one, or until somebody begins or ends to wait for a call of his own."""
        found: list[Running] = []
        try:
            one = self._ended.get(timeout=timeout_s)
            while True:
                if one is not None:
                    found.append(one)
                one = self._ended.get_nowait()
        except queue.Empty:
            return found

    @property
    def waits(self) -> bool:
        """Whether one of the calls waits for one of its own."""
        return self._waits > 0

    def withdrawn(self) -> list[Running]:
        """Calls that were to begin, and now do not."""
        with self._lock:
            found, self._withdrawn = self._withdrawn, []
        return found

    # Any thread of a call

    def begin_wait(self) -> None:
        with self._lock:
            self._waits += 1
            self._withdrawn += self._starting
            self._starting.clear()
        self._ended.put(None)

    def end_wait(self) -> None:
        with self._lock:
            self._waits -= 1
        self._ended.put(None)

    # The loop's thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        while True:
            try:
                self._loop.run_forever()
            except OSError:
                # Not of a call, which would have heard of it.
                self._ended_itself = True
                self._ended.put(None)
                return
            except BaseException:  # noqa: BLE001, S112 - SystemExit of a task that a call has started, and has heard of
                continue

    def _start(
        self, running: Running, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        with self._lock:
            if running not in self._starting:
                return
            del self._starting[running]
        running.began = time.monotonic()
        running.task = self._loop.create_task(_attempt(running, function, args, kwargs))
        running.task.add_done_callback(partial(self._over, running))
        if running.why:
            running.task.cancel()

    @staticmethod
    def _cancel(running: Running) -> None:
        running.slot.heard()
        if running.task is not None:
            running.task.cancel()

    def _over(self, running: Running, task: asyncio.Task[None]) -> None:
        if os.getpid() != self._pid:
            # The call forked, and this is the child, which came back from it: it must not act as the worker.
            os._exit(0)
        running.seconds = time.monotonic() - running.began
        running.task = None
        failure = asyncio.CancelledError() if task.cancelled() else task.exception()
        if running.value is _UNKNOWN and running.error is None:
            # Cancelled before its first step.
            running.error = failure or asyncio.CancelledError()
        self._ended.put(running)


def _make_task(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any) -> Any:
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
    running = _speaking.get()
    if running is not None:
        running.tasks.add(task)
    return task


async def _attempt(
    running: Running, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """One run of a call."""
    _speaking.set(running)
    if running.context is not None:
        context.set_own(running.context)
    try:
        if running.body.rng is not None:
            kwargs = seeded(kwargs, running.body.rng, 0)
        value = function(*args, **kwargs)
        del args, kwargs
        running.value = await value if inspect.isawaitable(value) else value
    except BaseException as error:  # noqa: BLE001 - whatever a task raises is its outcome
        running.error = error
    left = [task for task in running.tasks if not task.done()]
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left)
