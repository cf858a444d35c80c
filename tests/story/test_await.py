"""In a notebook a cell may await: futures and batches both."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path
from typing import Any

import pytest

from nbqueue import TaskCancelled


def test_awaiting_a_future_gives_its_result(queue: Any) -> None:
    async def cell() -> Any:
        return await queue.submit(abs, -3)

    assert asyncio.run(cell()) == 3


def test_awaiting_a_batch_gives_all_results(queue: Any) -> None:
    async def cell() -> Any:
        return await queue.map(abs, range(-5, 0))

    assert asyncio.run(cell()) == [5, 4, 3, 2, 1]


def test_awaiting_what_is_done_already(queue: Any) -> None:
    future, batch = queue.submit(abs, -3), queue.map(abs, [-1])
    future.result(timeout=20)
    batch.wait(20)

    async def cell() -> Any:
        return await future, await batch

    assert asyncio.run(cell()) == (3, [1])


def test_errors_are_raised_where_it_is_awaited(queue: Any) -> None:
    async def cell() -> None:
        with pytest.raises(ZeroDivisionError):
            await queue.submit(lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await queue.map(lambda x: 1 / x, [1, 0])

    asyncio.run(cell())


def test_asyncio_gather_and_other_coroutines_go_on_meanwhile(queue: Any) -> None:
    async def cell() -> tuple[list[int], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticker = asyncio.create_task(tick())
        futures = [queue.submit(time.sleep, 0.05) for _ in range(4)]
        results = await asyncio.gather(*futures)
        ticker.cancel()
        return results, ticks

    results, ticks = asyncio.run(cell())
    assert results == [None] * 4
    assert ticks > 1


def test_cancelling_the_awaiting_coroutine_cancels_the_call(queue: Any) -> None:
    async def cell() -> Any:
        future = queue.submit(time.sleep, 60)

        async def waiting() -> None:
            await future

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waiting(), 0.1)
        return future

    future = asyncio.run(cell())
    assert future.cancelled()
    with pytest.raises(TaskCancelled):
        future.result(timeout=5)
    assert queue.map(abs, range(-5, 0)).results(timeout=20) == [5, 4, 3, 2, 1]


def test_wrap_future_works_as_with_any_executor(queue: Any) -> None:
    async def cell() -> Any:
        return await asyncio.wrap_future(queue.submit(abs, -3))

    assert asyncio.run(cell()) == 3


# ---- async for


@pytest.fixture
def held(queue: Any, tmp_path: Path) -> Any:
    @queue.task(chunksize=1)
    def held(i: int) -> int:
        while i == 1 and not (tmp_path / "go").exists():
            time.sleep(0.005)
        return i * i

    return held


def test_async_for_gives_results_in_order_as_they_come(held: Any, tmp_path: Path) -> None:
    """What the loop waits for comes only because the rest of the event loop goes on."""

    async def opens(after: list[int]) -> None:
        while after != [0]:
            await asyncio.sleep(0.001)
        (tmp_path / "go").touch()

    async def cell() -> list[int]:
        seen: list[int] = []
        opener = asyncio.create_task(opens(seen))
        async for value in held.map(range(5)):
            seen.append(value)
        await opener
        return seen

    assert asyncio.run(cell()) == [0, 1, 4, 9, 16]


def test_async_for_as_completed_gives_the_first_to_end_first(held: Any, tmp_path: Path) -> None:
    async def cell() -> list[int]:
        seen = []
        async for future in held.map(range(5)).as_completed(timeout=20):
            assert future.done()
            seen.append(await future)
            if len(seen) == 4:
                (tmp_path / "go").touch()
        return seen

    seen = asyncio.run(cell())
    assert seen[-1] == 1
    assert sorted(seen) == [0, 1, 4, 9, 16]


def test_async_for_raises_what_an_item_raised_and_what_the_input_raised(queue: Any) -> None:
    def items() -> Any:
        yield 1
        raise LookupError("no more")

    async def cell() -> None:
        with pytest.raises(ZeroDivisionError):
            async for _ in queue.map(lambda x: 1 / x, [1, 0]):
                pass
        with pytest.raises(LookupError):
            async for _ in queue.map(abs, items()):
                pass
        with pytest.raises(LookupError):
            async for _ in queue.map(abs, items()).as_completed():
                pass

    asyncio.run(cell())


def test_async_for_ends_where_nothing_ends_in_time_and_the_batch_goes_on(held: Any, tmp_path: Path) -> None:
    async def cell() -> Any:
        batch = held.map([1])
        with pytest.raises(TimeoutError, match="No item of"):
            async for _ in batch.as_completed(timeout=0.05):
                pass
        (tmp_path / "go").touch()
        return await batch

    assert asyncio.run(cell()) == [1]


@pytest.mark.parametrize("way", ["in order", "as_completed"])
def test_cancelling_one_who_loops_over_a_batch_cancels_it(held: Any, way: str) -> None:
    async def cell() -> Any:
        batch = held.map([0, 1, 2])
        waiting = asyncio.Event()

        async def loops() -> None:
            async for _ in batch if way == "in order" else batch.as_completed():
                waiting.set()

        loop = asyncio.create_task(loops())
        await waiting.wait()
        await asyncio.sleep(0)
        loop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loop
        return batch

    batch = asyncio.run(cell())
    assert batch.done
    assert batch.futures[1].cancelled()


def test_a_loop_over_results_that_are_there_lets_others_run(queue: Any) -> None:
    batch = queue.map(abs, range(3_000))
    batch.wait(20)

    async def cell() -> tuple[int, int]:
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(others())
        number = 0
        async for _ in batch:
            number += 1
            time.sleep(0.0001)
        other.cancel()
        return number, turns

    number, turns = asyncio.run(cell())
    assert number == 3_000
    assert turns >= 3


def test_an_endless_input_is_read_by_async_for_and_left(queue: Any, wait_until: Any) -> None:
    async def cell() -> list[int]:
        seen = []
        async for value in queue.map(abs, itertools.count()):
            seen.append(value)
            if value == 2_500:
                break
        return seen

    assert asyncio.run(cell()) == list(range(2_501))
    # Nobody holds the batch.
    wait_until(lambda: queue.status().queued == 0 and not queue.status().running, timeout=20)


def test_a_loop_by_hand_is_closed_as_a_generator_is(queue: Any) -> None:
    batch = queue.map(abs, range(5))
    blocking, awaiting = batch.as_completed(timeout=20), batch.as_completed(timeout=20)
    assert next(blocking).done()
    blocking.close()
    assert list(blocking) == []

    async def cell() -> list[Any]:
        assert (await anext(awaiting)).done()
        await awaiting.aclose()
        return [future async for future in awaiting]

    assert asyncio.run(cell()) == []


def test_many_that_await_wake_the_loop_no_more_often_than_one(queue: Any, tmp_path: Path) -> None:
    """Each had a timer of its own: a few thousand calls that were awaited together left the kernel no time."""

    def held() -> None:
        while not (tmp_path / "go").exists():
            time.sleep(0.005)

    async def cell() -> int:
        futures = [queue.submit(held) for _ in range(300)]
        everything = asyncio.gather(*futures)
        for _ in range(5):
            await asyncio.sleep(0.03)
        timers = len([timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()])
        (tmp_path / "go").touch()
        await everything
        return timers

    assert asyncio.run(cell()) <= 2


def test_cancelling_a_gather_cancels_its_calls(queue: Any) -> None:
    async def cell() -> Any:
        futures = [queue.submit(time.sleep, 60) for _ in range(5)]
        everything = asyncio.gather(*futures)
        await asyncio.sleep(0.01)
        everything.cancel()
        with pytest.raises(asyncio.CancelledError):
            await everything
        return futures

    assert all(future.cancelled() for future in asyncio.run(cell()))


def test_tasks_that_await_their_own_calls_do_not_fill_the_pool(queue: Any) -> None:
    """Awaiting counted as work: as many tasks as workers, each awaiting a call of its own, waited for ever."""
    inner = queue.task(abs)

    @queue.task(chunksize=1)
    def outer(i: int) -> int:
        async def main() -> int:
            total = await inner.submit(-i)
            async for value in inner.map([-i, -i]):
                total += value
            return total + sum(await inner.map([-i]))

        return asyncio.run(main())

    assert outer.map(range(4)).results(timeout=30) == [0, 4, 8, 12]
