"""Calls that wait: of high priority first, of low priority last, and none for ever."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from nbqueue import TaskQueue


@pytest.fixture
def queue(new_key: str) -> Iterator[Any]:
    queue = TaskQueue(stream_key=new_key, workers=1)
    yield queue
    queue.cancel()
    queue.shutdown()


class Started:
    """The order in which calls begin that were all queued before the only worker was free."""

    def __init__(self, queue: Any, folder: Path, wait_until: Callable[..., Any]) -> None:
        self._queue = queue
        self._list, self._go = folder / "started", folder / "go"
        busy, go, path = folder / "busy", self._go, self._list

        def wait() -> None:
            busy.touch()
            while not go.exists():
                time.sleep(0.005)

        @queue.task
        def start(name: str) -> None:
            with path.open("a") as file:
                file.write(name + "\n")
            # So long that a worker fetches one at a time.
            time.sleep(0.005)

        self._calls = [queue.submit(wait)]
        self._start = start
        wait_until(busy.exists)

    def submit(self, priority: str, calls: int) -> None:
        self._calls += [self._start.options(priority=priority)(priority) for _ in range(calls)]

    def order(self) -> list[str]:
        assert self._queue._core.link.flush(10)
        self._go.touch()
        for call in self._calls:
            call.result(timeout=30)
        return self._list.read_text().split()


@pytest.fixture
def started(queue: Any, tmp_path: Path, wait_until: Callable[..., Any]) -> Started:
    return Started(queue, tmp_path, wait_until)


@pytest.mark.parametrize(("backlog", "urgent"), [("normal", "high"), ("low", "normal"), ("low", "high")])
def test_a_call_of_higher_priority_overtakes_a_backlog(started: Started, backlog: str, urgent: str) -> None:
    started.submit(backlog, 20)
    started.submit(urgent, 1)
    assert started.order()[0] == urgent


def test_calls_of_low_priority_go_on_behind_a_backlog_and_take_little_of_it(started: Started) -> None:
    started.submit("normal", 60)
    started.submit("low", 4)
    order = started.order()
    places = [place for place, name in enumerate(order) if name == "low"]
    assert places[-1] < len(order) - 1, "it had to wait for the end of the backlog"
    assert min(later - sooner for sooner, later in pairwise(places)) > 4, order


def test_each_way_to_call_takes_a_priority(redis_server: Any, new_key: str) -> None:
    queue = TaskQueue(redis_server.url, new_key)
    low = queue.task(priority="low")(abs)
    low(1)
    low.map([1])
    queue.map(abs, [1], priority="low")
    queue.submit(abs, 1)
    low.options(priority="high").submit(1)
    queue.starmap(abs, [[1]], priority="high")
    executor = queue.executor(priority="high")
    executor.submit(abs, 1)
    executor.map(abs, [1])
    core = queue._core
    assert core is not None
    assert core.link.flush(10)
    with redis_server.client() as client:
        assert [client.xlen(key) for key in core.keys.streams] == [4, 1, 3]
    queue.cancel()


def test_status_and_cancel_know_calls_of_every_priority(redis_server: Any, new_key: str) -> None:
    queue = TaskQueue(redis_server.url, new_key)
    calls = [queue.task(priority=priority)(abs)(1) for priority in ("high", "normal", "low")]
    core = queue._core
    assert core is not None
    assert core.link.flush(10)
    assert queue.status().queued == 3
    queue.cancel()
    assert all(call.cancelled() for call in calls)
    assert core.link.settle_cancels(10)
    assert (queue.status().queued, queue.status().cancelled) == (0, 3)
