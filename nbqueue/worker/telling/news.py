"""What a task tells while it runs: how far it is, what it shows. On its way to the notebook, a few times a second.

`context.tell` posts, from any thread of the task; the worker's courier takes what is new and announces it. Nothing
depends on its arrival: what could not be sent when the call ends is forgotten, unless it goes with the reply.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["News"]

# Of one call, between two looks of the courier. A task that tells more loses the oldest.
MOST = 1000


class News:
    """Events of the call that runs, each a dict of what JSON can hold, or what makes one when it is sent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: dict[object, dict[str, Any] | Callable[[], dict[str, Any]]] = {}
        self._serial = 0

    def post(self, event: dict[str, Any] | Callable[[], dict[str, Any]], key: object = None) -> None:
        """Have an event sent; one with the same `key` that has not left yet is replaced."""
        with self._lock:
            self._serial += 1
            place = self._serial if key is None else key
            self._events.pop(place, None)
            self._events[place] = event
            if len(self._events) > MOST:
                del self._events[next(iter(self._events))]

    @property
    def waiting(self) -> bool:
        return bool(self._events)

    def take(self) -> list[dict[str, Any]]:
        """What is new, oldest first; it is the caller's from now on."""
        with self._lock:
            events, self._events = self._events, {}
        return [event() if callable(event) else event for event in events.values()]
