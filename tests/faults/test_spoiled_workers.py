"""A task that spoils its process costs that process, and no other task."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nbqueue import TaskCancelled, TaskTimeout

MODULE = '''
import os, time
open(os.environ["HERE"], "w").close()
time.sleep(60)
'''


def load() -> None:
    import slow_to_load  # noqa: F401


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a module says that its import has begun, which takes a minute."""
    (tmp_path / "slow_to_load.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HERE", str(tmp_path / "here"))
    return tmp_path / "here"


def test_a_worker_whose_import_was_cancelled_was_broken_for_all_that_came_later(
    queue: Any, module: Path, wait_until: Callable[..., Any]
) -> None:
    """numpy said for ever: "cannot load module more than once per process"."""
    queue.run(1)
    before = queue.submit(os.getpid).result(timeout=20)
    future = queue.submit(load)
    wait_until(module.exists, timeout=20)
    future.cancel()
    assert queue.submit(os.getpid).result(timeout=20) != before
    with pytest.raises(TaskCancelled):
        future.result()


def test_the_same_of_a_time_limit_and_what_else_was_in_the_chunk_runs(queue: Any, module: Path) -> None:
    def work(x: int) -> int:
        if x == 2:
            import slow_to_load  # noqa: F401
        return os.getpid()

    queue.run(1)
    results = queue.task(work, timeout=1, chunksize=6).map(range(6)).results(return_exceptions=True, timeout=60)
    assert isinstance(results[2], TaskTimeout)
    assert results[0] == results[1]
    assert set(results[3:]) == {results[3]} != {results[0]}
    assert "slow_to_load" not in sys.modules


def test_a_cancelled_task_that_imports_nothing_costs_no_worker(
    queue: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    def wait(here: str) -> None:
        import time

        open(here, "w").close()
        time.sleep(60)

    queue.run(1)
    before = queue.submit(os.getpid).result(timeout=20)
    future = queue.submit(wait, str(tmp_path / "here"))
    wait_until((tmp_path / "here").exists, timeout=20)
    future.cancel()
    assert queue.submit(os.getpid).result(timeout=20) == before


def test_a_task_that_closes_all_descriptors_ran_again_without_end(queue: Any, tmp_path: Path) -> None:
    """As programs do that become daemons."""

    def close(note: str) -> int:
        with open(note, "a") as file:
            file.write("x")
        os.closerange(3, 256)
        return 7

    queue.run(1)
    assert queue.submit(close, str(tmp_path / "runs")).result(timeout=30) == 7
    assert (tmp_path / "runs").read_text() == "x"
    assert queue.submit(abs, -5).result(timeout=30) == 5
