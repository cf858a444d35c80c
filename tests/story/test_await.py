"""In a notebook a cell may await: futures and batches both."""

from __future__ import annotations

import asyncio
import time
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
