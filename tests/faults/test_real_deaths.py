"""Real deaths: each costs its own task only, says what happened, and the next task on that slot runs clean.

What merely raises, or returns what cannot be sent, is in `test_bad_endings`.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from nbqueue import RemoteError, TaskTimeout, WorkerDied


def surroundings() -> dict[str, Any]:
    """What the next task finds."""
    return {
        "cwd": os.getcwd(),
        # pytest itself changes one of the notebook's, for which this process stands.
        "environ": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "path": list(sys.path),
        "signals": {n: str(signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)},
        "interrupt": signal.getsignal(signal.SIGINT).__name__,  # type: ignore[union-attr]
        "timer": signal.getitimer(signal.ITIMER_REAL),
        "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "recursion": sys.getrecursionlimit(),
        "stdin": type(sys.stdin).__name__,
        "zone": time.strftime("%Z"),
        "stdout": (sys.stdout.fileno(), sys.stdout.closed, os.fstat(1).st_size >= 0),
        "stderr": (sys.stderr.fileno(), sys.stderr.closed, os.fstat(2).st_size >= 0),
    }


@pytest.fixture(autouse=True)
def next_task_runs_clean(queue: Any) -> Iterator[None]:
    """On the only worker there is."""
    queue.run(1)
    before = queue.submit(surroundings).result(timeout=20)
    yield
    after = queue.submit(surroundings).result(timeout=20)
    assert {name: after[name] for name in after if after[name] != before[name]} == {}


def crash_in_compiled_code() -> None:
    print("reading where nothing is")
    ctypes.string_at(8)


def leave() -> None:
    print("leaving")
    os._exit(3)


def be_killed() -> None:
    print("saying good-bye", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGKILL)


def abort() -> None:
    os.write(2, b"giving up\n")
    os.abort()


def run_out_of_stack() -> None:
    """What Python would refuse at its own limit; compiled code that recurses does not."""
    resource.setrlimit(resource.RLIMIT_STACK, (2**20, 2**20))
    sys.setrecursionlimit(10**8)

    class Deep:
        def __getattr__(self, name: str) -> Any:
            return getattr(self, name + "x" if len(name) < 3 else name)

    print("deeper")
    # Calls from Python to C to Python use the stack of C.
    print(Deep().a)


@pytest.mark.parametrize(
    ("die", "signum", "code", "said"),
    [
        (crash_in_compiled_code, signal.SIGSEGV, None, ["reading where nothing is", "Fatal Python error", "string_at"]),
        (leave, None, 3, ["leaving"]),
        (be_killed, signal.SIGKILL, None, ["saying good-bye"]),
        (abort, signal.SIGABRT, None, ["giving up"]),
        (run_out_of_stack, signal.SIGSEGV, None, ["deeper", "in __getattr__"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_death_tells_its_signal_or_code_its_memory_its_attempts_and_its_last_output(
    queue: Any, die: Callable[[], None], signum: int | None, code: int | None, said: list[str]
) -> None:
    @queue.task
    def work(i: int) -> int:
        if i == 2:
            die()
        return i

    results = work.options(chunksize=5).map(range(5)).results(return_exceptions=True, timeout=60)
    died = results.pop(2)
    assert isinstance(died, WorkerDied)
    assert results == [0, 1, 3, 4]
    assert (died.signal, died.exitcode, died.attempts) == (signum, code, 2)
    assert died.peak_rss_bytes is not None
    assert died.peak_rss_bytes > 5_000_000
    for words in said:
        assert words in died.last_output
        assert words in str(died)
    how = signal.Signals(signum).name if signum else f"exit code {code}"
    assert how in str(died)
    assert "started 2 times" in str(died)
    assert "Peak memory" in str(died)


def test_what_is_told_is_the_end_of_what_this_call_printed(queue: Any) -> None:
    queue.submit(print, "of another call").result(timeout=20)

    def talk() -> None:
        for i in range(1000):
            print("line", i)
        print("x" * 10_000, flush=True)
        os._exit(1)

    error = queue.submit(talk).exception(timeout=20)
    assert isinstance(error, WorkerDied)
    lines = error.last_output.splitlines()
    assert len(lines) == 10
    assert lines[-2] == "line 999"
    assert lines[-1] == "x" * 200
    assert "another" not in str(error)


def test_a_task_that_ignores_interrupts_is_killed_at_its_limit(queue: Any) -> None:
    def deaf() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("I cannot hear you")
        while True:
            time.sleep(60)

    with pytest.raises(TaskTimeout, match=r"0\.3 s.*killed"):
        queue.task(timeout=0.3)(deaf)().result(timeout=20)


def test_a_task_that_blocks_all_signals_can_be_cancelled(queue: Any, wait_until: Any, tmp_path: Path) -> None:
    def deaf() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        (tmp_path / "pid").write_text(str(os.getpid()))
        while True:
            time.sleep(60)

    future = queue.submit(deaf)
    pid = int(wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    assert future.cancel()
    wait_until(lambda: not psutil.pid_exists(pid))


def test_what_a_task_does_to_its_process_is_undone(queue: Any, tmp_path: Path) -> None:
    def mess() -> int:
        os.chdir(tmp_path)
        os.environ["LEFT"] = "behind"
        os.environ["TZ"] = "Asia/Tokyo"
        time.tzset()
        sys.stdin = None  # type: ignore[assignment]
        sys.path.insert(0, "/left/behind")
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signum, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        sys.setrecursionlimit(5000)
        sys.stdout.close()
        sys.stderr = None  # type: ignore[assignment]
        os.close(1)
        os.close(2)
        return os.getpid()

    pid = queue.submit(mess).result(timeout=20)
    # Longer than the timer that was left running.
    assert queue.submit(lambda: time.sleep(0.6) or os.getpid()).result(timeout=20) == pid
    assert queue.submit(print, "is heard").result(timeout=20) is None


def test_a_thread_that_is_left_running_harms_nobody(queue: Any) -> None:
    def leave_a_thread() -> int:
        def spin() -> None:
            while True:
                time.sleep(0.01)
                sum(range(1000))

        threading.Thread(target=spin, daemon=False).start()
        return os.getpid()

    pid = queue.submit(leave_a_thread).result(timeout=20)
    assert queue.map(abs, range(-100, 0)).results(timeout=20) == list(range(100, 0, -1))
    assert queue.submit(os.getpid).result(timeout=20) == pid


def test_programs_that_a_task_leaves_running_end_with_their_worker(
    queue: Any, wait_until: Any, tmp_path: Path
) -> None:
    notes = tmp_path / "pids"

    def leave_two() -> None:
        program = subprocess.Popen(["sleep", "600"])
        child = os.fork()
        if child == 0:
            time.sleep(600)
            os._exit(0)
        notes.write_text(f"{program.pid} {child}")

    queue.submit(leave_two).result(timeout=20)
    pids = [int(pid) for pid in notes.read_text().split()]
    assert all(psutil.pid_exists(pid) for pid in pids), "a task may leave them for the next one"
    with pytest.raises(WorkerDied):
        queue.submit(os._exit, 3).result(timeout=20)
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def test_an_exception_whose_class_exists_only_in_the_worker_tells_its_story(
    queue: Any, tmp_path: Path
) -> None:
    (tmp_path / "module_of_workers.py").write_text("class OnlyThere(Exception):\n    pass\n")

    def fail() -> None:
        sys.path.insert(0, str(tmp_path))
        import module_of_workers

        raise module_of_workers.OnlyThere("as it happened")

    error = queue.submit(fail).exception(timeout=20)
    assert isinstance(error, RemoteError)
    assert error.type_name == "module_of_workers.OnlyThere"
    assert "as it happened" in str(error)
    assert "raise module_of_workers.OnlyThere" in error.traceback_text


def test_a_task_that_holds_the_interpreter_for_three_leases_is_alive(
    redis_server: Any, new_key: str, start_host: Callable[..., Any], wait_until: Any, tmp_path: Path
) -> None:
    """The heartbeat is not the worker's, and another host must not take the work of a living one."""
    from nbqueue import TaskQueue

    lease_s = 1.0
    for _ in range(2):
        start_host(redis_server.url, new_key, workers=1, lease_s=lease_s)
    queue = TaskQueue(redis_server.url, new_key)
    wait_until(lambda: len(queue.status().workers) == 2, timeout=30)

    def hold(i: int) -> float:
        with (tmp_path / str(i)).open("a") as file:
            file.write("x")
        began = time.monotonic()
        # PyDLL keeps the lock of the interpreter while the function runs.
        ctypes.PyDLL(None).usleep(ctypes.c_uint(int(3 * lease_s * 1e6)))
        return time.monotonic() - began

    futures = [queue.submit(hold, i) for i in range(2)]
    assert all(future.result(timeout=60) >= 2.9 * lease_s for future in futures)
    assert [(tmp_path / str(i)).read_text() for i in range(2)] == ["x", "x"]
    assert [future.attempts for future in futures] == [1, 1]
