"""Between a worker and the server: calls come, reports go, in one write.

Always true here: a report is kept until the server has taken it or said that it no longer counts; after a lost
connection, what may lie unread in the worker's own pending list is read before anything new.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Container
from typing import Any

from nbqueue.codec.messages import call_id
from nbqueue.errors import BadMessage, ServerError
from nbqueue.stream.broker import BLOCK_MS, given_back
from nbqueue.stream.connect import LOWEST_LIMIT_BYTES, CommandError, ForgotScripts, may_be_too_large
from nbqueue.stream.records import Fetched, Report, Several
from nbqueue.worker import board
from nbqueue.worker.outbox import Outbox
from nbqueue.worker.supplies import Supplies, WorkerSpec
from nbqueue.worker.turns import ALL, Turns

__all__ = ["AHEAD_S", "Carrier"]

# How much measured work may wait in a busy worker while another is idle.
AHEAD_S = 0.004
MOST_AHEAD = 64
# A read that was sent over a lost connection ends this long after at the latest, its way to the server included.
LATE_READ_S = BLOCK_MS / 1000 + 1.0


class Carrier(Supplies):
    """The base of `Worker`. Parameters are those of `Worker`."""

    def __init__(self, spec: WorkerSpec, slot: board.Slot) -> None:
        super().__init__(spec)
        self._slot = slot
        self._lock = threading.Lock()  # guards _ahead
        self._ahead: deque[Fetched] = deque()
        self._outbox = Outbox(self._seal, spec.consumer)
        self._turns = Turns()
        self._last_fetch_empty = True
        self._unsure = False  # connected again while a task ran: entries may lie unread in our pending list
        self._look_again_at: float | None = None  # when a read over the connection before this one has ended for sure
        self._suspect = 0  # bytes of the largest reply that was on its way when the connection was lost
        self._seconds = 0.0  # an entry's run time, smoothed; 0 before the first
        self._bundle_s = 0.0  # what the calls of the bundle that is being run have taken
        self._left = spec.max_tasks or -1  # items that it may still run; -1: as many as come
        self._reads: dict[tuple[int, int, int | None], tuple[Any, ...]] = {}  # commands that were sent before

    def _connect(self) -> None:
        self._broker.connect()
        self._slot.connected(int(self._broker.wire.call("CLIENT", "ID")))
        self._look_again_at = time.monotonic() + LATE_READ_S

    def _read_own(self, running: Container[str] = ()) -> None:
        """A lost reply has left its entries with us, beside those that are `running`. What is finished is reported
        before, so it is not among them."""
        self._flush_now()
        if self._left == 0:
            # It leaves, maybe in the midst of a call. What is its own goes back when its end is noticed.
            self._unsure = False
            return
        broker = self._broker
        calls = broker.sift(
            broker.wire.call(*broker.fetch_command(self._spec.consumer, 1000, block_ms=None, own=True))
        )
        with self._lock:
            self._ahead = deque(call for call in calls if call.entry not in running)
        self._unsure = False

    def _own_may_have_grown(self) -> bool:
        """A server that has not noticed the end of our last connection gives what comes next to the read that
        waits there: it is ours, and nobody brings it."""
        if self._look_again_at is not None and time.monotonic() > self._look_again_at:
            self._look_again_at, self._unsure = None, True
        return self._unsure and self._broker.wire.connected

    def _fetch(self, meanwhile: Callable[[], object]) -> bool:
        """Report what is finished and get more to do. False when it is time to leave.

        `meanwhile` is called before there is more to do: while the server works, if it does.
        """
        with self._io:
            if (self._unsure or self._look_again_at is not None) and self._own_may_have_grown():
                self._read_own()
            if self._ahead:
                meanwhile()
                return True
            last = self._slot.stop_asked()
            reports = self._outbox.reports()
            if self._left == 0 or (last and not self._last_fetch_empty):
                # Asked to stop while it was busy: it leaves. An idle worker fetches once more.
                self._flush_now()
                self._slot.idle()
                return False
            self._slot.idle()
            count = min(MOST_AHEAD, max(1, int(AHEAD_S / self._seconds))) if self._seconds > 0 else 1
            streams = ALL if last else self._turns.next()
            block_ms = BLOCK_MS if streams == ALL and not last else None
            calls = self._exchange(reports, count, streams, block_ms, meanwhile)
            if calls is None:
                return not last
            if not calls and streams < ALL:
                # All are asked at once.
                return True
            self._last_fetch_empty = not calls
            if not calls and self._store.let_go():
                # They may hold what is forgotten.
                self._functions.clear()
            if calls:
                with self._lock:
                    self._ahead.extend(calls)
        return bool(calls) or not last

    def _exchange(
        self,
        reports: list[Report | Several],
        count: int,
        streams: int,
        block_ms: int | None,
        meanwhile: Callable[[], object] | None = None,
    ) -> list[Fetched] | None:
        """Send `reports` and get up to `count` calls of each stream, in one write. None if the read was ended: the
        group was missing, and is there now, or the supervisor has woken us. The wire is ours."""
        broker = self._broker
        fetch = self._reads.get((count, streams, block_ms))
        if fetch is None:
            fetch = broker.fetch_command(self._spec.consumer, count, block_ms=block_ms, streams=streams)
            self._reads[count, streams, block_ms] = fetch
        if reports:
            self._report(reports, fetch, meanwhile=meanwhile)
        else:
            broker.wire.send(fetch)
            if meanwhile is not None:
                meanwhile()
        try:
            answer = broker.wire.receive()
        except CommandError as error:
            if "NOGROUP" not in str(error) and "UNBLOCKED" not in str(error):
                raise
            broker.ensure_group()
            return None
        calls = broker.sift(answer, alone=self._spec.alone)
        if calls:
            self._turns.brought(streams, calls[0].entry[0], calls[-1].entry[0])
        else:
            self._turns.nothing()
        return calls

    def _make_way(self) -> None:
        """This process, or what it has imported, is not what it should be: a fresh one shall run what was fetched."""
        self._left = 0
        self._return_ahead()

    def _next(self) -> Fetched | None:
        # Others only take from them.
        if not self._ahead:
            return None
        with self._lock:
            return self._ahead.popleft() if self._ahead else None

    def _note_pace(self, call: Fetched, function: str, seconds: float) -> None:
        """A call has run for so long. Of a bundle, all its calls are what another fetch would bring."""
        self._paces[function] = seconds
        if call.bundled:
            self._bundle_s += seconds
            with self._lock:
                # Or it could be given back between two looks.
                goes_on = bool(self._ahead) and self._ahead[0].payload is call.payload
            if goes_on:
                return
            seconds, self._bundle_s = self._bundle_s, 0.0
        self._seconds = seconds if not self._seconds else 0.7 * self._seconds + 0.3 * seconds

    def _report(
        self, reports: list[Report | Several], *more: tuple[Any, ...], meanwhile: Callable[[], object] | None = None
    ) -> None:
        """Send FINISH and VALUES, with other commands in the same write, and read their answers. There is time
        `meanwhile`."""
        if self._suspect:
            if not self._new_wire().takes(self._suspect):
                reports = self._outbox.with_smaller(self._suspect)
            self._suspect = 0
        try:
            single = [report for report in reports if isinstance(report, Report)]
            several = [report for report in reports if isinstance(report, Several)]
            finish = [self._broker.finish_command(single)] if single else []
            self._broker.wire.send(*finish, *map(self._broker.values_command, several), *more)
            if meanwhile is not None:
                meanwhile()
            if single:
                self._outbox.settle(single, self._read_answer())
            for report in several:
                self._outbox.settle_several(report, self._read_answer())
        except (ServerError, CommandError) as error:
            if not may_be_too_large(error):
                raise
            largest = max((len(report.reply) for report in single), default=0)
            self._suspect = largest if largest > LOWEST_LIMIT_BYTES else 0
            raise

    def _read_answer(self) -> list[bool]:
        """To a FINISH or a VALUES that was sent."""
        try:
            return self._broker.parse_finish(self._broker.wire.receive())
        except ForgotScripts as error:
            # SCRIPT FLUSH on a living server. The fetch that left in the same write goes unread.
            raise ServerError("the server forgot its scripts") from error

    def _flush_now(self) -> None:
        """Report what is finished. The wire's lock is held."""
        reports = self._outbox.reports()
        if reports:
            self._report(reports)

    def _reconnect(self) -> None:
        """Make sure of a connection while a task runs; what lies in our pending list is looked at later."""
        if not self._broker.wire.connected:
            self._unsure = True
            self._connect()

    def _try_flush(self) -> None:
        """Report what is finished; while the server is away it waits in the outbox and the work goes on."""
        with self._io:
            try:
                self._reconnect()
                self._flush_now()
            except (ServerError, CommandError):
                self._broker.wire.close()

    def _return_ahead(self) -> None:
        """Give back what was fetched and not started; what was cancelled meanwhile goes no further."""
        with self._lock:
            entries = given_back(self._ahead)
            self._ahead.clear()
        if not entries:
            return
        with self._io:
            for pause in (0.05, 0.2, 1.0, 2.0, 0.0):
                try:
                    self._reconnect()
                    self._broker.release(self._spec.consumer, entries)
                except (ServerError, CommandError):
                    self._broker.wire.close()
                    time.sleep(pause)
                else:
                    return

    def _forget_ahead(self) -> None:
        """The supervisor has given back what was fetched ahead, while a task held the interpreter. This call may have
        been among it."""
        self._slot.idle()
        with self._lock:
            self._ahead.clear()
        self._slot.looks_again()
        self._unsure = True

    def _refuse(self, call: Fetched, error: BadMessage) -> None:
        """End a call whose message cannot be trusted, all its items at once. It is counted, and never run again."""
        message = self._seal.close("refusal", call_id(call.client, call.n), str(error).encode())
        with self._io:
            self._broker.refuse_call(call, message)
