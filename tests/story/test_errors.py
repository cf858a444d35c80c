"""An error is the user's own: its type, its message, and a traceback into the cell that raised it."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any

import pytest

Cell = Callable[..., dict[str, Any]]


def test_result_raises_what_the_task_raised(queue: Any) -> None:
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        queue.submit(lambda: 1 / 0).result(timeout=20)


def test_an_exception_class_of_a_cell_arrives_as_itself(queue: Any, cell: Cell) -> None:
    namespace = cell(
        """
        class Broken(Exception):
            pass
        @queue.task
        def fail():
            raise Broken('why')
        """,
        queue=queue,
    )
    with pytest.raises(namespace["Broken"], match="why"):
        namespace["fail"]().result(timeout=20)


def test_the_traceback_shows_the_cells_lines_and_none_of_ours(queue: Any, cell: Cell) -> None:
    task = cell(
        """
        def helper(x):
            return 10 // x

        @queue.task
        def work(x):
            return helper(x)
        """,
        queue=queue,
    )["work"]
    error = task(0).exception(timeout=20)
    frames = traceback.extract_tb(error.__traceback__)
    assert [(frame.filename, frame.name, frame.line) for frame in frames] == [
        ("<cell 1>", "work", "return helper(x)"),
        ("<cell 1>", "helper", "return 10 // x"),
    ]


def test_causes_and_notes_come_along(queue: Any) -> None:
    def fail() -> None:
        try:
            raise KeyError("inner")
        except KeyError as error:
            outer = ValueError("outer")
            outer.add_note("look here")
            raise outer from error

    error = queue.submit(fail).exception(timeout=20)
    assert isinstance(error.__cause__, KeyError)
    assert error.__notes__[0] == "look here"


def test_one_bad_item_does_not_cost_the_others(queue: Any) -> None:
    batch = queue.map(lambda x: 1 / x, [1, 0, 2])
    with pytest.raises(ZeroDivisionError):
        batch.results(timeout=20)
    assert batch.results(return_exceptions=True)[0::2] == [1.0, 0.5]
    assert [type(future.exception()) for future in batch.failed] == [ZeroDivisionError]


def test_the_same_error_can_be_raised_again_and_again(queue: Any) -> None:
    future = queue.submit(lambda: 1 / 0)
    seen = set()
    for _ in range(3):
        try:
            future.result(timeout=20)
        except ZeroDivisionError as error:
            seen.add((len(traceback.extract_tb(error.__traceback__)), *error.__notes__))
    assert len(seen) == 1


def test_a_wrong_number_of_arguments_is_the_tasks_error(queue: Any) -> None:
    @queue.task
    def two(a: int, b: int) -> int:
        return a + b

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'b'"):
        two(1).result(timeout=20)


def test_exception_gives_what_result_would_raise(queue: Any) -> None:
    assert queue.submit(abs, -1).exception(timeout=20) is None
    assert isinstance(queue.submit(abs, "x").exception(timeout=20), TypeError)


def test_a_note_names_the_task_its_arguments_attempt_and_worker(queue: Any) -> None:
    @queue.task(retries=1)
    def simulate(seed: int, steps: int = 10) -> int:
        raise ValueError("diverged")

    error = simulate(39, steps=5).exception(timeout=20)
    task, attempt, worker = error.__notes__[-1].split(" · ")
    assert (task, attempt) == ("task simulate with seed=39, steps=5", "attempt 2 of 2")
    assert worker.removeprefix("worker ").isdecimal()


def test_a_failed_batch_raises_the_first_error_and_counts_the_others(queue: Any) -> None:
    batch = queue.map(lambda x: [1, 2][x] / x, [1, 0, 7, 9])
    with pytest.raises(ZeroDivisionError) as caught:
        batch.results(timeout=20)
    item, others = caught.value.__notes__
    assert item.startswith("task <lambda>[1] with x=0 · worker ")
    assert others == "3 of 4 items failed: IndexError ×2, ZeroDivisionError ×1; batch.failed lists them"


def test_a_failed_call_can_be_replayed_here(queue: Any, cell: Cell) -> None:
    namespace = cell(
        """
        import os
        @queue.task
        def work(x):
            kept = x + 1
            raise ValueError(os.getpid())
        """,
        queue=queue,
    )
    future = namespace["work"](3)
    assert future.exception(timeout=20).args != (os.getpid(),)
    with pytest.raises(ValueError, match=str(os.getpid())) as caught:
        future.replay()
    assert caught.traceback[-1].frame.f_locals["kept"] == 4
