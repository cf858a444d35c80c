"""Calls that need others, while workers, servers and kernels die: each still ends once, with its value."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from nbqueue import InputFailed, TaskCancelled, TaskQueue
from nbqueue.client.sending import helm
from nbqueue.codec.seal import fingerprint, user_secret
from nbqueue.errors import ServerError
from nbqueue.stream.broker import Broker, Ended
from nbqueue.stream.connect import Address, Wire
from nbqueue.stream.keys import Keys


def held(go: Path, value: Any) -> Any:
    while not go.exists():
        time.sleep(0.005)
    return value


def add(*numbers: Any) -> Any:
    return sum(numbers)


def _client(queue: Any) -> redis.Redis:
    return redis.Redis(unix_socket_path=queue._core.address().path)


def _forget(queue: Any) -> None:
    with _client(queue) as client:
        client.flushall()


def _kill(queue: Any) -> None:
    with _client(queue) as client:
        os.kill(client.info("server")["process_id"], signal.SIGKILL)


def _delayed(queue: Any) -> int:
    try:
        return int(queue.status().delayed)
    except ServerError:
        # It is just coming back.
        return -1


@pytest.mark.parametrize("lose", [_forget, _kill])
def test_a_server_that_is_lost_costs_a_graph_nothing(
    lose: Callable[[Any], None],
    queue: Any,
    tmp_path: Path,
    wait_until: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While calls wait for what has ended, for what runs and for what waits itself."""
    monkeypatch.setattr(helm, "HELLO_S", 0.2)
    go = tmp_path / "go"
    ended = [queue.submit(np.full, 20_000, float(i)) for i in range(3)]
    running = queue.submit(held, go, 7.0)
    small = queue.submit(abs, -1)
    waiting = [queue.submit(lambda x, y: float(x[0]) + y, each, running) for each in ended]
    waiting.append(queue.submit(add, small, running))
    last = queue.submit(add, *waiting)
    concurrent.futures.wait([*ended, small], 20)
    wait_until(lambda: queue.status().delayed == 5)
    lose(queue)
    wait_until(lambda: _delayed(queue) == 5)
    del ended, small
    go.touch()
    assert [future.result(timeout=30) for future in waiting] == [7.0, 8.0, 9.0, 8.0]
    assert last.result(timeout=30) == 32.0


@pytest.mark.parametrize("lost", ["everything", "one call"])
def test_what_has_ended_without_a_word_is_made_again_if_the_server_has_lost_all_and_fails_if_not(
    lost: str, queue: Any, tmp_path: Path
) -> None:
    """Between the server's word that a needed call has ended, and the reading of its reply, everything was lost."""
    go = tmp_path / "go"
    needed = queue.submit(held, go, 7)
    call = needed._call
    link = queue._core.link
    assert link.flush(10)
    with link._helm:
        with _client(queue) as client:
            if lost == "everything":
                client.flushall()
            else:
                client.hdel(link._keys.open_calls(link.client), str(call.call.n))
        link._settle()
        link._catch_up(link._steps, Ended((call.call.n,)))
    needs = queue.submit(add, needed, 1)
    go.touch()
    if lost == "everything":
        assert needs.result(timeout=20) == 8
    else:
        with pytest.raises(InputFailed, match="The server has forgotten this call"):
            needs.result(timeout=20)
        # What has the count of it wrong now.
        _forget(queue)


def test_the_memory_of_a_server_is_lost_again_and_again(
    queue: Any, wait_until: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helm, "HELLO_S", 0.2)
    task = queue.task(add)
    levels = [[task(i) for i in range(30)]]
    for _ in range(4):
        before = levels[-1]
        levels.append([task(before[i - 1], before[i]) for i in range(30)])
    expected = list(range(30))
    for _ in range(4):
        expected = [expected[i - 1] + expected[i] for i in range(30)]
    for share in (1, 40, 80):
        wait_until(lambda share=share: sum(f.done() for level in levels for f in level) >= share, timeout=30)
        _forget(queue)
    assert [future.result(timeout=30) for future in levels[-1]] == expected


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="shared memory")
def test_a_diamond_of_1_000_tasks_and_100_kb_values_survives_a_worker_and_stays_out_of_the_kernel(
    queue: Any, wait_until: Callable[..., Any], traffic: Any
) -> None:
    @queue.task
    def middle(x: Any, i: int) -> Any:
        x[-1] += i
        return bytes(x.data) if i % 2 else x

    @queue.task
    def end(parts: list[Any]) -> float:
        arrays = [np.frombuffer(part) if type(part) is bytes else part for part in parts]
        assert all(array.size == 12_500 and array[7] == 7.0 for array in arrays)
        return float(sum(array[-1] for array in arrays))

    first = queue.submit(np.arange, 12_500.0)
    parts = [middle(first, i) for i in range(998)]
    last = end(parts)
    wait_until(lambda: sum(part.done() for part in parts) > 300, timeout=60)
    os.kill(next(worker.pid for worker in queue.status().workers if worker.pid), signal.SIGKILL)
    assert last.result(timeout=120) == sum(12_499.0 + i for i in range(998))
    # The list of a thousand names, or of what stands for values that were there before, a few hundred bytes each.
    assert traffic.sent < 400_000
    assert traffic.received < 5_000


CLIENT = """
from nbqueue import TaskQueue
queue = TaskQueue({url!r}, {key!r})

@queue.task
def add(*numbers):
    return sum(numbers)

chain = add(1)
for _ in range(5):
    chain = add(chain, 1)
last = add(chain, *[add(i) for i in range(4)])
assert queue._core.link.flush(10)
print("sent", flush=True)
print("result", last.result(60), flush=True)
"""


def test_a_graph_goes_on_while_its_kernel_is_frozen(
    redis_server: Any, new_key: str, start_script: Callable[..., Any], wait_until: Callable[..., Any]
) -> None:
    script = start_script(CLIENT.format(url=redis_server.url, key=new_key))
    script.line("sent")
    os.kill(script.process.pid, signal.SIGSTOP)
    queue = TaskQueue(redis_server.url, new_key)
    queue.run(2)
    try:
        wait_until(lambda: queue.status().done == 11, timeout=20)
    finally:
        os.kill(script.process.pid, signal.SIGCONT)
    assert script.line("result") == "12"
    script.end()
    queue.shutdown()


def test_what_waits_is_ended_with_what_it_needs_by_whoever_cancels_or_kills(
    redis_server: Any, new_key: str, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    """Also on the server, where nothing is left of it, with its kernel or without."""
    from nbqueue.client.clearing import cancel_calls
    from nbqueue.codec.seal import Seal

    queue = TaskQueue(redis_server.url, new_key)
    first = queue.submit(held, tmp_path / "never", 1)
    waiting = queue.submit(add, queue.submit(add, first), first)
    queue.run(1)
    wait_until(lambda: queue.status().delayed == 2 and queue.status().running)
    keys = Keys.of(new_key, fingerprint(user_secret()))
    broker = Broker(Wire(Address(path=redis_server.path), timeout_s=5.0), keys)
    broker.connect()
    assert {entry.entry[0] for entry in broker.open_entries()} == {"1", "w"}
    assert cancel_calls(broker, Seal(user_secret(), keys.prefix)) == 3
    broker.wire.close()
    with pytest.raises(TaskCancelled):
        waiting.result(timeout=20)
    queue.shutdown()
    with redis_server.client() as client:
        assert not [key for key in client.keys(f"{keys.prefix}*") if client.ttl(key) == -1]
