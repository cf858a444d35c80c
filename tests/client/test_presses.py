"""Interrupts are counted in the main thread, whichever that is."""

from __future__ import annotations

import os
import signal
import threading

from nbqueue.client.sending.presses import Presses


def test_an_interrupt_is_counted_and_raised_afterwards() -> None:
    with Presses() as presses:
        assert presses.noted
        assert presses.masked
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert presses.number >= 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        presses.again()
    except KeyboardInterrupt:
        return
    raise AssertionError("it was not felt")


def test_in_another_thread_nothing_can_strike_and_nothing_is_counted() -> None:
    seen: list[tuple[bool, bool]] = []

    def enter() -> None:
        with Presses() as presses:
            seen.append((presses.noted, presses.masked))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(False, True)]


def test_in_a_fork_the_thread_that_made_it_is_the_main_one() -> None:
    codes: list[int] = []

    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            with Presses() as presses:
                noted = presses.noted
            os._exit(3 if noted else 4)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    assert codes == [3]
