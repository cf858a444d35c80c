"""Run a notebook's functions in parallel, over a Redis stream.

>>> from nbqueue import TaskQueue
>>> queue = TaskQueue()
>>> @queue.task
... def double(x):
...     return 2 * x
>>> double.map(range(3)).results()
[0, 2, 4]
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbqueue.client.queue import Put, TaskQueue
    from nbqueue.client.results.batch import Batch
    from nbqueue.client.results.future import TaskFuture
    from nbqueue.client.results.several import as_completed, gather, wait
    from nbqueue.client.status import QueueStatus
    from nbqueue.client.task import Task
    from nbqueue.context import report, track
    from nbqueue.errors import (
        InputFailed,
        NbqueueError,
        NotSendable,
        RemoteError,
        ServerError,
        TaskCancelled,
        TaskError,
        TaskTimeout,
        WorkerDied,
    )

__version__ = "0.1.0"

# Loaded when first asked for: importing nbqueue must cost a notebook nothing.
_HOMES = {
    "Batch": "client.results.batch",
    "InputFailed": "errors",
    "NbqueueError": "errors",
    "NotSendable": "errors",
    "Put": "client.queue",
    "QueueStatus": "client.status",
    "RemoteError": "errors",
    "ServerError": "errors",
    "Task": "client.task",
    "TaskCancelled": "errors",
    "TaskError": "errors",
    "TaskFuture": "client.results.future",
    "TaskQueue": "client.queue",
    "TaskTimeout": "errors",
    "WorkerDied": "errors",
    "as_completed": "client.results.several",
    "gather": "client.results.several",
    "report": "context",
    "track": "context",
    "wait": "client.results.several",
}

__all__ = [
    "Batch",
    "InputFailed",
    "NbqueueError",
    "NotSendable",
    "Put",
    "QueueStatus",
    "RemoteError",
    "ServerError",
    "Task",
    "TaskCancelled",
    "TaskError",
    "TaskFuture",
    "TaskQueue",
    "TaskTimeout",
    "WorkerDied",
    "as_completed",
    "gather",
    "report",
    "track",
    "wait",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'nbqueue' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"nbqueue.{home}"), name)
    globals()[name] = value
    return value


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext nbqueue``: ``%%background`` and ``%nbqueue``."""
    importlib.import_module("nbqueue.notebook").load_ipython_extension(shell)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


def _install() -> None:
    # Through sys.modules: where nobody has imported IPython, no shell is running.
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = get_ipython() if get_ipython is not None else None
    if shell is not None:
        importlib.import_module("nbqueue.notebook").install(shell)


_install()
