"""A worker that dies while calls of async functions run beside each other: each is charged, and none is lost."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nbqueue import WorkerDied


def _runs(path: Path) -> list[tuple[str, int]]:
    lines = path.read_text().split() if path.exists() else []
    return [(line.split(":")[0], int(line.split(":")[1])) for line in lines]


@pytest.fixture
def sleepers(queue: Any, tmp_path: Path, wait_until: Callable[..., Any]) -> tuple[list[Any], Path, Path]:
    """Three calls that run in one worker, where they note who runs them, and the gate that ends them."""
    runs, gate = tmp_path / "runs", tmp_path / "gate"

    @queue.task
    async def sleeper(name: str) -> str:
        with runs.open("a") as file:
            file.write(f"{name}:{os.getpid()}\n")
        while not gate.exists():
            await asyncio.sleep(0.005)
        return name

    queue.run(1)
    futures = [sleeper(name) for name in "abc"]
    wait_until(lambda: len(_runs(runs)) == 3, timeout=20)
    assert len({pid for _, pid in _runs(runs)}) == 1
    return futures, runs, gate


def test_each_call_of_a_killed_worker_is_charged_and_runs_again(
    sleepers: tuple[list[Any], Path, Path], wait_until: Callable[..., Any]
) -> None:
    futures, runs, gate = sleepers
    os.kill(_runs(runs)[0][1], signal.SIGKILL)
    wait_until(lambda: len(_runs(runs)) == 4, timeout=20)
    gate.touch()
    assert [future.result(timeout=30) for future in futures] == ["a", "b", "c"]
    assert [future.attempts for future in futures] == [2, 2, 2]


def test_at_the_cap_each_ends_for_itself(
    sleepers: tuple[list[Any], Path, Path], queue: Any, wait_until: Callable[..., Any]
) -> None:
    """One that has cost a worker its life runs alone, so that the next death is that one's, and nobody else's."""
    futures, runs, _ = sleepers
    os.kill(_runs(runs)[0][1], signal.SIGKILL)
    for count in (4, 5, 6):
        wait_until(lambda count=count: len(_runs(runs)) == count, timeout=20)
        os.kill(_runs(runs)[-1][1], signal.SIGKILL)
    for future in futures:
        with pytest.raises(WorkerDied, match="SIGKILL") as caught:
            future.result(timeout=30)
        assert (caught.value.signal, caught.value.attempts) == (signal.SIGKILL, 2)
    assert sorted(name for name, _ in _runs(runs)) == sorted("abcabc")
    assert queue.submit(abs, -1).result(timeout=30) == 1


def test_one_that_kills_its_worker_twice_costs_its_companions_one_attempt(
    queue: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    begun = tmp_path / "begun"

    @queue.task
    async def wait(i: int) -> int:
        with begun.open("a") as file:
            file.write(f"{i}\n")
        # The first attempt is the one beside the killer.
        while len(begun.read_text().split()) < 9:
            await asyncio.sleep(0.005)
        return i

    @queue.task
    async def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    queue.run(1)
    batch = wait.map(range(8))
    wait_until(lambda: begun.exists() and len(begun.read_text().split()) == 8, timeout=20)
    with pytest.raises(WorkerDied):
        kill().result(timeout=30)
    assert batch.results(timeout=30) == list(range(8))
    assert [future.attempts for future in batch.futures] == [2] * 8


def test_a_server_that_is_away_ends_no_call(
    redis_server: Any, new_key: str, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    from nbqueue import TaskQueue

    begun, gate = tmp_path / "begun", tmp_path / "gate"

    async def wait(i: int) -> int:
        with begun.open("a") as file:
            file.write(f"{i}\n")
        while not gate.exists():
            await asyncio.sleep(0.005)
        return i

    queue = TaskQueue(redis_server.url, new_key)
    queue.run(1)
    batch = queue.map(wait, range(4))
    wait_until(lambda: begun.exists() and len(begun.read_text().split()) == 4, timeout=20)
    with redis_server.client() as client:
        assert client.client_kill_filter(_type="normal", skipme=True)
    gate.touch()
    assert batch.results(timeout=30) == [0, 1, 2, 3]
    assert len(begun.read_text().split()) == 4, "none ran again"
