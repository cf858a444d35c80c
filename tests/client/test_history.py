"""`queue.history()`: what has become of this process's calls, read out of what came back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nbqueue.client.sending import history
from nbqueue.client.sending.history import TaskHistory, TaskRecord


def endings(queue: Any, **options: Any) -> list[tuple[str, str]]:
    return [(task.name, task.outcome) for task in queue.history(100, **options)]


def test_a_record_tells_who_ran_what_when_and_how_it_ended(queue: Any) -> None:
    @queue.task(retries=1)
    def simulate(seed: int, steps: int = 10) -> int:
        time.sleep(0.02)
        return seed

    before = time.time()
    future = simulate(7, steps=1_000)
    future.result(timeout=30)
    (task,) = queue.history()
    assert isinstance(task, TaskRecord)
    assert (task.name, task.arguments, task.outcome, task.error) == ("simulate", "7, steps=1000", "done", "")
    assert (task.worker, task.attempts) == (future.worker, 1)
    assert task.started is not None
    assert before <= task.queued <= task.started < task.finished <= time.time()
    assert 0.02 <= task.seconds == pytest.approx(task.finished - task.started, abs=1e-4)


def test_items_of_a_map_have_numbers_and_stand_in_the_order_of_their_ends(queue: Any) -> None:
    @queue.task
    def half(x: int) -> float:
        return 1 / (x - 2)

    half.map(range(5)).wait(30)
    told = queue.history()
    assert sorted(endings(queue)) == [
        ("half[0]", "done"), ("half[1]", "done"), ("half[2]", "failed"), ("half[3]", "done"), ("half[4]", "done")
    ]  # fmt: skip
    assert [task.finished for task in told] == sorted(task.finished for task in told)
    (failed,) = queue.history(failed=True)
    assert (failed.name, failed.arguments, failed.error) == ("half[2]", "2", "ZeroDivisionError: division by zero")
    # The newest by their arrival, which need not be the last to end: two workers report.
    newest = queue.history(2)
    assert len(newest) == 2
    assert set(newest) < set(told)
    assert newest[0].finished <= newest[1].finished


def test_every_way_to_end_has_its_word(queue: Any, wait_until: Callable[..., Any]) -> None:
    queue.task(timeout=0.1, name="slow")(time.sleep)(60).exception(timeout=30)
    queue.task(name="dies")(lambda: os.kill(os.getpid(), signal.SIGKILL))().exception(timeout=30)
    future = queue.task(name="stopped")(time.sleep)(60)
    wait_until(future.running, timeout=20)
    future.cancel()
    batch = queue.map(time.sleep, [60] * 50, name="never")
    batch.cancel()
    told = dict(endings(queue))
    assert told["slow"] == "timeout"
    assert told["dies"] == "died"
    assert told["stopped"] == "cancelled"
    assert told["never[0]"] == "cancelled"
    errors = {task.name: task.error for task in queue.history(100, failed=True)}
    assert set(errors) == {"slow", "dies"}
    assert "timeout of 0.1 s" in errors["slow"]
    assert "SIGKILL" in errors["dies"]


def test_a_retried_task_is_told_of_once_with_its_attempts(queue: Any, tmp_path: Path) -> None:
    def second_time() -> str:
        if not (tmp_path / "one").exists():
            (tmp_path / "one").touch()
            raise OSError("first")
        return "second"

    queue.task(retries=2)(second_time)().result(timeout=30)
    assert [(task.outcome, task.attempts) for task in queue.history()] == [("done", 2)]


def test_it_is_there_after_the_workers_were_restarted(queue: Any) -> None:
    queue.submit(abs, -1).result(timeout=30)
    queue.shutdown()
    assert endings(queue) == [("abs", "done")]
    queue.run(1)
    queue.submit(abs, -2).result(timeout=30)
    assert [task.arguments for task in queue.history()] == ["-1", "-2"]


def test_a_result_that_was_taken_is_in_it(queue: Any) -> None:
    """The note is made before anybody hears of the end."""
    for number in range(100):
        queue.submit(abs, -number).result(timeout=30)
        assert queue.history(1)[0].arguments == str(-number)


def test_it_shows_as_a_table(queue: Any) -> None:
    assert repr(queue.history()) == "no finished tasks yet"
    queue.submit(str, "<b>ü</b>").result(timeout=30)
    queue.submit(int, "x").exception(timeout=30)
    text = repr(queue.history())
    assert [line.split()[0] for line in text.splitlines()] == ["task", "str", "int"]
    assert "✓ done" in text
    assert "✗ failed" in text
    assert "ValueError: invalid literal" in text
    page = queue.history()._repr_html_()
    assert "&lt;b&gt;ü" in page
    assert "<b>ü" not in page
    assert isinstance(queue.history()[:1], TaskHistory)


def test_what_it_keeps_is_bounded(queue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "LARGEST_BYTES", 1_000)
    monkeypatch.setattr(history, "BYTES_KEPT", 150)
    for size in (10, 5_000, 20, 30, 40):
        queue.submit(len, "x" * size).result(timeout=30)
    told = [task.arguments for task in queue.history()]
    assert len(told) == 5
    # Too large; then too old.
    assert told[:2] == ["…", "…"]
    assert told[-1].startswith("'xxx")
    kept = queue._core.link.history
    assert 0 < sum(note.size for note in kept._notes) <= 150


def test_arguments_that_cannot_be_shown_cost_only_themselves(queue: Any) -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    class Huge:
        def __repr__(self) -> str:
            return "long " * 1_000

    queue.submit(type, Odd()).result(timeout=30)
    queue.submit(type, Huge()).result(timeout=30)
    shown = [task.arguments for task in queue.history()]
    assert "Odd" in shown[0] or shown[0] == "…"
    assert len(shown[1]) <= 60
