"""Functions of a cell and their arguments, loaded and called by a fresh process."""

from __future__ import annotations

import functools
import pickle
import sqlite3
import subprocess
import sys
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbqueue.codec.functions import (
    all_plain_and_short,
    digest,
    dump_arguments,
    dump_function,
    dumps,
    is_long,
    is_plain,
)
from nbqueue.errors import NotSendable

CALL = """
import pickle, sys
function, arguments = pickle.load(sys.stdin.buffer)
function = pickle.loads(function)
args, kwargs = pickle.loads(arguments)
result = function(*args, **kwargs)
sys.stdout.buffer.write(pickle.dumps(result))
"""

RETURN = """
import sys, pickle
from nbqueue.codec.functions import dumps
function = pickle.load(sys.stdin.buffer)
sys.stdout.buffer.write(dumps(function()))
"""


def cell(source: str) -> dict[str, Any]:
    """Run source as a notebook does: in a ``__main__`` that no other process can import."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "<cell>", "exec"), namespace)
    return namespace


def elsewhere(program: str, data: bytes) -> bytes:
    return subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True).stdout


def call_elsewhere(fn: Any, *args: Any, **kwargs: Any) -> Any:
    arguments = dump_arguments(args, kwargs, "f", fn)
    return pickle.loads(elsewhere(CALL, pickle.dumps((dump_function(fn, "f"), arguments))))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("scale = 3\ndef f(x): return scale * x", 12),
        ("def helper(x): return x + 1\ndef f(x): return helper(x)", 5),
        ("f = lambda x, y=2: x ** y", 16),
        ("def make(n):\n    def inner(x): return x + n\n    return inner\nf = make(10)", 14),
        ("def f(x): return 1 if x <= 1 else x * f(x - 1)", 24),
        (
            "def even(n): return n == 0 or odd(n - 1)\n"
            "def odd(n): return n != 0 and even(n - 1)\n"
            "def f(x): return even(x), odd(x)",
            (True, False),
        ),
        (
            "class Model:\n"
            "    def __init__(self, k): self.k = k\n"
            "    def fit(self, x): return self.k * x\n"
            "f = Model(5).fit",
            20,
        ),
        (
            "def f(x):\n"
            "    class Local:\n"
            "        def __call__(self): return x\n"
            "    return [Local()() for _ in range(2)]",
            [4, 4],
        ),
        (
            "from dataclasses import dataclass, field\n"
            "@dataclass\n"
            "class Point:\n"
            "    x: int\n"
            "    tags: list = field(default_factory=list)\n"
            "def f(x): return (Point(x).x, Point(x).tags, Point(x) == Point(x))",
            (4, [], True),
        ),
        ("import math as m\ndef f(x): return m.sqrt(x)", 2.0),
        ("def f(x):\n    import json\n    return json.dumps([x])", "[4]"),
        ("def f(x): return sum(y * scale for y in range(x))\nscale = 2", 12),
    ],
    ids=[
        "global",
        "helper",
        "lambda",
        "closure",
        "recursive",
        "mutually-recursive",
        "method",
        "local-class",
        "dataclass",
        "module",
        "import-inside",
        "global-in-comprehension",
    ],
)
def test_what_a_cell_defines_runs_in_a_fresh_process(source: str, expected: object) -> None:
    assert call_elsewhere(cell(source)["f"], 4) == expected


def test_an_instance_and_a_class_of_a_cell_are_arguments_like_any_other() -> None:
    names = cell(
        "class Box:\n"
        "    def __init__(self, value): self.value = value\n"
        "def f(box, kind, *, wrap): return isinstance(box, kind), wrap(box.value)"
    )
    assert call_elsewhere(names["f"], names["Box"](7), names["Box"], wrap=lambda x: [x]) == (True, [7])


def test_a_redefined_helper_is_what_the_next_pickle_holds() -> None:
    names = cell("def helper(): return 'old'\ndef f(): return helper()")
    before = dump_function(names["f"], "f")
    exec("def helper(): return 'new'", names)
    after = dump_function(names["f"], "f")
    assert call_elsewhere(names["f"]) == "new"
    assert digest(before) != digest(after)
    assert digest(after) == digest(dump_function(names["f"], "f"))


def test_a_class_that_comes_home_does_not_bring_old_helpers_along() -> None:
    names = cell(
        "def helper(): return 'old'\n"
        "class Model:\n"
        "    runs = 0\n"
        "    def predict(self): return helper()\n"
        "def f(): return Model()"
    )
    data = elsewhere(RETURN, dump_function(names["f"], "f"))
    exec("def helper(): return 'new'\nModel.runs = 1", names)
    model = pickle.loads(data)
    assert type(model) is names["Model"]
    assert model.predict() == names["Model"]().predict() == "new"
    assert names["Model"].runs == 1


def test_a_digest_is_24_hex_characters() -> None:
    assert len(digest(b"")) == 24
    assert int(digest(b"x"), 16) != int(digest(b"y"), 16)


def refusal(source: str, **more: Any) -> str:
    names = cell(source)
    names.update(more)
    with pytest.raises(NotSendable) as caught:
        dump_function(names["f"], "simulate")
    assert caught.value.__cause__ is not None
    return str(caught.value)


CONN = "import sqlite3\nconn = sqlite3.connect(':memory:')\n"


def test_the_global_at_fault_is_named() -> None:
    assert refusal(CONN + "other = object()\ndef f(): return other, conn.execute('select 1')") == (
        "`simulate` could not be sent: its global `conn` (sqlite3.Connection) cannot be pickled. "
        "Open it inside the task."
    )


def test_a_global_used_only_by_a_nested_function_is_named() -> None:
    source = "def f():\n    def inner(): return conn\n    return inner()"
    assert "its global `conn` " in refusal(CONN + source)


def test_the_closure_variable_at_fault_is_named() -> None:
    source = CONN + "def make(db):\n    def inner(): return db\n    return inner\nf = make(conn)"
    assert "its closure variable `db` (sqlite3.Connection) cannot" in refusal(source)


@pytest.mark.parametrize("signature", ["a, db=conn", "a, *, db=conn"])
def test_the_default_at_fault_is_named(signature: str) -> None:
    source = CONN + f"def f({signature}): return 1"
    assert "its default of parameter `db` (sqlite3.Connection)" in refusal(source)


def test_a_fault_is_found_where_a_function_has_more_defaults_than_parameters() -> None:
    source = CONN + "def f(a, b=1): return conn\ndef other(): return conn\nf.__code__ = other.__code__"
    assert "its global `conn` " in refusal(source)


def test_the_helper_that_leads_to_the_fault_is_named() -> None:
    assert refusal(CONN + "def load(): return conn\ndef f(): return load()") == (
        "`simulate` could not be sent: its helper `load` uses the global `conn` (sqlite3.Connection), "
        "which cannot be pickled. Open it inside the task."
    )


def test_a_helper_that_only_calls_back_is_not_to_blame() -> None:
    source = "def first(): return f()\ndef second(): return conn\ndef f(): return first(), second()"
    assert "its helper `second` uses the global `conn` " in refusal(CONN + source)


def test_the_method_that_leads_to_the_fault_is_named() -> None:
    source = "class Model:\n    def fit(self): return conn\ndef f(): return Model()"
    assert "its helper `Model` → `fit` uses the global `conn` " in refusal(CONN + source)


def test_the_part_of_a_container_at_fault_is_named() -> None:
    source = "import threading\nconfig = {'a': [1, threading.Lock()]}\ndef f(): return config"
    assert "its global `config['a'][1]` (_thread.lock) cannot be pickled. Create it" in refusal(source)


def test_a_partial_and_a_method_name_their_parts() -> None:
    lock = threading.Lock()
    assert "argument `key` (_thread.lock)" in refusal("", f=functools.partial(sorted, key=lock))
    source = "import threading\nclass Model:\n    def __init__(self): self.lock = threading.Lock()\n"
    source += "    def fit(self): pass\nf = Model().fit"
    assert "its object `self.lock` (_thread.lock)" in refusal(source)


def test_a_global_that_is_nested_too_deeply_is_told_as_such() -> None:
    source = "tree = []\nfor _ in range(100_000): tree = [tree]\ndef f(): return tree"
    names = cell(source)
    with pytest.raises(NotSendable, match=r"its global `tree` \(list\) is nested too deeply"):
        dump_function(names["f"], "simulate")
    while names["tree"]:  # by hand: freeing it in one go may overflow the stack of a debug build
        names["tree"] = names["tree"][0]


def connect(conn: object, *rest: object, timeout: object = None, **options: object) -> None: ...


def argument_refusal(*args: Any, fn: Any = connect, **kwargs: Any) -> str:
    with pytest.raises(NotSendable) as caught:
        dump_arguments(args, kwargs, "simulate", fn)
    return str(caught.value).removeprefix("`simulate` could not be sent: ")


def test_the_argument_at_fault_is_named_by_its_parameter() -> None:
    conn, lock = sqlite3.connect(":memory:"), threading.Lock()
    opened = "argument `conn` (sqlite3.Connection) cannot be pickled. Open it inside the task."
    assert argument_refusal(conn) == opened
    assert argument_refusal(1, 2, lock).startswith("argument `rest[1]` (_thread.lock) ")
    assert argument_refusal(1, timeout=lock).startswith("argument `timeout` ")
    assert argument_refusal(1, retry={"lock": lock}).startswith("argument `retry['lock']` ")
    assert argument_refusal(1, conn, fn=None).startswith("argument `1` (sqlite3.Connection) ")
    assert "argument `conn` (generator) cannot be pickled. Send a list" in argument_refusal(x for x in "ab")


def test_an_argument_whose_own_pickling_raises_is_named() -> None:
    class Moody:
        def __reduce__(self) -> str:
            raise KeyError("not today")

    assert "argument `conn` (" in argument_refusal(Moody())
    assert "Moody) cannot be pickled" in argument_refusal(Moody())


PLAIN: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.complex_numbers(allow_nan=False),
)
NESTED = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=70) | st.dictionaries(PLAIN, inner) | st.tuples(inner, inner),
    max_leaves=30,
)


@given(PLAIN)
def test_primitives_are_plain(value: object) -> None:
    assert is_plain(value)


@pytest.mark.parametrize("value", [[], (), {}, object(), int, len, type("Int", (int,), {})(1)])
def test_all_else_is_not_plain(value: object) -> None:
    assert not is_plain(value)


@given(st.lists(NESTED, max_size=4), st.dictionaries(st.text(), NESTED, max_size=4))
def test_arguments_arrive_equal_whichever_pickle_takes_them(args: list[Any], kwargs: dict[str, Any]) -> None:
    data = dump_arguments(tuple(args), kwargs, "f")
    assert pickle.loads(data) == (tuple(args), kwargs) == pickle.loads(dumps((tuple(args), kwargs)))
    # Not equal only, but the same types: True == 1 == 1.0.
    assert repr(pickle.loads(data)) == repr((tuple(args), kwargs))


OF_A_CELL = cell("class Int(int): pass\nclass Key(str): pass\ndef g(): pass")


@given(NESTED, st.sampled_from([OF_A_CELL["Int"](1), OF_A_CELL["Int"], OF_A_CELL["g"]]), st.integers(0, 5))
def test_nothing_goes_by_reference_to_main(value: object, guest: object, levels: int) -> None:
    for level in range(levels):
        guest = [value, guest] if level % 2 else {"guest": guest}
    assert b"cloudpickle" in dump_arguments((guest,), {}, "f")


def test_a_key_of_a_class_of_a_cell_goes_by_value() -> None:
    assert b"cloudpickle" in dump_arguments(({OF_A_CELL["Key"]("k"): 1},), {}, "f")
    assert b"cloudpickle" in dump_arguments((), {OF_A_CELL["Key"]("k"): 1}, "f")


# Between them lie those that a float holds, and of those that it does not, those that are short all the same.
NUMBERS = st.one_of(
    st.integers(-9, 9), *(st.sampled_from([sign * (1 << bits) - less for sign in (1, -1) for less in (0, 1)])
                          for bits in (63, 64, 1023, 1024, 1599, 1600, 1601, 1700))
)  # fmt: skip
PLAIN_VALUES = st.one_of(NUMBERS, st.booleans(), st.floats(), st.none(), st.text(max_size=3), st.just("x" * 201))


@given(st.one_of(st.lists(NUMBERS), st.lists(st.one_of(NUMBERS, st.booleans())), st.lists(PLAIN_VALUES)))
def test_many_plain_values_are_short_when_each_of_them_is(values: list[Any]) -> None:
    assert all_plain_and_short(values, 200) == (not any(is_long(value, 200) for value in values))


@pytest.mark.parametrize("values", [[1, 2, [3]], [[1]], [1.0, object()], ["a", bytearray(b"b")], [True, sqlite3.Row]])
def test_values_of_another_kind_among_them_are_not_plain(values: list[Any]) -> None:
    assert not all_plain_and_short(values, 200)
