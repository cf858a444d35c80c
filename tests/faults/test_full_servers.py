"""A server whose memory is full: calls wait and say so, what runs ends, and all goes on when there is room again."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nbqueue import NbqueueError, TaskCancelled, TaskQueue
from nbqueue.cli import main
from nbqueue.client.results import waiting
from nbqueue.errors import PoolError

FULL = "The server's memory is full"


class Memory:
    """Fills a server and empties it again: with a key that is nobody's, as others on a shared server do."""

    def __init__(self, server: Any) -> None:
        self._client = server.client()

    def fill(self) -> None:
        for i in range(30):
            self._client.set(f"somebody-elses-{i}", b"x" * 1_000_000)
        # Well over the limit: what a client's buffers take or give back makes no difference.
        self._client.config_set("maxmemory", "20mb")

    def empty(self) -> None:
        self._client.delete(*(f"somebody-elses-{i}" for i in range(30)))

    def close(self) -> None:
        self.empty()
        self._client.close()


@pytest.fixture
def server(make_server: Callable[..., Any]) -> Any:
    return make_server("--maxmemory", "60mb", "--maxmemory-policy", "noeviction")


@pytest.fixture
def memory(server: Any) -> Any:
    memory = Memory(server)
    yield memory
    memory.close()


@pytest.fixture
def shared(server: Any, new_key: str, memory: Memory) -> TaskQueue:
    """A queue on that server, with two workers that have worked before."""
    queue = TaskQueue(server.url, new_key)
    queue.run(2)
    assert queue.submit(abs, -1).result(timeout=30) == 1
    return queue


@pytest.fixture
def hints_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "HINT_S", 0.1)


def held(started: Path, go: Path) -> str:
    started.touch()
    while not go.exists():
        time.sleep(0.01)
    return "held"


def refused(queue: TaskQueue) -> bool:
    """The listener has been told that there is no room."""
    return queue._core is not None and FULL in str(queue._core.link.failure)


def test_what_runs_ends_and_what_is_submitted_waits_until_there_is_room(
    shared: TaskQueue, memory: Memory, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    running = shared.submit(held, tmp_path / "started", tmp_path / "go")
    wait_until((tmp_path / "started").exists, timeout=20)
    memory.fill()
    late = shared.submit(abs, -5)
    batch = shared.map(abs, range(-50, 0), chunksize=5)
    wait_until(lambda: refused(shared))
    (tmp_path / "go").touch()
    assert running.result(timeout=20) == "held"
    assert not late.done()
    assert batch.progress.done == 0
    memory.empty()
    assert late.result(timeout=20) == 5
    assert batch.results(timeout=20) == list(range(50, 0, -1))
    wait_until(lambda: shared._core.link.failure is None)  # type: ignore[union-attr]


def test_calls_that_have_no_room_together_go_by_and_by(shared: TaskQueue, server: Any) -> None:
    """They left together, each time anew, and waited for ever in an empty queue."""
    with server.client() as client:
        room = client.info("memory")["used_memory"] + 4_000_000
        client.config_set("maxmemory", str(room))
        futures = [shared.submit(len, b"x" * 100_000) for _ in range(150)]
        assert [future.result(timeout=60) for future in futures] == [100_000] * 150


def test_whoever_waits_is_told_why(
    shared: TaskQueue,
    memory: Memory,
    hints_at_once: None,
    capsys: pytest.CaptureFixture[str],
    wait_until: Callable[..., Any],
) -> None:
    memory.fill()
    future = shared.submit(abs, -5)
    wait_until(lambda: refused(shared))
    with pytest.raises(TimeoutError, match=f"it goes on. {FULL}"):
        future.result(timeout=0.5)
    told = f"nbqueue: still waiting: {FULL}"
    assert capsys.readouterr().err.count(told) == 1
    batch = shared.map(abs, range(-5, 0))
    with pytest.raises(TimeoutError, match=f"it goes on. {FULL}"):
        batch.results(timeout=0.2)
    with pytest.raises(TimeoutError, match=FULL):
        next(batch.as_completed(timeout=0.2))
    memory.empty()
    assert future.result(timeout=20) == 5
    assert batch.results(timeout=20) == [5, 4, 3, 2, 1]


def test_whoever_awaits_is_told_why(
    shared: TaskQueue, memory: Memory, hints_at_once: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """Symptom: an awaiting cell stood still without a word, where result() told the reason."""
    memory.fill()
    errors: list[str] = []

    async def cell() -> int:
        future = shared.submit(abs, -5)

        async def make_room() -> None:
            for _ in range(2_000):
                errors.append(capfd.readouterr().err)
                if FULL in "".join(errors):
                    break
                await asyncio.sleep(0.01)
            memory.empty()

        other = asyncio.ensure_future(make_room())
        value: int = await future
        await other
        return value

    assert asyncio.run(cell()) == 5
    assert f"nbqueue: still waiting: {FULL}" in "".join(errors)


def test_a_shutdown_that_cannot_hand_over_what_was_submitted_says_why(
    shared: TaskQueue, memory: Memory, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., Any]
) -> None:
    monkeypatch.setattr("nbqueue.client.core.FLUSH_TIMEOUT_S", 0.3)
    memory.fill()
    future = shared.submit(abs, -5)
    wait_until(lambda: refused(shared))
    with pytest.raises(PoolError, match=f"could not be handed to the server; the workers go on. {FULL}"):
        shared.shutdown()
    memory.empty()
    assert future.result(timeout=20) == 5


def test_the_end_of_a_with_block_waits_and_says_why(
    shared: TaskQueue,
    memory: Memory,
    hints_at_once: None,
    capsys: pytest.CaptureFixture[str],
    wait_until: Callable[..., Any],
) -> None:
    """Symptom: it waited without a word."""
    shared.shutdown()
    told: list[str] = []

    def make_room_when_told() -> None:
        try:
            wait_until(lambda: told.append(capsys.readouterr().err) or FULL in "".join(told), timeout=20)
        finally:
            # Or the block below never ends.
            memory.empty()

    helper = threading.Thread(target=make_room_when_told)
    with shared:
        shared.run(2)
        memory.fill()
        future = shared.submit(abs, -5)
        helper.start()
    helper.join()
    assert f"nbqueue: still waiting: {FULL}" in "".join(told)
    assert future.result(timeout=0) == 5


def test_a_retry_is_parked_and_comes_back_although_the_memory_is_full(
    shared: TaskQueue, memory: Memory, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    @shared.task(retries=2)
    def shaky(folder: Path) -> str:
        (folder / "started").touch()
        while not (folder / "go").exists():
            time.sleep(0.01)
        attempt = len(list(folder.glob("attempt-*")))
        (folder / f"attempt-{attempt}").touch()
        if attempt < 2:
            raise RuntimeError("not yet")
        return "third time"

    @shared.task(retries=1, chunksize=3)
    def third(i: int) -> int:
        note = tmp_path / f"item-{i}"
        while not (tmp_path / "go").exists():
            time.sleep(0.01)
        if i == 1 and not note.exists():
            note.touch()
            raise RuntimeError("not yet")
        return i

    single = shaky(tmp_path)
    batch = third.map(range(3))
    wait_until((tmp_path / "started").exists, timeout=20)
    wait_until(lambda: len(shared.status().running) == 2, timeout=20)
    memory.fill()
    (tmp_path / "go").touch()
    assert single.result(timeout=30) == "third time"
    assert batch.results(timeout=30) == [0, 1, 2]


def test_cancelling_works_in_a_full_server_for_what_runs_and_for_what_never_left(
    shared: TaskQueue, memory: Memory, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    running = shared.submit(held, tmp_path / "started", tmp_path / "never")
    wait_until((tmp_path / "started").exists, timeout=20)
    memory.fill()
    late = shared.submit(abs, -5)
    wait_until(lambda: refused(shared))
    assert late.cancel()
    assert running.cancel()
    wait_until(lambda: not shared.status().running, timeout=20)
    with pytest.raises(TaskCancelled):
        late.result()
    # Nothing is refused any more, since nothing waits to leave.
    wait_until(lambda: not refused(shared))
    memory.empty()
    assert shared.submit(abs, -6).result(timeout=20) == 6


def test_the_status_of_a_full_server_can_be_had(
    shared: TaskQueue,
    memory: Memory,
    server: Any,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    wait_until: Callable[..., Any],
) -> None:
    """Symptom: status() ended in redis' own OutOfMemoryError, of the one command that asked the hosts to speak."""
    running = shared.submit(held, tmp_path / "started", tmp_path / "go")
    wait_until((tmp_path / "started").exists, timeout=20)
    memory.fill()
    assert [task.name for task in shared.status().running] == ["held"]
    assert main(["status", server.url, "--queue", shared.stream_key]) == 0
    assert "1 running" in capsys.readouterr().out
    (tmp_path / "go").touch()
    assert running.result(timeout=20) == "held"


def test_workers_can_join_a_full_server_and_leave_it(
    server: Any, new_key: str, memory: Memory, wait_until: Callable[..., Any]
) -> None:
    queue = TaskQueue(server.url, new_key)
    futures = [queue.submit(abs, -i) for i in range(20)]
    wait_until(lambda: queue.status().queued == 20, timeout=20)
    memory.fill()
    queue.run(2)
    assert [future.result(timeout=30) for future in futures] == list(range(20))
    queue.shutdown()


def test_a_database_that_the_server_does_not_have_is_one_of_our_errors(
    redis_server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Symptom: redis' own ResponseError came through, from the constructor and from the command line."""
    url = f"{redis_server.url}?db=99"
    with pytest.raises(NbqueueError, match="has no database 99. Correct the number at the end of the URL"):
        TaskQueue(url)
    assert main(["status", url]) == 1
    assert capsys.readouterr().err.startswith("nbqueue: The Redis server at ")


def test_a_status_that_the_server_refuses_is_one_of_our_errors(redis_server: Any, new_key: str) -> None:
    queue = TaskQueue(redis_server.url, new_key)
    with redis_server.client() as client:
        client.set(queue._core.keys.counts, "not a hash")  # type: ignore[union-attr]
        with pytest.raises(NbqueueError, match="refused a command.*wrong kind of value"):
            queue.status()
        client.delete(queue._core.keys.counts)  # type: ignore[union-attr]
