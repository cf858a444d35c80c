"""The front door: what `nbqueue` promises to export, and that opening it costs nothing."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

import nbqueue

NAMES = [
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


def test_these_names_are_promised() -> None:
    assert nbqueue.__all__ == NAMES


def test_every_name_leads_somewhere_and_can_be_completed() -> None:
    for name in NAMES:
        value = getattr(nbqueue, name)
        assert value.__name__ == name
        assert name in dir(nbqueue)
        assert value.__doc__, f"{name} is shown without a word on Shift-Tab"


def test_a_name_that_does_not_exist_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'TaskQueu'"):
        nbqueue.TaskQueu  # noqa: B018


def test_star_import_gives_exactly_the_promised_names() -> None:
    namespace: dict[str, object] = {}
    exec("from nbqueue import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(NAMES)


def test_importing_loads_nothing_heavy() -> None:
    """How long it takes is measured by the bench."""
    command = [sys.executable, "-c", "import sys, nbqueue; print(*sys.modules)"]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "nbqueue" in loaded
    for heavy in ("redis", "IPython", "ipywidgets", "cloudpickle", "psutil", "rich", "asyncio", "multiprocessing"):
        assert heavy not in loaded


def test_type_checkers_know_every_option_of_a_task() -> None:
    from nbqueue.client.sending.options import Options, TaskOptions

    assert set(TaskOptions.__annotations__) == {field.name for field in dataclasses.fields(Options)}
