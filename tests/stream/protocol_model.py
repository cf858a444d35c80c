"""What the stream protocol promises, as a small pure model: no Redis, no bytes, and a clock that is told.

`protocol_machine` tells it what its actors do and compares its forecast with the server's answer. The model
knows nothing of scripts: a call is queued, held by a consumer, parked or waiting for what others give; a copy of
it in a worker's hands is current or old. Items are counted over all copies of a call, so that one that runs too
often is noticed. Calls may lie together in a bundle, which is queued or held as one; each leaves it on its own.
Every key of the queue has its place here as well: until when it lives, or that it lives on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from nbqueue.stream.broker import entry_of
from nbqueue.stream.keys import value_name
from nbqueue.stream.records import Call, Charge, Fetched, Report, Several

QUEUED, HELD, PARKED, WAITING = "queued", "held", "parked", "waiting"
STREAMS = FIRST, NORMAL, LOW = "s:0", "s:1", "s:2"
IDLE_S, BLOB_IDLE_S, VALUE_IDLE_S, INBOX_S = 7 * 86400.0, 3600.0, 300.0, 60.0


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
    stream: str = NORMAL
    due: float = 0.0
    due_ms: tuple[int, int] | None = None  # not before, not after; by the server's clock
    needs: set[str] = field(default_factory=set)  # calls whose values have not come
    bundle: int = 0  # those with the same lie together; 0: it has an entry of its own

    @property
    def base(self) -> tuple[str, str]:
        return self.client, self.name.partition(".")[0]

    def item(self, i: int) -> tuple[str, str, int]:
        return (*self.base, self.offset + i)

    def queue(self) -> None:
        """Once more: what is low stays so."""
        self.where, self.entry, self.holder, self.due_ms = QUEUED, "", "", None
        self.stream = LOW if self.stream == LOW else FIRST


@dataclass
class Model:
    open: dict[tuple[str, str], Open] = field(default_factory=dict)
    records: dict[str, list] = field(default_factory=dict)  # client → [epoch, mark]
    blobs: set[str] = field(default_factory=set)
    hosts: dict[str, int] = field(default_factory=dict)  # registered host → counter
    offers: dict[str, int] = field(default_factory=dict)  # host → its workers, as it last said
    memory: str = ""  # epoch that the first host gave it
    replies: Counter = field(default_factory=Counter)  # client → messages in its reply stream
    counts: Counter = field(default_factory=Counter)
    # host → (entry, consumer) of what was cancelled; ("", "") where it was only asked for its state
    inbox: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    foreign: dict[str, str] = field(default_factory=dict)  # entry that a stranger wrote → its holder, or ""
    bundles: list[tuple[str, ...]] = field(default_factory=list)  # whom each was made of, the first one first
    clock: float = 0.0  # seconds that were made to pass
    dies: dict[str, float] = field(default_factory=dict)  # key without its prefix → when, by that clock
    # For the promises that span copies of a call; an item is (client, number, index).
    runs: Counter = field(default_factory=Counter)
    retries: Counter = field(default_factory=Counter)
    faults: Counter = field(default_factory=Counter)  # by call: times that its holder was touched
    guilty: Counter = field(default_factory=Counter)  # items that were running when their worker died
    ends: Counter = field(default_factory=Counter)
    cancelled: set[tuple[str, str]] = field(default_factory=set)  # calls that nobody may fetch any more

    # What a client does

    def hello(self, client: str, fresh: str) -> tuple[str, int]:
        epoch, mark = self.records.setdefault(client, [fresh, 0])
        self._keep_client(client)
        self.prepare()
        return epoch, mark

    def submit(self, client: str, epoch: str, calls: Iterable[Call], blobs: Iterable[str]):
        """``"epoch"``, the missing digests, a list of needed calls that have ended, or the mark."""
        record = self.records.get(client)
        if record is None or record[0] != epoch:
            return "epoch"
        for digest in set(blobs) - self.blobs:
            self.blobs.add(digest)
            self._keep("f:" + digest, BLOB_IDLE_S)
        missing = {d for call in calls for d in call.digests} - self.blobs
        missing -= {value_name(client, need) for call in calls for need in call.needs}
        if missing:
            return missing
        new = [call for call in calls if call.n > record[1]]
        there = {name for who, name in self.open if who == client}
        there |= {name for call in new for name in call.names or (str(call.n),) if int(name) > record[1]}
        ended = [int(need) for call in new for need in call.needs if need not in there]
        if ended:
            return ended
        for call in new:
            taken = []
            for name in call.names or (str(call.n),):
                if int(name) <= record[1]:
                    # Of a bundle, what was taken before is left out.
                    continue
                record[1] = int(name)
                items = 1 if call.names else call.items
                opened = Open(client, name, items, call.digests, done=call.first, first=call.first)
                opened.stream = "s:" + call.stream
                self.open[client, name] = opened
                taken.append(opened)
                if call.needs:
                    opened.where, opened.needs = WAITING, set(call.needs)
                else:
                    self._keep(opened.stream, IDLE_S)
            if call.names:
                self._put_together(taken)
        self._keep_client(client)
        return record[1]

    def cancel(self, client: str, names: Iterable[str]) -> list[str]:
        """The names that were open. The host of each that was held finds a word in its inbox."""
        ended = []
        for name in names:
            call = self.open.get((client, name))
            if call is None:
                # Also one that has ended with another, whose value it needs.
                continue
            ended.append(name)
            if call.where == HELD:
                host = call.holder.partition(":")[0]
                self.inbox.setdefault(host, []).append((call.entry, call.holder))
                self._keep("h:" + host, INBOX_S)
            self._leave_stream(call)
            self._close(call)
        self._count("cancelled", len(ended))
        return ended

    def poke(self, host: str) -> None:
        self.inbox.setdefault(host, []).append(("", ""))
        self._keep("h:" + host, INBOX_S)

    def announce(self, got: Fetched) -> bool:
        told = self.is_current(got)
        if told:
            self._tell(got.client)
        return told

    # What a worker does

    def fetch_bundle(self, consumer: str, listed: list[Fetched], own: bool) -> None:
        """A bundle was delivered, with all that it was made of. It is there as long as any of those is."""
        client, names = listed[0].client, tuple(got.n for got in listed)
        entry = entry_of(listed[0].entry)
        there = [call for call in self.open_of(client).values() if call.bundle and self.made_of(call) == names]
        if own:
            there = [call for call in there if call.where == HELD and entry_of(call.entry) == entry]
        assert there, f"{entry} of {names} was delivered, of which nobody is there"
        assert len({call.bundle for call in there}) == 1
        standing = {call.name for call in there}
        for got in listed:
            assert got.entry == f"{entry[0]}*{entry[2:]}+{got.n}"
            if got.n in standing:
                self.fetch(consumer, got, own)

    def fetch(self, consumer: str, got: Fetched, own: bool) -> None:
        """An entry was delivered, whether or not its reader saw it."""
        call = self.open.get((got.client, got.n))
        assert call, f"{got} was delivered, but that call is not open"
        assert call.base not in self.cancelled, f"{got} was cancelled"
        if own:
            assert (call.where, call.holder, call.entry) == (HELD, consumer, got.entry)
        else:
            assert call.where == QUEUED, f"{got} was delivered while {call}"
        said = (got.items, got.attempt, got.crashes, got.first, got.charged, got.digests)
        assert said == (call.items, call.attempt, call.crashes, call.first, call.charged, call.digests)
        assert got.bundled == bool(call.bundle)
        call.where, call.holder, call.entry = HELD, consumer, got.entry
        assert call.stream == "s:" + got.entry[0]

    def fetch_foreign(self, consumer: str, entry: str, own: bool) -> None:
        assert entry in self.foreign, f"{entry} was deleted while it was pending"
        assert self.foreign[entry] == (consumer if own else "")
        self.foreign[entry] = consumer

    def refuse(self, entries: Iterable[str]) -> int:
        refused = sum(self.foreign.pop(entry, None) is not None for entry in entries)
        self._count("refused", refused)
        for entry in entries:
            self._see("s:" + entry[0])
        return refused

    def refuse_call(self, got: Fetched) -> bool:
        """All items of a call end whose message cannot be trusted, unless its entry no longer stands for it."""
        current = self.is_current(got)
        if current:
            call = self.open[got.client, got.n]
            for i in range(call.done, call.items):
                self._end(call, i)
            self._leave_bundle(call)
            self._close(call)
            self._tell(call.client)
            self._count("failed", 1)
            self._count("refused", 1)
        if current or not got.bundled:
            self._see("s:" + got.entry[0])
        return current

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

    def finish(self, reports: Iterable[Report]) -> list[bool]:
        return [self._finish(report) for report in reports]

    def values(self, several: Several) -> list[bool]:
        """Of calls that gave values, in one message: who has already ended is not in it."""
        counted = []
        for got in several.calls:
            call = self.open.get((got.client, got.n))
            counted.append(call is not None)
            if call is None:
                self._see("s:" + got.entry[0])
                continue
            self._leave_stream(call)
            self._end(call, 0)
            self._close(call, has_value=True)
        if any(counted):
            self._tell(several.calls[0].client)
        self._count("done", sum(counted))
        return counted

    def _finish(self, report: Report) -> bool:
        got = report.call
        call = self.open.get((got.client, got.n))
        retry = report.retry_delay_s is not None
        upto = report.first + report.items
        current = self.is_current(got)
        if call is None or (retry and not current):
            # Its entry may have been deleted, and is looked for.
            self._see("s:" + got.entry[0])
            return False
        if not current and report.failed:
            return False
        if report.first > call.done or upto <= call.done:
            return current and upto <= call.done
        self._tell(call.client)
        self._count("done", report.items - report.failed - retry)
        self._count("failed", report.failed)
        self._count("retried", int(retry))
        for i in range(report.first, upto - retry):
            self._end(call, i)
        call.done = upto
        due = self.clock + (report.retry_delay_s or 0.0)
        if upto >= call.items:
            self._leave_stream(call)
        if retry:
            self.retries[call.item(upto - 1)] += 1
        if retry and call.items == 1:
            call.queue()
            call.where, call.due, call.attempt, call.done, call.first = PARKED, due, call.attempt + 1, 0, 0
        else:
            if retry:
                name = f"{call.name}.{upto - 1}"
                item = Open(call.client, name, 1, call.digests, 0, 0, upto - 1, stream=call.stream)
                item.where, item.due, item.attempt = PARKED, due, 2
                self.open[call.client, name] = item
            if call.done >= call.items:
                self._close(call, has_value=not report.failed)
        return True

    def release(self, consumer: str, entries: Iterable[str]) -> int:
        moved = [call for call in self._held_by(consumer) if any(self._goes_back(call, entry) for entry in entries)]
        for call in moved:
            if call.bundle:
                self._leave_bundle(call)
                self._put_together([call])
            call.queue()
        for entry in entries:
            if self.foreign.get(entry) == consumer:
                del self.foreign[entry]
        self.prepare()
        return len(moved)

    @staticmethod
    def _goes_back(call: Open, entry: str) -> bool:
        """Of a bundle, all from one call on; or all."""
        if not call.bundle or entry[1] != "*":
            return entry_of(call.entry) == entry
        return entry_of(call.entry) == entry_of(entry) and int(call.name) >= int(entry.partition("+")[2])

    # What a supervisor does

    def reclaim(self, consumer: str, charges: Iterable[Charge]) -> tuple[int, int]:
        answer = self._take_back(consumer, {charge.entry: charge for charge in charges})
        self.prepare()
        return answer

    def _take_back(self, consumer: str, charges: Mapping[str, Charge] = MappingProxyType({})) -> tuple[int, int]:
        moved = ended = 0
        for entry in [entry for entry, holder in self.foreign.items() if holder == consumer]:
            del self.foreign[entry]
        held = self._held_by(consumer)
        self._part_bundles(held, charges)
        for call in held:
            self.faults[call.base] += 1
            charge = charges.get(call.entry)
            item = -1 if charge is None else charge.item
            ended_before = call.charged == item and call.crashes == -1
            if charge is not None and item >= call.done and not ended_before:
                self.guilty[call.item(item)] += 1
                call.attempt += 1
                call.crashes = call.crashes + 1 if call.charged == item else 1
                call.charged = item
                if call.crashes > charge.cap:
                    ended += 1
                    self._tell(call.client)
                    self._count("failed", 1)
                    self._end(call, item)
                    if item == call.done:
                        call.done, call.crashes, call.charged = call.done + 1, 0, -1
                    else:
                        call.crashes = -1
            call.first = call.done
            call.queue()
            if call.done >= call.items:
                self._close(call)
            else:
                moved += 1
        return moved, ended

    def _part_bundles(self, held: list[Open], charges: Mapping[str, Charge]) -> None:
        """Whoever was running goes back alone, and all others of its bundle together."""
        for bundle in sorted({call.bundle for call in held} - {0}):
            there = [call for call in held if call.bundle == bundle]
            rest = [call for call in there if call.entry not in charges]
            self._count("bundled", 1 - len(there))
            for call in there:
                if call.entry in charges:
                    self._put_together([call])
            if rest:
                self._put_together(rest)

    def register(self, host: str, fresh: str, offers: int) -> str:
        self.hosts[host] = 0
        self.offers[host] = offers
        self.memory = self.memory or fresh
        self._keep_hosts()
        self.prepare()
        return self.memory

    def beat(self, host: str, living: set[str], epoch: str, offers: int) -> dict[str, int] | str:
        """Every host's counter, or why there is none."""
        if epoch != self.memory:
            return "forgot"
        if host not in self.hosts:
            return "fenced"
        self.hosts[host] += 1
        self.offers[host] = offers
        self._keep_hosts()
        for consumer in self._holders() - living:
            owner = consumer.partition(":")[0]
            if owner == host or owner not in self.hosts:
                self._take_back(consumer)
        for call in self.open.values():
            if call.where == PARKED and call.due <= self.clock:
                call.queue()
        self.prepare()
        return dict(self.hosts)

    def leave(self, host: str) -> None:
        self.hosts.pop(host, None)
        for consumer in self._holders():
            if consumer.partition(":")[0] == host:
                self._take_back(consumer)
        self.prepare()

    # What fate does

    def lose_everything(self, unsettled: Iterable[tuple[str, str]]) -> None:
        for call in unsettled:
            self.faults[call] += 1
        for part in (self.open, self.records, self.blobs, self.hosts, self.replies, self.counts):
            part.clear()
        for part in (self.inbox, self.foreign, self.dies):
            part.clear()
        self.memory = ""

    def lose_record(self, client: str) -> None:
        del self.records[client], self.dies["c:" + client]

    def pass_time(self, seconds: float) -> None:
        self.clock += seconds
        for call in self.parked():
            assert call.due_ms, f"nobody knows when {call} is due"
            call.due_ms = call.due_ms[0] - int(seconds * 1000), call.due_ms[1] - int(seconds * 1000)
        for key in [key for key, left in self.lifetimes().items() if left is not None and left <= 0]:
            del self.dies[key]
            kind, _, name = key.partition(":")
            if kind == "c":
                del self.records[name]
            elif kind == "r":
                self.replies.pop(name, None)
            elif kind == "f":
                self.blobs.discard(name)
            elif kind == "h":
                del self.inbox[name]
            elif kind == "hb":
                self.hosts.clear()
            elif kind == "e":
                self.memory = ""
            elif kind == "n":
                self.counts.clear()

    # What there is

    def lifetimes(self) -> dict[str, float | None]:
        """Every key → seconds that it has left, or None: it is needed."""
        if not self.hosts:
            # A hash without fields is no more.
            for key in ("hb", "hw", "pool"):
                self.dies.pop(key, None)
        keys: dict[str, float | None] = {key: dies - self.clock for key, dies in self.dies.items()}
        for entry in self.foreign:
            keys["s:" + entry[0]] = None
        for call in self.open.values():
            if call.where in (PARKED, WAITING):
                keys["z"] = keys["zp"] = None
            else:
                keys[call.stream] = None
            for name in ("o:" + call.client, "c:" + call.client, *("f:" + digest for digest in call.digests)):
                keys[name] = None
            if "r:" + call.client in keys:
                keys["r:" + call.client] = None
        if self.bundled():
            keys["n"] = None
        return keys

    def refs(self) -> Counter:
        return Counter(d for call in self.open.values() for d in call.digests)

    def open_of(self, client: str) -> dict[str, Open]:
        return {name: call for (who, name), call in self.open.items() if who == client}

    def by_place(self) -> dict[str, int]:
        """Calls by where they are."""
        return Counter(call.where for call in self.open.values())

    def workers(self) -> int:
        return sum(self.offers[host] for host in self.hosts)

    def parked(self) -> list[Open]:
        return [call for call in self.open.values() if call.where == PARKED]

    def waiting(self) -> list[Open]:
        return [call for call in self.open.values() if call.where == WAITING]

    def made_of(self, call: Open) -> tuple[str, ...]:
        """All that its bundle was made of."""
        return self.bundles[call.bundle - 1]

    def value_blobs(self) -> list[str]:
        """Names of the blobs that are values of calls, or will be."""
        return sorted(key[2:] for key in self.lifetimes() if key.startswith("f:v"))

    def on_streams(self) -> list[Open]:
        return [call for call in self.open.values() if call.where in (QUEUED, HELD)]

    def bundled(self) -> int:
        """By how many there are more calls on the streams than entries that they lie in."""
        together = [call.bundle for call in self.on_streams() if call.bundle]
        return len(together) - len(set(together))

    def length(self, stream: str) -> int:
        calls = [call for call in self.on_streams() if call.stream == stream]
        entries = {call.bundle or (call.client, call.name) for call in calls}
        return len(entries) + sum("s:" + entry[0] == stream for entry in self.foreign)

    def pending(self, stream: str) -> int:
        entries = {entry_of(call.entry) for call in self.open.values() if call.where == HELD}
        entries |= {entry for entry, holder in self.foreign.items() if holder}
        return sum("s:" + entry[0] == stream for entry in entries)

    def prepare(self) -> None:
        """What a step does that needs the streams: they are there, and live on for a while."""
        for key in STREAMS:
            self._keep(key, IDLE_S)

    def _see(self, stream: str) -> None:
        """A step puts something there, or takes something away."""
        if stream in self.dies:
            self._keep(stream, IDLE_S)

    def _leave_stream(self, call: Open) -> None:
        if call.where not in (PARKED, WAITING):
            self._see(call.stream)
        self._leave_bundle(call)

    def _leave_bundle(self, call: Open) -> None:
        if sum(other.bundle == call.bundle for other in self.on_streams()) > 1 and call.bundle:
            self._count("bundled", -1)
        call.bundle = 0

    def _put_together(self, calls: list[Open]) -> None:
        self.bundles.append(tuple(call.name for call in calls))
        for call in calls:
            call.bundle = len(self.bundles)
        self._count("bundled", len(calls) - 1)

    def _held_by(self, consumer: str) -> list[Open]:
        return [call for call in self.open.values() if call.where == HELD and call.holder == consumer]

    def _holders(self) -> set[str]:
        holders = {call.holder for call in self.open.values() if call.where == HELD}
        return holders | set(self.foreign.values()) - {""}

    def _keep(self, key: str, seconds: float) -> None:
        self.dies[key] = self.clock + seconds

    def _keep_client(self, client: str) -> None:
        """Its record, and what it was told, if it was."""
        self._keep("c:" + client, IDLE_S)
        if "r:" + client in self.dies:
            self._keep("r:" + client, IDLE_S)

    def _keep_hosts(self) -> None:
        for key in ("hb", "hw", "pool", "e"):
            self._keep(key, IDLE_S)

    def _tell(self, client: str) -> None:
        self.replies[client] += 1
        self._keep("r:" + client, IDLE_S)

    def _count(self, name: str, by: int) -> None:
        if by:
            self.counts[name] += by
            self._keep("n", IDLE_S)

    def _close(self, call: Open, *, has_value: bool = False) -> None:
        del self.open[call.client, call.name]
        self._pass_on(call, has_value)
        refs = self.refs()
        for digest in call.digests:
            if not refs[digest]:
                self._keep("f:" + digest, VALUE_IDLE_S if digest.startswith("v") else BLOB_IDLE_S)
        if not self.open_of(call.client):
            self._keep_client(call.client)

    def _pass_on(self, call: Open, has_value: bool) -> None:
        """What waits for a call that has ended gets its value, or ends as well."""
        name = value_name(call.client, call.name)
        for other in [other for other in self.open_of(call.client).values() if call.name in other.needs]:
            if not has_value:
                if (other.client, other.name) in self.open:
                    self._count("cancelled", 1)
                    self._close(other)
                continue
            self.blobs.add(name)
            other.needs.discard(call.name)
            if not other.needs:
                other.where = QUEUED
                self._keep(other.stream, IDLE_S)

    def _end(self, call: Open, i: int) -> None:
        item = call.item(i)
        self.ends[item] += 1
        allowed = 1 + self.faults[call.base]
        assert self.ends[item] <= allowed, f"{item} ended {self.ends[item]} times of {allowed}"
