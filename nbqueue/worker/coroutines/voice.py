"""What one of several calls prints and shows.

They all write to the same descriptors, so whose a text is does not follow from where it stands: the worker's
``sys.stdout`` and ``sys.stderr`` ask a context variable who speaks, and hand the text to that call's `Voice`.

Always true here: what is kept of it is bounded, as of what is read from a tape; any thread may speak.
"""

from __future__ import annotations

import threading
from typing import Any

from nbqueue.worker.telling.output import EVENT_BYTES, HEAD_BYTES, TAIL_BYTES
from nbqueue.worker.telling.prints import NOTHING, Prints, Said

__all__ = ["Voice"]


class _Stream:
    """One of the two: its ends, for the reply, and what has not been told yet."""

    __slots__ = ("fresh", "head", "seen", "size", "tail")

    def __init__(self) -> None:
        self.size = 0
        self.head, self.tail, self.fresh = bytearray(), bytearray(), bytearray()
        self.seen = 0

    def add(self, data: bytes) -> None:
        self.size += len(data)
        room = HEAD_BYTES - len(self.head)
        if room > 0:
            self.head += data[:room]
        self.tail += data[max(0, room) :]
        if len(self.tail) > 2 * TAIL_BYTES:
            del self.tail[:-TAIL_BYTES]
        self.fresh += data
        if len(self.fresh) > 2 * EVENT_BYTES:
            del self.fresh[:-EVENT_BYTES]

    def pieces(self) -> tuple[tuple[int, bytes], ...]:
        if self.size <= HEAD_BYTES + TAIL_BYTES:
            return ((0, bytes(self.head + self.tail)),)
        return (0, bytes(self.head)), (self.size - TAIL_BYTES, bytes(self.tail[-TAIL_BYTES:]))

    def news(self) -> tuple[int, bytes]:
        """Where it begins, and what is new: whole lines, and a part of one that has not grown since the last look."""
        fresh = self.fresh
        end = max(fresh.rfind(b"\n"), fresh.rfind(b"\r")) + 1
        stands_still, self.seen = self.seen == self.size, self.size
        if not end and stands_still:
            end = len(fresh)
        start = max(0, end - EVENT_BYTES)
        while start < end and 0x80 <= fresh[start] < 0xC0:
            # In the middle of a character.
            start += 1
        at, data = self.size - len(fresh) + start, bytes(fresh[start:end])
        del fresh[:end]
        return at, data


class Voice:
    """One call's output.

    Attributes
    ----------
    prints : Prints
        What it shows.
    """

    def __init__(self) -> None:
        self.prints = Prints()
        self._lock = threading.Lock()
        self._streams = _Stream(), _Stream()

    def hear(self, stream: int, text: str) -> None:
        """It has printed: on stream 1 or 2."""
        data = text.encode("utf-8", "backslashreplace")
        with self._lock:
            self._streams[stream - 1].add(data)

    def show(self, id: str, data: dict[str, Any]) -> None:
        """It displays something."""
        self.prints.show(0, id, data)

    def ids(self) -> list[str]:
        """Of what it displays."""
        return self.prints.ids()

    def news(self, attempt: int) -> list[dict[str, Any]]:
        """Events of what it has printed since the last look."""
        events = []
        for number, stream in enumerate(self._streams, 1):
            with self._lock:
                at, data = stream.news()
            if data:
                what = {"stream": number, "at": at, "size": len(data), "text": data.decode("utf-8", "replace")}
                events.append({"kind": "output", "item": 0, "attempt": attempt, **what})
        return events

    def said(self) -> Said:
        """All of it, for the reply."""
        with self._lock:
            printed = [(number, s.size, s.pieces()) for number, s in enumerate(self._streams, 1) if s.size]
        shown = self.prints.take((0, 0), (0, 0)).shown
        return Said(printed, shown) if printed or shown else NOTHING
