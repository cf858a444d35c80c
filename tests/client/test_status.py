"""`queue.status()`: counts from the stream, what runs from the workers' slot boards."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from nbqueue import QueueStatus
from nbqueue.stream.records import RunningTask, WorkerState


def test_who_runs_what_and_for_how_long(queue: Any, wait_until: Callable[..., Any], tmp_path: Path) -> None:
    @queue.task(name="held up")
    def held() -> None:
        while not (tmp_path / "go").exists():
            time.sleep(0.005)

    futures = [held() for _ in range(5)]
    status = wait_until(lambda: len((s := queue.status()).running) == 2 and s.queued == 3 and s, timeout=20)
    assert isinstance(status, QueueStatus)
    assert {task.name for task in status.running} == {"held up"}
    assert all(task.seconds >= 0 and task.attempt == 1 for task in status.running)
    assert all(psutil.pid_exists(worker.pid) for worker in status.workers)
    assert "held up for" in repr(status)
    assert "3 queued · 2 running · 0 done" in repr(status)
    (tmp_path / "go").touch()
    for future in futures:
        future.result(timeout=20)
    status = wait_until(lambda: not (s := queue.status()).running and s)
    assert (status.queued, status.done, status.failed) == (0, 5, 0)


def test_counts_of_every_ending(queue: Any, wait_until: Callable[..., Any], tmp_path: Path) -> None:
    queue.map(lambda x: 1 / x, [0, 1, 0, 2]).wait(20)
    queue.task(retries=1)(lambda: 1 / 0)().exception(timeout=20)
    future = queue.submit(time.sleep, 60)
    wait_until(future.running, timeout=20)
    future.cancel()
    status = wait_until(lambda: (s := queue.status()).cancelled and s)
    assert (status.done, status.failed, status.retried, status.cancelled) == (2, 3, 1, 1)


def test_what_hosts_publish_cannot_speak_to_the_terminal() -> None:
    """It is not signed: whoever can write to the server can put anything there."""
    task = RunningTask("\x1b]0;title\x07\nworker 1", "c", "1", 0, 1, 1.0)
    worker = WorkerState(0, 1, "busy\x1b[2J", task), WorkerState(1, 2, "idle\r\n\x9b")
    status = QueueStatus("tasks", "redis://", 0, 0, 0, 0, 0, 0, 0, worker)
    assert all(line.isprintable() for line in repr(status).split("\n"))
    assert len(repr(status).split("\n")) == 4


def test_a_retry_that_waits_is_delayed(queue: Any, wait_until: Callable[..., Any]) -> None:
    future = queue.task(retries=10)(lambda: 1 / 0)()
    wait_until(lambda: queue.status().delayed == 1, timeout=20)
    future.cancel()
    wait_until(lambda: queue.status().delayed == 0)


def test_a_queue_without_workers_says_so(queue: Any) -> None:
    queue.run(1)
    queue.shutdown()
    queue.submit(abs, -1)
    assert "no workers" in repr(queue.status())
    assert queue.stream_key in repr(queue.status())


def test_a_task_that_waits_for_another_is_shown_waiting(
    queue: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    def held() -> None:
        while not (tmp_path / "go").exists():
            time.sleep(0.005)

    outer = queue.submit(lambda: queue.submit(held).result())
    wait_until(lambda: "waiting for a task of its own" in repr(queue.status()), timeout=20)
    (tmp_path / "go").touch()
    outer.result(timeout=20)


def test_status_does_not_start_workers(queue: Any) -> None:
    assert queue.status().workers == ()
    assert queue.status().done == 0


def test_a_script_that_ends_before_its_calls_is_told_so(start_script: Callable[..., Any]) -> None:
    """Their results are lost with the private server, which once happened without a word."""
    code = """
import time
from nbqueue import TaskQueue
queue = TaskQueue(workers=1)
queue.submit(abs, -1).result()
futures = [queue.submit(time.sleep, 60) for _ in range({calls})]
"""
    ends = start_script(code.format(calls=2))
    ends.end()
    assert "Python ends while 2 calls are still open on the queue 'tasks'; nobody gets the results" in ends.text
    ends = start_script(code.format(calls=0))
    ends.end()
    assert ends.text.endswith("--- stderr ---")
    # As many as there are items, and not as messages were sent.
    ends = start_script(code.format(calls=0) + "batch = queue.map(time.sleep, [60] * 1_000, chunksize=5)\n")
    ends.end()
    assert "Python ends while 1,000 calls are still open" in ends.text


def test_workers_that_were_just_started_were_not_told_of(queue: Any) -> None:
    """`queue.run(3); print(queue.status())` said "no workers"."""
    for _ in range(3):
        queue.run(2)
        assert len(queue.status().workers) == 2
        queue.shutdown()
        assert queue.status().workers == ()
