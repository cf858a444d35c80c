"""What nbqueue is to reach, and whether it does: pure functions of a table of medians."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tests.bench.runner import Run
from tests.bench.works import WORKS, Metric, Work

__all__ = ["GOALS", "Goal", "Medians", "Verdict", "best_peer", "medians", "ratio"]

OURS = "nbqueue"
# (work, metric) → peer → median of its repetitions.
Medians = Mapping[tuple[str, str], Mapping[str, float]]


def medians(runs: Iterable[Run]) -> dict[tuple[str, str], dict[str, float]]:
    """Over the repetitions that succeeded."""
    samples: dict[tuple[str, str], dict[str, list[float]]] = {}
    for run in runs:
        for key, value in run.metrics.items():
            samples.setdefault((run.work, key), {}).setdefault(run.peer, []).append(value)
    return {key: {peer: statistics.median(values) for peer, values in row.items()} for key, row in samples.items()}


def best_peer(row: Mapping[str, float], metric: Metric, among: Iterable[str] | None = None) -> str | None:
    """The best of the others, or of those named; None where nobody measured anything."""
    others = [peer for peer in row if peer != OURS and (among is None or peer in set(among))]
    return (max if metric.more_is_better else min)(others, key=lambda peer: row[peer], default=None)


def ratio(ours: float, theirs: float, *, more_is_better: bool = False) -> float:
    """Below 1, nbqueue is ahead."""
    above, below = (theirs, ours) if more_is_better else (ours, theirs)
    return above / below if below else math.inf


@dataclass(frozen=True, slots=True)
class Verdict:
    """`ok` is None where it cannot be said; `found` is what was measured, or why nothing was."""

    ok: bool | None
    found: str


@dataclass(frozen=True, slots=True)
class Goal:
    work: str
    text: str
    judge: Callable[[Medians], Verdict]


def _named(name: str, key: str) -> tuple[Work, Metric]:
    work = next(work for work in WORKS if work.name == name)
    return work, next(metric for metric in work.metrics if metric.key == key)


def against(name: str, key: str, peers: tuple[str, ...], factor: float) -> Goal:
    """At most `factor` times the best of `peers`."""
    _, metric = _named(name, key)

    def judge(table: Medians) -> Verdict:
        row = table.get((name, key), {})
        if OURS not in row:
            return Verdict(None, "not measured")
        rival = best_peer(row, metric, peers)
        if rival is None:
            return Verdict(None, f"nothing to compare with: {', '.join(peers)}")
        found = ratio(row[OURS], row[rival], more_is_better=metric.more_is_better)
        return Verdict(found <= factor, f"{found:.2f} × {rival}")

    whose = peers[0] if len(peers) == 1 else f"the best of {', '.join(peers)}"
    return Goal(name, f"{metric.title}: ≤ {factor:g} × {whose}", judge)


def best_of_all(name: str, key: str) -> Goal:
    _, metric = _named(name, key)

    def judge(table: Medians) -> Verdict:
        row = table.get((name, key), {})
        rival = best_peer(row, metric)
        if OURS not in row or rival is None:
            return Verdict(None, "not measured")
        found = ratio(row[OURS], row[rival], more_is_better=metric.more_is_better)
        return Verdict(found <= 1, f"{found:.3f} × {rival}")

    return Goal(name, f"{metric.title}: best of all", judge)


def bounded(name: str, key: str, text: str, limit: float, show: Callable[[float], str], *, least: bool = False) -> Goal:
    """Our own number is at most `limit`, or at least."""

    def judge(table: Medians) -> Verdict:
        ours = table.get((name, key), {}).get(OURS)
        if ours is None:
            return Verdict(None, "not measured")
        return Verdict(ours >= limit if least else ours <= limit, show(ours))

    return Goal(name, text, judge)


def within(name: str, key: str, base: tuple[str, str], factor: float, text: str) -> Goal:
    """One of our numbers is at most `factor` times another."""

    def judge(table: Medians) -> Verdict:
        ours, other = table.get((name, key), {}).get(OURS), table.get(base, {}).get(OURS)
        if ours is None or other is None:
            return Verdict(None, "not measured")
        found = ratio(ours, other)
        return Verdict(found <= factor, f"{found:.2f} ×")

    return Goal(name, text, judge)


def _us(value: float) -> str:
    return f"{value * 1e6:.3g} µs"


def _ms(value: float) -> str:
    return f"{value * 1e3:.3g} ms"


GOALS: tuple[Goal, ...] = (
    against("cold", "seconds", ("dask", "ipyparallel", "ray"), 0.25),
    bounded("cold", "seconds", "cold start to first result: ≤ 0.35 s", 0.35, lambda value: f"{value:.3f} s"),
    against("call", "median", ("ProcessPoolExecutor", "loky"), 1.0),
    within("call", "p99", ("call", "median"), 3.0, "one call and back: p99 ≤ 3 × median"),
    against("calls", "per_task", ("Pool",), 1.0),
    against("map", "per_item", ("Pool",), 1.0),
    against("map-generator", "per_item", ("Pool",), 1.0),
    bounded(
        "uneven",
        "efficiency",
        "200 uneven tasks: ≥ 97 % of the ideal",
        97.0,
        lambda value: f"{value:.1f} %",
        least=True,
    ),
    best_of_all("uneven", "efficiency"),
    against("array", "seconds", ("ray",), 1.0),
    against("argument", "seconds", ("ray",), 1.0),
    against("result", "seconds", ("ray",), 1.0),
    within(
        "growth-calls-1M",
        "per_task",
        ("growth-calls-1k", "per_task"),
        1.2,
        "separate calls: time for each, 1M queued: ≤ 1.2 × 1k queued",
    ),
    within(
        "growth-map-1M",
        "per_task",
        ("growth-map-1k", "per_task"),
        1.2,
        "items of a map: time for each of 1M: ≤ 1.2 × 1k",
    ),
    bounded(
        "growth-map-1M",
        "kernel_peak",
        "items of a map: kernel memory for each of 1M: ≤ 1 kB",
        1_000.0,
        lambda value: f"{value:.0f} B",
    ),
    bounded("import", "package", "import nbqueue: ≤ 60 ms", 0.060, _ms),
    bounded("replaced", "median", "a worker in the place of one that died: ≤ 30 ms", 0.030, _ms),
    bounded("workers", "seconds", "32 workers from nothing: ≤ 1 s", 1.0, _ms),
    bounded("redis", "per_call", "Redis CPU for a separate call: ≤ 25 µs", 25e-6, _us),
    bounded("redis", "per_item", "Redis CPU for an item of a map: ≤ 0.2 µs", 0.2e-6, _us),
    bounded("idle", "all", "nothing to do, all processes: < 0.5 % of a core", 0.5, lambda value: f"{value:.2f} %"),
)
