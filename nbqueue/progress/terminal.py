"""Progress lines on a terminal.

`views` opens one line per tally. All lines that are live share one region at the bottom of the terminal;
a line that is settled is printed above it, once, and stays. So is what tasks print meanwhile (`pass_on`). Nothing
is drawn where there is no terminal.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import static
from .tally import Lane, Snapshot

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, Group, RenderResult
    from rich.live import Live
    from rich.text import Text

__all__ = ["TerminalView", "pass_on"]

BAR_WIDTH = 30
BAR_WIDTH_MIN = 8
LANE_WIDTH = 20
# Of a line that waits for its end, while it cannot be shown below the lines that are live.
LONGEST_HELD_BYTES = 65_536

_STYLES = {"done": "green", "failed": "red", "cancelled": "bright_black", "running": "blue"}
_TEXT_STYLES = {**_STYLES, "done": "", "time": "bright_black"}


class TerminalView:
    """One line; stderr unless a console is given."""

    def __init__(self, snapshot: Snapshot, console: Console | None = None) -> None:
        self._region = _region(console)
        self._line = _Line(snapshot)
        self._region.add(self._line)

    def update(self, snapshot: Snapshot) -> None:
        self._line.snapshot = snapshot
        self._region.refresh()

    def settle(self, snapshot: Snapshot) -> None:
        self._line.snapshot = snapshot
        self._region.settle(self._line)


def pass_on(fd: int, data: bytes) -> None:
    """Write what tasks print to the terminal that descriptor `fd`, 1 or 2, is: above the live lines, if any.

    While there are some, a line that has not ended waits, unless it is very long.
    """
    with _regions_lock:
        region = None if _stderr_console is None else _regions.get(_stderr_console)
        if region is None:
            # Under the lock: no region begins in the midst of it.
            _write(fd, data)
            return
    region.pass_on(fd, data)


def _write(fd: int, data: bytes) -> None:
    """All of it, past whatever Python's own streams keep back."""
    global _stands_in_line
    if data:
        _stands_in_line = not data.endswith(b"\n")
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            poller.poll()
        except OSError:
            # Nobody is there to read it.
            return


@dataclass(frozen=True, slots=True)
class _Raw:
    """Text for a terminal, as it is."""

    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        yield Segment(self.text)


class _Line:
    """A snapshot as rich draws it: name, bar as wide as the room allows, numbers; never wrapped. Lanes below."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        separator = " - " if options.ascii_only else " · "
        label = Text(" ".join(self.snapshot.label.split()), style="bold")
        numbers = Text(separator).join(
            Text(
                f"{part.symbol} {part.text}" if part.symbol and not options.ascii_only else part.text,
                style=_TEXT_STYLES.get(part.kind, ""),
            )
            for part in static.words(self.snapshot)
        )
        room = min(BAR_WIDTH, options.max_width - label.cell_len - numbers.cell_len - 3)
        pieces = [label, numbers]
        if self.snapshot.total and room >= BAR_WIDTH_MIN:
            pieces.insert(1, _bar(self.snapshot, room, "=" if options.ascii_only else "━"))
        line = Text(" ", no_wrap=True, overflow="ellipsis").join(pieces)
        line.no_wrap, line.overflow = True, "ellipsis"
        yield line
        for lane in self.snapshot.lanes:
            yield _lane(lane, options)
        if self.snapshot.more_lanes:
            yield Text(f"  + {self.snapshot.more_lanes:,} more", style=_TEXT_STYLES["time"])


def _lane(lane: Lane, options: ConsoleOptions) -> Text:
    """A line below: the task, a thin bar where its total is known, what it says."""
    from rich.text import Text

    pieces = [Text(" ".join(lane.label.split()), style=_TEXT_STYLES["time"])] if lane.label else []
    if lane.total:
        filled = round(LANE_WIDTH * min(1.0, max(0.0, lane.done / lane.total)))
        glyph, rest = ("=", " ") if options.ascii_only else ("─", "─")
        bar = Text(glyph * filled, style=_STYLES["running"])
        pieces.append(bar + Text(rest * (LANE_WIDTH - filled), style="grey23"))
    pieces.append(Text(static.lane_words(lane), style=_TEXT_STYLES["time"]))
    line = Text("  ") + Text(" ").join(pieces)
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _bar(snapshot: Snapshot, width: int, glyph: str) -> Text:
    from rich.text import Text

    bar = Text()
    used, seen = 0, 0
    for kind, count in (
        ("done", snapshot.done),
        ("failed", snapshot.failed),
        ("cancelled", snapshot.cancelled),
        ("running", snapshot.running),
    ):
        seen += count
        end = min(width, round(width * seen / (snapshot.total or 1)))
        bar.append(glyph * (end - used), style=_STYLES[kind])
        used = max(used, end)
    bar.append((" " if glyph == "=" else glyph) * (width - used), style="grey23")
    return bar


class _Region:
    """The live lines of one console, all in one `rich.live.Live`, which allows one of itself only."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.RLock()
        self._lines: list[_Line] = []
        self._live: Live | None = None
        self._held: dict[int, bytes] = {}  # lines that have not ended, by descriptor

    @property
    def live(self) -> bool:
        return self._live is not None

    def add(self, line: _Line) -> None:
        with self._lock:
            if not self._console.is_terminal:
                return
            self._lines.append(line)
            if self._live is None:
                self._live = self._start()
            self.refresh()

    def refresh(self) -> None:
        with self._lock:
            if self._live is not None:
                self._live.update(self._group(), refresh=True)

    def settle(self, line: _Line) -> None:
        with self._lock:
            if line not in self._lines:
                return
            self._lines.remove(line)
            # In one write, so that the line never flickers between the region and its place above it.
            with self._console:
                if self._live is not None and not self._lines:
                    # Transient: takes the region away and gives the cursor back.
                    self._live.stop()
                    self._live = None
                self.refresh()
                self._console.print(line)
            if self._live is None:
                for fd, data in self._held.items():
                    _write(fd, data)
                self._held.clear()

    def pass_on(self, fd: int, data: bytes) -> None:
        with self._lock:
            if self._live is None:
                _write(fd, data)
                return
            data = self._held.pop(fd, b"") + data
            end = data.rfind(b"\n") + 1
            if not end and len(data) > LONGEST_HELD_BYTES:
                data += b"\n"
                end = len(data)
            if end:
                # Uncropped: the terminal breaks long lines, so that they can be copied as they were printed.
                self._console.print(_Raw(data[:end].decode("utf-8", "replace")), crop=False)
            if end < len(data):
                self._held[fd] = data[end:]

    def _group(self) -> Group:
        from rich.console import Group

        return Group(*self._lines)

    def _start(self) -> Live:
        from rich.live import Live

        # rich sends what it redirects to its own console. Prints must pass through it, or they tear the
        # region apart, but not when stdout goes to a file or a pipe: there they belong.
        own = self._console.file is sys.stderr
        if own and _stands_in_line:
            _write(2, b"\n")
        live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=own and sys.stdout is not None and sys.stdout.isatty(),
            redirect_stderr=own,
        )
        live.start()
        return live


_regions: dict[Console, _Region] = {}
_regions_lock = threading.Lock()
_stderr_console: Console | None = None
_stands_in_line = False  # what tasks printed last has not ended its line


def _region(console: Console | None) -> _Region:
    """The region of a console; two at work on one terminal would draw over each other."""
    global _stderr_console
    from rich.console import Console

    with _regions_lock:
        if console is None:
            # It looks up sys.stderr at each use, so one serves for good.
            console = _stderr_console = _stderr_console or Console(stderr=True)
        return _regions.setdefault(console, _Region(console))


def _forget_regions() -> None:
    """In a forked child: prints of the child must not redraw the parent's region."""
    global _regions_lock, _stderr_console
    _regions_lock = threading.Lock()
    if any(region.live for region in _regions.values()):
        sys.stdout = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
        sys.stderr = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
    _regions.clear()
    _stderr_console = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_regions)
