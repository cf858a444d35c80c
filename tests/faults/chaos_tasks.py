"""What runs in the workers of a chaos run. Light to import: every fresh worker does."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

from chaos_plan import refuses, value_of


class Refused(Exception):
    """A task's own exception."""


def nap(number: int, seconds: float) -> int:
    time.sleep(seconds)
    return value_of(number)


def item(number: int, i: int, seconds: float) -> int:
    time.sleep(seconds)
    if refuses(i):
        raise Refused(i)
    return value_of(number, i)


def short(number: int, i: int) -> int:
    if refuses(i):
        raise Refused(i)
    return value_of(number, i)


async def awaits(number: int, i: int, seconds: float) -> int:
    import asyncio

    await asyncio.sleep(seconds)
    if refuses(i):
        raise Refused(i)
    return value_of(number, i)


async def kills(seconds: float) -> None:
    """End the worker, and with it whatever runs beside this."""
    import asyncio

    await asyncio.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(number: int, seconds: float) -> None:
    time.sleep(seconds)
    raise Refused(number)


def flaky(number: int, i: int, seconds: float, note: str, failures: int) -> int:
    """Raise in the first runs. They are counted in a file, so a run that a crash cut short counts as well."""
    time.sleep(seconds)
    if _runs(Path(note)) <= failures:
        raise Refused("not yet")
    return value_of(number, i)


def _runs(note: Path) -> int:
    with note.open("ab") as file:
        file.write(b".")
    return note.stat().st_size


def overrun(number: int) -> None:
    time.sleep(60)


def poison(number: int, i: int, how: str, seconds: float) -> int:
    """Kill the worker."""
    time.sleep(seconds)
    if how == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "SIGSEGV":
        ctypes.string_at(8)
    if how == "exit":
        os._exit(3)
    return value_of(number, i)
