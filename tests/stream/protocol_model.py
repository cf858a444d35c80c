"""What the stream protocol promises, as a small pure model: no Redis, no clock, no bytes.

`protocol_machine` tells it what its actors do and compares its forecast with the server's answer. The model
knows nothing of scripts: a call is queued, held by a consumer or parked; a copy of it in a worker's hands is
current or old. Items are counted over all copies of a call, so that one that runs too often is noticed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from nbqueue.stream.records import Call, Fetched, Report

QUEUED, HELD, PARKED = "queued", "held", "parked"


@dataclass
class Open:
    """An open call. `first` is what its entry says, `done` what the server knows: a late success moves only
    the latter. `offset` is the place of its first item in the call that the client numbered."""

    client: str
    name: str
    items: int
    digests: tuple[str, ...]
    done: int
    first: int
    offset: int = 0
    attempt: int = 1
    crashes: int = 0
    charged: int = -1
    where: str = QUEUED
    entry: str = ""
    holder: str = ""
    due: bool = False

    @property
    def base(self) -> tuple[str, str]:
        return self.client, self.name.partition(".")[0]

    def item(self, i: int) -> tuple[str, str, int]:
        return (*self.base, self.offset + i)

    def queue(self) -> None:
        self.where, self.entry, self.holder = QUEUED, "", ""


@dataclass
class Model:
    open: dict[tuple[str, str], Open] = field(default_factory=dict)
    records: dict[str, list] = field(default_factory=dict)  # client → [epoch, mark]
    blobs: set[str] = field(default_factory=set)
    hosts: dict[str, int] = field(default_factory=dict)  # registered host → counter
    memory: str = ""  # epoch that the first host gave it
    replies: Counter = field(default_factory=Counter)  # client → messages in its reply stream
    counts: Counter = field(default_factory=Counter)
    # For the promises that span copies of a call; an item is (client, number, index).
    runs: Counter = field(default_factory=Counter)
    retries: Counter = field(default_factory=Counter)
    faults: Counter = field(default_factory=Counter)  # by call: times that its holder was touched
    guilty: Counter = field(default_factory=Counter)  # items that were running when their worker died
    ends: Counter = field(default_factory=Counter)

    # What a client does

    def hello(self, client: str, fresh: str) -> tuple[str, int]:
        return tuple(self.records.setdefault(client, [fresh, 0]))

    def submit(self, client: str, epoch: str, calls: Iterable[Call], blobs: Iterable[str]):
        """``"epoch"``, the missing digests, or the mark."""
        record = self.records.get(client)
        if record is None or record[0] != epoch:
            return "epoch"
        self.blobs |= set(blobs)
        missing = {d for call in calls for d in call.digests} - self.blobs
        if missing:
            return missing
        for call in calls:
            if call.n > record[1]:
                record[1] = call.n
                name = str(call.n)
                self.open[client, name] = Open(
                    client, name, call.items, call.digests, done=call.first, first=call.first
                )
        return record[1]

    def cancel(self, client: str, names: Iterable[str]) -> list[str]:
        ended = [name for name in names if self.open.pop((client, name), None)]
        self.counts["cancelled"] += len(ended)
        return ended

    # What a worker does

    def fetch(self, consumer: str, got: Fetched, own: bool) -> None:
        """An entry was delivered, whether or not its reader saw it."""
        call = self.open.get((got.client, got.n))
        assert call, f"{got} was delivered, but that call is not open"
        if own:
            assert (call.where, call.holder, call.entry) == (HELD, consumer, got.entry)
        else:
            assert call.where == QUEUED, f"{got} was delivered while {call}"
        said = (got.items, got.attempt, got.crashes, got.first, got.charged, got.digests)
        assert said == (call.items, call.attempt, call.crashes, call.first, call.charged, call.digests)
        call.where, call.holder, call.entry = HELD, consumer, got.entry

    def start(self, got: Fetched, offset: int, i: int) -> None:
        """A worker starts item `i` of the copy `got`."""
        call = got.client, got.n.partition(".")[0]
        item = (*call, offset + i)
        self.runs[item] += 1
        allowed = 1 + self.retries[item] + self.faults[call]
        assert self.runs[item] <= allowed, f"{item} runs for the {self.runs[item]}th time of {allowed}"

    def is_current(self, got: Fetched) -> bool:
        call = self.open.get((got.client, got.n))
        return call is not None and call.where == HELD and call.entry == got.entry

    def finish(self, report: Report) -> bool:
        got = report.call
        call = self.open.get((got.client, got.n))
        retry = report.retry_delay_s is not None
        upto = report.first + report.items
        if call is None:
            return False
        current = self.is_current(got)
        if not current and (report.failed or retry):
            return False
        if report.first > call.done or upto <= call.done:
            return current and upto <= call.done
        self.replies[call.client] += 1
        self.counts["done"] += report.items - report.failed - retry
        self.counts["failed"] += report.failed
        self.counts["retried"] += retry
        for i in range(report.first, upto - retry):
            self._end(call, i)
        call.done = upto
        due = retry and report.retry_delay_s == 0
        if retry:
            self.retries[call.item(upto - 1)] += 1
        if retry and call.items == 1:
            call.queue()
            call.where, call.due, call.attempt, call.done, call.first = PARKED, due, call.attempt + 1, 0, 0
        else:
            if retry:
                name = f"{call.name}.{upto - 1}"
                self.open[call.client, name] = Open(
                    call.client, name, 1, call.digests, 0, 0, upto - 1, attempt=2, where=PARKED, due=due
                )
            if call.done >= call.items:
                del self.open[call.client, call.name]
        return True

    def release(self, consumer: str, entries: Iterable[str]) -> int:
        moved = [c for c in self.open.values() if c.where == HELD and c.holder == consumer and c.entry in entries]
        for call in moved:
            call.queue()
        return len(moved)

    # What a supervisor does

    def take_back(self, consumer: str, running: str = "", item: int = -1, cap: int = 0) -> tuple[int, int]:
        moved = ended = 0
        for call in [c for c in self.open.values() if c.where == HELD and c.holder == consumer]:
            self.faults[call.base] += 1
            if call.entry == running and item >= call.done:
                self.guilty[call.item(item)] += 1
                call.attempt += 1
                call.crashes = call.crashes + 1 if call.charged == item and call.crashes >= 0 else 1
                call.charged = item
                if call.crashes > cap:
                    ended += 1
                    self.replies[call.client] += 1
                    self.counts["failed"] += 1
                    self._end(call, item)
                    if item == call.done:
                        call.done, call.crashes, call.charged = call.done + 1, 0, -1
                    else:
                        call.crashes = -1
            call.first = call.done
            call.queue()
            if call.done >= call.items:
                del self.open[call.client, call.name]
            else:
                moved += 1
        return moved, ended

    def register(self, host: str, fresh: str) -> str:
        self.hosts[host] = 0
        self.memory = self.memory or fresh
        return self.memory

    def beat(self, host: str, living: set[str], epoch: str) -> dict[str, int] | str:
        """Every host's counter, or why there is none."""
        if epoch != self.memory:
            return "forgot"
        if host not in self.hosts:
            return "fenced"
        self.hosts[host] += 1
        for consumer in {c.holder for c in self.open.values() if c.where == HELD} - living:
            owner = consumer.partition(":")[0]
            if owner == host or owner not in self.hosts:
                self.take_back(consumer)
        for call in self.open.values():
            if call.where == PARKED and call.due:
                call.queue()
        return dict(self.hosts)

    def leave(self, host: str) -> None:
        self.hosts.pop(host, None)
        for consumer in {c.holder for c in self.open.values() if c.where == HELD}:
            if consumer.partition(":")[0] == host:
                self.take_back(consumer)

    # What fate does

    def lose_everything(self, unsettled: Iterable[tuple[str, str]]) -> None:
        for call in unsettled:
            self.faults[call] += 1
        for part in (self.open, self.records, self.blobs, self.hosts, self.replies, self.counts):
            part.clear()
        self.memory = ""

    def refs(self) -> Counter:
        return Counter(d for call in self.open.values() for d in call.digests)

    def open_of(self, client: str) -> dict[str, Open]:
        return {name: call for (who, name), call in self.open.items() if who == client}

    def by_place(self) -> dict[str, int]:
        places: dict[str, int] = defaultdict(int)
        for call in self.open.values():
            places[call.where] += 1
        return places

    def _end(self, call: Open, i: int) -> None:
        item = call.item(i)
        self.ends[item] += 1
        allowed = 1 + self.faults[call.base]
        assert self.ends[item] <= allowed, f"{item} ended {self.ends[item]} times of {allowed}"
