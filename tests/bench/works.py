"""The table of works: what is measured, in which sizes, and what its numbers mean. No library is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

__all__ = ["WORKS", "Metric", "Work", "chosen"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a work. `unit` is "s", "B" or "%"."""

    key: str
    title: str
    unit: str = "s"
    more_is_better: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """One thing to do. `measure` names a function of tests.bench.measures, `verb` what it asks of a peer."""

    name: str
    title: str
    measure: str
    verb: str
    metrics: tuple[Metric, ...]
    sizes: dict[str, Any]
    quick: dict[str, Any]
    alone: bool = False  # nbqueue only
    limit_s: float = 120.0


MB = 125_000  # float64 in 10^6 bytes
GROWTH = {"1k": 1_000, "10k": 10_000, "100k": 100_000, "1M": 1_000_000}


def _large(name: str, title: str, measure: str, verb: str) -> Work:
    sizes: dict[str, Any] = {"count": 100 * MB, "rounds": 3}
    quick: dict[str, Any] = {"count": 2 * MB, "rounds": 1}
    if verb == "shared":
        sizes["items"] = quick["items"] = 16
    return Work(name, title, measure, verb, (Metric("seconds", title),), sizes, quick)


def _growth(kind: str, title: str, label: str, count: int) -> Work:
    return Work(
        f"growth-{kind}-{label}",
        f"{count:,} {title}",
        f"growth_{kind}",
        "calls" if kind == "calls" else "map",
        (
            Metric("per_task", "time"),
            Metric("kernel", "kernel memory while queued", "B"),
            Metric("kernel_peak", "kernel memory at most", "B"),
            Metric("redis", "Redis memory while queued", "B"),
        ),
        {"count": count},
        {"count": max(100, count // 100)},
        alone=True,
        limit_s=600.0,
    )


def _floor(kind: str, title: str, verb: str, steps: tuple[str, ...], count: int) -> Work:
    return Work(
        f"floor-{kind}",
        f"the floor of {title}",
        f"floor_{kind}",
        verb,
        tuple(Metric(step, f"the floor of {title}: {step}") for step in steps),
        {"count": count},
        {"count": max(100, count // 100)},
        alone=True,
    )


WORKS: tuple[Work, ...] = (
    Work(
        "cold",
        "cold start to first result",
        "cold",
        "start",
        (Metric("seconds", "cold start to first result"),),
        {},
        {},
    ),
    Work(
        "call",
        "one call and back",
        "call",
        "call",
        (Metric("median", "one call and back"), Metric("p99", "one call and back, p99")),
        {"count": 2_000, "at_most_s": 10.0},
        {"count": 100, "at_most_s": 1.0},
    ),
    Work(
        "calls",
        "5,000 separate calls",
        "calls",
        "calls",
        (Metric("per_task", "5,000 separate calls, for each"),),
        {"count": 5_000},
        {"count": 200},
    ),
    Work(
        "map",
        "map of 200,000 tiny items, a list",
        "tiny_map",
        "map",
        (Metric("per_item", "map of 200,000 tiny items, a list, for each"),),
        {"count": 200_000, "lazy": False},
        {"count": 2_000, "lazy": False},
    ),
    Work(
        "map-generator",
        "map of 200,000 tiny items, a generator",
        "tiny_map",
        "map",
        (Metric("per_item", "map of 200,000 tiny items, a generator, for each"),),
        {"count": 200_000, "lazy": True},
        {"count": 2_000, "lazy": True},
    ),
    Work(
        "uneven",
        "200 uneven tasks of 0.1 to 200 ms",
        "uneven",
        "uneven",
        (Metric("efficiency", "200 uneven tasks, of the ideal", "%", more_is_better=True),),
        {"count": 200, "least_s": 1e-4, "most_s": 0.2, "seed": 5},
        {"count": 40, "least_s": 1e-4, "most_s": 0.01, "seed": 5},
    ),
    _large("array", "a 100 MB array to 16 calls", "shared", "shared"),
    _large("argument", "100 MB argument", "argument", "argument"),
    _large("result", "100 MB result", "result", "result"),
    Work(
        "results",
        "2,000 results of 50 kB",
        "results",
        "map",
        (Metric("seconds", "2,000 results of 50 kB"),),
        {"count": 2_000, "size": 50_000},
        {"count": 50, "size": 50_000},
    ),
    _floor("call", "one call and back", "call", ("bytes", "ping", "streams", "scripts", "sealed"), 2_000),
    _floor("calls", "5,000 separate calls, for each", "calls", ("streams", "scripts", "sealed"), 5_000),
    _floor("map", "map of 200,000 tiny items, for each", "map", ("client", "worker", "whole"), 200_000),
    *(_growth("calls", "separate calls", label, count) for label, count in GROWTH.items()),
    *(_growth("map", "items of a map", label, count) for label, count in GROWTH.items()),
    Work(
        "redis",
        "CPU time of the Redis server",
        "redis_cpu",
        "calls",
        (Metric("per_call", "Redis CPU for a separate call"), Metric("per_item", "Redis CPU for an item of a map")),
        {"calls": 20_000, "items": 200_000},
        {"calls": 500, "items": 5_000},
        alone=True,
    ),
    Work(
        "idle",
        "CPU time with nothing to do",
        "idle",
        "start",
        (
            Metric("all", "nothing to do: all processes, of one core", "%"),
            Metric("kernel", "nothing to do: kernel", "%"),
            Metric("supervisor", "nothing to do: supervisor", "%"),
            Metric("workers", "nothing to do: workers", "%"),
            Metric("server", "nothing to do: Redis server", "%"),
        ),
        {"seconds": 10.0},
        {"seconds": 1.0},
        alone=True,
    ),
    Work(
        "replaced",
        "a worker in the place of one that died",
        "replaced",
        "start",
        (Metric("median", "a worker in the place of one that died"), Metric("worst", "… the slowest of them")),
        {"rounds": 20},
        {"rounds": 2},
        alone=True,
    ),
    Work(
        "workers",
        "32 workers from nothing",
        "many_workers",
        "start",
        (Metric("seconds", "32 workers from nothing"),),
        {"number": 32},
        {"number": 4},
        alone=True,
    ),
    Work(
        "import",
        "import nbqueue",
        "importing",
        "start",
        (Metric("package", "import nbqueue"), Metric("queue", "from nbqueue import TaskQueue")),
        {"rounds": 5},
        {"rounds": 1},
        alone=True,
    ),
)


def chosen(patterns: list[str]) -> tuple[Work, ...]:
    """The works whose names match one of the patterns (``growth-*``), in the order of the table.

    Raises
    ------
    KeyError
        With a pattern that matches none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(work.name, pattern) for work in WORKS):
            raise KeyError(pattern)
    return tuple(work for work in WORKS if any(fnmatchcase(work.name, pattern) for pattern in patterns))
