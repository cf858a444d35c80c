"""What tasks print, as pure state: each item's own text, and what of it is new for the page of its cell.

::

    events, while an item runs ─┐                 ┌─▶ Transcript: text of one item, `future.stdout`
                                ├─▶ Prints ───────┤
    its reply, all of it       ─┘                 └─▶ Page: last lines of all, tagged

Always true here: bytes have places, counted from where an item began to print, so what comes by both ways is
shown once; everything is bounded, and what is left out is said. Knows neither queue nor Redis nor IPython. Safe to
be used by several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .page import ERR, OUT, Page, Tag

__all__ = ["Prints", "Transcript"]

# What the items of one batch printed is kept up to about this; of more, the first items lose theirs.
MOST_KEPT = 128_000_000
EACH_BYTES = 500  # of a transcript apart from its text
MOST_DISPLAYS = 50  # of one item

_Piece = tuple[int, bytes]


class Transcript:
    """What one item printed on both streams, all attempts one after another, and what it displayed."""

    __slots__ = ("_streams", "displays")

    def __init__(self) -> None:
        # Few of them, and many transcripts: what is not there takes no room.
        self._streams: list[_Stream] = []
        self.displays: tuple[Mapping[str, Any], ...] = ()

    def add(self, attempt: int, stream: int, at: int, data: bytes) -> tuple[int, bytes]:
        """A piece that begins at byte `at`. Returns how many bytes before it never came, and what of it is new."""
        return self._stream(attempt, stream).add(at, data)

    def complete(self, attempt: int, stream: int, size: int, pieces: Iterable[_Piece]) -> tuple[int, bytes]:
        """All that is kept of `size` bytes. Returns how many were never shown and are not here, and what is new."""
        return self._stream(attempt, stream).complete(size, pieces)

    def text(self, stream: int) -> str:
        streams = [each for each in self._streams if each.number == stream]
        return "".join(each.text() for each in sorted(streams, key=lambda each: each.attempt))

    @property
    def size(self) -> int:
        return sum(stream.kept for stream in self._streams) + EACH_BYTES

    def _stream(self, attempt: int, number: int) -> _Stream:
        for stream in self._streams:
            if stream.number == number and stream.attempt == attempt:
                return stream
        self._streams.append(_Stream(attempt, number))
        return self._streams[-1]


class _Stream:
    """Pieces of one stream of one attempt, in order and without overlap."""

    __slots__ = ("_pieces", "_size", "attempt", "kept", "number", "seen")

    # As a reply keeps it: the two ends.
    MOST = 262_144

    def __init__(self, attempt: int, number: int) -> None:
        self.attempt = attempt
        self.number = number
        self._pieces: list[_Piece] = []
        self._size = 0
        self.kept = 0
        self.seen = 0  # what lies before has been shown, or never will be

    def add(self, at: int, data: bytes) -> tuple[int, bytes]:
        lost, new = max(0, at - self.seen), data[max(0, self.seen - at) :]
        if not new:
            return 0, b""
        start = at + len(data) - len(new)
        self._pieces.append((start, new))
        self.kept += len(new)
        self.seen = self._size = start + len(new)
        while self.kept > self.MOST and len(self._pieces) > 2:
            # The second: the beginning is worth more than the middle.
            _, dropped = self._pieces.pop(1)
            self.kept -= len(dropped)
        return lost, new

    def complete(self, size: int, pieces: Iterable[_Piece]) -> tuple[int, bytes]:
        seen, lost, new = self.seen, 0, b""
        kept = sorted(pieces)
        for at, data in kept:
            lost += max(0, at - seen)
            new += data[max(0, seen - at) :]
            seen = max(seen, at + len(data))
        lost += max(0, size - seen)
        if kept:
            self._pieces = kept
        self.kept = sum(len(data) for _, data in self._pieces)
        self._size = size
        self.seen = max(seen, size)
        return lost, new

    def text(self) -> str:
        parts = []
        end = 0
        for at, data in self._pieces:
            if at > end:
                parts.append(f"\n… {at - end:,} bytes are left out …\n")
            parts.append(data.decode("utf-8", "replace"))
            end = at + len(data)
        if end < self._size:
            parts.append(f"\n… {self._size - end:,} bytes are left out …\n")
        return "".join(parts)


class Prints:
    """What the items of one call or one batch print. `name` names an item; what is new goes to `page`, if any."""

    def __init__(self, page: Page | None, label: str, name: Callable[[int], str]) -> None:
        self._page = page
        self._label = label
        self._name = name
        self._lock = threading.Lock()
        self._items: dict[int, Transcript] = {}
        self._kept = 0

    def of(self, item: int) -> Transcript | None:
        return self._items.get(item)

    def hear(self, item: int, event: Mapping[str, Any]) -> None:
        """News of an item that runs: a piece of output, or a display. What makes no sense is ignored."""
        try:
            if event["kind"] == "output":
                stream, at, size, text = (event[name] for name in ("stream", "at", "size", "text"))
                attempt = int(event["attempt"])
                data = text.encode("utf-8", "replace")
                # Bytes that are no text were replaced on the way, by longer ones; their places must stay.
                if stream in (OUT, ERR) and at >= 0 and 0 < size <= len(data):
                    self._piece(item, attempt, stream, at, data[:size])
            elif event["kind"] == "display":
                self._display(item, event)
        except (KeyError, TypeError, ValueError, AttributeError):
            return

    def arrive(self, first: int, attempt: int, printed: Iterable[Any], shown: Iterable[Any]) -> None:
        """Items from `first` on have ended: their `printed` and `shown`, as a reply has them."""
        try:
            for offset, stream, size, pieces in printed:
                if stream in (OUT, ERR):
                    self._complete(first + offset, attempt, stream, size, pieces)
                    if self._page is not None:
                        self._page.end(self._tag(first + offset), stream)
            for offset, event in shown:
                self._display(first + offset, event)
        except (KeyError, TypeError, ValueError, AttributeError):
            return

    def _tag(self, item: int) -> Tag:
        return Tag((id(self), item), self._name(item), self._label)

    def _transcript(self, item: int) -> Transcript:
        transcript = self._items.get(item)
        if transcript is None:
            transcript = self._items[item] = Transcript()
            self._kept += EACH_BYTES
        return transcript

    def _piece(self, item: int, attempt: int, stream: int, at: int, data: bytes) -> None:
        with self._lock:
            transcript = self._transcript(item)
            before = transcript.size
            lost, new = transcript.add(attempt, stream, at, data)
            self._bound(transcript.size - before)
        if new:
            self._show(item, stream, lost, new)

    def _complete(self, item: int, attempt: int, stream: int, size: int, pieces: Any) -> None:
        with self._lock:
            transcript = self._transcript(item)
            before = transcript.size
            lost, new = transcript.complete(attempt, stream, size, pieces)
            self._bound(transcript.size - before)
        self._show(item, stream, lost, new)

    def _show(self, item: int, stream: int, lost: int, new: bytes) -> None:
        if self._page is None:
            return
        text = new.decode("utf-8", "replace")
        if lost:
            self._page.lose(lost)
            text = f"… {lost:,} bytes are left out …\n{text}"
        self._page.add(self._tag(item), stream, text)

    def _display(self, item: int, event: Mapping[str, Any]) -> None:
        id, data = event["id"], event["data"]
        if not isinstance(id, str) or not isinstance(data, dict):
            return
        with self._lock:
            transcript = self._transcript(item)
            if any(known["id"] == id and known["n"] >= event["n"] for known in transcript.displays):
                return
            others = tuple(known for known in transcript.displays if known["id"] != id)
            # Without data, it was taken away.
            transcript.displays = (*others, event)[-MOST_DISPLAYS:] if data else others
        if self._page is not None:
            self._page.show(self._tag(item), id, data)

    def _bound(self, more: int) -> None:
        # The lock is held.
        self._kept += more
        while self._kept > MOST_KEPT and len(self._items) > 1:
            first = next(iter(self._items))
            self._kept -= self._items.pop(first).size
