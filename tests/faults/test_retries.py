"""``retries=`` runs a call again after an exception of its own; ``retry_on=`` says after which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nbqueue import TaskTimeout
from nbqueue.errors import BadOption, TaskError


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A file to which each run adds a letter."""
    path = tmp_path / "runs"
    path.touch()
    return path


def _note(runs: Path) -> int:
    with runs.open("a") as file:
        file.write("x")
    return len(runs.read_text())


def test_a_call_is_retried_until_it_succeeds(queue: Any, runs: Path) -> None:
    @queue.task(retries=3)
    def third_time() -> int:
        if _note(runs) < 3:
            raise ValueError("not yet")
        return 7

    future = third_time()
    assert future.result(timeout=20) == 7
    assert future.attempts == 3


def test_the_last_exception_is_what_remains(queue: Any, runs: Path) -> None:
    def fail() -> None:
        raise ValueError(f"time {_note(runs)}")

    with pytest.raises(ValueError, match="time 3"):
        queue.task(retries=2)(fail)().result(timeout=20)
    assert len(runs.read_text()) == 3


def test_only_what_is_named_is_retried(queue: Any, runs: Path) -> None:
    @queue.task(retries=5, retry_on=(ConnectionError, TimeoutError))
    def fetch(error: Exception) -> str:
        if _note(runs) == 1:
            raise error
        return "fetched"

    assert fetch(ConnectionResetError("a subclass")).result(timeout=20) == "fetched"
    runs.write_text("")
    with pytest.raises(KeyError):
        fetch(KeyError("no connection")).result(timeout=20)
    assert runs.read_text() == "x"


def test_a_class_of_a_cell_may_be_named(queue: Any, runs: Path) -> None:
    """A worker has a class of its own of that name."""

    class Busy(Exception):
        pass

    class VeryBusy(Busy):
        pass

    def ask() -> str:
        if _note(runs) == 1:
            raise VeryBusy
        return "answer"

    assert queue.map(lambda _: ask(), range(1), retries=1, retry_on=Busy).results(timeout=20) == ["answer"]


def test_items_of_a_chunk_are_told_apart(queue: Any, tmp_path: Path) -> None:
    def work(i: int) -> int:
        runs = tmp_path / str(i)
        runs.touch()
        if _note(runs) == 1 and i % 3 == 0:
            raise OSError(i)
        if i % 3 == 1:
            raise LookupError(i)
        return i

    task = queue.task(retries=2, retry_on=OSError, chunksize=12)(work)
    results = task.map(range(12)).results(return_exceptions=True, timeout=20)
    assert [r for r in results if not isinstance(r, LookupError)] == [i for i in range(12) if i % 3 != 1]
    assert [len((tmp_path / str(i)).read_text()) for i in range(12)] == [2, 1, 1] * 4


@pytest.mark.parametrize("kind", [TaskTimeout, (OSError, TaskError)])
def test_how_a_task_ends_from_outside_is_nothing_to_retry(queue: Any, kind: Any) -> None:
    with pytest.raises(BadOption, match="exceptions that the task itself raises"):
        queue.task(retries=1, retry_on=kind)


@pytest.mark.parametrize("kind", [(), "OSError", OSError("x"), KeyboardInterrupt, (OSError, 3)])
def test_what_is_no_exception_type_is_refused(queue: Any, kind: Any) -> None:
    with pytest.raises(BadOption, match="give an exception type"):
        queue.task(retry_on=kind)
