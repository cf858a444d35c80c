"""What the running item printed and showed, told by its worker from the worker's own tapes.

The worker's ``sys.stdout`` and ``sys.stderr`` note that something was written, as `displays` notes what is shown:
an item that does neither costs nothing. Only then, and after items that ran for a while, is looked how long the
tapes have become. So what compiled code prints in an item of a few microseconds belongs to the next item of the
call that is looked at; the last one always is.

Of calls that run beside each other, `voices` tells whose a text is, and the tapes have none of it, except where
somebody looks on from a terminal (`echo`).
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import Any, Protocol

from nbqueue.codec.messages import Printed
from nbqueue.worker.telling.output import pieces

__all__ = ["LOOK_S", "NOTHING", "Hearing", "Prints", "Said", "Stream"]

# To look costs 1 µs.
LOOK_S = 0.0002
# Displays of one item that are kept for its reply; and that leave at once, while it runs.
MOST_SHOWN, MOST_SHOWN_BYTES = 50, 4_000_000
MOST_LEAVING_BYTES = 1_000_000


class Said:
    """What one item printed and showed."""

    __slots__ = ("printed", "shown")

    def __init__(self, printed: list[tuple[int, int, tuple[tuple[int, bytes], ...]]], shown: list[dict[str, Any]]):
        self.printed = printed  # stream, size, pieces
        self.shown = shown

    def entries(self, offset: int) -> tuple[list[Printed], list[tuple[int, dict[str, Any]]]]:
        """As a reply has them."""
        return [(offset, *entry) for entry in self.printed], [(offset, event) for event in self.shown]

    @property
    def size(self) -> int:
        printed = sum(len(data) for _, _, kept in self.printed for _, data in kept)
        shown: int = sum(event["bytes"] for event in self.shown)
        return printed + shown


NOTHING = Said([], [])


class Hearing(Protocol):
    """Takes what one of several calls prints and shows."""

    def hear(self, stream: int, text: str) -> None: ...

    def show(self, id: str, data: dict[str, Any]) -> None: ...

    def ids(self) -> list[str]: ...


class Prints:
    """Where the running item's output begins, and whether there may be some.

    Attributes
    ----------
    touched : bool
        Something was written or shown since the last look.
    warned : bool
        A warning was.
    start : tuple of int
        How long stdout and stderr were before the running item printed.
    voices : callable, optional
        Who it is that prints now, while several do; None for nobody in particular.
    """

    def __init__(self, *, echo: bool = False) -> None:
        self.echo = echo
        self.voices: Callable[[], Hearing | None] | None = None
        self.touched = False
        self.attend: Callable[[], None] = lambda: None  # told the first time after a look
        self.warned = False
        self.start = (0, 0)
        self._lock = threading.Lock()  # guards what is shown: the courier takes it, too
        self._serial = 0
        self._shown: dict[str, dict[str, Any]] = {}
        self._ids: dict[str, None] = {}

    def begin(self, passed: tuple[int, int]) -> tuple[int, int]:
        """A call begins; `passed` of what was printed while nothing ran has been shown as nobody's."""
        out, err = self.start
        if passed[0] > out or passed[1] > err:
            self.start = max(out, passed[0]), max(err, passed[1])
        return self.start

    def show(self, item: int, id: str, data: dict[str, Any]) -> None:
        """Something is shown: it goes with the reply, unless it leaves before. Without data, it is taken away.

        Any thread of the task.
        """
        size = sum(len(value) if isinstance(value, str) else 1_000 for value in data.values())
        with self._lock:
            self._serial += 1
            self._shown.pop(id, None)
            self._ids.pop(id, None)
            if data:
                self._ids[id] = None
                if len(self._ids) > MOST_SHOWN:
                    del self._ids[next(iter(self._ids))]
            what = {"id": id, "n": self._serial, "bytes": size, "data": data}
            self._shown[id] = {"kind": "display", "item": item, **what}
            while len(self._shown) > MOST_SHOWN or sum(e["bytes"] for e in self._shown.values()) > MOST_SHOWN_BYTES:
                del self._shown[next(iter(self._shown))]
        self.touch()

    def touch(self) -> None:
        """Something was written or shown, or will have been when the item has ended."""
        if not self.touched:
            self.touched = True
            self.attend()

    def ids(self) -> list[str]:
        """Of what the running item shows, as far as it is kept by whoever looks."""
        if self.voices is not None and (voice := self.voices()) is not None:
            return voice.ids()
        with self._lock:
            return list(self._ids)

    def leaving(self) -> list[dict[str, Any]]:
        """What may leave now, oldest first; say `left` when it is with its reader."""
        events: list[dict[str, Any]] = []
        size = 0
        with self._lock:
            for event in self._shown.values():
                size += event["bytes"]
                if events and size > MOST_LEAVING_BYTES:
                    break
                events.append(event)
        return events

    def left(self, event: dict[str, Any]) -> None:
        """It is with its reader, so the reply need not have it."""
        with self._lock:
            if self._shown.get(event["id"]) is event:
                del self._shown[event["id"]]

    def take(self, fds: tuple[int, int], ends: tuple[int, int]) -> Said:
        """What has come since the last look. What comes next is the next item's."""
        self.touched = False
        starts, self.start = self.start, ends
        printed = [
            (stream, end - start, pieces(fd, start, end))
            for stream, fd, start, end in zip((1, 2), fds, starts, ends, strict=True)
            if end > start
        ]
        with self._lock:
            shown, self._shown = list(self._shown.values()), {}
            self._ids.clear()
        return Said(printed, shown) if printed or shown else NOTHING


class Stream(io.TextIOWrapper):
    """A worker's stdout or stderr: line by line, so that what a task prints is seen when it is printed."""

    def __init__(self, fd: int, prints: Prints) -> None:
        self._number = fd
        super().__init__(
            open(fd, "wb", closefd=False),  # noqa: SIM115 - as long as the process
            encoding="utf-8",
            errors="backslashreplace",
            line_buffering=True,
        )
        self._prints = prints

    def write(self, text: str, /) -> int:
        prints = self._prints
        if prints.voices is not None and (voice := prints.voices()) is not None:
            voice.hear(self._number, text)
            if not prints.echo:
                return len(text)
        else:
            prints.touch()
        written: int = super().write(text)
        return written
