"""Finished items on their way to the server.

Always true here: what is finished is kept until the server has taken it, or has said that it no longer counts.
`loop` notes items in the main thread and sends reports from whichever thread has the wire.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from itertools import pairwise
from typing import Any, NamedTuple

from nbqueue.codec import messages
from nbqueue.codec.frames import SHARED_BYTES, Frame, load_frame, refer
from nbqueue.codec.functions import is_long
from nbqueue.codec.messages import ERROR, EXCEPTION, PACKED, RETRYING, VALUE, RepliesBody, ReplyBody, call_id
from nbqueue.codec.seal import Seal, body_of
from nbqueue.codec.segments import Shelf
from nbqueue.errors import ResultNotSendable
from nbqueue.stream.connect import LOWEST_LIMIT_BYTES
from nbqueue.stream.records import MOST_TOGETHER, Fetched, Report, Several
from nbqueue.worker.telling.prints import NOTHING, Said

__all__ = ["Outbox"]

# A text or number that is longer travels in a reply of its own.
SHORT_BYTES = 1_000
# Finished values that are larger than this together leave at once: one reply must stay far below 512 MB.
FLUSH_BYTES = 8_000_000
_SIZED = frozenset({str, bytes})


class _Piece:
    """Outcomes of consecutive items of one call that are not reported yet."""

    __slots__ = (
        *("call", "failed", "first", "kinds", "large", "plain", "printed", "seconds", "shown", "since", "size"),
        *("started", "values"),
    )

    def __init__(self, call: Fetched, first: int, seconds: float) -> None:
        self.call = call
        self.first = first
        self.kinds = bytearray()
        self.values: list[Any] = []
        self.large: list[int] = []
        self.plain = True
        self.failed = 0
        self.started = time.time() - seconds  # it is made when its first item ends
        self.since = time.monotonic()
        self.seconds = 0.0
        self.size = 0
        self.printed: list[messages.Printed] = []
        self.shown: list[tuple[int, dict[str, Any]]] = []

    def say(self, said: Said) -> None:
        """What the next item to be added has printed and shown."""
        printed, shown = said.entries(len(self.values))
        self.printed += printed
        self.shown += shown
        self.size += said.size

    def add(self, kind: int, value: Any, plain: bool) -> None:
        if plain != self.plain:
            # Until now all values were plain: make frames of them.
            if self.plain:
                self.values = [pickle.dumps(v, protocol=5) for v in self.values]
                self.plain = False
            else:
                value = pickle.dumps(value, protocol=5)
        if type(value) is Frame:
            self.large.append(len(self.values))
            value = bytes(value)
        if isinstance(value, bytes | str):
            self.size += len(value)
        self.kinds.append(kind)
        self.values.append(value)
        self.failed += kind in (EXCEPTION, ERROR)


    def extend(self, values: Sequence[Any], kinds: AbstractSet[type]) -> None:
        """Add plain values, of these types, to plain ones."""
        if not _SIZED.isdisjoint(kinds):
            self.size += sum(len(value) for value in values if isinstance(value, bytes | str))
        self.kinds += bytes([VALUE]) * len(values)
        self.values += values


class _Whole(NamedTuple):
    """A call of a bundle that has ended with a short plain value, and has said nothing."""

    call: Fetched
    value: Any
    started: float
    seconds: float


class Outbox:
    """Reports that the server has not answered yet, and the open piece, which grows item by item.

    Attributes
    ----------
    stale : set of str
        Entries whose reports no longer count: the rest of such a call is not wanted.
    shelf_of : callable
        Where the caller of a call that is being reported wants large results; None where there is no such place.
    """

    def __init__(self, seal: Seal, worker: str) -> None:
        self.stale: set[str] = set()
        self.shelf_of: Callable[[Fetched], Shelf | None] = lambda _call: None
        self._seal = seal
        self._worker = worker
        self._lock = threading.Lock()
        self._piece: _Piece | None = None
        self._wholes: list[_Whole] = []  # which become one report
        self._reports: list[Report | Several] = []

    @property
    def waiting(self) -> bool:
        """Whether a report waits, apart from the open piece."""
        return bool(self._reports or self._wholes)

    def is_due(self, now: float, after_s: float) -> bool:
        """Whether the open piece is older than that, or large."""
        piece = self._piece
        return piece is not None and (now - piece.since > after_s or piece.size > FLUSH_BYTES)

    def note(
        self, call: Fetched, item: int, kind: int, value: Any, plain: bool, seconds: float, said: Said = NOTHING
    ) -> None:
        """An item has ended with a `value` that is `plain` as it is, or else pickled."""
        with self._lock:
            self._note(call, item, kind, value, plain, seconds, said)

    def note_whole(self, call: Fetched, value: Any, seconds: float) -> None:
        """A call of one item has ended with a plain value, and said nothing: its report, in one go."""
        report = self._report_of(_Whole(call, value, time.time() - seconds, seconds))
        with self._lock:
            if self._piece is not None:
                self._close()
            self._reports.append(report)

    def note_bundled(self, call: Fetched, value: Any, seconds: float) -> None:
        """The same of a call that lay in a bundle: it is reported with others of its kind, if the value is short."""
        if is_long(value, SHORT_BYTES):
            self.note_whole(call, value, seconds)
            return
        whole = _Whole(call, value, time.time() - seconds, seconds)
        with self._lock:
            if self._piece is not None:
                self._close()
            self._wholes.append(whole)

    def _report_of(self, whole: _Whole) -> Report:
        call, value, started, seconds = whole
        packed = pickle.dumps([value], protocol=5)
        body = ReplyBody(0, 1, b"", packed, (), self._worker, call.attempt, started, seconds)
        reply = self._seal.close("reply", call_id(call.client, call.n), messages.dump_reply(body))
        return Report(call, 0, 1, 0, reply)

    def _close_wholes(self) -> None:
        alike: dict[tuple[object, ...], list[_Whole]] = {}
        together: list[_Whole] = []
        last: Fetched | None = None
        for whole in self._wholes:
            call = whole.call
            # Those of one bundle have the very same.
            if (
                last is None
                or call.digests is not last.digests
                or call.client is not last.client
                or call.attempt != last.attempt
            ):
                together = alike.setdefault((call.client, call.digests, call.attempt), [])
                last = call
            together.append(whole)
        self._wholes = []
        for wholes in alike.values():
            if len(wholes) == 1:
                self._reports.append(self._report_of(wholes[0]))
            else:
                for at in range(0, len(wholes), MOST_TOGETHER):
                    self._reports.append(self._report_of_several(wholes[at : at + MOST_TOGETHER]))

    def _report_of_several(self, wholes: Sequence[_Whole]) -> Several:
        calls, values, started, seconds = zip(*wholes, strict=True)
        first: Fetched = calls[0]
        body = RepliesBody(
            names=tuple(call.n for call in calls),
            packed=pickle.dumps(list(values), protocol=5),
            worker=self._worker,
            attempt=first.attempt,
            started=started,
            seconds=seconds,
        )
        return Several(calls, self._seal.close("replies", first.client, messages.dump_replies(body)))

    def note_plain(
        self, call: Fetched, first: int, values: Sequence[Any], seconds: float, kinds: AbstractSet[type]
    ) -> None:
        """Items from `first` on have ended with plain values of `kinds`, in `seconds` together, and said nothing."""
        with self._lock:
            piece = self._piece
            if piece is None or piece.call is not call or not piece.plain:
                self._close()
                piece = self._piece = _Piece(call, first, seconds)
            piece.extend(values, kinds)
            piece.seconds += seconds

    def note_retry(
        self,
        call: Fetched,
        item: int,
        error: bytes,
        seconds: float,
        delay_s: float,
        payload: bytes,
        said: Said = NOTHING,
    ) -> None:
        """An item is to run again, after `delay_s`; `payload` is its own sealed message if the call has several.

        In one step with the end of the piece: a report that the courier takes in between would say nothing of it.
        """
        with self._lock:
            self._note(call, item, RETRYING, error, False, seconds, said)
            self._close(delay_s, payload)

    def close(self) -> None:
        """Make a report of the open piece."""
        # None is opened meanwhile: the courier does so only during a sprint.
        if self._piece is not None:
            with self._lock:
                self._close()

    def _note(
        self, call: Fetched, item: int, kind: int, value: Any, plain: bool, seconds: float, said: Said
    ) -> None:
        piece = self._piece
        if piece is None or piece.call is not call:
            self._close()
            piece = self._piece = _Piece(call, item, seconds)
        if said is not NOTHING:
            piece.say(said)
        piece.add(kind, value, plain)
        piece.seconds += seconds

    def reports(self) -> list[Report | Several]:
        """All that is to be reported now, the open piece included. It stays here until it is settled."""
        with self._lock:
            if self._piece is not None:
                self._close()
            if self._wholes:
                self._close_wholes()
            return self._reports.copy()

    def settle(self, reports: Sequence[Report], counted: Sequence[bool]) -> None:
        """The server has answered."""
        with self._lock:
            for report, counts in zip(reports, counted, strict=True):
                self._reports.remove(report)
                if not counts:
                    self.stale.add(report.call.entry)

    def settle_several(self, report: Several, counted: Sequence[bool]) -> None:
        """The same for calls that were reported together."""
        with self._lock:
            self._reports.remove(report)
            self.stale.update(call.entry for call, counts in zip(report.calls, counted, strict=True) if not counts)

    def with_smaller(self, size: int) -> list[Report | Several]:
        """All reports, those split whose reply has `size` bytes or more: so much the server does not let in."""
        with self._lock:
            self._reports = [
                smaller
                for report in self._reports
                for smaller in (
                    self._smaller(report) if isinstance(report, Report) and len(report.reply) >= size else [report]
                )
            ]
            return list(self._reports)

    def _smaller(self, report: Report) -> list[Report]:
        """Several reports of fewer items each; an item that is alone and still too large ends with an error."""
        call = report.call
        body = messages.load_reply(body_of(report.reply))
        frames = list(body.frames) or [pickle.dumps(value, protocol=5) for value in load_frame(body.packed)]
        kinds = body.kinds or bytes([VALUE]) * body.items
        if body.items == 1 and (body.printed or body.shown):
            # What it printed is the first to be given up.
            printed = tuple((offset, stream, size, ()) for offset, stream, size, _ in body.printed)
            body = body._replace(printed=printed, shown=())
        elif body.items == 1:
            name = messages.load_call(body_of(call.payload)).name
            error = ResultNotSendable(
                f"`{name}` ran to its end, but what it gave is {len(frames[0]):,} bytes when pickled, more than the "
                "server lets in at once. Raise its proto-max-bulk-len, or write it to a file and return the path."
            )
            frames = [pickle.dumps(error)]
            kinds = kinds if kinds[0] == RETRYING else bytes([ERROR])
        sizes = [len(frame) for frame in frames]
        for offset, _, _, pieces in body.printed:
            sizes[offset] += sum(len(data) for _, data in pieces)
        for offset, event in body.shown:
            sizes[offset] += event["bytes"]
        ends = [0]
        size = 0
        for i, more in enumerate(sizes):
            if i > ends[-1] and size + more > LOWEST_LIMIT_BYTES // 2:
                ends.append(i)
                size = 0
            size += more
        ends.append(len(frames))
        reports = []
        for start, end in pairwise(ends):
            part = body._replace(
                first=body.first + start,
                items=end - start,
                kinds=kinds[start:end],
                packed=b"",
                frames=tuple(frames[start:end]),
                large=tuple(o - start for o in body.large if start <= o < end),
                seconds=body.seconds * (end - start) / body.items,
                printed=tuple((entry[0] - start, *entry[1:]) for entry in body.printed if start <= entry[0] < end),
                shown=tuple((o - start, event) for o, event in body.shown if start <= o < end),
            )
            reply = self._seal.close("reply", call_id(call.client, call.n), messages.dump_reply(part))
            failed = sum(kind in (EXCEPTION, ERROR) for kind in part.kinds)
            reports.append(Report(call, part.first, part.items, failed, reply))
        # Only the last item of a report can be one that is to run again.
        reports[-1] = reports[-1]._replace(
            retry_delay_s=report.retry_delay_s, retry_payload=report.retry_payload
        )
        return reports

    def _close(self, retry_delay_s: float | None = None, retry_payload: bytes = b"") -> None:
        piece, self._piece = self._piece, None
        if piece is None or not piece.values:
            return
        call = piece.call
        packed, large = self._pack(piece) if piece.plain else (b"", tuple(piece.large))
        body = ReplyBody(
            first=piece.first,
            items=len(piece.values),
            kinds=b"" if piece.kinds.count(VALUE) == len(piece.kinds) else bytes(piece.kinds),
            packed=packed,
            frames=() if piece.plain else tuple(piece.values),
            worker=self._worker,
            attempt=call.attempt,
            started=piece.started,
            seconds=piece.seconds,
            printed=tuple(piece.printed),
            shown=tuple(piece.shown),
            large=large,
        )
        reply = self._seal.close("reply", call_id(call.client, call.n), messages.dump_reply(body))
        self._reports.append(
            Report(call, piece.first, body.items, piece.failed, reply, retry_delay_s, retry_payload)
        )

    def _pack(self, piece: _Piece) -> tuple[bytes, tuple[int, ...]]:
        """Plain values, and whether they lie in shared memory: many of them come to much, and to sign it twice and to
        pass it through the server takes several times as long. One alone is short, and may be needed on the server."""
        packed = pickle.dumps(piece.values, protocol=5)
        if len(packed) >= SHARED_BYTES and len(piece.values) > 1:
            shelf = self.shelf_of(piece.call)
            frame = None if shelf is None else refer(shelf, [packed], [])
            if frame is not None:
                return bytes(frame), (PACKED,)
        return packed, ()
