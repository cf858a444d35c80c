"""What functools puts around functions of a cell, made again by a fresh process."""

from __future__ import annotations

import functools
import pickle
import sys
import types
from typing import Any

import cloudpickle
import pytest

from nbqueue.codec.functions import dump_function, dumps
from nbqueue.codec.wrappers import function_of
from nbqueue.errors import NotSendable
from tests.codec.test_functions import CONN, call_elsewhere, cell, refusal

SOURCE = """
import functools, math

@functools.lru_cache(7, typed=True)
def fib(n):
    "doc"
    return n if n < 2 else fib(n - 1) + fib(n - 2)
fib.note = "mine"

def remember(f):
    @functools.wraps(f)
    @functools.lru_cache(None)
    def inner(x): return f(x) * 100
    return inner

@remember
def more(x: int): return x + 1

twice = functools.lru_cache(3)(functools.lru_cache(5)(lambda x: 2 * x))
power = functools.cache(functools.partial(pow, 2))
root = functools.lru_cache(9)(math.sqrt)

class Model:
    def __init__(self, k): self.k = k

    @functools.cache
    def times(self, x): return self.k * x

    @staticmethod
    @functools.cache
    def negative(x): return -x

    @functools.cached_property
    def area(self):
        "about"
        return self.times(self.k)

@functools.singledispatch
def size(x):
    "of anything"
    return 1

@size.register
def _(x: list): return sum(map(size, x))

@size.register(Model)
def of_model(x): return x.k

size.note = "too"

def parameters(f): return f.cache_parameters(), tuple(f.cache_info())
"""


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("f = lambda: (fib(20), parameters(fib))", (6765, ({"maxsize": 7, "typed": True}, (18, 21, 7, 7)))),
        ("f = lambda: (fib.__doc__, fib.__qualname__, fib.note, fib.__wrapped__(1))", ("doc", "fib", "mine", 1)),
        ("f = lambda: (more(1), more.__wrapped__(1), list(more.__annotations__))", (200, 2, ["x"])),
        ("f = lambda: (twice(1), twice.cache_info().maxsize, twice.__wrapped__.cache_info().maxsize)", (2, 3, 5)),
        ("f = lambda: (power(3), root(4), parameters(root)[0])", (8, 2, {"maxsize": 9, "typed": False})),
        ("f = functools.partial(fib, 10)", 55),
        ("f = functools.partial(Model(3).times, 2)", 6),
        ("f = lambda: (Model(2).area, Model.area.__doc__, Model.negative(1))", (4, "about", -1)),
        ("f = lambda: (size([1, [2, Model(40)]]), size.__doc__, size.note)", (42, "of anything", "too")),
        ("f = functools.partial(size, [1, 2])", 2),
    ],
)  # fmt: skip
def test_what_functools_makes_of_functions_of_a_cell(source: str, expected: object) -> None:
    names = cell(SOURCE + source)
    # What is cached here stays here.
    names["fib"](5), names["size"]([1])
    assert call_elsewhere(names["f"]) == expected


def test_a_cached_function_is_one_and_the_same_wherever_it_is_met() -> None:
    names = cell(SOURCE + "def f(fib2, fib1=fib): return fib2 is fib is fib1")
    fib, same = pickle.loads(dumps((names["fib"], names["f"])))
    assert fib is function_of(fib).__globals__["fib"] is fib.__wrapped__.__globals__["fib"]
    assert same(fib)


def test_a_cached_property_keeps_the_name_under_which_it_is_kept() -> None:
    names = cell(SOURCE)
    assert call_elsewhere(lambda model: (model.area, sorted(vars(model))), names["Model"](3)) == (9, ["area", "k"])


def test_what_can_be_imported_travels_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("module_of_wrappers")
    exec(SOURCE, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("fib", "size", "Model", "Model.times"):
        value: Any = functools.reduce(getattr, name.split("."), module)
        assert pickle.loads(dumps(value)) is value
        assert b"cloudpickle" not in dumps(value)
    cloudpickle.register_pickle_by_value(module)
    try:
        data = dumps((module.fib, module.size))
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    monkeypatch.delitem(sys.modules, module.__name__)
    fib, size = pickle.loads(data)
    assert (fib(10), size([1, 2])) == (55, 2)


@pytest.mark.parametrize(
    ("source", "trail"),
    [
        ("@functools.cache\ndef helper(x): return conn\ndef f(): return helper(1)", "`helper`"),
        ("class Box:\n    @functools.cached_property\n    def p(self): return conn\nf = lambda: Box()", "`Box` → `p`"),
        ("@functools.singledispatch\ndef size(x): return conn\ndef f(): return size(1)", "`size` → `object`"),
    ],
    ids=["cache", "cached_property", "singledispatch"],
)  # fmt: skip
def test_the_wrapped_function_that_leads_to_the_fault_is_named(source: str, trail: str) -> None:
    said = refusal("import functools\n" + CONN + source)
    assert f"its helper {trail} uses the global `conn` (sqlite3.Connection), which cannot be pickled." in said


def test_a_cached_function_that_is_a_task_names_what_is_at_fault() -> None:
    names = cell("import functools\n" + CONN + "@functools.cache\ndef f(x): return conn")
    with pytest.raises(NotSendable, match=r"its global `conn` \(sqlite3.Connection\) cannot be pickled"):
        dump_function(names["f"], "f")
