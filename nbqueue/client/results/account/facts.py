"""The facts of a batch, copied at one moment: how its items have ended, who ran them when, with which arguments.

Always true here: nothing is noted for the sake of this while the batch runs, beyond a line for each reply; no user's
code runs; pandas and matplotlib, which make something of it, are not known here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nbqueue.client.results.arriving import MOST_CANCELLED, Arriving
from nbqueue.client.results.items import Line
from nbqueue.client.results.ledger import CANCELLED, FORGOTTEN, OPEN
from nbqueue.client.results.outcome import Outcome
from nbqueue.client.sending.recipe import Holding, items_of
from nbqueue.codec.blobs import are_put
from nbqueue.codec.columns import load_items
from nbqueue.codec.functions import is_plain
from nbqueue.codec.glimpse import glimpse_keywords, glimpse_value, glimpse_values
from nbqueue.codec.messages import ERROR, EXCEPTION, VALUE, load_call
from nbqueue.codec.seal import body_of

__all__ = ["NOT_KEPT", "Facts", "facts_of"]

_ENDINGS = {"nbqueue.errors.TaskTimeout": "timeout", "nbqueue.errors.WorkerDied": "died"}
# Stands for an argument of which nothing is known any more.
NOT_KEPT = object()


@dataclass(slots=True)
class Facts:
    """Of the items at `places`. `lines` tell of replies, in the order in which they came."""

    name: str
    places: list[int]
    states: list[str]
    errors: list[str | None]
    sent_at: dict[int, float]  # of items of which no reply has told
    lines: list[Line]
    arguments: dict[str, list[Any]]


def facts_of(items: Arriving, *, arguments: bool = True) -> Facts:
    """All that is known now. With `arguments`, as far as they are kept."""
    with items._lock:
        ledger = items._ledger
        known = list(ledger.items())
        running = set(items._running)
        calls = [*items._calls.values(), *items._unfinished]
        failed = dict(items._arguments)
        lines = items._details.lines()
        messages = items._details.messages()
        total = items._total or 0
    known = [entry for entry in known if entry[1] != FORGOTTEN]
    places = [place for place, _, _ in known]
    ends = [_ending(kind, value, place in running) for place, kind, value in known]
    if total <= MOST_CANCELLED:
        # What was not drawn from the input yet.
        places += range(len(ledger), total)
        ends += [("queued", None)] * max(0, total - len(ledger))
    sent_at = {
        place: call.sent_at for call in calls for place in range(call.base, call.base + call.call.items)
    }
    seen: dict[int, tuple[Any, Any] | None] = {}
    if arguments:
        told = {start for start, _, _ in messages}
        for note in items._link.history.of(items):
            if note.payload is not None and note.base not in told:
                seen.update(_of_message(note.payload, note.base + note.first, note.base, note.items))
        for start, end, message in messages:
            seen.update(_of_message(message, start, start, end - start))
        for call in calls:
            if not call.call.payload:
                continue
            for place, prepared in enumerate(items_of(call), call.base):
                seen[place] = _look(prepared, call.body().common)
        for place, item in failed.items():
            seen[place] = _look(item, items._recipe.keywords)
    names = _Names(items._recipe.fn)
    return Facts(
        name=items.name,
        places=places,
        states=[state for state, _ in ends],
        errors=[error for _, error in ends],
        sent_at=sent_at,
        lines=lines,
        arguments=names.columns(places, seen),
    )


def _ending(kind: int, value: Any, running: bool) -> tuple[str, str | None]:
    if kind == VALUE:
        return "done", None
    if kind == OPEN:
        return ("running" if running else "queued"), None
    if kind == CANCELLED or kind not in (EXCEPTION, ERROR):
        return "cancelled", None
    gist = (value if isinstance(value, Outcome) else Outcome(kind, value, True)).gist()
    name = gist.type_name.rpartition(".")[2]
    state = _ENDINGS.get(gist.type_name, "failed") if kind == ERROR else "failed"
    return state, f"{name}: {gist.text}" if gist.text.strip() else name


# Arguments


def _of_message(payload: bytes, place: int, base: int, number: int) -> Iterator[tuple[int, Any]]:
    """Arguments of `number` items from `place` on, from the sealed message of a call whose first is at `base`."""
    body = load_call(body_of(payload))
    sent: Sequence[Any] = load_items(body.packed) if body.packed else body.frames
    common = glimpse_keywords(body.common) if body.common else {}
    for item in range(place - base, min(place - base + number, len(sent))):
        yield base + item, (sent[item], common) if body.packed else _look(sent[item], body.common)


def _look(item: Any, common: bytes) -> tuple[Any, Any] | None:
    """Positional arguments and keywords of a prepared item; None where they cannot be seen."""
    if isinstance(item, tuple):
        return item, glimpse_keywords(common) if common else {}
    frame = item.frame if isinstance(item, Holding) else item
    if not isinstance(frame, bytes):
        return None
    args, kwargs = glimpse_values(frame) or ((), None)
    if kwargs is None:
        return None
    return args, {**kwargs, **(glimpse_keywords(common) if are_put(common) else {})}


class _Names:
    """By which the arguments of a function are known."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._positional: list[str] = []
        self._defaults: dict[str, Any] = {}
        self._rest = "args"
        try:
            parameters = inspect.signature(fn).parameters.values()
        except (ValueError, TypeError):
            # Compiled, and silent about what it takes.
            parameters = {}.values()
        for each in parameters:
            if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD):
                self._positional.append(each.name)
            elif each.kind is each.VAR_POSITIONAL:
                self._rest = each.name

    def columns(self, places: list[int], seen: dict[int, Any]) -> dict[str, list[Any]]:
        """A column for each parameter that some item was given."""
        columns: dict[str, list[Any]] = {}
        for row, place in enumerate(places):
            known = seen.get(place)
            if known is None:
                continue
            for name, value in self._given(*known):
                column = columns.get(name)
                if column is None:
                    column = columns[name] = [NOT_KEPT] * len(places)
                column[row] = value if is_plain(value) else glimpse_value(value)
        return columns

    def _given(self, args: Iterable[Any], kwargs: Any) -> Iterator[tuple[str, Any]]:
        for i, value in enumerate(args):
            rest = i - len(self._positional)
            yield self._positional[i] if rest < 0 else f"{self._rest}[{rest}]", value
        yield from kwargs.items()
