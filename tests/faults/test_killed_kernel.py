"""Whichever process is killed, nothing of ours is left five seconds after the kernel is gone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

KERNEL = """
import os, time
from nbqueue import TaskQueue
queue = TaskQueue(workers=2)

@queue.task
def work(seconds):
    time.sleep(seconds)
    return seconds

work(0).result()
long = [work({seconds}) for _ in range(4)]
while len(queue.status().running) < 2:
    time.sleep(0.01)
print("up", flush=True)
{then}
"""
FIVE_SECONDS = 5


def _up(start_script: Callable[..., Any], seconds: float = 60, then: str = "time.sleep(60)", **kwargs: Any) -> Any:
    script = start_script(KERNEL.format(seconds=seconds, then=then), **kwargs)
    script.line("up")
    return script


def _role(process: psutil.Process) -> str:
    """supervisor, server, template or worker."""
    words = " ".join(process.cmdline())
    if "redis-server" in words or "valkey-server" in words:
        return "server"
    ancestors = process.parents()
    ours = [p for p in ancestors if "nbqueue.worker.supervisor" in " ".join(p.cmdline())]
    return ("supervisor", "template", "worker")[len(ours)]


def _named(script: Any) -> dict[str, list[psutil.Process]]:
    named: dict[str, list[psutil.Process]] = {}
    for process in script.family()[1:]:
        try:
            named.setdefault(_role(process), []).append(process)
        except psutil.NoSuchProcess:
            # Replaced while we looked.
            continue
    return named


def _is_whole(script: Any) -> bool:
    counts = {role: len(processes) for role, processes in _named(script).items()}
    return counts == {"supervisor": 1, "server": 1, "template": 1, "worker": 2}


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _left(script: Any, family: list[psutil.Process]) -> list[str]:
    return [repr(p) for p in family if _alive(p)] + [str(path) for path in script.run.iterdir()]


def _kill_at_once(pids: Sequence[int]) -> None:
    """All stand still before the first one dies, and children die first: none acts on another's death, or is reaped."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in reversed(pids):
        os.kill(pid, signal.SIGKILL)


def test_all_processes_are_where_the_drawing_has_them(start_script: Callable[..., Any]) -> None:
    assert _is_whole(_up(start_script))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_kill_9_on_the_kernel_leaves_nothing(
    method: str, start_script: Callable[..., Any], wait_until: Callable[..., Any]
) -> None:
    script = _up(start_script, env={"NBQUEUE_START_METHOD": method})
    family = script.family()
    assert len(family) >= 5
    assert list(script.run.iterdir())
    os.kill(script.process.pid, signal.SIGKILL)
    script.process.wait()
    wait_until(lambda: not _left(script, family), timeout=FIVE_SECONDS)


def test_a_kernel_that_ends_by_itself_leaves_nothing_and_does_not_linger(
    start_script: Callable[..., Any], wait_until: Callable[..., Any]
) -> None:
    """Ending took ten seconds: the supervisor never saw the end of its socket and had to be killed."""
    then = """
import atexit
from nbqueue.client import launch
supervisor = launch._local._process
atexit.register(lambda: print("code", supervisor.returncode, flush=True))
atexit.register(launch._local.close)
"""
    script = _up(start_script, then=then)
    family = script.family()
    assert "code 0" in script.end()
    wait_until(lambda: not _left(script, family), timeout=FIVE_SECONDS)


def test_what_workers_still_write_while_a_kernel_ends_was_left_in_shared_memory(
    start_script: Callable[..., Any], wait_until: Callable[..., Any]
) -> None:
    script = start_script("""
from nbqueue import TaskQueue
queue = TaskQueue(workers=2)
queue.submit(abs, -1).result()
large = queue.map(lambda size: bytes(size), [3_000_000] * 400)
next(iter(large.as_completed()))
print("up", flush=True)
""")
    script.line("up")
    family = script.family()
    script.process.wait()
    wait_until(lambda: not _left(script, family), timeout=FIVE_SECONDS)
    assert not list(Path("/dev/shm").glob(f"nbqueue-{os.getuid()}-{script.process.pid}-*"))


def test_a_kernel_that_is_terminated_with_its_process_group_leaves_nothing(
    start_script: Callable[..., Any], wait_until: Callable[..., Any]
) -> None:
    """What Jupyter does when it shuts a kernel down the hard way."""
    script = _up(start_script)
    family = script.family()
    os.killpg(script.process.pid, signal.SIGKILL)
    script.process.wait()
    wait_until(lambda: not _left(script, family), timeout=FIVE_SECONDS)


def test_kill_9_on_kernel_and_supervisor_at_once_leaves_no_process(
    start_script: Callable[..., Any], wait_until: Callable[..., Any]
) -> None:
    script = _up(start_script)
    family = script.family()
    supervisor = _named(script)["supervisor"][0]
    _kill_at_once([script.process.pid, supervisor.pid])
    script.process.wait()
    wait_until(lambda: not any(_alive(p) for p in family), timeout=5)


def test_what_a_total_kill_left_is_swept_at_the_next_start(
    start_script: Callable[..., Any], wait_until: Callable[..., Any]
) -> None:
    script = _up(start_script)
    family = script.family()
    _kill_at_once([process.pid for process in family])
    script.process.wait()
    wait_until(lambda: not any(_alive(p) for p in family), timeout=5)
    left = set(script.run.iterdir())
    assert left, "a total kill leaves the directory, or this tests nothing"
    other = _up(start_script, env={"XDG_RUNTIME_DIR": str(script.run)})
    wait_until(lambda: not left & set(script.run.iterdir()))
    assert len(list(script.run.iterdir())) == 1, "the living one's own stays"
    other.process.kill()
    other.process.wait()
    wait_until(lambda: not list(script.run.iterdir()), timeout=FIVE_SECONDS)


@pytest.mark.parametrize("role", ["supervisor", "template", "server"])
def test_kill_9_on_one_process_of_ours_loses_no_work(
    role: str, start_script: Callable[..., Any], wait_until: Callable[..., Any]
) -> None:
    then = "print('results', [f.result(timeout=40) for f in long], flush=True); time.sleep(60)"
    script = _up(start_script, seconds=0.7, then=then)
    family = script.family()
    victim = _named(script)[role][0]
    victim.kill()
    assert script.line("results", timeout=40) == "[0.7, 0.7, 0.7, 0.7]"
    wait_until(lambda: _is_whole(script))
    family += script.family()
    script.process.kill()
    script.process.wait()
    wait_until(lambda: not _left(script, family), timeout=FIVE_SECONDS)


def test_a_child_that_the_kernel_forked_keeps_nothing_alive(
    start_script: Callable[..., Any], wait_until: Callable[..., Any]
) -> None:
    """It holds a copy of the control socket's end, so the supervisor must look at its parent as well."""
    then = "pid = os.fork()\nif pid: print('child', pid, flush=True)\ntime.sleep(60)"
    script = _up(start_script, then=then)
    child = int(script.line("child"))
    try:
        family = [p for p in script.family() if p.pid != child]
        os.kill(script.process.pid, signal.SIGKILL)
        script.process.wait()
        wait_until(lambda: not _left(script, family), timeout=FIVE_SECONDS)
    finally:
        os.kill(child, signal.SIGKILL)
