"""A worker that is killed, frozen or crashes costs the task that it ran, and nothing else."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from nbqueue import WorkerDied


def _stand_in(path: Path) -> None:
    """Say who runs this, then stay until killed."""
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(120)


def _pids(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def _whole(queue: Any, workers: int) -> bool:
    living = [worker for worker in queue.status().workers if worker.state in ("idle", "busy")]
    return len(living) == workers and all(psutil.pid_exists(worker.pid) for worker in living)


def test_a_call_that_holds_the_interpreter_holds_up_neither_what_is_done_nor_what_waits(
    queue: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    """The worker had fetched all three together, since its calls had been short; and it cannot give them back."""
    runs = tmp_path / "runs"

    def note(name: str) -> str:
        with runs.open("a") as file:
            file.write(f"{name}\n")
        return name

    def in_c() -> None:
        note("in_c")
        re.match("(a+)+$", "a" * 60 + "b")

    queue.run(1)
    queue.shutdown()
    for number in range(50):
        queue.submit(abs, number)
    before, holds, after = queue.submit(note, "before"), queue.submit(in_c), queue.submit(note, "after")
    queue.run(1)
    assert before.result(timeout=20) == "before"
    wait_until(lambda: "in_c" in runs.read_text())
    queue.run(2)
    assert after.result(timeout=20) == "after"
    assert not holds.done()
    holds.cancel()
    # The one whose call was taken back works on.
    assert queue.map(abs, range(50)).results() == list(range(50))
    assert sorted(runs.read_text().split()) == ["after", "before", "in_c"]


def test_kill_9_on_one_of_200_tasks_costs_that_task_alone(
    queue: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    notes = tmp_path / "pids"

    @queue.task
    def work(i: int) -> int:
        if i == 77:
            _stand_in(notes)
        return i * i

    batch = work.map(range(200))
    for attempt in (1, 2):
        wait_until(lambda attempt=attempt: len(_pids(notes)) == attempt, timeout=20)
        os.kill(_pids(notes)[-1], signal.SIGKILL)
    results = batch.results(return_exceptions=True, timeout=20)

    died = results[77]
    assert isinstance(died, WorkerDied)
    assert (died.signal, died.attempts) == (signal.SIGKILL, 2)
    assert "work" in str(died)
    assert "SIGKILL" in str(died)
    del results[77]
    assert results == [i * i for i in range(200) if i != 77]
    wait_until(lambda: _whole(queue, 2))
    assert len(_pids(notes)) == 2


def test_a_killed_worker_costs_one_attempt_not_the_result(
    queue: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    notes = tmp_path / "pids"

    @queue.task
    def die_once() -> str:
        if len(_pids(notes)) == 0:
            _stand_in(notes)
        return "survived"

    future = die_once()
    wait_until(lambda: _pids(notes), timeout=20)
    os.kill(_pids(notes)[0], signal.SIGKILL)
    assert future.result(timeout=20) == "survived"
    assert future.attempts == 2


def test_a_worker_killed_while_idle_is_replaced(queue: Any, wait_until: Callable[..., Any]) -> None:
    assert queue.submit(abs, -1).result(timeout=20) == 1
    wait_until(lambda: _whole(queue, 2))
    before = {worker.pid for worker in queue.status().workers}
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: _whole(queue, 2) and not before & {worker.pid for worker in queue.status().workers})
    assert queue.submit(abs, -2).result(timeout=20) == 2


def test_a_task_that_leaves_is_told_its_exit_code(queue: Any) -> None:
    with pytest.raises(WorkerDied, match="exit code 3") as caught:
        queue.submit(os._exit, 3).result(timeout=20)
    assert (caught.value.signal, caught.value.exitcode, caught.value.attempts) == (None, 3, 2)
    assert queue.submit(abs, -2).result(timeout=20) == 2


def test_a_segfault_ends_one_task(queue: Any) -> None:
    @queue.task
    def touch(i: int) -> int:
        if i == 3:
            ctypes.string_at(8)
        return i

    results = touch.map(range(8)).results(return_exceptions=True, timeout=30)
    assert isinstance(results[3], WorkerDied)
    assert results[3].signal == signal.SIGSEGV
    assert results[:3] + results[4:] == [0, 1, 2, 4, 5, 6, 7]


def test_retries_are_not_spent_on_crashes(queue: Any) -> None:
    """The crash cap is its own: a task that kills its worker is not run five times because retries=5."""
    task = queue.task(retries=5)(os._exit)
    with pytest.raises(WorkerDied) as caught:
        task(1).result(timeout=20)
    assert caught.value.attempts == 2


def test_a_frozen_worker_goes_on_when_it_thaws(queue: Any, wait_until: Callable[..., Any], tmp_path: Path) -> None:
    started, go = tmp_path / "started", tmp_path / "go"

    @queue.task
    def wait_for_it() -> str:
        started.write_text(str(os.getpid()))
        while not go.exists():
            time.sleep(0.01)
        return "thawed"

    future = wait_for_it()
    wait_until(lambda: started.exists() and started.read_text(), timeout=20)
    pid = int(started.read_text())
    os.kill(pid, signal.SIGSTOP)
    go.touch()
    # The other worker goes on meanwhile, and a stopped process is not a dead one.
    assert queue.map(abs, range(-50, 0)).results(timeout=20) == list(range(50, 0, -1))
    assert not future.done()
    os.kill(pid, signal.SIGCONT)
    assert future.result(timeout=20) == "thawed"
    assert future.attempts == 1


def test_a_frozen_worker_is_killed_at_its_time_limit(queue: Any) -> None:
    task = queue.task(timeout=0.3)(lambda: os.kill(os.getpid(), signal.SIGSTOP))
    with pytest.raises(Exception, match="timeout of 0.3 s"):
        task().result(timeout=20)
    assert queue.submit(abs, -2).result(timeout=20) == 2


def test_what_a_dead_worker_had_fetched_ahead_is_done_by_others(queue: Any, tmp_path: Path) -> None:
    """Only the task that ran is charged; those that merely lay in its hands just go back."""
    flag = tmp_path / "died"

    @queue.task
    def work(i: int) -> int:
        if i == 500 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return i

    futures = [work(i) for i in range(1000)]
    assert [future.result(timeout=30) for future in futures] == list(range(1000))
    assert [i for i, future in enumerate(futures) if future.attempts != 1] == [500]


def test_a_child_that_a_task_forks_and_that_outlives_it_hides_no_death(queue: Any, tmp_path: Path) -> None:
    """A grandchild keeps every pipe and socket of the worker open; the death is seen all the same."""
    note = tmp_path / "grandchild"

    @queue.task
    def leave_a_child() -> None:
        if not note.exists():
            pid = os.fork()
            if pid == 0:
                os.setsid()
                time.sleep(60)
                os._exit(0)
            note.write_text(str(pid))
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        with pytest.raises(WorkerDied):
            leave_a_child().result(timeout=20)
        assert queue.submit(abs, -2).result(timeout=20) == 2
    finally:
        os.kill(int(note.read_text()), signal.SIGKILL)


def test_workers_that_cannot_be_reached_by_the_terminal_ignore_ctrl_c(queue: Any, wait_until: Any) -> None:
    assert queue.submit(abs, -1).result(timeout=20) == 1
    wait_until(lambda: _whole(queue, 2))
    pids = {worker.pid for worker in queue.status().workers}
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    assert queue.map(abs, range(-50, 0)).results(timeout=20) == list(range(50, 0, -1))
    assert {worker.pid for worker in queue.status().workers} == pids


def test_killing_the_fork_template_costs_nobody_the_result(
    queue: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    notes, go = tmp_path / "pids", tmp_path / "go"

    @queue.task
    def work(i: int) -> int:
        if i == 0:
            with notes.open("a") as file:
                file.write(f"{os.getppid()}\n")
            while not go.exists():
                time.sleep(0.01)
        return i

    futures = [work(i) for i in range(20)]
    wait_until(lambda: _pids(notes), timeout=20)
    template = _pids(notes)[0]
    os.kill(template, signal.SIGKILL)
    wait_until(lambda: len(_pids(notes)) == 2, timeout=20)
    go.touch()
    assert [future.result(timeout=20) for future in futures] == list(range(20))
    assert _pids(notes)[1] != template
    wait_until(lambda: _whole(queue, 2))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a worker's parent is the supervisor")
def test_a_task_that_kills_its_parent_does_not_do_so_for_ever(queue: Any, tmp_path: Path) -> None:
    """It ran 83 times in eight seconds: nobody was to blame for the end of the fork template."""
    notes = tmp_path / "pids"

    @queue.task
    def kill_the_template() -> None:
        with notes.open("a") as file:
            file.write(f"{os.getpid()}\n")
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)

    with pytest.raises(WorkerDied):
        kill_the_template().result(timeout=60)
    assert 2 <= len(_pids(notes)) <= 5
    assert queue.submit(abs, -2).result(timeout=20) == 2


def test_a_task_that_kills_its_supervisor_again_and_again_ends_with_an_error(start_script: Callable[..., Any]) -> None:
    """After a while no supervisor is started any more, and whoever waited then waited for ever."""
    script = start_script("""
import os, signal, time
from nbqueue import TaskQueue
queue = TaskQueue(workers=1)
def kill():
    os.kill(os.getsid(0), signal.SIGKILL)
    time.sleep(60)
for call in (lambda: queue.submit(kill), lambda: queue.submit(len, [1])):
    try:
        call().result(timeout=60)
    except Exception as error:
        print("ended", type(error).__name__, error, flush=True)
""")
    out = script.end(timeout=120)
    assert out.count("ended PoolError The supervisor process keeps dying") == 2
