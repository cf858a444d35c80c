"""Async functions as tasks: their calls run beside each other in one worker, and stay each other's strangers."""

from __future__ import annotations

import asyncio
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nbqueue
from nbqueue import RemoteError, TaskTimeout
from nbqueue.codec.seeds import generator
from nbqueue.errors import BadCall, BadOption


async def opened(gate: Path) -> None:
    while not gate.exists():
        await asyncio.sleep(0.005)


def notes(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def note(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(f"{text}\n")


@pytest.fixture
def alone(queue: Any) -> Any:
    """The same queue with one worker."""
    queue.run(1)
    return queue


def test_a_hundred_calls_wait_together_in_two_workers(queue: Any, tmp_path: Path) -> None:
    @queue.task(concurrency=100)
    async def meet(i: int) -> int:
        (tmp_path / str(i)).touch()
        # Ends only where all of them have begun.
        while len(os.listdir(tmp_path)) < 100:
            await asyncio.sleep(0.02)
        return os.getpid()

    pids = set(meet.map(range(100)).results(timeout=60))
    assert len(pids) <= 2
    assert os.getpid() not in pids


def test_no_more_run_at_a_time_than_the_task_allows(alone: Any, tmp_path: Path, wait_until: Callable[..., Any]) -> None:
    gate, running = tmp_path / "gate", []  # one list in the worker, as captured values are

    async def work(i: int) -> int:
        running.append(i)
        most = len(running)
        await opened(gate)
        running.remove(i)
        return most

    few = alone.map(work, range(12), concurrency=3)
    wait_until(lambda: len(alone.status().running) == 3)
    assert "and 2 more" in repr(alone.status())
    gate.touch()
    assert max(few.results(timeout=30)) == 3
    gate.unlink()
    many = alone.task(work).map(range(40))
    wait_until(lambda: len(alone.status().running) == 16)
    gate.touch()
    assert max(many.results(timeout=30)) == 16


def test_what_calls_print_in_turns_arrives_at_their_own_futures(alone: Any) -> None:
    said: list[str] = []

    @alone.task
    async def speak(name: str, other: str) -> str:
        for i in range(3):
            print(name, i)
            await asyncio.to_thread(print, name, "in a thread", file=sys.stderr)
            said.append(name)
            while said.count(other) <= i:
                await asyncio.sleep(0.001)
        return nbqueue.context.current().name  # type: ignore[union-attr]

    one, other = speak.options(name="one")("a", "b"), speak.options(name="other")("b", "a")
    assert (one.result(timeout=30), other.result(timeout=30)) == ("one", "other")
    assert (one.stdout, other.stdout) == ("a 0\na 1\na 2\n", "b 0\nb 1\nb 2\n")
    assert (one.stderr, other.stderr) == ("a in a thread\n" * 3, "b in a thread\n" * 3)


def test_news_of_a_call_that_runs_are_its_own(alone: Any, tmp_path: Path, wait_until: Callable[..., Any]) -> None:
    gate = tmp_path / "gate"

    @alone.task
    async def train(i: int) -> int:
        for step in nbqueue.track(range(10 * (i + 1)), text=f"item {i}"):
            if step == i:
                print("at", i, flush=True)
                await opened(gate)
        return i

    batch = train.map(range(2))
    wait_until(lambda: all("at" in batch.future(i).stdout for i in range(2)))
    wait_until(lambda: len(batch.tally.snapshot().lanes) == 2)
    lanes = batch.tally.snapshot().lanes
    assert sorted((lane.text, lane.done, lane.total) for lane in lanes) == [("item 0", 0, 10), ("item 1", 1, 20)]
    gate.touch()
    assert batch.results(timeout=30) == [0, 1]
    assert [batch.future(i).stdout for i in range(2)] == ["at 0\n", "at 1\n"]


def test_the_time_limit_of_one_leaves_the_others_running(
    alone: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    gate, ended = tmp_path / "gate", tmp_path / "ended"

    @alone.task
    async def wait(name: str) -> int:
        try:
            await opened(gate)
        finally:
            note(ended, name)
        return os.getpid()

    others = [wait("a"), wait("b")]
    wait_until(lambda: len(alone.status().running) == 2)
    late = wait.options(timeout=0.2)("late")
    with pytest.raises(TaskTimeout, match=r"timeout of 0\.2 s") as caught:
        late.result(timeout=30)
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert "wait" in names, "where it was then"
    assert notes(ended) == ["late"]
    gate.touch()
    assert len({future.result(timeout=30) for future in others}) == 1
    assert [future.attempts for future in others] == [1, 1]
    assert sorted(notes(ended)) == ["a", "b", "late"]


def test_a_cancelled_call_leaves_the_others_running(
    alone: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    gate, begun, ended = tmp_path / "gate", tmp_path / "begun", tmp_path / "ended"

    @alone.task
    async def wait(i: int) -> int:
        note(begun, str(i))
        try:
            await opened(gate)
        except asyncio.CancelledError:
            note(ended, str(i))
            raise
        return os.getpid()

    batch = wait.map(range(5))
    wait_until(lambda: len(notes(begun)) == 5)
    for i in (1, 3):
        assert batch.future(i).cancel()
    wait_until(lambda: sorted(notes(ended)) == ["1", "3"])
    gate.touch()
    assert len({batch[i] for i in (0, 2, 4)}) == 1
    assert len(notes(begun)) == 5, "none ran again"


def test_whom_another_one_keeps_from_hearing_of_his_time_limit_is_not_to_blame(alone: Any) -> None:
    """All of them are late then. Once each of them was told that its time was up, one more for each kill."""

    @alone.task(timeout=0.5)
    async def ask(i: int) -> int:
        if i == 7:
            time.sleep(60)
        await asyncio.sleep(0.01)
        return i

    outcomes = ask.map(range(20)).results(timeout=60, return_exceptions=True)
    assert [i for i, outcome in enumerate(outcomes) if outcome != i] == [7]
    assert isinstance(outcomes[7], TaskTimeout)


def test_one_that_holds_the_loop_is_killed_and_the_others_run_again_uncharged(
    alone: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    gate, begun = tmp_path / "gate", tmp_path / "begun"

    @alone.task
    async def wait(name: str) -> str:
        note(begun, name)
        await opened(gate)
        return name

    @alone.task(timeout=0.3)
    async def hold() -> None:
        time.sleep(60)

    others = [wait("a"), wait("b")]
    wait_until(lambda: len(notes(begun)) == 2)
    with pytest.raises(TaskTimeout, match="did not stop when interrupted"):
        hold().result(timeout=30)
    wait_until(lambda: len(notes(begun)) == 4)
    gate.touch()
    assert [future.result(timeout=30) for future in others] == ["a", "b"]
    assert [future.attempts for future in others] == [1, 1]


def test_an_exception_arrives_with_the_users_frames_and_is_retried(alone: Any, tmp_path: Path) -> None:
    tries = tmp_path / "tries"

    async def inner(i: int) -> None:
        await asyncio.sleep(0)
        raise ValueError(f"no {i}")

    async def outer(i: int) -> int:
        note(tries, str(i))
        if i == 8 or len(notes(tries)) < 3:
            await inner(i)
        return i

    again = alone.task(outer, retries=2)(7)
    assert again.result(timeout=30) == 7
    assert again.attempts == 3
    failed = alone.submit(outer, 8)
    with pytest.raises(ValueError, match="no 8") as caught:
        failed.result(timeout=30)
    frames = [(Path(f.filename).name, f.name) for f in traceback.extract_tb(caught.value.__traceback__)]
    here = Path(__file__).name
    assert [name for file, name in frames if file == here][-2:] == ["outer", "inner"]
    assert {file for file, _ in frames} == {here}
    with pytest.raises(ValueError, match="no 8"):
        failed.replay()
    # Also where a loop runs, as in a notebook.
    with pytest.raises(ValueError, match="no 8"):
        asyncio.run(_replayed(failed))


async def _replayed(future: Any) -> Any:
    return future.replay()


def test_calls_of_its_own_may_be_awaited_or_run_in_place(alone: Any) -> None:
    @alone.task
    def plain(x: int) -> int:
        return x + 1

    @alone.task
    async def helper(x: int) -> int:
        await asyncio.sleep(0)
        return x * 2

    @alone.task
    async def outer(x: int) -> tuple[int, ...]:
        inside = await helper(x)
        sent = await helper.submit(x)
        both = await asyncio.gather(plain.submit(x), helper.submit(x + 1))
        # Holds the whole loop.
        blocked = helper.submit(x + 2).result()
        return inside, sent, *both, blocked

    assert outer.map(range(3)).results(timeout=60) == [(2 * x, 2 * x, x + 1, 2 * x + 2, 2 * x + 4) for x in range(3)]
    assert asyncio.run(helper.local(4)) == 8  # type: ignore[arg-type]


def test_they_are_given_what_other_calls_return(alone: Any) -> None:
    @alone.task
    async def double(x: int) -> int:
        await asyncio.sleep(0)
        return 2 * x

    @alone.task
    async def add(*numbers: int) -> int:
        return sum(numbers)

    assert add(double(1), alone.submit(abs, -3), double(double(4))).result(timeout=30) == 2 + 3 + 16


def test_plain_calls_have_their_turn(alone: Any, tmp_path: Path, wait_until: Callable[..., Any]) -> None:
    gate = tmp_path / "gate"

    @alone.task
    async def wait(i: int) -> int:
        await opened(gate)
        return i

    first = wait(1)
    wait_until(lambda: len(alone.status().running) == 1)
    plain = [alone.submit(abs, -i) for i in range(3)]
    later = wait.map(range(3))
    gate.touch()
    assert [future.result(timeout=30) for future in plain] == [0, 1, 2]
    assert (first.result(timeout=30), later.results(timeout=30)) == (1, [0, 1, 2])


def test_what_a_call_leaves_running_ends_with_it(alone: Any, tmp_path: Path, wait_until: Callable[..., Any]) -> None:
    ended = tmp_path / "ended"

    @alone.task
    async def forget() -> int:
        async def linger() -> None:
            try:
                await asyncio.sleep(600)
            finally:
                note(ended, "linger")

        task = asyncio.create_task(linger())
        await asyncio.sleep(0)
        assert not task.done()
        return 1

    assert forget().result(timeout=30) == 1
    assert notes(ended) == ["linger"]


def test_an_exit_inside_a_call_ends_neither_loop_nor_worker(alone: Any) -> None:
    async def leave() -> None:
        sys.exit(3)

    async def leave_in_a_task() -> None:
        await asyncio.create_task(leave())

    async def pid() -> int:
        return os.getpid()

    before = alone.submit(pid).result(timeout=30)
    for fn in (leave, leave_in_a_task):
        with pytest.raises(RemoteError, match="exit"):
            alone.submit(fn).result(timeout=30)
    assert alone.submit(pid).result(timeout=30) == before


def test_random_numbers_are_those_of_the_place(alone: Any) -> None:
    @alone.task(rng="rng", seed=7)
    async def draw(i: int, rng: Any) -> float:
        await asyncio.sleep(0)
        return float(rng.random())

    assert draw.map(range(4)).results(timeout=30) == [float(generator(7, i).random()) for i in range(4)]


def test_the_executor_takes_them(alone: Any) -> None:
    async def double(x: int) -> int:
        return 2 * x

    with alone.executor() as executor:
        assert executor.submit(double, 4).result(timeout=30) == 8
        assert list(executor.map(double, range(5), chunksize=3)) == [0, 2, 4, 6, 8]


def test_joblib_says_what_takes_them(alone: Any) -> None:
    joblib = pytest.importorskip("joblib")
    import nbqueue.interop.joblib  # noqa: F401

    async def work(x: int) -> int:
        return x

    with (
        joblib.parallel_config(backend="nbqueue", n_jobs=2, queue=alone),
        pytest.raises(BadCall, match=r"`work` is an async function.*queue\.map"),
    ):
        joblib.Parallel()(joblib.delayed(work)(x) for x in range(2))


def test_wrong_options_are_refused_where_they_are_written(queue: Any) -> None:
    async def work() -> None: ...

    async def numbers() -> Any:
        yield 1

    def plain() -> None: ...

    with pytest.raises(BadOption, match="`plain` is a plain function"):
        queue.task(plain, concurrency=2)
    with pytest.raises(BadOption, match="`plain` is a plain function"):
        queue.task(plain).options(concurrency=2)
    with pytest.raises(BadOption, match="`numbers` is an async generator"):
        queue.task(numbers)
    for wrong in (0, True, 257, 1.5):
        with pytest.raises(BadOption, match="concurrency="):
            queue.task(work, concurrency=wrong)
