"""functools' decorators in a cell: a cached function is a task, a helper or a method like any other."""

from __future__ import annotations

import importlib
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Cell = Callable[..., dict[str, Any]]

FIB = """
import functools

@functools.lru_cache(maxsize=None)
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
"""


def test_a_cached_function_of_a_cell(queue: Any, cell: Cell) -> None:
    """It was looked for in the worker's ``__main__``: `Can't get attribute 'fib'`."""
    fib = cell(FIB)["fib"]
    helped = cell("def helped(n): return fib(n)\ndef given(f, n): return f(n)")
    calls = [
        *(queue.submit(fib, 80), queue.submit(helped["helped"], 80), queue.submit(helped["given"], fib, 80)),
        queue.submit(lambda: fib(80)),
    ]
    assert [call.result(timeout=20) for call in calls] == [23416728348467685] * 4
    assert queue.map(fib, range(8)).results(timeout=20) == [0, 1, 1, 2, 3, 5, 8, 13]


def test_a_task_around_a_cache_and_a_cache_around_a_task(queue: Any, cell: Cell) -> None:
    names = cell(
        """
        from functools import cache, singledispatch

        @queue.task
        @cache
        def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)

        @cache
        @queue.task
        def double(n): return 2 * n

        @queue.task
        @singledispatch
        def size(x): return 1

        @size.register
        def _(x: list): return sum(size(each) for each in x)

        @queue.task
        def all_three(n): return fib(n), double(n), size([n, [n]])
        """,
        queue=queue,
    )
    assert names["fib"](80).result(timeout=20) == 23416728348467685
    assert names["double"](3) is names["double"](3)
    assert names["double"](3).result(timeout=20) == 6
    assert names["size"]([1, [2, 3]]).result(timeout=20) == 3
    assert names["all_three"](10).result(timeout=20) == (55, 20, 2)


def test_cached_methods_and_properties(queue: Any, cell: Cell) -> None:
    """Before Python 3.12 a cached property was refused, for a lock that its author had never seen."""
    names = cell("""
        from functools import cached_property, lru_cache

        class Circle:
            def __init__(self, r): self.r = r

            @cached_property
            def area(self): return 3 * self.r ** 2

            @lru_cache
            def scaled(self, by): return by * self.area

        def grow(circle):
            return circle.area, circle.scaled(2), circle
    """)
    area, scaled, circle = queue.submit(names["grow"], names["Circle"](2)).result(timeout=20)
    assert (area, scaled, vars(circle)) == (12, 24, {"r": 2, "area": 12})
    assert type(circle) is names["Circle"]
    assert queue.submit(names["Circle"](1).scaled, 5).result(timeout=20) == 15


def test_what_is_redefined_behind_a_cache_is_used(queue: Any, cell: Cell) -> None:
    names = cell("""
        from functools import cache
        factor = 10
        def helper(x): return x + 1

        @cache
        def cached(x): return helper(x) * factor

        def work(x): return cached(x)
    """)

    def both() -> list[int]:
        return [queue.submit(names[name], 1).result(timeout=20) for name in ("work", "cached") for _ in range(3)]

    assert both() == [20] * 6
    cell("factor = 100")
    assert both() == [200] * 6
    cell("def helper(x): return x + 2")
    assert both() == [300] * 6
    cell("@cache\ndef cached(x): return -x")
    assert both() == [-1] * 6


def test_a_worker_keeps_a_cache_for_later_calls_of_the_same_function(queue: Any, cell: Cell) -> None:
    queue.run(1)
    names = cell(FIB + "def work(n): return fib(n), fib.cache_info().misses")
    names["fib"](30)
    assert queue.submit(names["work"], 20).result(timeout=20) == (6765, 21)
    assert queue.submit(names["work"], 22).result(timeout=20) == (17711, 23)
    # Another function has a cache of its own.
    cell("def work(n): return fib.cache_info().currsize")
    assert queue.submit(names["work"], 0).result(timeout=20) == 0


def test_items_that_failed_are_tried_again_with_the_cached_function_that_is_there_now(queue: Any, cell: Cell) -> None:
    names = cell("from functools import cache\n@cache\ndef work(x): return 1 // x")
    batch = queue.map(names["work"], [0, 1])
    batch.wait(timeout=20)
    cell("@cache\ndef work(x): return 'mended'")
    batch.retry_failed()
    assert batch.results(timeout=20) == ["mended", 1]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    name = f"cached_{secrets.token_hex(4)}"
    (tmp_path / f"{name}.py").write_text("from functools import cache\n@cache\ndef answer(x): return 2 * x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module(name)
    del sys.modules[name]


def test_a_cached_function_of_a_module_is_the_one_that_the_worker_imports(queue: Any, module: Any) -> None:
    answer, name = module.answer, module.__name__

    def work() -> bool:
        return answer is importlib.import_module(name).answer

    assert queue.submit(work).result(timeout=20) is True
    assert queue.submit(answer, 4).result(timeout=20) == 8
