"""Pickled arguments in a few words, without running what made them."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import os
import pathlib
import threading
import time
from typing import Any, NoReturn

import numpy as np
import pytest

from nbqueue.codec.functions import dump_arguments
from nbqueue.codec.glimpse import LONGEST, glimpse_arguments, glimpse_value, glimpse_values


@dataclasses.dataclass
class Point:
    x: int
    y: Any = "a"


class Colour(enum.Enum):
    RED = 1


class Slotted:
    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 4


class Hanging:
    def __repr__(self) -> str:
        time.sleep(3600)
        return "never"


class Raising:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Deadly:
    """Whoever unpickles it dies."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)


class Unreadable:
    def __setstate__(self, state: object) -> NoReturn:
        raise RuntimeError("cannot be unpickled")

    def __getstate__(self) -> dict[str, int]:
        return {"seed": 5}


def glimpse(*args: Any, names: tuple[str, ...] = (), **kwargs: Any) -> str:
    seen = glimpse_values(dump_arguments(args, kwargs, "f"))
    return glimpse_arguments(*seen, names)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (True, "True"),
        (None, "None"),
        (0.1, "0.1"),
        ("a'b", '"a\'b"'),
        ([1, 2], "[1, 2]"),
        ((1,), "(1,)"),
        ({"a": (1, "b")}, "{'a': (1, 'b')}"),
        ({1}, "{1}"),
        (frozenset({1}), "frozenset({1})"),
        (range(3), "range(0, 3)"),
        (10**400, "<int of 1,329 bits>"),
        (list(range(100)), "[0, 1, 2, 3, … 100 in all]"),
        ([[[[1]]]], "[[[…]]]"),
        ("x" * 500, f"'{'x' * 40}…'"),
        (b"ab", "b'ab'"),
        (datetime.date(2020, 1, 2), "2020-01-02"),
        (decimal.Decimal("1.50"), "1.50"),
        (pathlib.Path("/tmp/x"), "'/tmp/x'"),
        (np.float64(0.5), "0.5"),
        (np.arange(3), "array([0, 1, 2])"),
        (np.zeros((100, 3)), "array(100 × 3 of float64)"),
        (Point(1), "Point(x=1, y='a')"),
        (Point(1, Point(2, [3])), "Point(x=1, y=Point(x=2, y=[…]))"),
        (Colour.RED, "Colour(1)"),
        (Slotted(), "Slotted(size=4)"),
        (os.path.join, "join"),
        (lambda x: x, "<function <lambda>>"),
        (np, "<module numpy>"),
        (Point, "Point"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_in_a_few_words(value: Any, text: str) -> None:
    assert glimpse(value) == text


def test_a_class_of_a_cell_is_named() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("class Model:\n    def __init__(self): self.depth, self._hidden = 3, 4", namespace)
    assert glimpse(namespace["Model"]()) == "Model(depth=3)"


def test_arguments_are_named_as_far_as_names_go() -> None:
    assert glimpse(1, 2, 3, names=("a", "b"), c=4) == "a=1, b=2, 3, c=4"


@pytest.mark.parametrize("value", [Hanging(), Raising(), Deadly(), Unreadable()], ids=lambda v: type(v).__name__)
def test_nothing_of_the_users_is_run(value: Any) -> None:
    assert glimpse(value, 7).endswith(", 7")


def test_what_was_not_sent_is_shown_by_its_type() -> None:
    assert glimpse_value(threading.Lock()) == "<lock>"


def test_many_and_long_arguments_stay_short() -> None:
    assert len(glimpse(*(["long" * 100] * 50), names=tuple(f"parameter_{i}" for i in range(50)))) == LONGEST


@pytest.mark.parametrize("data", [b"", b"no pickle", b"\x80\x05."])
def test_bytes_that_cannot_be_read_give_nothing(data: bytes) -> None:
    assert glimpse_values(data) is None
