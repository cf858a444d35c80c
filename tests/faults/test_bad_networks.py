"""The network to the server is slow, resets, stalls or is silently gone: every call still ends, once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from proxy import Connection, Proxy

from nbqueue import TaskQueue
from nbqueue.client.sending import outgoing

pytestmark = pytest.mark.apart


@pytest.fixture
def proxies() -> Iterator[list[Proxy]]:
    """Closed after the queues and the server are: those must still be able to end."""
    proxies: list[Proxy] = []
    yield proxies
    for proxy in proxies:
        proxy.close()


@pytest.fixture
def network(proxies: list[Proxy], redis_server: Any) -> Iterator[Callable[..., Proxy]]:
    """``network(delay_s=0.05)``: a way to `redis_server` that is no better than that."""

    def make(**faults: Any) -> Proxy:
        proxies.append(Proxy(redis_server.path, **faults))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.stalled, proxy.resets, proxy.delay_s = False, 0.0, 0.0


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The notebook's own connection gives up after two or three seconds instead of 12 or 30."""
    monkeypatch.setattr(outgoing, "STEP_TIMEOUT_S", 2.0)
    monkeypatch.setattr(outgoing, "REPLY_TIMEOUT_S", 3.0)


def _square(i: int) -> int:
    return i * i


def _slow(i: int) -> int:
    time.sleep(0.005)
    return i * i


def _is_replies(connection: Connection) -> bool:
    return b"XREAD\r\n" in connection.asked and b"}:r:" in connection.asked


def _is_inbox(connection: Connection) -> bool:
    return b"XREAD\r\n" in connection.asked and b"}:h:" in connection.asked


def _is_fetch(connection: Connection) -> bool:
    return b"XREADGROUP\r\n" in connection.asked


def _assert_all_kinds_of_calls_end_right(queue: TaskQueue, folder: Path, wait_until: Callable[..., Any]) -> None:
    """Single calls, a map in chunks, a task that needs its retries, a failure, a call that is cancelled as it runs."""
    single = queue.task(_square)
    futures = [single(i) for i in range(100)]
    batch = queue.map(_slow, range(300), chunksize=5)

    @queue.task(retries=2)
    def shaky(i: int) -> int:
        # One note an attempt, under a name of its own.
        attempts = len(list(folder.glob(f"shaky-{i}-*")))
        (folder / f"shaky-{i}-{attempts}-{time.monotonic_ns()}").touch()
        if attempts < 2:
            raise RuntimeError("not yet")
        return -i

    @queue.task
    def broken() -> None:
        raise KeyError("as it should")

    @queue.task
    def endless() -> None:
        (folder / "endless").touch()
        while True:
            time.sleep(0.01)

    retried = [shaky(i) for i in range(4)]
    failing = broken()
    assert [future.result(timeout=60) for future in futures] == [i * i for i in range(100)]
    assert batch.results(timeout=90) == [i * i for i in range(300)]
    assert [future.result(timeout=60) for future in retried] == [-i for i in range(4)]
    with pytest.raises(KeyError, match="as it should"):
        failing.result(timeout=60)
    running = endless()
    wait_until((folder / "endless").exists, timeout=60)
    assert running.cancel()
    # It holds one of two workers for ever, unless the cancellation reaches it.
    assert queue.map(_slow, range(20), chunksize=1).results(timeout=60) == [i * i for i in range(20)]


def _assert_nothing_lost_or_doubled(
    queue: TaskQueue, redis_server: Any, done: int, wait_until: Callable[..., Any]
) -> None:
    """The server has counted each success once, holds no call, and nobody runs one."""
    keys = queue._core.keys  # type: ignore[union-attr]
    with redis_server.client() as client:
        wait_until(lambda: client.xlen(keys.first) == client.xlen(keys.normal) == 0, timeout=60)
        counts = {name.decode(): int(n) for name, n in client.hgetall(keys.counts).items()}
        assert counts["done"] == done
        assert counts["cancelled"] == 1
        assert counts["failed"] == 1
        wait_until(lambda: not any(b'"task":{' in state or b'"task": {' in state for state in client.hvals(keys.pool)))


DONE = 100 + 300 + 4 + 20


@pytest.mark.soak
def test_a_delay_of_50_ms_each_way_costs_time_only(
    network: Callable[..., Proxy], redis_server: Any, new_key: str, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    queue = TaskQueue(network(delay_s=0.05).url, new_key)
    queue.run(2)
    _assert_all_kinds_of_calls_end_right(queue, tmp_path, wait_until)
    _assert_nothing_lost_or_doubled(queue, redis_server, DONE, wait_until)
    assert len(queue.status().workers) == 2


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_one_chunk_in_a_hundred_that_ends_in_a_reset_loses_and_doubles_nothing(
    seed: int,
    network: Callable[..., Proxy],
    redis_server: Any,
    new_key: str,
    tmp_path: Path,
    wait_until: Callable[..., Any],
) -> None:
    proxy = network()
    queue = TaskQueue(proxy.url, new_key)
    proxy._random.seed(seed)
    proxy.resets = 0.01
    queue.run(2)
    _assert_all_kinds_of_calls_end_right(queue, tmp_path, wait_until)
    _assert_nothing_lost_or_doubled(queue, redis_server, DONE, wait_until)
    assert proxy.cut > 0


def _stall(proxy: Proxy, seconds: float) -> None:
    # The one fact to wait for is that so much time has passed.
    proxy.stalled = True
    threading.Event().wait(seconds)
    proxy.stalled = False


def _a_stall_delays(
    seconds: float, then_cut: bool, proxy: Proxy, queue: TaskQueue, wait_until: Callable[..., Any]
) -> None:
    batch = queue.map(_slow, range(600), chunksize=5)
    wait_until(lambda: batch.progress.done > 50, timeout=30)
    singles = [queue.submit(_square, i) for i in range(20)]
    _stall(proxy, seconds)
    if then_cut:
        proxy.forsake()
    assert batch.results(timeout=60) == [i * i for i in range(600)]
    assert [future.result(timeout=60) for future in singles] == [i * i for i in range(20)]
    assert queue.submit(_square, 12).result(timeout=30) == 144


@pytest.mark.parametrize("then_cut", [False, True])
def test_a_stall_longer_than_every_patience_delays_and_loses_nothing(
    then_cut: bool,
    network: Callable[..., Proxy],
    short_patience: None,
    redis_server: Any,
    new_key: str,
    wait_until: Callable[..., Any],
) -> None:
    proxy = network()
    queue = TaskQueue(proxy.url, new_key)
    queue.run(2)
    _a_stall_delays(3.5, then_cut, proxy, queue, wait_until)
    assert queue.status().done == 621


@pytest.mark.soak
@pytest.mark.parametrize("then_cut", [False, True])
def test_a_stall_of_15_s_outlasts_the_lease_and_the_host_comes_back(
    then_cut: bool,
    network: Callable[..., Proxy],
    redis_server: Any,
    new_key: str,
    wait_until: Callable[..., Any],
) -> None:
    """The stalled host's neighbour takes its work; when the host is back it serves again, under a new name."""
    proxy = network()
    queue, neighbour = TaskQueue(proxy.url, new_key), TaskQueue(redis_server.url, new_key)
    queue.run(2)
    neighbour.run(1)
    wait_until(lambda: len(neighbour.status().workers) == 3)
    keys = queue._core.keys  # type: ignore[union-attr]
    with redis_server.client() as client:
        before = set(client.hkeys(keys.beats))
        _a_stall_delays(15.0, then_cut, proxy, queue, wait_until)
        wait_until(lambda: len(set(client.hkeys(keys.beats))) == 2, timeout=30)
        after = set(client.hkeys(keys.beats))
        assert len(after & before) == 1, "the stalled host was declared dead, and registered anew"
        assert client.hget(keys.counts, "done") == b"621"
    wait_until(lambda: len(neighbour.status().workers) == 3, timeout=30)


def test_an_interrupt_is_felt_while_the_network_stalls(
    network: Callable[..., Proxy], redis_server: Any, new_key: str, wait_until: Callable[..., Any]
) -> None:
    proxy = network()
    queue = TaskQueue(proxy.url, new_key)
    TaskQueue(redis_server.url, new_key).run(1)
    assert queue.submit(_square, 2).result(timeout=30) == 4
    link = queue._core.link  # type: ignore[union-attr]
    connected = link._steps
    proxy.stalled = True
    # Started by a shell in its background, this process ignores what a kernel does not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    for wait in (
        lambda: queue.submit(_square, 3).result(timeout=30),
        lambda: queue.map(_slow, range(50)).results(timeout=30),
        lambda: queue.map(_slow, iter(range(50)))[7],
        lambda: queue.status(),
        lambda: queue.shutdown(),
    ):
        interrupter = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            wait()
        # The stall ends only below: nothing but the interrupt can have ended the wait.
        interrupter.join()
    assert link._steps is connected, "it waited until the connection was given up"
    signal.signal(signal.SIGINT, before)
    proxy.stalled = False
    assert queue.submit(_square, 5).result(timeout=30) == 25
    with redis_server.client() as client:
        keys = queue._core.keys  # type: ignore[union-attr]
        wait_until(lambda: client.xlen(keys.first) == client.xlen(keys.normal) == 0, timeout=30)


def test_a_wait_that_times_out_during_a_stall_leaves_the_call_to_end_later(
    network: Callable[..., Proxy], redis_server: Any, new_key: str
) -> None:
    proxy = network()
    queue = TaskQueue(proxy.url, new_key)
    TaskQueue(redis_server.url, new_key).run(1)
    assert queue.submit(_square, 2).result(timeout=30) == 4
    proxy.stalled = True
    future = queue.submit(_square, 3)
    with pytest.raises(TimeoutError, match="it goes on"):
        future.result(timeout=0.3)
    proxy.stalled = False
    assert future.result(timeout=30) == 9


# Half-open connections: nobody says that they have ended.


def test_connections_of_the_notebook_that_vanish_are_given_up_and_made_again(
    network: Callable[..., Proxy],
    short_patience: None,
    redis_server: Any,
    new_key: str,
    wait_until: Callable[..., Any],
) -> None:
    proxy = network()
    queue = TaskQueue(proxy.url, new_key)
    TaskQueue(redis_server.url, new_key).run(2)
    batch = queue.map(_slow, range(300), chunksize=5)
    wait_until(lambda: batch.progress.done > 30, timeout=30)
    assert proxy.vanish() == 2
    assert batch.results(timeout=30) == [i * i for i in range(300)]


def test_results_arrive_although_only_the_connection_for_replies_has_vanished(
    network: Callable[..., Proxy],
    short_patience: None,
    redis_server: Any,
    new_key: str,
    wait_until: Callable[..., Any],
) -> None:
    """Symptom: the other connection went on to say hello, so the loss was never noticed and no result came."""
    proxy = network()
    queue = TaskQueue(proxy.url, new_key)
    TaskQueue(redis_server.url, new_key).run(2)
    assert queue.submit(_square, 2).result(timeout=30) == 4
    # Until it rests: what was read has been trimmed, and nothing but the next reply is waited for.
    for trimming in (True, False):
        wait_until(lambda trimming=trimming: trimming == any(b"XTRIM" in c.asked for c in proxy.connections()))
    assert proxy.vanish(_is_replies) == 1
    assert queue.submit(_square, 3).result(timeout=30) == 9


@pytest.mark.soak
def test_connections_of_workers_and_supervisor_that_vanish_are_made_again(
    network: Callable[..., Proxy], redis_server: Any, new_key: str, wait_until: Callable[..., Any]
) -> None:
    proxy = network()
    queue = TaskQueue(redis_server.url, new_key)
    TaskQueue(proxy.url, new_key).run(2)
    batch = queue.map(_slow, range(400), chunksize=5)
    wait_until(lambda: batch.progress.done > 30, timeout=30)
    assert proxy.vanish() >= 4
    assert batch.results(timeout=60) == [i * i for i in range(400)]


@pytest.mark.soak
def test_a_cancellation_arrives_although_the_supervisors_inbox_had_vanished(
    network: Callable[..., Proxy], redis_server: Any, new_key: str, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    """Symptom: beats went on over the other connection, so the inbox was never read again."""
    proxy = network()
    queue = TaskQueue(redis_server.url, new_key)
    TaskQueue(proxy.url, new_key).run(1)

    @queue.task
    def endless() -> None:
        (tmp_path / "started").touch()
        while True:
            time.sleep(0.01)

    future = endless()
    wait_until((tmp_path / "started").exists, timeout=30)
    wait_until(lambda: proxy.vanish(_is_inbox) == 1)
    future.cancel()
    assert queue.submit(_square, 3).result(timeout=50) == 9


def test_a_call_that_went_to_a_connection_the_server_still_believes_in_is_found(
    network: Callable[..., Proxy], redis_server: Any, new_key: str, wait_until: Callable[..., Any]
) -> None:
    """Symptom: a worker reconnected and read its own pending list, then the server gave the next call to the old
    connection's blocked read, and nobody ever looked again."""
    proxy = network()
    queue = TaskQueue(redis_server.url, new_key)
    TaskQueue(proxy.url, new_key).run(1)
    assert queue.submit(_square, 2).result(timeout=30) == 4
    keys = queue._core.keys  # type: ignore[union-attr]

    def reading() -> int:
        with redis_server.client() as client:
            return sum(c["cmd"] == "xreadgroup" and "b" in c["flags"] for c in client.client_list())

    wait_until(lambda: reading() == 1)
    assert proxy.forsake(_is_fetch) == 1
    # Both the old connection and the new one wait for work, the old one first.
    wait_until(lambda: reading() == 2)
    assert queue.submit(_square, 3).result(timeout=15) == 9
    with redis_server.client() as client:
        wait_until(lambda: client.xpending(keys.normal, "w")["pending"] == 0)
