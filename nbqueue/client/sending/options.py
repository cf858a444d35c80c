"""How calls are treated: the options of tasks, checked where they are written."""

from __future__ import annotations

import dataclasses
import inspect
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

from nbqueue.codec.messages import type_name
from nbqueue.errors import BadOption, TaskError
from nbqueue.stream.keys import FIRST, LOW, NORMAL
from nbqueue.stream.records import WorkerLimits

__all__ = ["Options", "TaskOptions", "check_limits", "check_workers", "fitted", "is_async", "parse_bytes"]

# Calls of an async function that a worker runs at a time: enough to be busy with what waits nine tenths of its time,
# and few enough for whoever is asked, as a server that counts its connections.
CONCURRENCY = 16
# As many places has a worker's part of the slot board.
MOST_CONCURRENCY = 256

# Seen with 600: the supervisor orders faster than births are reported, and both wait for each other.
MOST_WORKERS = 256
# Where calls of a priority go.
PRIORITIES = {"high": FIRST, "normal": NORMAL, "low": LOW}
# A worker that has done nothing yet uses 20 MB, and with NumPy 40.
LEAST_MEMORY_BYTES = 50_000_000
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?)b?")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@dataclass(frozen=True, slots=True)
class Options:
    """How calls of a task are treated.

    Attributes
    ----------
    name : str
        Shown in progress bars and messages.
    retries : int
        How often a call that raised an exception is run again, with growing pauses.
    retry_on : exception type or tuple of them
        Which exceptions `retries` is for; any by default. Compared by name, so a class that was defined anew
        by its cell is still the same.
    timeout : float or None
        Seconds that one item may run before it is stopped.
    chunksize : int or None
        Items that travel together in a map; None to have it measured.
    progress : bool or None
        Show a progress bar for a map; None where it can be seen.
    on_interrupt : {"cancel", "detach"}
        What the interrupt of a cell does to a call that the cell waits for: cancel it, or let it run on, so that
        only the waiting ends and the result can be asked for later.
    priority : {"high", "normal", "low"}
        Which of the calls that wait a worker takes next.
    rng : str or None
        The parameter that receives a random generator of each call's own.
    seed : int or None
        What these are made from; fresh entropy for each call or batch by default.
    concurrency : int or None
        Calls that a worker runs at a time, of an async function; None for a plain one.
    """

    name: str = ""
    retries: int = 0
    retry_on: type[Exception] | tuple[type[Exception], ...] = Exception
    timeout: float | None = None
    chunksize: int | None = None
    progress: bool | None = None
    on_interrupt: str = "cancel"
    priority: str = "normal"
    rng: str | None = None
    seed: int | None = None
    concurrency: int | None = None

    def __post_init__(self) -> None:
        _whole("retries", self.retries, at_least=0)
        self._check_retry_on()
        if self.chunksize is not None:
            _whole("chunksize", self.chunksize, at_least=1)
        if self.timeout is not None and (
            isinstance(self.timeout, bool)
            or not isinstance(self.timeout, int | float)
            or not 0 < self.timeout < math.inf
        ):
            raise BadOption(f"timeout={self.timeout!r}: give seconds greater than 0, or None for no limit.")
        if self.on_interrupt not in ("cancel", "detach"):
            raise BadOption(f"on_interrupt={self.on_interrupt!r}: give 'cancel' or 'detach'.")
        if not isinstance(self.priority, str) or self.priority not in PRIORITIES:
            raise BadOption(f"priority={self.priority!r}: give 'high', 'normal' or 'low'.")
        if not isinstance(self.name, str):
            raise BadOption(f"name={self.name!r}: give a string.")
        if self.rng is not None and not isinstance(self.rng, str):
            raise BadOption(f"rng={self.rng!r}: give the name of the parameter that is to receive the generator.")
        if self.seed is not None:
            self._check_seed()
        if self.concurrency is not None:
            _whole("concurrency", self.concurrency, at_least=1)
            if self.concurrency > MOST_CONCURRENCY:
                raise BadOption(f"concurrency={self.concurrency}: a worker runs {MOST_CONCURRENCY} at a time at most.")

    def _check_seed(self) -> None:
        try:
            seed = -1 if isinstance(self.seed, bool) else operator.index(self.seed)  # type: ignore[arg-type]
        except TypeError:
            seed = -1
        if seed < 0:
            raise BadOption(f"seed={self.seed!r}: give a whole number, 0 or more, or None for fresh entropy.")
        if self.rng is None:
            raise BadOption(f"seed={self.seed!r}: name the parameter that receives the generator, too: rng='rng'.")
        # NumPy's integers as Python's own.
        object.__setattr__(self, "seed", seed)

    def _check_retry_on(self) -> None:
        kinds = self.retry_on if isinstance(self.retry_on, tuple) else (self.retry_on,)
        for kind in kinds or (None,):
            if not isinstance(kind, type) or not issubclass(kind, Exception):
                raise BadOption(f"retry_on={self.retry_on!r}: give an exception type, or a tuple of them.")
            if issubclass(kind, TaskError):
                raise BadOption(
                    f"retry_on={kind.__name__}: retries are for exceptions that the task itself raises. A task whose "
                    "worker died runs once more anyway, and one that reached its timeout does not."
                )

    @property
    def stream(self) -> str:
        """Where calls go."""
        return PRIORITIES[self.priority]

    @property
    def detached(self) -> bool:
        """An interrupt ends only the waiting."""
        return self.on_interrupt == "detach"

    @property
    def retry_on_names(self) -> tuple[str, ...]:
        """What a worker compares an exception's classes with; empty for any."""
        if self.retry_on is Exception:
            return ()
        kinds = self.retry_on if isinstance(self.retry_on, tuple) else (self.retry_on,)
        return () if Exception in kinds else tuple(type_name(kind) for kind in kinds)

    def with_(self, **changes: Any) -> Options:
        """A copy with `changes`. Raises BadOption for an option that does not exist."""
        unknown = changes.keys() - {field.name for field in dataclasses.fields(self)}
        if unknown:
            known = ", ".join(field.name for field in dataclasses.fields(self))
            raise BadOption(f"There is no option {sorted(unknown)[0]!r}; the options are {known}.")
        return dataclasses.replace(self, **changes)


class TaskOptions(TypedDict, total=False):
    """The fields of `Options` as keywords, for signatures."""

    name: str
    retries: int
    retry_on: type[Exception] | tuple[type[Exception], ...]
    timeout: float | None
    chunksize: int | None
    progress: bool | None
    on_interrupt: str
    priority: str
    rng: str | None
    seed: int | None
    concurrency: int | None


def is_async(fn: Callable[..., Any]) -> bool:
    """Whether its calls give coroutines, as those of ``async def`` do."""
    found = inspect.iscoroutinefunction(fn)
    if not found and not hasattr(fn, "__code__"):
        # An object that is called like a function.
        found = inspect.iscoroutinefunction(type(fn).__call__)
    return found


def fitted(fn: Callable[..., Any], options: Options) -> Options:
    """The `options` of a task that calls `fn`: of an async function, with a `concurrency`.

    Raises
    ------
    BadOption
        For a `concurrency` of a plain function, and for what yields results.
    """
    if is_async(fn):
        return options if options.concurrency is not None else dataclasses.replace(options, concurrency=CONCURRENCY)
    code = getattr(fn, "__code__", None)
    if code is not None and code.co_flags & inspect.CO_ASYNC_GENERATOR:
        raise BadOption(f"`{options.name}` is an async generator, and a task has one result: have it return a list.")
    if options.concurrency is not None:
        raise BadOption(
            f"concurrency={options.concurrency}: `{options.name}` is a plain function, of which a worker runs one call "
            "at a time. Make it an async function (async def), or start more workers."
        )
    return options


def _whole(name: str, value: object, *, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise BadOption(f"{name}={value!r}: give a whole number, {at_least} or more.")


def check_workers(workers: object, name: str = "workers") -> None:
    """Raises BadOption unless it is None or a whole number, 1 or more, and no more than one host can start."""
    if isinstance(workers, int) and workers > MOST_WORKERS:
        raise BadOption(f"{name}={workers}: one host starts {MOST_WORKERS} workers at most.")
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise BadOption(f"{name}={workers!r}: give a whole number, 1 or more, or None for one per core.")


def check_limits(memory_limit: object, max_tasks_per_worker: object) -> WorkerLimits:
    """Raises BadOption for what cannot be meant."""
    memory_bytes = 0
    if memory_limit is not None:
        memory_bytes = parse_bytes(memory_limit) or 0
        if memory_bytes < LEAST_MEMORY_BYTES:
            raise BadOption(f"memory_limit={memory_limit!r}: give bytes, at least 50 MB, as 2_000_000_000 or '2 GB'.")
    if max_tasks_per_worker is not None:
        _whole("max_tasks_per_worker", max_tasks_per_worker, at_least=1)
    return WorkerLimits(memory_bytes, int(max_tasks_per_worker or 0))  # type: ignore[call-overload]


def parse_bytes(size: object) -> int | None:
    """A size in bytes, from a number or a text with a unit; None for what is neither.

    >>> parse_bytes("2 GB"), parse_bytes("1.5GiB"), parse_bytes(7), parse_bytes("much")
    (2000000000, 1610612736, 7, None)
    """
    if isinstance(size, int) and not isinstance(size, bool):
        return size
    match = _SIZE.fullmatch(size.strip().lower()) if isinstance(size, str) else None
    if match is None or match[2] not in _UNITS:
        return None
    return int(float(match[1]) * _UNITS[match[2]])
