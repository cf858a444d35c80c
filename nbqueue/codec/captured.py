"""Which large object rides along with a function. Looked for only when a function's bytes are many, and then once."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

from nbqueue.codec.blobs import size_text
from nbqueue.codec.functions import dumps
from nbqueue.codec.parts import Part, has_code, parts, type_name
from nbqueue.codec.wrappers import within

__all__ = ["LARGE_BYTES", "Captures"]

LARGE_BYTES = 10_000_000
# How far helpers are followed.
_LEVELS = 4
_REMEMBERED = 1000
# A function is looked at again when its size has changed by more than this share.
_CHANGE = 0.1


class Captures:
    """Tells of each large object that a function captures, once for each function and name."""

    def __init__(self) -> None:
        self._looked: dict[object, int] = {}  # function → its bytes then
        self._told: set[tuple[object, str, str]] = set()

    def look(self, fn: Callable[..., Any], name: str, size: int) -> str:
        """What is to be said of `fn`, which has `size` bytes when pickled; ``""`` for nothing (new)."""
        key = _identity(fn)
        if abs(size - self._looked.get(key, 0)) < _CHANGE * size:
            return ""
        if len(self._looked) >= _REMEMBERED:
            self._looked.clear()
            self._told.clear()
        self._looked[key] = size
        found = [
            (trail, part, weight)
            for trail, part, weight in _heavy(fn, _LEVELS, {id(fn)})
            if (key, part.what, part.name) not in self._told
        ]
        self._told.update((key, part.what, part.name) for _, part, _ in found)
        if not found:
            return ""
        trail, part, weight = max(found, key=lambda each: each[2])
        owner = f"its helper {' → '.join(f'`{step}`' for step in trail)}" if trail else "it"
        more = f" (and {len(found) - 1} more as large)" if len(found) > 1 else ""
        put = f"`{part.name} = queue.put({part.name})`" if part.name.isidentifier() else "`queue.put`"
        return (
            f"`{name}` takes {size_text(size)} along with every call: {owner} captures the {part.what} `{part.name}` "
            f"({type_name(part.value)}, {size_text(weight)}){more}. Send it once: with {put} the task receives the "
            "object, and calls carry its name only."
        )


def _identity(fn: Any) -> object:
    fn = within(getattr(fn, "func", fn))
    return getattr(fn, "__code__", None) or type(fn)


def _heavy(fn: object, levels: int, seen: set[int]) -> Iterator[tuple[list[str], Part, int]]:
    """Large parts of a function, the helpers that lead to each, and its size."""
    for part in parts(fn):
        value = part.value
        # A task is a function that wears one.
        inner = getattr(value, "__wrapped__", value) if not isinstance(value, types.ModuleType) else value
        code = has_code(inner)
        if id(inner) in seen or (weight := _weight(inner if code else value)) < LARGE_BYTES:
            continue
        seen.add(id(inner))
        if code and levels:
            for trail, found, size in _heavy(inner, levels - 1, seen):
                yield [part.name, *trail], found, size
        elif not code:
            yield [], part, weight


def _weight(value: object) -> int:
    try:
        return len(dumps(value, None, []))
    except Exception:  # noqa: BLE001 - as a part of the whole it was pickled: it only cannot be weighed alone
        return 0
