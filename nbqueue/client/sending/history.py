"""What has become of this process's calls: a bounded memory, fed by replies, read by people.

The listener leaves one note for each reply, which costs about a microsecond whatever the reply holds; names,
arguments and errors are read out of it only when somebody looks. It is kept here and not on the server: looking
back then costs the server nothing, and what is shown is what this process was told. It knows of a call's end, so
nothing of it depends on workers that live on.
"""

from __future__ import annotations

import html
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, overload

from nbqueue.codec.columns import load_items
from nbqueue.codec.glimpse import glimpse_arguments, glimpse_keywords, glimpse_values
from nbqueue.codec.messages import ERROR, EXCEPTION, RETRYING, SKIPPED, VALUE, ReplyBody, load_call
from nbqueue.codec.seal import body_of
from nbqueue.codec.tracebacks import gist_of
from nbqueue.progress.static import GREEN, GREY_TEXT, RED, css, seconds_text
from nbqueue.stream.records import Call

__all__ = ["History", "TaskHistory", "TaskRecord"]

# One note is a reply: an item, or a piece of a map.
NOTES_KEPT = 5_000
# What is larger is not kept for the sake of a look back; of all that is kept, the newest.
LARGEST_BYTES = 200_000
BYTES_KEPT = 16_000_000
ARGUMENTS_LENGTH = 60
# What an error of ours makes of its task.
_ENDINGS = {"nbqueue.errors.TaskTimeout": "timeout", "nbqueue.errors.WorkerDied": "died"}
ERROR_LENGTH = 120


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """How one call, or one item of a map, ended.

    Attributes
    ----------
    name : str
        The task's name; of an item of a map with its place, ``simulate[3]``.
    arguments : str
        In short.
    outcome : str
        ``done``, ``failed`` (it raised), ``timeout``, ``died`` (its worker did) or ``cancelled``.
    error : str
        Of one that failed: type and message, in short.
    worker : str
        Who ran it, ``host:slot:serial``; empty if nobody did.
    attempts : int
        How often it was started, as far as is known here.
    queued, started, finished : float
        Unix times; `started` is None if it never did. Items of a map that ran together share their time evenly.
    seconds : float
        How long its last attempt ran.
    """

    name: str
    arguments: str
    outcome: str
    error: str
    worker: str
    attempts: int
    queued: float
    started: float | None
    finished: float
    seconds: float


class TaskHistory(Sequence[TaskRecord]):
    """Finished tasks, the newest last. A list of `TaskRecord` that prints, and shows in a notebook, as a table."""

    def __init__(self, records: Sequence[TaskRecord]) -> None:
        self._records = tuple(records)

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> TaskRecord: ...
    @overload
    def __getitem__(self, index: slice) -> TaskHistory: ...
    def __getitem__(self, index: int | slice) -> TaskRecord | TaskHistory:
        return TaskHistory(self._records[index]) if isinstance(index, slice) else self._records[index]

    def __repr__(self) -> str:
        if not self._records:
            return "no finished tasks yet"
        rows = [list(column) for column in zip(*self._columns(), strict=True)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    def _repr_html_(self) -> str:
        if not self._records:
            return '<div class="nbqueue-history">no finished tasks yet</div>'
        columns = self._columns()
        head = "".join(
            f'<th style="{_CELL}font-weight:normal;{css("color", GREY_TEXT)}">{column[0]}</th>' for column in columns
        )
        lines = []
        for i, record in enumerate(self._records, 1):
            styles = {"outcome": _outcome_style(record), "arguments": _LONG, "error": _LONG}
            cells = [(styles.get(column[0], ""), html.escape(column[i])) for column in columns]
            lines.append("".join(f'<td style="{_CELL}{style}">{text}</td>' for style, text in cells))
        body = "".join(f'<tr style="background:transparent">{line}</tr>' for line in lines)
        return (
            '<div class="nbqueue-history" style="overflow-x:auto;font-variant:tabular-nums;'
            'font-variant-numeric:tabular-nums"><table style="border:none;border-collapse:collapse;margin:2px 0">'
            f'<thead style="border:none"><tr style="background:transparent">{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div><!--/nbqueue-->"
        )

    def _columns(self) -> list[tuple[str, ...]]:
        """Each with its title; those that say nothing are left out."""
        columns = list(zip(_HEAD, *map(_row, self._records), strict=True))
        return [column for column in columns if column[0] not in _MAY_BE_EMPTY or any(column[1:])]


_HEAD = ("task", "arguments", "outcome", "error", "took", "waited", "finished", "worker", "attempts")
_MAY_BE_EMPTY = ("error", "attempts", "worker")
_SIGNS = {"done": "✓", "failed": "✗", "timeout": "✗", "died": "✗", "cancelled": "⊘"}
_CELL = "border:none;padding:1px 14px 1px 0;text-align:left;vertical-align:top;white-space:nowrap;"
_LONG = "white-space:normal;min-width:120px;max-width:360px;overflow-wrap:break-word;"


def _row(record: TaskRecord) -> tuple[str, ...]:
    waited = "" if record.started is None else seconds_text(max(0.0, record.started - record.queued), fine=True)
    return (
        record.name,
        record.arguments,
        f"{_SIGNS[record.outcome]} {record.outcome}",
        record.error,
        "" if record.started is None else seconds_text(record.seconds, fine=True),
        waited,
        datetime.fromtimestamp(record.finished).strftime("%H:%M:%S"),
        short_worker(record.worker),
        str(record.attempts) if record.attempts > 1 else "",
    )


def _outcome_style(record: TaskRecord) -> str:
    colours = {"done": GREEN, "cancelled": GREY_TEXT}
    return css("color", colours.get(record.outcome, RED))


def short_worker(worker: str) -> str:
    """``host:slot:serial`` without the host, which is a random number."""
    return worker.partition(":")[2].partition(":")[0]



# Making it


class Sent(Protocol):
    """What is asked of a call that was sent, see `listener.OpenCall`."""

    call: Call
    base: int
    sink: Any
    sent_at: float


class _Note:
    """Items ``first … first + items - 1`` of a call, as one reply told of them."""

    __slots__ = (
        *("attempt", "base", "errors", "finished", "first", "instead", "items", "kinds", "many", "name", "owner"),
        *("payload", "seconds", "sent_at", "started", "worker"),
    )

    def __init__(self, sent: Sent, first: int, items: int, finished: float) -> None:
        self.name: str = sent.sink.name
        self.many: bool = sent.sink.many
        # Of batches only is asked.
        self.owner = weakref.ref(sent.sink) if self.many else None
        self.instead: str = sent.sink.in_history
        self.base = sent.base
        self.payload: bytes | None = sent.call.payload
        self.sent_at = sent.sent_at
        self.first = first
        self.items = items
        self.finished = finished
        self.kinds = b""
        self.errors: tuple[bytes, ...] | str = ()
        self.worker = ""
        self.attempt = 0
        self.started: float | None = None
        self.seconds = 0.0

    def records(self) -> Iterator[TaskRecord]:
        """Of its items, the last one first."""
        arguments = self._arguments()
        each = self.seconds / self.items
        for i in reversed(range(self.items)):
            kind = self.kinds[i] if self.kinds else VALUE
            if kind in (RETRYING, SKIPPED):
                continue
            outcome, error = self._ending(kind, i)
            place = self.first + i
            started = None if self.started is None else self.started + i * each
            yield TaskRecord(
                name=f"{self.name}[{self.base + place}]" if self.many else self.name,
                arguments=self.instead or (_short(arguments[place]) if place < len(arguments) else "…"),
                outcome=outcome,
                error=error,
                worker=self.worker,
                attempts=self.attempt,
                queued=self.sent_at,
                started=started,
                finished=self.finished if started is None else started + each,
                seconds=each,
            )

    def _ending(self, kind: int, i: int) -> tuple[str, str]:
        if kind == VALUE:
            return "done", ""
        if kind == _CANCELLED:
            return "cancelled", ""
        if isinstance(self.errors, str):
            return "failed", self.errors
        data = self.errors[i] if i < len(self.errors) else b""
        if not data:
            return "failed", ""
        gist = gist_of(data)
        outcome = _ENDINGS.get(gist.type_name, "failed") if kind == ERROR else "failed"
        return outcome, _cut(_said(gist.type_name.rpartition(".")[2], gist.text), ERROR_LENGTH)

    def _arguments(self) -> Sequence[Any]:
        if self.payload is None:
            return ()
        body = load_call(body_of(self.payload))
        if body.packed:
            common = glimpse_keywords(body.common)
            return [(args, common) for args in load_items(body.packed)]
        return body.frames


_CANCELLED = ord("c")


class History:
    """Notes of the newest replies. The methods named ``note…`` are the listener's; `last` is anybody's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._notes: deque[_Note] = deque(maxlen=NOTES_KEPT)
        self._heavy: deque[_Note] = deque()  # those that keep a payload
        self._bytes = 0

    def note(self, sent: Sent, first: int, body: ReplyBody) -> None:
        """Items of a call from `first` on have ended."""
        note = _Note(sent, first, body.items, body.started + body.seconds)
        note.kinds = body.kinds
        note.worker, note.attempt = body.worker, body.attempt
        note.started, note.seconds = body.started, body.seconds
        if body.kinds:
            frames = body.frames
            note.errors = tuple(
                frames[i] if frames and kind in (EXCEPTION, ERROR) and len(frames[i]) <= LARGEST_BYTES else b""
                for i, kind in enumerate(body.kinds)
            )
        self._keep(note)

    def note_broken(self, sent: Sent, items: Sequence[int], error: BaseException) -> None:
        """These items of a call have ended with an error of ours."""
        if items:
            note = self._note_some(sent, items, ERROR)
            note.errors = _cut(_said(type(error).__name__, str(error)), ERROR_LENGTH)
            self._keep(note)

    def note_cancelled(self, sent: Sent, items: Sequence[int]) -> None:
        """These items of a call were cancelled."""
        if items:
            self._keep(self._note_some(sent, items, _CANCELLED))

    @staticmethod
    def _note_some(sent: Sent, items: Sequence[int], kind: int) -> _Note:
        first = items[0]
        note = _Note(sent, first, items[-1] + 1 - first, time.time())
        kinds = bytearray([SKIPPED]) * note.items
        for item in items:
            kinds[item - first] = kind
        note.kinds = bytes(kinds)
        return note

    def _keep(self, note: _Note) -> None:
        size = len(note.payload or b"")
        if size > LARGEST_BYTES:
            note.payload = None
        with self._lock:
            self._notes.append(note)
            if note.payload is None:
                return
            self._heavy.append(note)
            self._bytes += size
            while self._bytes > BYTES_KEPT or len(self._heavy) > NOTES_KEPT:
                oldest = self._heavy.popleft()
                self._bytes -= len(oldest.payload or b"")
                oldest.payload = None

    def of(self, sink: object) -> list[_Note]:
        """What is still kept of one batch."""
        with self._lock:
            return [note for note in self._notes if note.owner is not None and note.owner() is sink]

    def last(self, n: int, *, failed: bool = False) -> TaskHistory:
        """The newest `n` records, or the newest `n` of those that did not end well."""
        with self._lock:
            notes = list(self._notes)
        found: list[TaskRecord] = []
        for note in reversed(notes):
            if failed and (not note.kinds or not note.kinds.strip(_GOOD)):
                continue
            for record in note.records():
                if len(found) >= n:
                    break
                if not failed or record.outcome not in ("done", "cancelled"):
                    found.append(record)
            if len(found) >= n:
                break
        return TaskHistory(sorted(found, key=lambda record: record.finished))


_GOOD = bytes([VALUE, RETRYING, SKIPPED, _CANCELLED])


def _short(item: Any) -> str:
    """``1, steps=10`` of one item's arguments."""
    seen = glimpse_values(item) if isinstance(item, bytes) else item
    return "…" if seen is None else _cut(glimpse_arguments(*seen), ARGUMENTS_LENGTH)


def _said(kind: str, text: str) -> str:
    return f"{kind}: {text}" if text.strip() else kind


def _cut(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
