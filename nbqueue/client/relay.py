"""Where what a call prints is shown: in a notebook, on its cell's page; in a task, by the task that made the call.

A task's own calls run in other workers, and come back to this process, which has no cell. So it prints what they
print, whole lines with their names, and it reaches the notebook as its own output does.
"""

from __future__ import annotations

import builtins
import sys
import threading
from collections.abc import Mapping
from typing import Any

from nbqueue import context
from nbqueue.progress.page import ERR, Page, Tag
from nbqueue.progress.places import here

__all__ = ["Relay", "page"]


class Relay(Page):
    """Prints, on the stdout and stderr of this process, what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: dict[tuple[object, int], str] = {}
        self._guard = threading.Lock()

    def name(self, task: str) -> str:
        return task

    def add(self, tag: Tag, stream: int, text: str) -> None:
        with self._guard:
            *lines, rest = (self._parts.pop((tag.key, stream), "") + text).split("\n")
            if rest:
                self._parts[tag.key, stream] = rest
        self._print(tag, stream, lines)

    def end(self, tag: Tag, stream: int) -> None:
        with self._guard:
            rest = self._parts.pop((tag.key, stream), "")
        self._print(tag, stream, [rest] if rest else [])

    def lose(self, size: int) -> None:
        """What is relayed says so itself."""

    def show(self, tag: Tag, id: str, data: Mapping[str, Any]) -> None:
        # The worker's own, see `worker.telling.displays`.
        builtins.display(data, raw=True, display_id=id)  # type: ignore[attr-defined]

    @staticmethod
    def _print(tag: Tag, stream: int, lines: list[str]) -> None:
        out = sys.stderr if stream == ERR else sys.stdout
        if lines and out is not None:
            out.write("".join(f"{tag.text} │ {line}\n" for line in lines))


_relay = Relay()


def page() -> Page | None:
    """Of whatever makes a call now; None where what it prints is seen without us."""
    task = context.current()
    if task is None:
        return here()
    return _relay if task.shows else None
