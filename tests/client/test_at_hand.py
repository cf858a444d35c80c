"""Lists and the like: drawn without a thread as long as all in them is plain, and like any other input after that."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nbqueue.client.sending.feeding import AtHand

FEEDER = "nbqueue-feeder"


# What is drawn


@pytest.mark.parametrize(
    "iterables",
    [
        [range(10)],
        [list(range(10))],
        ["abcdefghij"],
        [dict.fromkeys("abcdefghij")],
        [range(20, 0, -2), b"0123456789", (None,) * 10],
        [range(100), "abcdefghij"],
        [list("abcdefghij"), range(100)],
    ],
)
@pytest.mark.parametrize("peek", [False, True])
@pytest.mark.parametrize("size", [1, 3, 10, 11])
def test_it_is_drawn_as_zip_does_it(iterables: list[Any], peek: bool, size: int) -> None:
    at_hand, drawn = AtHand(*iterables), []
    while len(drawn) < 10:
        if peek:
            assert at_hand.first() == list(zip(*iterables, strict=False))[len(drawn)]
        drawn += at_hand.draw(size)
    assert at_hand.first() is None
    assert list(at_hand.draw(size)) == []
    assert drawn == list(zip(*iterables, strict=False))


@pytest.mark.parametrize("peek", [False, True])
def test_what_is_left_can_be_drawn_one_by_one(peek: bool) -> None:
    at_hand = AtHand(range(5), "abcdefg")
    assert list(at_hand.draw(2)) == [(0, "a"), (1, "b")]
    if peek:
        at_hand.first()
    assert list(at_hand) == [(2, "c"), (3, "d"), (4, "e")]


def test_a_list_that_changes_while_it_is_drawn_is_seen_as_it_is_then() -> None:
    numbers = list(range(6))
    at_hand = AtHand(numbers)
    assert list(at_hand.draw(2)) == [(0,), (1,)]
    numbers[2:] = [20, 30]
    assert list(at_hand.draw(1)) == [(20,)]
    assert list(at_hand) == [(30,)]


# In a queue


def test_a_list_that_has_been_drawn_is_nobodys_but_the_callers(queue: Any, wait_until: Callable[..., Any]) -> None:
    numbers = list(range(1000))
    before = sys.getrefcount(numbers)
    batch = queue.map(abs, numbers)
    assert batch.results(timeout=20) == numbers
    wait_until(lambda: sys.getrefcount(numbers) == before)
    assert len(batch) == 1000


@pytest.fixture
def hold(tmp_path: Path) -> Callable[[Any, str], Any]:
    """``hold(x, go)`` waits in a worker for the file `go`."""

    def hold(value: Any, go: str) -> Any:
        import os
        import time

        while not os.path.exists(go):
            time.sleep(0.005)
        return value

    return hold


def _feeders() -> int:
    return sum(thread.name == FEEDER for thread in threading.enumerate())


@pytest.mark.parametrize("items", [range(300), list(range(300)), dict.fromkeys(range(300))])
def test_plain_values_of_a_list_need_no_thread(
    queue: Any, hold: Any, tmp_path: Path, items: Any, wait_until: Callable[..., Any]
) -> None:
    before = _feeders()
    go = tmp_path / "go"
    batch = queue.task(hold).options(chunksize=1).map(items, go=str(go))
    assert len(batch._items._calls) < 300
    assert _feeders() == before
    go.touch()
    assert batch.results(timeout=20) == list(range(300))
    wait_until(lambda: not batch._link._inputs)


@pytest.mark.parametrize("given", [list, iter])
def test_values_that_are_not_plain_may_come_later(queue: Any, given: Callable[[Any], Any]) -> None:
    items = [*range(3_000), "x" * 1_000, *range(100), [1], 1 << 5_000, *range(3_000), {2}, *"abc"]
    assert queue.map(lambda x: x, given(items)).results(timeout=20) == items
    pairs = list(zip(items, items[::-1], strict=True))
    assert queue.map(lambda x, y: (x, y), given(items), given(items[::-1])).results(timeout=20) == pairs


@pytest.mark.parametrize("given", [list, iter])
@pytest.mark.parametrize("first", [[], "x" * 1_000, None])
def test_the_first_value_may_be_any(queue: Any, first: Any, given: Callable[[Any], Any]) -> None:
    items = [first, *range(100)]
    assert queue.map(lambda x: x, given(items)).results(timeout=20) == items
    assert queue.task(lambda x: x).options(chunksize=40).map(given(items)).results(timeout=20) == items


@pytest.mark.parametrize("last", [5, [5]])
def test_what_a_generator_gave_does_not_wait_for_what_comes_next(queue: Any, tmp_path: Path, last: Any) -> None:
    def slow() -> Iterator[Any]:
        yield from range(5)
        yield last
        for _ in range(4_000):
            if (tmp_path / "go").exists():
                break
            time.sleep(0.005)
        yield from range(5)

    batch = queue.task(lambda x: x).options(chunksize=5).map(slow())
    # It leaves although its chunk is not full, and before more comes.
    assert [batch[place] for place in range(6)] == [*range(5), last]
    (tmp_path / "go").touch()
    assert batch.results(timeout=20) == [*range(5), last, *range(5)]


def test_a_dict_that_changes_meanwhile_ends_the_input(queue: Any, hold: Any, tmp_path: Path) -> None:
    items = dict.fromkeys(range(300))
    go = tmp_path / "go"
    batch = queue.task(hold).options(chunksize=1).map(items, go=str(go))
    items["more"] = None
    go.touch()
    with pytest.raises(RuntimeError, match="changed size"):
        batch.results(timeout=20)
    assert 0 < batch.progress.done == len(batch) < 300


def test_a_list_that_grows_meanwhile_is_mapped_as_it_is_then(queue: Any, hold: Any, tmp_path: Path) -> None:
    items = list(range(100))
    go = tmp_path / "go"
    batch = queue.task(hold).options(chunksize=1).map(items, go=str(go))
    items += range(100, 110)
    go.touch()
    assert batch.results(timeout=20) == list(range(110))


def test_a_cancelled_map_of_a_list_draws_no_more(
    queue: Any, hold: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    batch = queue.task(hold).options(chunksize=1).map(range(300), go=str(tmp_path / "go"))
    sent = batch._link.submitted
    batch.cancel()
    wait_until(lambda: not batch._link._inputs)
    assert batch._link.submitted == sent
    assert batch.progress.cancelled == 300
