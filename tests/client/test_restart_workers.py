"""`queue.restart_workers()`: every worker is replaced as soon as it is idle, and nothing is lost."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def pids(queue: Any) -> set[int]:
    return {worker.pid for worker in queue.status().workers}


def test_every_worker_is_a_fresh_one_when_it_returns(queue: Any, wait_until: Callable[..., Any]) -> None:
    queue.run(3)
    before = wait_until(lambda: len(found := pids(queue)) == 3 and found)
    queue.restart_workers()
    after = wait_until(lambda: len(found := pids(queue)) == 3 and found)
    assert not before & after
    assert queue.submit(os.getpid).result(timeout=30) in after


def test_a_running_call_finishes_while_the_others_go_on(
    queue: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    queue.run(2)

    def held() -> int:
        while not (tmp_path / "go").exists():
            time.sleep(0.005)
        return os.getpid()

    running = queue.submit(held)
    wait_until(running.running, timeout=20)
    before = pids(queue)
    restart = threading.Thread(target=queue.restart_workers)
    restart.start()
    wait_until(lambda: len(found := pids(queue)) == 2 and len(found - before) == 1)
    fresh = pids(queue) - before
    assert queue.map(lambda _: os.getpid(), range(20)).results(timeout=30) == list(fresh) * 20
    assert restart.is_alive()
    (tmp_path / "go").touch()
    restart.join(30)
    assert not restart.is_alive()
    assert running.result(timeout=30) in before
    assert running.attempts == 1
    wait_until(lambda: len(found := pids(queue)) == 2 and not found & before)


def test_a_map_goes_on_through_it_and_each_item_runs_once(queue: Any, tmp_path: Path) -> None:
    def once(number: int) -> int:
        time.sleep(0.002)
        (tmp_path / str(number)).touch(exist_ok=False)
        return number

    batch = queue.map(once, range(500))
    for _ in range(3):
        queue.restart_workers()
    assert batch.results(timeout=60) == list(range(500))


def test_workers_that_are_too_many_leave_after_the_item_that_they_run(
    queue: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    """They once stayed as long as there was always something to do for them, which could be the whole map."""
    queue.run(2)

    def held(number: int) -> tuple[int, int]:
        with (tmp_path / f"begun {number}").open("x"):
            pass
        while not (tmp_path / f"go {number}").exists():
            time.sleep(0.005)
        return number, os.getpid()

    batch = queue.map(held, range(4), chunksize=2)
    wait_until(lambda: (tmp_path / "begun 0").exists() and (tmp_path / "begun 2").exists())
    queue.run(1)
    for number in (0, 2):
        (tmp_path / f"go {number}").touch()
    # One has gone, and the other does both that are left, one after the other.
    (stays,) = wait_until(lambda: len(found := pids(queue)) == 1 and found)
    assert not batch.done
    for number in (1, 3):
        (tmp_path / f"go {number}").touch()
    results = batch.results(timeout=60)
    assert [number for number, _ in results] == [0, 1, 2, 3]
    assert results[1][1] == results[3][1] == stays


def test_without_workers_nothing_happens(queue: Any) -> None:
    queue.restart_workers()
    queue.run(1)
    queue.shutdown()
    queue.restart_workers()
    assert queue.status().workers == ()


def test_a_pool_that_is_stopped_meanwhile_ends_the_wait(
    queue: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    def held() -> None:
        while not (tmp_path / "go").exists():
            time.sleep(0.005)

    running = queue.submit(held)
    wait_until(running.running, timeout=20)
    restart = threading.Thread(target=queue.restart_workers)
    restart.start()
    stop = threading.Thread(target=queue.shutdown)
    stop.start()
    (tmp_path / "go").touch()
    restart.join(30)
    stop.join(30)
    assert not restart.is_alive()
    assert not stop.is_alive()
    # It has ended; its reply may be on the way.
    assert running.result(timeout=20) is None
