"""Starts one measured process after the other, each fresh, and sees that none is left.

One (peer, work, repetition) is one process. Peers take turns within a work, beginning with another one in each
repetition, so that the machine's noise hits all alike.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.bench.cpu import MARK, lives, marked
from tests.bench.peers import PEERS
from tests.bench.works import Work

__all__ = ["Run", "run_all"]

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = Path(__file__).with_name("notebook.py")
# Ours promises to be gone five seconds after its kernel; others get as long.
LEAVE_S = 5.0
# From SIGTERM to SIGKILL.
GRACE_S = 2.0
# For start and end of a pool, beside the work's own limit.
START_S = 60.0


@dataclass(frozen=True, slots=True)
class Run:
    """What one process measured: metrics, or why there are none. `left` counts processes that had to be ended."""

    work: str
    peer: str
    repetition: int
    metrics: dict[str, float] = field(default_factory=dict)
    failed: str = ""
    left: int = 0
    took_s: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def order(works: Sequence[Work], peers: Sequence[str], repeat: int) -> Iterator[tuple[int, Work, str]]:
    """Who is measured when: all peers in turn for each work, and all works again for each repetition."""
    for repetition in range(repeat):
        for work in works:
            able = [peer for peer in peers if peer == "nbqueue" or not work.alone]
            turn = repetition % max(1, len(able))
            for peer in able[turn:] + able[:turn]:
                yield repetition, work, peer


def run_all(
    works: Sequence[Work],
    peers: Sequence[str],
    *,
    repeat: int,
    quick: bool,
    workers: int,
    limit_s: float | None,
    began: Callable[[Work, str, int], None],
    ended: Callable[[Run], None],
) -> list[Run]:
    """All that was measured; after an interrupt, as much as there is."""
    _adopt_orphans()
    runs: list[Run] = []
    hopeless: dict[tuple[str, str], str] = {}
    try:
        for repetition, work, peer in order(works, peers, repeat):
            began(work, peer, repetition)
            reason = hopeless.get((work.name, peer)) or missing(peer)
            if reason:
                run = Run(work.name, peer, repetition, failed=reason)
            else:
                limit = limit_s or work.limit_s
                run = run_one(work, peer, repetition, quick=quick, workers=workers, limit_s=limit)
                if run.failed.startswith("not done within"):
                    # Once is enough of that.
                    hopeless[work.name, peer] = run.failed
            runs.append(run)
            ended(run)
    except KeyboardInterrupt:
        # What has been measured in an hour is not thrown away.
        pass
    return runs


def missing(peer: str) -> str:
    module = PEERS[peer][2]
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        found = False
    return "" if found else "not installed"


def run_one(work: Work, peer: str, repetition: int, *, quick: bool, workers: int, limit_s: float) -> Run:
    sizes = work.quick if quick else work.sizes
    # Short: sockets lie below it, and their paths may have a hundred characters.
    home = Path(tempfile.mkdtemp(prefix="nbb", dir="/tmp"))
    mark = secrets.token_hex(8)
    began = time.monotonic()
    try:
        out, log = home / "out.json", home / "log.txt"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-c", NOTEBOOK.read_text("utf-8"), peer, work.measure, str(workers),
                 json.dumps(sizes), str(out)],
                cwd=home,
                env=environment_of(home, mark),
                stdin=subprocess.DEVNULL,
                # A file: a daemon that keeps a pipe open would be waited for.
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )  # fmt: skip
            # The file is there when the work is done; the end of the pool is waited for, but not judged.
            late = _ends(process, START_S + limit_s)
        took = time.monotonic() - began
        left = end_all(mark, patience_s=0.0 if late else LEAVE_S)
        process.wait()
        told = _told(out, log, process.returncode, f"not done within {limit_s:g} s" if late else "")
        return Run(work.name, peer, repetition, left=0 if late else left, took_s=round(took, 3), **told)
    finally:
        end_all(mark, patience_s=0.0)
        _bury()
        shutil.rmtree(home, ignore_errors=True)


def _ends(process: subprocess.Popen[bytes], limit_s: float) -> bool:
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return True
    return False


def environment_of(home: Path, mark: str) -> dict[str, str]:
    """Whatever a library leaves lies in the run's own directory. No library is tuned, none tells anybody of its use."""
    for name in ("config", "run"):
        (home / name).mkdir(mode=0o700)
    return {
        **os.environ,
        MARK: mark,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "TMPDIR": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_RUNTIME_DIR": str(home / "run"),
        "IPYTHONDIR": str(home / "ipython"),
        "DASK_CONFIG": str(home / "dask"),
        "DASK_TEMPORARY_DIRECTORY": str(home / "dask-space"),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _told(out: Path, log: Path, code: int, late: str) -> dict[str, Any]:
    try:
        return dict(json.loads(out.read_text("utf-8")))
    except (OSError, ValueError):
        pass
    if late:
        return {"failed": late}
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    ending = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return {"failed": f"ended with {ending}: {lines[-1][:160] if lines else 'no word'}"}


def end_all(mark: str, patience_s: float) -> int:
    """Wait for all that this run started, then end those that stay. Returns how many had to be ended."""
    deadline = time.monotonic() + patience_s
    while (left := _family(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    if not left:
        return 0
    for process in left:
        _signal(process, signal.SIGTERM)
    count = len(left)
    psutil.wait_procs(left, GRACE_S)
    # What they started meanwhile belongs to it, too.
    for _ in range(5):
        left = _family(mark)
        for process in left:
            _signal(process, signal.SIGKILL)
        psutil.wait_procs(left, GRACE_S)
    return count


def _family(mark: str) -> list[psutil.Process]:
    found = {process.pid: process for process in marked(mark)}
    if _adopting:
        found.update((child.pid, child) for child in psutil.Process().children(recursive=True) if lives(child))
    return list(found.values())


# Once this process is nothing but the runner: whoever is below it was started by a run.
_adopting = False


def _adopt_orphans() -> None:
    """Linux hands us what a dead parent leaves behind, so that nothing leaves the family."""
    global _adopting
    _adopting = True
    if sys.platform == "linux":
        import ctypes

        PR_SET_CHILD_SUBREAPER = 36
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _bury() -> None:
    """Adopted children that have ended stay zombies until somebody asks. Only when no child of our own runs."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        # None is left.
        pass


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        # It went by itself.
        pass
