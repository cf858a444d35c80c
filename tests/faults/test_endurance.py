"""What grows with the number of tasks, and how soon a death is noticed: long, so asked for with ``-m soak``.

Numbers of processes, threads and descriptors are asserted. Memory and times belong to the machine: they are shown.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil
import pytest

from nbqueue import TaskQueue
from nbqueue.stream.keys import GROUP

KERNEL = """
import ctypes, gc, sys, time
from pathlib import Path
from nbqueue import TaskQueue

queue = TaskQueue(workers=2)

@queue.task
def noop(i):
    return i

done = 0
for target in {targets}:
    while done < target:
        # Four in five are calls of their own: those cost most.
        futures, batch = [noop(done + i) for i in range(200)], noop.map(range(done + 200, done + 250))
        assert [future.result() for future in futures] + batch.results() == list(range(done, done + 250))
        done += 250
    del futures, batch
    gc.collect()
    if sys.platform == "linux":
        # What malloc keeps for later depends on how much was in flight at once, not on the number of tasks.
        getattr(ctypes.CDLL(None), "malloc_trim", bool)(0)
    print(f"reached {{done}}.", flush=True)
    while not Path(f"seen {{done}}").exists():
        time.sleep(0.01)
"""
FEW, MANY = 5_000, 50_000
# Memory goes up and down by what was in flight last: whether it grows is seen in several looks.
LOOKS = (FEW, 15_000, 25_000, 35_000, MANY)


def _census(script: Any) -> dict[str, dict[int, psutil.Process]]:
    """Role → processes by number."""
    kernel = script.process.pid
    roles: dict[str, dict[int, psutil.Process]] = {}
    for process in script.family():
        words, parents = " ".join(process.cmdline()), [parent.pid for parent in process.parents()]
        if process.pid == kernel:
            role = "kernel"
        elif "redis-server" in words or "valkey-server" in words:
            role = "server"
        else:
            role = ("supervisor", "template", "workers")[parents.index(kernel)]
        roles.setdefault(role, {})[process.pid] = process
    return roles


def _counts(script: Any) -> dict[int, tuple[str, int, int]]:
    """Process → role, number of threads, number of descriptors."""
    census = _census(script)
    return {
        pid: (role, process.num_threads(), process.num_fds())
        for role, processes in census.items()
        for pid, process in processes.items()
    }


def _rss(script: Any) -> dict[str, float]:
    """Role → MiB, all its processes together."""
    return {
        role: sum(process.memory_info().rss for process in processes.values()) / 2**20
        for role, processes in _census(script).items()
    }


@pytest.mark.soak
def test_soak_50_000_noops_leave_as_many_processes_threads_and_descriptors_as_5_000(
    start_script: Callable[..., Any], wait_until: Callable[..., Any], show: Callable[[str], None]
) -> None:
    script = start_script(KERNEL.format(targets=LOOKS))
    began = time.monotonic()
    script.line(f"reached {FEW}.", timeout=120)
    first = _counts(script)
    roles = sorted(role for role, _, _ in first.values())
    assert roles == ["kernel", "server", "supervisor", "template", "workers", "workers"]
    rss: list[dict[str, float]] = []
    for look in LOOKS:
        script.line(f"reached {look}.", timeout=300)
        wait_until(lambda: _counts(script) == first)
        rss.append(_rss(script))
        (script.run.parent / f"seen {look}").touch()
    show(f"{MANY:,} no-ops took {time.monotonic() - began:.0f} s with 2 workers")
    show(f"RSS in MiB after {', '.join(f'{look:,}' for look in LOOKS)} tasks:")
    for role, few in rss[0].items():
        change = 100 * (rss[-1][role] - few) / few
        show(f"  {role:<10} {'  '.join(f'{look[role]:5.1f}' for look in rss)}  {change:+.1f} %")
    for role in ("kernel", "supervisor", "workers"):
        threads, fds = (sum(n[i] for n in first.values() if n[0] == role) for i in (1, 2))
        show(f"{role}: {threads} threads, {fds} descriptors, after {FEW:,} and after {MANY:,}")
    script.end()


def _nap(note: str) -> None:
    with Path(note).open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(60)


def _pids(note: Path) -> list[int]:
    return [int(line) for line in note.read_text().splitlines()] if note.exists() else []


@pytest.mark.soak
def test_soak_how_soon_a_local_death_is_noticed(
    redis_server: Any, new_key: str, tmp_path: Path, wait_until: Callable[..., Any], show: Callable[[str], None]
) -> None:
    queue = TaskQueue(redis_server.url, new_key)
    queue.run(2)
    keys = queue._core.keys
    noticed: dict[str, list[float]] = {"idle": [], "busy": []}
    replaced: list[float] = []
    with redis_server.client() as client:

        def consumers() -> dict[bytes, bytes]:
            """Slot of this host → consumer; as long as Redis shows it, nobody has reclaimed it."""
            rows = client.xinfo_consumers(keys.normal, GROUP)
            return {row["name"].split(b":")[1]: row["name"] for row in rows}

        def whole() -> bool:
            workers = queue.status().workers
            ready = [worker for worker in workers if worker.state == "idle"]
            return len(ready) == len(workers) == 2 and len(consumers()) == 2

        def kill(pid: int, victim: bytes) -> tuple[float, float]:
            """Seconds until its death has been told to Redis, and until another fetches in its place."""
            began = time.perf_counter()
            os.kill(pid, signal.SIGKILL)
            return (
                _seconds_until(lambda: victim not in consumers().values(), began),
                _seconds_until(lambda: len({*consumers().values()} - {victim}) == 2, began),
            )

        for number, state in enumerate(islice(cycle(noticed), 60)):
            wait_until(whole, timeout=30)
            slots = {worker.pid: str(worker.slot).encode() for worker in queue.status().workers}
            pid, future = next(iter(slots)), None
            if state == "busy":
                note = tmp_path / str(number)
                future = queue.submit(_nap, str(note))
                (pid,) = wait_until(lambda note=note: _pids(note), timeout=30)
            times = kill(pid, consumers()[slots[pid]])
            noticed[state].append(times[0])
            replaced.append(times[1])
            if future is not None:
                # Until it runs again: one that is cancelled in the midst of its imports costs another worker.
                wait_until(lambda note=note: len(_pids(note)) == 2, timeout=30)
                future.cancel()
        wait_until(whole, timeout=30)
    for state, times in noticed.items():
        show(f"death of one {state} worker noticed after {_spread(times)}")
    show(f"its replacement fetches after {_spread(replaced)}")
    queue.shutdown()


def _seconds_until(happened: Callable[[], bool], began: float, timeout: float = 30) -> float:
    """Finer than waiting in steps would tell."""
    while not happened():
        assert time.perf_counter() - began < timeout, "a death was not noticed"
        time.sleep(0.0005)
    return time.perf_counter() - began


def _spread(seconds: list[float]) -> str:
    return (
        f"{1000 * statistics.median(seconds):.1f} ms (median of {len(seconds)}), at most {1000 * max(seconds):.1f} ms"
    )
