"""``timeout=`` bounds one item: it is interrupted, then killed; what runs next is never hit instead."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest

from nbqueue import TaskTimeout


def test_a_task_over_its_limit_is_stopped(queue: Any) -> None:
    task = queue.task(timeout=0.2)(lambda: time.sleep(60))
    with pytest.raises(TaskTimeout, match=r"timeout of 0\.2 s") as caught:
        task().result(timeout=20)
    assert caught.value.timeout_s == 0.2
    assert not isinstance(caught.value, TimeoutError), "that name is for waiting"


@pytest.mark.parametrize("limit_s", [sys.maxsize, 1e30, 1.7e308])
def test_a_limit_that_is_none_to_all_intents_is_no_trouble(queue: Any, limit_s: float) -> None:
    """It did not fit into the slot board: each worker that met it died."""

    async def negative(i: int) -> int:
        return -i

    assert queue.task(timeout=limit_s)(abs)(-2).result(timeout=20) == 2
    assert queue.task(timeout=limit_s)(negative)(2).result(timeout=20) == -2


@pytest.mark.parametrize("limit_s", [1e-9, 0.0006])
def test_a_limit_below_a_millisecond_is_one(queue: Any, limit_s: float) -> None:
    """It was rounded down, to none."""
    with pytest.raises(TaskTimeout):
        queue.task(timeout=limit_s)(lambda: time.sleep(60))().result(timeout=20)


def test_the_limit_is_for_each_item_and_hits_only_that_one(queue: Any) -> None:
    @queue.task(timeout=0.4)
    def work(i: int) -> int:
        time.sleep(60 if i == 5 else 0.02)
        return i

    # Together far longer than the limit, in one chunk.
    batch = work.options(chunksize=30).map(range(30))
    results = batch.results(return_exceptions=True, timeout=30)
    assert isinstance(results.pop(5), TaskTimeout)
    assert results == [i for i in range(30) if i != 5]


def test_a_stubborn_task_is_killed(queue: Any) -> None:
    def stubborn() -> None:
        while True:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                pass

    with pytest.raises(TaskTimeout, match="did not stop when interrupted"):
        queue.task(timeout=0.2)(stubborn)().result(timeout=20)
    assert queue.map(abs, range(-20, 0)).results(timeout=20) == list(range(20, 0, -1))


def test_a_task_may_clean_up_when_its_time_is_over(queue: Any, tmp_path: Any) -> None:
    note = tmp_path / "cleaned"

    def tidy() -> None:
        try:
            time.sleep(60)
        finally:
            note.write_text("cleaned")

    with pytest.raises(TaskTimeout):
        queue.task(timeout=0.2)(tidy)().result(timeout=20)
    assert note.read_text() == "cleaned"


def test_a_time_limit_is_not_retried(queue: Any, tmp_path: Any) -> None:
    note = tmp_path / "runs"

    def slow() -> None:
        with note.open("a") as file:
            file.write("x")
        time.sleep(60)

    with pytest.raises(TaskTimeout):
        queue.task(timeout=0.2, retries=3)(slow)().result(timeout=20)
    assert note.read_text() == "x"


def test_what_runs_next_is_not_hit_by_a_late_interrupt(queue: Any) -> None:
    """Items that end just at their limit: the next one on the same worker must never see the signal."""

    @queue.task(timeout=0.1)
    def near_the_limit(i: int) -> int:
        time.sleep(0.1 if i % 2 else 0.0)
        return i

    results = near_the_limit.options(chunksize=10).map(range(40)).results(return_exceptions=True, timeout=40)
    assert results[::2] == list(range(0, 40, 2))
    assert all(isinstance(r, TaskTimeout) or r == i for i, r in enumerate(results))
