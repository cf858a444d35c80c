"""The supervisor's eye on calls that run beside each other: whom it aims at, and when it kills."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from nbqueue.worker.board import CANCEL, TIMEOUT, Board, Line, Slot
from nbqueue.worker.coroutines.watch import Several

CLIENT = "00ab34cd56ef7890"
GRACE_S, TOLD_AFTER_S = 0.5, 0.2


class Worker:
    """What was done to it."""

    def __init__(self, slot: Slot) -> None:
        self.slot, self.several = slot, Several()
        self.signals, self.kills, self.told = 0, [], []

    def signal(self) -> None:
        self.signals += 1

    def kill(self, *, blameless: bool) -> None:
        self.kills.append(blameless)

    def tell(self, line: Line) -> bool:
        self.told.append(line.n)
        return True

    def begin(self, number: int, *, age_s: float = 0.0, timeout_ms: int = 0) -> Slot:
        self.slot.several(number + 1)
        place = self.slot.place(number)
        place.call(f"1/17-{number}", CLIENT, str(number), 1, timeout_ms, "wait")
        place.item(0, time.monotonic_ns() - int(age_s * 1e9))
        return place

    def look(self, now: float, *cancelled: str) -> None:
        self.several.look(self.slot, cancelled, self, now, GRACE_S, TOLD_AFTER_S)


@pytest.fixture
def worker() -> Iterator[Worker]:
    board = Board.create(2)
    slot = board.slot(1)
    slot.clear()
    yield Worker(slot)
    os.close(board.fd)


def test_a_cancel_means_one_call_and_kills_when_that_does_not_end(worker: Worker):
    places = [worker.begin(number) for number in range(3)]
    worker.look(0.0, "1/17-1")
    assert [place.aimed_at_me() for place in places] == [0, CANCEL, 0]
    worker.look(0.1, "1/17-1")
    assert (worker.signals, worker.kills) == (1, [])
    worker.look(0.6, "1/17-1")
    assert worker.kills == [True], "none of the others is to blame"


def test_one_that_ends_in_its_grace_is_forgotten(worker: Worker):
    place = worker.begin(0)
    worker.look(0.0, "1/17-0")
    place.leave_place()
    worker.look(0.6, "1/17-0")
    assert worker.kills == []


def test_time_limits_are_each_ones_own(worker: Worker):
    worker.begin(0, age_s=9)
    late = worker.begin(1, age_s=9, timeout_ms=1000)
    worker.begin(2, age_s=9, timeout_ms=60_000)
    worker.look(0.0)
    assert late.aimed_at_me() == TIMEOUT
    assert worker.signals == 1
    worker.look(0.6)
    assert worker.kills == [False]
    assert worker.several.overdue == {"1/17-1": 1.0}


def test_of_several_that_could_not_hear_of_their_limits_none_is_blamed_alone(worker: Worker):
    for number in range(3):
        worker.begin(number, age_s=9, timeout_ms=1000 if number else 0)
    worker.look(0.0)
    worker.look(0.6)
    assert (worker.kills, worker.several.overdue) == ([False], {})
    assert worker.several.suspects == {"1/17-1", "1/17-2"}


def test_of_several_that_are_late_the_one_that_has_heard_of_it_is_blamed(worker: Worker):
    places = [worker.begin(number, age_s=9, timeout_ms=1000) for number in range(3)]
    worker.look(0.0)
    for place in places:
        place.heard()
    places[2].leave_place()
    worker.look(0.6)
    assert (worker.kills, worker.several.overdue) == ([False], {"1/17-0": 1.0})


def test_the_only_one_that_is_late_is_blamed_whether_it_has_heard_or_not(worker: Worker):
    worker.begin(0, age_s=9, timeout_ms=1000)
    worker.begin(1, age_s=9)
    worker.look(0.0)
    worker.look(0.6)
    assert (worker.kills, worker.several.overdue) == ([False], {"1/17-0": 1.0})


def test_what_was_heard_of_an_aim_before_does_not_count_for_the_next(worker: Worker):
    place = worker.begin(0)
    place.aim("1/17-0", -1, TIMEOUT)
    place.heard()
    assert place.has_heard()
    place.aim("1/17-0", -1, TIMEOUT)
    assert not place.has_heard()


def test_each_is_told_of_once_when_it_has_run_for_a_while(worker: Worker):
    worker.begin(0, age_s=1)
    worker.begin(1)
    worker.look(0.0)
    worker.look(0.1)
    assert worker.told == ["0"]
