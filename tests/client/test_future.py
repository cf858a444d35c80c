"""A TaskFuture is a concurrent.futures.Future: what the standard library does with those works with it."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nbqueue
from nbqueue import TaskCancelled, TaskTimeout


@pytest.fixture
def held(queue: Any, tmp_path: Path) -> Any:
    """A task that ends, with its argument, once ``held.go()`` was called."""
    gate = tmp_path / "go"

    @queue.task
    def held(x: Any = None) -> Any:
        (tmp_path / "started").touch()
        while not gate.exists():
            time.sleep(0.005)
        return x

    held.go = gate.touch
    held.started = (tmp_path / "started").exists
    return held


def test_wait_of_the_standard_library(queue: Any, held: Any) -> None:
    quick, slow = queue.submit(abs, -1), held()
    done, not_done = concurrent.futures.wait([quick, slow], return_when=concurrent.futures.FIRST_COMPLETED, timeout=20)
    assert (done, not_done) == ({quick}, {slow})
    held.go()
    done, not_done = concurrent.futures.wait([quick, slow], timeout=20)
    assert not not_done


def test_first_exception_is_noticed_by_wait(queue: Any, held: Any) -> None:
    failing, slow = queue.submit(abs, "x"), held()
    done, _ = concurrent.futures.wait([slow, failing], return_when=concurrent.futures.FIRST_EXCEPTION, timeout=20)
    assert done == {failing}
    held.go()
    slow.result(timeout=20)


@pytest.mark.parametrize("as_completed", [concurrent.futures.as_completed, nbqueue.as_completed])
def test_as_completed_gives_the_first_to_end_first(as_completed: Any, queue: Any, held: Any) -> None:
    slow, quick = held("slow"), queue.submit(str, "quick")
    completed = as_completed([slow, quick], timeout=20)
    assert next(completed) is quick
    held.go()
    assert next(completed) is slow


def test_futures_of_ours_and_of_other_executors_can_be_waited_for_together(queue: Any) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        assert nbqueue.gather([queue.submit(abs, -1), threads.submit(abs, -2)], timeout=20) == [1, 2]


def test_callbacks_are_called_once_with_the_future(queue: Any, held: Any) -> None:
    called: list[Any] = []
    both = threading.Event()
    future = held(3)
    future.add_done_callback(called.append)
    future.add_done_callback(lambda _: both.set())
    held.go()
    assert both.wait(20)
    assert called == [future]
    future.add_done_callback(called.append)
    assert called == [future, future]


def test_a_callback_that_raises_disturbs_nobody(queue: Any, caplog: pytest.LogCaptureFixture) -> None:
    future = queue.submit(time.sleep, 0.05)
    future.add_done_callback(lambda _: 1 / 0)
    assert future.result(timeout=20) is None
    assert queue.submit(abs, -1).result(timeout=20) == 1
    assert "ZeroDivisionError" in caplog.text


def test_a_callback_may_ask_for_the_result_and_send_the_next_call(queue: Any) -> None:
    results: list[Any] = []
    ended = threading.Event()

    def go_on(future: Any) -> None:
        results.append(future.result())
        if len(results) < 5:
            queue.submit(int, len(results)).add_done_callback(go_on)
        else:
            ended.set()

    queue.submit(int, 0).add_done_callback(go_on)
    assert ended.wait(20)
    assert results == [0, 1, 2, 3, 4]


def test_waiting_has_a_limit_and_the_call_goes_on(held: Any) -> None:
    future = held("late")
    with pytest.raises(TimeoutError, match=r"`held` has not ended within 0\.05 s; it goes on"):
        future.result(timeout=0.05)
    with pytest.raises(concurrent.futures.TimeoutError):
        future.exception(timeout=0)
    held.go()
    assert future.result(timeout=20) == "late"


def test_its_state_can_be_seen(held: Any, wait_until: Callable[..., Any]) -> None:
    future = held()
    assert not future.done()
    wait_until(future.running, timeout=20)
    assert "running" in repr(future)
    held.go()
    wait_until(future.done, timeout=20)
    assert not future.running()
    assert repr(future) == "<TaskFuture held done>"


def test_a_cancelled_future_raises_the_standard_librarys_error(held: Any) -> None:
    future = held()
    called: list[Any] = []
    future.add_done_callback(called.append)
    assert future.cancel()
    assert future.cancel(), "again is no error"
    assert future.cancelled()
    assert future.done()
    assert called == [future]
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()
    with pytest.raises(TaskCancelled):
        future()
    assert concurrent.futures.wait([future], timeout=0).done == {future}


def test_cancelling_wakes_who_waits(held: Any, wait_until: Callable[..., Any]) -> None:
    future = held()
    wait_until(held.started, timeout=20)
    threading.Timer(0.1, future.cancel).start()
    with pytest.raises(TaskCancelled):
        future.result(timeout=20)


def test_a_tasks_own_time_limit_is_not_the_limit_of_waiting(queue: Any) -> None:
    future = queue.task(timeout=0.1)(lambda: time.sleep(60))()
    with pytest.raises(TaskTimeout):
        future.result(timeout=20)
    assert not isinstance(future.exception(), TimeoutError)


def test_a_timeout_error_of_the_task_is_the_tasks(queue: Any) -> None:
    def fail() -> None:
        raise TimeoutError("from the task")

    future = queue.submit(fail)
    with pytest.raises(TimeoutError, match="from the task"):
        future.result(timeout=20)
    assert nbqueue.gather([future], return_exceptions=True, timeout=20)[0].args == ("from the task",)


def test_gather_gives_results_in_order_and_exceptions_on_request(queue: Any) -> None:
    futures = [queue.submit(int, text) for text in ("1", "x", "3")]
    with pytest.raises(ValueError, match="invalid literal"):
        nbqueue.gather(futures, timeout=20)
    results = nbqueue.gather(futures, return_exceptions=True, timeout=20)
    assert results[0::2] == [1, 3]
    assert isinstance(results[1], ValueError)


def test_gather_has_one_limit_for_all(held: Any) -> None:
    with pytest.raises(TimeoutError):
        nbqueue.gather([held(), held()], timeout=0.1)
    held.go()


def test_many_threads_may_wait_for_one_future(held: Any) -> None:
    future = held("for all")
    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        waiting = [threads.submit(future.result, 20) for _ in range(6)]
        held.go()
        assert [w.result() for w in waiting] == ["for all"] * 6


@pytest.mark.parametrize("way", ["cancelled", "failed"])
def test_a_call_that_did_not_succeed_is_gone_with_its_future(
    way: str, queue: Any, wait_until: Callable[..., Any]
) -> None:
    """The two held each other, and with them a large argument, until garbage was collected."""
    import gc
    import weakref

    gc.collect()
    gc.disable()
    try:
        future = queue.submit(time.sleep, 60 if way == "cancelled" else "no number")
        if way == "cancelled":
            future.cancel()
        else:
            nbqueue.wait([future], timeout=20)
        gone = weakref.ref(future)
        del future
        wait_until(lambda: gone() is None)
    finally:
        gc.enable()


def test_a_result_is_gone_with_its_future_and_a_batch_with_its_results(
    queue: Any, wait_until: Callable[..., Any]
) -> None:
    """Not only when garbage is collected: a loop over large results must not pile them up."""
    import gc
    import weakref

    class Value:
        pass

    def make(x: int) -> Any:
        return Value()

    gc.collect()
    gc.disable()
    try:
        future, batch = queue.submit(make, 0), queue.map(make, range(3))
        gone = [weakref.ref(future.result(timeout=20)), *map(weakref.ref, batch.results(timeout=20))]
        del future, batch
        # The listener may still be about to let go of the call.
        wait_until(lambda: not any(ref() for ref in gone))
    finally:
        gc.enable()
