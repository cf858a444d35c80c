"""What type checkers make of the public names. Never run: mypy and pyright read it.

Each line that is wrong on purpose says so, and both complain where it were right.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import assert_type

from nbqueue import Batch, Put, Task, TaskFuture, TaskQueue, as_completed, gather, track, wait

queue = TaskQueue()


# Decorators keep the signature.


@queue.task
def count(seed: int, steps: int = 1_000) -> float:
    for step in track(range(steps)):
        assert_type(step, int)
    return 0.5 * seed


@queue.task(retries=2, timeout=60, name="count again")
def again(seed: int, *, text: str = "") -> str:
    return text * seed


def plain(x: int, y: str) -> bytes:
    return y.encode() * x


assert_type(count(1, steps=5), TaskFuture[float])
assert_type(again(1, text="x"), TaskFuture[str])
assert_type(again.submit(1), TaskFuture[str])
assert_type(count.local(1), float)
assert_type(queue.task(plain)(1, "y"), TaskFuture[bytes])
task: Task[[int, str], bytes] = queue.task(plain)
assert_type(queue.task(plain, retries=3)(1, "y"), TaskFuture[bytes])
count("1")  # type: ignore[arg-type]
count(1, stops=5)  # type: ignore[call-arg]
again.submit(1, "x")  # type: ignore[call-arg]
again.local("1")  # type: ignore[arg-type]


# Of an async function, what awaiting it gives.


@queue.task
async def fetch(url: str, *, tries: int = 1) -> bytes:
    return url.encode() * tries


@queue.task(concurrency=32, retries=2)
async def fetch_again(url: str) -> bytes:
    return await fetch(url)


async def waits(x: int) -> str:
    return str(x)


assert_type(fetch("a", tries=2), TaskFuture[bytes])
assert_type(fetch_again("a"), TaskFuture[bytes])
assert_type(fetch.map(["a", "b"]), Batch[bytes])
assert_type(queue.submit(waits, 1), TaskFuture[str])
assert_type(queue.map(waits, [1], concurrency=4), Batch[str])
assert_type(queue.starmap(waits, [(1,)]), Batch[str])
assert_type(queue.task(waits, retries=3)(1), TaskFuture[str])
fetch(1)  # type: ignore[arg-type]


# Options, which keep it as well.

quick = count.options(timeout=5, chunksize=None, seed=7, rng="rng", priority="high")
assert_type(quick(1), TaskFuture[float])
quick("1")  # type: ignore[arg-type]
count.options(retry=3)  # type: ignore[call-arg]
queue.task(retries="3")  # type: ignore[call-overload]


# Methods: the instance is no argument of the call.


class Model:
    @queue.task
    def fit(self, rate: float) -> list[float]:
        return [rate]

    @queue.task(retries=1)
    def score(self) -> int:
        return 0


assert_type(Model().fit(0.5), TaskFuture[list[float]])
assert_type(Model().fit.map([0.1, 0.2]), Batch[list[float]])
assert_type(Model().score(), TaskFuture[int])
Model().fit("0.5")  # type: ignore[arg-type]


# Maps.

batch = count.map(range(10), steps=5)
assert_type(batch, Batch[float])
assert_type(count.starmap([(1, 2)]), Batch[float])
assert_type(queue.map(plain, [1], ["y"], retries=1, progress=False), Batch[bytes])
assert_type(queue.map(count, [1]), Batch[float])
assert_type(queue.starmap(plain, [(1, "y")], timeout=3), Batch[bytes])
assert_type(queue.starmap(count, [(1, 2)]), Batch[float])
assert_type(batch[0], float)
assert_type(batch[2:4], list[float])
assert_type(list(batch), list[float])
assert_type(batch.results(), list[float])
assert_type(batch.results(return_exceptions=True), list[float | BaseException])
assert_type(batch.futures, Sequence[TaskFuture[float]])
ended: Iterator[TaskFuture[float]] = batch.as_completed()
assert_type(batch.failed[0], TaskFuture[float])
assert_type(batch.retry_failed(), Batch[float])


# Calls of any function, and of tasks.

assert_type(queue.submit(plain, 1, "y"), TaskFuture[bytes])
assert_type(queue.submit(plain, 1, y="y"), TaskFuture[bytes])
assert_type(queue.submit(count, 1), TaskFuture[float])
assert_type(queue.submit(len, "abc"), TaskFuture[int])
queue.submit(plain, "1", "y")  # type: ignore[call-overload]


# Futures are those of the standard library.

future = queue.submit(plain, 1, "y")
standard: concurrent.futures.Future[bytes] = future
assert_type(future.result(timeout=3), bytes)
assert_type(future(), bytes)
assert_type(future(block=False), bytes | None)
assert_type(future(timeout=3), bytes | None)
assert_type(future.exception(), BaseException | None)
assert_type(future.replay(), bytes)
assert_type(gather([future, future]), list[bytes])
assert_type(gather([future], return_exceptions=True), list[bytes | BaseException])
for each in as_completed([future]):
    assert_type(each.result(), bytes)
assert_type(wait([future]).done, set[concurrent.futures.Future[bytes]])


async def awaiting() -> None:
    assert_type(await future, bytes)
    assert_type(await batch, list[float])
    async for value in batch:
        assert_type(value, float)


def loop_of_a_batch() -> AsyncIterator[float]:
    return batch.__aiter__()


# The executor.

with queue.executor(retries=2) as executor:
    assert_type(executor.submit(plain, 1, "y"), TaskFuture[bytes])
    assert_type(executor.submit(count, 1), TaskFuture[float])
    assert_type(executor.submit(waits, 1), TaskFuture[str])
    assert_type(executor.map(waits, [1]), Iterator[str])
    assert_type(executor.map(plain, [1], ["y"], timeout=3, chunksize=2, buffersize=4), Iterator[bytes])
    assert_type(executor.map(count, [1]), Iterator[float])
    executor.submit(plain, "1", "y")  # type: ignore[call-overload]
    any_executor: concurrent.futures.Executor = executor
queue.executor(max_workers=4)  # type: ignore[call-arg]


# What was put.

table = queue.put({"a": 1})
assert_type(table, Put[dict[str, int]])
assert_type(table.get(), dict[str, int])
