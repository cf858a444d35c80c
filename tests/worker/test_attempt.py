"""Decisions about attempts, without processes, clock or Redis."""

from __future__ import annotations

import pickle
import signal

import pytest

from nbqueue.errors import TaskTimeout, WorkerDied
from nbqueue.worker.attempt import Exit, death, retry_delay


def test_the_pause_before_a_retry_doubles_and_has_a_limit():
    longest = [retry_delay(failures, 100, draw=lambda: 1.0) for failures in (1, 2, 3, 4, 50)]
    assert longest == [0.1, 0.2, 0.4, 0.8, 60.0]


def test_half_of_the_pause_is_chance_so_that_failures_do_not_come_back_together():
    assert retry_delay(3, 3, draw=lambda: 0.0) == pytest.approx(0.2)
    assert retry_delay(3, 3, draw=lambda: 0.5) == pytest.approx(0.3)


def test_after_the_last_retry_comes_none():
    assert retry_delay(2, 2, draw=lambda: 0.0) is not None
    assert retry_delay(3, 2) is None
    assert retry_delay(1, 0) is None


def test_a_death_tells_the_signal_the_memory_and_the_attempts():
    error = death("simulate", Exit(signal.SIGSEGV, None, 300_000_000), attempts=2, timeout_s=None)
    assert isinstance(error, WorkerDied)
    assert (error.signal, error.exitcode, error.attempts) == (signal.SIGSEGV, None, 2)
    for words in ("simulate", "SIGSEGV", "300 MB", "2 times"):
        assert words in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.signal, copy.peak_rss_bytes) == (str(error), error.signal, error.peak_rss_bytes)


def test_a_process_that_left_by_itself_tells_its_exit_code():
    error = death("simulate", Exit(None, 3, None), attempts=1, timeout_s=None)
    assert isinstance(error, WorkerDied)
    assert (error.signal, error.exitcode) == (None, 3)
    assert "exit code 3" in str(error)


def test_a_process_that_was_killed_for_the_time_limit_is_a_timeout():
    error = death("simulate", Exit(signal.SIGKILL, None, None), attempts=1, timeout_s=2.5)
    assert isinstance(error, TaskTimeout)
    assert error.timeout_s == 2.5
    assert "2.5 s" in str(error)
