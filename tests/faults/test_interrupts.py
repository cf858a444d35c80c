"""Interrupting a cell cancels what it waited for, queued and running; the next cell finds a whole pool."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import psutil

KERNEL = """
import _thread, asyncio, os, shutil, sys, threading, time
from pathlib import Path
import nbqueue
from nbqueue import TaskQueue
queue = TaskQueue(workers=2)
notes = Path("notes")
notes.mkdir()

@queue.task
def work(i):
    (notes / str(i)).write_text(str(os.getpid()))
    time.sleep(60)

def started(n):
    while len(list(notes.iterdir())) < n:
        time.sleep(0.01)
    _thread.start_new_thread(say_when_waiting, ())

def say_when_waiting():
    # Blocked in the wait itself: an interrupt that comes sooner finds nothing that is waited for.
    main = threading.main_thread().ident
    names = set()
    while not names & {"wait_until", "as_completed", "wait", "select"}:
        time.sleep(0.001)
        frame, names = sys._current_frames()[main], set()
        while frame is not None:
            names.add(frame.f_code.co_name)
            frame = frame.f_back
    print(way, "waiting", flush=True)

def one():
    future = work(0)
    futures.append(future)
    started(1)
    return future

def many():
    futures.extend(work(i) for i in range(6))
    started(2)
    return futures

def batch():
    batch = work.map(range(6))
    futures.extend(batch.futures)
    started(2)
    return batch

async def awaited(make):
    return await make()
"""

WAYS = {
    "result": "one().result()",
    "call": "one()()",
    "result-with-a-limit": "one().result(timeout=50)",
    "gather": "nbqueue.gather(many())",
    "wait": "nbqueue.wait(many())",
    "as_completed": "list(nbqueue.as_completed(many()))",
    "batch": "batch().results()",
    "iteration": "list(batch())",
    "indexing": "batch()[3]",
    "batch.as_completed": "list(batch().as_completed())",
    "await": "asyncio.run(awaited(one))",
    "await-batch": "asyncio.run(awaited(batch))",
}
ALL_WAYS = f"""
ways = {WAYS!r}
for way, wait in ways.items():
    futures = []
    try:
        exec(compile(wait, "<cell>", "exec"))
    except KeyboardInterrupt:
        print(way, "interrupted", flush=True)
    print(way, "ended", all(future.cancelled() for future in futures), flush=True)
    print(way, "next", queue.submit(abs, -3).result(timeout=20), flush=True)
    print(way, "map", sum(queue.map(abs, range(-9, 0)).results(timeout=20)), flush=True)
    print(way, "started", len(list(notes.iterdir())), flush=True)
    deadline = time.monotonic() + 10
    while (running := len(queue.status().running)) and time.monotonic() < deadline:
        time.sleep(0.01)
    print(way, "running", running, flush=True)
    shutil.rmtree(notes)
    notes.mkdir()
"""


def test_an_interrupt_cancels_all_that_was_waited_for_and_the_next_call_works(
    start_script: Callable[..., Any],
) -> None:
    script = start_script(KERNEL + ALL_WAYS)
    for way in WAYS:
        script.line(f"{way} waiting")
        os.kill(script.process.pid, signal.SIGINT)
        script.line(f"{way} interrupted")
        assert script.line(f"{way} ended") == "True", f"{way}: some go on"
        assert script.line(f"{way} next") == "3", way
        assert script.line(f"{way} map") == "45", way
        assert int(script.line(f"{way} started")) <= 2, f"{way}: nothing that was queued may start afterwards"
        assert script.line(f"{way} running") == "0", way
    script.end()


def test_ctrl_c_in_a_terminal_reaches_the_cell_and_not_the_workers(start_script: Callable[..., Any]) -> None:
    """The terminal sends SIGINT to the whole foreground group; supervisor and workers are not in it.

    What is interrupted is what was waited for; the other calls go on.
    """
    script = start_script(
        KERNEL
        + """
way, futures = "one", []
try:
    many()[0].result()
except KeyboardInterrupt:
    print("cancelled", [future.cancelled() for future in futures], flush=True)
time.sleep(60)
"""
    )
    script.line("one waiting")
    family = script.family()[1:]
    os.killpg(script.process.pid, signal.SIGINT)
    assert script.line("cancelled") == "[True, False, False, False, False, False]"
    assert all(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


AT_ITS_END = """
import atexit, sys, threading, time
from pathlib import Path
from nbqueue import TaskQueue
from nbqueue.client import launch

def say_when(name, there):
    def look():
        while not there():
            time.sleep(0.001)
        print(name, flush=True)
    threading.Thread(target=look, daemon=True).start()

def waits():
    frame, names = sys._current_frames()[threading.main_thread().ident], set()
    while frame is not None:
        names.add(frame.f_code.co_name)
        frame = frame.f_back
    return "drain" in names and "_wait" in names

with TaskQueue(workers=1) as queue:
    future = queue.submit(time.sleep, 60)
    while not future.running():
        time.sleep(0.001)
    atexit.register(print, "ending", flush=True)
    print("supervisor", launch.local_launcher()._process.pid, flush=True)
    while not Path("go").exists():
        time.sleep(0.001)
    say_when("waiting", waits)
    say_when("cancelling", lambda: any(t.name == "nbqueue-interrupt" for t in threading.enumerate()))
"""


SHUT_DOWN_LATE = """
import atexit
# Registered first, so it runs when everything else has been cleaned up.
atexit.register(lambda: print("over", queue.shutdown(), flush=True))
from nbqueue import TaskQueue
queue = TaskQueue(workers=1)
print("first", queue.submit(abs, -1).result(), flush=True)
"""


def test_a_queue_that_is_shut_down_while_python_ends_raises_nothing(
    start_script: Callable[..., Any], wait_until: Callable[..., Any]
) -> None:
    """A thread that was stopping workers when Python ended left a traceback, and might have started a supervisor."""
    script = start_script(SHUT_DOWN_LATE)
    assert script.line("first") == "1"
    family = script.family()[1:]
    assert script.line("over") == "None"
    script.end()
    wait_until(lambda: not any(map(_lives, family)))
    assert "Error" not in script.text


STARTS_LATE = """
import atexit, threading, time
# Registered first, so it runs when everything else has been cleaned up.
atexit.register(lambda: [t.join(20) for t in threading.enumerate() if t.name == "nbqueue-start"])
from nbqueue import TaskQueue
from nbqueue.client.launch import LocalLauncher
start = LocalLauncher.start
def late(launcher, *args):
    for _ in range(20_000):
        if launcher.closing:
            break
        time.sleep(0.001)
    return start(launcher, *args)
LocalLauncher.start = late
TaskQueue(workers=1).submit(abs, -1).cancel()
print("made", "one", flush=True)
"""


def test_who_ends_python_before_the_workers_are_there_is_not_told_that_none_can_be_started(
    start_script: Callable[..., Any],
) -> None:
    script = start_script(STARTS_LATE)
    assert script.line("made") == "one"
    script.end()
    assert "nbqueue" not in script.text


def test_one_who_presses_again_and_again_at_the_end_of_a_with_block_sees_no_traceback_of_ours(
    start_script: Callable[..., Any], wait_until: Callable[..., Any]
) -> None:
    """The third struck where Python ends, in the midst of cleaning up: a traceback, and things left behind."""
    script = start_script(AT_ITS_END)
    supervisor = psutil.Process(int(script.line("supervisor")))
    family = script.family()[1:]
    # So that none of what is waited for comes to pass.
    supervisor.suspend()
    try:
        (script.run.parent / "go").touch()
        for stage in ("waiting", "cancelling", "ending"):
            script.line(stage)
            os.kill(script.process.pid, signal.SIGINT)
        script.process.wait(20)
        wait_until(lambda: not any(map(_lives, family)))
    finally:
        if _lives(supervisor):
            supervisor.kill()
    wait_until(lambda: script.text.count("KeyboardInterrupt") == 1)
    assert "KeyboardInterrupt: the work is still being cancelled." in script.text
    assert "Exception ignored" not in script.text
    assert "nbqueue/" not in script.text
    assert not [path for path in script.run.iterdir() if path.name.startswith("nbqueue-")]


STORM = """
import asyncio, os, random, signal, threading, time
from nbqueue import TaskQueue, as_completed, gather, wait
queue = TaskQueue(workers=2)
ident = queue.task(lambda x: x)

async def awaited():
    return await asyncio.gather(*[ident(i) for i in range(100)])

ways = [
    lambda: ident.map(range(20_000)).results(),
    lambda: list(ident.map(range(20_000))),
    lambda: [future.result() for future in ident.map(range(3_000)).as_completed()],
    lambda: [ident(i) for i in range(300)],
    lambda: gather([ident(i) for i in range(300)]),
    lambda: list(as_completed([ident(i) for i in range(300)])),
    lambda: wait([ident(i) for i in range(300)]),
    lambda: asyncio.run(awaited()),
    queue.cancel,
]
ident(0).result()
draw = random.Random(5)
struck = 0
for number in range(90):
    timer = threading.Timer(draw.expovariate(50), os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        ways[number % len(ways)]()
        timer.join()
    except KeyboardInterrupt:
        struck += 1
    try:
        timer.join()
    except KeyboardInterrupt:
        pass
    queue.cancel()
    assert queue.submit(abs, -3).result(timeout=20) == 3, number
print("struck", struck > 60, flush=True)
"""


def test_interrupts_at_any_moment_leave_the_queue_usable(start_script: Callable[..., Any]) -> None:
    script = start_script(STORM)
    assert script.line("struck", timeout=120) == "True"
    script.end()
