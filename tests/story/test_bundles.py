"""Short calls travel together, and each is a call of its own all the same.

When many calls of one short function are open, several of them leave in one entry, a bundle, and what they give comes
back in one message. Nobody can tell but by the clock: this is what must not be seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

import nbqueue
from nbqueue import TaskCancelled, TaskQueue, TaskTimeout, WorkerDied
from nbqueue.client.clearing import cancel_calls
from nbqueue.client.sending import setting
from nbqueue.client.sending.calls import OpenCall
from nbqueue.client.sending.outgoing import Outgoing
from nbqueue.codec.messages import CallBody
from nbqueue.errors import ResultNotSendable
from nbqueue.stream.broker import Broker
from nbqueue.stream.connect import Wire
from nbqueue.stream.records import MOST_TOGETHER, Call

Together = Callable[..., contextlib.AbstractContextManager[list[int]]]


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many light calls this process has sent in each entry."""
    sizes: list[int] = []
    seal = Outgoing._sealed

    def sealed(link: Outgoing, together: list[OpenCall]) -> Call:
        sizes.append(len(together))
        return seal(link, together)

    monkeypatch.setattr(Outgoing, "_sealed", sealed)
    return sizes


@pytest.fixture
def together(queue: Any, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> Together:
    """``with together(number):`` calls made in it leave at its end, and so many of them in one bundle.

    As if it were known of all functions that they are short. Beside it, calls leave alone.
    """
    together_now = False

    def most_together(_link: Outgoing, _light: CallBody) -> int:
        return MOST_TOGETHER if together_now else 1

    monkeypatch.setattr(Outgoing, "_most_together", most_together)

    @contextlib.contextmanager
    def holding(number: int, of: TaskQueue = queue) -> Iterator[list[int]]:
        nonlocal together_now
        link = of._core.link
        # What was made before has left, and nothing leaves meanwhile.
        assert link.flush(20)
        with link._helm:
            del sizes[:]
            together_now = True
            yield sizes
        with link._lock:
            link._wake()
        assert link.flush(20)
        together_now = False
        assert number in sizes

    return holding


@pytest.fixture
def busy(queue: Any, tmp_path: Path, wait_until: Callable[..., Any]) -> Iterator[Callable[[], None]]:
    """The only worker is busy until this is called: what is sent meanwhile stays queued."""
    started, go = tmp_path / "blocks", tmp_path / "ends"

    def block() -> None:
        started.touch()
        while not go.exists():
            time.sleep(0.005)

    queue.run(1)
    queue.submit(block)
    wait_until(started.exists, timeout=20)
    yield go.touch
    go.touch()


@pytest.fixture
def note(tmp_path: Path) -> Any:
    """``note(i)`` in a task says that `i` runs; ``note.all()`` here, how often each has."""
    path = tmp_path / "ran"

    # It travels as it is, so that no worker has to import this module: that takes long, and what is behind goes back.
    def note(i: int) -> None:
        with path.open("a") as file:
            file.write(f"{i}\n")

    def all_of_them() -> Counter[int]:
        return Counter(map(int, path.read_text().split())) if path.exists() else Counter()

    note.all = all_of_them  # type: ignore[attr-defined]
    return note


def test_calls_of_a_short_function_leave_together_by_themselves(queue: Any, sizes: list[int]) -> None:
    queue.submit(abs, -1).result(timeout=20)
    futures = [queue.submit(abs, -i) for i in range(3_000)]
    assert [future.result(timeout=30) for future in futures] == list(range(3_000))
    assert 1 < max(sizes) <= MOST_TOGETHER
    assert queue.status().done == 3_001


def test_each_has_its_value_its_times_and_its_line_in_the_history(queue: Any, together: Together) -> None:
    before = time.time()
    with together(10):
        futures = [queue.submit(pow, 2, i) for i in range(10)]
    assert [future.result(timeout=20) for future in futures] == [2**i for i in range(10)]
    assert {future.attempts for future in futures} == {1}
    assert len({future.worker for future in futures}) == 1
    assert all(0 < future.seconds < 20 for future in futures)
    told = queue.history()
    assert [task.arguments for task in told] == [f"2, {i}" for i in range(10)]
    assert {(task.name, task.outcome, task.attempts, task.worker) for task in told} == {
        ("pow", "done", 1, futures[0].worker)
    }
    for task, future in zip(told, futures, strict=True):
        assert task.started is not None
        assert before <= task.queued <= task.started < task.finished <= time.time()
        assert task.seconds == future.seconds
    # One after the other.
    assert all(one.finished <= two.started for one, two in itertools.pairwise(told))


def test_an_exception_is_its_own_calls(queue: Any, together: Together) -> None:
    def invert(x: int) -> float:
        return 1 / x

    with together(7):
        futures = [queue.submit(invert, x) for x in (1, 2, 0, 4, 0, 5, 8)]
    assert [future.result(timeout=20) for future in futures if future not in (futures[2], futures[4])] == [
        *(1, 0.5, 0.25, 0.2, 0.125)
    ]
    for failed in (futures[2], futures[4]):
        error = failed.exception(timeout=20)
        assert isinstance(error, ZeroDivisionError)
        assert "x=0" in error.__notes__[0]
    assert [(task.arguments, task.outcome) for task in queue.history(failed=True)] == [("0", "failed")] * 2
    assert queue.status().failed == 2


def test_what_each_prints_and_displays_is_its_own(
    queue: Any, together: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a notebook: elsewhere, what is displayed is printed.
    monkeypatch.setattr(setting, "shown_here", lambda: True)

    def say(i: int) -> int:
        if i % 3 == 1:
            print("said", i)
            os.write(2, b"and %d\n" % i)
        if i % 3 == 2:
            display(i)  # type: ignore[name-defined]  # noqa: F821
        return i

    with together(9):
        futures = [queue.submit(say, i) for i in range(9)]
    assert [future.result(timeout=20) for future in futures] == list(range(9))
    assert [future.stdout for future in futures] == [f"said {i}\n" if i % 3 == 1 else "" for i in range(9)]
    assert [future.stderr for future in futures] == [f"and {i}\n" if i % 3 == 1 else "" for i in range(9)]
    shown = [[each["text/plain"] for each in future.displays] for future in futures]
    assert shown == [[str(i)] if i % 3 == 2 else [] for i in range(9)]


def test_one_that_runs_for_long_is_seen_to_run_and_what_it_prints_comes_meanwhile(
    queue: Any, together: Together, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    go = tmp_path / "go"

    def work(i: int) -> int:
        print("before", i)
        while i == 1 and not go.exists():
            time.sleep(0.005)
        print("after", i)
        return i

    queue.run(1)
    with together(3):
        futures = [queue.submit(work, i) for i in range(3)]
    wait_until(futures[1].running, timeout=20)
    wait_until(lambda: futures[1].stdout == "before 1\n", timeout=20)
    assert futures[0].result(timeout=20) == 0
    (task,) = [worker.task for worker in queue.status().workers if worker.task]
    assert (task.name, task.n) == ("work", str(futures[1]._call.call.n))
    assert not futures[2].running()
    go.touch()
    assert [future.result(timeout=20) for future in futures] == [0, 1, 2]
    assert [future.stdout for future in futures] == [f"before {i}\nafter {i}\n" for i in range(3)]


def test_values_of_any_kind_and_length_come_back(queue: Any, together: Together) -> None:
    made = [
        *("None", "True", "2**70", "1.5", "2j", "'ä'", "b'0'", "'x' * 1_000", "'y' * 1_001", "b'z' * 3_000_000"),
        *("[1, [2]]", "{'a': (1, 2)}", "{3}", "range(3)", "len", "7"),
    ]
    with together(len(made)):
        futures = [queue.submit(eval, text) for text in made]
    assert [future.result(timeout=20) for future in futures] == [eval(text) for text in made]
    assert queue.status().done == len(made)


def test_what_cannot_be_sent_back_fails_alone(queue: Any, together: Together) -> None:
    def lock(i: int) -> Any:
        return threading.Lock() if i == 1 else i

    with together(3):
        futures = [queue.submit(lock, i) for i in range(3)]
    assert isinstance(futures[1].exception(timeout=20), ResultNotSendable)
    assert [futures[i].result(timeout=20) for i in (0, 2)] == [0, 2]


def test_one_that_is_cancelled_while_it_is_queued_never_starts(
    queue: Any, together: Together, busy: Callable[[], None], note: Any, wait_until: Callable[..., Any]
) -> None:
    with together(6):
        futures = [queue.submit(note, i) for i in range(6)]
    wait_until(lambda: queue.status().queued == 6, timeout=20)
    # The first, one in between and the last.
    for i in (0, 3, 5):
        assert futures[i].cancel()
    wait_until(lambda: queue.status().queued == 3, timeout=20)
    busy()
    for i in (1, 2, 4):
        assert futures[i].result(timeout=20) is None
    assert note.all() == Counter([1, 2, 4])
    for i in (0, 3, 5):
        with pytest.raises(TaskCancelled):
            futures[i].result()
    assert queue.status().cancelled == 3


def test_of_a_bundle_that_is_cancelled_altogether_nothing_is_left(
    queue: Any, together: Together, busy: Callable[[], None], note: Any, wait_until: Callable[..., Any]
) -> None:
    with together(12):
        futures = [queue.submit(note, i) for i in range(12)]
    wait_until(lambda: queue.status().queued == 12, timeout=20)
    for future in futures:
        future.cancel()
    wait_until(lambda: queue.status().queued == 0, timeout=20)
    busy()
    assert queue.submit(abs, -3).result(timeout=20) == 3
    assert not note.all()
    status = queue.status()
    assert (status.cancelled, status.refused) == (12, 0)


def test_one_that_is_cancelled_while_it_runs_is_stopped_and_the_others_run_once(
    queue: Any, together: Together, note: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    stopped = tmp_path / "stopped"

    def work(i: int) -> int:
        try:
            note(i)
            time.sleep(60 if i == 2 else 0)
        except KeyboardInterrupt:
            stopped.touch()
            raise
        return i

    queue.run(1)
    with together(6):
        futures = [queue.submit(work, i) for i in range(6)]
    wait_until(lambda: note.all()[2], timeout=20)
    assert futures[2].cancel()
    assert [futures[i].result(timeout=20) for i in (0, 1, 3, 4, 5)] == [0, 1, 3, 4, 5]
    wait_until(stopped.exists, timeout=20)
    assert note.all() == Counter(range(6))
    assert [futures[i].attempts for i in (0, 1, 3, 4, 5)] == [1] * 5
    assert queue.status().cancelled == 1


@pytest.mark.parametrize("holds", [False, True], ids=["waits", "holds the interpreter"])
def test_one_that_waits_for_another_of_its_bundle_does_not_wait_for_ever(
    queue: Any, together: Together, note: Any, tmp_path: Path, holds: bool
) -> None:
    """Those behind it go to another worker: given back by its own, or by the supervisor where that cannot."""
    last = tmp_path / "last"

    def work(i: int) -> tuple[int, int]:
        note(i)
        if i == 2:
            if holds:
                # The time of a few looks of the supervisor, in which nothing else of this process runs.
                wait = ctypes.PyDLL(None).usleep
                while not last.exists():
                    wait(900_000)
            while not last.exists():
                time.sleep(0.005)
        if i == 7:
            last.touch()
        return i, os.getpid()

    queue.run(2)
    with together(8):
        futures = [queue.submit(work, i) for i in range(8)]
    results = [future.result(timeout=30) for future in futures]
    assert [i for i, _ in results] == list(range(8))
    pids = [pid for _, pid in results]
    assert len(set(pids[:3])) == 1
    assert pids[2] not in pids[3:]
    assert note.all() == Counter(range(8))
    assert {future.attempts for future in futures} == {1}


@pytest.mark.parametrize("death", ["leaves", "crashes"])
def test_the_death_of_a_worker_is_charged_to_the_call_that_ran_and_to_no_other(
    queue: Any, together: Together, note: Any, death: str
) -> None:
    def work(i: int) -> int:
        note(i)
        if i == 3 and death == "leaves":
            os._exit(3)
        if i == 3:
            ctypes.string_at(8)
        return i

    queue.run(1)
    with together(8):
        futures = [queue.submit(work, i) for i in range(8)]
    error = futures[3].exception(timeout=30)
    assert isinstance(error, WorkerDied)
    assert error.attempts == futures[3].attempts == 2
    assert [future.result(timeout=20) for future in futures if future is not futures[3]] == [0, 1, 2, 4, 5, 6, 7]
    assert {future.attempts for future in futures if future is not futures[3]} == {1}
    # What had not come back runs again; what came behind ran once.
    counted = note.all()
    assert counted[3] == 2
    assert [counted[i] for i in range(4, 8)] == [1] * 4
    assert all(counted[i] in (1, 2) for i in range(3))
    assert queue.status().failed == 1


def test_a_time_limit_counts_for_each_call_by_itself(queue: Any, together: Together, note: Any) -> None:
    @queue.task(timeout=1)
    def work(i: int) -> int:
        note(i)
        time.sleep(60 if i == 2 else 0.04)
        return i

    queue.run(1)
    with together(30):
        futures = [work(i) for i in range(30)]
    # All together they take longer.
    assert isinstance(futures[2].exception(timeout=20), TaskTimeout)
    assert [future.result(timeout=20) for future in futures if future is not futures[2]] == [0, 1, *range(3, 30)]
    assert note.all() == Counter(range(30))


def test_one_that_is_retried_goes_on_alone(queue: Any, together: Together, note: Any) -> None:
    @queue.task(retries=2)
    def work(i: int) -> int:
        note(i)
        if i == 1 and note.all()[1] < 3:
            raise OSError("not yet")
        if i == 4:
            raise LookupError("never")
        return i

    with together(6):
        futures = [work(i) for i in range(6)]
    assert [futures[i].result(timeout=20) for i in (0, 1, 2, 3, 5)] == [0, 1, 2, 3, 5]
    assert isinstance(futures[4].exception(timeout=20), LookupError)
    assert [future.attempts for future in futures] == [1, 3, 1, 1, 3, 1]
    assert note.all() == Counter([*range(6), 1, 1, 4, 4])
    status = queue.status()
    assert (status.retried, status.done, status.failed) == (4, 5, 1)


def test_what_one_changes_around_it_is_not_seen_by_the_next(queue: Any, together: Together, tmp_path: Path) -> None:
    def look() -> tuple[Any, ...]:
        return (
            *(os.getcwd(), dict(os.environ), list(sys.path), sys.getrecursionlimit()),
            *(type(sys.stdout).__name__, sys.stdout.closed, str(signal.getsignal(signal.SIGUSR1))),
            *(str(signal.getsignal(signal.SIGTERM)), signal.getitimer(signal.ITIMER_REAL)),
        )

    def mess(i: int) -> Any:
        if i % 2 == 0:
            return look()
        if i == 1:
            os.chdir(tmp_path)
        elif i == 3:
            os.environ["LEFT_BEHIND"] = os.environ.pop("PATH")
            sys.path.insert(0, "/left/behind")
        elif i == 5:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            sys.setrecursionlimit(5_000)
        elif i == 7:
            signal.signal(signal.SIGUSR1, lambda *_: None)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.setitimer(signal.ITIMER_REAL, 3600)
        return None

    queue.run(1)
    with together(9):
        futures = [queue.submit(mess, i) for i in range(9)]
    first, *others = [future.result(timeout=20) for future in futures][::2]
    assert others == [first] * 4
    assert {future.worker for future in futures} == {futures[0].worker}


def test_one_that_waits_for_a_call_of_its_own_does_not_stop_the_only_worker(
    queue: Any, together: Together, note: Any
) -> None:
    @queue.task
    def inner(x: int) -> int:
        return x * 10

    @queue.task
    def outer(i: int) -> int:
        note(i)
        return inner.submit(i).result() if i in (1, 3) else i

    queue.run(1)
    with together(5):
        futures = [outer(i) for i in range(5)]
    assert [future.result(timeout=30) for future in futures] == [0, 10, 2, 30, 4]
    assert note.all() == Counter(range(5))


def test_a_worker_that_runs_coroutines_gives_back_a_bundle_that_it_has_fetched_beside_them(
    queue: Any, together: Together, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    """It took its calls for forged ones: none of them ran."""
    started, go = tmp_path / "started", tmp_path / "go"

    @queue.task
    async def wait() -> str:
        started.touch()
        while not go.exists():
            await asyncio.sleep(0.005)
        return "over"

    queue.run(1)
    waiting = wait()
    wait_until(started.exists, timeout=20)
    with together(5):
        futures = [queue.submit(abs, -i) for i in range(5)]
    with server_of(queue) as client:
        wait_until(lambda: client.xlen(queue._core.keys.first) == 5, timeout=20)
    go.touch()
    assert waiting.result(timeout=20) == "over"
    assert [future.result(timeout=20) for future in futures] == list(range(5))
    assert {future.attempts for future in futures} == {1}
    assert queue.status().refused == 0


def test_the_value_of_one_goes_to_calls_that_need_it_made_before_and_after_it_has_ended(
    queue: Any, together: Together, busy: Callable[[], None], wait_until: Callable[..., Any]
) -> None:
    def add(x: int, y: int) -> int:
        return x + y

    with together(6):
        futures = [queue.submit(pow, 10, i) for i in range(6)]
    sums = [queue.submit(add, one, two) for one, two in itertools.pairwise(futures)]
    total = queue.submit(sum, list(futures))
    wait_until(lambda: queue.status().delayed == 6, timeout=20)
    busy()
    assert [each.result(timeout=20) for each in sums] == [11, 110, 1_100, 11_000, 110_000]
    assert total.result(timeout=20) == 111_111
    assert queue.submit(add, futures[0], futures[5]).result(timeout=20) == 100_001


def test_what_needs_one_that_fails_or_is_cancelled_ends_with_it(
    queue: Any, together: Together, busy: Callable[[], None], wait_until: Callable[..., Any]
) -> None:
    def invert(x: int) -> float:
        return 1 / x

    with together(4):
        futures = [queue.submit(invert, x) for x in (1, 0, 2, 4)]
    needing = [queue.submit(abs, future) for future in futures]
    wait_until(lambda: queue.status().delayed == 4, timeout=20)
    futures[2].cancel()
    busy()
    assert [needing[i].result(timeout=20) for i in (0, 3)] == [1, 0.25]
    assert isinstance(needing[1].exception(timeout=20), nbqueue.InputFailed)
    with pytest.raises(TaskCancelled):
        needing[2].result(timeout=20)


def test_one_that_failed_can_be_replayed(queue: Any, together: Together) -> None:
    here = os.getpid()

    def only_here(x: int, *, to: int) -> int:
        if x == 2 and os.getpid() != here:
            raise OSError("elsewhere")
        return x + to

    with together(4):
        futures = [queue.submit(only_here, x, to=100) for x in range(4)]
    assert isinstance(futures[2].exception(timeout=20), OSError)
    assert futures[2].replay() == 102
    with pytest.raises(nbqueue.NbqueueError, match="cannot be replayed"):
        (futures[3].result(timeout=20), futures[3].replay())


def test_a_worker_is_replaced_after_so_many_calls_in_the_midst_of_a_bundle(
    new_key: str, sizes: list[int], together: Together
) -> None:
    with TaskQueue(stream_key=new_key, workers=1, max_tasks_per_worker=3) as queue:

        def who(_: int) -> int:
            return os.getpid()

        with together(10, queue):
            futures = [queue.submit(who, i) for i in range(10)]
        pids = [future.result(timeout=60) for future in futures]
        assert Counter(Counter(pids).values()) == {3: 3, 1: 1}
        assert {future.attempts for future in futures} == {1}
        assert queue.status().failed == 0


def test_each_runs_the_function_that_it_was_made_with(
    queue: Any, together: Together, cell: Callable[..., dict[str, Any]]
) -> None:
    """A cell that is run again defines the function anew, between two calls that leave together."""
    futures = []
    with together(2) as sizes:
        for version in range(4):
            task = cell(f"@queue.task\ndef work(x): return {version}, x", queue=queue)["work"]
            futures += [task(i) for i in range(2)]
    assert sizes == [2] * 4
    assert [future.result(timeout=20) for future in futures] == [(v, i) for v in range(4) for i in range(2)]


def test_surroundings_are_those_of_each_call(
    queue: Any, together: Together, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = os.getcwd()
    with together(2) as sizes:
        futures = [queue.submit(os.getcwd) for _ in range(2)]
        monkeypatch.chdir(tmp_path)
        futures += [queue.submit(os.getcwd) for _ in range(3)]
        monkeypatch.chdir(here)
        futures.append(queue.submit(os.getcwd))
    assert sizes == [2, 3, 1]
    assert [future.result(timeout=20) for future in futures] == [here] * 2 + [str(tmp_path)] * 3 + [here]


def test_calls_that_are_treated_differently_do_not_travel_together(
    queue: Any, together: Together, busy: Callable[[], None]
) -> None:
    @queue.task
    def work(x: int) -> int:
        return x

    variants = [work, work.options(timeout=60), work.options(retries=1), work.options(priority="high")]
    with together(3) as sizes:
        futures = [task(i) for task in variants for i in range(3)]
        # In turn: each leaves alone, and in order.
        futures += [task(i) for i in range(3) for task in variants]
    assert sizes == [3] * 4 + [1] * 12
    busy()
    assert [future.result(timeout=20) for future in futures[:12]] == [0, 1, 2] * 4
    assert [future.result(timeout=20) for future in futures[12:]] == [0] * 4 + [1] * 4 + [2] * 4


def test_what_is_large_put_seeded_or_needs_others_travels_alone(queue: Any, together: Together) -> None:
    handle, source = queue.put([1, 2]), queue.submit(abs, -3)

    @queue.task(rng="rng")
    def seeded(x: int, *, rng: Any = None) -> int:
        return x

    with together(2) as sizes:
        futures = [queue.submit(len, "x" * n) for n in (1, 2, 5_000, 6_000)]
        futures += [queue.submit(len, handle), queue.submit(len, [source]), seeded(9), seeded(8)]
    # Sent once more where the one that is needed has ended meanwhile.
    assert set(sizes) == {2}, "the first two"
    assert [future.result(timeout=20) for future in futures] == [1, 2, 5_000, 6_000, 2, 1, 9, 8]


def test_calls_that_are_queued_are_counted_and_not_their_bundles(
    queue: Any, together: Together, busy: Callable[[], None], wait_until: Callable[..., Any]
) -> None:
    with together(20):
        futures = [queue.submit(abs, -i) for i in range(20)]
    wait_until(lambda: queue.status().queued == 20, timeout=20)
    assert "20 queued" in repr(queue.status())
    busy()
    assert [future.result(timeout=20) for future in futures] == list(range(20))
    wait_until(lambda: (queue.status().queued, queue.status().done) == (0, 21), timeout=20)


def server_of(queue: Any) -> redis.Redis:
    return redis.Redis(unix_socket_path=queue._core.address().path)


@pytest.fixture
def broker(queue: Any) -> Iterator[Broker]:
    broker = Broker(Wire(queue._core.address(), timeout_s=10.0), queue._core.keys)
    broker.wire.connect()
    yield broker
    broker.wire.close()


def test_nbqueue_cancel_ends_all_calls_of_a_bundle_and_tells_their_owner(
    queue: Any, together: Together, busy: Callable[[], None], broker: Broker, note: Any
) -> None:
    with together(5):
        futures = [queue.submit(note, i) for i in range(5)]
    assert cancel_calls(broker, queue._core.link._seal, queued_only=True) == 5
    for future in futures:
        with pytest.raises(TaskCancelled):
            future.result(timeout=20)
    busy()
    assert queue.submit(abs, -3).result(timeout=20) == 3
    assert not note.all()


def test_nbqueue_cancel_of_what_is_queued_leaves_alone_the_call_of_a_bundle_that_runs(
    queue: Any, together: Together, broker: Broker, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    """A worker had the bundle, but not that it holds this call was seen: it was ended with those that were queued."""
    go = tmp_path / "go"

    def work(i: int) -> int:
        while not go.exists():
            time.sleep(0.005)
        return i

    queue.run(1)
    with together(4):
        futures = [queue.submit(work, i) for i in range(4)]
    # The others have been given back, to be run first.
    with server_of(queue) as client:
        wait_until(lambda: client.xlen(queue._core.keys.first) == 3, timeout=20)
    assert cancel_calls(broker, queue._core.link._seal, queued_only=True) == 3
    for future in futures[1:]:
        with pytest.raises(TaskCancelled):
            future.result(timeout=20)
    go.touch()
    assert futures[0].result(timeout=20) == 0


def test_an_executor_that_is_shut_down_cancels_those_that_have_not_begun(
    queue: Any, together: Together, note: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    go = tmp_path / "go"

    def work(i: int) -> int:
        note(i)
        while i == 2 and not go.exists():
            time.sleep(0.005)
        return i

    queue.run(1)
    executor = queue.executor()
    with together(7):
        futures = [executor.submit(work, i) for i in range(7)]
    wait_until(lambda: note.all()[2] and futures[1].done(), timeout=20)
    with server_of(queue) as client:
        # Given back: what a worker holds still runs.
        wait_until(lambda: client.xlen(queue._core.keys.first) == 4, timeout=20)
    executor.submit(work, 7)
    executor.shutdown(wait=False, cancel_futures=True)
    assert [future.cancelled() for future in futures] == [False] * 3 + [True] * 4
    go.touch()
    executor.shutdown()
    assert [future.result() for future in futures[:3]] == [0, 1, 2]
    assert note.all() == Counter(range(3))


def test_whoever_waits_in_threads_and_callbacks_hears_of_each_once(queue: Any, together: Together) -> None:
    heard: list[int] = []
    with together(20):
        futures = [queue.submit(abs, -i) for i in range(20)]
        for future in futures:
            future.add_done_callback(lambda future: heard.append(future.result()))
    assert sorted(future.result() for future in nbqueue.as_completed(futures, timeout=20)) == list(range(20))
    assert sorted(heard) == list(range(20))


# Servers


def test_a_bundle_that_others_put_on_the_stream_again_does_not_run_again(
    redis_server: Any, new_key: str, together: Together, note: Any, wait_until: Callable[..., Any]
) -> None:
    queue = TaskQueue(redis_server.url, new_key)
    keys = queue._core.keys
    with redis_server.client() as client:
        with together(5, queue):
            futures = [queue.submit(note, i) for i in range(5)]
        ((_, fields),) = client.xrange(keys.normal)
        parts = [fields, {**fields, b"n": fields[b"n"].split(b",")[0]}, {**fields, b"i": b"1"}]
        for stream in keys.streams:
            for part in parts:
                client.xadd(stream, part)
        queue.run(2)
        for future in futures:
            assert future.result(timeout=20) is None
        for stream in keys.streams:
            for part in parts:
                client.xadd(stream, part)
        wait_until(lambda: queue.status().refused == 18, timeout=20)
    assert note.all() == Counter(range(5))
    queue.shutdown()


def test_what_a_host_that_was_taken_for_dead_reports_in_the_end_counts_once(
    redis_server: Any,
    new_key: str,
    together: Together,
    start_host: Callable[..., Any],
    note: Any,
    tmp_path: Path,
    wait_until: Callable[..., Any],
) -> None:
    """It has a bundle, and is frozen while the first call of it runs: another host runs all of them."""
    queue, go = TaskQueue(redis_server.url, new_key), tmp_path / "go"

    def work(i: int) -> tuple[int, str]:
        where = os.environ["HOST"]
        note(i)
        while where == "one" and not go.exists():
            time.sleep(0.005)
        return i, where

    one = start_host(redis_server.url, new_key, workers=1, lease_s=1.0, env={"HOST": "one"})
    wait_until(lambda: len(queue.status().workers) == 1, timeout=30)
    with together(6, queue):
        futures = [queue.submit(work, i) for i in range(6)]
    wait_until(lambda: note.all()[0], timeout=30)
    family = one.family()
    for process in family:
        process.suspend()
    start_host(redis_server.url, new_key, workers=1, lease_s=1.0, env={"HOST": "two"})
    results = [future.result(timeout=60) for future in futures]
    assert [i for i, _ in results] == list(range(6))
    assert {where for _, where in results} == {"two"}
    done = queue.status().done
    go.touch()
    for process in family:
        # The first that goes on may end others, whose lease is over.
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()
    # Both are there again, and what the first has to say is no news.
    wait_until(lambda: len(queue.status().workers) == 2, timeout=60)
    assert [queue.submit(abs, -i).result(timeout=20) for i in range(5)] == list(range(5))
    assert queue.status().done == done + 5
    assert [future.result() for future in futures] == results
    assert len(queue.history(100)) == 11


@pytest.mark.parametrize("what", ["killed", "emptied", "its scripts flushed", "its connections cut"])
def test_whatever_happens_to_the_server_each_call_ends_with_its_value(
    queue: Any, together: Together, wait_until: Callable[..., Any], what: str
) -> None:
    def slow(i: int) -> int:
        time.sleep(0.002)
        return i * i

    with together(MOST_TOGETHER):
        futures = [queue.submit(slow, i) for i in range(640)]
    wait_until(lambda: sum(future.done() for future in futures) > 50, timeout=30)
    with server_of(queue) as client:
        if what == "killed":
            os.kill(client.info("server")["process_id"], signal.SIGKILL)
        elif what == "emptied":
            client.flushall()
        elif what == "its scripts flushed":
            client.script_flush()
        else:
            client.client_kill_filter(_type="normal", skipme=True)
    assert [future.result(timeout=60) for future in futures] == [i * i for i in range(640)]
    assert {future.attempts for future in futures} == {1}


def test_what_was_sent_to_a_server_that_died_is_sent_again(
    queue: Any, together: Together, busy: Callable[[], None], wait_until: Callable[..., Any]
) -> None:
    with together(9):
        futures = [queue.submit(abs, -i) for i in range(9)]
    wait_until(lambda: queue.status().queued == 9, timeout=20)
    with server_of(queue) as client:
        os.kill(client.info("server")["process_id"], signal.SIGKILL)
    busy()
    assert [future.result(timeout=60) for future in futures] == list(range(9))
    assert not queue._core.link.open_calls
