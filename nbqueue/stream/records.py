"""Records that travel between kernel and workers. Frozen; only what JSON or a stream entry can carry. Those that are
made for each call are tuples, which takes a quarter of the time.

A *call* is what a client submits: one or more items for one function. An *entry* is where a call lies in a
stream, written ``<stream>/<id>``. A *report* is a worker's word on finished items of a call.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple, TypeVar

_T = TypeVar("_T")

__all__ = [
    "MOST_TOGETHER",
    "Call",
    "Charge",
    "Fetched",
    "HostState",
    "Incoming",
    "QueueCounts",
    "Report",
    "RunningTask",
    "Setting",
    "Several",
    "WorkerLimits",
    "WorkerState",
]


# As many calls lie in a bundle.
MOST_TOGETHER = 64


class Call(NamedTuple):
    """A call on its way out. `digests` name the blobs that it needs: its function first. `needs` are the open calls
    whose values it is to be given, which `digests` name as well. `stream` is where it goes: 0 before all others, 1 in
    order, 2 behind. With `names`, rising, it is a bundle of the calls of one item that they name: `n` is the last of
    them, and `items` are 0."""

    n: int
    digests: tuple[str, ...]
    items: int
    payload: bytes
    first: int = 0
    needs: tuple[str, ...] = ()
    stream: str = "1"
    names: tuple[str, ...] = ()


class Fetched(NamedTuple):
    """A call as a worker receives it.

    `attempt` counts from 1. `first` is the first item that still has to run. `charged` is the item that was
    running when an earlier worker died, or -1; `crashes` is how often, or -1 if that item has ended. One that lies in
    a bundle, whose `payload` is that of all, has an `entry` of its own: ``<stream>*<id>+<n>``.
    """

    entry: str
    client: str
    n: str
    digests: tuple[str, ...]
    items: int
    attempt: int
    crashes: int
    first: int
    charged: int
    payload: bytes

    @property
    def bundled(self) -> bool:
        return self.entry[1] == "*"


class Report(NamedTuple):
    """Items ``first … first + items - 1`` of a fetched call are finished; `reply` is the sealed message.

    With `retry_delay_s`, the last of them is to run again; `retry_payload` is its own sealed message when
    the call has several items.
    """

    call: Fetched
    first: int
    items: int
    failed: int
    reply: bytes
    retry_delay_s: float | None = None
    retry_payload: bytes = b""


class Several(NamedTuple):
    """Calls of one item, of one client and with the same digests, that gave values; `message` is the sealed one."""

    calls: tuple[Fetched, ...]
    message: bytes


@dataclass(frozen=True, slots=True)
class Charge:
    """`item` of an entry was running when its worker died. `cap` is how many crashes it may survive, -1 ends it now;
    `reply` is the sealed message that it then ends with."""

    entry: str
    item: int
    cap: int
    reply: bytes


class Incoming(NamedTuple):
    """One message of a client's reply stream; `kind` is ``r`` (a reply), ``m`` (of several calls, whose names are in
    `n` with commas between), ``e`` (an event) or ``x`` (the call was refused)."""

    id: bytes
    n: str
    kind: str
    message: bytes


@dataclass(frozen=True, slots=True)
class OpenEntry:
    """An open call of any client, and where it stands. `items` is how many it was sent with."""

    client: str
    n: str
    entry: str
    items: int = 1


@dataclass(frozen=True, slots=True)
class RunningTask:
    """What a worker runs right now: `item` of the call `client:n`, since `seconds`."""

    name: str
    client: str
    n: str
    item: int
    attempt: int
    seconds: float


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One worker process: ``idle``, ``busy``, ``waiting`` (for a task that it called) or ``starting``.

    `beside` are the calls of async functions that run at the same time as its `task`, the one that has run for
    longest. `memory_bytes` is its resident memory, 0 where that is not known.
    """

    slot: int
    pid: int
    state: str
    task: RunningTask | None = None
    memory_bytes: int = 0
    beside: tuple[RunningTask, ...] = ()

    @property
    def tasks(self) -> tuple[RunningTask, ...]:
        """All that it runs."""
        return () if self.task is None else (self.task, *self.beside)


@dataclass(frozen=True, slots=True)
class HostState:
    """A host as its supervisor publishes it with every heartbeat.

    `machine` tells whose process numbers `pid` belongs to, or is empty where that is not known.
    """

    host: str
    hostname: str
    pid: int
    workers: tuple[WorkerState, ...] = field(default_factory=tuple)
    machine: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> HostState:
        """Raises KeyError, TypeError, AttributeError or ValueError for what no host has written: it is not signed."""
        data = json.loads(text)
        workers = []
        for worker in data["workers"]:
            task = worker["task"]
            worker["task"] = _known(RunningTask, task) if task else None
            worker["beside"] = tuple(_known(RunningTask, task) for task in worker.get("beside", ()))
            workers.append(_known(WorkerState, worker))
        return _known(cls, {**data, "workers": tuple(workers)})


_KINDS: dict[str, Any] = {"int": int, "float": (int, float), "str": str}


def _known(cls: type[_T], data: dict[str, object]) -> _T:
    # A newer host may publish more than this version knows.
    kinds = {f.name: _KINDS.get(str(f.type), object) for f in fields(cls)}  # type: ignore[arg-type]
    known = {name: value for name, value in data.items() if name in kinds}
    for name, value in known.items():
        if not isinstance(value, kinds[name]):
            raise TypeError(f"{name}={value!r}")
    return cls(**known)


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """What the streams and counters say: `queued` not yet fetched, `fetched` not yet finished, `delayed` until a retry
    is due or what they need of others is there, `refused` entries that were no calls of ours or could not be trusted.
    `memory_bytes` is what the server uses, for all its data, and `memory_limit_bytes` what it may; 0 where it does not
    tell, or there is no limit."""

    queued: int
    fetched: int
    delayed: int
    done: int
    failed: int
    cancelled: int
    retried: int
    refused: int = 0
    hosts: Sequence[HostState] = ()
    memory_bytes: int = 0
    memory_limit_bytes: int = 0


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What a worker may use: memory of its own in bytes, and items until it is replaced. 0: any number."""

    memory_bytes: int = 0
    tasks: int = 0


@dataclass(frozen=True, slots=True)
class Setting:
    """What of a kernel's surroundings its tasks run in: working directory, import path, and the environment
    variables that were changed since the queue's first process was started (None: removed). `shows` says that it
    can show displays and figures; `shelf` is its directory in shared memory, where large results may be put."""

    cwd: str
    path: tuple[str, ...]
    environ: tuple[tuple[str, str | None], ...]
    shows: bool = False
    shelf: str = ""

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode("utf-8", "surrogateescape")

    @classmethod
    def from_bytes(cls, data: bytes) -> Setting:
        d = json.loads(data.decode("utf-8", "surrogateescape"))
        environ = tuple((name, value) for name, value in d["environ"])
        return cls(d["cwd"], tuple(d["path"]), environ, bool(d.get("shows")), d.get("shelf", ""))
