"""What the demo measures: cyclomatic complexity by McCabe's rule, and files that cannot be parsed."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import pytest

from nbqueue import demo


def function(source: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    node = ast.parse(textwrap.dedent(source)).body[0]
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    return node


@pytest.mark.parametrize(
    ("expected", "body"),
    [
        (1, "return 1"),
        (2, "if x: pass"),
        (2, "if x: pass\nelse: pass"),
        (3, "if x: pass\nelif y: pass\nelse: pass"),
        (2, "for i in x: pass\nelse: pass"),
        (2, "while x: pass"),
        (1, "with x: pass"),
        (1, "assert x"),
        (2, "return x if y else z"),
        (3, "return x and y and z"),
        (4, "if x and y or z: pass"),
        (3, "try: pass\nexcept ValueError: pass\nexcept OSError: pass\nelse: pass\nfinally: pass"),
        (2, "try: pass\nexcept* ValueError: pass"),
        (2, "return [i for i in x]"),
        (4, "return {i: j for i in x for j in i if j}"),
        (3, "match x:\n  case 1: pass\n  case 2: pass\n  case _: pass"),
        (3, "match x:\n  case 1 if y: pass"),
        (2, "match x:\n  case whole if whole > 1: pass"),
        (2, "return lambda: 1 if x else 2"),
    ],
)
def test_complexity_is_decisions_plus_one(expected: int, body: str) -> None:
    assert demo.complexity(function("def f(x, y, z):\n" + textwrap.indent(body, "    "))) == expected


def test_functions_and_classes_inside_count_for_themselves() -> None:
    node = function(
        """
        def outer(x):
            def inner():
                if x: return 1
            class Local:
                def method(self):
                    while x: pass
            if x: return inner
        """
    )
    assert demo.complexity(node) == 2
    tree = ast.Module([node], [])
    measured = {name: demo.complexity(found) for name, found in demo.functions_of(tree)}
    assert measured == {"outer": 2, "outer.inner": 2, "outer.Local.method": 2}


def test_decorators_and_defaults_belong_to_whoever_defines_the_function() -> None:
    assert demo.complexity(function("@(a or b)\ndef f(x=1 if c else 2): pass")) == 1


def test_async_functions_are_functions() -> None:
    assert demo.complexity(function("async def f(x):\n    async for i in x: pass")) == 2


def test_functions_below_conditions_are_found() -> None:
    tree = ast.parse("try:\n  def f(): pass\nexcept E:\n  def g(): pass\nif x:\n  class C:\n    def h(self): pass")
    assert [name for name, _ in demo.functions_of(tree)] == ["f", "g", "C.h"]


def test_a_module_is_measured(tmp_path: Path) -> None:
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("class A:\n    def f(self):\n        if self:\n            pass\n")
    module = demo.measure(package / "__init__.py", tmp_path)
    found = demo.Function("pkg", "A.f", 3, 2)
    assert module == demo.Module("pkg", 4, 1, 1, (found,), (found,))


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (b"print 'Python 2'\n", "SyntaxError"),
        (b"x = '\xff'\n", "SyntaxError"),
        (b"# coding: no-such\n", "SyntaxError"),
        (b"x = 1\0\n", "SyntaxError|ValueError"),
    ],
)
def test_a_file_that_cannot_be_parsed_is_counted_and_stops_nothing(tmp_path: Path, source: bytes, error: str) -> None:
    path = tmp_path / "bad.py"
    path.write_bytes(source)
    module = demo.measure(path, tmp_path)
    assert module.name == "bad"
    assert module.lines == 0
    assert str(module.error).startswith(tuple(error.split("|")))


def test_a_file_is_read_in_the_encoding_that_it_declares(tmp_path: Path) -> None:
    path = tmp_path / "old.py"
    path.write_bytes("# coding: latin-1\ndef f(): 'é'\n".encode("latin-1"))
    assert demo.measure(path, tmp_path).error is None


def test_the_standard_library_is_found_without_its_tests() -> None:
    root, paths = demo.standard_library()
    names = {path.relative_to(root).as_posix() for path in paths}
    assert len(names) > 300
    assert {"ast.py", "json/decoder.py"} <= names
    assert not any("/tests/" in f"/{name}" or "site-packages" in name for name in names)
