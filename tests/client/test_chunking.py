"""How many items travel together: decided from measurements, without a clock."""

from __future__ import annotations

import pytest

from nbqueue.client.sending.chunking import LARGEST, MOST_GROWTH, Chunker


def _settled(chunker: Chunker, seconds: float, workers: int = 4) -> int:
    """The size after every chunk has been measured at `seconds` an item for a while."""
    size = 1
    for _ in range(30):
        size = chunker.next_size(workers)
        chunker.took(size)
        chunker.observe(size, size * seconds)
    return size


def test_the_first_items_go_alone():
    chunker = Chunker(1000)
    assert [chunker.next_size(4) for _ in range(5)] == [1] * 5


def test_a_chunk_aims_at_fifty_milliseconds():
    assert _settled(Chunker(None), 0.001) == pytest.approx(50, abs=1)
    assert _settled(Chunker(None), 0.2) == 1


def test_tiny_items_have_a_largest_chunk():
    assert _settled(Chunker(None), 1e-9) == LARGEST


def test_one_wrong_measurement_does_not_make_a_huge_chunk():
    chunker = Chunker(None)
    chunker.took(1)
    chunker.observe(1, 1e-7)
    assert chunker.next_size(4) == MOST_GROWTH


def test_chunks_shrink_towards_the_end():
    chunker, sizes, left = Chunker(10_000), [], 10_000
    while left:
        size = min(left, chunker.next_size(4))
        chunker.took(size)
        chunker.observe(size, size * 1e-5)
        sizes.append(size)
        left -= size
    top = sizes.index(max(sizes))
    assert sizes[top:] == sorted(sizes[top:], reverse=True)
    assert sizes[-1] == 1


def test_a_size_that_was_chosen_stays():
    chunker = Chunker(100, fixed=7)
    chunker.observe(1, 100.0)
    assert chunker.next_size(2) == 7


def test_slow_items_after_fast_ones_are_noticed():
    chunker = Chunker(None)
    fast = _settled(chunker, 1e-4)
    assert _settled(chunker, 0.1) == 1 < fast


def test_what_is_in_flight_grows_with_the_workers():
    chunker = Chunker(None)
    assert 0 < chunker.in_flight(0) == chunker.in_flight(1) < chunker.in_flight(8)
