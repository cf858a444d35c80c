"""``nbqueue top``: a look at a queue, drawn as wide as the terminal is."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from nbqueue.client.top import Rates, View, watch
from nbqueue.stream.records import HostState, QueueCounts, RunningTask, WorkerState

LONG = RunningTask("simulate_everything_that_there_is_with_a_name_that_is_long", "c", "1", 0, 2, 75.0)
WORKERS = (
    WorkerState(0, 4711, "idle", None, 31_000_000),
    WorkerState(1, 4712, "busy", LONG, 310_000_000),
    WorkerState(2, 4713, "waiting", replace(LONG, name="outer\x1b[2J", attempt=1, seconds=0.25)),
)
COUNTS = QueueCounts(12_345, 2, 0, 1_000, 3, 0, 1, 0, (HostState("h", "node1", 1, WORKERS),), 5_000_000)


def drawn(width: int, counts: QueueCounts = COUNTS, lines: int = 24) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=False, legacy_windows=False)
    rates = Rates()
    for second, ended in enumerate([0, 10, 40, 100]):
        rates.look(second, ended)
    console.print(View("tasks", "redis://host:6379/0", counts, rates, lines))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_all_is_seen_and_fits(width: int) -> None:
    lines = drawn(width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for words in ("12,345 queued", "▸ 2 running", "✓ 1,000 done", "✗ 3 failed", "↻ 1 retried", "60.0/s", "5.0 MB"):
        assert words in text, text
    assert "1 min 15 s" in text, text
    assert "310 MB" in text
    assert ("a_name_that_is_long, attempt 2" in text) == (width == 120)
    assert "outer?[2J, waiting for a task of its own" in text
    assert "host" not in lines[3], "one host needs no column"


def test_several_hosts_have_a_column_and_those_who_work_come_first() -> None:
    hosts = (HostState("a", "node1", 1, WORKERS[:1]), HostState("b", "node2", 2, WORKERS[1:]))
    lines = drawn(100, replace(COUNTS, hosts=hosts))
    names = [line.split()[0] for line in lines if "node" in line]
    assert names == ["node2", "node2", "node1"]


def test_what_has_no_room_is_counted() -> None:
    many = tuple(replace(WORKERS[0], slot=i) for i in range(100))
    lines = drawn(100, replace(COUNTS, hosts=(HostState("a", "node1", 1, many),)), lines=20)
    assert len(lines) <= 20
    assert "and 88 more workers" in "\n".join(lines)


def test_a_server_that_forgot_has_no_rate_below_zero() -> None:
    rates = Rates()
    for second, ended in enumerate([100, 5, 10]):
        rates.look(second, ended)
    assert list(rates.recent) == [0.0, 5.0]


def test_in_a_pipe_so_many_looks_are_printed() -> None:
    out = io.StringIO()
    watch("tasks", "here", lambda: COUNTS, interval_s=0.01, looks=2, console=Console(file=out, width=80))
    assert out.getvalue().count("12,345 queued") == 2


def test_the_command_shows_a_real_queue(redis_server: Any, new_key: str) -> None:
    command = [sys.executable, "-m", "nbqueue.cli", "top", redis_server.url, "--queue", new_key]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert new_key in shown
    assert "no workers" in shown
