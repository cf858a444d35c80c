"""What is told about failures: a note below an exception, a summary of a batch's, a table of them.

Always true here: nothing of this runs a user's code or rebuilds an exception, and of however many failures no more
than ten thousand are looked at.
"""

from __future__ import annotations

import html
import linecache
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from nbqueue.codec.glimpse import LONGEST
from nbqueue.codec.tracebacks import Gist
from nbqueue.progress.static import GREY_TEXT, RED, breakable

if TYPE_CHECKING:
    from nbqueue.client.results.future import TaskFuture
    from nbqueue.client.results.outcome import Outcome
    from nbqueue.client.results.replay import Kept

__all__ = ["Failures", "annotate", "not_an_end", "note_of", "summary_of"]

R = TypeVar("R")

# So many failures are looked at, so many groups shown, with so many of their items named.
LOOKED_AT = 10_000
_GROUPS, _ITEMS = 20, 5
_TYPES = 5


# ---- below an exception


def note_of(name: str, kept: Kept | None, worker: str | None, attempt: int) -> str:
    """``task simulate[3] with seed=39 · attempt 2 of 3 · worker 1``"""
    with_what = kept.glimpse() if kept is not None else ""
    parts = [f"task {name} with {with_what}" if with_what else f"task {name}"]
    attempts = kept.attempts if kept is not None else 1
    if attempt > 1 or attempts > 1:
        # A worker's death costs an attempt as well, and is not what the user counts.
        parts.append(f"attempt {attempt} of {attempts}" if attempt <= attempts else f"attempt {attempt}")
    slot = worker.split(":")[1:2] if worker else []
    parts += [f"worker {each}" for each in slot]
    return " · ".join(parts)


def annotate(error: BaseException, note: str, instead_of: Collection[str] = ()) -> None:
    """Add a note (PEP 678), once; `instead_of` earlier ones. Not to an exception that cannot take any."""
    try:
        notes = getattr(error, "__notes__", None)
        if isinstance(notes, list):
            notes[:] = [each for each in notes if each not in instead_of]
            if note in notes:
                return
        if not note:
            return
        # Past any method of the class with this name.
        BaseException.add_note(error, note)
    except Exception:  # noqa: BLE001 - a class that allows no new attribute
        return


def summary_of(outcomes: Iterable[Outcome], failed: int, items: int | None) -> str:
    """``3 of 240 items failed: ValueError ×2, KeyError ×1; batch.failed lists them``; nothing for a single one."""
    if failed < 2:
        return ""
    counts = Counter(_short(outcome.gist().type_name) for outcome in islice(outcomes, LOOKED_AT))
    kinds = [f"{name} ×{number:,}" for name, number in counts.most_common(_TYPES)]
    if len(counts) > _TYPES:
        kinds.append(f"{len(counts) - _TYPES} more types")
    of = "" if items is None else f" of {items:,}"
    first = "" if failed <= LOOKED_AT else f" (of the first {LOOKED_AT:,})"
    return f"{failed:,}{of} items failed: {', '.join(kinds)}{first}; batch.failed lists them"


def not_an_end(name: str, error: BaseException) -> RuntimeError:
    """In the place of an exception of a task's which, where it is asked for, would look like the end of a loop."""
    instead = RuntimeError(
        f"`{name}` raised {type(error).__name__}, which would end whatever asks for its result here. Catch it in the "
        "task, or have the task raise another exception."
    )
    instead.__cause__ = error
    return instead


def _short(type_name: str) -> str:
    return type_name.rpartition(".")[2]


# ---- a list that can be read


@dataclass(slots=True)
class _Group:
    """Failures of one type from one line. `messages` counts different ones, as far as they were looked at."""

    gist: Gist
    first: TaskFuture[Any]
    items: list[str] = field(default_factory=list)
    count: int = 0
    messages: set[str] = field(default_factory=set)

    def add(self, future: TaskFuture[Any], gist: Gist) -> None:
        self.count += 1
        if len(self.items) < _ITEMS:
            self.items.append(_item(future.name))
        if len(self.messages) <= LONGEST:
            self.messages.add(gist.text)

    @property
    def message(self) -> str:
        more = len(self.messages) - 1
        return f"{self.gist.text} (and {more:,} other message{'s' if more > 1 else ''})" if more else self.gist.text

    @property
    def which(self) -> str:
        more = self.count - len(self.items)
        return ", ".join(self.items) + (f" and {more:,} more" if more else "")

    @property
    def with_(self) -> str:
        return "with" if self.count == 1 else "the first with"

    @property
    def where(self) -> str:
        gist = self.gist
        return f"{_file(gist.filename)}, line {gist.line}, in {gist.function.rpartition('.')[2]}" if gist.line else ""

    @property
    def source(self) -> str:
        return self.gist.source or linecache.getline(self.gist.filename, self.gist.line).strip()[:LONGEST]

    @property
    def arguments(self) -> str:
        kept = self.first._kept()
        return kept.glimpse() if kept is not None else ""


class Failures(list["TaskFuture[R]"], Generic[R]):
    """Futures of the items that failed, in order: a list, shown as a table of them by type and line.

    Parameters
    ----------
    futures : iterable of TaskFuture
    items : int or None
        How many items the batch has, failed or not, as far as that is known.
    """

    def __init__(self, futures: Iterable[TaskFuture[R]] = (), items: int | None = None) -> None:
        super().__init__(futures)
        self._items = items

    def __reduce__(self) -> tuple[object, ...]:
        return list, (list(self),)

    def __repr__(self) -> str:
        if not self:
            return "[]"
        lines = [self._headline()]
        groups, rest = self._groups()
        for group in groups:
            lines.append(f"{group.count:,} × {group.gist.type_name}: {group.message}")
            if group.where:
                lines.append(f"    {group.where}: {group.source}" if group.source else f"    {group.where}")
            arguments = f", {group.with_} {group.arguments}" if group.arguments else ""
            lines.append(f"    items {group.which}{arguments}")
        return "\n".join([*lines, *([rest] if rest else [])])

    def _repr_html_(self) -> str:
        if not self:
            return "<i>no failed items</i>"
        groups, rest = self._groups()
        heads = "".join(
            f'<th style="{_CELL};{align};border-bottom:1px solid #8a8a8a">{name}</th>'
            for name, align in (("count", _RIGHT), ("error", _LEFT), ("where", _LEFT), ("items", _LEFT))
        )
        rows = "".join(map(_row, groups))
        more = f'<div style="{_GREY}">{html.escape(rest)}</div>' if rest else ""
        return (
            f'<div class="nbqueue-failures" style="max-width:1100px;overflow-x:auto"><b>{self._headline()}</b>'
            f'<table style="border-collapse:collapse;margin:4px 0"><thead><tr>{heads}</tr></thead>'
            f"<tbody>{rows}</tbody></table>{more}</div>"
        )

    def _headline(self) -> str:
        of = "" if self._items is None else f" of {self._items:,}"
        items = "item" if len(self) == 1 and (self._items or 1) == 1 else "items"
        return f"{len(self):,}{of} {items} failed"

    def _groups(self) -> tuple[Sequence[_Group], str]:
        """The largest groups, those with as many in order, and a word on what is not shown."""
        groups: dict[tuple[str, str, int], _Group] = {}
        for future in islice(self, LOOKED_AT):
            if future._outcome is None:
                continue
            gist = future._outcome.gist()
            key = gist.type_name, gist.filename, gist.line
            if key not in groups:
                groups[key] = _Group(gist, future)
            groups[key].add(future, gist)
        ordered = sorted(groups.values(), key=lambda group: -group.count)
        rest = []
        if len(ordered) > _GROUPS:
            hidden = ordered[_GROUPS:]
            rest.append(f"{sum(g.count for g in hidden):,} more of {len(hidden):,} other kinds")
        if len(self) > LOOKED_AT:
            rest.append(f"only the first {LOOKED_AT:,} were looked at")
        return ordered[:_GROUPS], "; ".join(rest)


# Literal colours, and each rule where it counts: a notebook that is not trusted loses style sheets and variables.
_RIGHT, _LEFT = "text-align:right", "text-align:left"
_CELL = "padding:3px 10px 3px 6px;vertical-align:top;font-size:13px;line-height:18px"
_GREY = f"color:{GREY_TEXT[0]}"
# Cells have a box: a table does not heed how wide they are to be.
_BOX = "min-width:100px;max-width:420px"
_CODE = "font-family:monospace;white-space:pre-wrap;background-color:transparent;padding:0"


def _row(group: _Group) -> str:
    def cell(content: str) -> str:
        return f'<td style="{_CELL};{_LEFT}"><div style="{_BOX}">{content}</div></td>'

    escape = breakable
    where = escape(group.where)
    if group.source:
        where += f'<br><code style="{_CODE}">{escape(group.source)}</code>'
    which = escape(group.which)
    if group.arguments:
        which += f'<br><span style="{_GREY}">{group.with_}</span> '
        which += f'<code style="{_CODE}">{escape(group.arguments)}</code>'
    error = f'<b style="color:{RED[0]}">{escape(_short(group.gist.type_name))}</b>'
    error += f"<br>{escape(group.message)}" if group.message else ""
    count = f'<td style="{_CELL};{_RIGHT};white-space:nowrap">{group.count:,} ×</td>'
    return f"<tr>{count}{cell(error)}{cell(where)}{cell(which)}</tr>"


def _item(name: str) -> str:
    """``simulate[3]`` → ``[3]``"""
    at = name.rfind("[")
    return name[at:] if at >= 0 else name


def _file(filename: str) -> str:
    """As a person calls it: the cell's number in a notebook, else the last parts of the path."""
    # Through sys.modules: where nobody has imported IPython, there are no cells.
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = get_ipython() if get_ipython is not None else None
    compiler = getattr(shell, "compile", None)
    try:
        named = compiler.format_code_name(filename) if compiler is not None else None
    except Exception:  # noqa: BLE001 - another shell, another compiler
        named = None
    if named is not None:
        return " ".join(named)
    return os.path.join(*filename.rsplit(os.sep, 2)[-2:]) if os.sep in filename else filename
