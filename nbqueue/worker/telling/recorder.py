"""A worker's two tapes, as the supervisor reads along.

::

    printed by an item  ─▶ events to whoever called it, if it runs for a while; its reply has all of it
    printed by nobody   ─▶ outlet (a thread that a task left running)

Where the workers' master is a script or a terminal (`echo`), all of it goes to the outlet as well. Whose a byte
is follows from the slot board: what comes after ``Line.printed`` belongs to the item that runs, and to nobody
while the worker is idle. An event says where its text begins, so that whoever has the reply, too, shows
nothing twice.
"""

from __future__ import annotations

import time
from typing import Any

from nbqueue.codec.messages import Printed
from nbqueue.worker.board import IDLE, Line, Slot
from nbqueue.worker.telling.output import Outlet, Tape, last_lines, pieces

__all__ = ["Recorder"]

# Of one worker, to a person who looks on.
NEWS_S = 0.2
# How often is looked at what an idle worker prints: threads that a task has left running do.
IDLE_S = 0.5


class Recorder:
    """One worker's stdout and stderr."""

    def __init__(self, outlets: tuple[Outlet, Outlet], *, echo: bool) -> None:
        self._outlets = outlets
        self._echo = echo
        self._tapes = Tape(), Tape()
        self._item: tuple[str, int, tuple[int, int]] | None = None
        self._told = [0, 0]
        self._told_at = 0.0
        self._idle_since, self._look_at = -1, 0.0

    @property
    def fds(self) -> tuple[int, int]:
        return self._tapes[0].fd, self._tapes[1].fd

    def pass_on(self, slot: Slot, *, ended: bool = False) -> None:
        """Give the outlets what is theirs, and free what nobody needs any more."""
        changes, now = slot.changes(), time.monotonic()
        if slot.state() != IDLE or changes != self._idle_since:
            self._idle_since = changes
        elif now < self._look_at and not ended:
            return
        self._look_at = now + IDLE_S
        line = slot.read()
        starts = (0, 0) if line is None else line.printed
        whose = line is None or line.running
        if not self._echo:
            for tape, start in zip(self._tapes, starts, strict=True):
                tape.skip(start)
        if self._echo or not whose:
            for tape, outlet in zip(self._tapes, self._outlets, strict=True):
                tape.pass_on(outlet, ended=ended)
                if tape.passed < tape.size:
                    # Its reader is slow, or its last line is not complete.
                    self._look_at = now
        if not whose:
            # The next call begins to print behind that.
            slot.passed((self._tapes[0].passed, self._tapes[1].passed))
        for tape, start in zip(self._tapes, starts, strict=True):
            tape.free(start, tape.passed if self._echo else tape.size)

    def news(self, slot: Slot, line: Line, now: float, *, ended: bool = False) -> list[dict[str, Any]]:
        """Events of what the running item has printed since the last look, a few times a second at most."""
        if now < self._told_at + NEWS_S and not ended:
            return []
        item = line.entry, line.item, line.printed
        if item != self._item:
            self._item, self._told = item, list(line.printed)
        found = [tape.news(start, now, ended=ended) for tape, start in zip(self._tapes, self._told, strict=True)]
        again = slot.read()
        if again is None or (again.entry, again.item, again.printed) != item:
            # It has ended while we read: a part may be the next one's.
            return []
        events = []
        for stream, (at, data) in enumerate(found):
            if data:
                self._told[stream], self._told_at = at + len(data), now
                text = data.decode("utf-8", "replace")
                event = {"stream": stream + 1, "at": at - line.printed[stream], "size": len(data), "text": text}
                events.append({"kind": "output", "item": line.item, "attempt": line.attempt, **event})
        return events

    def printed(self, line: Line) -> tuple[Printed, ...]:
        """What the item that runs has printed so far, for a reply."""
        return tuple(
            (0, stream, tape.size - start, pieces(tape.fd, start, tape.size))
            for stream, (tape, start) in enumerate(zip(self._tapes, line.printed, strict=True), 1)
            if tape.size > start
        )

    def last_lines(self, line: Line) -> str:
        """The end of it, for the error that tells of the worker's death."""
        return last_lines(*(tape.read(start) for tape, start in zip(self._tapes, line.printed, strict=True)))

    def close(self) -> None:
        for tape in self._tapes:
            tape.close()
