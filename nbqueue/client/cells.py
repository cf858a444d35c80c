"""Cells that run in a worker: a notebook's names go out with the code, and come back when it has run.

::

    notebook's names ─▶ a function whose globals they are ─▶ worker: codec.cells.run_cell ─▶ `CellFuture`
           ▲                                                                                     │
           └───────────────── put back: never over what the notebook has said since ◀────────────┘

Names are put back in the main thread only: when the result is asked for there, and when `notebook.magics` finds the
kernel between two cells.
"""

from __future__ import annotations

import itertools
import secrets
import sys
import threading
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nbqueue.client.results.frames import user_frames_only
from nbqueue.client.results.future import TaskFuture
from nbqueue.client.sending.listener import Link
from nbqueue.codec.cells import CellResult, run_cell
from nbqueue.errors import NbqueueError

__all__ = ["Cell", "CellFuture", "Home", "as_function", "listed"]

_MISSING: Any = object()
_serials = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Cell:
    """A compiled cell, its last expression apart; the names that it uses, and those that it binds."""

    code: types.CodeType
    last: types.CodeType | None
    used: frozenset[str]
    bound: frozenset[str]


def as_function(cell: Cell, namespace: dict[str, Any], name: str) -> tuple[types.FunctionType, tuple[Any, ...]]:
    """A function that runs the cell, and its arguments. What it is pickled with are the names that the cell uses."""
    mentioned = compile(f"lambda: ({''.join(f'{used}, ' for used in sorted(cell.used))})", "<names>", "eval")
    template = _run.__code__
    code = template.replace(
        # Names of attributes as well: whoever pickles it looks there for the submodules that are needed.
        co_names=(*template.co_names, *_attributes(cell.code)),
        # And no two alike: a worker keeps functions that it knows, with what is left of their globals.
        co_consts=(*template.co_consts, *mentioned.co_consts, secrets.token_hex(8)),
        co_name=name,
        co_qualname=name,
    )
    return types.FunctionType(code, namespace), (run_cell, cell.code, cell.last, cell.bound)


def _run(run: Any, code: types.CodeType, last: types.CodeType | None, bound: frozenset[str]) -> CellResult:
    result: CellResult = run(code, last, bound, globals())
    return result


def _attributes(code: types.CodeType) -> list[str]:
    names = list(code.co_names)
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names += _attributes(const)
    return names


class Home:
    """A notebook's names as they were when a cell was sent, so that what was said since is not overwritten."""

    def __init__(self, namespace: dict[str, Any], bound: frozenset[str]) -> None:
        self._namespace = namespace
        self._serial = next(_serials)
        self._before = {name: namespace.get(name, _MISSING) for name in bound}
        self._used: dict[str, Any] = {}
        _away.add(self)

    def load(self, result: CellResult) -> tuple[dict[str, Any], Any]:
        """The names that the cell has bound, and its last value. The notebook stays as it is."""
        figures = _figures()
        try:
            names, value, self._used = result.load(self._namespace)
            return names, value
        finally:
            # A figure that comes home announces itself to pyplot, which would show it below whatever cell is next.
            for number in _figures() - figures:
                sys.modules["matplotlib.pyplot"].close(number)

    def place(self, names: dict[str, Any], result: CellResult) -> tuple[list[str], list[str]]:
        """Put names back. Returns those that were, and notes on those that were not."""
        kept = []
        for name, value in names.items():
            if self._was_changed(name):
                kept.append(f"`{name}`")
            else:
                self._namespace[name] = value
                _placed[name] = self._serial, value
        for name in result.deleted:
            if not self._was_changed(name):
                self._namespace.pop(name, None)
        for name, value in self._used.items():
            self._namespace.setdefault(name, value)
        self.forget()
        notes = []
        if kept:
            was, stays = ("was", "keeps its value") if len(kept) == 1 else ("were", "keep their values")
            notes.append(f"{listed(kept)} {was} bound anew here meanwhile and {stays}")
        if result.left:
            notes.append(f"not brought back, since it cannot be pickled: {listed(result.left)}")
        return [name for name in names if f"`{name}`" not in kept], notes

    def forget(self) -> None:
        """Nothing more will be put back."""
        self._before.clear()
        self._used.clear()
        _away.discard(self)
        if not _away:
            _placed.clear()

    def _was_changed(self, name: str) -> bool:
        """Whether the notebook, or a background cell that was sent later, has bound the name since."""
        before = self._before.get(name, _MISSING)
        now = self._namespace.get(name, _MISSING)
        if now is before or name not in self._before:
            return False
        serial, value = _placed.get(name, (self._serial, _MISSING))
        return not (value is now and serial < self._serial)


# Cells that have not come home, and by which of them a name was put back last, with what value.
_away: set[Home] = set()
_placed: dict[str, tuple[int, Any]] = {}


class CellFuture(TaskFuture[Any]):
    """A cell that runs in a worker. Its result is the value of the cell's last expression.

    Asking for it in the main thread puts the cell's names into the notebook, if that was not done before.

    Attributes
    ----------
    names : dict
        What the cell has bound, once it was asked for; also what was not put back, because the notebook has bound
        the name anew.
    put_back : list of str
        Those that are in the notebook.
    notes : list of str
        What a person should know of names that were not put back.
    """

    in_history = "%%background"

    def __init__(self, name: str, link: Link | None, home: Home) -> None:
        super().__init__(name, link)
        self.names: dict[str, Any] = {}
        self.put_back: list[str] = []
        self.notes: list[str] = []
        self._home = home
        self._value: Any = None
        self._loaded = self._placed = False
        self._loading = threading.RLock()

    def show_card(self) -> None:
        """Below the running cell, where there are cards."""
        try:
            self._shown().display()
        except NotImplementedError:
            # No notebook, or without cards: what it gives is told all the same.
            return

    def replay(self) -> Any:
        """A cell is run again by running it, without its first line."""
        with user_frames_only:
            raise NbqueueError("A background cell cannot be replayed; run it again without its first line.")

    def _kept(self) -> None:
        # Its code: of that, a note would say nothing.
        return None

    def _decoded(self) -> tuple[Any, BaseException | None]:
        result, error = super()._decoded()
        if error is not None:
            self._home.forget()
            return None, error
        with self._loading:
            if not self._loaded:
                self.names, self._value = self._home.load(result)
                self._loaded = True
            if not self._placed and threading.current_thread() is threading.main_thread():
                self._placed = True
                self.put_back, self.notes = self._home.place(self.names, result)
        return self._value, None


def listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _figures() -> set[int]:
    pyplot = sys.modules.get("matplotlib.pyplot")
    return set() if pyplot is None else set(pyplot.get_fignums())
