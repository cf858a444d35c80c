"""What the ``with`` blocks over one queue do at their ends.

Always true here: a block that is left without an exception waits for what was sent, whoever started the workers. Of
blocks that overlap, whether one in another or in several threads, the last one stops them, if the first found none.
"""

from __future__ import annotations

import threading
import time

from nbqueue.client.results.waiting import Interrupted, because, wait_until
from nbqueue.client.sending.listener import Link
from nbqueue.errors import PoolError

__all__ = ["Blocks", "drain"]

# How long the end of a block waits for somebody to start workers.
UNSERVED_S = 30.0


class Blocks:
    """How many blocks over one queue are open, and whether its workers end with the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = 0
        self._ends_workers = False

    def enter(self, in_use: bool) -> bool:
        """A block begins; `in_use` tells whether workers run. False if it is a guest: others use the queue already."""
        with self._lock:
            self._open += 1
            first = self._open == 1
            if first:
                self._ends_workers = not in_use
            return first and not in_use

    @property
    def stops(self) -> bool:
        """Whether the workers end with the block that ends next."""
        return self._open == 1 and self._ends_workers

    def leave(self) -> bool:
        """A block ends. True if the workers are to end with it."""
        with self._lock:
            stops = self.stops
            self._open -= 1
            return stops


def drain(link: Link, interrupted: Interrupted) -> None:
    """Wait until no call of this process is open, and no input has more.

    Raises
    ------
    PoolError
        If no worker served the queue for so long that nobody seems to start any.
    """
    unserved_at: float | None = None
    forsaken = False

    def over() -> bool:
        nonlocal unserved_at, forsaken
        if link.drained:
            return True
        now = time.monotonic()
        if not link.unserved:
            unserved_at = None
        elif unserved_at is None:
            unserved_at = now
        forsaken = unserved_at is not None and now - unserved_at >= UNSERVED_S
        return forsaken

    wait_until(link._changed, over, None, link, interrupted)
    if forsaken:
        number = link.open_items
        calls = "1 call stays" if number == 1 else f"{number:,} calls stay"
        raise PoolError(f"A `with` block ends while nobody does what was sent: {calls} queued.{because(link)}")
