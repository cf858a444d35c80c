"""The supervisor's eye on calls that run beside each other in one worker: time limits, cancels, what is told of them.

Always true here: a signal means whichever calls the board says it is for; a worker is killed for one of them only when
that one has not ended within its grace, and then none but those that have reached their time limit are to blame. Of
several that were not told, since one of them does not await, nobody knows which that is: they run again, one at a time.
"""

from __future__ import annotations

import time
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Protocol

from nbqueue.worker.board import CANCEL, TIMEOUT, Line, Slot

__all__ = ["Several"]


class Hands(Protocol):
    """What is done to the worker."""

    def signal(self) -> None:
        """Have it look at the board."""

    def kill(self, *, blameless: bool) -> None: ...

    def tell(self, line: Line) -> bool:
        """Say that a call has been running for a while. False if that cannot be said now."""


@dataclass(slots=True)
class Several:
    """What is remembered of one worker's calls, by entry.

    Attributes
    ----------
    overdue : dict
        The worker was killed for the time limits of these.
    suspects : set of str
        It was killed for the time limit of one of these.
    """

    overdue: dict[str, float] = field(default_factory=dict)
    suspects: set[str] = field(default_factory=set)
    _aims: dict[str, tuple[int, float]] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    def look(
        self, slot: Slot, cancelled: Container[str], hands: Hands, now: float, grace_s: float, told_after_s: float
    ) -> None:
        now_ns = time.monotonic_ns()
        running: set[str] = set()
        aimed = False
        for place, line in slot.beside():
            entry = line.entry
            running.add(entry)
            age_s = (now_ns - line.started_ns) / 1e9
            if (aim := self._aims.get(entry)) is not None:
                if now >= aim[1]:
                    if aim[0] == TIMEOUT:
                        self._blame(slot, place, line)
                    hands.kill(blameless=aim[0] == CANCEL)
                    return
                continue
            late = line.timeout_ms and age_s * 1000 > line.timeout_ms
            why = CANCEL if entry in cancelled else TIMEOUT if late else 0
            if why:
                self._aims[entry] = why, now + grace_s
                place.aim(entry, -1, why)
                aimed = True
            elif age_s > told_after_s and entry not in self._told and hands.tell(line):
                self._told.add(entry)
        self._aims = {entry: aim for entry, aim in self._aims.items() if entry in running}
        self._told &= running
        if aimed:
            hands.signal()

    def _blame(self, slot: Slot, place: Slot, line: Line) -> None:
        """This call has not ended within its grace."""
        late = {one.entry for _, one in slot.beside() if self._aims.get(one.entry, (0, 0.0))[0] == TIMEOUT}
        if place.has_heard() or late == {line.entry}:
            self.overdue[line.entry] = line.timeout_ms / 1000
        else:
            self.suspects = late
