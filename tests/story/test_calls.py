"""A call of a decorated function returns at once; its result comes back from another process."""

from __future__ import annotations

import concurrent.futures
import os
import time
from typing import Any

import nbqueue


def test_a_call_runs_in_another_process_and_returns_a_future(queue: Any) -> None:
    @queue.task
    def where() -> int:
        return os.getpid()

    future = where()
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(timeout=20) != os.getpid()


def test_arguments_and_results_may_be_anything_that_pickles(queue: Any) -> None:
    @queue.task
    def echo(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    sent = (1, "two", [3.0, None], {"four": {5}}, b"six", range(7)), {"seven": (8,), "nine": time.gmtime(0)}
    assert echo(*sent[0], **sent[1]).result(timeout=20) == sent


def test_calling_the_future_waits_for_the_result(queue: Any) -> None:
    add = queue.task(lambda a, b: a + b)
    assert add(1, 2)() == 3


def test_calls_run_side_by_side(queue: Any, tmp_path: Any) -> None:
    """Each waits for the other to have started: one after the other they would never end."""

    @queue.task
    def meet(mine: str, other: str) -> str:
        (tmp_path / mine).touch()
        while not (tmp_path / other).exists():
            time.sleep(0.005)
        return mine

    assert nbqueue.gather([meet("a", "b"), meet("b", "a")], timeout=20) == ["a", "b"]


def test_submit_calls_any_function_as_an_executor_does(queue: Any) -> None:
    assert queue.submit(divmod, 7, 2).result(timeout=20) == (3, 1)
    assert queue.submit(int, "ff", base=16).result(timeout=20) == 255


def test_local_runs_the_undecorated_function_here(queue: Any) -> None:
    @queue.task
    def where() -> int:
        """Says where it is."""
        return os.getpid()

    assert where.local() == os.getpid()
    assert where.__name__ == "where"
    assert where.__doc__ == "Says where it is."


def test_options_change_how_a_task_is_treated_and_not_what_it_does(queue: Any, tmp_path: Any) -> None:
    note = tmp_path / "runs"

    @queue.task(retries=2, name="shaky")
    def third_time() -> str:
        with note.open("a") as file:
            file.write("x")
        if len(note.read_text()) < 3:
            raise OSError("not yet")
        return "lucky"

    future = third_time()
    assert future.result(timeout=20) == "lucky"
    assert future.attempts == 3
    assert future.name == "shaky"
    note.unlink()
    assert isinstance(third_time.options(retries=0)().exception(timeout=20), OSError)


def test_the_future_tells_who_ran_it_and_for_how_long(queue: Any) -> None:
    future = queue.submit(time.sleep, 0.05)
    future.result(timeout=20)
    assert future.worker
    assert future.seconds >= 0.05
    assert future.attempts == 1
