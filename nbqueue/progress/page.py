"""The page of a cell: the last lines that its tasks print, each with its task's tag, and what they display.

Pure state, drawn as html and as plain text. Always true here: a line of one task is never torn by another's; equal
warnings and log records are counted, in sight below the lines; everything is bounded, and what is left out is said;
what comes from tasks is escaped, except the html that they display. The html lives through a notebook's sanitiser.
"""

from __future__ import annotations

import base64
import html as _html
import json
import re
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .codes import coloured, without_codes
from .rendered import Rendered

__all__ = ["BEGIN", "END", "ERR", "OUT", "Page", "Tag"]

OUT, ERR = 1, 2
LINES_SHOWN = 200
# Kept for whoever asks for more.
LINES_KEPT = 10_000
LONGEST_LINE = 2_000
NOTICES_SHOWN = 20
# Of displays, in html.
MOST_SHOWN, MOST_SHOWN_BYTES = 50, 4_000_000
LONGEST_TAG = 24


class Tag(NamedTuple):
    """Whose a line is: `key` is nobody else's, `text` stands before the line, `label` before one that many have."""

    key: object
    text: str
    label: str


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

    def __init__(self, changed: Callable[[], object] | None = None, rendered: Rendered | None = None) -> None:
        self.changed = changed
        self._rendered = rendered
        self.version = 0
        self._lock = threading.RLock()
        self._lines: deque[_Line] = deque()
        self._left_out = 0
        self._lost_bytes = 0
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

    def lose(self, size: int) -> None:
        """So many bytes were printed that are no lines here, since a task printed faster than can be shown."""
        with self._lock:
            self._lost_bytes += size

    def end(self, tag: Tag, stream: int) -> None:
        """A task prints no more on a stream: a part of a line is a line."""
        with self._lock:
            writer = self._writers.pop((tag.key, stream), None)
            if writer is not None:
                writer.close()
        self._tell()

    def show(self, tag: Tag, id: str, data: Mapping[str, Any]) -> None:
        """A task displays something; what has the same `id` is replaced, and without `data` taken away."""
        with self._lock:
            known = (tag.key, id) in self._displays
            elsewhere = not known and self._rendered is not None and self._rendered.show((tag.key, id), data)
            if data and not elsewhere:
                self._displays[tag.key, id] = tag.text, _plain_of(data), _display(tag.text, data)
            else:
                self._displays.pop((tag.key, id), None)
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
        text = [_earlier(left_out, self._lost_bytes)] if left_out else []
        for tag, err, line, times in rows + notices:
            text.append(f"{_fit(tag, width)} {_MARKS[err]} {without_codes(line)}{times}")
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
            text = [f'<div style="{_GREY}">{_earlier(left_out, self._lost_bytes)}</div>'] if left_out else []
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
    text = coloured(line) + (f"<b>{times}</b>" if times else "")
    if err:
        text = f'<span class="nbqueue-stderr" title="stderr" style="{_ERR}">{text}</span>'
    head = f'<span style="{_GREY}">{_html.escape(_fit(tag, width))} {_MARKS[err]} </span>'
    # What is longer than the cell is wide goes on below its own text.
    return f'<div style="padding-left:{width + 3}ch;text-indent:-{width + 3}ch">{head}{text}</div>'


def _fit(tag: str, width: int) -> str:
    return tag.ljust(width) if len(tag) <= width else "…" + tag[1 - width :]


def _earlier(lines: int, lost_bytes: int) -> str:
    lost = f", and {lost_bytes:,} bytes that came too fast to be shown" if lost_bytes else ""
    return f"… {lines:,} earlier lines{lost}; each future's .stdout and .stderr have its own, of much the two ends"


# Displays


def _plain_of(data: Mapping[str, Any]) -> str:
    text = str(data.get("text/plain", "<display>"))
    if text.startswith("<") and "text/html" not in data:
        # A notebook's own objects are nothing but their names as text. What they hold tells more.
        text = str(data.get("text/markdown", data.get("text/latex", text)))
        if "application/json" in data:
            text = json.dumps(data["application/json"], ensure_ascii=False)[:LONGEST_LINE]
    return text


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
