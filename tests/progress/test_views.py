"""The ticker: pulls, throttles, and always sends the last state."""

from __future__ import annotations

import itertools
import os
import pty
import subprocess
import sys
import threading
import time
import warnings

import pytest
from screen import read_all

from nbqueue.progress import views
from nbqueue.progress.tally import Snapshot, Tally
from nbqueue.progress.views import open_view


class Recorder:
    """A view that remembers what it was given."""

    def __init__(self) -> None:
        self.updates: list[tuple[float, Snapshot]] = []
        self.settled: list[Snapshot] = []
        self.events: list[str] = []
        self.thread: threading.Thread | None = None

    def update(self, snapshot: Snapshot) -> None:
        self.thread = threading.current_thread()
        self.events.append("update")
        self.updates.append((time.monotonic(), snapshot))

    def settle(self, snapshot: Snapshot) -> None:
        self.events.append("settle")
        self.settled.append(snapshot)


@pytest.fixture(autouse=True)
def no_ticker_is_left(wait_until):
    """Each test closes what it opens, so the thread must be gone after it."""
    yield
    wait_until(lambda: _tickers() == 0)


@pytest.fixture
def use_view(monkeypatch):
    """``use_view(view)``: the next views to open are this one."""

    def use(view):
        monkeypatch.setattr(views, "_view", lambda tally, cancel: view)
        return view

    return use


def test_a_flood_of_changes_becomes_at_most_ten_pictures_a_second(use_view):
    view = use_view(Recorder())
    tally = Tally("simulate", 10**9)
    handle = open_view(tally)
    began = time.monotonic()
    while len(view.updates) < 5:
        tally.settle(done=1)
        assert time.monotonic() - began < 10
    times = [at for at, _ in view.updates]
    assert min(b - a for a, b in itertools.pairwise(times)) > 0.08
    tally.finish()
    assert handle.close()


def test_nothing_is_sent_while_nothing_changes(use_view, wait_until):
    view = use_view(Recorder())
    tally = Tally("simulate", 10, clock=lambda: 0.0)
    ticks = []
    other = Tally("other", 10, clock=lambda: ticks.append(1) or 0.0)
    handles = [open_view(tally), open_view(other)]
    wait_until(lambda: len(ticks) > 5)
    assert len(view.updates) == 2  # one first picture of each
    tally.settle(done=1)
    wait_until(lambda: len(view.updates) == 3)
    for handle in handles:
        handle.close(timeout=0)


def test_the_last_state_arrives_once_and_nothing_after_it(use_view, wait_until):
    view = use_view(Recorder())
    tally = Tally("simulate", 3)
    handle = open_view(tally)
    tally.settle(done=2, failed=1)
    tally.finish()
    wait_until(lambda: handle.settled)
    (last,) = view.settled
    assert (last.done, last.failed, last.finished) == (2, 1, True)
    assert handle.close()
    assert handle.close()
    assert view.events.count("settle") == 1
    assert view.events[-1] == "settle"


def test_close_sends_the_last_state_before_it_returns_without_waiting_for_a_tick(use_view):
    view = use_view(Recorder())
    for _ in range(20):
        tally = Tally("simulate", 1)
        handle = open_view(tally)
        tally.settle(done=1)
        tally.finish()
        sent = len(view.settled)
        assert handle.close()
        assert len(view.settled) == sent + 1


def test_close_waits_for_a_tally_that_is_just_about_to_finish(use_view):
    view = use_view(Recorder())
    tally = Tally("simulate", 1)
    handle = open_view(tally)
    listener = threading.Timer(0.2, lambda: (tally.settle(done=1), tally.finish()))
    listener.start()
    assert handle.close(timeout=10)
    assert view.settled[0].done == 1
    listener.join()


def test_close_settles_an_unfinished_tally_with_what_there_is(use_view):
    view = use_view(Recorder())
    tally = Tally("simulate", 5)
    tally.start(2)
    tally.settle(done=1)
    handle = open_view(tally)
    assert handle.close(timeout=0)
    (last,) = view.settled
    assert (last.done, last.running, last.finished) == (1, 0, True)


def test_close_from_many_threads_settles_once(use_view):
    view = use_view(Recorder())
    tally = Tally("simulate", 1)
    handle = open_view(tally)
    tally.finish()
    threads = [threading.Thread(target=handle.close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(view.settled) == 1


def test_close_does_not_hang_on_a_view_that_does(use_view, wait_until):
    stuck, free = threading.Event(), threading.Event()

    class Frozen(Recorder):
        def update(self, snapshot):
            stuck.set()
            free.wait(20)

    use_view(Frozen())
    tally = Tally("simulate", 1)
    handle = open_view(tally)
    assert stuck.wait(10)
    tally.finish()
    assert not handle.close(timeout=0.05)
    free.set()
    wait_until(lambda: handle.settled)


def test_the_ticker_ends_with_the_last_view_and_starts_with_the_next(use_view, wait_until):
    use_view(Recorder())
    for _ in range(2):
        tally = Tally("simulate", 1)
        open_view(tally)
        assert _tickers() == 1
        tally.finish()
        wait_until(lambda: _tickers() == 0)


def test_a_view_that_fails_is_reported_once_and_still_gets_the_last_state(use_view, wait_until):
    class Failing(Recorder):
        def update(self, snapshot):
            super().update(snapshot)
            raise OSError("no ink")

    view = use_view(Failing())
    tally = Tally("simulate", 100)
    healthy_tally = Tally("healthy", 100)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        handle = open_view(tally)
        wait_until(lambda: view.updates)
        tally.settle(done=1)
        healthy = use_view(Recorder())
        healthy_handle = open_view(healthy_tally)
        wait_until(lambda: healthy.updates)
        tally.finish()
        healthy_tally.finish()
        assert handle.close()
        assert healthy_handle.close()
    assert len(view.updates) == 1
    assert len(view.settled) == len(healthy.settled) == 1
    (warning,) = caught
    assert "no ink" in str(warning.message)


def test_a_failing_view_is_still_only_reported_where_warnings_are_errors(use_view, wait_until, capsys):
    class Failing(Recorder):
        def update(self, snapshot):
            raise OSError("no ink")

    use_view(Failing())
    tally = Tally("simulate", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle = open_view(tally)
        wait_until(lambda: handle._broken)
        tally.finish()
        wait_until(lambda: handle.settled)
    assert "no ink" in capsys.readouterr().err


def test_there_is_no_view_without_a_terminal_or_a_kernel():
    handle = open_view(Tally("simulate", 1))
    assert handle.settled
    assert handle.close()


def test_there_is_no_view_from_another_thread(monkeypatch):
    monkeypatch.setattr(views, "_in_kernel", lambda: pytest.fail("asked"))
    handles = []
    thread = threading.Thread(target=lambda: handles.append(open_view(Tally("simulate", 1))))
    thread.start()
    thread.join()
    assert handles[0].settled


@pytest.mark.parametrize("value", ["0", "false", "off", "OFF"])
def test_the_environment_turns_views_off(monkeypatch, value):
    monkeypatch.setenv("NBQUEUE_PROGRESS", value)
    monkeypatch.setattr(views, "_in_kernel", lambda: pytest.fail("asked"))
    assert open_view(Tally("simulate", 1)).settled


def test_a_forked_child_leaves_its_parents_views_alone(use_view, wait_until):
    view = use_view(Recorder())
    tally = Tally("simulate", 5)
    handle = open_view(tally)
    wait_until(lambda: view.updates)
    seen = len(view.events)
    pid = os.fork()
    if pid == 0:
        # Exit codes tell the parent, since an assertion here would run pytest twice.
        untouched = not handle.close(timeout=0) and len(view.events) == seen and not view.settled
        own = Tally("child", 1)
        own_handle = open_view(own)  # with a ticker of its own
        own.finish()
        os._exit(0 if untouched and own_handle.close() and len(view.settled) == 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    tally.settle(done=5)
    tally.finish()
    assert handle.close()
    assert view.settled[0].done == 5


def test_the_last_state_arrives_even_where_no_thread_can_be_started(use_view, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    view = use_view(Recorder())
    tally = Tally("simulate", 1)
    with pytest.warns(RuntimeWarning, match="stands still"):
        handle = open_view(tally)
    tally.finish()
    assert handle.close()
    assert len(view.settled) == 1
    monkeypatch.undo()
    views._ticker.forget()


SCRIPT = """
import sys
from nbqueue.progress.tally import Tally
from nbqueue.progress.views import open_view

tally = Tally("simulate", 4)
handle = open_view(tally)
assert not handle.settled
print("a print of the script")
tally.settle(done=4)
tally.finish()
"""


def test_a_script_on_a_terminal_leaves_its_last_state_though_it_ends_at_once():
    screen, terminal = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "PYTHONIOENCODING": "utf-8"}
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=terminal, stdout=terminal, stderr=terminal, env=env
    )
    os.close(terminal)
    seen = read_all(screen)
    assert child.wait(timeout=10) == 0
    text = seen.decode()
    assert "4/4 done" in text
    assert "a print of the script" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is visible again"


def test_prints_go_where_they_were_sent_when_only_stderr_is_a_terminal(tmp_path):
    screen, terminal = pty.openpty()
    child = subprocess.run(
        [sys.executable, "-c", SCRIPT], stdin=terminal, stdout=subprocess.PIPE, stderr=terminal, check=True
    )
    os.close(terminal)
    os.close(screen)
    assert child.stdout == b"a print of the script\n"


def _tickers() -> int:
    return sum(thread.name == "nbqueue-progress" for thread in threading.enumerate())
