"""Several handles, several threads, one pool. Each was once a defect."""

from __future__ import annotations

import threading
from typing import Any

from nbqueue import TaskQueue


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
