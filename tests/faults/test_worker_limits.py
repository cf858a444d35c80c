"""A worker's memory limit, and its replacement after so many tasks."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nbqueue import TaskQueue, WorkerDied
from nbqueue.errors import BadOption

MB = 10**6


@pytest.fixture
def limited(new_key: str) -> Iterator[Callable[..., TaskQueue]]:
    """``limited(memory_limit=…)``: a queue with one worker."""
    queues = []

    def make(**options: Any) -> TaskQueue:
        queues.append(TaskQueue(stream_key=new_key, workers=1, **options))
        return queues[-1]

    yield make
    for queue in queues:
        queue.cancel()
        queue.shutdown()


def test_a_task_that_uses_too_much_memory_ends_alone_and_says_so(limited: Callable[..., TaskQueue]) -> None:
    queue = limited(memory_limit="150 MB")

    @queue.task
    def fill(i: int) -> int:
        if i == 2:
            hoard = []
            while True:
                hoard.append(bytearray(os.urandom(MB)))
                time.sleep(0.002)
        return i

    results = fill.map(range(5)).results(return_exceptions=True, timeout=60)
    died = results.pop(2)
    assert isinstance(died, WorkerDied)
    assert results == [0, 1, 3, 4]
    assert "of memory where 150 are allowed" in str(died)
    assert died.peak_rss_bytes is not None
    assert died.peak_rss_bytes > 150 * MB


def test_memory_that_is_shared_with_others_does_not_count(limited: Callable[..., TaskQueue], tmp_path: Any) -> None:
    """A mapped file is nobody's own, however much of it lies in memory."""
    queue = limited(memory_limit="150 MB")
    path = tmp_path / "large"
    path.write_bytes(bytes(300 * MB))

    @queue.task
    def read() -> int:
        import mmap
        import resource

        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            ends = time.monotonic() + 0.5  # several looks of the supervisor
            while time.monotonic() < ends:
                assert sum(mapped[at] for at in range(0, len(mapped), 4096)) == 0
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    assert read().result(timeout=30) * 1024 > 250 * MB


def test_a_worker_that_keeps_much_memory_is_replaced_between_two_calls(
    limited: Callable[..., TaskQueue], wait_until: Callable[..., Any]
) -> None:
    queue = limited(memory_limit="200 MB")

    def leak() -> int:
        import builtins

        builtins.hoard = bytearray(b"x") * (175 * MB)  # type: ignore[attr-defined]
        return os.getpid()

    before = queue.submit(leak).result(timeout=20)
    wait_until(lambda: queue.submit(os.getpid).result(timeout=20) != before)
    assert queue.status().failed == 0


def test_a_worker_is_replaced_after_so_many_items(limited: Callable[..., TaskQueue]) -> None:
    """Also in the middle of a chunk, whose rest goes to the next worker uncharged."""
    queue = limited(max_tasks_per_worker=3)

    @queue.task
    def who(i: int) -> int:
        return os.getpid()

    batch = who.options(chunksize=10).map(range(20))
    pids = batch.results(timeout=60)
    assert sorted(Counter(pids).values()) == [2, 3, 3, 3, 3, 3, 3]
    assert queue.status().failed == 0
    assert all(future.attempts == 1 for future in batch.futures)
    alone = [queue.submit(os.getpid).result(timeout=20) for _ in range(7)]
    assert max(Counter(alone).values()) <= 3


@pytest.mark.parametrize("limit", ["much", "5 kB", 3.5, -1, True, "2 XB", "1e9"])
def test_a_memory_limit_that_cannot_be_meant_is_refused(limit: Any) -> None:
    with pytest.raises(BadOption, match="memory_limit=.*at least 50 MB"):
        TaskQueue(memory_limit=limit)


def test_a_number_of_tasks_that_cannot_be_meant_is_refused() -> None:
    with pytest.raises(BadOption, match="max_tasks_per_worker=0"):
        TaskQueue(max_tasks_per_worker=0)


def test_workers_of_the_command_line_have_limits_too(
    redis_server: Any, new_key: str, start_script: Callable[..., Any]
) -> None:
    options = ["worker", redis_server.url, "--queue", new_key, "-n", "1", "--max-tasks-per-worker", "2"]
    start_script(f"from nbqueue.cli import main\nmain({[*options, '--memory-limit', '2 GiB']})")
    queue = TaskQueue(redis_server.url, new_key)
    pids = [queue.submit(os.getpid).result(timeout=30) for _ in range(6)]
    assert sorted(Counter(pids).values()) == [2, 2, 2]


def test_a_wrong_limit_on_the_command_line_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    from nbqueue.cli import main

    with pytest.raises(SystemExit, match="2"):
        main(["worker", "redis://localhost", "--memory-limit", "2 XB"])
    assert "--memory-limit: '2 XB': give bytes, at least 50 MB" in capsys.readouterr().err
