"""A loop over the results of a batch, from its first to its last turn.

Always true here: while it lasts, `demand` knows that somebody reads, and an interrupt finds the loop; to leave it takes
no lock, since the collection of garbage may do that anywhere.
"""

from __future__ import annotations

import threading

from nbqueue.client.results.demand import Demand, Reader
from nbqueue.client.results.waiting import Interrupted, begun

__all__ = ["Reading"]


class Reading(begun):
    """A loop over results, as a ``with`` block."""

    __slots__ = ("_changed", "_demand", "_reader")

    def __init__(self, demand: Demand, changed: threading.Condition, interrupted: Interrupted) -> None:
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
