"""A handler of one's own raises out of whatever waits, as it does out of any other call: `signal.alarm` as a time
limit, ``sys.exit`` at a SIGTERM. It was taken for trouble with the server: swallowed, or the end of the listener."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nbqueue import as_completed
from nbqueue.client.sending.presses import Presses

SOON_S = 0.2


class Own(BaseException):
    """Neither an Exception nor an interrupt."""


@pytest.fixture
def alarm() -> Iterator[Callable[[type[BaseException]], None]]:
    def handler(error: type[BaseException]) -> Any:
        def strikes(_number: int, _frame: object) -> None:
            raise error("time is up")

        return strikes

    def soon(error: type[BaseException]) -> None:
        signal.signal(signal.SIGALRM, handler(error))
        signal.setitimer(signal.ITIMER_REAL, SOON_S)

    yield soon
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def one_by_one(queue: Any) -> object:
    return list(as_completed([queue.submit(time.sleep, 60)]))


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, Own])
@pytest.mark.parametrize(
    "wait",
    [
        lambda queue: queue.submit(time.sleep, 60).result(),
        lambda queue: queue.map(time.sleep, [60]).results(timeout=60),
        one_by_one,
    ],
    ids=["a call", "a map", "as completed"],
)
def test_what_it_raises_is_raised_where_somebody_waits_and_all_goes_on(
    queue: Any, alarm: Callable[..., None], wait: Callable[[Any], object], error: type[BaseException]
) -> None:
    assert queue.submit(abs, -1).result(timeout=60) == 1
    alarm(error)
    with pytest.raises(error, match="time is up"):
        wait(queue)
    queue.cancel()
    assert queue.submit(abs, -2).result(timeout=60) == 2


SERVICE = """
import os, signal, sys, threading, time
from nbqueue import TaskQueue
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
queue = TaskQueue()
waiting = queue.submit(time.sleep, 60)
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
waiting.result()
"""


def test_a_script_that_exits_at_a_sigterm_does_so_while_it_waits() -> None:
    done = subprocess.run([sys.executable, "-c", SERVICE], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 7, done.stderr


def test_only_where_a_handler_may_raise_does_the_waiting_thread_leave_the_exchange_to_the_listener(
    alarm: Callable[..., None],
) -> None:
    async def looped() -> bool:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print)
        try:
            with Presses() as presses:
                return presses.masked
        finally:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)

    assert asyncio.run(looped()), "an event loop's handler does nothing where it strikes"
    alarm(RuntimeError)
    with Presses() as presses:
        assert (presses.noted, presses.masked) == (True, False)
    signal.setitimer(signal.ITIMER_REAL, 0)
