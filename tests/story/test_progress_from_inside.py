"""A task tells how far it is: `nbqueue.report` and `nbqueue.track`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import nbqueue


@pytest.fixture
def go(tmp_path: Path) -> Path:
    return tmp_path / "go"


def _held(go: Path) -> None:
    while not go.exists():
        time.sleep(0.005)


def test_a_batch_shows_how_far_its_running_items_are(queue: Any, go: Path, wait_until: Any) -> None:
    @queue.task
    def train(epochs: int) -> int:
        for epoch in nbqueue.track(range(epochs), text="epochs"):
            nbqueue.report(epoch / 2, text="loss")
            if epoch == 3:
                _held(go)
        return epochs

    batch = train.map([5, 6])

    def lanes() -> list[tuple[str, str, float, float | None]]:
        return [(lane.label, lane.text, lane.done, lane.total) for lane in batch.progress.lanes]

    wait_until(lambda: len(lanes()) == 4)
    assert lanes() == [
        ("train[0]", "loss", 1.5, None),
        ("", "epochs", 3, 5),
        ("train[1]", "loss", 1.5, None),
        ("", "epochs", 3, 6),
    ]
    go.touch()
    assert batch.results(timeout=20) == [5, 6]
    assert batch.progress.lanes == ()


def test_an_item_that_fails_takes_its_lanes_with_it(queue: Any, go: Path, wait_until: Any) -> None:
    @queue.task(retries=0)
    def work(number: int) -> None:
        nbqueue.report(number, 10)
        _held(go.with_name(f"go-{number}"))
        raise ValueError(number)

    batch = work.options(chunksize=1).map([1, 2])
    wait_until(lambda: [lane.label for lane in batch.progress.lanes] == ["work[0]", "work[1]"])
    go.with_name("go-1").touch()
    wait_until(lambda: [lane.label for lane in batch.progress.lanes] == ["work[1]"])
    go.with_name("go-2").touch()
    assert [type(error) for error in batch.results(return_exceptions=True, timeout=20)] == [ValueError] * 2


def test_cancelling_takes_the_lanes_away(queue: Any, wait_until: Any) -> None:
    @queue.task
    def work(number: int) -> None:
        for _ in nbqueue.track(range(10_000)):
            time.sleep(0.01)

    batch = work.map(range(2))
    wait_until(lambda: batch.progress.lanes)
    batch.cancel()
    assert batch.progress.lanes == ()


def test_without_a_worker_both_do_nothing(queue: Any) -> None:
    @queue.task
    def train(epochs: int) -> list[int]:
        nbqueue.report(0, epochs)
        return list(nbqueue.track(range(epochs)))

    assert train.local(3) == [0, 1, 2]
