"""What a task has changed around it is put back once, after its report has left, and before the next call begins."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# In a process of its own, since this one's surroundings are the session's.
PROCESS = """
import os, sys, threading
from nbqueue.stream.records import Setting
from nbqueue.worker.surroundings import Surroundings

say = open(os.dup(1), "w")
for fd in (1, 2):
    os.dup2(os.memfd_create("tape"), fd)
surroundings = Surroundings()
surroundings.own_output()
"""

# What a task does → whether nothing was printed, nor anything done that hides it.
GLANCES = {
    "pass": True,
    "sys.stdout.flush()": True,
    "print('x')": False,
    "print('x', end='', file=sys.stderr)": False,
    "sys.stdout.buffer.write(b'x')": False,
    "os.write(1, b'x')": False,
    "os.write(2, b'x')": False,
    "os.system('echo x')": False,
    "sys.stdout = sys.stderr": False,
    "del sys.stderr": False,
    "sys.stdout.close()": False,
    "sys.stderr.detach()": False,
    "os.closerange(3, 256)": False,
}


nameless_files = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux has files without a name")


def told_by(code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{PROCESS}{code}\nsay.close()"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@nameless_files
def test_what_is_as_it_should_be_is_not_put_back_again_unless_a_thread_is_left() -> None:
    said = told_by("""
put_back = []
restore = surroundings.restore
surroundings.restore = lambda: (put_back.append(1), restore())

def look():
    print(len(put_back), surroundings.clean, file=say)

setting = Setting(os.getcwd(), tuple(sys.path), ())
surroundings.apply(setting)
look()
surroundings.apply(setting)
look()
surroundings.apply(Setting("/", tuple(sys.path), (("OF_THE_SETTING", "x"),)))
look()
assert (os.getcwd(), os.environ["OF_THE_SETTING"]) == ("/", "x")

# As after a task.
surroundings.clean = False
os.chdir("/tmp")
surroundings.restore()
look()
assert os.getcwd() == "/"

# A worker has two of its own.
gate = threading.Event()
threads = [threading.Thread(target=gate.wait) for _ in range(2)]
for thread in threads:
    thread.start()
surroundings.clean = False
surroundings.restore()
look()
gate.set()
for thread in threads:
    thread.join()
surroundings.restore()
look()
""")
    assert said == ["1 True", "1 True", "2 True", "3 True", "4 False", "5 True"]


@nameless_files
def test_a_glance_misses_nothing_that_was_printed() -> None:
    said = told_by(f"""
for done in {list(GLANCES)!r}:
    ends = surroundings.restore_output()
    if not os.fork():
        exec(done)
        os._exit(surroundings.is_silent(ends))
    print(os.waitstatus_to_exitcode(os.wait()[1]), file=say)
""")
    assert dict(zip(GLANCES, said, strict=True)) == {done: str(int(silent)) for done, silent in GLANCES.items()}


def test_what_a_thread_changes_when_its_task_is_over_is_put_back_before_the_next_call(
    queue: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    def leave(folder: str) -> None:
        import threading
        import time

        def move() -> None:
            while not os.path.exists(f"{folder}/go"):
                time.sleep(0.005)
            os.chdir(folder)
            open(f"{folder}/moved", "w").close()

        threading.Thread(target=move).start()

    queue.run(1)
    before = queue.submit(os.getcwd).result(timeout=20)
    queue.submit(leave, str(tmp_path)).result(timeout=20)
    (tmp_path / "go").touch()
    wait_until((tmp_path / "moved").exists)
    assert queue.submit(os.getcwd).result(timeout=20) == before


def test_where_a_task_has_led_its_descriptors_the_next_one_does_not_print(queue: Any, tmp_path: Path) -> None:
    def lead(path: str) -> None:
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), 1)

    queue.run(1)
    queue.submit(lead, str(tmp_path / "elsewhere")).result(timeout=20)
    future = queue.submit(os.write, 1, b"here\n")
    assert future.result(timeout=20) == 5
    assert future.stdout == "here\n"
    assert (tmp_path / "elsewhere").read_bytes() == b""


@nameless_files
def test_descriptors_are_known_by_their_files_and_where_those_have_no_marks_too() -> None:
    said = told_by("""
def lead_elsewhere():
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    # And one to where the other leads.
    os.dup2(surroundings.tapes[0], 2)

def names():
    return [os.fstat(fd).st_ino for fd in (1, 2)]

home = names()
for marked in (True, False):
    if not marked:
        surroundings._is_marked = lambda *_: False
    lead_elsewhere()
    assert names() != home
    surroundings.tidy()
    print(marked, names() == home, file=say)
    surroundings.tidy()
    assert names() == home
""")
    assert said == ["True True", "False True"]


def test_a_worker_that_cannot_be_put_right_is_replaced_and_what_it_returned_counts(queue: Any) -> None:
    def spoil() -> int:
        os.environ = None  # type: ignore[assignment]  # noqa: B003 - no environment can be made of that
        return os.getpid()

    queue.run(1)
    spoiled = queue.submit(spoil).result(timeout=20)
    assert queue.submit(os.getpid).result(timeout=20) != spoiled
    # The same where others wait behind it.
    futures = [queue.submit(spoil), *(queue.submit(os.getpid) for _ in range(3))]
    spoiled, *others = (future.result(timeout=20) for future in futures)
    assert spoiled not in others


def test_a_clock_that_a_task_has_set_does_not_end_the_worker_that_waits(queue: Any) -> None:
    def wind_up() -> int:
        import signal

        signal.setitimer(signal.ITIMER_REAL, 0.05)
        return os.getpid()

    def wait() -> int:
        import time

        time.sleep(0.1)
        return os.getpid()

    queue.run(1)
    assert queue.submit(wind_up).result(timeout=20) == queue.submit(wait).result(timeout=20)
