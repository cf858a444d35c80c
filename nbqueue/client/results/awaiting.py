"""``async for`` over a batch: the same loops as blocking ones, in a coroutine.

Always true here: whatever else runs in the loop goes on, also when all results are there already; one who is cancelled
while he waits for an item cancels the batch, as an interrupt does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import Generic, TypeVar

from nbqueue.client.results.asking import Asked
from nbqueue.client.results.future import TaskFuture, call_soon
from nbqueue.client.results.waiting import tick
from nbqueue.client.sending.listener import Link

__all__ = ["Completed", "Turns", "until"]

R = TypeVar("R")

# For so long a loop over results that are there keeps all others waiting.
TURN_S = 0.02


class Completed(Generic[R]):
    """Futures in the order in which they end, for ``for`` and ``async for``, once."""

    def __init__(
        self, blocking: Generator[TaskFuture[R], None, None], awaiting: AsyncGenerator[TaskFuture[R], None]
    ) -> None:
        self._blocking, self._awaiting = blocking, awaiting

    # The iterators themselves, so that no frame of ours lies between them and the loop.

    def __iter__(self) -> Iterator[TaskFuture[R]]:
        return self._blocking

    def __next__(self) -> TaskFuture[R]:
        return next(self._blocking)

    def __aiter__(self) -> AsyncIterator[TaskFuture[R]]:
        return self._awaiting

    async def __anext__(self) -> TaskFuture[R]:
        return await anext(self._awaiting)

    def close(self) -> None:
        """Leave the loop, as ``break`` does."""
        self._blocking.close()

    async def aclose(self) -> None:
        """The same of ``async for``."""
        await self._awaiting.aclose()


class Turns:
    """Lets the event loop have its turn while there is nothing to wait for."""

    __slots__ = ("_items", "_next")

    def __init__(self, items: Asked) -> None:
        self._items = items
        self._next = time.monotonic() + TURN_S

    @property
    def due(self) -> bool:
        return time.monotonic() > self._next

    async def give(self) -> None:
        """Raises CancelledError, after the batch was cancelled, if the one who asks is."""
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            raise asyncio.CancelledError(self._items.interrupted()) from None
        self._next = time.monotonic() + TURN_S


async def until(items: Asked, ready: Callable[[], bool], timeout: float | None, link: Link) -> bool:
    """Wait for `ready()`, which is asked after each change of the batch. False at the timeout.

    Raises
    ------
    asyncio.CancelledError
        When interrupted or cancelled, which cancels the batch.
    """
    link.check_process()
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    deadline = None if timeout is None else time.monotonic() + timeout
    # Not asyncio.timeout: that would cancel the batch.
    alarm = None if timeout is None else loop.call_later(timeout, changed.set)
    with items.waking(lambda: call_soon(loop, changed.set)):
        try:
            while True:
                changed.clear()
                if items.is_so(ready):
                    return True
                if deadline is not None and time.monotonic() >= deadline:
                    return False
                await tick(changed, items.interrupted, link)
        finally:
            if alarm is not None:
                alarm.cancel()
