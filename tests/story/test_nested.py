"""Tasks may call tasks: inline when called plainly, elsewhere with submit and map, never into a deadlock."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import nbqueue


def test_recursion_through_the_decorated_name_runs_inline(queue: Any) -> None:
    @queue.task
    def fib(n: int) -> int:
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    assert fib(15).result(timeout=20) == 610


def test_recursion_through_the_decorated_name_in_a_cell(queue: Any, cell: Callable[..., Any]) -> None:
    namespace = cell(
        """
        @queue.task
        def even(n): return True if n == 0 else odd(n - 1)
        @queue.task
        def odd(n): return False if n == 0 else even(n - 1)
        """,
        queue=queue,
    )
    assert namespace["even"](10).result(timeout=20) is True
    assert namespace["odd"].map(range(4)).results(timeout=20) == [False, True, False, True]


def test_a_helper_that_happens_to_be_a_task_gives_its_value(queue: Any) -> None:
    @queue.task
    def helper(x: int) -> tuple[int, int]:
        return os.getpid(), x + 1

    @queue.task
    def work(x: int) -> bool:
        pid, value = helper(x)
        return pid == os.getpid() and value == x + 1  # type: ignore[no-any-return]

    assert work(1).result(timeout=20) is True


def test_submit_in_a_task_sends_work_to_the_same_queue(queue: Any) -> None:
    @queue.task
    def inner(x: int) -> tuple[int, int]:
        return os.getpid(), x * 2

    @queue.task
    def outer(x: int) -> tuple[int, int, int]:
        pid, value = inner.submit(x).result()
        return os.getpid(), pid, value

    mine, other, value = outer(4).result(timeout=20)
    assert value == 8
    assert mine != other


def test_map_in_a_task(queue: Any) -> None:
    @queue.task
    def square(x: int) -> int:
        return x * x

    @queue.task
    def total(n: int) -> int:
        return sum(square.map(range(n)).results())

    assert total.map([3, 4, 5]).results(timeout=30) == [5, 14, 30]


def test_a_pool_full_of_waiting_tasks_cannot_deadlock(queue: Any) -> None:
    """Eight tasks on two workers, each waiting for one that waits for one: substitutes run."""

    @queue.task
    def down(n: int) -> int:
        return 0 if n == 0 else 1 + down.submit(n - 1).result()

    assert [f.result(timeout=60) for f in [down(3) for _ in range(8)]] == [3] * 8


def test_the_queue_itself_can_be_used_in_a_task(queue: Any) -> None:
    @queue.task
    def outer() -> list[int]:
        return nbqueue.gather([queue.submit(pow, 2, i) for i in range(4)])

    assert outer().result(timeout=20) == [1, 2, 4, 8]


def test_a_nested_failure_is_the_callers_to_handle(queue: Any) -> None:
    @queue.task
    def fail() -> None:
        raise LookupError("inner")

    @queue.task
    def outer() -> str:
        try:
            fail.submit().result()
        except LookupError as error:
            return str(error)
        return "no error"

    assert outer().result(timeout=20) == "inner"


def test_substitutes_leave_when_they_are_no_longer_needed(queue: Any, wait_until: Callable[..., Any]) -> None:
    @queue.task
    def outer() -> int:
        return queue.submit(abs, -1).result()  # type: ignore[no-any-return]

    assert sum(f.result(timeout=30) for f in [outer() for _ in range(4)]) == 4
    wait_until(lambda: len(queue.status().workers) == 2)
