"""The lines on a terminal, drawn by rich into a file that claims to be one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from screen import screen_of

from nbqueue.progress.tally import Lane, Tally
from nbqueue.progress.terminal import TerminalView


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=110, color_system="truecolor")


def test_the_line_names_the_batch_and_its_numbers(console):
    tally = Tally("simulate", 240)
    view = TerminalView(tally.snapshot(), console)
    tally.start(3)
    tally.settle(done=100, failed=4)
    view.update(tally.snapshot())
    line = _screen(console)[-1]
    assert line.startswith("simulate ━")
    assert "100/240 done · ✗ 4 failed · ▸ 3 running" in line
    view.settle(tally.snapshot())


def test_the_last_state_stays_on_the_screen(console):
    tally = Tally("simulate", 2)
    view = TerminalView(tally.snapshot(), console)
    tally.settle(done=2)
    tally.finish()
    view.settle(tally.snapshot())
    lines = _screen(console)
    assert len(lines) == 1
    assert "✓ 2/2 done" in lines[0]


def test_several_views_share_one_region(console):
    tallies = [Tally("first", 4), Tally("second", 4)]
    views = [TerminalView(tally.snapshot(), console) for tally in tallies]
    tallies[0].settle(done=1)
    views[0].update(tallies[0].snapshot())
    assert [line.split()[0] for line in _screen(console)] == ["first", "second"]
    tallies[1].settle(done=4)
    tallies[1].finish()
    views[1].settle(tallies[1].snapshot())
    assert [line.split()[0] for line in _screen(console)] == ["second", "first"]
    tallies[0].settle(done=3)
    tallies[0].finish()
    views[0].settle(tallies[0].snapshot())
    lines = _screen(console)
    assert [line.split()[0] for line in lines] == ["second", "first"]
    assert all("✓ 4/4 done" in line for line in lines)


def test_a_view_opened_after_the_region_was_left_starts_a_new_one(console):
    for number in range(3):
        tally = Tally(f"batch-{number}", 1)
        view = TerminalView(tally.snapshot(), console)
        tally.settle(done=1)
        tally.finish()
        view.settle(tally.snapshot())
    assert [line.split()[0] for line in _screen(console)] == ["batch-0", "batch-1", "batch-2"]


def test_a_narrow_terminal_loses_the_bar_before_it_loses_numbers():
    console = Console(file=io.StringIO(), force_terminal=True, width=44)
    tally = Tally("simulate", 240)
    tally.settle(done=100, failed=4)
    view = TerminalView(tally.snapshot(), console)
    (line,) = _screen(console)
    assert "━" not in line
    assert "100/240 done · ✗ 4 failed" in line
    view.settle(tally.snapshot())


def test_nothing_is_drawn_where_there_is_no_terminal():
    console = Console(file=io.StringIO(), force_terminal=False)
    tally = Tally("simulate", 1)
    view = TerminalView(tally.snapshot(), console)
    tally.settle(done=1)
    tally.finish()
    view.update(tally.snapshot())
    view.settle(tally.snapshot())
    assert console.file.getvalue() == ""


def test_a_label_is_shown_as_it_is_and_never_as_markup(console):
    view = TerminalView(Tally("[red]x[/red]", 1).snapshot(), console)
    assert "[red]x[/red]" in _screen(console)[0]
    view.settle(Tally("x", 1).snapshot())


def test_what_running_tasks_tell_stands_below_their_batch_and_goes_with_it(console):
    clock = [0.0]
    tally = Tally("simulate", 4, clock=lambda: clock[0])
    view = TerminalView(tally.snapshot(), console)
    tally.tell(2, 1, Lane("simulate[2]", "epochs", 5, 10))
    clock[0] = 2.0
    view.update(tally.snapshot())
    _, lane = _screen(console)
    assert lane.split() == ["simulate[2]", "─" * 20, "5/10", "·", "epochs"]
    tally.finish()
    view.settle(tally.snapshot())
    assert len(_screen(console)) == 1


def _screen(console: Console) -> list[str]:
    """What a reader sees."""
    return screen_of(console.file.getvalue())
