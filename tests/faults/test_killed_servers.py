"""The server may die, freeze, forget everything or lose its directory at any moment.

Every call still ends, once, with its value.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from nbqueue import TaskQueue
from nbqueue.client.sending import helm, outgoing
from nbqueue.errors import ServerUnreachable
from nbqueue.stream.broker import Broker


def _server_of(queue: Any) -> psutil.Process:
    """The private server's process, found through the server itself."""
    with _client(queue) as client:
        return psutil.Process(client.info("server")["process_id"])


def _client(queue: Any) -> redis.Redis:
    return redis.Redis(unix_socket_path=queue._core.address().path)


def _slow(i: int) -> int:
    time.sleep(0.002)
    return i * i


def _held(folder: str) -> str:
    Path(folder, "started").touch()
    while not Path(folder, "go").exists():
        time.sleep(0.005)
    return "went"


def test_kill_9_on_the_server_in_the_middle_of_500_calls_loses_none(
    queue: Any, wait_until: Callable[..., Any]
) -> None:
    task = queue.task(_slow)
    futures = [task(i) for i in range(500)]
    wait_until(lambda: sum(future.done() for future in futures) > 100, timeout=30)
    server = _server_of(queue)
    server.kill()
    assert [future.result(timeout=30) for future in futures] == [i * i for i in range(500)]
    assert _server_of(queue).pid != server.pid


def test_kill_9_on_the_server_in_the_middle_of_a_map_loses_no_item(
    queue: Any, wait_until: Callable[..., Any]
) -> None:
    batch = queue.map(_slow, iter(range(500)))
    wait_until(lambda: batch.progress.done > 50, timeout=30)
    _server_of(queue).kill()
    assert batch.results(timeout=30) == [i * i for i in range(500)]


@pytest.mark.apart
def test_a_server_that_is_killed_again_and_again_loses_nothing(queue: Any, wait_until: Callable[..., Any]) -> None:
    batch = queue.map(_slow, range(400), chunksize=4)
    for share in (50, 150, 250):
        wait_until(lambda share=share: batch.progress.done > share, timeout=30)
        _server_of(queue).kill()
    assert batch.results(timeout=60) == [i * i for i in range(400)]


DELETED = """
import time
from nbqueue import TaskQueue

def square(i):
    time.sleep(0.002)
    return i * i

queue = TaskQueue(workers=2)
batch = queue.map(square, iter(range(300)))
while batch.progress.done < 20:
    time.sleep(0.01)
print("begun", flush=True)
assert batch.results(timeout=30) == [i * i for i in range(300)]
queue.restart_workers()
assert queue.map(square, range(20)).results(timeout=30) == [i * i for i in range(20)]
print("ended", flush=True)
"""


@pytest.mark.parametrize("what", ["nbqueue-*", "nbqueue-*/redis.sock"])
def test_a_directory_that_a_cleaner_deletes_under_a_running_map_is_made_again_and_no_item_is_lost(
    start_script: Callable[..., Any], wait_until: Callable[..., Any], what: str
) -> None:
    """Nobody could connect any more: calls waited for ever as soon as a worker died or was renewed."""
    script = start_script(DELETED)
    script.line("begun")
    (found,) = script.run.glob(what)
    if found.is_dir():
        shutil.rmtree(found)
    else:
        found.unlink()
    wait_until(found.exists, timeout=20)
    script.line("ended", timeout=60)
    script.end()
    assert script.err == []
    assert list(script.run.iterdir()) == []


def test_where_a_deleted_directory_cannot_be_made_again_the_user_is_told_to_restart_the_kernel(
    start_script: Callable[..., Any], wait_until: Callable[..., Any]
) -> None:
    script = start_script(DELETED + "while queue.submit(abs, -3).result(timeout=30): print(3, flush=True)")
    script.line("ended", timeout=60)
    (directory,) = script.run.glob("nbqueue-*")
    shutil.rmtree(directory)
    directory.touch()
    wait_until(lambda: any(line.endswith("Restart the kernel.") for line in script.err), timeout=20)
    assert f"{directory}, was deleted, and cannot be made again" in script.err[0]
    # Who is connected goes on.
    so_far = len(script.out)
    wait_until(lambda: len(script.out) > so_far + 10, timeout=20)


def test_while_a_private_server_is_away_nobody_is_told_to_start_one(
    queue: Any, wait_until: Callable[..., Any]
) -> None:
    """The advice was to correct the address, or to take the private server that it was."""
    queue.submit(abs, -1).result(timeout=30)
    server, supervisor = _server_of(queue), psutil.Process(queue._core.launcher._process.pid)
    # Or it would be there again before we have asked.
    supervisor.suspend()
    try:
        server.kill()
        wait_until(lambda: server.status() == psutil.STATUS_ZOMBIE)
        with pytest.raises(ServerUnreachable, match=r"^The private Redis server is down; it is started again\.$"):
            queue.status()
    finally:
        supervisor.resume()
    assert queue.submit(abs, -2).result(timeout=30) == 2


def test_flushall_in_the_middle_loses_no_item(queue: Any, wait_until: Callable[..., Any]) -> None:
    batch = queue.map(_slow, range(500), chunksize=5)
    wait_until(lambda: batch.progress.done > 50, timeout=30)
    with _client(queue) as client:
        client.flushall()
    assert batch.results(timeout=30) == [i * i for i in range(500)]


def test_flushall_while_a_long_call_runs_costs_it_nothing(
    queue: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    started, go = tmp_path / "started", tmp_path / "go"

    @queue.task
    def long() -> str:
        started.touch()
        while not go.exists():
            time.sleep(0.01)
        return "there"

    future = long()
    wait_until(started.exists, timeout=20)
    with _client(queue) as client:
        client.flushall()
    # Submitted anew, since the server knows nothing of it: it may run twice, its result comes once.
    go.touch()
    assert future.result(timeout=30) == "there"


def test_calls_that_are_cancelled_after_flushall_do_not_silence_the_queue(
    queue: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    """The listener died of trimming replies up to an id that it did not have yet: later calls never ended."""
    go = tmp_path / "go"

    @queue.task
    def until_told() -> None:
        while not go.exists():
            time.sleep(0.01)

    long = until_told()
    # This reply is read, and not trimmed while another call is open.
    assert queue.submit(_slow, 2).result(timeout=20) == 4
    link, keys = queue._core.link, queue._core.keys
    with _client(queue) as client:
        client.flushall()
        wait_until(lambda: client.hlen(keys.open_calls(link.client)) == 1, timeout=20)
    long.cancel()
    # The copy that the server has forgotten cannot be cancelled.
    go.touch()
    wait_until(lambda: not link._untrimmed, timeout=20)
    assert queue.submit(_slow, 3).result(timeout=20) == 9


def test_script_flush_on_a_living_server_is_repaired_on_the_spot(queue: Any) -> None:
    assert queue.map(_slow, range(20)).results(timeout=20) == [i * i for i in range(20)]
    with _client(queue) as client:
        client.script_flush()
    assert queue.map(_slow, range(20)).results(timeout=20) == [i * i for i in range(20)]


def test_a_deleted_consumer_group_is_made_again(queue: Any) -> None:
    assert queue.submit(_slow, 2).result(timeout=20) == 4
    with _client(queue) as client:
        for stream in queue._core.keys.streams:
            client.xgroup_destroy(stream, "w")
    assert queue.submit(_slow, 3).result(timeout=20) == 9


def test_a_frozen_server_delays_and_loses_nothing(queue: Any, wait_until: Callable[..., Any]) -> None:
    batch = queue.map(_slow, range(300), chunksize=5)
    wait_until(lambda: batch.progress.done > 50, timeout=30)
    server = _server_of(queue)
    server.suspend()
    try:
        # More than the workers can finish of what they hold: then everything stands still.
        done = batch.progress.done
        with pytest.raises(TimeoutError):
            batch.results(timeout=0.5)
        assert batch.progress.done <= done + 64
    finally:
        server.resume()
    assert batch.results(timeout=30) == [i * i for i in range(300)]


def test_connections_that_are_cut_are_made_again(queue: Any, wait_until: Callable[..., Any]) -> None:
    batch = queue.map(_slow, range(500), chunksize=5)
    for share in (50, 150, 250):
        wait_until(lambda share=share: batch.progress.done > share, timeout=30)
        with _client(queue) as client:
            assert client.client_kill_filter(_type="normal", skipme=True)
    assert batch.results(timeout=30) == [i * i for i in range(500)]


def test_a_shared_server_that_restarts_empty_gets_the_open_calls_again(
    redis_server: Any, new_key: str, wait_until: Callable[..., Any]
) -> None:
    queue = TaskQueue(redis_server.url, new_key)
    queue.run(2)
    batch = queue.map(_slow, range(300), chunksize=5)
    wait_until(lambda: batch.progress.done > 30, timeout=30)
    redis_server.stop()
    Path(redis_server.path).unlink()
    redis_server.start()
    assert batch.results(timeout=40) == [i * i for i in range(300)]


def test_results_stay_readable_and_calls_possible_after_the_server_died_at_rest(
    queue: Any, wait_until: Callable[..., Any]
) -> None:
    future = queue.submit(_slow, 4)
    wait_until(future.done, timeout=20)
    os.kill(_server_of(queue).pid, signal.SIGKILL)
    assert future.result() == 16
    assert queue.submit(_slow, 5).result(timeout=30) == 25


def test_calls_that_could_not_be_sent_leave_as_soon_as_the_connection_is_there_again(
    redis_server: Any, new_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lay there until a blocked read ended, two seconds later: what had woken the listener was used up."""
    monkeypatch.setattr(outgoing, "BLOCK_MS", 60_000)
    submit = Broker.submit_command
    lost: list[int] = []

    def lose_the_first(broker: Broker, *args: Any) -> Any:
        if not lost:
            lost.append(1)
            broker.wire.close()
        return submit(broker, *args)

    monkeypatch.setattr(Broker, "submit_command", lose_the_first)
    queue = TaskQueue(redis_server.url, new_key)
    queue.run(1)
    assert queue.submit(abs, -1).result(timeout=20) == 1
    assert lost


def test_a_server_that_was_emptied_is_noticed_though_nothing_comes_from_it(
    queue: Any, tmp_path: Path, wait_until: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took up to two seconds, until a blocked read had ended."""
    for module in (helm, outgoing):
        monkeypatch.setattr(module, "BLOCK_MS", 60_000)
    future = queue.submit(_held, str(tmp_path))
    wait_until((tmp_path / "started").exists, timeout=20)
    with _client(queue) as client:
        client.flushall()
    (tmp_path / "go").touch()
    # What the worker reports is about a call that nobody knows any more: it runs again.
    wait_until(future.done, timeout=20)
    assert future.result() == "went"
