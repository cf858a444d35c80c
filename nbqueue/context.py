"""Am I inside a task? Ground floor: knows no wing.

A worker process runs one task at a time, so what is current is a plain global: threads that a task starts
see it too. `worker.loop` sets it; `client` reads it, to run tasks called inside tasks and to tell the
worker when one of them is being waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["TaskContext", "current", "in_task", "tell", "waiting"]


@dataclass(slots=True)
class TaskContext:
    """The task that this process runs, and how to reach the queue that it came from."""

    name: str
    attempt: int
    queue: str
    address: Mapping[str, Any]
    secret: bytes
    begin_wait: Callable[[], None]
    end_wait: Callable[[], None]
    post: Callable[[str, object, dict[str, Any]], None]

    def __repr__(self) -> str:
        return f"TaskContext(name={self.name!r}, attempt={self.attempt}, queue={self.queue!r})"


_current: TaskContext | None = None


def current() -> TaskContext | None:
    """The running task's context, None outside of tasks."""
    return _current


def in_task() -> bool:
    """True in a worker process while it runs a task."""
    return _current is not None


def set_current(context: TaskContext | None) -> None:
    """For `worker.loop` only."""
    global _current
    _current = context


def tell(kind: str, key: object = None, **details: Any) -> None:
    """Send news of the running task to whoever called it; outside of tasks, nothing.

    `details` are what JSON can hold. Several with one `key` in a short time: only the last one leaves.
    """
    context = _current
    if context is not None:
        context.post(kind, key, details)


@contextmanager
def waiting() -> Iterator[None]:
    """While this lasts, the current task waits for another one and does not count against the pool."""
    context = _current
    if context is None:
        yield
        return
    context.begin_wait()
    try:
        yield
    finally:
        context.end_wait()
