"""A tally's numbers, with a clock that moves only when told."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from nbqueue.progress.tally import Tally


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
