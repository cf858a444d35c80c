"""A future whose parts for others are made when others first ask for them.

A future of the standard library has from its birth a condition to wait on and lists of who wants to hear of its end,
which is most of its memory and of the time that it takes to make one. Of a burst of calls, most end before anybody has
waited for them or listened.

Always true here: as long as there is no condition, nobody waits and nobody listens; there is one condition, whoever
asks for it, and a future that ends while there is one does so under it.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from typing import Any, Generic, TypeVar

__all__ = ["DONE", "LateFuture"]

R = TypeVar("R")

DONE = (CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED)

# Of all futures, for a few instructions. Garbage may be collected within, and ask for a condition: so it is reentrant,
# and what is made is made before.
_birth = threading.RLock()


class LateFuture(concurrent.futures.Future[R], Generic[R]):
    """The base of `TaskFuture`."""

    # What the standard library's sets for each.
    _state = PENDING
    _result = None
    _exception = None
    _outcome: Any = None
    _own_condition: threading.Condition | None = None
    _own_waiters: list[Any] | None = None
    _own_callbacks: list[Callable[[Any], Any]] | None = None

    def __init__(self) -> None:
        """All that the standard library's sets is above, or made below."""

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        if self._own_condition is None:
            made = threading.Condition()
            with _birth:
                if self._own_condition is None:
                    self._own_condition = made
        return self._own_condition

    # Of these two, what is there is looked at under the condition; empty ones may be made anywhere.

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        if self._own_waiters is None:
            self._own_waiters = []
        return self._own_waiters

    @property
    def _done_callbacks(self) -> list[Callable[[Any], Any]]:
        if self._own_callbacks is None:
            self._own_callbacks = []
        return self._own_callbacks

    def _end_unwatched(self, outcome: object) -> bool:
        """End with this `_outcome` if nobody watches. False if somebody does, or it has ended before: look again, under
        the condition."""
        if self._own_condition is not None:
            return False
        with _birth:
            if self._own_condition is not None or self._state in DONE:
                return False
            self._outcome = outcome
            self._state = FINISHED
            # Garbage may have asked for one just now.
            return self._own_condition is None

    # As the standard library's, without a lock: a state changes in one step.

    def cancelled(self) -> bool:
        """Whether it was cancelled.

        Examples
        --------
        >>> import time
        >>> future = queue.submit(time.sleep, 60)
        >>> future.cancel(), future.cancelled()
        (True, True)
        """
        return self._state in DONE[:2]

    def running(self) -> bool:
        """Whether it has been running for a while, as far as is known here.

        Examples
        --------
        >>> future = queue.submit(abs, -3)
        >>> future.result(), future.running()
        (3, False)
        """
        return self._state == RUNNING

    def done(self) -> bool:
        """Whether it has ended: with a value, with an exception, or cancelled. Does not wait.

        Examples
        --------
        >>> future = queue.submit(abs, -3)
        >>> future.result(), future.done()
        (3, True)
        """
        return self._state in DONE
