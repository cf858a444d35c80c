"""Which names a cell uses and binds."""

from __future__ import annotations

import ast

import pytest

from nbqueue.notebook.names import awaits, names_of


def of(code: str) -> tuple[set[str], set[str]]:
    names = names_of(ast.parse(code))
    return set(names.used), set(names.bound)


@pytest.mark.parametrize(
    ("code", "used", "bound"),
    [
        ("y = x", {"x"}, {"y"}),
        ("x = 1\ny = x", set(), {"x", "y"}),
        ("x += 1", {"x"}, {"x"}),
        ("a, (b, *c) = d", {"d"}, {"a", "b", "c"}),
        ("a: int = b", {"int", "b"}, {"a"}),
        ("a: int", {"int"}, set()),
        ("import a.b, c as d\nfrom e import f as g", set(), {"a", "d", "g"}),
        ("for i in n: s = i", {"n"}, {"i", "s"}),
        ("for i in n: s = i\nuse(s)", {"n", "s", "use"}, {"i", "s"}),
        ("while go(): x = 1\nx", {"go", "x"}, {"x"}),
        ("with a as b: c = b", {"a"}, {"b", "c"}),
        ("with a as f: d = f\nuse(d)", {"a", "use"}, {"f", "d"}),
        ("if a: b = 1\nb", {"a", "b"}, {"b"}),
        ("if a: b = 1\nelse: b = 2\nb", {"a"}, {"b"}),
        ("if m := a: m\nm", {"a"}, {"m"}),
        ("a and (m := 1)\nm", {"a", "m"}, {"m"}),
        ("[k := v for v in w]\n", {"w"}, {"k"}),
        ("try: a = b\nexcept E as e: a = e\nfinally: c = 1\na, c", {"b", "E"}, {"a", "c"}),
        ("try: a = b\nexcept E: pass\na", {"b", "E", "a"}, {"a"}),
        ("match a:\n  case {'k': v, **r} if v: w = r\n  case B(x, y=[*z]): pass", {"a", "B"}, set("vrwxz")),
        ("del x", {"x"}, {"x"}),
        ("x = 1\ndel x\nx", {"x"}, {"x"}),
        ("def f(a, b=c): return a + d\n", {"c", "d"}, {"f"}),
        ("def f():\n  global g\n  g = h", {"h"}, {"f", "g"}),
        ("class A(B):\n  x = y\n  def m(self): return z", {"B", "y", "z"}, {"A"}),
        ("lambda a: a + b", {"b"}, set()),
        ("[x for x in xs if x > t]", {"xs", "t"}, set()),
        ("{a: b for a in c for b in a}", {"c"}, set()),
        ("f'{a!r:>{b}}'", {"a", "b"}, set()),
        ("a.b.c = d", {"a", "d"}, {"a"}),
        ("a[i] = d", {"a", "i", "d"}, {"a"}),
        ("a.b[0] += 1", {"a"}, {"a"}),
        ("df = load()\ndf['x'] = 1", {"load"}, {"df"}),
        ("@d\ndef f(): pass", {"d"}, {"f"}),
        ("assert a, b\nraise c", {"a", "b", "c"}, set()),
        ("async def f(): return await a", {"a"}, {"f"}),
    ],
)
def test_names(code: str, used: set[str], bound: set[str]) -> None:
    found, stored = of(code)
    # A class body asks for the name of its module.
    assert (found - {"__name__"}, stored) == (used, bound)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("await a", True),
        ("x = [await a]", True),
        ("async for i in a: pass", True),
        ("if a:\n  async with b: pass", True),
        ("[x async for x in a]", True),
        ("async def f(): await a", False),
        ("lambda: (yield)", False),
        ("a", False),
    ],
)
def test_what_awaits(code: str, found: bool) -> None:
    assert (awaits(ast.parse(code)) is not None) == found


def test_what_cannot_be_compiled_is_refused() -> None:
    with pytest.raises(SyntaxError):
        of("x = yield")
