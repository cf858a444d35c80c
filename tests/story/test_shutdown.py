"""Workers come and go; calls and results stay."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import nbqueue
from nbqueue import TaskQueue
from nbqueue.progress.static import plain


def test_what_was_sent_before_shutdown_is_done_when_it_returns(queue: Any, tmp_path: Any) -> None:
    @queue.task
    def work(i: int) -> None:
        time.sleep(0.05)
        (tmp_path / str(i)).touch()

    queue.run(4)
    for i in range(3):
        work(i)
    queue.shutdown()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]


def test_results_stay_readable_after_shutdown(queue: Any) -> None:
    future = queue.submit(abs, -3)
    future.result(timeout=20)
    other = queue.submit(abs, -4)
    queue.shutdown()
    assert (future.result(), other.result(timeout=20)) == (3, 4)


def test_no_worker_is_left_after_shutdown(queue: Any) -> None:
    pids = queue.map(lambda _: os.getpid(), range(4)).results(timeout=20)
    queue.shutdown()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert queue.status().workers == ()


def test_calls_made_while_no_worker_runs_are_done_later(queue: Any, wait_until: Callable[..., Any]) -> None:
    queue.run(1)
    queue.shutdown()
    futures = [queue.submit(abs, -i) for i in range(5)]
    wait_until(lambda: queue.status().queued == 5)
    assert not any(future.done() for future in futures)
    queue.run(2)
    assert [future.result(timeout=20) for future in futures] == list(range(5))


def test_a_shutdown_right_after_the_first_call_leaves_no_worker(new_key: str) -> None:
    """The first call starts the pool on the side: it came up after shutdown had returned, and stayed."""
    for i in range(5):
        queue = TaskQueue(stream_key=f"{new_key}-{i}", workers=1)
        assert queue.map(abs, []).results(timeout=5) == []
        queue.shutdown()
        assert queue.status().workers == ()


def test_run_and_shutdown_as_often_as_you_like(queue: Any) -> None:
    for i in range(3):
        queue.run(1 + i % 2)
        assert queue.submit(abs, -i).result(timeout=20) == i
        queue.shutdown()
    queue.shutdown()


def test_run_changes_the_number_of_workers(queue: Any, wait_until: Callable[..., Any]) -> None:
    queue.run(1)
    wait_until(lambda: len(queue.status().workers) == 1)
    queue.run(3)
    wait_until(lambda: len(queue.status().workers) == 3)
    queue.run(1)
    wait_until(lambda: len(queue.status().workers) == 1)
    assert queue.submit(abs, -1).result(timeout=20) == 1


def test_several_queues_side_by_side(queue: Any, new_key: str) -> None:
    other = TaskQueue(stream_key=new_key + "-other", workers=1)
    futures = [(q, q.submit(pow, 2, i)) for i in range(5) for q in (queue, other)]
    assert [future.result(timeout=20) for _, future in futures] == [2**i for i in range(5) for _ in range(2)]
    other.shutdown()
    assert queue.submit(abs, -1).result(timeout=20) == 1
    assert other.status().done == 5


def test_none_is_a_result_like_any_other(queue: Any) -> None:
    future = queue.submit(lambda: None)
    assert future(timeout=20) is None
    assert future.done()
    assert future.result() is None
    assert queue.map(lambda x: None, range(3)).results(timeout=20) == [None, None, None]


def test_asking_without_blocking_gives_none_until_it_is_ready(
    queue: Any, tmp_path: Any, wait_until: Callable[..., Any]
) -> None:
    go = tmp_path / "go"

    def held() -> str:
        while not go.exists():
            time.sleep(0.005)
        return "ready"

    handle = queue.submit(held)
    assert handle(block=False) is None
    assert handle(timeout=0.05) is None
    go.touch()
    wait_until(lambda: handle(block=False) == "ready", timeout=20)


def test_running_the_cell_that_makes_the_queue_again_leaks_nothing(
    new_key: str, wait_until: Callable[..., Any]
) -> None:
    """Old handles hide in Out[]; they all stand for the same queue, connection and pool."""
    me = psutil.Process()
    handles = [TaskQueue(stream_key=new_key, workers=2)]
    assert handles[0].submit(abs, -1).result(timeout=20) == 1
    # The first may have been there, and done it, before the second was born.
    wait_until(lambda: [worker.state for worker in handles[0].status().workers] == ["idle", "idle"], timeout=20)

    def held() -> tuple[int, int, int]:
        return len(me.children(recursive=True)), me.num_fds(), me.num_threads()

    before = held()
    for _ in range(20):
        handles.append(TaskQueue(stream_key=new_key, workers=2))
        assert handles[-1].submit(abs, -1).result(timeout=20) == 1
    assert held() == before
    assert {worker.pid for worker in handles[0].status().workers} == {w.pid for w in handles[-1].status().workers}


def test_a_block_waits_for_everything_and_stops_the_workers(new_key: str) -> None:
    with TaskQueue(stream_key=new_key, workers=2) as queue:
        futures = [queue.submit(time.sleep, 0.02) for _ in range(6)]
        batch = queue.map(abs, range(-5, 0))
    assert all(future.done() for future in futures)
    assert batch.results(timeout=0.1) == [5, 4, 3, 2, 1]
    assert queue.status().workers == ()


def test_a_block_that_ends_with_an_error_cancels_what_is_open(new_key: str) -> None:
    def cell() -> None:
        with TaskQueue(stream_key=new_key, workers=2) as queue:
            sent.append(queue.submit(time.sleep, 60))
            raise LookupError

    sent: list[Any] = []
    with pytest.raises(LookupError):
        cell()
    (future,) = sent
    assert future.cancelled()


def test_waiting_after_shutdown_prints_a_hint_and_no_error(
    queue: Any, capsys: pytest.CaptureFixture[str], wait_until: Callable[..., Any]
) -> None:
    queue.run(1)
    queue.shutdown()
    future = queue.submit(abs, -1)
    with pytest.raises(TimeoutError, match="it goes on"):
        future.result(timeout=3)
    said = capsys.readouterr().err
    assert "no worker serves the queue" in said
    assert "queue.run()" in said
    queue.run(1)
    assert future.result(timeout=20) == 1


def test_cards_told_a_remaining_time_after_shutdown(queue: Any, wait_until: Callable[..., Any]) -> None:
    queue.run(1)
    batch = queue.map(abs, range(3))
    batch.results()
    queue.shutdown()
    batch, future = queue.map(abs, range(3)), queue.submit(abs, -1)
    wait_until(lambda: batch.progress.unserved)
    assert (batch.progress.rate, batch.progress.eta_s) == (None, None)
    assert plain(batch.progress).endswith(" · no workers")
    assert plain(future._shown().snapshot()).endswith(" · no workers")
    queue.run(1)
    assert not batch.progress.unserved
    assert batch.results() == [0, 1, 2]
    assert future.result(timeout=20) == 1


def test_a_shared_server_starts_workers_only_when_asked(redis_server: Any, new_key: str) -> None:
    queue = TaskQueue(redis_server.url, new_key, workers=1)
    future = queue.submit(abs, -1)
    with pytest.raises(TimeoutError):
        future.result(timeout=0.3)
    queue.run()
    assert future.result(timeout=20) == 1
    assert len(queue.status().workers) == 1


def test_clients_and_workers_of_one_shared_server_find_each_other(
    redis_server: Any, new_key: str, start_script: Callable[..., Any]
) -> None:
    code = f"""
import threading
import time
from nbqueue import TaskQueue
from nbqueue.progress.static import plain
queue = TaskQueue({redis_server.url!r}, {new_key!r})
queue.run(2)
print("up", flush=True)
time.sleep(60)
"""
    start_script(code).line("up")
    queue = TaskQueue(redis_server.client(decode_responses=True), new_key)
    assert nbqueue.gather([queue.submit(pow, 2, i) for i in range(5)], timeout=20) == [1, 2, 4, 8, 16]


def test_shutdown_ends_although_a_running_call_waits_for_one_of_its_own(
    queue: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    """Nobody was left to run the inner call: the outer one waited for it, and the pool for the outer one."""
    started, go = tmp_path / "started", tmp_path / "go"
    inner = queue.task(abs)

    @queue.task
    def middle(i: int) -> int:
        return int(inner.submit(i).result())

    @queue.task
    def outer() -> int:
        started.touch()
        while not go.exists():
            time.sleep(0.01)
        return int(middle.submit(-3).result())

    future = outer()
    wait_until(started.exists, timeout=20)
    stopping = threading.Thread(target=queue.shutdown, daemon=True)
    stopping.start()
    wait_until(lambda: len(queue.status().workers) == 1)
    go.touch()
    assert future.result(timeout=20) == 3
    stopping.join(20)
    assert not stopping.is_alive()
    assert queue.status().workers == ()
