"""How many workers there should be: what this process may use, not what the machine has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nbqueue.worker import cores
from nbqueue.worker.cores import THREAD_VARIABLES, available_cores, thread_limits


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cores, "_affinity", lambda: 8)


def _write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_without_limits_the_affinity_counts(tmp_path: Path):
    assert available_cores({}, tmp_path) == 8


def test_a_quota_of_cgroup_v2_counts_parts_of_a_core_as_a_whole_one(tmp_path: Path):
    _write(tmp_path, proc__self__cgroup="0::/user/job\n", sys__fs__cgroup__user__job__cpu_dot_max="150000 100000\n")
    assert available_cores({}, tmp_path) == 2


def test_the_tightest_quota_on_the_way_up_counts(tmp_path: Path):
    _write(
        tmp_path,
        proc__self__cgroup="0::/user/job\n",
        sys__fs__cgroup__user__job__cpu_dot_max="max 100000\n",
        sys__fs__cgroup__user__cpu_dot_max="300000 100000\n",
    )
    assert available_cores({}, tmp_path) == 3


def test_a_container_that_sees_only_its_own_root(tmp_path: Path):
    _write(tmp_path, proc__self__cgroup="0::/elsewhere\n", sys__fs__cgroup__cpu_dot_max="100000 100000\n")
    assert available_cores({}, tmp_path) == 1


def test_a_quota_of_cgroup_v1(tmp_path: Path):
    folder = tmp_path / "sys/fs/cgroup/cpu/job"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text("400000\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    _write(tmp_path, proc__self__cgroup="3:cpu,cpuacct:/job\n2:memory:/job\n")
    assert available_cores({}, tmp_path) == 4


@pytest.mark.parametrize(("limit", "expected"), [("1", 1), ("2.0", 2), ("0.5", 1), ("16", 8), ("many", 8), ("0", 8)])
def test_the_limit_that_binder_sets(tmp_path: Path, limit: str, expected: int):
    assert available_cores({"CPU_LIMIT": limit}, tmp_path) == expected


def test_the_affinity_of_this_process_is_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    assert cores._affinity() == len(os.sched_getaffinity(0))


def test_workers_times_threads_fit_the_cores():
    assert thread_limits(4, 8, {}) == dict.fromkeys(THREAD_VARIABLES, "2")
    assert thread_limits(16, 8, {})["OMP_NUM_THREADS"] == "1"


def test_what_the_user_has_set_stays():
    assert "OMP_NUM_THREADS" not in thread_limits(4, 8, {"OMP_NUM_THREADS": "7"})
