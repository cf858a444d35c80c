"""■ in a notebook: an interrupted cell no longer waits for anything, however it waited.

A cell that blocks is interrupted by `client.results.waiting` itself. Here is the rest, which only the shell can tell:
when a cell begins and when it has ended by an interrupt; and, in a cell that awaits, when it was interrupted. ipykernel
turns that into a cancellation of the cell's coroutine, at the next time that its loop wakes, for whatever reason.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Watcher"]

# What is between a cell and that which it waits for.
_BETWEEN = tuple(f"{Path(file).parent}{os.sep}" for file in (asyncio.__file__, Path(__file__).parent))


class Watcher:
    """Follows the cells of a shell. Does nothing in other threads than the main one, which alone is interrupted."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._told: Any = None  # the kernel's own handler while a cell awaits
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pressed = False
        shell.events.register("pre_run_cell", self._before_cell)
        shell.events.register("post_run_cell", self._after_cell)
        # The cell that imports us has begun.
        self._before_cell()

    def _before_cell(self, *_: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        _tell("next_cell")
        self._pressed = False
        handler = signal.getsignal(signal.SIGINT)
        if getattr(handler, "__module__", None) == "ipykernel.ipkernel":
            # Of a cell that awaits; the kernel puts back what was before when the cell has ended.
            self._told = handler
            self._loop = asyncio.get_running_loop()
            signal.signal(signal.SIGINT, self.interrupt)

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGINT while a cell awaits. May come in the middle of anything, so it only tells the loop."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            # First: when the cell's coroutine is cancelled, what it has awaited must be known to be interrupted.
            loop.call_soon_threadsafe(self._interrupt_awaited)
        self._told(number, frame)

    def _interrupt_awaited(self) -> None:
        if not self._pressed:
            self._pressed = True
            self._show_as_interrupt(_tell("interrupt_awaited"))
        else:
            _tell("interrupt_awaited")

    def _after_cell(self, result: Any = None) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        error = getattr(result, "error_in_exec", None)
        if self._pressed or isinstance(error, KeyboardInterrupt):
            said = _tell("interrupt_unfinished")
            if said:
                # In the body of a loop it was not ours to raise, so its message could not say so.
                sys.stderr.write(f"nbqueue: {said}\n")

    def _show_as_interrupt(self, said: str | None) -> None:
        """Until this cell has ended, show the cancellation of its coroutine as what it is: an interrupt."""
        shell, before = self._shell, (self._shell.custom_exceptions, self._shell.CustomTB)

        def show(shell: Any, kind: type, error: BaseException, tb: Any, tb_offset: int | None = None) -> Any:
            if not isinstance(error, asyncio.CancelledError):
                return before[1](kind, error, tb, tb_offset)
            interrupt = KeyboardInterrupt(said or str(error))
            shell.showtraceback((KeyboardInterrupt, interrupt, users_part(tb)), tb_offset=0)
            return None

        def put_back(*_: Any) -> None:
            shell.events.unregister("post_run_cell", put_back)
            shell.custom_exceptions, shell.CustomTB = before

        if asyncio.CancelledError not in before[0]:
            shell.set_custom_exc((*before[0], asyncio.CancelledError), show)
            shell.events.register("post_run_cell", put_back)


def _tell(what: str) -> Any:
    waiting = sys.modules.get("nbqueue.client.results.waiting")
    # Not loaded: nothing has been waited for yet.
    return getattr(waiting, what)() if waiting is not None else None


def users_part(tb: TracebackType | None) -> TracebackType | None:
    """A traceback from the cell on, without the shell's frames before and those of asyncio and ours at its end."""
    frames = []
    while tb is not None:
        frames.append(tb)
        tb = tb.tb_next
    while frames and frames[-1].tb_frame.f_code.co_filename.startswith(_BETWEEN):
        frames.pop()
    part = None
    for entry in reversed(frames[1:]):
        part = TracebackType(part, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return part
