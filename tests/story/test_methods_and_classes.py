"""Anything that can be written in a cell can be a task: no modules, no names at the top level needed."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable
from typing import Any, NamedTuple


def test_lambdas_and_closures(queue: Any) -> None:
    def adder(n: int) -> Callable[[int], int]:
        return lambda x: x + n

    assert queue.submit(adder(3), 4).result(timeout=20) == 7
    assert queue.map(adder(10), range(3)).results(timeout=20) == [10, 11, 12]


def test_partials_and_builtins(queue: Any) -> None:
    assert queue.submit(functools.partial(pow, 2), 5).result(timeout=20) == 32
    assert queue.task(functools.partial(pow, 2))(6).result(timeout=20) == 64
    assert queue.map(len, ["a", "bb"]).results(timeout=20) == [1, 2]


def test_local_classes_go_and_come_back(queue: Any) -> None:
    class Vector:
        def __init__(self, x: int, y: int) -> None:
            self.x, self.y = x, y

        def __add__(self, other: Vector) -> Vector:
            return Vector(self.x + other.x, self.y + other.y)

    @queue.task
    def add(a: Vector, b: Vector) -> Vector:
        return a + b

    total = add(Vector(1, 2), Vector(3, 4)).result(timeout=20)
    assert type(total) is Vector
    assert (total.x, total.y) == (4, 6)


def test_dataclasses_named_tuples_and_enums(queue: Any) -> None:
    @dataclasses.dataclass(frozen=True)
    class Row:
        name: str
        values: list[int] = dataclasses.field(default_factory=list)

    class Pair(NamedTuple):
        a: int
        b: int

    class Colour(enum.Enum):
        RED = 1

    sent = [Row("a", [1]), Pair(1, 2), Colour.RED]
    assert queue.map(lambda x: x, sent).results(timeout=20) == sent


def test_recursive_and_mutually_recursive_functions(queue: Any) -> None:
    def even(n: int) -> bool:
        return n == 0 or odd(n - 1)

    def odd(n: int) -> bool:
        return n != 0 and even(n - 1)

    assert queue.map(even, range(4)).results(timeout=20) == [True, False, True, False]


def test_bound_methods_static_methods_and_class_methods(queue: Any) -> None:
    class Scale:
        factor = 3

        def __init__(self, by: int) -> None:
            self.by = by

        def times(self, x: int) -> int:
            return self.by * x

        @classmethod
        def tripled(cls, x: int) -> int:
            return cls.factor * x

        @staticmethod
        def same(x: int) -> int:
            return x

        def __call__(self, x: int) -> int:
            return -x

    scale = Scale(5)
    calls = [queue.submit(fn, 2) for fn in (scale.times, Scale.tripled, scale.same, scale)]
    assert [call.result(timeout=20) for call in calls] == [10, 6, 2, -2]


def test_a_task_in_a_class_body_is_a_method(queue: Any) -> None:
    class Model:
        def __init__(self, factor: int) -> None:
            self.factor = factor

        @queue.task  # type: ignore[untyped-decorator]
        def predict(self, x: int, plus: int = 0) -> int:
            return self.factor * x + plus

    model = Model(4)
    assert model.predict(3).result(timeout=20) == 12
    assert model.predict.map([1, 2], plus=1).results(timeout=20) == [5, 9]
    assert Model.predict(model, 1).result(timeout=20) == 4


def test_the_same_in_cells(queue: Any, cell: Callable[..., dict[str, Any]]) -> None:
    namespace = cell(
        """
        import math
        from dataclasses import dataclass

        @dataclass
        class Circle:
            r: float
            def area(self): return round(math.pi * self.r ** 2, 3)

        class Big(Circle):
            def area(self): return 2 * super().area()

        @queue.task
        def area(shape): return shape.area()
        """,
        queue=queue,
    )
    shapes = [namespace["Circle"](1), namespace["Big"](1)]
    assert namespace["area"].map(shapes).results(timeout=20) == [3.142, 6.284]


def test_generators_and_context_managers_work_inside(queue: Any) -> None:
    @queue.task
    def work(n: int) -> int:
        def numbers() -> Any:
            yield from range(n)

        return sum(numbers())

    assert work(10).result(timeout=20) == 45
