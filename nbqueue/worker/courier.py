"""While an item runs for long: what is finished leaves, what was fetched ahead goes back, news and prints are told.

Always true here: the courier, a thread beside the task's, takes the wire only when nobody has it; what it tells of is
known to be of the item that runs, since whatever draws attention ends a sprint (`sprint`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from nbqueue import context
from nbqueue.codec import messages
from nbqueue.codec.functions import all_short
from nbqueue.codec.messages import call_id
from nbqueue.codec.values import LONG_BYTES
from nbqueue.errors import ServerError
from nbqueue.stream.broker import given_back
from nbqueue.stream.connect import CommandError
from nbqueue.stream.records import Fetched
from nbqueue.worker import board
from nbqueue.worker.carrier import Carrier
from nbqueue.worker.sprint import Sprint
from nbqueue.worker.supplies import WorkerSpec
from nbqueue.worker.surroundings import Surroundings
from nbqueue.worker.telling.news import News
from nbqueue.worker.telling.prints import Prints

__all__ = ["FLUSH_S", "Courier"]

# Replies of finished items leave within about this time, also while the next item runs for long.
FLUSH_S = 0.1
# How long an item may run before what waits behind it is given back. While nothing does, there is less to look for,
# and each look takes the interpreter from the task.
COURIER_S = 0.05
# News of a running task leave this often at most.
NEWS_S = 0.2


class Courier(Carrier):
    """The base of `Worker`. Parameters are those of `Worker`."""

    def __init__(self, spec: WorkerSpec, slot: board.Slot) -> None:
        super().__init__(spec, slot)
        self._surroundings = Surroundings()
        self._prints = Prints(echo=spec.echo)
        self._news = News()
        self._news_at = 0.0
        self._running_call: tuple[Fetched, int] | None = None  # and which of its items
        self._sprint: Sprint | None = None
        self._item_since = 0.0
        self._running = threading.Event()

    def _courier(self) -> None:
        while True:
            self._running.wait()
            time.sleep(COURIER_S if self._ahead else FLUSH_S)
            if not self._armed and self._slot.state() == board.IDLE:
                self._running.clear()
                if self._slot.state() == board.IDLE:
                    continue
                self._running.set()
            if self._io.acquire(blocking=False):
                try:
                    self._help_out()
                except (ServerError, CommandError):
                    # The main thread connects again when its task is done; what is ours is read again then.
                    self._broker.wire.close()
                finally:
                    self._io.release()

    def _help_out(self) -> None:
        now = time.monotonic()
        if not self._armed or now - self._item_since < COURIER_S:
            return
        sprint = self._sprint
        if sprint is not None:
            self._harvest(sprint, now)
        if self._prints.touched:
            # A part of a line, as of a row of dots, is seen while it grows.
            self._surroundings.flush_own()
        if not self._broker.wire.connected:
            return
        with self._lock:
            waiting = given_back(self._ahead) if not self._slot.stop_asked() else []
            if waiting:
                self._ahead.clear()
        if waiting:
            self._broker.release(self._spec.consumer, waiting)
        if self._outbox.waiting or self._outbox.is_due(now, FLUSH_S):
            self._flush_now()
        if now >= self._news_at:
            self._news_at = now + NEWS_S
            self._announce()

    def _announce(self) -> None:
        running = self._running_call
        if running is None:
            return
        for event in self._news.take():
            self._tell(running[0], event)
        for event in self._prints.leaving():
            self._tell(running[0], event)
            self._prints.left(event)

    def _tell(self, call: Fetched, event: dict[str, Any]) -> None:
        message = self._seal.close("event", call_id(call.client, call.n), messages.dump_event(**event))
        self._broker.announce(call.client, call.n, call.entry, message)

    def _attend(self) -> None:
        """The item that runs is about to say something, so it must be known which it is. Any thread of the task."""
        sprint = self._sprint
        if sprint is not None and self._running_call is not None:
            with sprint.lock:
                if self._sprint is sprint:
                    self._running_call = self._running_call[0], sprint.leave()

    def _stop_in_fork(self) -> None:
        # Without the lock, whose holder may not be in this process.
        if self._sprint is not None:
            self._sprint.leave()

    def _harvest(self, sprint: Sprint, now: float) -> None:
        """An item of a sprint runs for long: those before it have ended, and it is one like any other from now on."""
        with sprint.lock:
            if self._sprint is not sprint or self._running_call is None:
                return
            call, item = self._running_call[0], sprint.leave()
            self._running_call = call, item
            self._slot.item(item, time.monotonic_ns())
            finished = sprint.results[sprint.noted : item - sprint.first]
            if finished and all_short(finished, sprint.kinds, LONG_BYTES):
                since = now - self._item_since
                self._outbox.note_plain(call, sprint.first + sprint.noted, finished, since, sprint.kinds)
                sprint.noted += len(finished)
            self._item_since = now

    def _shower(self) -> Callable[[str, dict[str, Any]], None] | None:
        """What takes displays of the running item; None where its caller cannot show them."""
        if self._prints.voices is not None and (voice := self._prints.voices()) is not None:
            return voice.show if self._surroundings.shows else None
        self._attend()
        running = self._running_call
        if running is None or not self._surroundings.shows:
            return None
        return partial(self._prints.show, running[1])

    def _post(self, kind: str, key: object, details: context.Details | Callable[[], context.Details]) -> None:
        self._attend()
        running = self._running_call
        if running is not None:
            which = {"kind": kind, "item": running[1], "attempt": running[0].attempt}
            event = (lambda: {**details(), **which}) if callable(details) else {**details, **which}
            self._news.post(event, None if key is None else (running[1], kind, key))
