"""What a chaos run does, as pure data that a seed decides: which tasks are sent, which faults strike, and when.

`make_plan` needs nothing but `random.Random(seed)`, so a seed names the same tasks and the same faults everywhere.
How the two meet in time is up to the machine: a seed repeats the blows, not the instruction that they hit.
`chaos.py` carries a plan out.
"""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

__all__ = [
    *("CALM", "CHAOS", "KINDS", "POISON", "TOTAL_LOSS", "Ending", "Fault", "Job", "Plan"),
    *("endings", "make_plan", "shares"),
]

# Shares of the faults. `host` kills a supervisor or its fork template, `kernel` a second kernel with all its work.
CHAOS: Mapping[str, int] = {"worker": 60, "server": 12, "cut": 9, "kernel": 9, "freeze": 7, "host": 3}
# The server forgets everything, while the kernel lives and can tell it again.
TOTAL_LOSS: Mapping[str, int] = {"flush": 60, "server": 25, "cut": 15}
# Everything that charges no task with a crash: what is killed here, nobody ran.
CALM: Mapping[str, int] = {"server": 30, "cut": 30, "freeze": 20, "host": 20}

# Shares of the tasks.
KINDS: Mapping[str, int] = {
    "quick": 14,  # returns at once
    "burst": 8,  # 8 to 32 calls that return at once, every seventh of which raises: they travel together
    "nap": 28,  # 5 to 60 ms
    "long": 4,  # 0.3 to 0.8 s
    "map": 12,  # 3 to 12 items in chunks, every seventh of which raises
    "flaky map": 4,  # items that raise at first, with retries
    "refuse": 6,  # raises its own exception
    "flaky": 8,  # raises twice, with retries=2
    "hopeless": 3,  # raises always, with retries=1
    "overrun": 3,  # runs into its time limit
    "nested": 5,  # sends a call of its own and waits for it
    "cancelled": 5,  # is cancelled a moment later
    "async": 10,  # awaits, beside others
    "async map": 6,  # 3 to 12 items that await, every seventh of which raises
}
# Tasks that kill their worker whenever they run; for plans that have no other crashes.
POISON: Mapping[str, int] = {"SIGKILL": 8, "SIGSEGV": 6, "exit": 6, "poison map": 4, "async poison": 4}

# These take their time by themselves.
SLOW = ("long", "flaky map", "flaky", "hopeless", "overrun")

# How long a host stands still: less than the lease, and well past it.
FROZEN_S = (0.3, 2.4)
DOWN_S = (0.0, 0.02, 0.2, 0.6)


@dataclass(frozen=True, slots=True)
class Job:
    """One call, or `size` of them, or a map of so many items, sent `at_s` seconds after the start."""

    at_s: float
    number: int
    kind: str
    size: int
    seconds: float
    chunksize: int | None


@dataclass(frozen=True, slots=True)
class Fault:
    """One blow. `pick` chooses among what can be hit then, `hold_s` is how long it stays frozen or down."""

    at_s: float
    kind: str
    pick: int
    hold_s: float
    broad: bool  # hits more than one: two workers, all connections


@dataclass(frozen=True, slots=True)
class Plan:
    """A run. With `lasting` the server writes a file and remembers, else its death is a total loss."""

    seed: int
    lasting: bool
    cap: int  # crashes that one task may cause
    jobs: tuple[Job, ...] = field(repr=False)
    faults: tuple[Fault, ...] = field(repr=False)

    @property
    def tasks(self) -> int:
        return sum(job.size for job in self.jobs)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a task has to end: ``what`` is value, raises, timeout, died, or either (a value, or cancelled)."""

    what: str
    value: object = None


def make_plan(
    seed: int,
    *,
    tasks: int,
    faults: int,
    weights: Mapping[str, int] = CHAOS,
    gap_s: float = 0.3,
    cap: int = 200,
    poison: bool = False,
    lasting: bool | None = None,
) -> Plan:
    """`faults` blows, `gap_s` apart on the average, and `tasks` tasks sent all the while.

    Every kind of fault gets its share exactly, whatever the seed. A server remembers in every second seed, unless
    `lasting` says. A crash `cap` as high as the default cannot be reached: no task is lost to bad luck.
    """
    rng = random.Random(seed)
    blows = tuple(_faults(rng, faults, weights, gap_s))
    until_s = max((blow.at_s + blow.hold_s for blow in blows), default=0.0)
    jobs = tuple(_jobs(rng, tasks, until_s, {**KINDS, **POISON} if poison else KINDS))
    return Plan(seed, bool(seed % 2) if lasting is None else lasting, cap, jobs, blows)


def _faults(rng: random.Random, number: int, weights: Mapping[str, int], gap_s: float) -> Iterator[Fault]:
    total = sum(weights.values())
    kinds = [kind for kind, weight in weights.items() for _ in range(max(1, round(number * weight / total)))]
    rng.shuffle(kinds)
    # Not before the first workers run: what strikes an empty house is wasted.
    at_s = 0.2
    for kind in kinds:
        at_s += rng.expovariate(1 / gap_s)
        hold_s = rng.choice(FROZEN_S) if kind == "freeze" else rng.choice(DOWN_S)
        yield Fault(at_s, kind, rng.randrange(1 << 30), hold_s, rng.random() < 0.3)


def _jobs(rng: random.Random, tasks: int, until_s: float, shares: Mapping[str, int]) -> Iterator[Job]:
    sizes: list[tuple[str, int]] = []
    left = tasks
    while left:
        kind = rng.choices(list(shares), list(shares.values()))[0]
        most = {"burst": (8, 32)}.get(kind, (3, 12) if kind.endswith("map") else (1, 1))
        size = min(left, rng.randint(*most))
        sizes.append((kind, size))
        left -= size
    sent = sorted((_time(rng, kind, until_s), kind, size) for kind, size in sizes)
    for number, (at_s, kind, size) in enumerate(sent):
        seconds = rng.uniform(0.3, 0.8) if kind == "long" else rng.uniform(0.005, 0.06)
        yield Job(at_s, number, kind, size, 0.0 if kind in ("quick", "burst") else seconds, rng.choice((None, 1, 3, 8)))


def _time(rng: random.Random, kind: str, until_s: float) -> float:
    """When a job is sent: a fifth of the short ones just before the faults stop, to see how soon they end then."""
    late = kind not in SLOW and rng.random() < 0.2
    return rng.uniform(max(0.0, until_s - 0.5) if late else 0.0, until_s - 1.0 if kind in SLOW else until_s)


def value_of(number: int, item: int = 0) -> int:
    return number * 1000 + item * item


def endings(job: Job) -> list[Ending]:
    """How each task of a job has to end; where a crash is meant, with its signal."""
    number = job.number
    if job.kind in ("map", "async map", "burst"):
        return [
            Ending("raises", item) if refuses(item) else Ending("value", value_of(number, item))
            for item in range(job.size)
        ]
    if job.kind == "flaky map":
        return [Ending("value", value_of(number, item)) for item in range(job.size)]
    if job.kind == "poison map":
        return [
            Ending("died", signal.SIGKILL) if item == 1 else Ending("value", value_of(number, item))
            for item in range(job.size)
        ]
    if job.kind in ("refuse", "hopeless"):
        return [Ending("raises", number)]
    if job.kind == "overrun":
        return [Ending("timeout")]
    if job.kind in ("SIGKILL", "SIGSEGV"):
        return [Ending("died", signal.Signals[job.kind])]
    if job.kind == "exit":
        return [Ending("died")]
    if job.kind == "async poison":
        return [Ending("died", signal.SIGKILL)]
    return [Ending("either" if job.kind == "cancelled" else "value", value_of(number))]


def refuses(item: int) -> bool:
    return item % 7 == 3


def shares(plan: Plan) -> Counter[str]:
    """How many faults of each kind a plan has."""
    return Counter(fault.kind for fault in plan.faults)
