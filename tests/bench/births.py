"""How soon workers are there: a new one in the place of a dead one, many at once; and how soon the library itself is.

A worker is there when its connection waits for work on the server, which the server itself says (CLIENT LIST).
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.bench.measures import Bench

__all__ = ["importing", "many_workers", "replaced"]

# A connection in a blocked read for workers.
_ASKS = re.compile(rb"(?m)^id=(\d+) .* flags=\w*b\w* .* cmd=xreadgroup\b")
LOOK_S = 0.001
MOST_S = 20.0


def replaced(bench: Bench, rounds: int) -> dict[str, float]:
    """From the moment at which a task ends its worker's process to the one at which another asks for work."""
    bench.warm()
    task, wire = bench.peer.task(bench.fn.die_once), _wire(bench.peer.queue)
    samples = []
    for number in range(rounds):
        before = _until(lambda: _all_ask(wire, bench.workers))
        note = Path(os.environ["TMPDIR"], f"death-{number}")
        future = task(str(note))
        _until(lambda before=before: bool(_all_ask(wire, bench.workers) - before))
        # The same clock in all processes of a host.
        samples.append(time.monotonic() - float(note.read_text()))
        future.result(timeout=MOST_S)
        if future.attempts != 2:
            raise AssertionError("The call was to kill one worker and to run again in another.")
    wire.close()
    return {"median": statistics.median(samples), "worst": max(samples)}


def many_workers(bench: Bench, number: int) -> dict[str, float]:
    """From before the library is imported until so many workers, of a pool with a private server, ask for work."""
    began = time.monotonic()
    bench.peer.start(number)
    queue = bench.peer.queue
    queue.run(number)
    wire = _wire(queue)
    _until(lambda: _all_ask(wire, number))
    took = time.monotonic() - began
    wire.close()
    pids = {worker.pid for worker in queue.status().workers}
    if len(pids) != number:
        raise AssertionError(f"{len(pids)} workers instead of {number}")
    return {"seconds": took}


def importing(_bench: Bench, rounds: int) -> dict[str, float]:
    """In interpreters that have loaded nothing else yet."""
    code = "import time; began = time.perf_counter(); {}; print(time.perf_counter() - began)"

    def once(what: str) -> float:
        command = [sys.executable, "-c", code.format(what)]
        return float(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=MOST_S).stdout)

    found = {}
    for key, what in (("package", "import nbqueue"), ("queue", "from nbqueue import TaskQueue")):
        once(what)  # compiles and reads the files
        found[key] = statistics.median(once(what) for _ in range(rounds))
    return found


def _wire(queue: Any) -> Any:
    """A connection of our own to its private server."""
    from nbqueue.stream.connect import Wire

    wire = Wire(queue._here().address(), timeout_s=MOST_S)
    wire.connect()
    return wire


def _all_ask(wire: Any, number: int) -> set[int]:
    """The connections that ask for work, if there are so many; else none."""
    found = {int(id) for id in _ASKS.findall(wire.call("CLIENT", "LIST"))}
    return found if len(found) == number else set()


def _until(there: Callable[[], Any]) -> Any:
    give_up = time.monotonic() + MOST_S
    while not (found := there()):
        if time.monotonic() > give_up:
            raise TimeoutError(f"The workers that were waited for were not there after {MOST_S:g} s.")
        time.sleep(LOOK_S)
    return found
