"""`nbqueue demo`: read every module of this Python's standard library, in parallel.

Real input that every machine has: hundreds of files of very uneven sizes. Each one is read and parsed in a
worker process, and what was found comes back: the largest modules, the longest functions and the most
complex ones. Then the same function does the same files in this process, one after the other, so that the
speed-up is measured and the results are compared.
"""

from __future__ import annotations

import ast
import gc
import heapq
import sysconfig
import time
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nbqueue.errors import NbqueueError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Function", "Module", "complexity", "measure", "run", "standard_library"]

# Not part of the library that programs use, or not even meant to be parsed.
SKIPPED_FOLDERS = {"__pycache__", "idle_test", "test", "tests", "dist-packages", "site-packages"}
SHOWN = 5
# With --quick: every so manieth module.
QUICK_STEP = 12


@dataclass(frozen=True, slots=True)
class Function:
    """One function or method: where it is, how many lines it has, how many ways lead through it."""

    module: str
    name: str
    lines: int
    complexity: int


@dataclass(frozen=True, slots=True)
class Module:
    """What was found in one file; `error` tells why it could not be parsed.

    Only the module's longest and most complex functions travel: the library's own are among them.
    """

    name: str
    lines: int = 0
    classes: int = 0
    functions: int = 0
    longest: tuple[Function, ...] = ()
    most_complex: tuple[Function, ...] = ()
    error: str | None = None


# What is measured: runs in the workers


def measure(path: Path, root: Path) -> Module:
    """Parse one file below `root`. A file that cannot be parsed is an answer, too."""
    name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    try:
        # As the interpreter reads it: in the encoding that the file declares.
        with tokenize.open(path) as file:
            source = file.read()
        with warnings.catch_warnings():
            # Old files have escapes that are deprecated by now.
            warnings.simplefilter("ignore")
            tree = ast.parse(source, str(path))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return Module(name, error=f"{type(error).__name__}: {error}")
    found = [
        Function(name, qualified, (node.end_lineno or node.lineno) - node.lineno + 1, complexity(node))
        for qualified, node in functions_of(tree)
    ]
    return Module(
        name,
        lines=source.count("\n"),
        classes=sum(isinstance(node, ast.ClassDef) for node in ast.walk(tree)),
        functions=len(found),
        longest=tuple(_longest(found)),
        most_complex=tuple(_most_complex(found)),
    )


def functions_of(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function below `node` with its qualified name, also methods and functions in functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, child
            yield from functions_of(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.ClassDef):
            yield from functions_of(child, f"{prefix}{child.name}.")
        else:
            yield from functions_of(child, prefix)


def complexity(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Cyclomatic complexity: the number of independent paths through a function.

    T. J. McCabe, "A Complexity Measure", IEEE Transactions on Software Engineering SE-2 (4), 1976: for
    structured code, the number of decisions plus one. Decisions are ``if`` and ``elif``, loops, ``except``,
    conditional expressions, each further operand of ``and`` and ``or``, each ``for`` and ``if`` of a
    comprehension, and each ``case`` that may not match, its guard counted apart. Functions and classes
    inside count for themselves; a lambda counts for the function that it is in. ``assert`` does not count.

    >>> tree = ast.parse("def f(x):\\n    return 1 if x and x > 0 else 2")
    >>> complexity(tree.body[0])
    3
    """
    decisions = 0
    # The body alone: decorators and defaults are evaluated by whoever defines the function.
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        decisions += _decisions(node)
        waiting.extend(ast.iter_child_nodes(node))
    return decisions + 1


def _decisions(node: ast.AST) -> int:
    match node:
        case ast.If() | ast.IfExp() | ast.For() | ast.AsyncFor() | ast.While() | ast.ExceptHandler():
            return 1
        case ast.BoolOp(values=values):
            return len(values) - 1
        case ast.comprehension(ifs=ifs):
            return 1 + len(ifs)
        case ast.match_case(pattern=pattern, guard=guard):
            return (not _always_matches(pattern)) + (guard is not None)
    return 0


def _always_matches(pattern: ast.pattern) -> bool:
    return isinstance(pattern, ast.MatchAs) and pattern.pattern is None


def _longest(functions: Iterable[Function]) -> list[Function]:
    return heapq.nsmallest(SHOWN, functions, key=lambda f: (-f.lines, f.module, f.name))


def _most_complex(functions: Iterable[Function]) -> list[Function]:
    return heapq.nsmallest(SHOWN, functions, key=lambda f: (-f.complexity, f.module, f.name))


# The demonstration: runs in the terminal's process


def standard_library() -> tuple[Path, list[Path]]:
    """The folder of this Python's standard library, and its modules' files without their tests.

    Raises
    ------
    NbqueueError
        If it is not there as files (some Pythons carry it in an archive).
    """
    root = Path(sysconfig.get_path("stdlib"))
    paths = [
        path
        for path in sorted(root.rglob("*.py"))
        if not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts[:-1])
    ]
    if not paths:
        raise NbqueueError(f"The standard library's source files are not in {root}; the demo has nothing to read.")
    return root, paths


def run(*, workers: int | None = None, quick: bool = False, console: Console | None = None) -> None:
    """Measure the standard library in parallel, show what was found, then how long it took both ways.

    Parameters
    ----------
    workers : int, optional
        Worker processes; by default one per core that may be used.
    quick : bool
        Read a twelfth of the modules only.
    console : rich.console.Console, optional
        Where to print; stdout by default.
    """
    from rich.console import Console

    from nbqueue import TaskQueue

    console = console or Console(highlight=False)
    root, paths = standard_library()
    if quick:
        paths = paths[::QUICK_STEP]
    _say(console, f"Parsing {len(paths):,} modules of Python's standard library ({root}) in parallel.")

    started = time.perf_counter()
    queue = TaskQueue(stream_key="demo", workers=workers)

    @queue.task(name="parse")
    def parse(path: Path) -> Module:
        return measure(path, root)

    modules = parse.map(paths).results()
    parallel_s = time.perf_counter() - started
    processes = len(queue.status().workers)
    queue.shutdown()
    _show(console, modules)

    _say(console, "The same again in this process, one after the other …")
    # As in the process that workers are forked from: the collector passes over what was there before.
    gc.collect()
    gc.freeze()
    started = time.perf_counter()
    serial = [measure(path, root) for path in paths]
    serial_s = time.perf_counter() - started
    gc.unfreeze()
    _show_times(console, serial_s, parallel_s, processes, same=serial == modules)


def _show(console: Console, modules: list[Module]) -> None:
    from rich.table import Table

    def show(title: str, unit: str, rows: Iterable[tuple[str, int]]) -> None:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column(title, overflow="ellipsis", no_wrap=True, min_width=44)
        table.add_column(unit, justify="right", no_wrap=True, min_width=7)
        for name, number in rows:
            table.add_row(name, f"{number:,}")
        console.print()
        console.print(table)

    largest = heapq.nsmallest(SHOWN, modules, key=lambda module: (-module.lines, module.name))
    longest = _longest(function for module in modules for function in module.longest)
    most_complex = _most_complex(function for module in modules for function in module.most_complex)
    show("Largest modules", "lines", ((m.name, m.lines) for m in largest))
    show("Longest functions", "lines", ((f"{f.module}:{f.name}", f.lines) for f in longest))
    show("Most complex functions (McCabe)", "paths", ((f"{f.module}:{f.name}", f.complexity) for f in most_complex))
    unread = [module for module in modules if module.error is not None]
    _say(
        console,
        f"\n{len(modules) - len(unread):,} modules: {sum(m.lines for m in modules):,} lines, "
        f"{sum(m.classes for m in modules):,} classes, {sum(m.functions for m in modules):,} functions. "
        f"Not parsed: {len(unread)}.",
    )
    for module in unread[:SHOWN]:
        _say(console, f"  {module.name}: {module.error}")


def _say(console: Console, text: str) -> None:
    # Whole lines, also through a pipe; no markup, since a path may look like some.
    console.print(text, markup=False, soft_wrap=True)


def _show_times(console: Console, serial_s: float, parallel_s: float, processes: int, *, same: bool) -> None:
    workers = f"{processes} worker" + ("s" if processes != 1 else "")
    _say(console, f"serial    {serial_s:6.2f} s")
    _say(console, f"parallel  {parallel_s:6.2f} s   {workers}, from TaskQueue() to the last result")
    _say(console, f"speed-up  {serial_s / parallel_s:6.2f} ×   {'with the same results' if same else ''}")
    if not same:
        raise NbqueueError("Serial and parallel results differ, which must not be. Please report it.")
