"""A future whose condition is made late: it is one of the standard library all the same."""

from __future__ import annotations

import concurrent.futures
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from nbqueue.client.results.future import TaskFuture
from nbqueue.client.results.late import LateFuture
from nbqueue.client.results.outcome import Outcome
from nbqueue.codec.messages import VALUE


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_it_has_all_that_this_pythons_futures_have() -> None:
    # An attribute that a later Python adds must be added there, too.
    theirs: concurrent.futures.Future[Any] = concurrent.futures.Future()
    ours: LateFuture[Any] = LateFuture()
    known = {"_condition", "_state", "_result", "_exception", "_waiters", "_done_callbacks"}
    assert vars(theirs).keys() == known
    for name, value in vars(theirs).items():
        mine = getattr(ours, name)
        assert type(mine) is type(value), name
        assert isinstance(value, threading.Condition) or mine == value


def test_parts_are_made_once_for_each_future() -> None:
    one, other = LateFuture[Any](), LateFuture[Any]()
    for name in ("_condition", "_waiters", "_done_callbacks"):
        assert getattr(one, name) is getattr(one, name) is not getattr(other, name)


def test_one_that_nobody_watches_needs_no_condition() -> None:
    future = TaskFuture[int]("f", None)
    assert not future.done()
    assert not future.running()
    future._arrive(Outcome(VALUE, 7, True), None)
    assert future.done()
    assert not future.cancelled()
    assert future.result() == 7
    assert future._own_condition is None


def test_all_who_ask_at_once_are_given_one_condition(switching: None) -> None:
    for _ in range(50):
        future, found = LateFuture[Any](), set()
        barrier = threading.Barrier(4)

        def ask(future: LateFuture[Any] = future, found: set[int] = found, barrier: Any = barrier) -> None:
            barrier.wait(10)
            found.add(id(future._condition))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert found == {id(future._condition)}


@pytest.mark.parametrize("how", ["as completed", "wait", "callbacks", "results"])
def test_who_begins_to_watch_while_they_end_hears_of_each_once(switching: None, how: str) -> None:
    for _ in range(10):
        futures = [TaskFuture[int]("f", None) for _ in range(100)]
        barrier = threading.Barrier(2)

        def end(futures: list[TaskFuture[int]] = futures, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(10)
            for number, future in enumerate(futures):
                future._arrive(Outcome(VALUE, number, True), None)

        thread = threading.Thread(target=end)
        thread.start()
        barrier.wait(10)
        heard: list[Any] = []
        if how == "as completed":
            heard += concurrent.futures.as_completed(futures, timeout=10)
        elif how == "wait":
            done, left = concurrent.futures.wait(futures, timeout=10)
            assert not left
            heard += done
        elif how == "callbacks":
            for future in futures:
                future.add_done_callback(heard.append)
            thread.join(10)
        else:
            assert [future.result(timeout=10) for future in futures] == list(range(100))
            heard += futures
        thread.join(10)
        assert len(heard) == 100
        assert set(heard) == set(futures)


def test_it_is_cancelled_or_ends_and_never_both(switching: None) -> None:
    for _ in range(10):
        futures = [TaskFuture[int]("f", None) for _ in range(100)]
        barrier = threading.Barrier(2)

        def end(futures: list[TaskFuture[int]] = futures, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(10)
            for future in futures:
                future._arrive(Outcome(VALUE, 7, True), None)

        thread = threading.Thread(target=end)
        thread.start()
        barrier.wait(10)
        cancelled = [future.cancel() for future in futures]
        thread.join(10)
        assert [future.cancelled() for future in futures] == cancelled
        assert all(future.result() == 7 for future in futures if not future.cancelled())
