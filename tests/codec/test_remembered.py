"""Bytes of a function are used again only where making them anew would give the same bytes."""

from __future__ import annotations

import fnmatch
import functools
import gc
import math
import random
import sys
import types
import weakref
from collections.abc import Iterator
from textwrap import dedent
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nbqueue.codec import functions
from nbqueue.codec.functions import dump_function, dumps
from nbqueue.codec.remembered import Remembered
from nbqueue.codec.wrappers import CACHED, function_of


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> Remembered:
    fresh = Remembered(functions._globals_of, functions._not_to_be_remembered)
    monkeypatch.setattr(functions, "_remembered", fresh)
    return fresh


def _notebook(source: str, **names: Any) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "__main__", **names}
    exec(source, namespace)
    return namespace


def _made_anew(fn: Any) -> int:
    """How often `fn` is pickled in three calls that follow two."""
    made = []
    original = functions.dumps

    def counting(*args: Any) -> bytes:
        made.append(1)
        return original(*args)

    functions.dumps = counting
    try:
        for _ in range(2):
            dump_function(fn, "f")
        made.clear()
        for _ in range(3):
            assert dump_function(fn, "f") == original(fn)
    finally:
        functions.dumps = original
    return len(made)


SOURCE = """
import math, json
from os.path import join
from pathlib import Path
def helper(x, y=(1, "two")): return math.sqrt(x) * factor + len(json.dumps(y)) + other(x)
def other(x): return helper if x else join("a", str(Path("b")))
def work(x, n=3): return [helper(i) for i in range(n)]
factor = 2.5
"""


def test_a_function_with_helpers_modules_and_constants_is_pickled_twice_at_most(remembered: Remembered) -> None:
    assert _made_anew(_notebook(SOURCE)["work"]) == 0


def test_closures_over_constants_are_remembered_too(remembered: Remembered) -> None:
    work = _notebook("def outer(a, b):\n    def work(): return a, b, len\n    return work")["outer"](1, "b")
    assert _made_anew(work) == 0


@pytest.mark.parametrize(
    "value",
    [
        *(1, True, 2.5, "text", b"bytes", None, (1, ("a", frozenset({2})))),
        *(math, math.sqrt, len, dict, random.Random, dedent, fnmatch._compile_pattern),  # type: ignore[attr-defined]
    ],
    ids=lambda value: getattr(value, "__name__", str(value))[:30],
)
def test_what_cannot_change_unnoticed_is_remembered(remembered: Remembered, value: Any) -> None:
    assert _made_anew(_notebook("def work(): return value", value=value)["work"]) == 0


@pytest.mark.parametrize(
    "value",
    [
        *([1], {"a": 1}, {1}, bytearray(b"x"), (1, [2]), "x" * 2_000, object(), types.SimpleNamespace()),
        *(random.Random(1), types.ModuleType("made_here"), type("Local", (), {"__module__": "__main__"}), [].append),
        *(float("1").hex, random.random, type("Meta", (type,), {})("Odd", (), {})),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_may_change_or_is_not_understood_is_pickled_each_time(remembered: Remembered, value: Any) -> None:
    assert _made_anew(_notebook("def work(): return value", value=value)["work"]) == 3
    assert _made_anew(_notebook("def work(x=value): return x", value=value)["work"]) == 3
    assert _made_anew(_notebook("def make(x):\n    return lambda: x\nwork = make(value)", value=value)["work"]) == 3
    helped = _notebook("def helper(x=value): return x\ndef work(): return helper()", value=value)
    assert _made_anew(helped["work"]) == 3


@pytest.mark.parametrize(
    "change",
    [
        "work.note = 1",
        "work.__kwdefaults__ = {'x': 1}",
        "work.__annotations__ = {'x': int}",
        "work.__doc__ = ['list']",
        "work.__module__ = 'elsewhere'",
    ],
)
def test_functions_with_attributes_of_their_own_are_pickled_each_time(remembered: Remembered, change: str) -> None:
    assert _made_anew(_notebook(f"def work(*, x=0): return x\n{change}")["work"]) == 3


CACHING = """
import functools
from functools import cache, lru_cache
def deeper(x): return x + g0
@lru_cache(3)
def helper(x): return deeper(x) if x else work(x)
@cache
def work(x): return helper(x)
def caller(x): return work(x), twice(x)
twice = functools.wraps(deeper)(lru_cache(None)(lambda x: deeper(x) * g1))
g0, g1 = 1, 2
"""


@pytest.mark.parametrize("name", ["helper", "work", "caller", "twice"])
def test_cached_functions_are_remembered_whatever_their_caches_hold(remembered: Remembered, name: str) -> None:
    names = _notebook(CACHING)
    assert _made_anew(names[name]) == 0
    before = dump_function(names[name], "f")
    names["caller"](1)
    assert dump_function(names[name], "f") is before == dumps(names[name])


@pytest.mark.parametrize(
    "change",
    [
        *("g0 = 2", "def deeper(x): return g0", "twice.note = 1", "helper.cache_parameters = lambda: {'typed': True}"),
        *("twice.__wrapped__ = len", "g1 = 3"),
    ],
)
def test_what_is_changed_behind_a_cache_is_noticed(remembered: Remembered, change: str) -> None:
    names = _notebook(CACHING)
    assert _made_anew(names["caller"]) == 0
    before = dump_function(names["caller"], "caller")
    exec(change, names)
    assert before != dump_function(names["caller"], "caller") == dumps(names["caller"])


@pytest.mark.parametrize(
    "change",
    [
        *("g0 = [1]", "helper.note = []", "def deeper(x: int): return g0", "g0 = cache([].append)"),
        *("helper.cache_parameters = lambda: {'typed': g0}", "helper.__annotations__ = {'x': 1}"),
    ],
)
def test_what_may_change_behind_a_cache_is_pickled_each_time(remembered: Remembered, change: str) -> None:
    names = _notebook(CACHING)
    exec(change, names)
    assert _made_anew(names["work"]) == 3


def test_a_submodule_that_is_imported_later_goes_along(
    remembered: Remembered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package's name brings along those of its submodules that were imported and that the function names."""
    package = types.ModuleType("package_of_a_test")
    package.__package__ = "package_of_a_test"
    monkeypatch.setitem(sys.modules, "package_of_a_test", package)
    work = _notebook("def work(): return package.part", package=package)["work"]
    assert _made_anew(work) == 0
    monkeypatch.setitem(sys.modules, "package_of_a_test.part", types.ModuleType("package_of_a_test.part"))
    assert dump_function(work, "work") == dumps(work)
    assert b"package_of_a_test.part" in dump_function(work, "work")
    assert _made_anew(work) == 0
    monkeypatch.delitem(sys.modules, "package_of_a_test.part")
    assert dump_function(work, "work") == dumps(work)


def test_a_function_of_a_module_that_has_another_in_its_place_now(
    remembered: Remembered, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("module_of_a_test")
    exec("def tool(): return 1", module.__dict__)
    monkeypatch.setitem(sys.modules, "module_of_a_test", module)
    tool = module.tool
    work = _notebook("def work(): return tool()", tool=tool)["work"]
    assert _made_anew(work) == 0
    # By its name another would be found.
    monkeypatch.setattr(module, "tool", dedent)
    assert dump_function(work, "work") == dumps(work)
    monkeypatch.setattr(module, "tool", tool)
    assert _made_anew(work) == 0
    tool.__qualname__ = "other"
    assert dump_function(work, "work") == dumps(work)


def test_nothing_is_remembered_of_a_later_cloudpickle(
    remembered: Remembered, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = _notebook("def work(): return 1")["work"]
    assert _made_anew(work) == 0
    monkeypatch.setattr(functions, "_KNOWN_CLOUDPICKLE", False)
    assert _made_anew(work) == 3


def test_nothing_is_remembered_while_modules_travel_by_value(remembered: Remembered) -> None:
    import cloudpickle

    work = _notebook("def work(): return json", json=sys.modules["json"])["work"]
    cloudpickle.register_pickle_by_value(sys.modules["hypothesis"])
    try:
        assert _made_anew(work) == 3
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules["hypothesis"])


def test_functions_that_are_made_for_one_call_are_neither_kept_nor_looked_at(
    remembered: Remembered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "_look", lambda fn: 1 / 0)
    last = None
    for i in range(1_500):
        fn = _notebook("f = lambda: 1")["f"] if i % 100 == 0 else eval("lambda: i", {"__name__": "__main__", "i": i})
        dump_function(fn, "f")
        last = weakref.ref(fn)
        del fn
    gc.collect()
    assert last is not None
    assert last() is None
    assert len(remembered._noted) <= 1_000


def test_only_so_many_are_remembered(remembered: Remembered) -> None:
    fns = [_notebook("def f(): pass")["f"] for _ in range(100)]
    for fn in fns * 3:
        dump_function(fn, "f")
    assert len(remembered._memories) <= 64


# Against making them anew, at each step of any story


CONSTANTS: list[Any] = [
    *(0, 1, 1.0, True, -0.0, 0.0, None, "a", "b", "x" * 1_500, b"b", (), (1, 2), frozenset({1})),
    *(math, sys.modules["json"], math.sqrt, math.cos, len, int, random.Random, random.random, weakref.ref, dedent),
]
# Made anew for each, since stories change them.
VALUES = st.sampled_from(CONSTANTS) | st.builds(
    lambda make: make(),
    st.sampled_from([list, dict, bytearray, lambda: (1, []), lambda: types.SimpleNamespace(a=1), lambda: [1, 2]]),
)
ATTRIBUTES = ["__defaults__", "__doc__", "__name__", "__qualname__", "__annotations__", "note", "__module__"]
CELLS = [
    "def helper(x): return x + g0",
    "def helper(x): return g1, deeper(x), pack.sub.value",
    "def deeper(x): return g2",
    "def deeper(x): return work if x else helper",
    "def deeper(x, y=g0): return [lambda: g1, y]",
    "def helper(): global g0; g0 = 1",
    "class helper:\n    value = 1",
    "def work(x=1): return helper(x), g0",
    "def work(x=1): return g0, g1, pack.sub, pack.mod",
    "def make(a, b):\n    def work(x=2): return a, b, helper, pack.sub.deep\n    return work\nwork = make(g0, g1)",
    "work = lambda: (g0, g1, g2, tool)",
    "del g1",
    "g2 = pack",
    "g1 = tool",
    "g1 = kept",
    "@lru_cache\ndef helper(x): 'doc'; return x + g0, deeper(x)",
    "@cache\ndef deeper(x): return g2, helper",
    "@lru_cache(g1 if type(g1) is int else None, typed=True)\ndef work(x=1): return helper(x), g0",
    "helper = wraps(deeper)(cache(lambda x: g1))",
    "deeper = cache(cache(deeper))",
    "work = cache(work)",
    "@singledispatch\ndef deeper(x): return g0",
    "deeper.register(int, helper)",
]


class Notebook(RuleBasedStateMachine):
    """A function, whatever it reaches, and all that may happen to them between two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.pack = types.ModuleType("pack_of_a_test")
        self.pack.__package__ = "pack_of_a_test"
        self.tool = eval("lambda: 1", {"__name__": "pack_of_a_test"})
        self.tool.__qualname__ = self.tool.__name__ = "tool"
        self.tool.__module__ = "pack_of_a_test"
        self.pack.tool = self.tool  # type: ignore[attr-defined]
        self.kept = functools.cache(eval("lambda: 2", {"__name__": "pack_of_a_test"}))
        self.kept.__qualname__ = "kept"
        self.pack.kept = self.kept  # type: ignore[attr-defined]
        sys.modules["pack_of_a_test"] = self.pack
        self.names = _notebook(
            "g0, g1, g2 = 1, 2, 3\ndef helper(x): return x + g0\ndef work(x): return helper(x)",
            pack=self.pack,
            tool=self.tool,
            kept=self.kept,
            **{name: getattr(functools, name) for name in ("cache", "lru_cache", "singledispatch", "wraps")},
        )
        functions._remembered = Remembered(functions._globals_of, functions._not_to_be_remembered)

    def teardown(self) -> None:
        for name in [name for name in sys.modules if name.startswith("pack_of_a_test")]:
            del sys.modules[name]

    def _function(self, which: str, *, behind: bool = True) -> Any:
        found = self.names.get(which)
        inner = found
        while type(inner) is CACHED:
            inner = function_of(inner)
        if not isinstance(inner, types.FunctionType) or inner.__globals__ is not self.names:
            return self._function("work", behind=behind)
        return inner if behind else found

    @rule(source=st.sampled_from(CELLS))
    def run_a_cell(self, source: str) -> None:
        try:
            exec(source, self.names)
        except (NameError, AttributeError, TypeError):
            pass

    @rule(name=st.sampled_from(["g0", "g1", "g2", "helper", "unused", "__file__"]), value=VALUES)
    def set_a_global(self, name: str, value: Any) -> None:
        self.names[name] = value

    @rule(name=st.sampled_from(["g0", "g1", "g2", "work", "helper"]))
    def change_in_place(self, name: str) -> None:
        value = self.names.get(name)
        if isinstance(value, types.FunctionType) and value.__defaults__:
            value = value.__defaults__[0]
        if isinstance(value, tuple) and len(value) > 1:
            value = value[1]
        if isinstance(value, list | bytearray):
            value.append(len(value))
        elif isinstance(value, dict):
            value[len(value)] = 1
        elif isinstance(value, types.SimpleNamespace):
            value.a += 1

    @rule(
        which=st.sampled_from(["work", "helper", "deeper"]),
        key=st.sampled_from(ATTRIBUTES),
        number=st.integers(0, 2),
        behind=st.booleans(),
    )
    def set_an_attribute(self, which: str, key: str, number: int, behind: bool) -> None:
        value: Any = {
            "__defaults__": [(1,), ([1],), None],
            "__annotations__": [{}, {"x": int}, {"x": "str"}],
            "__module__": ["__main__", "pack_of_a_test", "__main__"],
            "__doc__": [None, "one", ["two"]],
        }.get(key, ["one", "two", "tool"])[number]
        setattr(self._function(which, behind=behind), key, value)

    @rule(which=st.sampled_from(["work", "helper", "deeper"]), key=st.sampled_from(["__doc__", "note", "__wrapped__"]))
    def delete_an_attribute(self, which: str, key: str) -> None:
        self._function(which, behind=False).__dict__.pop(key, None)

    @rule(which=st.sampled_from(["work", "helper", "deeper"]), parameters=st.sampled_from([{}, {"typed": True}]))
    def say_other_parameters(self, which: str, parameters: dict[str, Any]) -> None:
        found = self._function(which, behind=False)
        if type(found) is CACHED:
            found.cache_parameters = lambda: parameters

    @rule(which=st.sampled_from(["work", "helper"]), other=st.sampled_from(["work", "helper", "deeper"]))
    def exchange_the_code(self, which: str, other: str) -> None:
        ours, theirs = self._function(which), self._function(other)
        if len(ours.__code__.co_freevars) == len(theirs.__code__.co_freevars):
            ours.__code__ = theirs.__code__

    @rule(value=VALUES, empty=st.booleans())
    def set_a_closure_variable(self, value: Any, empty: bool) -> None:
        for cell in self._function("work").__closure__ or ():
            if empty:
                del cell.cell_contents
            cell.cell_contents = value

    @rule(name=st.sampled_from(["sub", "mod", "sub.deep", "other"]), there=st.booleans())
    def import_or_forget_a_submodule(self, name: str, there: bool) -> None:
        full = f"pack_of_a_test.{name}"
        if there:
            sys.modules[full] = types.ModuleType(full)
        else:
            sys.modules.pop(full, None)

    @rule(value=st.sampled_from([1, len]), back=st.booleans())
    def patch_the_module(self, value: Any, back: bool) -> None:
        self.pack.tool = self.tool if back else value  # type: ignore[attr-defined]
        self.pack.kept = self.kept if back else value  # type: ignore[attr-defined]

    @rule(name=st.sampled_from(["pack_of_a_test", "pack_renamed"]))
    def rename_the_module(self, name: str) -> None:
        self.pack.__name__ = name

    @invariant()
    def the_bytes_are_those_of_now(self) -> None:
        work = self.names["work"]
        if not callable(work):
            return
        for _ in range(3):
            try:
                expected: Any = dumps(work)
            except Exception as error:  # noqa: BLE001 - whatever it cannot be
                expected = type(error)
            try:
                found: Any = dump_function(work, "work", [])
            except functions.NotSendable as error:
                found = type(error.__cause__)
            assert found == expected


@pytest.fixture(autouse=True)
def remembered_as_before() -> Iterator[None]:
    before = functions._remembered
    yield
    functions._remembered = before


Notebook.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_any_story_of_a_notebook = Notebook.TestCase
