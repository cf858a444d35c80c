"""The slot board: a line is read as it was written, by another process too, and a signal finds its task only."""

from __future__ import annotations

import os

import pytest

from nbqueue.worker import board
from nbqueue.worker.board import CANCEL, TIMEOUT, Board, Slot, place_of

CLIENT = "00ab34cd56ef7890"
ENTRY = "1/1700000000123-7"


@pytest.fixture
def slots():
    made = Board.create(3)
    yield made
    os.close(made.fd)


@pytest.fixture
def slot(slots: Board) -> Slot:
    slot = slots.slot(1)
    slot.clear()
    return slot


def test_a_new_line_is_of_a_worker_that_starts(slot: Slot):
    line = slot.read()
    assert line is not None
    assert line.state == board.STARTING
    assert not line.running


def test_what_a_worker_writes_is_read(slot: Slot):
    slot.hello(4711)
    slot.connected(99)
    slot.call(ENTRY, CLIENT, "12", 2, 1500, "simulate")
    slot.item(5, 123_456_789)
    line = slot.read()
    assert line is not None
    assert (line.pid, line.redis_id, line.entry, line.client, line.n) == (4711, 99, ENTRY, CLIENT, "12")
    assert (line.item, line.attempt, line.started_ns, line.timeout_ms) == (5, 2, 123_456_789, 1500)
    assert (line.name, line.running) == ("simulate", True)


def test_a_call_is_named_with_its_first_item_before_it_runs(slot: Slot):
    slot.idle()
    slot.call(ENTRY, CLIENT, "12", 2, 1500, "simulate", (30, 40), 5, 123_456_789)
    line = slot.read()
    assert line is not None
    assert (line.n, line.item, line.started_ns, line.printed) == ("12", 5, 123_456_789, (30, 40))
    assert not line.running
    slot.busy()
    line = slot.read()
    assert line is not None
    assert line.running


def test_an_item_that_was_split_off_keeps_its_name(slot: Slot):
    slot.call(ENTRY, CLIENT, "12.0", 1, 0, "f")
    line = slot.read()
    assert line is not None
    assert line.n == "12.0"


def test_a_long_name_is_cut_between_characters(slot: Slot):
    slot.call(ENTRY, CLIENT, "1", 1, 0, "ä" * 60)
    slot.call(ENTRY, CLIENT, "1", 1, 0, "x" + "ä" * 60)
    line = slot.read()
    assert line is not None
    assert line.name == "x" + "ä" * 31


def test_lines_do_not_touch_each_other(slots: Board, slot: Slot):
    slot.call(ENTRY, CLIENT, "1", 1, 0, "one")
    slots.slot(0).clear()
    slots.slot(2).call("0/1-1", CLIENT, "2", 1, 0, "two")
    line = slot.read()
    assert line is not None
    assert line.name == "one"


def test_a_line_that_is_half_written_is_not_believed(slot: Slot):
    slot.call(ENTRY, CLIENT, "1", 1, 0, "one")
    slot._words[0] += 1  # as if its writer had died in the middle
    assert slot.read() is None


def test_a_signal_is_for_the_item_that_it_was_aimed_at(slot: Slot):
    slot.call(ENTRY, CLIENT, "1", 1, 0, "one")
    slot.item(3, 1)
    assert slot.aimed_at_me() == 0
    slot.aim(ENTRY, 3, TIMEOUT)
    assert slot.aimed_at_me() == TIMEOUT
    slot.item(4, 2)
    assert slot.aimed_at_me() == 0, "it came too late, and must not hit the next item"


def test_a_signal_for_a_call_meets_whichever_item_runs_but_no_other_call(slot: Slot):
    slot.call(ENTRY, CLIENT, "1", 1, 0, "one")
    slot.item(3, 1)
    slot.aim(ENTRY, -1, CANCEL)
    assert slot.aimed_at_me() == CANCEL
    slot.item(4, 2)
    assert slot.aimed_at_me() == CANCEL
    slot.call("1/1700000000123-8", CLIENT, "2", 1, 0, "two")
    assert slot.aimed_at_me() == 0


def test_waiting_and_back(slot: Slot):
    slot.call(ENTRY, CLIENT, "1", 1, 0, "one")
    slot.item(0, 1)
    slot.waiting(True)
    assert slot.state() == board.WAITING
    slot.waiting(False)
    assert slot.state() == board.BUSY


def test_another_process_sees_the_same_line(slots: Board, slot: Slot):
    pid = os.fork()
    if pid == 0:
        Board(slots.fd, slots.slots).slot(1).call(ENTRY, CLIENT, "8", 1, 0, "theirs")
        os._exit(0)
    os.waitpid(pid, 0)
    line = slot.read()
    assert line is not None
    assert (line.name, line.n) == ("theirs", "8")


def test_calls_beside_each_other_have_places_of_their_own(slots: Board, slot: Slot):
    other = slots.slot(2)
    other.clear()
    assert list(slot.beside()) == []
    for number in (0, 2):
        slot.several(number + 1)
        place = slot.place(number)
        place.call(f"1/17-{number}", CLIENT, str(number), 1, 0, "wait")
        place.item(0, 100 + number)
    line = slot.read()
    assert line is not None
    assert slot.runs_several()
    assert not line.running, "none of them is the worker's only one"
    # As the supervisor sees it, which has its own view of the memory.
    seen = slots.slot(1)
    assert [(line.n, line.started_ns) for _, line in seen.beside()] == [("0", 100), ("2", 102)]
    assert list(other.beside()) == []
    slot.place(0).leave_place()
    assert [line.n for _, line in seen.beside()] == ["2"]
    seen.clear()
    slot.several(3)
    assert list(slot.beside()) == []


def test_a_signal_finds_the_place_that_it_is_for(slot: Slot):
    slot.several(2)
    places = [slot.place(number) for number in range(2)]
    for number, place in enumerate(places):
        place.call(f"1/17-{number}", CLIENT, "1", 1, 0, "wait")
        place.item(0, 1)
    places[1].aim("1/17-1", -1, CANCEL)
    places[0].aim("1/17-9", -1, TIMEOUT)
    assert [place.aimed_at_me() for place in places] == [0, CANCEL]


BUNDLE = "1*1700000000123-7"


def test_a_call_of_a_bundle_keeps_the_name_of_its_entry(slot: Slot):
    for stream, n in (("0", 1), ("1", 12), ("2", 10**18 - 1)):
        entry = f"{stream}*1700000000123-7+{n}"
        slot.call(entry, CLIENT, str(n), 1, 0, "f")
        line = slot.read()
        assert line is not None
        assert (line.entry, line.n) == (entry, str(n))


def test_the_next_call_of_a_bundle_is_another_in_the_same_place(slot: Slot):
    slot.call(f"{BUNDLE}+12", CLIENT, "12", 2, 1500, "simulate", (30, 40), 0, 1)
    slot.follows("13", (50, 60), 123_456_789)
    line = slot.read()
    assert line is not None
    assert (line.entry, line.n, line.item, line.attempt) == (f"{BUNDLE}+13", "13", 0, 2)
    assert (line.printed, line.started_ns, line.timeout_ms) == ((50, 60), 123_456_789, 1500)
    assert (line.client, line.name) == (CLIENT, "simulate")


def test_a_signal_for_a_call_of_a_bundle_meets_no_other_of_it(slot: Slot):
    slot.call(f"{BUNDLE}+12", CLIENT, "12", 1, 0, "one")
    slot.item(0, 1)
    for why, item in ((TIMEOUT, 0), (CANCEL, -1)):
        slot.aim(f"{BUNDLE}+12", item, why)
        assert slot.aimed_at_me() == why
        for other in (f"{BUNDLE}+13", f"{BUNDLE}+1", "1*1700000000123-8+12", "0*1700000000123-7+12"):
            slot.aim(other, item, why)
            assert slot.aimed_at_me() == 0, other
    slot.aim(f"{BUNDLE}+12", -1, CANCEL)
    slot.follows("13", (0, 0), 2)
    assert slot.aimed_at_me() == 0, "it came too late"


def test_a_bundle_is_not_a_call_that_lies_alone_at_the_same_place(slot: Slot):
    slot.call(ENTRY, CLIENT, "12", 1, 0, "alone")
    slot.item(0, 1)
    slot.aim(f"{BUNDLE}+12", -1, CANCEL)
    assert slot.aimed_at_me() == 0
    slot.call(f"{BUNDLE}+12", CLIENT, "12", 1, 0, "bundled")
    slot.aim(ENTRY, -1, CANCEL)
    assert slot.aimed_at_me() == 0


def test_the_calls_of_a_bundle_have_one_place_among_what_was_fetched():
    assert place_of(f"{BUNDLE}+12") == place_of(f"{BUNDLE}+13") == place_of(ENTRY) == (1, 1700000000123, 7)
    assert place_of("0/9-9") < place_of("1/1-0") < place_of("1*1-1+5") < place_of("1/2-0") < place_of("2/1-0")
