"""Many calls: every one right, in order, and the server empty afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis


@pytest.fixture
def assert_drained(queue: Any, wait_until: Callable[..., Any]) -> Callable[[], None]:
    """Nothing waits, nothing is held, and no key of the queue is without a lifetime."""
    keys = queue._core.keys
    client = redis.Redis(unix_socket_path=queue._core.address().path)

    def check() -> None:
        with client:
            wait_until(lambda: client.xlen(keys.first) == client.xlen(keys.normal) == 0)
            for stream in keys.streams:
                if client.exists(stream):
                    assert client.xpending(stream, "w")["pending"] == 0
            queue.shutdown()
            mine = list(client.scan_iter(keys.prefix + "*", count=1000))
            assert mine
            assert not [key for key in mine if client.ttl(key) == -1]
            assert not [key for key in mine if b":o:" in key], "no call is open"

    return check


def noop(x: int) -> int:
    return x


def test_ten_thousand_items_of_a_map(queue: Any, assert_drained: Callable[[], None]) -> None:
    assert queue.map(noop, range(10_000)).results(timeout=60) == list(range(10_000))
    assert queue.status().done == 10_000
    assert_drained()


def test_two_thousand_separate_calls(queue: Any, assert_drained: Callable[[], None]) -> None:
    task = queue.task(noop)
    futures = [task(i) for i in range(2_000)]
    assert [future.result(timeout=60) for future in futures] == list(range(2_000))
    assert queue.status().done == 2_000
    assert_drained()


def test_ten_thousand_items_that_are_not_plain(queue: Any, assert_drained: Callable[[], None]) -> None:
    items = [{"i": i} for i in range(10_000)]
    assert queue.map(dict, items).results(timeout=60) == items
    assert_drained()


def test_failures_and_retries_leave_nothing_either(queue: Any, assert_drained: Callable[[], None]) -> None:
    @queue.task(retries=1)
    def shaky(i: int) -> float:
        return 1 / (i % 50)

    results = shaky.map(range(400)).results(return_exceptions=True, timeout=60)
    assert [i for i, r in enumerate(results) if isinstance(r, ZeroDivisionError)] == list(range(0, 400, 50))
    assert (queue.status().failed, queue.status().retried) == (8, 8)
    assert_drained()


def test_calls_from_many_threads_at_once(queue: Any, assert_drained: Callable[[], None]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    task = queue.task(noop)
    with ThreadPoolExecutor(8) as threads:
        futures = list(threads.map(task, range(800)))
        assert list(threads.map(lambda future: future.result(timeout=60), futures)) == list(range(800))
    assert_drained()


def test_cancelled_calls_leave_nothing(queue: Any, assert_drained: Callable[[], None]) -> None:
    import time

    batch = queue.map(lambda i: time.sleep(0.01), range(1_000), chunksize=3)
    future = queue.submit(time.sleep, 60)
    next(iter(batch))
    batch.cancel()
    future.cancel()
    assert queue.submit(noop, 1).result(timeout=20) == 1
    assert_drained()


def test_megabytes_of_arguments_and_results(queue: Any, assert_drained: Callable[[], None]) -> None:
    blocks = [bytes([i]) * 3_000_000 for i in range(8)]
    assert queue.map(lambda block: block[::-1], blocks).results(timeout=60) == blocks
    assert_drained()
