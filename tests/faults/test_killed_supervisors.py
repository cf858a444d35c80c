"""A supervisor that is killed, also while it starts, and its successors: each call ends in exactly one state."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Server

# `kill(n, delay)`: that many supervisors, each as soon as it has lived so long. `ends` waits for the end of futures.
APART = pytest.mark.apart

KILLING = """
import collections, os, signal, sys, threading, time
import psutil
from nbqueue import TaskQueue
me, killed = psutil.Process(), []
def kill(number, delay):
    while number:
        for child in me.children():
            if child.pid not in killed:
                time.sleep(delay)
                child.kill()
                killed.append(child.pid)
                number -= 1
                break
        time.sleep(0.0005)
def start_killing(number, delay):
    thread = threading.Thread(target=kill, args=(number, delay))
    thread.start()
    return thread
def slow(x):
    time.sleep(0.02)
    return x
def ends(futures, timeout=20):
    until = time.monotonic() + timeout
    while not all(future.done() for future in futures) and time.monotonic() < until:
        time.sleep(0.01)
    kinds = collections.Counter(
        "open" if not future.done() else type(future.exception()).__name__ for future in futures
    )
    return " ".join(f"{kind}={number}" for kind, number in sorted(kinds.items()))
"""


def _said(script: Any, *words: str) -> int:
    return sum(all(word in line for word in words) for line in script.err)


@pytest.mark.parametrize("delay", [pytest.param(0.02, marks=APART), 0.1, pytest.param(0.2, marks=APART)])
def test_the_first_call_runs_though_supervisors_are_killed_while_they_start(
    start_script: Callable[..., Any], delay: float
) -> None:
    """The call hung for ever: only another one started workers."""
    script = start_script(f"""{KILLING}
queue = TaskQueue(workers=2)
killer = start_killing(3, {delay})
print("sum", sum(queue.map(abs, range(50)).results(timeout=20)), flush=True)
killer.join()
print("sum", sum(queue.map(abs, range(50)).results(timeout=20)))
""")
    assert script.end().split("\n") == ["sum 1225"] * 2
    assert not script.err


@pytest.mark.parametrize("delay", [0.0, pytest.param(0.12, marks=APART)])
def test_calls_survive_a_supervisor_whose_successors_are_killed_while_they_start(
    start_script: Callable[..., Any], delay: float
) -> None:
    """The queue was dead until the kernel's restart: each call and each run() raised PoolError."""
    script = start_script(f"""{KILLING}
queue = TaskQueue(workers=2)
queue.submit(abs, -1).result(timeout=20)
batch = queue.map(slow, range(100))
kill(3, {delay})
print(ends(batch.futures), len(killed))
print(sum(queue.map(abs, range(50)).results(timeout=20)))
queue.run(), queue.restart_workers(), queue.shutdown(), queue.run()
print(sum(queue.map(abs, range(50)).results(timeout=20)))
""")
    assert script.end().split("\n") == ["NoneType=100 3", "1225", "1225"]
    assert not script.err


def test_run_waits_for_a_supervisor_that_lives(start_script: Callable[..., Any]) -> None:
    """run() raised that the supervisor had died, and it was for the user to try again."""
    script = start_script(f"""{KILLING}
queue = TaskQueue()
killer = start_killing(2, 0.1)
queue.run(3)
killer.join()
print(queue.map(abs, range(50)).wait(timeout=20), len(queue.status().workers))
""")
    assert script.end() == "True 3"


def test_calls_of_all_kinds_end_when_supervisors_keep_dying(start_script: Callable[..., Any]) -> None:
    """What was in flight, fed, queued for later or needed by others stayed open for ever, and wait() hung."""
    script = start_script(f"""{KILLING}
queue, other = TaskQueue(workers=2), TaskQueue(stream_key="other", workers=1)
other.submit(abs, -1).result(timeout=20)
other.shutdown()
queue.submit(abs, -1).result(timeout=20)
listed = queue.map(slow, range(3000))
objects = queue.map(slow, [[i] for i in range(3000)])
drawn = queue.map(slow, (i for i in iter(int, 1)))
single = queue.submit(time.sleep, 60)
needs = [queue.submit(abs, single), queue.submit(abs, listed.futures[2999])]
unserved = other.submit(abs, -2)
kill(6, 0.02)
began = time.monotonic()
for batch in (listed, objects):
    print("batch", batch.wait(timeout=20), ends(batch.futures).replace("NoneType", "value"))
print("drawn", drawn.wait(timeout=20), type(drawn.futures[-1].exception()).__name__)
print("single", ends([single, unserved]))
print("needs", ends(needs))
for call in (lambda: queue.submit(abs, -2), lambda: queue.map(abs, [1]), queue.restart_workers):
    try:
        call()
    except Exception as error:
        print("refused", type(error).__name__, error)
queue.shutdown()
with TaskQueue():
    pass
print("took", time.monotonic() - began)
""")
    lines = script.end(timeout=60).split("\n")
    for line in lines[:2]:
        ended = dict(part.split("=") for part in line.split()[2:])
        assert line.startswith("batch True"), line
        assert ended.keys() <= {"PoolError", "value"}, line
        assert int(ended["PoolError"]) + int(ended.get("value", 0)) == 3000
    assert lines[2:4] == ["drawn True PoolError", "single PoolError=2"]
    assert lines[4] in ("needs PoolError=2", "needs InputFailed=1 PoolError=1", "needs InputFailed=2")
    assert lines[5:8] == [
        "refused PoolError The supervisor process keeps dying; its workers cannot be kept. "
        "Call queue.run() to try again."
    ] * 3
    assert float(lines[8].split()[1]) < 10
    assert _said(script, "keeps dying") == 1


def test_the_first_call_ends_when_supervisors_keep_dying_while_they_start(start_script: Callable[..., Any]) -> None:
    script = start_script(f"""{KILLING}
queue = TaskQueue(workers=1)
killer = start_killing(6, 0.03)
batch, single = queue.map(abs, range(50)), queue.submit(abs, -1)
print(batch.wait(timeout=20), ends(batch.futures), ends([single]))
""")
    assert script.end() == "True PoolError=50 PoolError=1"
    assert _said(script, "keeps dying") == 1


@pytest.mark.apart
def test_who_asks_for_workers_after_supervisors_kept_dying_gets_them(start_script: Callable[..., Any]) -> None:
    """Nothing but the kernel's restart helped: run() and a new queue raised the same error as each call."""
    script = start_script(f"""{KILLING}
queue, other = TaskQueue(workers=2), TaskQueue(stream_key="other", workers=1)
batch = other.map(slow, range(1000))
queue.submit(abs, -1).result(timeout=20)
kill(1, 0.02)
for again in ("queue.run(2)", "queue.shutdown(); queue.run(2)", "queue = TaskQueue()"):
    # With the one before.
    kill(5, 0.02)
    batch.wait(timeout=20)
    try:
        queue.submit(abs, -1)
    except Exception as error:
        print(type(error).__name__, flush=True)
    exec(again)
    print(sum(queue.map(abs, range(50)).results(timeout=20)), flush=True)
    # The count begins anew, too.
    kill(1, 0.02)
    print(sum(queue.map(abs, range(50)).results(timeout=20)), flush=True)
    # Its workers start with its next call, as they did at first.
    batch = other.map(slow, range(1000))
    print(batch[0], flush=True)
""")
    assert script.end(timeout=60).split("\n") == ["PoolError", "1225", "1225", "0"] * 3
    assert _said(script, "keeps dying") == 3


def test_open_calls_that_lost_their_supervisor_for_good_and_a_new_start_end_in_one_state(
    start_script: Callable[..., Any],
) -> None:
    script = start_script(f"""{KILLING}
queue = TaskQueue(workers=2)
queue.submit(abs, -1).result(timeout=20)
batch = queue.map(slow, range(60))
kill(6, 0.02)
while queue._core.launcher.failure is None:
    time.sleep(0.0005)
queue.run(2)
later = queue.map(slow, range(50))
print(sum(later.results(timeout=20)), batch.wait(timeout=20), "open" in ends(batch.futures))
""")
    assert script.end() == "1225 True False"


@pytest.mark.apart
def test_calls_on_a_server_of_others_wait_for_others_when_supervisors_keep_dying(
    start_script: Callable[..., Any], start_host: Callable[..., Any], redis_server: Server, new_key: str
) -> None:
    script = start_script(f"""{KILLING}
queue = TaskQueue({redis_server.url!r}, {new_key!r})
queue.run(2)
queue.submit(abs, -1).result(timeout=20)
batch = queue.map(slow, range(100))
kill(6, 0.02)
while queue._core.launcher.failure is None:
    time.sleep(0.01)
print("lost", flush=True)
print(batch.wait(timeout=30), ends(batch.futures))
queue.shutdown()
queue.run(2)
while len(queue.status().workers) < 4:
    time.sleep(0.01)
print("again")
queue.shutdown()
""")
    script.line("lost")
    time.sleep(0.2)
    assert script.process.poll() is None
    start_host(redis_server.url, new_key)
    assert script.end() == "lost\nTrue NoneType=100\nagain"
