"""``nbqueue cancel`` and ``nbqueue purge``: what others have made ends, and they are told."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from nbqueue import TaskCancelled, TaskQueue


def held(started: Path, go: Path) -> int:
    started.touch()
    while not go.exists():
        time.sleep(0.01)
    return 1


def fails() -> None:
    raise ValueError("again")


@pytest.fixture
def shared(redis_server: Any, new_key: str) -> Iterator[TaskQueue]:
    queue = TaskQueue(redis_server.url, new_key)
    yield queue
    queue.shutdown()


@pytest.fixture
def nbqueue(redis_server: Any, new_key: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(command: str, *options: str, url: str = redis_server.url) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "nbqueue.cli", command, url, "--queue", new_key, *options]
        return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)

    return run


def test_what_is_queued_running_and_waiting_for_a_retry_ends_and_its_owner_is_told(
    shared: TaskQueue, nbqueue: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    shared.run(1)
    retried = shared.task(fails, retries=9).submit()
    wait_until(lambda: shared.status().delayed == 1, timeout=20)
    running = shared.submit(held, tmp_path / "started", tmp_path / "never")
    wait_until((tmp_path / "started").exists, timeout=20)
    queued = [shared.submit(abs, -i) for i in range(700)]
    batch = shared.map(abs, range(100))
    wait_until(lambda: shared.status().queued >= 700, timeout=20)
    done = nbqueue("cancel", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cancelled"] >= 702
    for future in (retried, running, *queued):
        with pytest.raises(TaskCancelled, match="was cancelled"):
            future.result(timeout=20)
    assert all(isinstance(r, TaskCancelled) for r in batch.results(return_exceptions=True, timeout=20))
    assert shared.submit(abs, -5).result(timeout=20) == 5, "the worker is free again"
    assert nbqueue("cancel").stdout == "0 calls cancelled\n"


def test_queued_leaves_alone_what_a_worker_has_begun(
    shared: TaskQueue, nbqueue: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    shared.run(1)
    running = shared.submit(held, tmp_path / "started", tmp_path / "go")
    wait_until((tmp_path / "started").exists, timeout=20)
    waiting = shared.submit(abs, -1)
    wait_until(lambda: shared.status().queued == 1, timeout=20)
    assert nbqueue("cancel", "--queued").stdout == "1 call cancelled\n"
    with pytest.raises(TaskCancelled):
        waiting.result(timeout=20)
    (tmp_path / "go").touch()
    assert running.result(timeout=20) == 1


def test_items_of_a_map_are_counted_and_not_the_messages_that_they_came_in(
    shared: TaskQueue, nbqueue: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    """A chunk counted as one. And its owner, when told of the first, ended the others before they were counted."""
    batch = shared.map(abs, range(60), chunksize=30)
    wait_until(lambda: shared.status().queued == 2, timeout=20)
    assert nbqueue("cancel", "--queued").stdout == "60 calls cancelled\n"
    assert all(isinstance(r, TaskCancelled) for r in batch.results(return_exceptions=True, timeout=20))

    # What has ended of a chunk does not count.
    def third_waits(i: int) -> None:
        if i == 2:
            held(tmp_path / "started", tmp_path / "never")

    shared.run(1)
    batch = shared.map(third_waits, range(5), chunksize=5)
    wait_until((tmp_path / "started").exists, timeout=20)
    wait_until(lambda: batch.progress.done == 2, timeout=20)
    assert nbqueue("cancel").stdout == "3 calls cancelled\n"


def test_purge_leaves_no_key_and_whoever_is_there_goes_on(
    shared: TaskQueue, nbqueue: Any, redis_server: Any, wait_until: Callable[..., Any]
) -> None:
    waiting = shared.submit(abs, -1)
    client = redis.Redis.from_url(redis_server.url)
    wait_until(lambda: client.keys("nbq:*"), timeout=20)
    client.set("of somebody else", "1")
    refused = nbqueue("purge")
    assert (refused.returncode, refused.stderr) == (1, "nbqueue: purge asks first; in a script, say --yes.\n")
    wait_until(lambda: shared.status().queued == 1, timeout=20)
    done = nbqueue("purge", "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 call cancelled, ")
    assert client.get("of somebody else") == b"1"
    with pytest.raises(TaskCancelled):
        waiting.result(timeout=20)
    shared.run(1)
    assert shared.submit(abs, -2).result(timeout=20) == 2


ASLEEP = """
import sys
from nbqueue import TaskQueue
try:
    print(TaskQueue(sys.argv[1], sys.argv[2]).submit(abs, -1).result())
except Exception as error:
    print(type(error).__name__)
"""


@pytest.mark.apart
@pytest.mark.parametrize("before", ["nobody has taken it", "it has ended"])
def test_who_sleeps_while_it_is_purged_hears_of_its_calls_later(
    nbqueue: Any, new_key: str, redis_server: Any, wait_until: Callable[..., Any], before: str
) -> None:
    """It sent the call again, as to a server that has lost its data: it waited for a worker, or ran twice."""
    with redis.Redis.from_url(redis_server.url) as server:
        words = [sys.executable, "-c", ASLEEP, redis_server.url, new_key]
        asleep = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        try:
            wait_until(lambda: server.info("clients")["blocked_clients"] == 1, timeout=60)
            wait_until(lambda: server.keys("nbq:*:o:*"), timeout=20)
            asleep.send_signal(signal.SIGSTOP)
            # What it had asked for is answered: nothing. It asks again when it wakes.
            wait_until(lambda: server.info("clients")["blocked_clients"] == 0, timeout=20)
            if before == "it has ended":
                with TaskQueue(redis_server.url, new_key) as workers:
                    workers.run(1)
                    wait_until(lambda: not server.keys("nbq:*:o:*"), timeout=20)
            done = nbqueue("purge", "--yes")
            assert done.stdout.startswith(f"{0 if before == 'it has ended' else 1} call"), done.stderr
            (left,) = server.keys("nbq:*")
            assert ":r:" in left.decode()
            assert 3500 < server.ttl(left) <= 3600
            asleep.send_signal(signal.SIGCONT)
            assert asleep.communicate(timeout=60)[0] == ("1\n" if before == "it has ended" else "TaskCancelled\n")
        finally:
            asleep.kill()
            asleep.wait(10)


def test_who_may_not_delete_keys_is_told_before_anything_is_cancelled(
    shared: TaskQueue, nbqueue: Any, redis_server: Any, wait_until: Callable[..., Any]
) -> None:
    waiting = shared.submit(abs, -1)
    wait_until(lambda: shared.status().queued == 1, timeout=20)
    with redis.Redis.from_url(redis_server.url) as server:
        server.acl_setuser("ana", enabled=True, nopass=True, keys=["*"], categories=["+@all"], commands=["-scan"])
    url = redis_server.url.replace("unix://", "unix://ana:any@")
    done = nbqueue("purge", "--yes", url=url)
    assert done.returncode == 1
    assert "takes an administrator's rights, among them SCAN and UNLINK. Nothing was cancelled" in done.stderr
    shared.run(1)
    assert waiting.result(timeout=20) == 1


def test_purge_cures_a_queue_whose_keys_others_have_replaced(
    shared: TaskQueue, nbqueue: Any, redis_server: Any
) -> None:
    shared.run(1)
    assert shared.submit(abs, -1).result(timeout=20) == 1
    with redis.Redis.from_url(redis_server.url) as server:
        for key in server.keys("nbq:*:s:*"):
            server.set(key, "somebody's")
        done = nbqueue("purge", "--yes")
        assert done.returncode == 0, done.stderr
    assert shared.submit(abs, -2).result(timeout=30) == 2
