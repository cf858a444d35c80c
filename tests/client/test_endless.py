"""Inputs without an end: drawn as far as somebody reads, and over when nobody can."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nbqueue import TaskQueue, as_completed
from nbqueue.client.results import demand, waiting
from nbqueue.client.sending import helm
from nbqueue.codec import shelves

AHEAD = 400


@pytest.fixture(autouse=True)
def few_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand, "UNREAD_ITEMS", AHEAD)


class Source:
    """Integers without an end; `taken` of them so far, `closed` when it was let go."""

    def __init__(self) -> None:
        self.taken = 0
        self.closed = threading.Event()

    def __call__(self) -> Iterator[int]:
        try:
            for number in itertools.count():
                self.taken = number + 1
                yield number
        finally:
            self.closed.set()


@pytest.fixture
def source() -> Source:
    return Source()


def _rests(batch: Any) -> Callable[[], bool]:
    """Nothing is in flight, and no more is drawn."""
    return lambda: not batch._items._wanted() and batch.progress.settled == len(batch._items._ledger)


READ: dict[str, Callable[[Any], Iterator[int]]] = {
    "a loop": iter,
    "as_completed": lambda batch: (future.result() for future in batch.as_completed(timeout=20)),
}


@pytest.mark.parametrize("way", READ)
def test_a_loop_that_stands_still_has_a_bounded_number_of_results_ahead(
    queue: Any, source: Source, way: str, wait_until: Callable[..., Any]
) -> None:
    batch = queue.map(abs, source())
    results = READ[way](batch)
    seen = [next(results) for _ in range(20)]
    before = source.taken
    wait_until(_rests(batch))
    # What was drawn before anybody had begun to read may be more.
    assert source.taken <= max(before, 20 + AHEAD) + 1
    seen += itertools.islice(results, 3 * AHEAD)
    assert source.taken > 3 * AHEAD
    # As they end, one of the first may come after many others.
    assert len(set(seen)) == len(seen) == 20 + 3 * AHEAD
    assert set(seen) <= set(range(source.taken))
    assert seen == list(range(len(seen))) or way == "as_completed"
    batch.cancel()


@pytest.mark.parametrize("size", [20_000, 200_000], ids=["in messages", "in shared memory"])
def test_large_results_ahead_of_a_loop_are_fewer(
    queue: Any, source: Source, size: int, wait_until: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demand, "UNREAD_BYTES", 25 * size)
    batch = queue.map(lambda i: bytearray(size), source(), chunksize=1)
    results = iter(batch)
    for _ in range(40):
        next(results)
    wait_until(_rests(batch))
    assert source.taken <= 40 + 25 + 8
    batch.cancel()


LARGE = 200_000  # bytes: it lies in shared memory


def large(i: int) -> bytearray:
    return bytearray(LARGE)


def _large_ones() -> list[str]:
    """What lies in this process's shared memory, the pool apart."""
    own = shelves.existing()
    if own is None:
        return []
    own.let_go()
    return [name for name in os.listdir(own.path) if name not in ("lock", "pool")]


@pytest.fixture
def few_bytes(monkeypatch: pytest.MonkeyPatch) -> int:
    """So many large results may lie ahead of a loop, and behind."""
    monkeypatch.setattr(demand, "UNREAD_BYTES", 10 * LARGE)
    return 10


def test_large_results_behind_a_loop_are_few_too(queue: Any, source: Source, few_bytes: int) -> None:
    """A thousand of them were kept, whatever their size: of 10 MB each, 256 mapped and the others copied."""
    batch = queue.map(large, source(), chunksize=1)
    results = iter(batch)
    for _ in range(60):
        next(results)
    kept = len(batch._items._ledger) - batch._items._ledger.first
    # What was read just now, or has come since, is not told of yet.
    assert kept <= 2 * few_bytes + few_bytes // 2 + 2
    assert len(_large_ones()) <= kept + 2
    batch.cancel()


def test_as_completed_over_large_results_goes_on(queue: Any, source: Source, few_bytes: int) -> None:
    """It told of what it had read after 64 items only, for which it waited for ever where fewer were drawn ahead."""
    batch = queue.map(large, source(), chunksize=1)
    places = itertools.islice(batch.as_completed(timeout=20), 150)
    assert len([len(future.result()) for future in places]) == 150
    batch.cancel()


@pytest.mark.apart
@pytest.mark.parametrize("in_a_cell", [False, True])
def test_a_loop_that_was_left_gives_its_memory_back_at_once(
    queue: Any,
    source: Source,
    few_bytes: int,
    in_a_cell: bool,
    wait_until: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its calls and its items held each other until garbage was collected, and a cell held both to its end: what came
    next found shared memory full."""
    monkeypatch.setattr(helm, "HELLO_S", 0.05)
    monkeypatch.setattr(waiting, "_cell", int(in_a_cell))
    gc.collect()
    before = set(_large_ones())
    gc.disable()
    try:
        read = 0
        for value in queue.map(large, source(), chunksize=1):
            read += len(value)
            if read == 30 * LARGE:
                wait_until(lambda: set(_large_ones()) - before)
                break
        del value
        assert source.closed.wait(20)
        wait_until(lambda: not set(_large_ones()) - before)
    finally:
        gc.enable()
        waiting.next_cell()


def test_a_loop_over_futures_that_was_left_keeps_none(
    queue: Any, wait_until: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_cell", 1)
    gc.collect()
    gc.disable()
    try:
        futures = [queue.submit(large, i) for i in range(6)]
        gone = [weakref.ref(future) for future in futures]
        for future in as_completed(futures, timeout=20):
            future.result()
            break
        del future, futures
        wait_until(lambda: not any(ref() for ref in gone))
    finally:
        gc.enable()
        waiting.next_cell()


@pytest.mark.parametrize("way", READ)
def test_what_was_read_long_ago_is_no_longer_kept(queue: Any, source: Source, way: str) -> None:
    batch = queue.map(abs, source())
    results = READ[way](batch)
    items = batch._items
    number = 0
    # As they end, one of the first may come late, and what is behind it is kept until then.
    while number < 2_500 or (not items._ledger.first and number < 100_000):
        next(results)
        number += 1
    assert 0 < items._ledger.first <= number - AHEAD
    assert len(items._details._lines) < number
    assert len(items._ended) <= 1, "the one that the loop holds"
    with pytest.raises(IndexError, match=r"`abs\[0\]` was read and is no longer kept"):
        batch.future(0)
    with pytest.raises(IndexError, match="no longer kept"):
        next(iter(batch))
    assert batch.future(number - AHEAD // 2).result(timeout=20) == number - AHEAD // 2
    batch.cancel()
    with pytest.raises(IndexError, match="no longer kept"):
        batch.results()


def test_a_generator_that_nobody_reads_runs_by_itself_and_all_is_kept(
    queue: Any, wait_until: Callable[..., Any]
) -> None:
    batch = queue.map(abs, (i for i in range(5 * AHEAD)))
    wait_until(lambda: batch.done, timeout=20)
    assert batch.results() == list(batch) == list(range(5 * AHEAD))
    assert batch[0] == 0


def test_a_list_runs_to_its_end_whoever_reads_it(queue: Any, wait_until: Callable[..., Any]) -> None:
    batch = queue.map(abs, range(5 * AHEAD))
    next(iter(batch))
    wait_until(lambda: batch.done, timeout=20)
    assert batch[0] == 0


def test_a_loop_that_was_left_draws_no_more_until_somebody_waits_for_all(
    queue: Any, wait_until: Callable[..., Any]
) -> None:
    go_on = threading.Event()

    def items() -> Iterator[int]:
        yield from range(100)
        go_on.wait(20)
        yield from range(100, 3 * AHEAD)

    batch = queue.map(abs, items())
    for value in batch:
        if value == 10:
            break
    go_on.set()
    wait_until(_rests(batch))
    assert not batch.done
    assert batch.future(2 * AHEAD).result(timeout=20) == 2 * AHEAD
    wait_until(_rests(batch))
    assert not batch.done
    assert batch.results(timeout=20) == list(range(3 * AHEAD))


def test_a_with_block_ends_although_the_input_of_a_loop_that_was_left_does_not(new_key: str, source: Source) -> None:
    with TaskQueue(stream_key=new_key, workers=2) as queue:
        batch = queue.map(abs, source())
        for value in batch:
            if value == 50:
                break
    assert not batch.done
    batch.cancel()


def test_a_with_block_waits_for_an_input_that_is_slower_than_the_workers(new_key: str) -> None:
    """It once ended in a moment in which nothing was in flight, and the rest was never done."""
    step = threading.Event()

    def items() -> Iterator[int]:
        for i in range(4):
            step.wait(0.1)
            yield i

    with TaskQueue(stream_key=new_key, workers=2) as queue:
        batch = queue.map(abs, items())
    assert batch.done
    assert list(batch) == [0, 1, 2, 3]


def test_cancelling_the_queue_ends_a_batch_that_has_nothing_in_flight(
    queue: Any, source: Source, wait_until: Callable[..., Any]
) -> None:
    batch = queue.map(abs, source())
    next(iter(batch))
    wait_until(_rests(batch))
    wait_until(lambda: not queue._core.link.open_calls)
    queue.cancel()
    assert batch.done
    assert source.closed.wait(20)


def test_an_endless_batch_that_was_read_and_is_held_by_nobody_is_over(
    queue: Any, source: Source, wait_until: Callable[..., Any]
) -> None:
    for value in queue.map(abs, source()):
        if value == 50:
            break
    assert source.closed.wait(20)
    wait_until(lambda: not queue._core.link.open_calls)


def test_an_endless_batch_that_nobody_has_read_and_nobody_holds_ends_and_says_so(
    new_key: str, source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    """A with block once waited for such a one for ever."""
    let_go = threading.Event()

    def items() -> Iterator[int]:
        numbers = source()
        # It is drawn while the map is called. Until that returns, somebody holds the batch.
        yield next(numbers)
        assert let_go.wait(20)
        yield from numbers

    with TaskQueue(stream_key=new_key, workers=2) as queue:
        queue.map(abs, items())
        let_go.set()
    assert source.closed.wait(20)
    assert source.taken <= AHEAD + 1
    assert f"`abs` ends after {AHEAD} items" in capsys.readouterr().err


def test_what_is_mapped_and_not_held_runs_to_its_end(queue: Any, wait_until: Callable[..., Any]) -> None:
    done: list[int] = []

    def items() -> Iterator[int]:
        yield from range(AHEAD // 2)
        done.append(1)

    queue.map(abs, items())
    wait_until(lambda: done and not queue._core.link.open_calls, timeout=20)
    assert queue.status().done >= AHEAD // 2


def test_a_future_of_an_item_is_the_same_as_long_as_somebody_holds_it(queue: Any) -> None:
    batch = queue.map(abs, range(-5, 0))
    first = batch.futures[0]
    assert first.result(timeout=20) == 5
    assert batch.futures[0] is first
    assert first in list(batch.as_completed(timeout=20))
    del first
    assert not batch._items._futures
    assert batch.futures[0].result() == 5


def test_a_callback_of_a_future_that_nobody_holds_is_called(queue: Any, wait_until: Callable[..., Any]) -> None:
    called: list[int] = []
    queue.map(abs, [-1, -2]).futures[1].add_done_callback(lambda future: called.append(future.result()))
    wait_until(lambda: called == [2], timeout=20)


def test_a_batch_of_more_items_than_could_ever_be_counted_is_cancelled(queue: Any) -> None:
    """It once took a byte for each of them, and more memory than there is."""
    batch = queue.map(abs, range(10**12))
    assert batch[3] == 3
    batch.cancel()
    assert batch.done
    assert len(batch) < 10**9
