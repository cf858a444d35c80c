"""Several handles, several threads, one pool. Each was once a defect."""

from __future__ import annotations

import threading
from typing import Any

import psutil

from nbqueue import TaskQueue
from nbqueue.client import core as core_module


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
