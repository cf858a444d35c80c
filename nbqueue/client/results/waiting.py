"""Waiting for what runs elsewhere, and what an interrupt of the waiting does.

Always true here: an interrupt is felt within a few hundredths of a second, and it never strikes while a lock is
held: it is noted, and looked for between two naps. What it cancels is cancelled in a thread of its own, so a second
one ends the waiting and does not leave the cancelling half done. What is raised is one new KeyboardInterrupt, whose
message says what has become of the work.

In a cell that awaits, the kernel turns an interrupt into a cancellation of the cell's own coroutine.
`interrupt_awaited` reaches what other coroutines wait for, `interrupt_unfinished` what the cell was in the middle
of; `nbqueue.notebook` calls both.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

from nbqueue import context
from nbqueue.client.sending.listener import Link
from nbqueue.client.sending.presses import Presses

__all__ = [
    "Heard",
    "Interrupted",
    "because",
    "begun",
    "hint",
    "interrupt_awaited",
    "interrupt_unfinished",
    "next_cell",
    "tick",
    "wait_until",
]

# What an interrupt is to do: cancel what is waited for, unless that is to go on. Says for a person which it was.
Interrupted = Callable[[], str]

# How long an interrupt goes unnoticed, blocking and awaiting.
TICK_S = 0.05
# Longer than the listener's hello, which brings the number of workers.
HINT_S = 3.0


def wait_until(
    condition: threading.Condition,
    ready: Callable[[], bool],
    timeout: float | None,
    link: Link | None,
    interrupted: Interrupted,
    *,
    atomic: bool = False,
) -> bool:
    """Wait for `ready()` under `condition`; False at the timeout.

    Where it is `atomic`, it looks at what changes in one step, and may be called without the lock. Says so once on
    stderr if nobody is there to do the work. Inside a task, the waiting does not count against the pool.

    Raises
    ------
    KeyboardInterrupt
        When interrupted, after `interrupted`; its message is what that has said.
    """
    if link is not None and not ready():
        link.check_thread()
    presses = Presses()
    try:
        with context.waiting(), presses:
            ended = _wait(condition, ready, timeout, link, presses, atomic)
        if presses.number:
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        message = _carry_out(interrupted)
        # A new one: where in our waiting it struck helps nobody.
        raise presses.error(message) from None
    return ended


def _wait(
    condition: threading.Condition,
    ready: Callable[[], bool],
    timeout: float | None,
    link: Link | None,
    presses: Presses,
    atomic: bool,
) -> bool:
    began = time.monotonic()
    deadline = None if timeout is None else began + timeout
    hint_at = began + HINT_S

    def under_lock() -> bool:
        with condition:
            return ready()

    ended = ready if atomic else under_lock
    if ended():
        return True
    while True:
        now = time.monotonic()
        if presses.number or (deadline is not None and now >= deadline):
            return False
        until = hint_at if deadline is None else min(deadline, hint_at)
        if link is None or not presses.masked or not link.steer(ended, until, presses):
            if presses.noted:
                until = min(until, now + TICK_S)
            with condition:
                if not ready():
                    condition.wait(max(0.0, until - now))
        if ended():
            return True
        if link is not None and time.monotonic() >= hint_at:
            hint(link)
            hint_at = time.monotonic() + HINT_S


def _carry_out(interrupted: Callable[[], str]) -> str:
    """Do what an interrupt is to do, however often it is pressed meanwhile."""
    if context.in_task() or threading.current_thread() is not threading.main_thread():
        return interrupted()
    said: list[str] = []
    ours = contextvars.copy_context()
    thread = threading.Thread(
        target=lambda: said.append(ours.run(interrupted)), name="nbqueue-interrupt", daemon=True
    )
    with Presses() as presses:
        thread.start()
        while thread.is_alive() and not presses.number:
            thread.join(TICK_S)
    return said[0] if said else "the work is still being cancelled."


# Hints


def hint(link: Link) -> None:
    """Tell the waiting user, once per cause, why nothing may be coming."""
    failure, reason = link.failure, _reason(link)
    if reason is not None and link.hinted != reason:
        sys.stderr.write(f"nbqueue: {'waiting, but' if failure is None else 'still waiting:'} {reason}\n")
    link.hinted = reason or ""


def because(link: Link | None) -> str:
    """The same for the end of a message, or nothing."""
    reason = None if link is None else _reason(link)
    return "" if reason is None else f" {reason[0].upper()}{reason[1:]}"


def _reason(link: Link) -> str | None:
    failure = link.failure
    if failure is not None:
        return str(failure)
    if link.workers == 0 and link.open_calls and not (link.starting or link.served_here):
        elsewhere = "" if link.private else ", or elsewhere with `nbqueue worker URL`"
        return f"no worker serves the queue {link.queue!r}. Start some with queue.run(){elsewhere}."
    return None


# Awaiting


class Heard(threading.Condition):
    """A condition that wakes coroutines, too: `wakers` are called in the thread that notifies, with the lock held."""

    def __init__(self, lock: threading.Lock) -> None:
        super().__init__(lock)
        self.wakers: set[Callable[[], Any]] = set()

    def notify_all(self) -> None:
        super().notify_all()
        if self.wakers:
            for wake in tuple(self.wakers):
                wake()


class _Awaiting:
    """One coroutine that waits for one thing. `said` is set when it has been interrupted."""

    __slots__ = ("cell", "context", "done", "hint_at", "interrupted", "link", "number", "said")

    def __init__(self, done: asyncio.Event, interrupted: Interrupted, link: Link | None, number: int) -> None:
        self.done, self.interrupted, self.number, self.cell = done, interrupted, number, _cell
        self.said: str | None = None
        self.link = link
        self.hint_at = time.monotonic() + HINT_S
        self.context = contextvars.copy_context()  # its cell, where a hint belongs

    def interrupt(self) -> None:
        if self.said is None:
            self.said = self.interrupted()
            self.done.set()


# In the order in which they began, as dicts are. A cell's number tells what belongs to the cell that runs now.
_awaiting: dict[_Awaiting, None] = {}
_unfinished: dict[begun, int] = {}
_left: list[begun] = []
# Loops in which something waits: they wake every TICK_S, once for all of that.
_beating: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Awaiting, None]] = WeakKeyDictionary()
# 0 where nobody follows cells. Who does cannot tell us of the cell that loads this: it may be the one that has imported
# nbqueue, and does all the rest as well.
_cell = int("nbqueue.notebook.interrupt" in sys.modules)


async def tick(done: asyncio.Event, interrupted: Interrupted, link: Link | None, number: int = 0) -> None:
    """Wait for an event in a loop that ticks, so that an interrupted cell notices. Calls have an ordered `number`.

    Raises
    ------
    asyncio.CancelledError
        When interrupted, or cancelled by whoever awaits this; after `interrupted`.
    """
    here = _Awaiting(done, interrupted, link, number)
    loop = asyncio.get_running_loop()
    waiting = _beating.get(loop)
    if waiting is None:
        waiting = _beating[loop] = {}
        loop.call_later(TICK_S, _beat, loop)
    waiting[here] = None
    if threading.current_thread() is threading.main_thread():
        _awaiting[here] = None
    try:
        # Inside a task, it does not count against the pool meanwhile.
        with context.waiting() if not done.is_set() else nullcontext():
            await done.wait()
    except (asyncio.CancelledError, KeyboardInterrupt) as interrupt:
        here.interrupt()
        # A new one: where in our waiting it struck helps nobody.
        raise type(interrupt)(here.said) from None
    finally:
        _awaiting.pop(here, None)
        waiting.pop(here, None)
    if here.said is not None:
        raise asyncio.CancelledError(here.said)


def _beat(loop: asyncio.AbstractEventLoop) -> None:
    """The loop has woken, which is all that an interrupt needs. Those that wait for long are told why."""
    waiting = _beating.get(loop)
    if not waiting:
        _beating.pop(loop, None)
        return
    loop.call_later(TICK_S, _beat, loop)
    now = time.monotonic()
    told: set[int] = set()
    for here in waiting:
        if here.link is not None and now >= here.hint_at:
            here.hint_at = now + HINT_S
            if id(here.link) not in told:
                told.add(id(here.link))
                here.context.run(hint, here.link)


def interrupt_awaited() -> str:
    """Interrupt what coroutines of this cell wait for; those of earlier cells go on. Says for a person what it did."""
    said = []
    # The last first: cancelling what runs makes room, in which what is still queued must not start.
    for here in sorted(_awaiting, key=lambda here: here.number, reverse=True):
        if here.cell == _cell:
            here.interrupt()
            said.append(here.said or "")
    if len(said) > 1 and all(text.endswith("was cancelled.") for text in said):
        return f"{len(said):,} calls were cancelled."
    return " ".join(dict.fromkeys(reversed(said)))


class begun:
    """A loop over results is under way in the cell: it is waited for, even while the loop's body runs.

    An interrupt there leaves the loop as ``break`` does, so a loop that was left counts until the cell has ended. What
    is given as `interrupted` says nothing, "", where nothing was left to do; it must not hold results.
    """

    __slots__ = ("_interrupted",)

    def __init__(self, interrupted: Interrupted) -> None:
        self._interrupted = interrupted

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            _unfinished[self] = _cell

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not GeneratorExit or not _cell:
            _unfinished.pop(self, None)
        elif self in _unfinished:
            _left.append(self)


def interrupt_unfinished() -> str:
    """The cell has ended by an interrupt: it no longer waits for anything that it began to wait for.

    Says for a person what has become of loops in whose bodies it struck.
    """
    interrupt_awaited()
    said = [loop._interrupted() for loop, cell in reversed(list(_unfinished.items())) if cell == _cell]
    return " ".join(dict.fromkeys(filter(None, reversed(said))))


def next_cell() -> None:
    """Another cell begins."""
    global _cell
    _cell += 1
    while _left:
        _unfinished.pop(_left.pop(), None)
