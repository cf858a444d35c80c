"""A look at a queue: counts, workers, memory; as text and as HTML that stays readable wherever it is saved.

Pure functions of a `QueueStatus`. What hosts publish about themselves is not signed: nothing in it may speak to the
terminal or to the page.
"""

from __future__ import annotations

import html as _html
from collections.abc import Sequence
from dataclasses import dataclass

from nbqueue.progress.static import BLUE, GREEN, GREY_TEXT, RED, css, rate_text, seconds_text
from nbqueue.stream.records import RunningTask, WorkerState

__all__ = ["QueueStatus", "picture", "printable", "size_text"]

# More lines than this nobody reads; those that run something come first.
MOST_WORKERS = 16


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """A look at a queue. Counts come from the stream, what runs from the workers' slot boards. Made by `status`.

    Attributes
    ----------
    queue, server : str
        The queue's name, and where it is.
    queued : int
        Calls that wait for a worker. A call of a map is a chunk of several items;
        all other counts are of items.
    running : tuple of RunningTask
        What runs now: ``.name``, ``.attempt``, ``.seconds``, …
    delayed : int
        Calls that wait for their next attempt, or for others whose values they
        need.
    done, failed, cancelled, retried : int
        Items since the queue was made (or was empty for a week).
    refused : int
        Messages on the server that were not ours or could not be trusted: those
        that workers met, and those that came back to this process.
    workers : tuple of WorkerState
        ``.slot``, ``.pid``, ``.state``, ``.task`` (None: it runs none) and
        ``.memory_bytes`` of each.
    memory_bytes, memory_limit_bytes : int
        What the Redis server uses for all its data, and what it may (0: not known,
        or no limit).

    Examples
    --------
    >>> queue.map(abs, range(-3, 0)).results()
    [3, 2, 1]
    >>> print(queue.status())
    queue 'tasks' on private
      ... queued · ... running · ... done...
    """

    queue: str
    server: str
    queued: int
    delayed: int
    done: int
    failed: int
    cancelled: int
    retried: int
    refused: int
    workers: tuple[WorkerState, ...]
    memory_bytes: int = 0
    memory_limit_bytes: int = 0

    @property
    def running(self) -> tuple[RunningTask, ...]:
        """What runs now, of all workers: of async functions, up to 32 calls of each.

        Examples
        --------
        >>> status = queue.status()
        >>> [task.name for task in status.running if task.seconds > 60]
        []
        """
        return tuple(task for worker in self.workers for task in worker.tasks)

    def __repr__(self) -> str:
        counts = [f"{self.queued} queued", f"{len(self.running)} running", f"{self.done} done"]
        for name in ("failed", "delayed", "retried", "cancelled", "refused"):
            if getattr(self, name):
                counts.append(f"{getattr(self, name)} {name}")
        if self.memory_bytes:
            counts.append(f"Redis holds {_memory(self)}")
        lines = [f"queue {self.queue!r} on {self.server}", "  " + " · ".join(counts)]
        if not self.workers:
            lines.append("  no workers")
        for worker in self.workers:
            memory = f", {size_text(worker.memory_bytes)}" if worker.memory_bytes else ""
            lines.append(f"  worker {worker.slot} (pid {worker.pid}): {_doing(worker)}{memory}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return picture(self)


def _doing(worker: WorkerState) -> str:
    if worker.task is None:
        return printable(worker.state)
    return f"{_task(worker)} for {worker.task.seconds:.1f} s{_more(worker)}"


def _task(worker: WorkerState) -> str:
    return "" if worker.task is None else printable(worker.task.name)


def _more(worker: WorkerState) -> str:
    if worker.task is None:
        return ""
    again = f", attempt {worker.task.attempt}" if worker.task.attempt > 1 else ""
    others = f", and {len(worker.beside):,} more" if worker.beside else ""
    return again + others + (", waiting for a task of its own" if worker.state == "waiting" else "")


def printable(text: str) -> str:
    """What hosts publish is not signed: nothing in it may speak to the terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def picture(status: QueueStatus, rate: float | None = None, notes: Sequence[str] = (), state: str = "settled") -> str:
    """The status as HTML: what the panel shows, live or saved.

    Parameters
    ----------
    status : QueueStatus
    rate : float, optional
        Items that end in a second.
    notes : sequence of str
        What else is to be said, below it.
    state : str
        ``live`` or ``settled``.
    """
    name = _html.escape(printable(status.queue))
    below = "".join(f'<div style="{css("color", GREY_TEXT)}">{_html.escape(note)}</div>' for note in notes)
    return (
        f'<div class="nbqueue-panel" data-state="{state}" style="max-width:1000px;padding:3px 0;'
        "font-size:13px;line-height:20px;font-family:var(--jp-ui-font-family,sans-serif);"
        'font-variant:tabular-nums;font-variant-numeric:tabular-nums">'
        f'<div><b>{name}</b> <span style="{css("color", GREY_TEXT)}">{_html.escape(_where(status))}</span></div>'
        f'<div class="nbqueue-counts">{_counts(status, rate)}</div>{_table(status)}{below}</div><!--/nbqueue-->'
    )


def _where(status: QueueStatus) -> str:
    server = "a private server" if status.server == "private" else printable(status.server)
    words = [f"on {server}"]
    if status.memory_bytes:
        words.append(f"Redis holds {_memory(status)}")
    return " · ".join(words)


def _counts(status: QueueStatus, rate: float | None) -> str:
    parts = [
        (f"{status.queued:,} queued", None),
        (f"▸ {len(status.running):,} running", BLUE),
        (f"✓ {status.done:,} done", GREEN),
    ]
    for sign, number, name, its_colour in (
        ("✗", status.failed, "failed", RED),
        ("◷", status.delayed, "delayed", None),
        ("↻", status.retried, "retried", None),
        ("⊘", status.cancelled, "cancelled", GREY_TEXT),
        ("⚠", status.refused, "refused", RED),
    ):
        if number:
            parts.append((f"{sign} {number:,} {name}", its_colour))
    if rate:
        parts.append((rate_text(rate), GREY_TEXT))
    return " · ".join(
        f'<span style="white-space:nowrap{"" if its is None else ";" + css("color", its)}">{text}</span>'
        for text, its in parts
    )


_ONE_LINE = "max-width:420px;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;"
_CELL = "border:none;padding:0 14px 0 0;vertical-align:top;font-size:13px;line-height:20px;"


def _table(status: QueueStatus) -> str:
    if not status.workers:
        return f'<div style="{css("color", GREY_TEXT)}">no workers</div>'
    # Stable: a worker's line does not move while it goes on with the same.
    order = sorted(status.workers, key=lambda worker: worker.slot)
    if len(order) > MOST_WORKERS:
        order.sort(key=lambda worker: worker.task is None)
    head = "".join(
        f'<th style="{_CELL}text-align:{side};font-weight:normal;{css("color", GREY_TEXT)}">{title}</th>'
        for title, side in (("worker", "left"), ("runs", "left"), ("for", "right"), ("memory", "right"))
    )
    lines = "".join(map(_worker, order[:MOST_WORKERS]))
    more = len(order) - MOST_WORKERS
    rest = f'<div style="{css("color", GREY_TEXT)}">and {more:,} more workers</div>' if more > 0 else ""
    return (
        '<div style="overflow-x:auto"><table style="border:none;border-collapse:collapse;margin:2px 0">'
        f'<thead style="border:none"><tr style="background:transparent">{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>{rest}"
    )


def _worker(worker: WorkerState) -> str:
    if worker.task is None:
        what, style, since = printable(worker.state), css("color", GREY_TEXT), ""
    else:
        what, style = f"▸ {_task(worker)}{_more(worker)}", css("color", BLUE)
        seconds = worker.task.seconds
        since = f"{seconds:.1f} s" if seconds < 10 else seconds_text(seconds)
    memory = size_text(worker.memory_bytes) if worker.memory_bytes else ""
    cells = (
        (f"{worker.slot}", "text-align:left;", f"process {worker.pid}"),
        (what, f"text-align:left;{_ONE_LINE}{style}", what),
        (since, "text-align:right;white-space:nowrap;", "since it began"),
        (memory, "text-align:right;white-space:nowrap;", "resident, with what it shares"),
    )
    return (
        '<tr style="background:transparent">'
        + "".join(
            f'<td title="{_html.escape(tip)}" style="{_CELL}{style}">{_html.escape(text)}</td>'
            for text, style, tip in cells
        )
        + "</tr>"
    )


def _memory(status: QueueStatus) -> str:
    limit = f" of {size_text(status.memory_limit_bytes)}" if status.memory_limit_bytes else ""
    return f"{size_text(status.memory_bytes)}{limit}"


def size_text(size_bytes: int) -> str:
    """``31 MB``; powers of 1,000."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.1f} {unit}" if size < 9.95 and unit != "B" else f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
