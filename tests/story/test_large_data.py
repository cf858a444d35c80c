"""Large data on one host travel through shared memory, elsewhere through Redis: the same values, either way."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbqueue import NotSendable, TaskQueue
from nbqueue.client.sending import claims
from nbqueue.codec import shelves
from nbqueue.stream.broker import Broker

N = 250_000  # floats: 2 MB
WAYS = ["shared", "redis"] if sys.platform.startswith("linux") else ["redis"]
Shared = Callable[[], list[str]]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, new_key: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A queue whose large data go this way."""
    if request.param == "redis":
        monkeypatch.setenv("NBQUEUE_SHARED_MEMORY", "0")
    queue = TaskQueue(stream_key=new_key, workers=2)
    yield queue
    queue.cancel()
    queue.shutdown()


@pytest.fixture
def shared() -> Shared:
    """What lies in this process's shared memory, the pool apart."""
    if "shared" not in WAYS:
        pytest.skip("there is no /dev/shm")

    def files() -> list[str]:
        own = shelves.existing()
        if own is None:
            return []
        own.let_go()
        return [name for name in os.listdir(own.path) if name not in ("lock", "pool")]

    # Futures of failed calls hold their calls, which hold them.
    gc.collect()
    before = files()
    return lambda: [name for name in files() if name not in before]


def test_arrays_bytes_tables_and_what_holds_them(way: Any) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": np.arange(N), "b": np.arange(N) / 7, "c": ["text"] * N})
    values = [
        np.arange(N),
        np.asfortranarray(np.arange(N, dtype="f8").reshape(500, 500)),
        {"x": [np.ones(N), (os.urandom(300_000), "ä" * 200_000)], "y": bytearray(500_000)},
        frame,
        {i: str(i) for i in range(50_000)},
    ]
    for value in values:
        found = way.submit(lambda x: x, value).result(timeout=30)
        assert type(found) is type(value)
        if value is frame:
            pandas.testing.assert_frame_equal(found, frame)
        else:
            np.testing.assert_equal(found, value)
    assert way.map(lambda x, y: float(x[1] + y), [np.arange(N), np.ones(3)], [1, 2]).results(timeout=30) == [2.0, 3.0]


def test_arrow_tables(way: Any) -> None:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"a": np.arange(N), "b": np.arange(N) / 7})
    assert way.submit(lambda t: t, table).result(timeout=30).equals(table)


def test_arguments_and_results_may_be_written_to(way: Any) -> None:
    def double(x: Any) -> Any:
        x *= 2
        return x

    given = np.arange(N)
    future = way.submit(double, given)
    found = future.result(timeout=30)
    assert (found == 2 * given).all()
    assert given[1] == 1
    found[:] = 0
    assert future.result() is found


def test_a_retry_sees_the_argument_as_it_was_sent(way: Any, tmp_path: Path) -> None:
    mark = tmp_path / "tried"

    def change(x: Any) -> float:
        before = float(x[3])
        x[:] = -1
        if not mark.exists():
            mark.touch()
            raise ValueError
        return before

    array = np.arange(N)
    task = way.task(retries=1)(change)
    future = task(array)
    array[:] = 7
    assert future.result(timeout=30) == 3.0
    mark.unlink()
    assert task.map([np.arange(N), np.arange(N) + 1]).results(timeout=30) in ([3.0, 4.0], [3.0, 4.0])


def test_a_failed_call_is_shown_and_replayed_with_its_argument(way: Any) -> None:
    def fail(x: Any, why: str) -> None:
        x[0] += 1
        raise ValueError(f"{why} {x[0, :3]}")

    future = way.submit(fail, np.arange(N).reshape(500, 500), "because")
    error = future.exception(timeout=30)
    assert "array(500 × 500 of int64), why='because'" in "".join(error.__notes__).replace("x=", "")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"because \[1 2 3\]"):
            future.replay()
    if way._core.shelf is not None:
        # Elsewhere the history does not keep what is large.
        assert "500 × 500" in way.history(1)[0].arguments


def test_failed_items_are_run_again_with_theirs(way: Any, tmp_path: Path) -> None:
    mended = tmp_path / "mended"

    def work(x: Any) -> float:
        return float(x[1]) if mended.exists() else 1 / 0

    batch = way.map(work, [np.arange(N) + i for i in range(3)])
    batch.wait(30)
    assert len(batch.failed) == 3
    mended.touch()
    assert batch.retry_failed().results(timeout=30) == [1.0, 2.0, 3.0]


def test_fixed_keywords_of_a_map_travel_once_and_are_each_item_s_own(way: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    submit = Broker.submit_command

    def noting(broker: Broker, client: str, epoch: str, calls: Any, blobs: Any) -> Any:
        sent.append(sum(len(call.payload) for call in calls) + sum(map(len, blobs.values())))
        return submit(broker, client, epoch, calls, blobs)

    monkeypatch.setattr(Broker, "submit_command", noting)

    def work(i: Any, table: Any = None, power: int = 1) -> float:
        found = float(table[int(i[0]) if isinstance(i, list) else i])
        table[:] = -1
        return found**power

    task = way.task(retries=1, chunksize=3)(work)
    assert task.map(range(12), table=np.arange(N), power=2).results(timeout=30) == [float(i * i) for i in range(12)]
    assert task.map([[i] for i in range(12)], table=np.arange(N)).results(timeout=30) == [float(i) for i in range(12)]
    assert sum(sent) < 5_000_000
    batch = task.map([[5], ["no number"]], table=np.arange(N))
    batch.wait(30)
    (failed,) = batch.failed
    assert "table=array(250000 of int64)" in "".join(failed.exception().__notes__)
    with pytest.raises(ValueError, match="no number"):
        failed.replay()
    with pytest.raises(NotSendable, match=r"argument `table` \(_thread.lock\)"):
        task.map(range(3), table=threading.Lock())


def test_what_a_function_captures_travels_once(way: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    submit = Broker.submit_command

    def noting(broker: Broker, client: str, epoch: str, calls: Any, blobs: Any) -> Any:
        sent.extend(blobs)
        return submit(broker, client, epoch, calls, blobs)

    monkeypatch.setattr(Broker, "submit_command", noting)
    table, text = np.arange(N), os.urandom(300_000)

    @way.task
    def look(i: int) -> tuple[float, int]:
        table[i] += 1
        return float(table[i]), len(text)

    # A worker unpickles it once; what it changes there, it finds again.
    first = [look(i).result(timeout=30) for i in (1, 2)]
    assert first == [(2.0, 300_000), (3.0, 300_000)]
    assert {value for value, _ in look.map([7] * 6).results(timeout=30)} <= {8.0 + i for i in range(6)}
    assert len(set(sent)) == 2
    # What the notebook says now.
    table[1] = 100
    assert look(1).result(timeout=30) == (101.0, 300_000)
    assert len(set(sent)) == 3


# Shared memory itself


def test_a_task_may_set_any_umask(queue: Any, shared: Shared) -> None:
    def work() -> Any:
        os.umask(0o777)
        return np.ones(N)

    future = queue.submit(work)
    assert future.result(timeout=20).sum() == N
    (name,) = shared()
    own = shelves.existing()
    assert own is not None
    assert os.stat(f"{own.path}/{name}").st_mode & 0o777 == 0o600


def test_it_is_free_when_the_last_future_is_gone(queue: Any, shared: Shared, wait_until: Callable[..., Any]) -> None:
    future = queue.submit(lambda x: x + 1, np.arange(N))
    assert future.result(timeout=20)[0] == 1
    # The argument is not needed any more, the result is.
    wait_until(lambda: len(shared()) == 1)
    array = future.result()
    del future
    assert len(shared()) == 1
    del array
    wait_until(lambda: not shared())


def test_many_results_that_are_not_large_alone(way: Any) -> None:
    """They come to 6 MB."""
    sizes = [50_000 + i for i in range(120)]
    assert way.map(bytes, sizes).results(timeout=30) == [bytes(size) for size in sizes]
    assert way.map(lambda n: "ä" * n, [60_000, 60_001], chunksize=2).results(timeout=30) == ["ä" * 60_000, "ä" * 60_001]


def test_results_that_are_large_together_lie_in_shared_memory_until_they_are_read(
    queue: Any, shared: Shared, wait_until: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    parts_of = claims.parts_of
    monkeypatch.setattr(claims, "parts_of", lambda *args, **kw: read.append(len(shared())) or parts_of(*args, **kw))
    values = queue.map(lambda n: b"x" * n, [50_000] * 40, chunksize=40).results(timeout=30)
    assert values == [b"x" * 50_000] * 40
    assert read, "none was sent so"
    assert min(read) >= 1
    wait_until(lambda: not shared())


def test_cancelled_calls_and_lost_replies_leave_nothing(
    queue: Any, shared: Shared, wait_until: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbqueue.client.sending import helm

    monkeypatch.setattr(helm, "HELLO_S", 0.05)

    def stay(x: Any) -> Any:
        (tmp_path / "here").touch()
        time.sleep(60)

    future = queue.submit(stay, np.arange(N))
    wait_until((tmp_path / "here").exists)
    assert len(shared()) == 1
    future.cancel()
    own = shelves.existing()
    assert own is not None
    # As a worker leaves it that is killed before it has told of it.
    Path(own.path, f"r-{queue._core.link.client}-1-00000000").write_bytes(bytes(10))
    del future
    wait_until(lambda: gc.collect() >= 0 and not shared())


def test_a_task_that_keeps_its_argument_never_sees_later_data(queue: Any, shared: Shared) -> None:
    """Nor does a child that it leaves behind."""

    def keep(x: Any) -> bool:
        import builtins

        kept = builtins.__dict__.setdefault("kept_by_test", [])
        kept.append((x, x.copy()))
        return all(bool((now == then).all()) for now, then in kept)

    for i in range(6):
        # What comes next is written as soon as the server has the result of the one before.
        assert queue.submit(keep, np.full(N, i)).result(timeout=20)


def test_workers_and_kernel_write_to_the_same_pages_again(queue: Any, shared: Shared, wait_until: Any) -> None:
    own = shelves.ours()
    assert own is not None

    def inodes() -> set[int]:
        return {entry.inode() for entry in os.scandir(own.path)} | {e.inode() for e in os.scandir(f"{own.path}/pool")}

    for _ in range(3):
        assert queue.submit(lambda x: x, np.arange(N)).result(timeout=20)[1] == 1
        wait_until(lambda: not shared())
    before = inodes()
    for _ in range(5):
        assert queue.submit(lambda x: x, np.arange(N)).result(timeout=20)[1] == 1
        wait_until(lambda: not shared())
    assert inodes() == before


def test_calls_inside_tasks_share_memory_too(queue: Any, shared: Shared, wait_until: Callable[..., Any]) -> None:
    def inner(x: Any, y: Any) -> Any:
        return x + y

    @queue.task
    def outer(x: Any) -> Any:
        from nbqueue.codec import shelves

        future = queue.submit(inner, x, np.ones(N))
        own = shelves.existing()
        assert own is not None
        sent = [name for name in os.listdir(own.path) if name.startswith("a-")]
        return future.result(), len(sent), own.path

    handle = queue.put(np.arange(N))
    for given in (np.arange(N), handle):
        found, sent, path = outer(given).result(timeout=30)
        assert (found == np.arange(N) + 1).all()
        assert sent == 1
    # It goes with its worker.
    queue.shutdown()
    wait_until(lambda: not os.path.exists(path))


def test_what_was_put_and_is_forgotten_leaves_the_workers_too(
    queue: Any, shared: Shared, wait_until: Callable[..., Any]
) -> None:
    handle = queue.put(np.arange(N))

    def name(x: Any) -> int:
        return os.getpid()

    assert len(shared()) == 1
    pids = {future.result(timeout=20) for future in [queue.submit(name, handle) for _ in range(6)]}

    def mapped() -> bool:
        return any("/a-" in line for pid in pids for line in Path(f"/proc/{pid}/maps").read_text().splitlines())

    assert mapped()
    del handle
    # A future and its call hold each other.
    wait_until(lambda: gc.collect() >= 0 and not shared())
    wait_until(lambda: not mapped())


def test_small_shared_memory_is_left_to_others(start_script: Callable[..., Any], tmp_path: Path) -> None:
    """Docker gives 64 MB: what does not fit goes through Redis, arguments, results and what is put."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        script = start_script(SMALL, env={"NBQUEUE_SHARED_MEMORY": str(small)})
        assert script.end().split() == ["5000000.0", "1000000.0", "500000.0", "True"]
        assert not os.listdir(small)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


SMALL = """
import os
import numpy as np
from nbqueue import TaskQueue
queue = TaskQueue(workers=2)
base = os.environ["NBQUEUE_SHARED_MEMORY"]
print(queue.submit(np.sum, np.ones(5_000_000)).result())
print(queue.submit(np.ones, 1_000_000).result().sum())
handles = [queue.put(np.ones(500_000)) for _ in range(3)]
print(*{future.result() for future in [queue.submit(np.sum, handle) for handle in handles]})
found = os.statvfs(base)
print(found.f_bavail > found.f_blocks // 9)
"""


def test_lost_data_cost_their_own_call_only(queue: Any, shared: Shared, tmp_path: Path) -> None:
    own = shelves.ours()
    assert own is not None
    queue.shutdown()
    lost = queue.submit(np.sum, np.ones(N))
    (name,) = shared()
    os.unlink(f"{own.path}/{name}")
    kept = queue.submit(np.sum, np.ones(N))
    queue.run(1)
    assert kept.result(timeout=20) == N
    assert "in shared memory (2,000,000 bytes" in str(lost.exception(timeout=20))


def test_a_server_that_died_needs_no_data_again(queue: Any, shared: Shared, tmp_path: Path) -> None:
    import signal

    import redis

    go = tmp_path / "go"

    def wait_for_it(x: Any) -> float:
        while not go.exists():
            time.sleep(0.01)
        return float(x.sum())

    futures = [queue.submit(wait_for_it, np.full(N, i)) for i in range(4)]
    with redis.Redis(unix_socket_path=queue._core.address().path) as client:
        os.kill(client.info("server")["process_id"], signal.SIGKILL)
    go.touch()
    assert [future.result(timeout=30) for future in futures] == [float(i * N) for i in range(4)]


KERNEL = """
import os, sys, time
import numpy as np
from nbqueue import TaskQueue
queue = TaskQueue(workers=1)
def inner(x): return float(x.sum())
@queue.task
def outer(x): return queue.submit(inner, x + 1).result(), x
if __name__ == "__main__":
    future = outer(np.zeros(250_000))
    value, array = future.result()
    print("value", value, flush=True)
    if os.fork() == 0:
        sys.exit(0)
    os.wait()
    again = outer(np.zeros(250_000))
    assert again.result()[0] == 250_000.0
    print("again", os.getpid(), flush=True)
    {end}
"""


@pytest.mark.apart
@pytest.mark.parametrize("end", ["pass", "os.kill(os.getpid(), 9)", "time.sleep(60)"])
def test_nothing_is_left_when_the_kernel_has_ended_or_was_killed(
    start_script: Callable[..., Any], wait_until: Callable[..., Any], shared: Shared, end: str
) -> None:
    """A child that it has forked removes nothing of it."""
    script = start_script(KERNEL.format(end=end))
    pids = {process.pid for process in script.family()} if script.line("value") == "250000.0" else set()
    assert pids
    pid = script.line("again")
    if "sleep" in end:
        assert [name for name in os.listdir("/dev/shm") if name.startswith(f"nbqueue-{os.getuid()}-{pid}-")]
        # Together with all that could clean up after it: then the next start does.
        for process in reversed(script.family()):
            process.kill()
        script.process.wait()
        start_script("from nbqueue import TaskQueue\nTaskQueue(workers=1).submit(len, [1]).result()\n").end()

    def left() -> list[str]:
        return [n for n in os.listdir("/dev/shm") if n.startswith("nbqueue-") and int(n.split("-")[2]) in pids]

    wait_until(lambda: not left(), timeout=5 if "sleep" not in end else 10)
