"""Several handles, several threads, one pool. Each was once a defect."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from nbqueue import TaskQueue
from nbqueue.client import blocks
from nbqueue.client import core as core_module
from nbqueue.client.results import waiting
from nbqueue.errors import PoolError


def test_a_block_in_a_helper_does_not_end_the_workers_of_the_notebook(queue: Any, new_key: str) -> None:
    assert queue.submit(abs, -1).result(timeout=20) == 1
    with TaskQueue(stream_key=new_key) as same:
        assert same.submit(abs, -2).result(timeout=20) == 2
    assert queue.submit(abs, -3).result(timeout=20) == 3


def test_a_block_that_starts_the_workers_ends_them(new_key: str) -> None:
    with TaskQueue(stream_key=new_key, workers=1) as queue:
        future = queue.submit(abs, -2)
    assert future.done()
    assert queue.status().workers == ()


def test_run_and_shutdown_from_many_threads_leave_nobody_waiting(queue: Any) -> None:
    queue.run(1)
    threads = [threading.Thread(target=do) for _ in range(6) for do in (queue.shutdown, lambda: queue.run(2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    queue.run(2)
    assert queue.submit(abs, -4).result(timeout=20) == 4


def test_a_closed_queue_keeps_no_descriptor(new_key: str) -> None:
    """Each one kept two until the process ended."""

    def use(i: int) -> None:
        queue = TaskQueue(stream_key=f"{new_key}-{i}", workers=1)
        future = queue.submit(abs, -i)
        assert future.result(timeout=20) == i
        core = queue._core
        assert core is not None
        core.shutdown()
        core.link.close()
        core.link.close()
        future.cancel()
        del core_module._cores[next(key for key, value in core_module._cores.items() if value is core)]

    use(0)
    before = psutil.Process().num_fds()
    for i in range(1, 4):
        use(i)
    assert psutil.Process().num_fds() <= before


def test_a_new_handle_starts_workers_again_after_the_end_of_a_block(new_key: str) -> None:
    """The second one waited for ever: nothing but run() started workers after a shutdown."""
    for _ in range(2):
        with TaskQueue(stream_key=new_key, workers=1) as queue:
            assert queue.submit(abs, -2).result(timeout=20) == 2
    again = TaskQueue(stream_key=new_key, workers=1)
    assert again.submit(abs, -3).result(timeout=20) == 3
    again.shutdown()


def test_a_block_that_found_workers_running_lost_what_it_had_sent(queue: Any, new_key: str) -> None:
    """It neither waited nor cancelled: a script's last calls were gone."""
    queue.submit(abs, -1).result(timeout=20)
    before = {worker.pid for worker in queue.status().workers}
    with queue:
        single, batch = queue.submit(time.sleep, 0.2), queue.map(abs, range(-3, 0))
    assert single.done()
    assert batch.done
    with TaskQueue(stream_key=new_key) as same:
        other = same.submit(time.sleep, 0.2)
    assert other.done()
    assert {worker.pid for worker in queue.status().workers} == before


def test_an_exception_in_a_block_that_found_workers_running_cancelled_nothing(queue: Any, tmp_path: Path) -> None:
    """What was sent before belongs to others, and goes on."""
    go = tmp_path / "go"

    def held(what: Any) -> Any:
        while not go.exists():
            time.sleep(0.005)
        return what

    before = queue.submit(held, "before")
    with contextlib.suppress(LookupError), queue:
        single, batch = queue.submit(held, "in it"), queue.map(held, range(3))
        raise LookupError
    assert single.cancelled()
    assert batch.done
    assert not before.done()
    go.touch()
    assert before.result(timeout=20) == "before"


def test_a_block_in_a_block_does_not_end_its_workers(new_key: str) -> None:
    """The inner one, where no call had been made yet; the next call of the outer one was done by nobody."""
    with TaskQueue(stream_key=new_key, workers=1) as outer:
        with TaskQueue(stream_key=new_key) as inner, inner:
            first = inner.submit(abs, -1)
        assert first.done()
        second = outer.submit(abs, -2)
    assert second.done()
    assert outer.status().workers == ()


def test_a_block_after_a_shutdown_waited_for_ever(queue: Any) -> None:
    """Nothing but run() started workers then."""
    assert queue.submit(abs, -1).result(timeout=20) == 1
    queue.shutdown()
    with queue:
        future = queue.submit(abs, -2)
    assert future.done()
    assert queue.status().workers == ()


@pytest.mark.parametrize("private", [True, False])
def test_the_end_of_a_block_whose_queue_no_worker_serves_waited_for_ever(
    private: bool, redis_server: Any, new_key: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(blocks, "UNSERVED_S", 0.3)
    monkeypatch.setattr(waiting, "HINT_S", 0.1)
    queue = TaskQueue(None if private else redis_server.url, new_key, workers=1)

    def cell() -> None:
        with queue:
            queue.shutdown()
            sent.append(queue.submit(abs, -1))

    sent: list[Any] = []
    with pytest.raises(PoolError, match=r"1 call stays queued\. No worker serves the queue .* queue\.run\(\)"):
        cell()
    queue.run()
    assert sent[0].result(timeout=20) == 1
    queue.shutdown()
