"""A supervisor with nothing to do does next to nothing, and misses nothing by that."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from nbqueue.stream.records import WorkerLimits
from nbqueue.worker import board, supervisor
from nbqueue.worker.board import Board
from nbqueue.worker.pool import ANNOUNCE_S, Member, Pool, PoolSpec
from nbqueue.worker.supervisor import Supervisor


class _Poller:
    """Nothing happens in the first `silent` waits."""

    def __init__(self, silent: int) -> None:
        self.silent = silent
        self.waits = 0

    def poll(self, _longest_ms: float) -> list[tuple[int, int]]:
        self.waits += 1
        return [] if self.waits <= self.silent else [(7, 1)]


def _supervisor(*quiet: bool) -> Any:
    """With one pool, that says so when it is asked."""
    made = object.__new__(Supervisor)
    answers = iter(quiet)
    made._kernel, made._ending, made._quitting = None, False, False
    made._pools = {"a": SimpleNamespace(quiet=lambda _now: next(answers))}
    return made


def test_a_supervisor_sleeps_on_while_its_pools_are_quiet_until_one_is_not() -> None:
    poller = _Poller(silent=100)
    assert _supervisor(True, True, False)._sleep(poller) == []
    assert poller.waits == 3


def test_a_sleeping_supervisor_wakes_when_something_happens() -> None:
    poller = _Poller(silent=2)
    assert _supervisor(True, True)._sleep(poller) == [(7, 1)]


def test_a_sleeping_supervisor_looks_after_everything_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "QUIET_S", 0.0)
    poller = _Poller(silent=100)
    assert _supervisor()._sleep(poller) == []
    assert poller.waits == 1


@pytest.mark.parametrize("name", ["_ending", "_quitting"])
def test_a_sleeping_supervisor_that_is_told_to_end_does(name: str) -> None:
    told = _supervisor()
    setattr(told, name, True)
    poller = _Poller(silent=100)
    assert told._sleep(poller) == []
    assert poller.waits == 1


def test_a_supervisor_whose_kernel_has_died_does_not_sleep_on() -> None:
    orphan = _supervisor()
    orphan._kernel, orphan._parent = object(), -1
    poller = _Poller(silent=100)
    assert orphan._sleep(poller) == []
    assert poller.waits == 1


@pytest.fixture
def pool() -> Iterator[Pool]:
    """Of two workers that are idle, with connections that work."""
    spec = PoolSpec("a", "tasks", "nbq:{tasks:1}:", {}, "00" * 32, 2, {}, WorkerLimits())
    slots = Board.create(4)
    free = [1, 0]

    def take() -> tuple[int, Any]:
        index = free.pop()
        return index, slots.slot(index)

    spawner: Any = SimpleNamespace(start=lambda _order, _output: None)
    outlet: Any = SimpleNamespace()
    made = Pool(spec, spawner, take, free.append, (outlet, outlet))
    made._staff(0.0)
    for member in made.members.values():
        member.slot.hello(1)
        member.slot.idle()
    made._epoch, made._beat_at = "e", 10.0
    for name in ("_broker", "_inbox"):
        setattr(made, name, SimpleNamespace(wire=SimpleNamespace(connected=True)))
    members = list(made.members.values())
    yield made
    for member in members:
        member.recorder.close()


def test_a_pool_whose_workers_are_all_idle_is_quiet_until_its_next_beat(pool: Pool) -> None:
    assert pool.quiet(9.9)
    assert not pool.quiet(10.0)


def _run(pool: Pool, *, for_s: float, timeout_ms: int = 0) -> Member:
    """A worker has run something for so long."""
    (member, _) = pool.members.values()
    member.slot.call("1/1-0", "c", "1", 1, timeout_ms, "work", (0, 0))
    member.slot.item(0, time.monotonic_ns() - int(for_s * 1e9))
    assert member.slot.state() == board.BUSY
    return member


def test_a_pool_is_not_quiet_while_a_worker_runs_something_for_long(pool: Pool) -> None:
    _run(pool, for_s=ANNOUNCE_S)
    assert not pool.quiet(0.0)


def test_a_pool_is_quiet_while_its_workers_run_what_is_short(pool: Pool) -> None:
    # It begins in the future: how long the test takes does not matter.
    _run(pool, for_s=-60.0, timeout_ms=1)
    assert pool.quiet(0.0)


def test_a_pool_is_not_quiet_when_the_time_of_a_short_item_is_up(pool: Pool) -> None:
    _run(pool, for_s=0.002, timeout_ms=1)
    assert not pool.quiet(0.0)


@pytest.mark.parametrize("state", [board.WAITING, board.SEVERAL, board.STARTING])
def test_a_pool_is_not_quiet_while_a_worker_does_anything_else(pool: Pool, state: int) -> None:
    member = _run(pool, for_s=-60.0)
    member.slot._words[board._STATE] = state
    assert member.slot.state() == state
    assert not pool.quiet(0.0)


@pytest.mark.parametrize("change", [lambda m: setattr(m, "kill_at", 1.0), lambda m: m.cancelled.append("1/1-0")])
def test_a_pool_is_not_quiet_while_what_a_worker_runs_is_to_end(pool: Pool, change: Any) -> None:
    change(_run(pool, for_s=-60.0))
    assert not pool.quiet(0.0)


@pytest.mark.parametrize(
    "change",
    [
        lambda pool: pool.stop(),
        lambda pool: pool.renew(),
        lambda pool: pool.hurry(),
        lambda pool: pool.change(3, WorkerLimits()),
        lambda pool: pool.change(2, WorkerLimits(memory_bytes=1)),
        lambda pool: pool.members.popitem(),
        lambda pool: pool._to_reclaim.append(("host:0:1", [])),
        lambda pool: setattr(pool, "_epoch", ""),
        lambda pool: setattr(pool._inbox.wire, "connected", False),
        lambda pool: setattr(next(iter(pool.members.values())), "stopping", True),
    ],
)
def test_a_pool_that_has_something_to_do_is_not_quiet(pool: Pool, change: Any) -> None:
    change(pool)
    assert not pool.quiet(0.0)
