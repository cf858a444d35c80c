"""Plain items travel as columns where they can, and come out as they went in."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from nbqueue.codec.columns import Columns, columns_of, dump_items, load_items

ROWS = [(1, "a"), (2, "b"), (3, None)]


@pytest.mark.parametrize("items", [ROWS, Columns(([1, 2, 3], ["a", "b", None])), columns_of(ROWS)])
def test_items_are_the_same_in_either_form_and_on_the_way(items: Any) -> None:
    for each in (items, load_items(dump_items(items))):
        assert (len(each), list(each), each[1], each[-1]) == (3, ROWS, (2, "b"), (3, None))
        assert list(each[1:]) == ROWS[1:]
        assert list(each[3:]) == []


def test_numbers_that_follow_each_other_are_not_written_down() -> None:
    packed = dump_items(Columns((range(0, 10**6, 2),)))
    assert len(packed) < 100
    assert load_items(packed)[100_000] == (200_000,)


def test_columns_of_one_argument_are_smaller_than_tuples() -> None:
    rows = [(number,) for number in range(10**5, 10**5 + 1_000)]
    found = columns_of(rows)
    assert found is not None
    assert len(dump_items(found)) < 0.8 * len(pickle.dumps(rows, protocol=5))


@pytest.mark.parametrize("items", [[(1,), (1, 2)], [(), ()], [(1,), b"a pickle"], [None, (1,)], []])
def test_what_has_no_columns_is_left_as_it_is(items: Any) -> None:
    assert columns_of(items) is None
    assert list(load_items(dump_items(items))) == items
