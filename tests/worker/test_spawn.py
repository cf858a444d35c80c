"""A supervisor that is killed: its fork template and its workers end with it, and quietly.

Its sockets and pipes are closed before the signal that ends its children is sent, so they may notice.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from nbqueue.stream import broker
from nbqueue.worker import spawn
from nbqueue.worker.board import Board


def test_a_worker_that_rings_for_a_dead_supervisor_prints_no_traceback() -> None:
    """BrokenPipeError came out of the worker's loop and was printed."""
    read, write = os.pipe()
    os.close(read)
    assert spawn._bell(write)(b"!")
    with pytest.raises(BrokenPipeError):
        os.write(write, b"the bell's rope is really cut")
    os.close(write)


def test_a_bell_that_a_task_has_closed_is_told_from_one_that_nobody_hears() -> None:
    """The worker went on, and the supervisor heard of nothing that it did until it looked."""
    read, write = os.pipe()
    ring = spawn._bell(write)
    assert ring(b"!")
    assert os.read(read, 10) == b"!"
    os.close(read)
    os.close(write)
    assert not ring(b"!")


def _exit_code(run: Callable[[], object]) -> int:
    """Of a forked child that runs this."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            run()
        except Exception:  # noqa: BLE001 - printed, as an interpreter would
            traceback.print_exc()
        finally:
            os._exit(70)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("unread", [False, True], ids=["nothing-unread", "something-unread"])
def test_a_template_whose_supervisor_died_prints_no_traceback(unread: bool, capfd: Any) -> None:
    """ConnectionResetError and BrokenPipeError came out of the template's loop and were printed."""
    theirs, ours = socket.socketpair()
    board = Board.create(1)
    if unread:
        ours.sendall(b'{"dead": 1}\n')
    theirs.close()
    try:
        assert _exit_code(lambda: spawn._run_template(ours, board, 2)) == 0
        assert _exit_code(lambda: spawn._tell(ours, {"dead": 1})) == 0
    finally:
        ours.close()
        os.close(board.fd)
    assert capfd.readouterr().err == ""


def test_a_template_puts_the_steps_together_once_for_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker read fifteen files before it asked for work, which took as long as all else that it did."""

    def look() -> None:
        os._exit(3 if broker.script.cache_info().currsize == len(broker._SCRIPTS) else 4)

    # What comes last, before it waits for orders.
    monkeypatch.setattr(spawn.gc, "freeze", look)
    broker.script.cache_clear()
    # Of tests before this one.
    broker._sha.cache_clear()
    theirs, ours = socket.socketpair()
    board = Board.create(1)
    with theirs, ours:
        assert _exit_code(lambda: spawn._run_template(ours, board, 2)) == 3
    os.close(board.fd)
