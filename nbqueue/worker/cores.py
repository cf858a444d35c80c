"""How many cores this process may use, and how many threads a worker's numeric libraries should.

Not the number of cores of the machine: CPU affinity, the cgroup's quota and ``CPU_LIMIT`` (set by
JupyterHub's spawners, so on Binder) are what counts in a container.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["THREAD_VARIABLES", "available_cores", "thread_limits"]

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)


def available_cores(environ: Mapping[str, str] | None = None, root: Path = Path("/")) -> int:
    """Cores that this process may use, at least 1. Parts of a core count as a whole one."""
    environ = os.environ if environ is None else environ
    limits = [float(_affinity())]
    quota = _cgroup_quota(root)
    if quota is not None:
        limits.append(quota)
    try:
        limits.append(float(environ["CPU_LIMIT"]))
    except (KeyError, ValueError):
        # Not set, or not a number: no limit from there.
        pass
    return max(1, math.ceil(min(limit for limit in limits if limit > 0)))


def thread_limits(workers: int, cores: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Environment for workers so that workers × threads ≤ cores; what the user has set stays."""
    threads = str(max(1, cores // max(1, workers)))
    return {name: threads for name in THREAD_VARIABLES if name not in environ}


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroup_quota(root: Path) -> float | None:
    """Cores by the cgroup's CPU quota (v2 ``cpu.max``, v1 ``cpu.cfs_quota_us``), the tightest on the way up."""
    quotas = []
    try:
        own = (root / "proc/self/cgroup").read_text()
    except OSError:
        own = ""
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        base = root / "sys/fs/cgroup"
        if controllers:
            if "cpu" not in controllers.split(","):
                continue
            base = base / "cpu"
        folder = base / path.strip("/")
        for level in (folder, *folder.parents):
            quotas.append(_quota_of(level))
            if level == base:
                break
    # In a container the process's own path may not be visible; the root of the mount is.
    quotas += [_quota_of(root / "sys/fs/cgroup"), _quota_of(root / "sys/fs/cgroup/cpu")]
    found = [q for q in quotas if q is not None]
    return min(found) if found else None


def _quota_of(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        if quota in ("max", "-1"):
            return None
        return int(quota) / int(period)
    except (OSError, ValueError):
        return None
