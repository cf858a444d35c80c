"""A cancelled call ends at once here, and is stopped wherever it is: queued, running, or fetched ahead."""

from __future__ import annotations

import ctypes
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nbqueue import TaskCancelled


def test_a_running_call_is_stopped_and_its_worker_goes_on(
    queue: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    started, stopped = tmp_path / "started", tmp_path / "stopped"

    @queue.task
    def work() -> None:
        started.touch()
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            stopped.touch()
            raise

    queue.run(1)
    future = work()
    wait_until(started.exists, timeout=20)
    assert future.cancel()
    assert future.cancelled()
    with pytest.raises(TaskCancelled, match="`work` was cancelled"):
        future.result()
    wait_until(stopped.exists)
    assert queue.submit(abs, -3).result(timeout=20) == 3


def test_a_queued_call_never_starts(queue: Any, wait_until: Callable[..., Any], tmp_path: Path) -> None:
    queue.run(1)
    queue.shutdown()
    future = queue.submit((tmp_path / "started").touch)
    wait_until(lambda: queue.status().queued == 1)
    future.cancel()
    queue.run(1)
    assert queue.submit(abs, -3).result(timeout=20) == 3
    assert not (tmp_path / "started").exists()
    assert queue.status().cancelled == 1


def test_a_stubborn_call_that_is_cancelled_is_killed_and_charged_to_nobody(
    queue: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    def stubborn() -> None:
        (tmp_path / "started").touch()
        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                pass

    queue.run(1)
    future = queue.submit(stubborn)
    wait_until((tmp_path / "started").exists, timeout=20)
    future.cancel()
    assert queue.submit(abs, -3).result(timeout=20) == 3
    assert queue.status().failed == 0


def test_a_cancelled_call_that_a_worker_had_fetched_ahead_does_not_run_on(
    queue: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    """The server had forgotten it, but the worker held it already and ran it to its end, for nobody."""
    queue.run(1)

    def hold_the_interpreter() -> None:
        # Nothing else can run in the worker meanwhile, not even what gives back the calls that wait behind.
        (tmp_path / "started").touch()
        ctypes.PyDLL(None).usleep(700_000)

    # Quick ones first, so that the worker fetches many at a time.
    quick = [queue.submit(abs, -i) for i in range(300)]
    first = queue.submit(hold_the_interpreter)
    behind = [queue.submit(time.sleep, 60) for _ in range(20)]
    wait_until((tmp_path / "started").exists, timeout=20)
    for future in behind:
        future.cancel()
    assert queue.submit(abs, -3).result(timeout=20) == 3
    assert first.done()
    assert [future.result() for future in quick] == list(range(300))
    wait_until(lambda: not queue.status().running)


def test_a_call_that_is_cancelled_while_it_is_being_fetched_does_not_run_on(
    queue: Any, wait_until: Callable[..., Any]
) -> None:
    """The worker had not begun when its host was told, so nobody stopped it: it ran to its end, for nobody."""
    for _ in range(10):
        batch = queue.map(time.sleep, [0, 0, 0, 60, 60, 60], chunksize=1)
        wait_until(lambda batch=batch: batch.progress.done >= 3, timeout=20)
        batch.cancel()
        assert queue.map(abs, range(-5, 0)).results(timeout=20) == [5, 4, 3, 2, 1]
    wait_until(lambda: not queue.status().running)


def test_cancel_is_refused_by_what_has_ended(queue: Any) -> None:
    future = queue.submit(abs, -3)
    assert future.result(timeout=20) == 3
    assert not future.cancel()
    assert not future.cancelled()
    assert future.result() == 3


def test_queue_cancel_ends_all_that_is_open(queue: Any) -> None:
    futures = [queue.submit(time.sleep, 60) for _ in range(10)]
    batch = queue.map(time.sleep, [60] * 10)
    queue.cancel()
    assert all(future.cancelled() for future in futures)
    assert batch.wait(timeout=5)
    assert batch.progress.cancelled == len(batch) == 10
    with pytest.raises(TaskCancelled):
        batch[9]
    assert len(batch.results(return_exceptions=True)) == 10
    assert queue.map(abs, range(-5, 0)).results(timeout=20) == [5, 4, 3, 2, 1]


def test_a_batch_keeps_what_had_arrived_when_it_is_cancelled(queue: Any, wait_until: Callable[..., Any]) -> None:
    batch = queue.map(time.sleep, [0, 0, 0, 60, 60, 60], chunksize=1)
    wait_until(lambda: batch.progress.done >= 3, timeout=20)
    batch.cancel()
    results = batch.results(return_exceptions=True, timeout=5)
    assert results[:3] == [None, None, None]
    assert all(isinstance(result, TaskCancelled) for result in results[3:])
    with pytest.raises(TaskCancelled):
        batch.results()


def test_cancelling_a_batch_whose_input_has_no_end_gives_it_one(queue: Any, wait_until: Callable[..., Any]) -> None:
    batch = queue.map(abs, itertools.count())
    wait_until(lambda: batch.progress.done >= 100, timeout=20)
    batch.cancel()
    assert batch.wait(timeout=10)
    results = batch.results(return_exceptions=True)
    assert len(results) == len(batch)
    assert sum(not isinstance(result, TaskCancelled) for result in results) >= 100
    assert all(isinstance(r, TaskCancelled) or r == i for i, r in enumerate(results))


def test_one_item_of_a_chunk_can_be_cancelled_alone(queue: Any, tmp_path: Path) -> None:
    go = tmp_path / "go"

    @queue.task
    def held(i: int) -> int:
        while not go.exists():
            time.sleep(0.005)
        return i

    batch = held.options(chunksize=6).map(range(6))
    assert batch.futures[2].cancel()
    go.touch()
    results = batch.results(return_exceptions=True, timeout=20)
    assert isinstance(results.pop(2), TaskCancelled)
    assert results == [0, 1, 3, 4, 5]
