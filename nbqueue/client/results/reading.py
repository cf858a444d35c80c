"""A loop over the results of a batch, from its first to its last turn.

Always true here: while it lasts, `demand` knows that somebody reads, and an interrupt finds the loop; to leave it takes
no lock, since the collection of garbage may do that anywhere; what is noted of a loop that was left keeps no result.
"""

from __future__ import annotations

import threading
from typing import Protocol
from weakref import ref

from nbqueue.client.results.demand import Demand, Reader
from nbqueue.client.results.waiting import begun

__all__ = ["Reading"]


class Read(Protocol):
    """The items of a batch."""

    @property
    def done(self) -> bool: ...

    def interrupted(self) -> str: ...


class Reading(begun):
    """A loop over results, as a ``with`` block."""

    __slots__ = ("_changed", "_demand", "_reader")

    def __init__(self, demand: Demand, changed: threading.Condition, items: Read) -> None:
        # Whoever loops holds the items; when nobody does, nothing of them is open.
        held = ref(items)

        def interrupted() -> str:
            still = held()
            return "" if still is None or still.done else still.interrupted()

        super().__init__(interrupted)
        self._demand = demand
        self._changed = changed
        self._reader = Reader()

    def __enter__(self) -> None:
        super().__enter__()
        self._demand.begin(self._reader)
        if not self._demand.known:
            with self._changed:
                self._changed.notify_all()

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        # No lock: a loop may be ended by the collection of garbage, anywhere.
        self._demand.leave(self._reader)
        super().__exit__(kind, *details)
