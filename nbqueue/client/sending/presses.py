"""Interrupts that are counted instead of being raised: for what must not be left in the middle.

Always true here: only the main thread is concerned, which is where Python raises them, and only where nobody has put
a handler of his own.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import asyncio
import os
import signal
import threading
from typing import Any

__all__ = ["Presses"]

# Whose handlers of SIGINT tell an event loop, which hears nothing while its thread waits.
_KERNELS = ("ipykernel.ipkernel", "nbqueue.notebook.interrupt")
_LOOPS = (*_KERNELS, "asyncio.runners")
_SIGINT = int(signal.SIGINT)
# What a shell gives to all that it starts in the background, and what ends the process: neither raises anything.
_NOBODYS = (signal.SIG_IGN, signal.SIG_DFL)
# Other signals whose handlers may raise: ``sys.exit`` at a SIGTERM, a time limit by `signal.alarm`. Not every system
# has all of them.
_NAMES = ("ALRM", "CHLD", "HUP", "IO", "PROF", "QUIT", "TERM", "USR1", "USR2", "VTALRM", "WINCH", "XCPU")
_OTHERS = tuple(int(getattr(signal, "SIG" + name)) for name in _NAMES if hasattr(signal, "SIG" + name))
# An event loop's handlers do nothing where they strike.
_HARMLESS = ("asyncio.unix_events",)
_main = threading.main_thread().ident


def _note_main() -> None:
    """In a fork, the thread that has made it is the main one."""
    global _main
    _main = threading.get_ident()


os.register_at_fork(after_in_child=_note_main)


class Presses:
    """A ``with`` block in which interrupts are counted.

    Attributes
    ----------
    number : int
    noted : bool
        They are. Else this is another thread, nobody handles them, or somebody's own handler does what it does.
    masked : bool
        Nothing can be raised in the block: nor can it by a handler of another signal, as there is none.
    """

    __slots__ = ("_before", "masked", "noted", "number")

    def __init__(self) -> None:
        self.number = 0
        self.noted = self.masked = False
        self._before: Any = None

    def __enter__(self) -> Presses:
        if threading.get_ident() != _main:
            self.masked = True
        else:
            # Not `signal.getsignal` and `signal.signal`, whose enums cost 6 µs.
            before = _signal.getsignal(_SIGINT)
            if before is signal.default_int_handler or _home_of(before) in _LOOPS:
                self._before, self.noted, self.masked = before, True, not _others_may_raise()
                _signal.signal(_SIGINT, self._note)
            elif before in _NOBODYS:
                self.masked = not _others_may_raise()
        return self

    def __exit__(self, *_: object) -> None:
        if self.noted:
            _signal.signal(_SIGINT, self._before)

    def _note(self, _number: int, _frame: object) -> None:
        self.number += 1

    def again(self) -> None:
        """After the block: let what was counted be felt now, as it would have been."""
        if self.number:
            self._before(_SIGINT, None)

    def error(self, message: str) -> BaseException:
        """What is raised for an interrupt. Out of a coroutine that is not the cell's own, no KeyboardInterrupt may
        come: it would end the kernel's loop, and the kernel with it.
        """
        if _home_of(self._before) not in _KERNELS or _in_the_cell():
            return KeyboardInterrupt(message)
        self._before(_SIGINT, None)
        return asyncio.CancelledError(message)


def _others_may_raise() -> bool:
    for number in _OTHERS:
        handler = _signal.getsignal(number)
        if callable(handler) and _home_of(handler) not in _HARMLESS:
            return True
    return False


def _home_of(handler: Any) -> str:
    return getattr(getattr(handler, "func", handler), "__module__", None) or ""


def _in_the_cell() -> bool:
    """True unless the code that runs is another coroutine's than the cell's."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return True
    return task is None or getattr(task.get_coro(), "__name__", "") == "run_cell_async"
