"""What tasks display that only a front end can draw: Markdown, formulas, JSON, plots with a mime type of their own.

These are displays of their own below the cell that made the call, and no part of its page. Pure state: `places`
sends what `take` gives. Always true here: a cell has a bounded number of them, and what is taken away leaves its
place to the next; where a display cannot land any more, `show` says so, and the page has its source as text.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping
from typing import Any

__all__ = ["MOST", "Rendered"]

MOST = 50

# What a page shows itself; the last one is of no use without its model, which is in the worker.
_ANYWHERE = {
    *("text/plain", "text/html", "image/svg+xml", "image/png", "image/jpeg", "image/gif", "image/webp"),
    "application/vnd.jupyter.widget-view+json",
}
_NOTHING = {"text/plain": ""}


class Rendered:
    """The displays of one cell that its front end draws. With `late`, it takes them when the cell has ended, too."""

    def __init__(self, *, late: bool) -> None:
        self._late = late
        self._lock = threading.Lock()
        self._ended = False
        self._ids: dict[object, str] = {}
        self._free: list[str] = []
        self._sent: set[str] = set()
        self._waiting: dict[str, Mapping[str, Any]] = {}

    def show(self, key: object, data: Mapping[str, Any]) -> bool:
        """Display `data`, or nothing in the place of what has the same `key`. False if that is the page's to do."""
        with self._lock:
            id = self._ids.get(key)
            if id is None:
                if not _needs_front_end(data):
                    return False
                if self._free:
                    id = self._free.pop()
                elif len(self._ids) < MOST and (self._late or not self._ended):
                    id = secrets.token_hex(16)
                else:
                    return False
                self._ids[key] = id
            elif not data:
                self._free.append(self._ids.pop(key))
            self._waiting[id] = data or _NOTHING
            return True

    def end(self) -> None:
        """The cell has ended."""
        with self._lock:
            self._ended = True

    def take(self) -> list[tuple[str, Mapping[str, Any], bool]]:
        """What is new: a display id, the data, and whether that replaces what was displayed before."""
        with self._lock:
            news = [(id, data, id in self._sent) for id, data in self._waiting.items()]
            self._sent.update(self._waiting)
            self._waiting.clear()
        return news


def _needs_front_end(data: Mapping[str, Any]) -> bool:
    """Whether there is more than text, and no form of it that a page can have."""
    has_picture = any(mime.startswith("image/") or mime == "text/html" for mime in data)
    return not has_picture and not data.keys() <= _ANYWHERE
