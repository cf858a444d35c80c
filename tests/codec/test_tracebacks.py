"""Exceptions raised by a function of a cell in a fresh process, rebuilt here."""

from __future__ import annotations

import ast
import gc
import linecache
import pickle
import re
import subprocess
import sys
import traceback
import weakref
from pathlib import Path
from typing import Any

import pytest

import nbqueue
from nbqueue.codec.functions import dump_function
from nbqueue.codec.tracebacks import Gist, dump_exception, gist_of, load_exception
from nbqueue.errors import RemoteError, WorkerDied

# Runs as if it were a file of the package: its frames are ours, and must not be seen.
WORKER = """
import pickle, sys
from nbqueue.codec.tracebacks import dump_exception
function = pickle.load(sys.stdin.buffer)
try:
    function()
except BaseException as error:
    sys.stdout.buffer.write(dump_exception(error))
"""
HOME = str(Path(nbqueue.codec.tracebacks.__file__).parent.parent / "worker" / "pretended.py")
PROGRAM = f"exec(compile({WORKER!r}, {HOME!r}, 'exec'))"


def cell(source: str, filename: str = "<cell>") -> dict[str, Any]:
    """Run source as a notebook does: in a ``__main__`` that only this process has, known to linecache."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    exec(compile(source, filename, "exec"), namespace)
    return namespace


def raised_elsewhere(fn: Any) -> BaseException:
    """What `fn` raises in a fresh process."""
    data = dump_function(fn, "f")
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=data, capture_output=True, check=True)
    return load_exception(done.stdout)


def failed(source: str, filename: str = "<cell>") -> BaseException:
    return raised_elsewhere(cell(source, filename)["f"])


def round_trip(exc: BaseException) -> BaseException:
    return load_exception(dump_exception(exc))


def frames(exc: BaseException) -> list[tuple[str, int, str]]:
    return [(each.filename, each.lineno or 0, each.name) for each in traceback.extract_tb(exc.__traceback__)]


def caught(fn: Any, *args: Any) -> BaseException:
    try:
        fn(*args)
    except BaseException as exc:  # noqa: BLE001 - it is what the test is about
        return exc
    raise AssertionError("nothing was raised")


def test_type_arguments_attributes_and_notes_arrive() -> None:
    exc = failed("""
def f():
    error = ValueError("bad", 3)
    error.where = [1, 2]
    error.add_note("seen in row 7")
    raise error
""")
    assert type(exc) is ValueError
    assert exc.args == ("bad", 3)
    assert exc.where == [1, 2]  # type: ignore[attr-defined]
    assert exc.__notes__ == ["seen in row 7"]


def test_an_exception_class_of_the_cell_is_the_very_class_that_the_kernel_has() -> None:
    names = cell("class Diverged(ArithmeticError): pass\ndef f(): raise Diverged(7)")
    exc = raised_elsewhere(names["f"])
    assert type(exc) is names["Diverged"]
    assert exc.args == (7,)


def test_only_the_frames_of_the_user_and_of_libraries_are_there() -> None:
    exc = failed("import json\n\ndef parse(text):\n    return json.loads(text)\n\ndef f(): parse('{')\n")
    first, second, *library = frames(exc)
    assert (first, second) == (("<cell>", 6, "f"), ("<cell>", 4, "parse"))
    assert [(Path(filename).name, name) for filename, _, name in library] == [
        ("__init__.py", "loads"),
        ("decoder.py", "decode"),
        ("decoder.py", "raw_decode"),
    ]


def test_it_is_rendered_as_if_it_had_been_raised_here() -> None:
    names = cell("""
class Model:
    def fit(self, x):
        return 1, [
            x / (x - 1),
        ]

def f():
    return Model().fit(
        1)
""")
    here = caught(names["f"])
    assert here.__traceback__ is not None
    here.__traceback__ = here.__traceback__.tb_next  # this test's own frame
    lines = traceback.format_exception(here)
    assert "".join(lines).count("^") > 1
    assert traceback.format_exception(raised_elsewhere(names["f"])) == lines


def test_jupyter_shows_the_lines_of_the_cell_that_failed(tmp_path: Path) -> None:
    ultratb = pytest.importorskip("IPython.core.ultratb")
    source = "\ndef g(x):\n    if x:\n        y = 1\n        return y / 0\n\ndef f():\n    return g(2)\n"
    exc = failed(source, str(tmp_path / "123.py"))  # a file that is only in linecache, as ipykernel has them
    text = ultratb.VerboseTB(theme_name="nocolor", include_vars=False).text(type(exc), exc, exc.__traceback__)
    assert "----> 8     return g(2)" in text
    assert "----> 5         return y / 0" in text
    assert "      4         y = 1" in text
    assert ", in g()" in text


def test_frames_keep_nothing_of_the_process_that_loads_them_alive() -> None:
    class Local: ...

    data = dump_exception(caught(cell("def f(): 1 / 0")["f"]))

    def load() -> tuple[BaseException, weakref.ref[Local]]:
        local = Local()
        return load_exception(data), weakref.ref(local)

    exc, ref = load()
    gc.collect()
    assert exc.__traceback__ is not None
    assert ref() is None


def test_source_known_only_to_the_task_is_shown() -> None:
    exc = failed("""
def f():
    import linecache
    source = "def generated(x):\\n    # made there\\n    return x / 0\\n"
    linecache.cache["<made>"] = (len(source), None, source.splitlines(True), "<made>")
    names = {}
    exec(compile(source, "<made>", "exec"), names)
    names["generated"](1)
""")
    text = "".join(traceback.format_exception(exc))
    assert 'File "<made>", line 3, in generated\n    return x / 0\n           ~~^~~\n' in text
    assert linecache.getline("<made>", 2) == "    # made there\n"


def test_source_of_a_file_that_is_only_there_is_shown(tmp_path: Path) -> None:
    source = tmp_path / "elsewhere.py"
    source.write_text("x = 1\n\ndef fail():\n    raise KeyError('k')\n")
    names: dict[str, Any] = {}
    exec(compile(source.read_text(), str(source), "exec"), names)
    data = dump_exception(caught(names["fail"]))
    linecache.clearcache()
    source.unlink()
    assert "    raise KeyError('k')\n" in "".join(traceback.format_exception(load_exception(data)))


def test_a_file_that_is_here_too_is_read_here(tmp_path: Path) -> None:
    source = tmp_path / "both.py"
    source.write_text("def fail():\n    raise KeyError('there')\n")
    names: dict[str, Any] = {}
    exec(compile(source.read_text(), str(source), "exec"), names)
    data = dump_exception(caught(names["fail"]))
    linecache.clearcache()
    source.write_text("def fail():\n    raise KeyError('here')\n")
    assert "    raise KeyError('here')\n" in "".join(traceback.format_exception(load_exception(data)))


def test_causes_and_contexts_arrive_with_their_own_tracebacks() -> None:
    exc = failed("""
def f():
    try:
        try:
            {}["a"]
        except KeyError as error:
            raise ValueError("second") from error
    except ValueError:
        try:
            1 / 0
        except ZeroDivisionError:
            raise OSError(2, "third", "file.txt") from None
""")
    assert type(exc) is FileNotFoundError
    assert (exc.errno, exc.filename, exc.__suppress_context__) == (2, "file.txt", True)
    assert str(exc) == "[Errno 2] third: 'file.txt'"
    middle = exc.__context__
    assert type(middle) is ZeroDivisionError
    assert type(middle.__context__) is ValueError
    assert type(middle.__context__.__cause__) is KeyError
    assert frames(middle.__context__.__cause__) == [("<cell>", 5, "f")]


def test_a_cycle_of_causes_ends() -> None:
    first, second = ValueError(1), ValueError(2)
    first.__cause__, second.__cause__ = second, first
    exc = round_trip(first)
    assert exc.__cause__ is not None
    assert exc.__cause__.__cause__ is exc


def test_a_long_chain_is_cut_and_a_deep_recursion_keeps_its_ends() -> None:
    exc: BaseException = ValueError(0)
    for number in range(1, 2_000):
        following = ValueError(number)
        following.__cause__ = exc
        exc = following
    assert round_trip(exc).args == (1_999,)
    deep = failed("def g(): g()\ndef f(): g()")
    assert type(deep) is RecursionError
    assert frames(deep)[:2] == [("<cell>", 2, "f"), ("<cell>", 1, "g")]
    assert len(frames(deep)) == 5
    assert re.fullmatch(r"\([0-9,]+ frames in the middle are not shown\)", deep.__notes__[0])


def test_a_deep_recursion_was_shown_with_hundreds_of_frames() -> None:
    mutual = failed("def a(n): b(n)\n\ndef b(n):\n  if n: a(n - 1)\n  else: 1 / 0\ndef f(): a(100)")
    shown = [f"{name} {line}" for _, line, name in frames(mutual)]
    assert shown == ["f 6", "a 1", "b 4", "a 1", "b 4", "b 4", "a 1", "b 4", "a 1", "b 5"]
    assert mutual.__notes__ == ["(193 frames in the middle are not shown)"]


def test_a_traceback_that_is_not_deep_is_whole() -> None:
    exc = failed("def g(n): g(n - 1) if n else 1 / 0\ndef f(): g(20)")
    assert len(frames(exc)) == 22
    assert not hasattr(exc, "__notes__")


def test_an_error_that_began_and_ended_in_code_of_ours_was_told_as_the_context_of_the_users() -> None:
    ours: dict[str, Any] = {}
    exec(compile("def swallow(e):\n  try: raise e\n  except KeyError: pass", HOME, "exec"), ours)
    first, between, last = ValueError("first"), KeyError("ours"), ValueError("last")
    ours["swallow"](between)
    between.__context__, last.__context__ = first, between
    assert repr(round_trip(last).__context__) == "ValueError('first')"
    between.__context__ = between
    assert round_trip(last).args == ("last",)


def test_a_group_arrives_with_its_members() -> None:
    names = cell("""
class Failures(ExceptionGroup):
    def __new__(cls, errors):
        return super().__new__(cls, f"{len(errors)} failed", errors)
    def __init__(self, errors):
        self.count = len(errors)

def one(n):
    try:
        return 1 / n
    except ZeroDivisionError as error:
        return error

def f():
    raise Failures([one(0), ExceptionGroup("inner", [KeyError("k")])])
""")
    exc = raised_elsewhere(names["f"])
    assert type(exc) is names["Failures"]
    assert isinstance(exc, ExceptionGroup)
    assert str(exc) == "2 failed (2 sub-exceptions)"
    assert exc.count == 2  # type: ignore[attr-defined]
    zero, inner = exc.exceptions
    assert type(zero) is ZeroDivisionError
    assert frames(zero) == [("<cell>", 10, "one")]
    assert isinstance(inner, ExceptionGroup)
    assert type(inner.exceptions[0]) is KeyError


def test_a_huge_group_says_how_many_were_left_out() -> None:
    group = round_trip(ExceptionGroup("many", [ValueError(n) for n in range(1_000)]))
    assert isinstance(group, ExceptionGroup)
    assert len(group.exceptions) == 200
    assert str(group.exceptions[-1]) == "and 801 more exceptions that were not sent"


CLASSES = """
class Required(Exception):
    def __init__(self, code, detail):
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail

class Changing(Exception):
    def __init__(self, message):
        super().__init__(f"<{message}>")

class Slotted(Exception):
    __slots__ = ("code",)
    def __init__(self, *, code):
        self.code = code

class Path(OSError):
    def __init__(self, path):
        super().__init__(5, "broken", path)

class Decode(UnicodeDecodeError):
    def __init__(self):
        super().__init__("utf-8", b"abc", 1, 2, "because")

class Frozen(Exception):
    def __init__(self, code):
        self.__dict__["code"] = code
    def __setattr__(self, name, value):
        raise AttributeError(name)

class Reduced(Exception):
    def __init__(self, a, b):
        self.pair = a, b
    def __str__(self):
        return f"pair {self.pair}"
    def __reduce__(self):
        return Reduced, self.pair
"""


@pytest.mark.parametrize(
    ("made", "text", "attributes"),
    [
        ("Required(4, 'no')", "4: no", {"code": 4, "detail": "no"}),
        ("Changing('once')", "<once>", {}),
        ("Slotted(code=5)", "", {"code": 5}),
        ("Path('a.txt')", "[Errno 5] broken: 'a.txt'", {"errno": 5, "filename": "a.txt"}),
        (
            "Decode()",
            "'utf-8' codec can't decode byte 0x62 in position 1: because",
            {"object": b"abc", "end": 2},
        ),
        ("Frozen(6)", "6", {"code": 6}),
        ("Reduced(1, 2)", "pair (1, 2)", {"pair": (1, 2)}),
        ("StopIteration(9)", "9", {"value": 9}),
        ("ImportError('m', name='n')", "m", {"name": "n"}),
        ("NameError('m', name='n')", "m", {"name": "n"}),
        ("SyntaxError('m', ('f.py', 3, 1, 'x y'))", "m (f.py, line 3)", {"lineno": 3, "text": "x y"}),
    ],
)
def test_the_same_type_arrives_however_it_is_made(made: str, text: str, attributes: dict[str, Any]) -> None:
    names = cell(CLASSES + f"def f(): raise {made}")
    exc = raised_elsewhere(names["f"])
    assert type(exc) is type(eval(made, names))
    assert str(exc) == text
    assert {name: getattr(exc, name) for name in attributes} == attributes
    assert frames(exc)[-1][2] == "f"


def test_what_cannot_be_pickled_stays_behind_and_the_type_arrives() -> None:
    exc = failed("""
import threading
class Oops(Exception): pass
def f():
    error = Oops("bad", threading.Lock())
    error.lock, error.code = threading.Lock(), 5
    raise error
""")
    assert type(exc).__name__ == "Oops"
    assert exc.args[0] == "bad"
    assert exc.args[1].startswith("<unlocked _thread.lock")
    assert exc.code == 5  # type: ignore[attr-defined]
    assert exc.__notes__ == ["(its attribute `lock` could not be pickled)"]


@pytest.mark.parametrize("method", ["__str__", "__repr__", "__reduce__", "__reduce_ex__", "__getattribute__"])
def test_an_exception_whose_methods_raise_still_arrives(method: str) -> None:
    exc = failed(f"""
class Bad(Exception):
    def {method}(self, *args): raise RuntimeError("bad to the bone")
def f(): raise Bad(1)
""")
    assert type(exc).__name__ in {"Bad", "RemoteError"}
    assert BaseException.__getattribute__(exc, "__dict__") is not None


def test_a_type_that_exists_only_in_the_worker_arrives_as_text() -> None:
    exc = failed("""
def make():
    import sys, types
    module = sys.modules["worker_only"] = types.ModuleType("worker_only")
    exec("class Oops(Exception): pass", module.__dict__)
    return module.Oops
def f(): raise make()("boom")
""")
    assert type(exc) is RemoteError
    assert str(exc) == "worker_only.Oops: boom"
    assert exc.type_name == "worker_only.Oops"
    assert exc.traceback_text == (
        "Traceback (most recent call last):\n"
        '  File "<cell>", line 7, in f\n'
        '    def f(): raise make()("boom")\n'
        "worker_only.Oops: boom"
    )
    assert "No module named 'worker_only'" in exc.__notes__[0]
    assert frames(exc) == [("<cell>", 7, "f")]


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("import sys; sys.exit(3)", "the task called sys.exit(3)"),
        ("import sys; sys.exit()", "the task called sys.exit()"),
        ("raise SystemExit('bye')", "the task called sys.exit('bye')"),
        ("raise KeyboardInterrupt", "the task raised KeyboardInterrupt"),
        ("raise GeneratorExit('x')", "the task raised GeneratorExit: x"),
        ("import asyncio; raise asyncio.CancelledError", "the task raised asyncio.exceptions.CancelledError"),
    ],
)
def test_what_would_end_the_kernel_arrives_as_a_remote_error(statement: str, message: str) -> None:
    exc = failed(f"def f():\n    {statement}\n")
    assert type(exc) is RemoteError
    assert str(exc) == message
    assert frames(exc) == [("<cell>", 2, "f")]


def test_nor_does_it_hide_in_a_group() -> None:
    exc = round_trip(BaseExceptionGroup("both", [SystemExit(3), ValueError(1)]))
    assert isinstance(exc, ExceptionGroup)
    assert [type(member) for member in exc.exceptions] == [RemoteError, ValueError]


def test_an_interrupt_that_was_handled_is_still_told_as_the_context() -> None:
    exc = failed("def f():\n    try: raise KeyboardInterrupt\n    except BaseException: raise ValueError")
    assert type(exc) is ValueError
    assert type(exc.__context__) is KeyboardInterrupt


def test_an_error_of_ours_keeps_its_attributes() -> None:
    exc = round_trip(WorkerDied("gone", signal=9, attempts=2))
    assert isinstance(exc, WorkerDied)
    assert (str(exc), exc.signal, exc.attempts) == ("gone", 9, 2)


def test_it_can_be_sent_on_from_where_it_arrived() -> None:
    exc = failed("class Twice(Exception): pass\ndef f(): raise Twice(1)")
    again = round_trip(exc)
    assert type(again) is type(exc)
    assert traceback.format_exception(again) == traceback.format_exception(exc)


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle.dumps(5), pickle.dumps(([], {}))])
def test_bytes_that_make_no_sense_are_an_error_that_is_returned(data: bytes) -> None:
    assert type(load_exception(data)) is RemoteError


def test_code_without_columns_has_lines_and_no_carets() -> None:
    """As ``python -X no_debug_ranges`` compiles it."""
    tree: Any = ast.parse("def f(x):\n    return 1 + x / 0\n")
    for node in ast.walk(tree):
        node.col_offset = node.end_col_offset = -1  # type: ignore[attr-defined]
    names = cell("def f(x):\n    return 1 + x / 0\n")
    exec(compile(tree, "<cell>", "exec"), names)
    exc = round_trip(caught(names["f"], 1))
    assert traceback.format_exception(exc)[-2:] == [
        '  File "<cell>", line 2, in f\n    return 1 + x / 0\n',
        "ZeroDivisionError: division by zero\n",
    ]


def gist(source: str) -> Gist:
    return gist_of(dump_exception(caught(cell(source)["f"])))


def test_the_gist_names_type_message_and_the_users_innermost_line() -> None:
    found = gist("import json\n\ndef g():\n    json.loads('{')\n\ndef f():\n    g()\n")
    assert found[:5] == (
        "json.decoder.JSONDecodeError",
        "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        *("<cell>", 4, "g"),
    )
    assert found.source == "json.loads('{')"


def test_the_gist_of_a_long_message_is_one_short_line() -> None:
    found = gist("def f(): raise ValueError('first\\nsecond ' + 'x' * 1000)")
    assert found.text.startswith("first second xxx")
    assert len(found.text) == 200


def test_the_gist_of_an_exception_that_was_never_raised_has_no_place() -> None:
    assert gist_of(dump_exception(KeyError("k"))) == Gist("KeyError", "'k'")


def test_the_gist_runs_no_code_of_the_exception() -> None:
    data = dump_exception(
        caught(cell("class E(Exception):\n    def __setstate__(self, s): 1 / 0\ndef f(): raise E('m')")["f"])
    )
    assert (gist_of(data).type_name, gist_of(data).text) == ("E", "m")
