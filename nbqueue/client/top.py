"""A queue that is watched in a terminal: ``nbqueue top``.

Always true here: what is drawn is a pure function of two looks at the queue; what hosts publish about themselves is not
signed and never speaks to the terminal; whoever watches asks the server a few times a second and no more.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbqueue.client.status import printable, size_text
from nbqueue.progress.static import rate_text, seconds_text
from nbqueue.stream.records import HostState, QueueCounts, WorkerState

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

__all__ = ["Rates", "View", "watch"]

_GREY, _BARS = "bright_black", " ▁▂▃▄▅▆▇█"
# Looks whose rates are drawn, the last to the right.
WIDTH = 40
# The lines that are not workers, and that one more line says how many are left out.
_AROUND = 8


class Rates:
    """Items that ended in a second, from one look to the next."""

    def __init__(self) -> None:
        self._last: tuple[float, int] | None = None
        self.recent: deque[float] = deque(maxlen=WIDTH)

    def look(self, now: float, ended: int) -> None:
        """`ended` items have, ever, at `now` seconds of any clock. Fewer than before: the server has forgotten."""
        if self._last is not None and now > self._last[0]:
            self.recent.append(max(0, ended - self._last[1]) / (now - self._last[0]))
        self._last = now, ended

    @property
    def picture(self) -> str:
        """
        >>> rates = Rates()
        >>> for second, ended in enumerate([0, 0, 50, 150]):
        ...     rates.look(second, ended)
        >>> rates.picture
        ' ▄█'
        """
        most = max(self.recent, default=0.0)
        return "".join(_BARS[round(rate / most * (len(_BARS) - 1))] if most else " " for rate in self.recent)


@dataclass(frozen=True, slots=True)
class View:
    """One look, to be drawn. `lines` is how high the terminal is."""

    queue: str
    server: str
    counts: QueueCounts
    rates: Rates
    lines: int = 24
    clock: str = ""

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        counts, memory = self.counts, ""
        if counts.memory_bytes:
            limit = f" of {size_text(counts.memory_limit_bytes)}" if counts.memory_limit_bytes else ""
            memory = f"  ·  Redis holds {size_text(counts.memory_bytes)}{limit}"
        head = Text.assemble(
            (printable(self.queue), "bold"), (f"  on {printable(self.server)}{memory}", _GREY), overflow="ellipsis"
        )
        rate = self.rates.recent[-1] if self.rates.recent else 0.0
        pace = Text(no_wrap=True, overflow="crop")
        if any(self.rates.recent):
            pace = Text.assemble((f"{self.rates.picture:>{WIDTH}}", "green"), (f"  {rate_text(rate)}", _GREY))
        below = Text(f"{self.clock}  Ctrl-C leaves".strip(), style=_GREY)
        return Group(head, self._numbers(), pace, self._workers(), below)

    def _numbers(self) -> RenderableType:
        from rich.text import Text

        counts = self.counts
        running = sum(len(worker.tasks) for host in counts.hosts for worker in host.workers)
        parts = [Text(f"{counts.queued:,} queued"), Text(f"▸ {running:,} running", "blue")]
        parts.append(Text(f"✓ {counts.done:,} done", "green"))
        for sign, number, name, style in (
            ("✗", counts.failed, "failed", "red"),
            ("◷", counts.delayed, "delayed", ""),
            ("↻", counts.retried, "retried", ""),
            ("⊘", counts.cancelled, "cancelled", _GREY),
            ("⚠", counts.refused, "refused", "red"),
        ):
            if number:
                parts.append(Text(f"{sign} {number:,} {name}", style))
        return Text(" · ").join(parts)

    def _workers(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        rows = _rows(self.counts.hosts)
        if not rows:
            return Text("no workers", style=_GREY)
        several = len(self.counts.hosts) > 1
        table = Table(box=None, padding=(0, 2, 0, 0), header_style=_GREY, expand=False)
        if several:
            table.add_column("host", no_wrap=True, overflow="ellipsis", max_width=24)
        table.add_column("worker", justify="right", no_wrap=True)
        table.add_column("pid", justify="right", style=_GREY, no_wrap=True)
        # The only one that gives way; its texts are cut, not wrapped.
        table.add_column("runs")
        table.add_column("for", justify="right", no_wrap=True)
        table.add_column("memory", justify="right", no_wrap=True)
        room = max(1, self.lines - _AROUND)
        for host, worker in rows[:room]:
            _add(table, host if several else None, worker)
        left = len(rows) - room
        return Group(table, Text(f"and {left:,} more workers", style=_GREY)) if left > 0 else table


def _rows(hosts: Sequence[HostState]) -> list[tuple[HostState, WorkerState]]:
    """Those that run something first, so that they are seen where not all are; else by host and number."""
    rows = [(host, worker) for host in hosts for worker in host.workers]
    return sorted(rows, key=lambda row: (row[1].task is None, row[0].hostname, row[0].host, row[1].slot))


def _add(table: Table, host: HostState | None, worker: WorkerState) -> None:
    from rich.text import Text

    if worker.task is None:
        what, since = Text(printable(worker.state), style=_GREY, no_wrap=True, overflow="ellipsis"), ""
    else:
        again = f", attempt {worker.task.attempt}" if worker.task.attempt > 1 else ""
        others = f", and {len(worker.beside):,} more" if worker.beside else ""
        waits = ", waiting for a task of its own" if worker.state == "waiting" else ""
        does = f"▸ {printable(worker.task.name)}{again}{others}{waits}"
        what = Text(does, style="blue", no_wrap=True, overflow="ellipsis")
        seconds = worker.task.seconds
        since = f"{seconds:.1f} s" if seconds < 10 else seconds_text(seconds)
    cells = [] if host is None else [printable(host.hostname)]
    memory = size_text(worker.memory_bytes) if worker.memory_bytes else ""
    table.add_row(*cells, str(worker.slot), str(worker.pid), what, since, memory)


def watch(
    queue: str,
    server: str,
    look: Callable[[], QueueCounts],
    *,
    interval_s: float = 1.0,
    looks: int = 0,
    console: Console | None = None,
) -> None:
    """Draw what `look` tells, again and again, until interrupted or so many `looks` were drawn (0: for ever).

    Where the console is no terminal, each look is printed below the one before.
    """
    from rich.console import Console
    from rich.live import Live

    console = console or Console(highlight=False)
    rates = Rates()

    def view() -> View:
        counts = look()
        rates.look(time.monotonic(), counts.done + counts.failed + counts.cancelled)
        clock = time.strftime("%H:%M:%S")
        return View(queue, server, counts, rates, console.height if console.is_terminal else 10_000, clock)

    if not console.is_terminal:
        for number in range(looks or 1):
            if number:
                time.sleep(interval_s)
            console.print(view())
        return
    drawn = 0
    with Live(view(), console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                live.refresh()
                drawn += 1
                if looks and drawn >= looks:
                    return
                time.sleep(interval_s)
                live.update(view())
        except KeyboardInterrupt:
            return
