"""Where a process may have few open files (`ulimit -n`), workers work as elsewhere."""

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
