"""What was measured, as Markdown. Pure functions of runs, so that a stored JSON can be told again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tests.bench.goals import GOALS, OURS, Medians, Verdict, best_peer, medians, ratio
from tests.bench.peers import PEERS, peer_class
from tests.bench.peers.base import VERBS, way
from tests.bench.runner import Run
from tests.bench.works import WORKS, Metric, Work

__all__ = ["machine_line", "markdown", "number", "table_of_works"]

RULES = (
    "Warm-up, the same for all: but for the cold start, a pool first answers some calls; then the work itself is done",
    "once unmeasured, at a tenth of its count, or whole and with other data where large data is moved. Each library,",
    "work and repetition is a fresh process; libraries take turns. Uneven tasks last so many seconds of CPU time, so",
    "what a library itself takes from the cores costs it. Large data has arrived when a byte of each page was read.",
)
MARKS = {True: "ok", False: "**not met**", None: "–"}
# Where the time goes: each line of the table, and the work, metric and library that its columns show.
OF_WHAT = ("one call and back", "5,000 separate calls, for each", "map of 200,000 tiny items, for each")
FLOOR: tuple[tuple[str, tuple[tuple[str, str, str] | None, ...]], ...] = (
    ("a byte to another process and back", (("floor-call", "bytes", OURS), None, None)),
    ("PING to the server and back", (("floor-call", "ping", OURS), None, None)),
    *(
        (line, (("floor-call", step, OURS), ("floor-calls", step, OURS), None))
        for step, line in (
            ("streams", "through the server to another process and back: XADD, XREADGROUP, XADD, XREAD"),
            ("scripts", "with nbqueue's scripts: SUBMIT, XREADGROUP, FINISH, XREAD"),
            ("sealed", "and pickled, signed and checked on both sides"),
        )
    ),
    ("items pickled, results unpickled, by the client", (None, None, ("floor-map", "client", OURS))),
    ("items unpickled, run, results pickled, by all workers", (None, None, ("floor-map", "worker", OURS))),
    ("both, shared evenly by the cores", (None, None, ("floor-map", "whole", OURS))),
    *(
        (f"**{peer}**", (("call", "median", peer), ("calls", "per_task", peer), ("map", "per_item", peer)))
        for peer in (OURS, "ProcessPoolExecutor", "Pool")
    ),
)


def number(value: float, unit: str = "s") -> str:
    """Three digits that count, in the unit that a person would take."""
    if unit == "s":
        for scale, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if value >= scale:
                return f"{_digits(value / scale)} {name}"
        return f"{_digits(value / 1e-9)} ns"
    if unit == "B":
        for scale, name in ((1e6, "MB"), (1e3, "kB")):
            if abs(value) >= scale:
                return f"{_digits(value / scale)} {name}"
        return f"{value:.0f} B"
    return f"{value:.1f} %" if value >= 10 else f"{value:.2f} %"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def markdown(document: dict[str, Any]) -> str:
    """Medians side by side, ratios and goals, nbqueue alone, and what failed and why."""
    runs = [Run(**run) for run in document["runs"]]
    table = medians(runs)
    notes: list[str] = []
    parts = [_side_by_side(runs, table, notes), _ratios(table), _goals(table), _floor(table), _growth(table)]
    parts.append(_alone(table))
    parts.append("\n".join(notes + _left(runs)))
    return "\n\n".join([machine_line(document), *filter(None, parts)]) + "\n"


def machine_line(document: dict[str, Any]) -> str:
    machine, versions = document["machine"], document["versions"]
    repeats = 1 + max((run["repetition"] for run in document["runs"]), default=0)
    quick = " **Quick: small sizes, numbers mean little.**" if document["quick"] else ""
    quick += " **Interrupted: not all was measured.**" if document["interrupted"] else ""
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    # The first minute's load is of what ran before us.
    busy = machine["load"] > 0.5
    noise = f" **The machine was not quiet when this began (load {machine['load']:g}).**" if busy else ""
    return (
        f"{document['date']}, {machine['cores']} cores ({machine['system']}), Python {machine['python']}, "
        f"{document['workers']} workers, median of {repeats}; {libraries}.{quick}{noise}"
    )


def _rows(table: Medians) -> list[tuple[Work, Metric, Any]]:
    return [
        (work, metric, table.get((work.name, metric.key), {}))
        for work in WORKS
        for metric in work.metrics
        if (work.name, metric.key) in table
    ]


def _side_by_side(runs: Sequence[Run], table: Medians, notes: list[str]) -> str:
    """A row for each number, a column for each library. What failed has a mark, and a note below."""
    shared = [work for work in WORKS if not work.alone and any(run.work == work.name for run in runs)]
    peers = [peer for peer in PEERS if any(run.peer == peer for run in runs)]
    if not shared:
        return ""
    rows = []
    marks: dict[str, int] = {}
    for work in shared:
        failures = {run.peer: run.failed for run in runs if run.work == work.name and run.failed}
        for metric in work.metrics:
            row = table.get((work.name, metric.key), {})
            best = (max if metric.more_is_better else min)(row.values(), default=None)
            cells = [metric.title]
            for peer in peers:
                if peer in row:
                    text = number(row[peer], metric.unit)
                    cells.append(f"**{text}**" if row[peer] == best else text)
                elif peer in failures:
                    reason = f"{peer}: {failures[peer]}"
                    cells.append(f"✗ [{marks.setdefault(reason, len(marks) + 1)}]")
                else:
                    cells.append("")
            rows.append(cells)
    notes += [f"- [{mark}] {reason}" for reason, mark in marks.items()]
    notes += _partly_failed(runs)
    return _table(["work", *peers], rows)


def _partly_failed(runs: Iterable[Run]) -> list[str]:
    """Some repetitions failed, others not: the median is of those that did not."""
    outcomes: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        outcomes.setdefault((run.work, run.peer), []).append(run.failed)
    return [
        f"- {peer}, {work}: {sum(map(bool, failed))} of {len(failed)} repetitions failed: {next(filter(None, failed))}"
        for (work, peer), failed in outcomes.items()
        if any(failed) and (not all(failed) or peer == OURS)
    ]


def _ratios(table: Medians) -> str:
    rows = []
    for _, metric, row in _rows(table):
        rival = best_peer(row, metric)
        if OURS in row and rival is not None:
            found = ratio(row[OURS], row[rival], more_is_better=metric.more_is_better)
            rows.append([metric.title, number(row[OURS], metric.unit), f"{rival}, {number(row[rival], metric.unit)}",
                         f"{found:.2f}"])  # fmt: skip
    return _table(["work", "nbqueue", "best peer", "ratio (below 1: nbqueue is ahead)"], rows) if rows else ""


def _goals(table: Medians) -> str:
    measured = {name for name, _ in table}
    verdicts: list[tuple[str, Verdict]] = [(goal.text, goal.judge(table)) for goal in GOALS if goal.work in measured]
    rows = [[text, verdict.found, MARKS[verdict.ok]] for text, verdict in verdicts]
    return _table(["goal", "found", ""], rows) if rows else ""


def _floor(table: Medians) -> str:
    """Each line costs what the one above does, and one thing more; last, what libraries take in the same run."""
    if not any(name.startswith("floor") for name, _ in table):
        return ""
    rows = []
    for line, columns in FLOOR:
        found = [None if at is None else table.get(at[:2], {}).get(at[2]) for at in columns]
        if any(value is not None for value in found):
            rows.append([line, *("" if value is None else number(value) for value in found)])
    return _table(["where the time goes", *OF_WHAT], rows)


def _growth(table: Medians) -> str:
    """What waits, more and more of it: a row for each number of tasks, a column for each cost; and what the time is of
    that of the fewest tasks of the same kind."""
    works = [work for work in WORKS if work.name.startswith("growth") and any(name == work.name for name, _ in table)]
    rows = []
    for work in works:
        fewest = next(each for each in works if each.measure == work.measure)
        of_it = ratio(table[work.name, "per_task"][OURS], table[fewest.name, "per_task"][OURS])
        costs = [number(table[work.name, metric.key][OURS], metric.unit) for metric in work.metrics]
        rows.append([work.title, costs[0], f"{of_it:.2f} ×", *costs[1:]])
    if not rows:
        return ""
    titles = [metric.title for metric in works[0].metrics]
    return _table(["for each of", titles[0], "of the first", *titles[1:]], rows)


def _alone(table: Medians) -> str:
    rows = []
    for work, metric, row in _rows(table):
        if not work.alone or work.name.startswith(("growth", "floor")) or OURS not in row:
            continue
        rows.append([metric.title, number(row[OURS], metric.unit)])
        if work.name == "redis" and row[OURS] > 0:
            rows.append(["… so one server can do at most", f"{1 / row[OURS]:,.0f} a second"])
    return _table(["nbqueue alone", ""], rows) if rows else ""


def _left(runs: Iterable[Run]) -> list[str]:
    left: dict[str, int] = {}
    for run in runs:
        left[run.peer] = left.get(run.peer, 0) + run.left
    return [f"- {peer} left {count} processes that had to be ended" for peer, count in left.items() if count]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def table_of_works() -> str:
    """What is measured, and how each library does it."""
    lines = ["Works:"]
    lines += [f"  {work.name:<20} {work.title}{' (nbqueue alone)' if work.alone else ''}" for work in WORKS]
    users = {verb: [work.name for work in WORKS if work.verb == verb and not work.alone] for verb in VERBS}
    for verb in VERBS:
        lines += ["", f"{verb} ({', '.join(users[verb]) or 'warm-up'}):"]
        lines += [f"  {peer:<20} {way(peer_class(peer), verb)}" for peer in PEERS]
    return "\n".join([*lines, "", *RULES])
