"""Seeded chaos with real processes: whatever is killed, frozen, cut or forgotten, every task ends once, and right.

A seed names the tasks and the faults; `chaos.py` says what is counted. A failure names the command that repeats
its seed; since a seed decides the blows and not the instruction that they hit, it may take several goes. ::

    pytest tests/faults/test_chaos.py               a short set of seeds
    pytest tests/faults -m soak                     20 seeds × 250 tasks, total loss, 50,000 no-ops; prints tables
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chaos import Chaos, Tallied
from chaos_plan import CALM, CHAOS, KINDS, POISON, TOTAL_LOSS, make_plan, shares

SHORT_SEEDS = range(1)
SOAK_SEEDS = range(100, 120)
# Of each seed; times 20 that is 700 and 40.
DEATHS, SERVER_KILLS = 35, 2
POISONED: dict[str, Any] = {"tasks": 90, "faults": 6, "gap_s": 0.4, "weights": CALM, "cap": 1, "poison": True}


@pytest.fixture
def ends_right(
    request: pytest.FixtureRequest, session_home: Path, show_run: Callable[[Any], None]
) -> Callable[..., Tallied]:
    """``ends_right("seed 7", seed, …)``: carry out a plan; fails with whatever went wrong in it."""

    def run(name: str, seed: int, **options: Any) -> Tallied:
        tallied = Chaos(make_plan(seed, **options), session_home).run()
        tallied.name = name
        show_run(tallied)
        if tallied.problems:
            again = f"{request.node.nodeid!r}" + (" -m soak" if request.node.get_closest_marker("soak") else "")
            pytest.fail("\n".join([*tallied.problems, "", f"again: pytest {again}"]), pytrace=False)
        assert sum(tallied.made.values()) > tallied.made["missed"], "no fault was made, so nothing was tested"
        return tallied

    return run


def test_a_seed_decides_tasks_and_faults() -> None:
    plans = [make_plan(seed, tasks=250, faults=64) for seed in (7, 7, 8)]
    assert plans[0] == plans[1]
    assert plans[0].jobs != plans[2].jobs
    assert plans[0].tasks == plans[2].tasks == 250
    assert shares(plans[0]) == shares(plans[2])
    assert shares(plans[0]).keys() == CHAOS.keys()
    assert {job.kind for seed in SOAK_SEEDS for job in make_plan(seed, tasks=250, faults=1).jobs} == KINDS.keys()
    assert {job.kind for job in make_plan(5, **POISONED).jobs} >= POISON.keys()


@pytest.mark.parametrize("seed", SHORT_SEEDS)
def test_every_task_ends_once_and_right_in_a_short_storm(seed: int, ends_right: Callable[..., Tallied]) -> None:
    tallied = ends_right(f"seed {seed}", seed, tasks=60, faults=18, gap_s=0.15)
    assert tallied.deaths
    assert tallied.made["server"]


def test_a_server_that_forgets_everything_loses_nothing_while_the_kernel_lives(
    ends_right: Callable[..., Tallied],
) -> None:
    tallied = ends_right("total loss 0", 0, tasks=60, faults=6, gap_s=0.4, weights=TOTAL_LOSS, lasting=False)
    assert tallied.made["flush"]


def test_tasks_that_kill_their_workers_all_end_as_worker_died_and_the_others_do_not(
    ends_right: Callable[..., Tallied],
) -> None:
    ends_right("poison 5", 5, **POISONED)


@pytest.mark.soak
@pytest.mark.parametrize("seed", SOAK_SEEDS)
def test_soak_every_task_ends_once_and_right(seed: int, ends_right: Callable[..., Tallied]) -> None:
    tallied = ends_right(f"seed {seed}", seed, tasks=250, faults=64)
    assert tallied.deaths >= DEATHS
    assert tallied.made["server"] >= SERVER_KILLS
    assert tallied.together


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(200, 210))
def test_soak_total_loss(seed: int, ends_right: Callable[..., Tallied]) -> None:
    options = {"tasks": 200, "faults": 14, "gap_s": 0.5, "weights": TOTAL_LOSS, "lasting": False}
    tallied = ends_right(f"total loss {seed}", seed, **options)
    assert tallied.made["flush"] >= 6


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(300, 305))
def test_soak_poison(seed: int, ends_right: Callable[..., Tallied]) -> None:
    ends_right(f"poison {seed}", seed, tasks=150, faults=20, weights=CALM, cap=1, poison=True)
