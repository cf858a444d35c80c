"""The measured process and all that it started: who they are, and how much CPU time each role used.

All carry a mark in their environment, so that daemons which left the family are found; those that wrote over it with a
title of their own (redis-server, ray's workers) are found as children of others.
"""

from __future__ import annotations

import os
from pathlib import Path

import psutil

__all__ = ["MARK", "CpuMeter", "lives", "marked"]

MARK = "NBQUEUE_BENCH_RUN"


def marked(mark: str) -> list[psutil.Process]:
    """Every living process that was started, however indirectly, with this mark."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found[process.pid] = process
                found.update((child.pid, child) for child in process.children(recursive=True))
        except psutil.Error:
            # It has ended, or is somebody else's.
            pass
    return [process for process in found.values() if lives(process)]


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class CpuMeter:
    """Counts from when it is made. A process that ends meanwhile is not counted."""

    def __init__(self) -> None:
        self._before = self._of_others() | self._of_ours()

    def since(self) -> dict[str, float]:
        """Seconds of CPU time by role."""
        # Ours comes first here and last above: to look for the others among all processes takes us milliseconds.
        now = self._of_ours() | self._of_others()
        spent: dict[str, float] = {}
        for key, used in now.items():
            spent[key[1]] = spent.get(key[1], 0.0) + used - self._before.get(key, 0.0)
        return spent

    @staticmethod
    def _of_ours() -> dict[tuple[int, str], float]:
        return {(os.getpid(), "kernel"): cpu_s(psutil.Process())}

    @staticmethod
    def _of_others() -> dict[tuple[int, str], float]:
        found = {}
        for process in marked(os.environ.get(MARK, "")):
            try:
                if process.pid != os.getpid():
                    found[process.pid, _role(process)] = cpu_s(process)
            except psutil.Error:
                # It has just ended.
                pass
        return found


def _role(process: psutil.Process) -> str:
    if process.name().startswith(("redis-", "valkey-")):
        return "server"
    if any("nbqueue.worker.supervisor" in part for part in process.cmdline()):
        # The fork template and the workers keep its command line.
        return "supervisor" if process.ppid() == os.getpid() else "workers"
    return "workers"


def cpu_s(process: psutil.Process) -> float:
    """Nanosecond counters of the scheduler where there are any (Linux); else ticks of 10 ms."""
    tasks = Path(f"/proc/{process.pid}/task")
    try:
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9
    except (OSError, ValueError, IndexError):
        times = process.cpu_times()
        return float(times.user + times.system)
