"""How many items travel together: decided from measurements, without a clock."""

from __future__ import annotations

import pytest

from nbqueue.client.sending.chunking import (
    IN_FLIGHT,
    LARGEST,
    MOST_GROWTH,
    QUEUED_S,
    SHORT_S,
    SHORTEST_S,
    TARGET_S,
    TINY_S,
    Chunker,
    Paces,
)


def _settled(chunker: Chunker, seconds: float, workers: int = 4) -> int:
    """The size after every chunk has been measured at `seconds` an item for a while."""
    size = 1
    for _ in range(200):
        size = chunker.next_size(workers)
        chunker.took(size)
        chunker.observe(size, size * seconds)
    return size


def test_the_first_items_go_alone():
    chunker = Chunker(1000)
    assert [chunker.next_size(4) for _ in range(5)] == [1] * 5


def test_they_need_not_where_such_items_were_tiny_before_and_must_where_they_were_not():
    assert Chunker(1000, expected_s=1e-7).next_size(4) > 1
    assert Chunker(1000, expected_s=TINY_S).next_size(4) == 1
    assert Chunker(1000, fixed=7, expected_s=1e-7).next_size(4) == 7


def test_that_items_are_longer_than_was_expected_is_believed_at_once():
    chunker = Chunker(1000, expected_s=1e-7)
    before = chunker.next_size(4)
    chunker.took(before)
    chunker.observe(1, 0.05)
    assert chunker.next_size(4) < before / 4


def test_paces_are_kept_of_some_functions_only():
    paces = Paces()
    for n in range(5_000):
        paces.note(f"f{n}", 1.0)
        assert paces[f"f{n}"] == 1.0
    assert len(paces) <= 1_000


def test_a_chunk_aims_at_150_milliseconds_and_at_100_where_each_may_be_among_the_last():
    assert _settled(Chunker(1_000_000), 0.001) == pytest.approx(150, abs=1)
    assert _settled(Chunker(None), 0.001) == pytest.approx(100, abs=1)
    assert _settled(Chunker(1_000_000), 0.15) == _settled(Chunker(None), 0.1) == 1


def test_tiny_items_have_a_largest_chunk():
    assert _settled(Chunker(None), 1e-9) == LARGEST


def test_one_wrong_measurement_does_not_make_a_huge_chunk():
    chunker = Chunker(None)
    chunker.took(1)
    chunker.observe(1, 1e-7)
    assert chunker.next_size(4) <= MOST_GROWTH


def test_no_more_is_in_flight_than_was_measured():
    chunker = Chunker(600)
    for _ in range(160):
        chunker.took(1)
        chunker.observe(1, 0.0005)
    assert chunker.next_size(4) == 160 / chunker.in_flight(4)


def test_of_many_items_a_part_goes_at_once_as_soon_as_all_workers_have_measured_some():
    chunker = Chunker(16_000)
    for _ in range(chunker.in_flight(4) - 1):
        chunker.took(1)
        chunker.observe(1, 1e-7)
    assert chunker.next_size(4) == 1
    chunker.took(100)
    chunker.observe(1, 1e-7)
    assert chunker.next_size(4) > 100


def test_one_slow_item_makes_chunks_shorter_for_a_while():
    chunker = Chunker(1_000_000)
    usual = _settled(chunker, 1e-4)
    chunker.observe(1, 0.05)
    assert chunker.next_size(4) < usual / 10
    assert _settled(chunker, 1e-4) > usual / 4


def _sizes(total: int, seconds: float) -> list[int]:
    chunker, sizes, left = Chunker(total), [], total
    while left:
        size = min(left, chunker.next_size(4))
        chunker.took(size)
        chunker.observe(size, size * seconds)
        sizes.append(size)
        left -= size
    return sizes


def test_chunks_shrink_towards_the_end():
    sizes = _sizes(10_000, 1e-3)
    top = sizes.index(max(sizes))
    assert sizes[top:] == sorted(sizes[top:], reverse=True)
    assert sizes[-1] <= SHORTEST_S / 1e-3


def test_chunks_do_not_shrink_below_what_is_worth_it():
    sizes = _sizes(100_000, 1e-6)
    assert min(sizes[sizes.index(max(sizes)) : -1]) > SHORT_S / 1e-6 / 2


def test_a_size_that_was_chosen_stays():
    chunker = Chunker(100, fixed=7)
    chunker.observe(1, 100.0)
    assert chunker.next_size(2) == 7


def test_of_chunks_whose_size_was_chosen_few_are_in_flight_until_they_have_been_measured():
    """They may be long: a call that is made beside them once waited for four of them for each worker."""
    chunker = Chunker(100, fixed=7)
    assert chunker.in_flight(2) == 4
    for _ in range(4):
        chunker.took(7)
        chunker.observe(7, 1e-4)
    assert chunker.in_flight(2) == 2 * IN_FLIGHT


def test_slow_items_after_fast_ones_are_noticed():
    chunker = Chunker(None)
    fast = _settled(chunker, 1e-4)
    assert _settled(chunker, 0.1) == 1 < fast


def test_single_items_that_nobody_has_measured_are_few():
    """Eight of a map over tiny items were sent for two workers, and seven more before the first eight were measured."""
    chunker = Chunker(1_000)
    first = chunker.in_flight(2)
    for _ in range(first):
        assert chunker.in_flight(2) == first
        assert chunker.next_size(2) == 1
        chunker.took(1)
        chunker.observe(1, 1e-6)
    assert chunker.in_flight(2) > first
    assert chunker.next_size(2) > 1


def test_of_long_chunks_fewer_are_in_flight_but_always_one_that_waits_for_each_worker():
    short, long, longer = Chunker(1_000_000), Chunker(1_000_000), Chunker(1_000_000)
    _settled(short, 1e-4)
    short.took(1)
    _settled(long, 0.01)
    _settled(longer, 60.0)
    assert short.in_flight(8) == 8 * IN_FLIGHT
    assert long.in_flight(8) == int(8 * (1 + QUEUED_S / TARGET_S))
    assert longer.in_flight(8) == 16


def test_async_items_are_all_sent_for_which_there_is_room():
    assert Chunker(1_000, 1, at_a_time=50).in_flight(2) == 200
    long = Chunker(1_000, 1, at_a_time=50)
    _settled(long, 60.0)
    assert long.in_flight(2) == 200


def test_what_is_in_flight_grows_with_the_workers():
    chunker = Chunker(None)
    assert 0 < chunker.in_flight(0) == chunker.in_flight(1) < chunker.in_flight(8)
