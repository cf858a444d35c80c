"""Where a process may have few open files (`ulimit -n`), or was started without its first ones, workers work as
elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

SCRIPT = """
import os
from nbqueue import TaskQueue

def say(x):
    print("hello")
    return x

def close():
    os.closerange(3, 256)

def tell(*words):
    # In one go: what tasks print is written beside it.
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

with TaskQueue(workers=2) as queue:
    batch = queue.map(say, range(10))
    tell("results", sum(batch.results(timeout=20)))
    tell("said", batch.futures[3].stdout.split())
    queue.submit(close).result(timeout=20)
    tell("and then", queue.map(say, range(10)).results(timeout=20)[-1])
"""


@pytest.mark.parametrize("limit", [64, 200])
def test_under_a_low_limit_workers_died_one_after_the_other_and_nothing_ended(
    start_script: Callable[..., Any], limit: int
) -> None:
    """They kept their own descriptors at numbers that the system did not give them."""
    script = start_script(SCRIPT, argv=("sh", "-c", f'ulimit -n {limit} && exec "$@"', "sh"))
    assert script.line("results") == "45"
    assert script.line("said") == "['hello']"
    assert script.line("and then") == "9"
    script.end()


WITHOUT_STREAMS = """
import os, time
from nbqueue import TaskQueue

def say(x, seconds=0):
    print("out " * 50, flush=True)
    time.sleep(seconds)
    return x

def die():
    print("bye", flush=True)
    os._exit(3)

def tell(*words):
    os.write(3, (" ".join(map(str, words)) + "\\n").encode())

with TaskQueue(workers=1) as queue:
    future = queue.submit(say, 1)
    tell("result", future.result(timeout=20), future.stdout.count("out"))
    tell("workers", len(queue.status().workers))
    tell("late", type(queue.task(timeout=0.3)(say)(2, 60).exception(timeout=20)).__name__)
    tell("dead", type(queue.submit(die).exception(timeout=20)).__name__)
    tell("and then", queue.map(say, range(10)).results(timeout=20)[-1])
"""


@pytest.mark.parametrize("closed", ["1>&-", "0>&- 1>&- 2>&-"])
def test_without_standard_streams_what_tasks_print_once_went_into_the_slot_board(
    start_script: Callable[..., Any], closed: str
) -> None:
    """It had been given the number of the one that was missing: limits, cancels and deaths went unnoticed."""
    script = start_script(WITHOUT_STREAMS, argv=("sh", "-c", f'exec "$@" 3>&1 {closed}', "sh"))
    assert script.line("result") == "1 50"
    assert script.line("workers") == "1"
    assert script.line("late") == "TaskTimeout"
    assert script.line("dead") == "WorkerDied"
    assert script.line("and then") == "9"
    script.end()
