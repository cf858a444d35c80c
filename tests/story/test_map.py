"""`map` is the loop that took too long: results in order, while they arrive."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import pytest

from nbqueue.client.sending.chunking import Chunker


def test_results_come_in_the_order_of_the_input(queue: Any) -> None:
    @queue.task
    def late(i: int) -> int:
        time.sleep(0.02 if i == 0 else 0)
        return i * i

    assert late.map(range(20)).results(timeout=20) == [i * i for i in range(20)]


def test_several_iterables_and_keywords_go_to_the_function(queue: Any) -> None:
    @queue.task
    def power(base: int, exponent: int, *, plus: int = 0) -> int:
        return base**exponent + plus  # type: ignore[no-any-return]

    assert power.map([1, 2, 3], [3, 2, 1, 0]).results(timeout=20) == [1, 4, 3]
    assert power.map([1, 2, 3], itertools.repeat(2), plus=10).results(timeout=20) == [11, 14, 19]


def test_starmap_spreads_each_item(queue: Any) -> None:
    power = queue.task(pow)
    assert power.starmap([(2, 3), (3, 2)]).results(timeout=20) == [8, 9]
    assert queue.starmap(pow, [(2, 3), (3, 2, 5)]).results(timeout=20) == [8, 4]


def test_queue_map_takes_any_function(queue: Any) -> None:
    assert queue.map(str.upper, ["a", "b"]).results(timeout=20) == ["A", "B"]
    assert queue.map(max, [1, 5], [3, 2]).results(timeout=20) == [3, 5]


def test_iterating_gives_results_as_they_come(queue: Any, tmp_path: Any) -> None:
    go = tmp_path / "go"

    @queue.task
    def held(i: int) -> int:
        while i == 3 and not go.exists():
            time.sleep(0.005)
        return i

    results = iter(held.map(range(5)))
    assert [next(results), next(results), next(results)] == [0, 1, 2]
    go.touch()
    assert list(results) == [3, 4]


def test_as_completed_gives_the_first_to_end_first(queue: Any, tmp_path: Any) -> None:
    go = tmp_path / "go"

    @queue.task
    def held(i: int) -> int:
        while i == 0 and not go.exists():
            time.sleep(0.005)
        return i

    futures = held.options(chunksize=1).map(range(4)).as_completed(timeout=20)
    assert {next(futures).result() for _ in range(3)} == {1, 2, 3}
    go.touch()
    assert next(futures).result() == 0


def test_an_input_without_end_is_consumed_as_results_are(queue: Any) -> None:
    """Something that a list could not hold: the feeder keeps a bounded number in flight."""
    taken = []

    def count() -> Any:
        for i in itertools.count():
            taken.append(i)
            yield i

    batch = queue.map(time.sleep, (0.001 for _ in count()))
    for future in itertools.islice(batch.as_completed(timeout=20), 20):
        assert future.result() is None
    assert len(taken) < 5_000
    batch.cancel()


def test_an_empty_input_is_an_empty_batch(queue: Any) -> None:
    batch = queue.map(abs, [])
    assert len(batch) == 0
    assert batch.results(timeout=5) == []
    assert list(batch) == []
    assert list(batch.as_completed(timeout=5)) == []


@pytest.mark.parametrize("ends", ["well", "with an error", "at its time limit"])
def test_a_long_item_is_seen_to_have_taken_its_time_whatever_short_ones_are_beside_it(queue: Any, ends: str) -> None:
    """It was told of with those before it, and all had the same share of their time."""

    @queue.task(timeout=0.4, chunksize=9)
    def work(i: int) -> int:
        if i in (2, 8):
            time.sleep(60 if ends == "at its time limit" else 0.2)
            return i if ends == "well" else i // 0
        return i

    batch = work.map(range(9))
    batch.results(return_exceptions=True, timeout=30)
    assert batch.futures[2].seconds >= 0.2
    assert batch.futures[8].seconds >= 0.2
    assert batch.futures[0].seconds < batch.futures[2].seconds


def test_an_item_is_retried_although_its_keyword_is_an_instance_of_a_class_of_a_cell(
    queue: Any, tmp_path: Path
) -> None:
    """The worker once pickled such keywords anew, could not, and died of it."""

    class Offset:
        def __init__(self, by: int) -> None:
            self.by = by

    @queue.task(retries=2)
    def shift(i: int, offset: Offset) -> int:
        if i == 3 and len(list(tmp_path.iterdir())) < 2:
            (tmp_path / str(time.monotonic_ns())).touch()
            raise OSError("twice")
        return i + offset.by

    assert shift.options(chunksize=6).map(range(6), offset=Offset(10)).results(timeout=20) == [10, 11, 12, 13, 14, 15]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_map_of_a_function_whose_items_were_tiny_begins_with_whole_chunks(
    queue: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    took = Chunker.took
    monkeypatch.setattr(Chunker, "took", lambda self, items: (sizes.append(items), took(self, items)))
    inputs = list(range(-400, 400))
    assert queue.map(abs, inputs).results() == list(map(abs, inputs))
    assert sizes[0] == 1, "nothing was known of it"
    (function,) = queue._core.link.item_paces
    # As on a machine that nobody else slows down.
    queue._core.link.item_paces[function] = 2e-7
    del sizes[:]
    assert queue.map(abs, inputs).results() == list(map(abs, inputs))
    assert sizes[0] > 1
    del sizes[:]
    assert queue.map(str, inputs).results() == list(map(str, inputs))
    assert sizes[0] == 1, "this is another function"
