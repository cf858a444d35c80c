"""A tally's numbers, with a clock that moves only when told."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from nbqueue.progress.tally import LANES_AFTER_S, MOST_LANES, Lane, Tally


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_new_tally_knows_its_total_and_nothing_else(clock):
    snapshot = Tally("simulate", 240, clock=clock).snapshot()
    assert (snapshot.label, snapshot.total, snapshot.settled, snapshot.fraction) == ("simulate", 240, 0, 0.0)
    assert (snapshot.rate, snapshot.eta_s, snapshot.finished) == (None, None, False)


def test_items_settle_as_done_failed_or_cancelled(clock):
    tally = Tally("simulate", 10, clock=clock)
    tally.settle(done=3, failed=2)
    tally.settle(cancelled=1)
    snapshot = tally.snapshot()
    assert (snapshot.done, snapshot.failed, snapshot.cancelled) == (3, 2, 1)
    assert snapshot.settled == 6
    assert snapshot.fraction == pytest.approx(0.6)


def test_running_never_goes_below_zero_when_a_start_was_lost(clock):
    tally = Tally("simulate", 10, clock=clock)
    tally.start()
    tally.settle(done=2, was_running=2)
    assert tally.snapshot().running == 0
    tally.retry(was_running=1)
    assert tally.snapshot().running == 0
    tally.start(3)
    assert tally.snapshot().running == 3


def test_a_retry_is_counted_and_is_not_running_any_more(clock):
    tally = Tally("simulate", 10, clock=clock)
    tally.start(2)
    tally.retry(was_running=1)
    snapshot = tally.snapshot()
    assert (snapshot.retried, snapshot.running, snapshot.settled) == (1, 1, 0)


def test_a_generator_has_no_total_no_fraction_and_no_eta_until_it_ends(clock):
    tally = Tally("simulate", clock=clock)
    clock.now += 2
    tally.settle(done=10)
    snapshot = tally.snapshot()
    assert (snapshot.total, snapshot.fraction, snapshot.eta_s) == (None, None, None)
    assert snapshot.rate == pytest.approx(5)
    tally.expect(20)
    snapshot = tally.snapshot()
    assert snapshot.fraction == pytest.approx(0.5)
    assert snapshot.eta_s == pytest.approx(2)


def test_an_empty_batch_is_complete():
    assert Tally("simulate", 0).snapshot().fraction == 1.0


def test_elapsed_stands_still_after_finish_and_a_second_finish_changes_nothing(clock):
    tally = Tally("simulate", 1, clock=clock)
    tally.start()
    clock.now += 4
    tally.settle(done=1)
    tally.finish()
    clock.now += 100
    tally.finish()
    snapshot = tally.snapshot()
    assert (snapshot.elapsed_s, snapshot.finished, snapshot.running) == (4, True, 0)
    assert snapshot.rate == pytest.approx(0.25)
    assert snapshot.eta_s is None


def test_a_reopened_tally_goes_on_without_counting_the_pause(clock):
    tally = Tally("simulate", 10, clock=clock)
    clock.now += 5
    tally.settle(done=6, failed=4)
    tally.finish()
    clock.now += 1000
    tally.reopen(4)
    clock.now += 1
    snapshot = tally.snapshot()
    assert (snapshot.failed, snapshot.settled, snapshot.finished) == (0, 6, False)
    assert snapshot.elapsed_s == pytest.approx(6)


def test_the_rate_is_steady_for_a_steady_stream(clock):
    tally = Tally("simulate", 1000, clock=clock)
    for _ in range(200):
        clock.now += 0.1
        tally.settle(done=5)
        if clock.now > 1001:
            assert tally.snapshot().rate == pytest.approx(50, rel=0.01)


def test_the_rate_follows_work_that_becomes_slower(clock):
    tally = Tally("simulate", 10_000, clock=clock)
    for _ in range(100):
        clock.now += 0.1
        tally.settle(done=10)
    for _ in range(300):
        clock.now += 0.1
        tally.settle(done=1)
    assert tally.snapshot().rate == pytest.approx(10, rel=0.2)


def test_the_rate_of_slow_tasks_does_not_jump_between_two_arrivals(clock):
    tally = Tally("simulate", 100, clock=clock)
    rates = []
    for _ in range(10):
        for _ in range(60):
            clock.now += 1
            if tally.snapshot().rate is not None:
                rates.append(tally.snapshot().rate)
        tally.settle(done=2)
    assert min(rates[60:]) > 0.5 * 2 / 60
    assert max(rates[60:]) < 2 * 2 / 60


def test_the_rate_sinks_when_nothing_arrives_any_more(clock):
    tally = Tally("simulate", 100, clock=clock)
    for _ in range(10):
        clock.now += 1
        tally.settle(done=1)
    clock.now += 60
    assert tally.snapshot().rate < 0.1


def test_a_batch_without_workers_went_on_with_a_growing_remaining_time(clock):
    unserved = False
    tally = Tally("simulate", 100, clock=clock, unserved=lambda: unserved)
    for _ in range(10):
        clock.now += 1
        tally.settle(done=1)
    assert tally.snapshot().eta_s == pytest.approx(90)
    unserved = True
    clock.now += 60
    snapshot = tally.snapshot()
    assert (snapshot.unserved, snapshot.rate, snapshot.eta_s) == (True, None, None)
    # With workers again, the time without them is not held against the rest.
    unserved = False
    for _ in range(3):
        clock.now += 1
        tally.settle(done=1)
    snapshot = tally.snapshot()
    assert (snapshot.unserved, snapshot.rate) == (False, pytest.approx(1))
    unserved = True
    tally.finish()
    assert not tally.snapshot().unserved


def test_no_rate_is_given_from_the_first_moments(clock):
    tally = Tally("simulate", 100, clock=clock)
    clock.now += 0.001
    tally.settle(done=1)
    assert tally.snapshot().rate is None


def test_cancelled_items_say_nothing_about_speed(clock):
    tally = Tally("simulate", 100, clock=clock)
    clock.now += 10
    tally.settle(done=10)
    tally.settle(cancelled=90)
    tally.finish()
    assert tally.snapshot().rate == pytest.approx(1)


def test_counts_from_many_threads_add_up():
    tally = Tally("simulate", 40_000)

    def settle() -> None:
        for _ in range(10_000):
            tally.start()
            tally.settle(done=1, was_running=1)

    threads = [threading.Thread(target=settle) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tally.snapshot().done == 40_000
    assert tally.snapshot().running == 0


def test_importing_the_tally_and_the_views_loads_no_drawing_library():
    code = (
        "import sys, nbqueue.progress.tally, nbqueue.progress.views;"
        "print([m for m in ('rich', 'IPython', 'ipywidgets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _lane(place: int, done: float = 1) -> Lane:
    return Lane(f"simulate[{place}]", "", done, 10)


def test_lanes_are_shown_once_their_item_has_run_for_a_while(clock):
    tally = Tally("simulate", 10, clock=clock)
    tally.tell(3, 0, _lane(3))
    assert tally.snapshot().lanes == ()
    clock.now += LANES_AFTER_S
    tally.tell(1, 0, _lane(1))
    tally.tell(3, 0, _lane(3, done=2))
    assert tally.snapshot().lanes == (_lane(3, done=2),)
    clock.now += LANES_AFTER_S
    assert tally.snapshot().lanes == (_lane(1), _lane(3, done=2))


def test_a_lane_goes_when_it_says_so_when_its_item_ends_and_when_all_ends(clock):
    tally = Tally("simulate", 10, clock=clock)
    for place in range(4):
        tally.tell(place, 0, _lane(place))
    tally.tell(0, 1, _lane(0))
    clock.now += LANES_AFTER_S
    assert len(tally.snapshot().lanes) == 5
    tally.tell(0, 1, None)
    tally.quiet(1, 3)
    assert [lane.label for lane in tally.snapshot().lanes] == ["simulate[0]", "simulate[3]"]
    tally.finish()
    tally.tell(0, 0, _lane(0))
    assert tally.snapshot().lanes == ()


def test_that_a_task_has_started_may_be_heard_after_what_it_has_told(clock):
    tally = Tally("simulate", 10, clock=clock)
    tally.tell(0, 0, _lane(0), attempt=1)
    tally.begin(0, attempt=1)
    clock.now += LANES_AFTER_S
    assert tally.snapshot().lanes == (_lane(0),)


def test_a_further_attempt_begins_with_no_lanes(clock):
    tally = Tally("simulate", 10, clock=clock)
    tally.tell(0, 0, _lane(0), attempt=1)
    tally.begin(0, attempt=2)
    tally.tell(0, 1, _lane(0, done=5), attempt=2)
    tally.tell(0, 0, _lane(0), attempt=1)  # late
    clock.now += LANES_AFTER_S
    assert tally.snapshot().lanes == (_lane(0, done=5),)


def test_a_task_is_named_once_above_all_its_lanes(clock):
    tally = Tally("simulate", 10, clock=clock)
    tally.tell(0, 2, _lane(0))
    tally.tell(0, 1, _lane(0))
    clock.now += LANES_AFTER_S
    assert [lane.label for lane in tally.snapshot().lanes] == ["simulate[0]", ""]


def test_lanes_beyond_the_first_few_are_a_number(clock):
    tally = Tally("simulate", 100, clock=clock)
    for place in range(MOST_LANES + 3):
        tally.tell(place, 0, _lane(place))
    clock.now += LANES_AFTER_S
    snapshot = tally.snapshot()
    assert (len(snapshot.lanes), snapshot.more_lanes) == (MOST_LANES, 3)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 10**400])
def test_a_lane_has_no_number_that_cannot_be_drawn(number):
    lane = Lane.from_news("simulate[0]", {"done": number, "total": number, "text": ""})
    assert (lane.done, lane.total) == (0.0, None)
