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
from nbqueue.codec.messages import ERROR, EXCEPTION, RETRYING, SKIPPED, VALUE, RepliesBody, ReplyBody, load_call
from nbqueue.codec.seal import body_of
from nbqueue.codec.tracebacks import gist_of
from nbqueue.progress.static import GREEN, GREY_TEXT, RED, css, seconds_text
from nbqueue.stream.records import Call

__all__ = ["History", "TaskHistory", "TaskRecord"]

# One note is a reply: a call, several that were told of together, an item, or a piece of a map.
NOTES_KEPT = 5_000
# Of those that were told of together, each costs as much memory as a note.
CALLS_KEPT = 5_000
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
    light: Any


class _Note:
    """Items ``first … first + items - 1`` of a call, as one reply told of them."""

    __slots__ = (
        *("attempt", "base", "errors", "finished", "first", "instead", "items", "kinds", "light", "many", "name"),
        *("owner", "payload", "seconds", "sent_at", "started", "worker"),
    )

    calls = 1

    def __init__(self, sent: Sent, first: int, items: int, finished: float) -> None:
        self.name: str = sent.sink.name
        self.many: bool = sent.sink.many
        # Of batches only is asked.
        self.owner = weakref.ref(sent.sink) if self.many else None
        self.instead: str = sent.sink.in_history
        self.base = sent.base
        self.payload: bytes | None = sent.call.payload
        self.light = sent.light is not None  # then it is the arguments
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

    @property
    def size(self) -> int:
        return len(self.payload or b"")

    def lighten(self) -> None:
        """Forget what is only kept for the sake of a look back."""
        self.payload = None

    def _arguments(self) -> Sequence[Any]:
        if self.payload is None:
            return ()
        if self.light:
            return (self.payload,)
        body = load_call(body_of(self.payload))
        if body.packed:
            common = glimpse_keywords(body.common)
            return [(args, common) for args in load_items(body.packed)]
        return body.frames


class _Values:
    """Light calls that have ended with values, as one message told of them."""

    __slots__ = ("attempt", "payloads", "sinks", "size", "times", "worker")

    kinds = b""
    owner = None

    def __init__(self, calls: Sequence[Sent], took: Sequence[tuple[float, float]], body: RepliesBody) -> None:
        self.worker, self.attempt = body.worker, body.attempt
        # Not the sinks themselves, which hold their values.
        self.sinks = [(call.sink.name, call.sink.in_history) for call in calls]
        self.times = [(call.sent_at, *times) for call, times in zip(calls, took, strict=True)]
        self.payloads: list[bytes] | None = [call.call.payload for call in calls]
        self.size = sum(map(len, self.payloads))

    @property
    def calls(self) -> int:
        return len(self.times)

    def lighten(self) -> None:
        self.payloads = None
        self.size = 0

    def records(self) -> Iterator[TaskRecord]:
        """Of each call, the last one first."""
        for i in reversed(range(len(self.times))):
            name, instead = self.sinks[i]
            sent_at, started, seconds = self.times[i]
            yield TaskRecord(
                name=name,
                arguments=instead or ("…" if self.payloads is None else _short(self.payloads[i])),
                outcome="done",
                error="",
                worker=self.worker,
                attempts=self.attempt,
                queued=sent_at,
                started=started,
                finished=started + seconds,
                seconds=seconds,
            )


_CANCELLED = ord("c")


class History:
    """Notes of the newest replies. The methods named ``note…`` are the listener's; `last` is anybody's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._notes: deque[_Note | _Values] = deque()
        self._calls = 0  # in all of them
        self._heavy: deque[_Note | _Values] = deque()  # those that keep a payload
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

    def note_several(self, calls: Sequence[Sent], took: Sequence[tuple[float, float]], body: RepliesBody) -> None:
        """These light calls have ended with values. Each `took` from its start, as Unix time, so many seconds."""
        self._keep(_Values(calls, took, body))

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

    def _keep(self, note: _Note | _Values) -> None:
        size = note.size
        if size > LARGEST_BYTES:
            note.lighten()
        with self._lock:
            self._notes.append(note)
            self._calls += note.calls
            if size <= LARGEST_BYTES:
                self._heavy.append(note)
                self._bytes += size
            while len(self._notes) > NOTES_KEPT or self._calls > CALLS_KEPT:
                gone = self._notes.popleft()
                self._calls -= gone.calls
                if self._heavy and self._heavy[0] is gone:
                    self._lighten_oldest()
            while self._bytes > BYTES_KEPT:
                self._lighten_oldest()

    def _lighten_oldest(self) -> None:
        oldest = self._heavy.popleft()
        self._bytes -= oldest.size
        oldest.lighten()

    def of(self, sink: object) -> list[_Note]:
        """What is still kept of one batch."""
        with self._lock:
            notes = [note for note in self._notes if isinstance(note, _Note)]
        return [note for note in notes if note.owner is not None and note.owner() is sink]

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
