"""A server that has lost what was put is sent it again; a worker that has dropped it fetches it again."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from nbqueue import TaskQueue


def _client(queue: Any) -> redis.Redis:
    return redis.Redis(unix_socket_path=queue._core.address().path)


def _pick(x: Any, i: int) -> float:
    time.sleep(0.002)
    return float(x[i])


@pytest.mark.parametrize("worker", ["old", "fresh"])
def test_flushall_while_calls_with_a_handle_are_open(
    queue: Any, wait_until: Callable[..., Any], worker: str
) -> None:
    handle = queue.put(np.arange(1000.0))
    batch = queue.map(_pick, [handle] * 400, range(400), chunksize=4)
    wait_until(lambda: batch.progress.done > 50, timeout=30)
    if worker == "fresh":
        for state in queue.status().workers:
            os.kill(state.pid, signal.SIGKILL)
    with _client(queue) as client:
        client.flushall()
    del handle
    assert batch.results(timeout=60) == [float(i) for i in range(400)]


def test_a_server_that_died_gets_it_again(queue: Any, wait_until: Callable[..., Any]) -> None:
    handle = queue.put(np.arange(1000.0))
    task = queue.task(lambda i: float(handle[i]))
    assert task(1).result(timeout=20) == 1.0
    with _client(queue) as client:
        pid = client.info("server")["process_id"]
    os.kill(pid, signal.SIGKILL)
    assert [task(i).result(timeout=30) for i in range(3)] == [0.0, 1.0, 2.0]


def test_what_the_server_has_let_go_of_is_sent_again(queue: Any) -> None:
    """It keeps what no open call needs for an hour."""
    handle = queue.put(np.arange(1000.0))
    assert queue.submit(_pick, handle, 1).result(timeout=20) == 1.0
    queue.shutdown()
    queue.run(1)
    with _client(queue) as client:
        assert client.delete(queue._core.keys.blob(handle.digest)) == 1
    assert queue.submit(_pick, handle, 2).result(timeout=20) == 2.0


def test_handles_and_calls_keep_the_bytes_and_nothing_else_does(
    queue: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    from nbqueue.codec import blobs

    go = tmp_path / "go"

    def wait_for_it(x: Any) -> float:
        while not go.exists():
            time.sleep(0.01)
        return float(x[1])

    handle = queue.put(np.arange(1000.0))
    digest = handle.digest
    future = queue.submit(wait_for_it, handle)
    del handle
    assert digest in blobs._handles
    go.touch()
    assert future.result(timeout=20) == 1.0
    del future
    # A future and its call hold each other.
    wait_until(lambda: gc.collect() >= 0 and digest not in blobs._handles)


@pytest.mark.apart
def test_the_server_forgets_what_neither_a_handle_nor_a_call_needs(
    queue: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    """It kept each state of a loop that puts one after the other for an hour."""
    go = tmp_path / "go"

    def wait_for_it(x: Any) -> float:
        while not go.exists():
            time.sleep(0.01)
        return float(x[1])

    handle = queue.put(np.arange(1000.0))
    key = queue._core.keys.blob(handle.digest)
    with _client(queue) as client:
        if int(client.info("server")["redis_version"].split(".")[0]) < 7:
            pytest.skip("before Redis 7.0 it goes in an hour")
        future = queue.submit(wait_for_it, handle)
        wait_until(lambda: client.exists(key), timeout=20)
        del handle
        gc.collect()
        other = queue.put(np.arange(1000.0))
        del other
        gc.collect()
        assert queue._core.link.flush(5)
        assert client.ttl(key) == -1
        go.touch()
        assert future.result(timeout=20) == 1.0
        del future
        gc.collect()
        wait_until(lambda: not client.exists(key), timeout=10)
    again = queue.put(np.arange(1000.0))
    assert queue.submit(_pick, again, 3).result(timeout=20) == 3.0


HOST = """
import sys
from nbqueue.codec import blobs
blobs.Store.__init__.__defaults__ = (100_000,)
from nbqueue.cli import main
sys.exit(main(["worker", {url!r}, "--queue", {key!r}, "-n", "1"]))
"""


def test_a_worker_that_had_to_drop_one_fetches_it_again(
    redis_server: Any, new_key: str, start_script: Callable[..., Any]
) -> None:
    """Also for a function that it has kept, which held it."""
    queue = TaskQueue(redis_server.url, new_key)
    start_script(HOST.format(url=redis_server.url, key=new_key))
    handles = [queue.put(np.arange(10_000.0) + i) for i in range(3)]

    @queue.task
    def captured(i: int) -> float:
        return float(handles[0][i])

    def sizes(*x: Any) -> Any:
        from nbqueue.codec import blobs

        return [float(a[0]) for a in x], len(blobs._handles)

    for _ in range(2):
        assert queue.submit(sizes, handles[1]).result(timeout=30) == ([1.0], 1)
        assert queue.submit(sizes, *handles).result(timeout=30) == ([0.0, 1.0, 2.0], 3)
        assert captured(5).result(timeout=30) == 5.0
