"""A Batch is the results of a map, still arriving: a sequence that waits, and counts, and can be retried."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nbqueue import Batch, NotSendable, RemoteError


def reciprocal(x: float) -> float:
    return 1 / x


def test_len_indexing_and_slices(queue: Any) -> None:
    batch = queue.map(abs, range(-10, 0))
    assert isinstance(batch, Batch)
    assert len(batch) == 10
    assert (batch[0], batch[-1], batch[3]) == (10, 1, 7)
    assert batch[2:5] == [8, 7, 6]
    assert batch[::-4] == [1, 5, 9]
    for index in (10, -11):
        with pytest.raises(IndexError):
            batch[index]
    assert list(batch) == list(batch) == batch.results()


def test_futures_are_made_on_access_and_stay_the_same(queue: Any) -> None:
    batch = queue.map(abs, range(-5, 0))
    assert batch.futures[1] is batch.futures[1]
    assert [future.result(timeout=20) for future in batch.futures] == [5, 4, 3, 2, 1]
    assert batch.futures[-1].result() == 1
    assert len(batch.futures[1:3]) == 2
    with pytest.raises(IndexError):
        batch.futures[5]


def test_a_generators_length_is_known_when_it_has_been_consumed(queue: Any) -> None:
    def items() -> Iterator[int]:
        yield from range(100)

    batch = queue.map(abs, items())
    assert batch.results(timeout=20) == list(range(100))
    assert len(batch) == 100


def test_the_length_of_an_unfinished_generator_is_refused(queue: Any, tmp_path: Path) -> None:
    def items() -> Iterator[Any]:
        while not (tmp_path / "stop").exists():
            yield 0

    batch = queue.map(abs, items())
    with pytest.raises(TypeError, match="not known until its input has been consumed"):
        len(batch)
    (tmp_path / "stop").touch()
    assert set(batch.results(timeout=30)) == {0}


@pytest.mark.parametrize("chunksize", [1, 3, 10, 1000])
def test_any_chunksize_gives_the_same(queue: Any, chunksize: int) -> None:
    assert queue.map(abs, range(-20, 0), chunksize=chunksize).results(timeout=20) == list(range(20, 0, -1))


def test_an_item_that_fails_raises_where_it_is_asked_for_and_only_there(queue: Any) -> None:
    batch = queue.map(reciprocal, [1, 2, 0, 4])
    assert (batch[0], batch[3]) == (1, 0.25)
    with pytest.raises(ZeroDivisionError):
        batch[2]
    arrived = iter(batch)
    assert [next(arrived), next(arrived)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(arrived)
    assert [future.name for future in batch.failed] == ["reciprocal[2]"]
    assert batch.progress.failed == 1


def _stop(i: int) -> int:
    if i == 1:
        raise StopIteration("of the task")
    return i


LOOPS: dict[str, Callable[[Any], Any]] = {
    "for": list,
    "async for": lambda batch: asyncio.run(_collect(batch)),
    "await": lambda batch: asyncio.run(_await(batch)),
    "await a future": lambda batch: asyncio.run(_await(batch.futures[1])),
}


async def _collect(batch: Any) -> list[Any]:
    return [value async for value in batch]


async def _await(what: Any) -> Any:
    return await what


@pytest.mark.parametrize("way", LOOPS)
def test_a_stop_iteration_of_a_task_neither_ends_a_loop_nor_shows_as_pythons_own_error(queue: Any, way: str) -> None:
    """It was "RuntimeError: generator raised StopIteration", which names no task."""
    batch = queue.map(_stop, range(3))
    with pytest.raises(RuntimeError, match=r"`_stop(\[1\])?` raised StopIteration, .*Catch it in the task") as caught:
        LOOPS[way](batch)
    assert isinstance(caught.value.__cause__, StopIteration)
    assert str(caught.value.__cause__) == "of the task"
    with pytest.raises(StopIteration, match="of the task"):
        batch[1]


def test_a_stop_iteration_of_a_task_ends_no_map_of_an_executor(queue: Any) -> None:
    with pytest.raises(RuntimeError, match=r"`_stop\[1\]` raised StopIteration"):
        list(queue.executor().map(_stop, range(3)))


def test_retry_failed_runs_only_those_with_the_function_as_it_is_now(queue: Any, tmp_path: Path) -> None:
    @queue.task
    def work(x: int) -> int:
        with (tmp_path / str(x)).open("a") as file:
            file.write("x")
        if x % 2 and not (tmp_path / "mended").exists():
            raise OSError("not yet")
        return -x

    batch = work.map(range(6))
    assert [type(r) for r in batch.results(return_exceptions=True, timeout=20)] == [int, OSError] * 3
    (tmp_path / "mended").touch()
    assert batch.retry_failed() is batch
    assert batch.results(timeout=20) == [0, -1, -2, -3, -4, -5]
    assert [len((tmp_path / str(i)).read_text()) for i in range(6)] == [1, 2, 1, 2, 1, 2]
    assert batch.failed == []
    assert batch.retry_failed() is batch, "nothing to do is no error"


def test_retries_of_single_items_keep_their_place(queue: Any, tmp_path: Path) -> None:
    @queue.task(retries=2, chunksize=10)
    def work(x: int) -> int:
        runs = tmp_path / str(x)
        runs.write_text("x" + (runs.read_text() if runs.exists() else ""))
        if x in (3, 7) and len(runs.read_text()) < 3:
            raise OSError
        return x

    batch = work.map(range(10))
    assert batch.results(timeout=30) == list(range(10))
    assert batch.progress.retried == 4
    assert [len((tmp_path / str(i)).read_text()) for i in range(10)] == [1, 1, 1, 3, 1, 1, 1, 3, 1, 1]


WAITING = {
    "results": lambda batch: batch.results(timeout=20),
    "results with exceptions": lambda batch: batch.results(return_exceptions=True, timeout=20),
    "wait": lambda batch: batch.wait(20),
    "wait without a limit": lambda batch: batch.wait(),
    "await": lambda batch: asyncio.run(_awaited(batch)),
    "a loop": lambda batch: list(batch),
    "as_completed": lambda batch: list(batch.as_completed(timeout=20)),
    "an index": lambda batch: batch[5],
}


async def _awaited(batch: Any) -> Any:
    return await batch


def test_an_input_that_raises_is_raised_however_it_is_waited_for_and_costs_nothing_that_was_sent(queue: Any) -> None:
    """A script that waited with `wait()` once took a third of its input for all of it."""

    def items() -> Iterator[int]:
        yield from range(5)
        raise LookupError("the input broke")

    batch = queue.map(abs, items())
    assert [batch[i] for i in range(5)] == list(range(5))
    for how, wait in WAITING.items():
        with pytest.raises(LookupError, match="the input broke"):
            print(how, wait(batch))
    assert [future.result() for future in batch.futures] == list(range(5))


def test_an_input_that_raises_at_once_is_refused_at_once(queue: Any) -> None:
    def items() -> Iterator[int]:
        raise LookupError("at once")
        yield 1

    with pytest.raises(LookupError, match="at once"):
        queue.map(abs, items()).results(timeout=20)


class _Leaves(BaseException):
    """Neither an Exception nor known to any program."""


LEAVING = [SystemExit("cannot read file"), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError(), _Leaves(3)]


@pytest.mark.parametrize("error", LEAVING, ids=lambda error: type(error).__name__)
def test_an_input_that_would_end_the_program_is_raised_as_of_a_task_and_costs_nothing_that_was_sent(
    queue: Any, capfd: pytest.CaptureFixture[str], error: BaseException
) -> None:
    """All items, also those that had been drawn, were cancelled, and nobody heard why."""

    def items() -> Iterator[int]:
        yield from range(5)
        raise error

    batch = queue.map(abs, items())
    for how, wait in WAITING.items():
        with pytest.raises(RemoteError, match="^the input of the map (called|raised) ") as caught:
            print(how, wait(batch))
        assert caught.value.type_name.endswith(type(error).__name__)
        assert caught.traceback[-1].name == "items"
    assert [future.result() for future in batch.futures] == list(range(5))
    assert capfd.readouterr().err == ""


def test_an_input_that_calls_sys_exit_in_the_callers_turn_is_raised_in_the_same_way(queue: Any) -> None:
    """Its first item is drawn there; of one with a length, also what comes after the last."""

    class Rows:
        def __init__(self, number: int) -> None:
            self.number = number

        def __iter__(self) -> Iterator[int]:
            yield from range(self.number)
            sys.exit("cannot read file")

        def __len__(self) -> int:
            return self.number

    with pytest.raises(RemoteError, match=r"the input of the map called sys\.exit\('cannot read file'\)"):
        queue.map(abs, iter(Rows(0)))
    batch = queue.map(abs, Rows(3))
    with pytest.raises(RemoteError, match=r"the input of the map called sys\.exit"):
        batch.results(timeout=20)
    assert batch[:] == [0, 1, 2]


@pytest.mark.parametrize("drawn", [0, 3])
def test_an_interrupt_while_the_first_items_are_drawn_is_the_callers(queue: Any, drawn: int) -> None:
    def items() -> Iterator[int]:
        yield from range(drawn)
        signal.raise_signal(signal.SIGINT)
        yield drawn

    with pytest.raises(KeyboardInterrupt):
        queue.task(time.sleep).options(chunksize=10).map(items())
    assert queue._core.link.open_calls == 0


def test_an_item_that_cannot_be_pickled_costs_only_itself(queue: Any) -> None:
    items: list[Any] = [1, (x for x in ()), 3, 4]
    results = queue.map(lambda x: x, items).results(return_exceptions=True, timeout=20)
    assert isinstance(results[1], NotSendable)
    assert results[0::2] + results[3:] == [1, 3, 4]


def test_a_first_item_that_cannot_be_pickled_is_refused_at_once(queue: Any) -> None:
    with pytest.raises(NotSendable, match="generator"):
        queue.map(lambda x: x, [(x for x in ()), 1])


def test_a_generator_that_refills_one_buffer_gives_the_values_of_its_time(queue: Any) -> None:
    def items() -> Iterator[list[int]]:
        buffer = [0]
        for i in range(50):
            buffer[0] = i
            yield buffer

    assert queue.map(sum, items()).results(timeout=20) == list(range(50))


def test_waiting_has_a_limit_and_the_batch_goes_on(queue: Any, tmp_path: Path) -> None:
    def held(x: int) -> int:
        while not (tmp_path / "go").exists():
            time.sleep(0.005)
        return x

    batch = queue.map(held, range(4))
    assert not batch.wait(timeout=0.05)
    with pytest.raises(TimeoutError, match="it goes on"):
        batch.results(timeout=0.05)
    with pytest.raises(TimeoutError):
        next(batch.as_completed(timeout=0.05))
    (tmp_path / "go").touch()
    assert batch.wait(timeout=20)
    assert batch.results() == [0, 1, 2, 3]


def test_as_completed_may_be_asked_again_after_the_end(queue: Any) -> None:
    batch = queue.map(abs, range(-5, 0))
    batch.wait(20)
    for _ in range(2):
        assert sorted(future.result() for future in batch.as_completed(timeout=5)) == [1, 2, 3, 4, 5]


def test_its_progress_is_counted(queue: Any, wait_until: Callable[..., Any]) -> None:
    batch = queue.map(reciprocal, [1, 0, 2, 4])
    batch.wait(20)
    progress = batch.progress
    assert (progress.total, progress.done, progress.failed, progress.cancelled) == (4, 3, 1, 0)
    assert progress.finished
    assert repr(batch) == "<Batch reciprocal 3/4 done, 1 failed>"


def test_two_batches_at_once_share_the_workers(queue: Any) -> None:
    batches = [queue.map(pow, [base] * 50, range(50)) for base in (2, 3)]
    assert batches[1].results(timeout=20) == [3**i for i in range(50)]
    assert batches[0].results(timeout=20) == [2**i for i in range(50)]


def test_a_future_of_an_item_far_ahead_waits_for_it_to_be_sent(queue: Any) -> None:
    batch = queue.map(abs, range(2_000))
    assert batch.futures[1_999].result(timeout=30) == 1_999
