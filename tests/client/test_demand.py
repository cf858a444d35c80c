"""How far a generator is drawn: decided by who wants its results, without a thread."""

from __future__ import annotations

import pytest

from nbqueue.client.results import demand
from nbqueue.client.results.demand import FEWEST_EACH, NO_LIMIT, UNREAD_BYTES, UNREAD_ITEMS, Demand, Reader


@pytest.fixture
def generator() -> Demand:
    return Demand(known=False)


def test_an_input_of_known_length_is_drawn_to_its_end():
    sized = Demand(known=True)
    sized.begin(Reader())
    sized.dropped = True
    assert sized.room(10**9) == NO_LIMIT
    assert not sized.left(10**9)


def test_what_nobody_has_begun_to_read_runs_by_itself(generator: Demand):
    assert generator.room(10**9) == NO_LIMIT


def test_what_nobody_can_read_any_more_ends_after_a_while(generator: Demand):
    generator.dropped = True
    assert generator.room(0) == UNREAD_ITEMS
    assert not generator.left(UNREAD_ITEMS - 1)
    assert generator.left(UNREAD_ITEMS)
    assert not generator.unwanted, "what was drawn runs to its end"


def test_so_many_items_lie_ahead_of_a_loop(generator: Demand):
    generator.begin(Reader())
    assert generator.room(0) == UNREAD_ITEMS
    assert generator.room(UNREAD_ITEMS) == 0
    generator.read(UNREAD_ITEMS // 2)
    assert generator.room(UNREAD_ITEMS) == UNREAD_ITEMS // 2


def test_not_each_item_that_is_read_makes_a_chunk(generator: Demand):
    generator.begin(Reader())
    generator.read(UNREAD_ITEMS // 4 - 1)
    assert generator.room(UNREAD_ITEMS) == 0


def test_the_foremost_of_two_loops_counts(generator: Demand):
    for number in (1_000, 10):
        generator.begin(Reader())
        generator.read(number)
    assert generator.room(0) == UNREAD_ITEMS + 1_000


def test_fewer_large_results_lie_ahead_but_some_do(generator: Demand):
    generator.begin(Reader())
    generator.arrived(10, 10 * 1_000_000)
    assert generator.room(0) == UNREAD_BYTES // 1_000_000
    for _ in range(100):
        generator.arrived(1, UNREAD_BYTES)
    assert generator.room(0, workers=8) == 8 * FEWEST_EACH, "each worker has something to do"
    assert generator.kept == 1, "behind the loop nobody needs any"


@pytest.mark.parametrize("size", [1, UNREAD_BYTES // UNREAD_ITEMS, 100_000, 3_000_000, UNREAD_BYTES, 3 * UNREAD_BYTES])
def test_a_loop_that_tells_of_each_step_only_is_never_left_without_the_next_item(generator: Demand, size: int):
    """One that told of each 64 items waited for ever for the next one, where only 64 were drawn ahead."""
    generator.begin(Reader())
    generator.arrived(1, size)
    drawn = 0
    for number in range(20 * generator.step + 1):
        if number % generator.step == 0:
            generator.read(number)
            drawn += generator.room(drawn)
        assert drawn > number


def test_a_loop_that_was_left_draws_no_more_until_another_begins(generator: Demand):
    loop, another = Reader(), Reader()
    generator.begin(loop)
    generator.leave(loop)
    assert generator.room(0) == 0
    assert not generator.left(0), "somebody who holds it may come back"
    generator.begin(another)
    assert generator.room(0) > 0


def test_whoever_waits_for_all_wants_all(generator: Demand):
    loop = Reader()
    generator.begin(loop)
    generator.leave(loop)
    generator.wait(1)
    assert generator.room(10**9) == NO_LIMIT
    generator.wait(-1)
    assert generator.room(10**9) == 0


def test_an_item_that_is_asked_for_is_drawn_and_no_more(generator: Demand):
    loop = Reader()
    generator.begin(loop)
    generator.leave(loop)
    generator.ask(50)
    assert generator.room(20) == 31
    assert generator.room(51) == 0


def test_what_was_read_left_and_dropped_is_over(generator: Demand):
    loop = Reader()
    generator.begin(loop)
    generator.dropped = True
    generator.leave(loop)
    assert generator.left(5)
    assert generator.unwanted


def test_the_numbers_are_those_of_the_documents():
    assert (demand.UNREAD_ITEMS, demand.UNREAD_BYTES) == (100_000, 100_000_000)
