"""The card of one call, for whoever displays its `TaskFuture`.

Nothing is counted for it: a view that draws asks, and the answer is read off the future. Only what the running task
says of itself is kept here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Protocol

from nbqueue.progress.tally import Lane, Lanes, Snapshot
from nbqueue.progress.views import Handle, show_again

__all__ = ["CallCard", "Shown"]


class Shown(Protocol):
    """What a card reads off a future."""

    name: str
    attempts: int
    seconds: float | None
    _made_at: float
    _started_at: float

    def done(self) -> bool: ...
    def running(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def cancel(self) -> bool: ...
    def _failure(self) -> str | None: ...
    def _unserved(self) -> bool: ...


class CallCard:
    """A source of snapshots of one call."""

    def __init__(self, future: Shown) -> None:
        self._future = future
        self._handle: Handle | None = None
        self._lock = threading.Lock()
        self._lanes = Lanes(time.monotonic)
        self._ended_at: float | None = None

    def display(self) -> None:
        """Raises NotImplementedError where this is no notebook."""
        self._handle = show_again(self._handle, self, self._cancel)

    def tell(self, news: Mapping[str, Any]) -> None:
        with self._lock:
            self._lanes.tell(0, news["lane"], Lane.from_news("", news), news["attempt"])

    def begin(self, attempt: int) -> None:
        """A further attempt runs: what earlier ones have told is over."""
        with self._lock:
            self._lanes.begin(0, attempt)

    def snapshot(self) -> Snapshot:
        future, now = self._future, time.monotonic()
        finished, cancelled, running = future.done(), future.cancelled(), future.running()
        error = future._failure() if finished and not cancelled else None
        with self._lock:
            lanes, more = self._lanes.first(now) if not finished else ((), 0)
        if finished:
            self._ended_at = self._ended_at or now
            elapsed_s = self._ended_at - future._made_at if future.seconds is None else future.seconds
        else:
            # A future of a batch may be younger than its item: then nothing is known.
            elapsed_s = now - ((future._started_at or now) if running else future._made_at)
        return Snapshot(
            label=future.name,
            total=1,
            done=int(finished and not cancelled and error is None),
            failed=int(error is not None),
            cancelled=int(cancelled),
            running=int(running and not finished),
            retried=max(0, future.attempts - 1),
            elapsed_s=elapsed_s,
            rate=None,
            eta_s=None,
            finished=finished,
            lanes=lanes,
            more_lanes=more,
            single=True,
            error=error or "",
            unserved=not finished and future._unserved(),
        )

    def _cancel(self) -> None:
        self._future.cancel()
