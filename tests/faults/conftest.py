"""What chaos runs did is shown at the end, all together."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

RUNS: pytest.StashKey[list[Any]] = pytest.StashKey()
MEASURED: pytest.StashKey[list[str]] = pytest.StashKey()
COLUMNS = (
    *("run", "tasks", "bundled", "faults", "deaths", "servers"),
    *("lost", "wrong", "dupl.", "left", "repeats", "resolved", "took"),
)


@pytest.fixture
def show_run(request: pytest.FixtureRequest) -> Callable[[Any], None]:
    """Put a chaos run into the table at the end."""
    return request.config.stash.setdefault(RUNS, []).append


@pytest.fixture
def show(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print a line at the end: something that was measured and is not asserted."""
    return request.config.stash.setdefault(MEASURED, []).append


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    runs, measured = config.stash.get(RUNS, []), config.stash.get(MEASURED, [])
    if runs:
        terminalreporter.section("chaos")
        for line in _table(runs):
            terminalreporter.write_line(line)
        for run in runs:
            for problem in run.problems:
                terminalreporter.write_line(f"{run.name}: {problem}")
    if measured:
        terminalreporter.section("measured, not asserted")
        for line in measured:
            terminalreporter.write_line(line)


def _table(runs: list[Any]) -> list[str]:
    rows = [COLUMNS]
    for run in runs:
        faults = sum(run.made.values()) - run.made["missed"]
        found = (len(run.lost), len(run.wrong), len(run.duplicates), len(run.leftovers) + len(run.broken), run.repeats)
        times = (f"{run.resolved_s:.2f} s", f"{run.took_s:.0f} s")
        told = run.tasks, run.together, faults, run.deaths, run.made["server"], *found
        rows.append((run.name, *map(str, told), *times))
    total = [str(sum(int(row[column]) for row in rows[1:])) for column in range(1, 11)]
    slowest = f"≤ {max(run.resolved_s for run in runs):.2f} s"
    rows.append(("all", *total, slowest, f"{sum(run.took_s for run in runs):.0f} s"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    made = sum((run.made for run in runs), Counter())
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(made.items(), key=lambda pair: -pair[1]))
    soon = statistics.median(run.resolved_s for run in runs)
    note = "bundled: tasks of whose end one message told with that of others\n"
    note += f"resolved: from the end of the last fault to the end of the last task; median {soon:.2f} s"
    return [*lines, f"faults: {kinds}", note]
