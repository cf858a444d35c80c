"""Where am I: inside a task, and in which process? Ground floor: knows no wing.

A worker process runs one task at a time, so what is current is a plain global: threads that a task starts
see it too. Async functions run several at a time: each has its own in a context variable, which comes before the
global. `worker.loop` sets them; `client` reads them, to run tasks called inside tasks and to tell the worker when one
of them is being waited for. Users' functions call `report` and `track`, which do nothing elsewhere.
"""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

__all__ = [
    "Lane",
    "TaskContext",
    "current",
    "in_task",
    "next_child",
    "open_lane",
    "pid",
    "report",
    "seed_item",
    "tell",
    "track",
    "waiting",
]

T = TypeVar("T")

Details = dict[str, Any]
# Of what a task says beside its numbers.
LONGEST_TEXT = 200


@dataclass(slots=True)
class TaskContext:
    """A task that this process runs, and how to reach the queue that it came from."""

    name: str
    attempt: int
    queue: str
    address: Mapping[str, Any]
    secret: bytes
    begin_wait: Callable[[], None]
    end_wait: Callable[[], None]
    post: Callable[[str, object, Details | Callable[[], Details]], None]
    lanes: list[Lane] = field(default_factory=list)  # of the item that runs; what `report` says comes first
    shows: bool = False  # its caller is a notebook, which shows what it prints
    shares: bool = False  # and shares memory with the workers of its queue
    seeded: tuple[int, int] | None = None  # seed and place of the item that runs, where it draws random numbers
    children: int = 0  # how many seeds were made from these

    @property
    def used(self) -> bool:
        """Whether the item that runs has told, or asked, anything here: the next one is to find a new one."""
        return bool(self.lanes or self.children) or self.seeded is not None

    def end_lanes(self) -> None:
        """The item is over: the next one of the call begins with no bars."""
        for lane in self.lanes:
            lane.ended = lane.posted = True
        self.lanes = []

    def __repr__(self) -> str:
        return f"TaskContext(name={self.name!r}, attempt={self.attempt}, queue={self.queue!r})"


_pid = os.getpid()


def _note_fork() -> None:
    global _pid
    _pid = os.getpid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def pid() -> int:
    """This process's number, for whoever asks at every call: a tenth of what the system takes to tell it."""
    return _pid


_current: TaskContext | None = None
_own: ContextVar[TaskContext | None] = ContextVar("nbqueue task", default=None)


def current() -> TaskContext | None:
    """The running task's context, None outside of tasks."""
    return _own.get() or _current


def in_task() -> bool:
    """True in a worker process while it runs a task."""
    return current() is not None


def set_current(context: TaskContext | None) -> None:
    """For `worker` and `replay` only."""
    global _current
    _current = context


def set_own(context: TaskContext) -> None:
    """Of the coroutine that calls, and of what it awaits and starts. For `worker` only."""
    _own.set(context)


def seed_item(seed: int, index: int) -> None:
    """The running item draws its random numbers from these. For `worker` and `replay` only."""
    context = current()
    if context is not None:
        context.seeded, context.children = (seed, index), 0


def next_child() -> tuple[int, int, int] | None:
    """What the next seed is made from that the running item needs; None where it draws no random numbers itself."""
    context = current()
    if context is None or context.seeded is None:
        return None
    context.children += 1
    return (*context.seeded, context.children - 1)


class Lane:
    """A bar of the running task. Whoever moves it sets its numbers and calls `post` unless it is `posted`.

    What leaves a few times a second is read from it only then: to move it costs next to nothing, and the last state
    is never lost to a throttle. `read` gives done, total and text where others keep them.
    """

    __slots__ = ("_context", "done", "ended", "gone", "number", "posted", "read", "text", "total")

    def __init__(
        self,
        context: TaskContext,
        number: int,
        total: float | None = None,
        text: str = "",
        read: Callable[[], tuple[float, float | None, str]] | None = None,
    ) -> None:
        self._context = context
        self.number = number
        self.done: float = 0
        self.total = total
        self.text = text
        self.read = read
        self.posted = self.ended = self.gone = False

    def post(self) -> None:
        """Have its state sent when the time has come."""
        self.posted = True
        self._context.post("lane", self.number, self._news)

    def end(self, *, stay: bool) -> None:
        """It moves no more. It may `stay` as it is until another one takes its place or the item ends."""
        if self.ended:
            return
        self.ended, self.gone = True, not stay
        if stay and self.read is not None:
            self.done, self.total, self.text = self.read()
            self.read = None
        self.post()

    def _news(self) -> Details:
        # Before its numbers are read: what changes from here on is posted anew.
        self.posted = False
        if self.gone:
            return {"lane": self.number, "gone": True}
        try:
            done, total, text = (self.done, self.total, self.text) if self.read is None else self.read()
            return {
                "lane": self.number,
                "done": _plain(done),
                "total": None if total is None else _plain(total),
                "text": str(text)[:LONGEST_TEXT],
            }
        except Exception:  # noqa: BLE001 - a library's bar may be anything; it must not stop what else is sent
            return {"lane": self.number, "gone": True}


def _plain(number: Any) -> float:
    """As JSON can hold it: a number of any library."""
    return number if type(number) in (int, float) else float(number)


_lanes_lock = threading.Lock()


def open_lane(
    total: float | None = None,
    text: str = "",
    read: Callable[[], tuple[float, float | None, str]] | None = None,
) -> Lane | None:
    """A further bar of the running task, in the first place that is free; outside of tasks, None."""
    context = current()
    if context is None:
        return None
    with _lanes_lock:
        lanes = context.lanes or _first_lane(context)
        number = next((n for n in range(1, len(lanes)) if lanes[n].ended), len(lanes))
        lane = Lane(context, number, total, text, read)
        lanes[number : number + 1] = [lane]
    return lane


def _first_lane(context: TaskContext) -> list[Lane]:
    """The place of what `report` says, which is always there."""
    context.lanes = [Lane(context, 0)]
    return context.lanes


def report(done: float, total: float | None = None, text: str | None = "") -> None:
    """Tell from inside a task how far it is: a thin bar under the batch's own. Outside of tasks, nothing.

    Call it as often as you like; a few times a second, the latest is sent.

    Parameters
    ----------
    done, total : number
        ``report(3, 10)`` fills three tenths of the bar. Without a total only the
        number is shown.
    text : str
        What is being done.

    Raises
    ------
    TypeError
        If `done` or `total` is no number.

    Examples
    --------
    >>> from nbqueue import report
    >>> def train(epochs):
    ...     for epoch in range(epochs):
    ...         report(epoch, epochs, "training")
    >>> train(3)
    """
    context = current()
    if context is None:
        return
    for number in (done, total):
        if type(number) is not int and type(number) is not float and number is not None:
            try:
                float(number)
            except (TypeError, ValueError):
                raise TypeError(f"report needs numbers, not {number!r:.80} ({type(number).__name__}).") from None
    lanes = context.lanes
    if not lanes:
        with _lanes_lock:
            lanes = context.lanes or _first_lane(context)
    lane = lanes[0]
    lane.done, lane.total, lane.text = done, total, text or ""
    if not lane.posted:
        lane.post()


def track(iterable: Iterable[T], total: float | None = None, text: str | None = "") -> Iterator[T]:
    """Iterate, and show inside a task how far that is: a thin bar under the batch's own. Elsewhere, only iterate.

    Parameters
    ----------
    iterable : iterable
        What to go through.
    total : number, optional
        How many items it has, where it does not know.
    text : str
        What is being done.

    Returns
    -------
    iterator

    Examples
    --------
    >>> from nbqueue import track
    >>> @queue.task
    ... def squares(n):
    ...     return [x * x for x in track(range(n), text="squares")]
    >>> squares(3).result()
    [0, 1, 4]
    """
    context = current()
    if context is None:
        return iter(iterable)
    if total is None:
        hint = operator.length_hint(iterable, -1)
        total = None if hint < 0 else hint
    return _track(iterable, total, text or "")


def _track(iterable: Iterable[T], total: float | None, text: str) -> Iterator[T]:
    lane = open_lane(total, text)
    if lane is None:
        yield from iterable
        return
    lane.post()
    done, complete = 0, False
    try:
        for item in iterable:
            yield item
            done += 1
            lane.done = done
            if not lane.posted:
                lane.post()
        complete = True
    finally:
        lane.end(stay=complete)


def tell(kind: str, key: object = None, **details: Any) -> None:
    """Send news of the running task to whoever called it; outside of tasks, nothing.

    `details` are what JSON can hold. Several with one `key` in a short time: only the last one leaves.
    """
    context = current()
    if context is not None:
        context.post(kind, key, details)


_OUTSIDE = nullcontext()


def waiting() -> AbstractContextManager[None]:
    """While this lasts, the current task waits for another one and does not count against the pool."""
    context = current()
    return _OUTSIDE if context is None else _waits(context)


@contextmanager
def _waits(context: TaskContext) -> Iterator[None]:
    context.begin_wait()
    try:
        yield
    finally:
        context.end_wait()
