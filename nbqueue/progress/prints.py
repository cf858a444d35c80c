"""What tasks print, as pure state: each item's own text, and one page for all that a cell has submitted.

::

    events, while an item runs ─┐                 ┌─▶ Transcript: text of one item, `future.stdout`
                                ├─▶ Prints ───────┤
    its reply, all of it       ─┘                 └─▶ Page: last lines of all, tagged; html and plain text

Always true here: bytes have places, counted from where an item began to print, so what comes by both ways is
shown once; a line of one task is never torn by another's; everything is bounded, and what is left out is said.
Knows neither queue nor Redis nor IPython. Safe to be used by several threads.
"""

from __future__ import annotations

import base64
import html as _html
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

__all__ = ["ERR", "OUT", "Page", "Prints", "Tag", "Transcript"]

OUT, ERR = 1, 2
LINES_SHOWN = 200
# Kept for whoever asks for more.
LINES_KEPT = 10_000
LONGEST_LINE = 2_000
NOTICES_SHOWN = 20
# What the items of one batch printed is kept up to about this; of more, the first items lose theirs.
MOST_KEPT = 128_000_000
EACH_BYTES = 500  # of a transcript apart from its text
# Of displays, in html.
MOST_SHOWN_BYTES = 4_000_000
MOST_SHOWN = 50
LONGEST_TAG = 24

_Piece = tuple[int, bytes]


class Tag(NamedTuple):
    """Whose a line is: `key` is nobody else's, `text` stands before the line, `label` before one that many have."""

    key: object
    text: str
    label: str


class Transcript:
    """What one item printed on both streams, all attempts one after another, and what it displayed."""

    __slots__ = ("_streams", "displays")

    def __init__(self) -> None:
        # Few of them, and many transcripts: what is not there takes no room.
        self._streams: list[_Stream] = []
        self.displays: tuple[Mapping[str, Any], ...] = ()

    def add(self, attempt: int, stream: int, at: int, data: bytes) -> bytes:
        """A piece that begins at byte `at`. Returns what of it is new and can be shown now."""
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

    def add(self, at: int, data: bytes) -> bytes:
        new = data[max(0, self.seen - at) :]
        if not new:
            return b""
        start = at + len(data) - len(new)
        self._pieces.append((start, new))
        self.kept += len(new)
        self.seen = self._size = start + len(new)
        while self.kept > self.MOST and len(self._pieces) > 2:
            # The second: the beginning is worth more than the middle.
            _, dropped = self._pieces.pop(1)
            self.kept -= len(dropped)
        return new

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
            new = transcript.add(attempt, stream, at, data)
            self._bound(transcript.size - before)
        if new and self._page is not None:
            self._page.add(self._tag(item), stream, new.decode("utf-8", "replace"))

    def _complete(self, item: int, attempt: int, stream: int, size: int, pieces: Any) -> None:
        with self._lock:
            transcript = self._transcript(item)
            before = transcript.size
            lost, new = transcript.complete(attempt, stream, size, pieces)
            self._bound(transcript.size - before)
        if self._page is not None:
            text = new.decode("utf-8", "replace")
            if lost:
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
            transcript.displays = (*others, event)[-MOST_SHOWN:]
        if self._page is not None:
            self._page.show(self._tag(item), id, data)

    def _bound(self, more: int) -> None:
        # The lock is held.
        self._kept += more
        while self._kept > MOST_KEPT and len(self._items) > 1:
            first = next(iter(self._items))
            self._kept -= self._items.pop(first).size


class _Line:
    """One line of a page."""

    __slots__ = ("dropped", "stream", "tag", "text")

    def __init__(self, tag: Tag, stream: int) -> None:
        self.tag = tag
        self.stream = stream
        self.text = ""
        self.dropped = False


class _Notice:
    """A warning or log record, and how often it came."""

    __slots__ = ("count", "lines")

    def __init__(self, lines: list[_Line]) -> None:
        self.lines = lines
        self.count = 1


# How a warning or a log record begins; indented lines below belong to it.
_RECORD = re.compile(r"^(?:\S.*:\d+: \w+: |(?:CRITICAL|ERROR|WARNING|INFO|DEBUG)[ :]\S)")
_LINE_END = re.compile(r"(?<=\n)")


class _Writer:
    """Makes lines of the pieces that one task prints on one stream."""

    def __init__(self, page: Page, tag: Tag, stream: int) -> None:
        self._page = page
        self._whose = tag, stream
        self._merges = stream == ERR
        self._line: _Line | None = None
        self._record: list[_Line] = []

    def write(self, text: str) -> None:
        for part in _LINE_END.split(text):
            if not part:
                continue
            line = self._line
            if line is None:
                line = self._line = _Line(*self._whose)
                self._page._append(line)
            line.text = _overwritten(line.text, part.rstrip("\n"))
            if part.endswith("\n"):
                line.text = line.text.rstrip("\r")
                self._line = None
                self._ended(line)

    def close(self) -> None:
        if self._line is not None:
            self._ended(self._line)
            self._line = None
        self._close_record()

    def _ended(self, line: _Line) -> None:
        if not self._merges:
            return
        if self._record and line.text.startswith("  "):
            self._record.append(line)
            return
        self._close_record()
        if _RECORD.match(line.text):
            self._record = [line]

    def _close_record(self) -> None:
        record, self._record = self._record, []
        if record:
            self._page._merge(record)


def _overwritten(line: str, more: str) -> str:
    """A line after more has been written to it, where a carriage return goes back to its beginning."""
    line += more
    if "\r" in line:
        # What stands after the last return, if anything does yet: a bar is drawn as "\r" and then its text.
        parts = line.split("\r")
        line = parts[-1] or parts[-2] + "\r"
    return line if len(line) <= LONGEST_LINE else line[: LONGEST_LINE - 1] + "…"


class Page:
    """The last lines that the tasks of one cell print, each with its task's tag, and what they display.

    Attributes
    ----------
    changed : callable or None
        Called, by any thread, when the page has something new.
    """

    def __init__(self, changed: Callable[[], object] | None = None) -> None:
        self.changed = changed
        self.version = 0
        self._lock = threading.RLock()
        self._lines: deque[_Line] = deque()
        self._left_out = 0
        self._names: dict[str, int] = {}
        self._writers: dict[tuple[object, int], _Writer] = {}
        self._notices: dict[tuple[str, ...], _Notice] = {}
        self._displays: dict[tuple[object, str], tuple[str, str, str]] = {}  # whose, as text and as html
        self._displays_left_out = 0

    @property
    def empty(self) -> bool:
        return not self._lines and not self._displays

    def name(self, task: str) -> str:
        """What to call one more call of a task: ``simulate``, then ``simulate#2``, …"""
        number = self._names[task] = self._names.get(task, 0) + 1
        return task if number == 1 else f"{task}#{number}"

    def add(self, tag: Tag, stream: int, text: str) -> None:
        """A task prints more on a stream."""
        with self._lock:
            writer = self._writers.get((tag.key, stream))
            if writer is None:
                writer = self._writers[tag.key, stream] = _Writer(self, tag, stream)
            writer.write(text)
        self._tell()

    def end(self, tag: Tag, stream: int) -> None:
        """A task prints no more on a stream: a part of a line is a line."""
        with self._lock:
            writer = self._writers.pop((tag.key, stream), None)
            if writer is not None:
                writer.close()
        self._tell()

    def show(self, tag: Tag, id: str, data: Mapping[str, Any]) -> None:
        """A task displays something; what has the same `id` is replaced."""
        with self._lock:
            self._displays[tag.key, id] = tag.text, _plain_of(data), _display(tag.text, data)
            while len(self._displays) > MOST_SHOWN or (
                len(self._displays) > 1 and sum(len(html) for *_, html in self._displays.values()) > MOST_SHOWN_BYTES
            ):
                del self._displays[next(iter(self._displays))]
                self._displays_left_out += 1
        self._tell()

    def plain(self, lines: int = LINES_SHOWN) -> str:
        """The last lines, below them notices that came more than once, and what was displayed, as text."""
        with self._lock:
            rows, left_out = self._rows(lines)
            notices = self._repeated()
            shown = [(tag, text) for tag, text, _ in self._displays.values()]
        width = _width(rows + notices)
        text = [_earlier(left_out)] if left_out else []
        for tag, err, line, times in rows + notices:
            text.append(f"{_fit(tag, width)} {_MARKS[err]} {_without_codes(line)}{times}")
        text += [f"{tag.ljust(width)} │ {line}" for tag, block in shown for line in block.splitlines()]
        return "\n".join(text)

    def html(self, lines: int = LINES_SHOWN) -> str:
        """The same with colours and images; an empty page is invisible."""
        with self._lock:
            rows, left_out = self._rows(lines)
            notices = self._repeated()
            displays = [html for *_, html in self._displays.values()]
            missing = self._displays_left_out
        width = _width(rows + notices)
        blocks = []
        if rows:
            text = [f'<div style="{_GREY}">{_earlier(left_out)}</div>'] if left_out else []
            text += [_row(*row, width) for row in rows]
            # From below: what is new is in sight, also after the next update.
            blocks.append(
                '<div style="display:flex;flex-direction:column-reverse;max-height:380px;overflow:auto">'
                f'<pre style="{_PRE}">{"".join(text)}</pre></div>'
            )
        if notices:
            blocks.append(f'<pre style="{_PRE}">{"".join(_row(*row, width) for row in notices)}</pre>')
        if missing:
            blocks.append(f'<div style="{_GREY}">… {missing:,} earlier displays are left out</div>')
        return f"{BEGIN}{_whole(blocks + displays)}{END}"

    def _rows(self, lines: int) -> tuple[list[_Row], int]:
        shown = [line for line in self._lines if not line.dropped]
        left_out = self._left_out + max(0, len(shown) - lines)
        shown = shown[max(0, len(shown) - lines) :]
        return [_Row(line.tag.text, line.stream == ERR, line.text.rstrip("\r"), "") for line in shown], left_out

    def _repeated(self) -> list[_Row]:
        repeated = [notice for notice in self._notices.values() if notice.count > 1][-NOTICES_SHOWN:]
        return [
            _Row(line.tag.label, True, line.text, f"  (×{notice.count:,})" if line is notice.lines[0] else "")
            for notice in repeated
            for line in notice.lines
        ]

    def _append(self, line: _Line) -> None:
        self._lines.append(line)
        if len(self._lines) > LINES_KEPT:
            gone = self._lines.popleft()
            self._left_out += not gone.dropped

    def _merge(self, record: list[_Line]) -> None:
        """A warning or log record is complete: if it came before, it is counted, apart from the other lines."""
        key = tuple(line.text for line in record)
        known = self._notices.get(key)
        if known is None:
            self._notices[key] = _Notice(record)
            if len(self._notices) > LINES_KEPT:
                del self._notices[next(iter(self._notices))]
            return
        known.count += 1
        for line in (*record, *known.lines):
            line.dropped = True
        while self._lines and self._lines[-1].dropped:
            self._lines.pop()

    def _tell(self) -> None:
        self.version += 1
        if self.changed is not None:
            self.changed()


class _Row(NamedTuple):
    """A line as it is drawn."""

    tag: str
    err: bool
    text: str
    times: str


# A test of notebooks sees the first state of a display, a saved one has the last: between these they may differ.
_MARKS = ("│", "!")  # before a line of stdout, of stderr
BEGIN, END = "<!--nbqueue-output-->", "<!--/nbqueue-output-->"
_GREY = "color:#808080;color:var(--jp-ui-font-color2,#808080)"
_ERR = "background-color:#ff525226"
_PRE = (
    "flex:none;margin:0;padding:2px 0;font-size:13px;line-height:17px;white-space:pre-wrap;"
    "word-break:normal;overflow-wrap:anywhere;background:none;border:none"
)


def _whole(blocks: list[str]) -> str:
    if not blocks:
        return ""
    return f'<div class="nbqueue-output" style="max-width:1000px;padding:3px 0">{"".join(blocks)}</div>'


def _width(rows: list[_Row]) -> int:
    return min(LONGEST_TAG, max((len(row.tag) for row in rows), default=0))


def _row(tag: str, err: bool, line: str, times: str, width: int) -> str:
    text = _coloured(line) + (f"<b>{times}</b>" if times else "")
    if err:
        text = f'<span class="nbqueue-stderr" title="stderr" style="{_ERR}">{text}</span>'
    head = f'<span style="{_GREY}">{_html.escape(_fit(tag, width))} {_MARKS[err]} </span>'
    # What is longer than the cell is wide goes on below its own text.
    return f'<div style="padding-left:{width + 3}ch;text-indent:-{width + 3}ch">{head}{text}</div>'


def _fit(tag: str, width: int) -> str:
    return tag.ljust(width) if len(tag) <= width else "…" + tag[1 - width :]


def _earlier(lines: int) -> str:
    return f"… {lines:,} earlier lines; each future's .stdout and .stderr have its own"


# Displays


def _plain_of(data: Mapping[str, Any]) -> str:
    return str(data.get("text/plain", "<display>"))


_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")


def _display(tag: str, data: Mapping[str, Any]) -> str:
    body = f'<pre style="{_PRE}">{_html.escape(_plain_of(data))}</pre>'
    image = next((mime for mime in _IMAGES if isinstance(data.get(mime), str)), None)
    if isinstance(data.get("text/html"), str):
        body = data["text/html"]
    elif image is not None:
        alt = _html.escape(_plain_of(data), quote=True)
        encoded = re.sub(r"[^A-Za-z0-9+/=]", "", data[image])
        body = f'<img src="data:{image};base64,{encoded}" alt="{alt}" style="max-width:100%">'
    elif isinstance(data.get("image/svg+xml"), str):
        # As an image: a sanitiser takes away what is drawn in the page itself.
        encoded = base64.b64encode(data["image/svg+xml"].encode()).decode()
        body = f'<img src="data:image/svg+xml;base64,{encoded}" style="max-width:100%">'
    return (
        f'<div class="nbqueue-display" style="padding:3px 0"><div style="{_GREY};font-size:13px">'
        f"{_html.escape(tag)}</div>{body}</div>"
    )


# Terminal codes

_CODES = re.compile(
    r"\x1b\[([0-9;]*)[^A-Za-z]*([A-Za-z])"  # colours, and what moves the cursor
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b.?"  # titles, links, and the rest
    r"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
)
# At least 3:1 on white and on #111.
_COLOURS = ("#808080", "#e53935", "#388e3c", "#b07d00", "#1e88e5", "#ab47bc", "#00909c", "#808080")


def _without_codes(text: str) -> str:
    return _CODES.sub("", text)


def _coloured(text: str) -> str:
    """Escaped html; of terminal codes, the usual colours and bold stay."""
    out: list[str] = []
    open_span = False
    colour, bold = "", False
    at = 0
    for match in _CODES.finditer(text):
        out.append(_html.escape(text[at : match.start()], quote=False))
        at = match.end()
        if match[2] != "m":
            continue
        colour, bold = _style(match[1], colour, bold)
        if open_span:
            out.append("</span>")
        style = ";".join(filter(None, (f"color:{colour}" if colour else "", "font-weight:bold" if bold else "")))
        open_span = bool(style)
        if style:
            out.append(f'<span style="{style}">')
    out.append(_html.escape(text[at:], quote=False))
    return "".join(out) + ("</span>" if open_span else "")


def _style(codes: str, colour: str, bold: bool) -> tuple[str, bool]:
    numbers = [int(code) if code else 0 for code in codes.split(";")]
    while numbers:
        code = numbers.pop(0)
        if code == 0:
            colour, bold = "", False
        elif code in (1, 22):
            bold = code == 1
        elif 30 <= code <= 37 or 90 <= code <= 97:
            colour = _COLOURS[code % 10]
        elif code == 39:
            colour = ""
        elif code in (38, 48):
            # Of 256, or of all: the first sixteen only.
            kind = numbers.pop(0) if numbers else 0
            index = numbers[0] if kind == 5 and numbers else -1
            del numbers[: 1 if kind == 5 else 3]
            if code == 38:
                colour = _COLOURS[index % 8] if 0 <= index < 16 else ""
    return colour, bold
