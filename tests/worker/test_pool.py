"""A pool of real processes, with both ways to start them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

SCRIPT = """
import os, signal, time
from nbqueue import TaskQueue, WorkerDied
queue = TaskQueue(workers=2)

@queue.task
def where():
    return os.getpid(), os.getppid()

@queue.task
def fail(): raise ValueError("of the task")

@queue.task
def die(): os.kill(os.getpid(), signal.SIGKILL)

def main():
    pids = {where().result(timeout=30)[0] for _ in range(3)}
    print("other process", os.getpid() not in pids, flush=True)
    print("map", queue.map(pow, [2] * 5, range(5)).results(timeout=30), flush=True)
    print("error", type(fail().exception(timeout=30)).__name__, flush=True)
    died = die().exception(timeout=30)
    print("died", type(died).__name__, died.signal, died.attempts, flush=True)
    while len([w for w in queue.status().workers if w.state == "idle"]) < 2:
        time.sleep(0.01)
    print("whole again", len(queue.status().workers), flush=True)
    queue.run(3)
    while len([w for w in queue.status().workers if w.state == "idle"]) < 3:
        time.sleep(0.01)
    print("grown", len(queue.status().workers), flush=True)
    queue.shutdown()
    print("stopped", queue.status().workers, flush=True)
    queue.run(1)
    print("again", where().result(timeout=30)[0] > 0, flush=True)

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_works_heals_grows_stops_and_starts_again(method: str, start_script: Callable[..., Any]) -> None:
    script = start_script(SCRIPT, env={"NBQUEUE_START_METHOD": method})
    assert script.end(timeout=120).splitlines() == [
        "other process True",
        "map [1, 2, 4, 8, 16]",
        "error ValueError",
        "died WorkerDied 9 2",
        "whole again 2",
        "grown 3",
        "stopped ()",
        "again True",
    ]
    assert not script.err


def test_nothing_secret_is_seen_by_ps(start_script: Callable[..., Any]) -> None:
    """Arguments and environment of all processes of ours: the signing secret and a password stay out."""
    code = """
import time
from nbqueue import TaskQueue
queue = TaskQueue(workers=1)
queue.submit(abs, -1).result(timeout=30)
print("secret", queue._core.secret.hex(), flush=True)
time.sleep(60)
"""
    for method in ("fork", "spawn"):
        script = start_script(code, env={"NBQUEUE_START_METHOD": method})
        secret = script.line("secret")
        assert len(secret) == 64
        for process in script.family():
            assert secret not in " ".join(process.cmdline())
            assert secret not in repr(process.environ())
