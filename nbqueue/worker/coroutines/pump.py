"""A worker's main thread while calls of async functions run: fetch → load → lane → report, for several at a time.

::

    fetch, as many as there is room for ─▶ open, load ─▶ lane (its own thread) ─▶ pickle ─▶ report + next fetch

`loop` hands over here with the first such call and goes on when none runs any more. A call joins the others if its
task allows as many (`concurrency`), and if it comes from the same surroundings. One that cannot, as a plain call, goes
back for other workers; from then on nothing is begun until those that run are over, so that neither kind starves.

Always true here: each call has a place on the board before its code (unpickling included) runs, and until its outcome
is in the outbox; what is fetched is begun or given back at once; a call that has cost a worker its life before runs
alone, so that the others are not charged again for what it does.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from nbqueue import context
from nbqueue.codec import inputs, messages
from nbqueue.codec.messages import CallBody, call_id
from nbqueue.errors import BadMessage, ServerError
from nbqueue.stream.connect import CommandError
from nbqueue.stream.records import Fetched
from nbqueue.worker import board
from nbqueue.worker.coroutines.lane import Lane, Running, voice
from nbqueue.worker.loop import NEWS, Worker
from nbqueue.worker.turns import ALL

__all__ = ["Pump"]

# How often a worker with room asks for more: soon after there was some, and then less and less often.
SHORTEST_S, LONGEST_S = 0.002, 0.05
# And how often it looks whether it is asked to stop, where it has no room.
LOOK_S = 0.1
# News of running calls leave this often at most.
NEWS_S = 0.2
# Between attempts to reach the server.
RETRY_S = 0.25
_BROKEN = b"nbqueue: a call has closed what its worker's event loop waits on (os.closerange?): no call in it can end.\n"


class Pump:
    """What a worker does beside its lane. One for each process."""

    def __init__(self, worker: Worker) -> None:
        self._w = worker
        self._lane = Lane()
        self._running: dict[str, Running] = {}  # by entry
        self._here: Running | None = None  # the one whose code this thread runs
        self._free = list(range(board.PLACES))
        self._setting = ""
        self._closed = False  # nothing more is begun until all is over
        self._waits = False
        self._full = False  # the last fetch has brought as much as was asked for
        self._poll_s = SHORTEST_S
        self._retry_at = 0.0
        self._news_at = 0.0
        worker._prints.voices = voice

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def run(self, call: Fetched, body: CallBody, plain: Sequence[Any] | None) -> None:
        """Run a call, and others as they come, until none is left or it is time for something else."""
        w = self._w
        if self._lane.broken:
            # By a plain call that ran here before.
            w._slot.idle()
            with w._lock:
                w._ahead.appendleft(call)
            w._make_way()
            return
        w._slot.several(0)
        if w._slot.taken_back():
            w._forget_ahead()
            return
        self._closed, self._full, self._poll_s = False, True, SHORTEST_S
        context.set_current(self._stand_in(body, call))
        try:
            with self._server():
                self._begin(call, body, plain)
            self._fill()
            while self._running:
                self._settle()
                self._talk()
                self._fill()
        finally:
            context.set_current(None)
            self._clean_up()

    def interrupted(self) -> int:
        """A signal has come: tell the calls that it is for. Why, if it is for the one whose code this thread runs."""
        why = 0
        for running in list(self._running.values()):
            if not running.why and (aimed := running.slot.aimed_at_me()):
                running.why = aimed
                if running is self._here:
                    running.slot.heard()
                    why = aimed
                else:
                    self._lane.cancel(running)
        return why

    # Begin

    def _room(self) -> int:
        """How many calls may be fetched now: no more than run already, so that idle workers have their share."""
        w = self._w
        if w._slot.leave_asked() or w._surroundings.spoiled:
            w._left = 0
        if self._closed or not w._left or w._slot.stop_asked():
            self._closed = True
            return 0
        running = self._running.values()
        if (running and self._lane.waits) or not self._free or any(one.call.crashes for one in running):
            return 0
        number = len(running)
        room = min((one.body.concurrency for one in running), default=1) - number
        if w._left > 0:
            room = min(room, w._left)
        return max(0, min(room, len(self._free), max(1, number)))

    def _fill(self) -> None:
        """Begin what was fetched, and give back what has to wait."""
        w = self._w
        while self._room() and (call := w._next()) is not None:
            with self._server():
                if not self._admit(call):
                    self._closed = True
                    with w._lock:
                        w._ahead.appendleft(call)
        for running in self._lane.withdrawn():
            self._let_go(running)
            with w._lock:
                w._ahead.append(running.call)
        if w._ahead and (self._running or not w._left):
            w._return_ahead()

    def _admit(self, call: Fetched) -> bool:
        """Begin a call beside the others. False if it has to wait until they are over."""
        w = self._w
        try:
            body = w._body_of(call)
            plain = messages.plain_items(body, call.items)
        except BadMessage as error:
            w._refuse(call, error)
            return True
        if not body.concurrency or (
            self._running
            and (call.crashes or body.setting != self._setting or len(self._running) >= body.concurrency)
        ):
            return False
        self._begin(call, body, plain)
        return True

    def _begin(self, call: Fetched, body: CallBody, plain: Sequence[Any] | None) -> None:
        w = self._w
        if call.items != 1:
            w._refuse(call, BadMessage(f"Items of the async `{body.name}` travel alone. It was not run."))
            return
        if call.crashes:
            # It has cost a worker its life before: nothing that is finished may depend on its good conduct.
            w._try_flush()
        alone = not self._running
        try:
            printed = w._surroundings.restore_output()
        except OSError:
            # One of the others has closed it.
            self._closed, w._left = True, 0
            with w._lock:
                w._ahead.appendleft(call)
            return
        running = self._place(call, body, printed)
        try:
            w._fetch_blobs(body)
            values = w._fetch_inputs(call, body) if body.inputs else {}
        except BadMessage as error:
            self._let_go(running)
            w._refuse(call, error)
            return
        except (ServerError, CommandError):
            # It is still ours, and is read again.
            self._let_go(running)
            raise
        if body.setting and not w._modules.fits(w._settings[body.setting].path):
            self._let_go(running)
            self._closed, w._left = True, 0
            with w._lock:
                w._ahead.appendleft(call)
            return
        try:
            with inputs.holding(values):
                function, args, kwargs = self._load(running, plain, alone=alone)
        except BaseException as error:  # noqa: BLE001 - unpickling runs its author's code
            running.error = error
            self._conclude(running)
            return
        self._setting = body.setting
        if w._left > 0:
            w._left -= 1
        if not self._lane.begin(running, function, args, kwargs, alone=alone):
            self._let_go(running)
            with w._lock:
                w._ahead.append(call)

    def _place(self, call: Fetched, body: CallBody, printed: tuple[int, int]) -> Running:
        """Name it on the board."""
        w = self._w
        number = heapq.heappop(self._free)
        w._slot.several(number + 1, waiting=self._waits)
        slot = w._slot.place(number)
        running = Running(call, body, number, slot)
        running.context = w._context(body, call, self._lane, running.post, shows=w._surroundings.shows)
        timeout_ms = board.limit_ms(body.timeout_s)
        slot.call(call.entry, call.client, call.n, call.attempt, timeout_ms, body.name, printed)
        slot.item(0, time.monotonic_ns())
        self._running[call.entry] = running
        return running

    def _load(
        self, running: Running, plain: Sequence[Any] | None, *, alone: bool
    ) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        w, body = self._w, running.body
        with self._user_code(running):
            # The others run in these surroundings, and may have changed them.
            function = w._prepare(body) if alone else w._load(body)
            if running.context is not None:
                running.context.shows, running.context.shares = w._surroundings.shows, bool(w._surroundings.shelf)
            args, kwargs = w._guarded(lambda: messages.item_arguments(body, plain, 0))
        return function, args, kwargs

    @contextlib.contextmanager
    def _user_code(self, running: Running) -> Iterator[None]:
        """In the main thread. The courier looks after the rest meanwhile."""
        w = self._w
        w._why, w._item_since = 0, time.monotonic()
        w._running.set()
        self._here = running
        try:
            yield
        finally:
            self._here = None

    def _let_go(self, running: Running) -> None:
        """It is over, or does not begin: its place is free."""
        running.slot.leave_place()
        del self._running[running.call.entry]
        heapq.heappush(self._free, running.place)

    # End

    def _settle(self) -> None:
        """Wait a little, and note what has ended."""
        waits = self._lane.waits
        if waits != self._waits:
            self._waits = waits
            # Another worker takes its place meanwhile.
            self._w._slot.several(0, waiting=waits)
            self._w._ring(NEWS)
        ended = self._lane.ended(self._pause_s())
        for running in ended:
            self._conclude(running)
        if not ended and self._lane.broken:
            self._leave()

    def _leave(self) -> NoReturn:
        """What runs never ends, and is charged as at every death of a worker; nobody can tell which of it did that."""
        w = self._w
        w._put_right(w._surroundings.restore_output)
        w._try_flush()
        os.write(2, _BROKEN)
        os._exit(1)

    def _pause_s(self) -> float:
        if time.monotonic() < self._retry_at or not self._room():
            return LOOK_S
        return 0.0 if self._full else self._poll_s

    def _conclude(self, running: Running) -> None:
        w, call, body = self._w, running.call, running.body
        error = running.error
        if error is None:
            try:
                with self._user_code(running):
                    kind, value, is_one_pickle = w._guarded(lambda: w._packed(running.value, body.name, call))
            except BaseException as raised:  # noqa: BLE001 - an interrupt, which is for this call
                error = raised
        said = running.voice.said()
        running.value = running.error = None
        if w._prints.warned:
            w._forget_warnings()
        if error is None:
            w._outbox.note(call, 0, kind, value, is_one_pickle, running.seconds, said)
        elif running.why == board.CANCEL:
            w._note_spoiled(error, running.why)
        else:
            w._note_spoiled(error, running.why)
            w._note_error(call, body, None, 0, error, running.why, running.seconds, said)
        w._outbox.close()
        self._let_go(running)

    def _clean_up(self) -> None:
        self._waits = False
        self._w._put_right(self._w._surroundings.restore)
        self._w._leave_if_spoiled()

    # The server

    @contextlib.contextmanager
    def _server(self) -> Iterator[None]:
        """It may be away: what runs goes on, and what is ours is looked at later."""
        w = self._w
        try:
            yield
        except (ServerError, CommandError):
            w._broker.wire.close()
            self._retry_at = time.monotonic() + RETRY_S

    def _talk(self) -> None:
        """Report, tell what is new, and fetch what there is room for."""
        now = time.monotonic()
        if now < self._retry_at:
            return
        with self._server(), self._w._io:
            self._w._reconnect()
            if self._w._own_may_have_grown():
                self._w._read_own(self._running)
            else:
                self._exchange()
            if now >= self._news_at:
                self._news_at = now + NEWS_S
                self._announce()

    def _exchange(self) -> None:
        w = self._w
        reports, room = w._outbox.reports(), self._room()
        if not room:
            if reports:
                w._report(reports)
            return
        streams = w._turns.next()
        calls = w._exchange(reports, room, streams, None)
        if calls is None:
            return
        if calls and w._modules.changed():
            # What this process has imported is not what it should be now.
            w._left = 0
        # Where not all streams were asked, they are now.
        self._full = len(calls) >= room or (not calls and streams < ALL)
        self._poll_s = SHORTEST_S if calls or reports else min(LONGEST_S, 2 * self._poll_s)
        with w._lock:
            w._ahead.extend(calls)

    def _announce(self) -> None:
        w = self._w
        if w._prints.touched:
            w._surroundings.flush_own()
        events: list[tuple[str, str, str, bytes]] = []
        shown: list[tuple[Running, dict[str, Any]]] = []
        for running in self._running.values():
            call = running.call
            shows = running.voice.prints.leaving()
            shown += [(running, event) for event in shows]
            for event in (*running.news.take(), *running.voice.news(call.attempt), *shows):
                message = w._seal.close("event", call_id(call.client, call.n), messages.dump_event(**event))
                events.append((call.client, call.n, call.entry, message))
        if events:
            w._broker.announce_all(events)
            for running, event in shown:
                running.voice.prints.left(event)

    def _stand_in(self, body: CallBody, call: Fetched) -> context.TaskContext:
        """For threads that a library has started: they are inside a task, of which nobody knows which it is."""
        return self._w._context(body, call, self._lane, lambda kind, key, details: None, shows=False)
