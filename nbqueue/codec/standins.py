"""Frames of a traceback → records → frames that stand in for them.

`tracebacks` visits: in the worker with what was raised, in the kernel with what has arrived. Always true here: the
frames are the user's and a library's, none of ours; a stand-in has the original's file, lines, columns and names, and
nothing else: no locals, and nothing of the process that makes it. Lines of files that exist only where the task ran
come along and are lent to linecache.

The frames are compiled anew and do not come from tblib, which sets a frame's first line to the line that
raised and knows no columns: Jupyter then shows other lines of the cell than the ones that ran.
"""

from __future__ import annotations

import ast
import itertools
import linecache
import os
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Frame", "frames_of", "is_library", "is_ours", "lend_source", "traceback_of"]

_HOME = f"{Path(__file__).parent.parent}{os.sep}"
_LIBRARIES = (os.path.dirname(os.__file__) + os.sep, "<frozen ")
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")

# The ends of a deep recursion tell its story; the middle repeats. Of a traceback with more frames than this, each place
# is kept so often at either end: not every IPython leaves out what repeats.
_SHORT_FRAMES, _REPEATS = 24, 2
# For what does not repeat.
_FIRST_FRAMES, _LAST_FRAMES = 100, 200
# A generated file this small travels whole, so that context is shown; of others only the lines that ran.
_WHOLE_SOURCE_CHARACTERS = 20_000
_LINES_PER_FRAME = 10
_LENT_FILES = 200


@dataclass(frozen=True, slots=True)
class Frame:
    filename: str
    qualname: str
    first_line: int
    line: int
    end_line: int
    column: int  # -1 where columns are not known, as in the ast module
    end_column: int


def is_library(filename: str) -> bool:
    """Whether a file is Python's own or of a package that was installed, rather than the user's."""
    return filename.startswith(_LIBRARIES) or any(each in filename for each in _INSTALLED)


# ---- the worker's side


def frames_of(
    tb: types.TracebackType | None, sources: dict[str, dict[int, str]]
) -> tuple[tuple[Frame, ...], int]:
    """The frames to be shown, and how many are left out between them. Their source is added to `sources`."""
    whole: list[types.TracebackType] = []
    while tb is not None:
        if not is_ours(tb):
            whole.append(tb)
        tb = tb.tb_next
    kept = _ends_of_recursion(whole)
    if len(kept) > _FIRST_FRAMES + _LAST_FRAMES:
        kept[_FIRST_FRAMES:-_LAST_FRAMES] = []
    frames = []
    for each in kept:
        frame = _frame(each)
        frames.append(frame)
        _add_source(frame, each.tb_frame.f_globals, sources)
    return tuple(frames), len(whole) - len(kept)


def is_ours(tb: types.TracebackType) -> bool:
    return tb.tb_frame.f_code.co_filename.startswith(_HOME)


def _ends_of_recursion(tbs: list[types.TracebackType]) -> list[types.TracebackType]:
    if len(tbs) <= _SHORT_FRAMES:
        return tbs
    places: dict[tuple[int, int], list[int]] = {}
    for i, tb in enumerate(tbs):
        places.setdefault((id(tb.tb_frame.f_code), tb.tb_lineno), []).append(i)
    ends = {i for at in places.values() for i in (*at[:_REPEATS], *at[-_REPEATS:])}
    return [tbs[i] for i in sorted(ends)]


def _frame(tb: types.TracebackType) -> Frame:
    code = tb.tb_frame.f_code
    line = tb.tb_lineno or code.co_firstlineno  # some instructions have none
    unknown = (None, None, None, None)
    at = next(itertools.islice(code.co_positions(), max(tb.tb_lasti, 0) // 2, None), unknown)
    start, end_line, column, end_column = at
    if start != line or end_line is None or column is None or end_column is None:
        end_line, column, end_column = line, -1, -1
    if (end_line, end_column) < (line, column):  # generated code may say anything
        end_line, column, end_column = line, -1, -1
    return Frame(code.co_filename, code.co_qualname, code.co_firstlineno, line, end_line, column, end_column)


def _add_source(frame: Frame, module_globals: dict[str, Any], sources: dict[str, dict[int, str]]) -> None:
    known = sources.setdefault(frame.filename, {})
    wanted = range(frame.line, min(frame.end_line + 1, frame.line + _LINES_PER_FRAME))
    if known.keys() >= set(wanted):
        return
    linecache.checkcache(frame.filename)
    lines = linecache.getlines(frame.filename, module_globals)
    entry = linecache.cache.get(frame.filename)
    on_disk = entry is not None and len(entry) > 1 and entry[1] is not None
    if not on_disk and sum(map(len, lines)) <= _WHOLE_SOURCE_CHARACTERS:
        wanted = range(1, len(lines) + 1)
    # One line stays one line where it holds a form feed, which str.splitlines would split at.
    known.update({n: " ".join(lines[n - 1].splitlines()) for n in wanted if 0 < n <= len(lines)})


# ---- the kernel's side


def traceback_of(frames: Sequence[Frame]) -> types.TracebackType | None:
    tb: types.TracebackType | None = None
    seen: dict[Frame, types.TracebackType] = {}
    for each in reversed(frames):
        if each not in seen:
            seen[each] = _stand_in(each)
        real = seen[each]
        tb = types.TracebackType(tb, real.tb_frame, real.tb_lasti, real.tb_lineno)
    return tb


def _stand_in(frame: Frame) -> types.TracebackType:
    """A frame that stands still at the given place, of a function with nothing else in it.

    It is a generator's because that alone has no ``f_back``, which would keep our callers' locals alive.
    """
    tree = ast.parse("def stand_in():\n yield")
    function: Any = tree.body[0]
    nodes: Any = ast.walk(function)
    for node in nodes:
        if hasattr(node, "lineno"):
            node.lineno, node.end_lineno = frame.line, frame.end_line
            node.col_offset, node.end_col_offset = frame.column, frame.end_column
    function.lineno = function.end_lineno = frame.first_line
    function.col_offset = function.end_col_offset = -1
    consts = compile(tree, frame.filename, "exec").co_consts
    code = next(const for const in consts if isinstance(const, types.CodeType))
    code = code.replace(co_name=frame.qualname.rpartition(".")[2], co_qualname=frame.qualname)
    make: Callable[[], Any] = types.FunctionType(code, {"__name__": "?", "__file__": frame.filename})
    generator = make()
    next(generator)
    return types.TracebackType(None, generator.gi_frame, generator.gi_frame.f_lasti, frame.line)


_lent: dict[str, dict[int, str]] = {}


def lend_source(filename: str, lines: dict[int, str]) -> None:
    """Let linecache know lines of a file that exists only where the task ran; a file it has keeps its own."""
    entry = linecache.cache.get(filename)
    theirs = entry is not None and (filename not in _lent or (len(entry) > 1 and entry[1] is not None))
    if theirs or not lines:
        return
    while len(_lent) >= _LENT_FILES and filename not in _lent:
        oldest = next(iter(_lent))
        del _lent[oldest]
        linecache.cache.pop(oldest, None)
    known = _lent.setdefault(filename, {})
    known.update(lines)
    text = [known.get(n, "") + "\n" for n in range(1, max(known) + 1)]
    if filename.startswith("<") and filename.endswith(">"):
        linecache.cache[filename] = (sum(map(len, text)), None, text, filename)
    else:
        # A lazy entry: linecache asks for it only if there is no such file.
        linecache.cache[filename] = (lambda: "".join(text),)
