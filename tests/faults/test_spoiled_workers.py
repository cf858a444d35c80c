"""A task that spoils its process costs that process, and no other task."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nbqueue import TaskCancelled, TaskTimeout, WorkerDied

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


@pytest.mark.parametrize(("first", "beyond"), [(0, 1000), (3, 256), (3, 100), (150, 1000)])
def test_what_came_after_a_task_that_closes_descriptors_printed_nowhere_or_failed(
    queue: Any, first: int, beyond: int
) -> None:
    """Bad file descriptor, or nothing in its `stdout`, in every later task of that worker."""

    def close() -> int:
        os.write(1, b"closing\n")
        os.closerange(first, beyond)
        return os.getpid()

    def say() -> int:
        print("hello")
        os.system("echo shell >&2")
        return os.getpid()

    queue.run(1)
    for _ in range(2):
        closing = queue.submit(close)
        closer = closing.result(timeout=20)
        later = [queue.submit(say) for _ in range(3)]
        assert closer not in {each.result(timeout=20) for each in later}
        assert {(each.stdout, each.stderr) for each in later} == {("hello\n", "shell\n")}
        assert closing.stdout == ("closing\n" if first else "")


@pytest.mark.parametrize("timeout", [None, 60], ids=["short items", "one by one"])
def test_what_was_in_the_chunk_of_an_item_that_closes_descriptors_fails_and_prints_as_ever(
    queue: Any, tmp_path: Path, timeout: float | None
) -> None:
    """The next one failed. And a worker that gave back the rest of a chunk when its connection was closed began it
    again, without end."""

    def work(x: int) -> int:
        with open(tmp_path / "runs", "a") as file:
            file.write(f"{x}\n")
        if x == 5:
            os.closerange(0, 1000)
        if x == 6:
            print("six")
        if x == 8:
            raise FileNotFoundError
        return x

    queue.run(1)
    batch = queue.task(work, timeout=timeout, chunksize=10).map(range(10))
    results = batch.results(return_exceptions=True, timeout=30)
    assert isinstance(results.pop(8), FileNotFoundError)
    assert results == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    assert batch.futures[6].stdout == "six\n"
    runs = (tmp_path / "runs").read_text().split()
    # The one that failed, maybe since the one before it had closed what it needed, runs again where it is the first.
    assert sorted(set(runs)) == sorted(map(str, range(10)))
    assert len(runs) <= 11


def test_calls_beside_an_async_one_that_closes_descriptors_hung(queue: Any) -> None:
    """What their event loop waits on was gone. They run again elsewhere, it does once more and is charged."""

    async def work(x: int) -> int:
        import asyncio

        if x == 3:
            os.closerange(3, 1000)
        await asyncio.sleep(0.02)
        return x

    queue.run(1)
    results = queue.map(work, range(6)).results(return_exceptions=True, timeout=30)
    died = results.pop(3)
    assert isinstance(died, WorkerDied)
    assert "os.closerange" in died.last_output
    assert results == [0, 1, 2, 4, 5]
    assert queue.submit(work, 7).result(timeout=20) == 7


@pytest.mark.parametrize("lost", ["_selector", "_ssock", "_csock"])
def test_an_async_call_after_a_plain_one_that_closes_its_event_loops_descriptor_hung(queue: Any, lost: str) -> None:
    """Nothing woke the loop."""

    async def look() -> tuple[int, int]:
        import asyncio

        return os.getpid(), getattr(asyncio.get_running_loop(), lost).fileno()

    queue.run(1)
    before, fd = queue.submit(look).result(timeout=20)
    queue.submit(os.close, fd).result(timeout=20)
    future = queue.submit(look)
    assert future.result(timeout=20)[0] != before
    assert future.attempts == 1
