"""Which streams a worker reads: those of higher priority first, and none is left out for good."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from nbqueue.worker.turns import ALL, SHARE, Turns


def served(turns: Turns, fetches: int, has_work: Callable[[], str]) -> list[str]:
    """What each of so many fetches of one entry a stream brings."""
    answers = []
    for _ in range(fetches):
        read = turns.next()
        answer = "".join(stream for stream in "012"[:read] if stream in has_work())
        if answer:
            turns.brought(read, answer[0], answer[-1])
        else:
            turns.nothing()
        answers.append(answer)
    return answers


@pytest.mark.parametrize("stream", "012")
def test_where_one_stream_has_work_all_are_read_at_once(stream: str) -> None:
    turns = Turns()
    for _ in range(100):
        assert turns.next() == ALL
        turns.brought(ALL, stream, stream)


@pytest.mark.parametrize(
    ("streams", "shares"),
    [("01", (SHARE, 1)), ("12", (SHARE, 1)), ("02", (SHARE**2, 1)), ("012", (SHARE**2, SHARE, 1))],
)
def test_of_two_neighbours_the_first_is_served_six_times_as_often(streams: str, shares: tuple[int, ...]) -> None:
    rounds = 20
    turns = Turns()
    # The first fetch knows of nothing yet.
    served(turns, 1, lambda: streams)
    counts = Counter("".join(served(turns, rounds * shares[0], lambda: streams)))
    assert tuple(counts[stream] for stream in streams) == tuple(rounds * share for share in shares)


def test_what_can_wait_is_served_again_and_again_whatever_else_there_is() -> None:
    draw = random.Random(7)
    answers = served(Turns(), 20_000, lambda: "".join(s for s in "01" if draw.random() < 0.9) + "2")
    waits = [len(gap) for gap in "".join("2" if "2" in answer else "." for answer in answers).split("2")]
    assert max(waits) < SHARE**2


def test_a_read_that_leaves_streams_out_and_brings_nothing_is_followed_by_one_of_all() -> None:
    turns = Turns()
    turns.brought(ALL, "0", "2")
    assert turns.next() == 1
    turns.nothing()
    assert turns.next() == ALL


def test_a_stream_that_runs_dry_makes_room_for_the_next_one() -> None:
    turns = Turns()
    turns.brought(ALL, "0", "1")
    for _ in range(SHARE):
        read = turns.next()
        turns.brought(read, "1" if read > 1 else "0", "1" if read > 1 else "0")
    assert turns.next() == 2
