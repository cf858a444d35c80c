"""Adversarial actors that drive the real steps on a real server, and compare each answer with the model.

One thread. Clients lose replies and send again; workers die, answer late and fetch under dead names; hosts
freeze, are declared dead and thaw; the server loses everything. After every rule the server's state is held
against `protocol_model`; at the end an honest crew drains the queue, and nothing may be left.

What the actors keep to is what the protocol asks of the real ones:

- A client that learns of a new epoch reads its replies to their end and sends its open calls again, numbers
  rising, before any new one; so does one that does not know whether a SUBMIT arrived.
- A worker that (re)connects reads its own pending entries first and keeps copies that it still holds. It
  repeats a FINISH without an answer before it does anything else, reports items in order, and sends its
  report before it goes past an item that has ended while another worker ran it.
- A supervisor never uses a consumer's name twice, and lists a worker as living before it fetches.
- Whoever cancels a call names its retried items as well: ``7``, ``7.0``, ``7.1`` …
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from protocol_model import HELD, PARKED, QUEUED, Model

from nbqueue.stream.broker import Broker, Forgot, NeedBlobs, OtherEpoch, Taken
from nbqueue.stream.connect import CommandError, Wire
from nbqueue.stream.keys import GROUP, Keys
from nbqueue.stream.records import Call, Fetched, HostState, Report
from nbqueue.stream.server import PrivateServer

LATER_S = 3600.0
BLOBS = ("d0", "d1", "d2")
OK, FAIL, RETRY, LATER, SKIP, DIED, CANCELLED = "ok", "fail", "retry", "later", "skip", "died", "cancelled"

picks = st.integers(0, 5)
kinds = st.sampled_from([OK, OK, FAIL, RETRY, LATER])
sizes = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@dataclass
class Sent:
    """A call as its client keeps it until the end. `outcomes`: item → (kind, value), first one only."""

    n: int
    values: list[str]
    digests: tuple[str, ...]
    outcomes: dict[int, tuple[str, str | None]] = field(default_factory=dict)

    @property
    def unsettled(self) -> list[int]:
        return [i for i in range(len(self.values)) if i not in self.outcomes]

    def call(self, *, first: int = 0, forged: bool = False) -> Call:
        values = ["forged"] * len(self.values) if forged else self.values
        payload = json.dumps({"offset": 0, "values": values}).encode()
        return Call(self.n, self.digests, len(self.values), payload, first)


@dataclass
class Client:
    name: str
    epoch: str = ""
    cursor: bytes = b"0"
    calls: dict[int, Sent] = field(default_factory=dict)
    unsure: bool = False  # a SUBMIT has had no answer
    submits: list[tuple[str, list[int]]] = field(default_factory=list)


@dataclass
class Copy:
    """A fetched call in a worker's hands; `at` is its next item, `begun` if that is running."""

    got: Fetched
    offset: int
    values: list[str]
    at: int
    reported: int
    begun: bool = False
    outcomes: list[str] = field(default_factory=list)

    @property
    def unstarted(self) -> bool:
        return not self.begun and self.at == self.got.first


@dataclass
class Worker:
    name: str
    copies: list[Copy] = field(default_factory=list)
    reconnects: bool = True
    unanswered: list[Report] = field(default_factory=list)
    last: list[Report] = field(default_factory=list)


@dataclass
class Host:
    name: str = ""
    epoch: str = ""
    workers: list[Worker] = field(default_factory=list)
    frozen: bool = False


class ProtocolMachine(RuleBasedStateMachine):
    """Make one for a server with `machine_on`."""

    server: PrivateServer
    reads_own_pending = True  # taken away by a mutant

    def __init__(self) -> None:
        super().__init__()
        self.broker = Broker(Wire(self.server.address, timeout_s=5), Keys.of("model", "0"))
        self.broker.wire.connect()
        self.broker.wire.call("FLUSHALL")
        self.broker.connect()
        self.model = Model()
        self.clients: list[Client] = []
        self.hosts: list[Host] = []
        self.zombies: list[Worker] = []  # declared dead, still acting
        self.names = 0
        self.restarts = 0
        self.add_client()
        self.add_host()
        self.add_host()

    # Who is there

    def fresh(self, letter: str) -> str:
        self.names += 1
        return f"{letter}{self.names}"

    def add_client(self) -> Client:
        client = Client(self.fresh("c"))
        self.clients.append(client)
        self.resync(client)
        return client

    def add_worker(self, host: Host) -> Worker:
        worker = Worker(f"{host.name}:{self.fresh('w')}")
        host.workers.append(worker)
        return worker

    def join(self, host: Host) -> None:
        host.name, host.frozen = self.fresh("h"), False
        host.workers = []
        self.add_worker(host)
        self.add_worker(host)
        self.register(host)

    def register(self, host: Host) -> None:
        for _ in range(2):  # its reply may be lost
            fresh = self.fresh("e")
            host.epoch = self.broker.register(host.name, 2, self.state_of(host), fresh)
            assert host.epoch == self.model.register(host.name, fresh)

    def add_host(self) -> Host:
        host = Host()
        self.hosts.append(host)
        self.join(host)
        return host

    @staticmethod
    def state_of(host: Host) -> HostState:
        return HostState(host.name, host.name, 1)

    @property
    def awake(self) -> list[Host]:
        return [host for host in self.hosts if not host.frozen]

    @property
    def working(self) -> list[Worker]:
        return [worker for host in self.awake for worker in host.workers]

    def host_of(self, worker: Worker) -> Host:
        return next(host for host in self.hosts if worker in host.workers)

    # Clients

    def resync(self, client: Client) -> None:
        """Say hello, read to the end, send what the server does not know."""
        fresh = self.fresh("e")
        hello = self.broker.hello(client.name, fresh)
        assert (hello.epoch, hello.mark) == self.model.hello(client.name, fresh)
        assert hello.workers == 2 * len(self.model.hosts)
        if hello.epoch != client.epoch:
            client.epoch, client.cursor = hello.epoch, b"0"
        self.read(client)
        lost = [n for n, sent in sorted(client.calls.items()) if sent.unsettled and n > hello.mark]
        client.unsure = False
        if lost:
            self.send(client, lost)

    def send(self, client: Client, numbers: list[int], *, blobs: Sequence[str] = (), forged: bool = False) -> Any:
        """One SUBMIT, and a second one with the blobs that the server asks for."""
        calls = []
        for n in numbers:
            sent = client.calls[n]
            calls.append(sent.call(first=min(sent.unsettled, default=0), forged=forged))
        for _ in range(2):
            answer = self.broker.submit(client.name, client.epoch, calls, {d: d.encode() for d in blobs})
            expected = self.model.submit(client.name, client.epoch, calls, blobs)
            if isinstance(answer, NeedBlobs):
                assert set(answer.digests) == expected
                blobs = answer.digests
                continue
            break
        if isinstance(answer, Taken):
            assert answer == (expected, 2 * len(self.model.hosts))
        else:
            assert isinstance(answer, OtherEpoch)
            assert expected == "epoch"
        return answer

    def make_calls(self, client: Client, counts: Sequence[int], kind: int = 0) -> list[int]:
        digests = (BLOBS[:1], BLOBS[:2], BLOBS[1:], ())[kind % 4]
        start = max(client.calls, default=0) + 1
        for n, items in enumerate(counts, start):
            client.calls[n] = Sent(n, [f"{client.name}/{n}/{i}" for i in range(items)], digests)
        return list(range(start, start + len(counts)))

    def submit(self, client: Client, counts: Sequence[int], kind: int = 0, fate: str = "") -> list[int]:
        if client.unsure:
            self.resync(client)
        numbers = self.make_calls(client, counts, kind)
        if fate == "never arrived":
            client.unsure = True
            return numbers
        blobs = client.calls[numbers[0]].digests if kind >= 3 else ()
        client.submits.append((client.epoch, numbers))
        answer = self.send(client, numbers, blobs=blobs)
        client.unsure = fate == "reply lost"
        if isinstance(answer, OtherEpoch) and not client.unsure:
            self.resync(client)
        return numbers

    def read(self, client: Client, *, trim: bool = False) -> None:
        while messages := self.broker.read_replies(client.name, client.cursor):
            for message in messages:
                client.cursor = message.id
                if message.kind == "r":
                    n = int(message.n.partition(".")[0])
                    for i, kind, value in json.loads(message.message):
                        self.settle(client, client.calls[n], i, kind, value)
        if trim and client.cursor != b"0":
            self.broker.wire.call(*self.broker.trim_replies_command(client.name, client.cursor))
            self.model.replies[client.name] = 0

    def settle(self, client: Client, sent: Sent, i: int, kind: str, value: str | None) -> None:
        item = (client.name, str(sent.n), i)
        if kind in (RETRY, LATER, SKIP) or i in sent.outcomes:
            return
        if kind == DIED:
            assert self.model.guilty[item], f"{item} was charged a crash of another"
        else:
            assert value == sent.values[i]
            assert self.model.runs[item]
        sent.outcomes[i] = (kind, value)

    def cancel(self, client: Client, numbers: Sequence[int]) -> None:
        self.read(client)
        names = []
        for n in numbers:
            sent = client.calls[n]
            names += [str(n), *(f"{n}.{i}" for i in sent.unsettled if len(sent.values) > 1)]
        assert self.broker.cancel(client.name, names) == self.model.cancel(client.name, names)
        assert self.broker.cancel(client.name, names) == []
        for n in numbers:
            sent = client.calls[n]
            sent.outcomes |= dict.fromkeys(sent.unsettled, (CANCELLED, None))

    # Workers

    def deliver(self, worker: Worker, count: int, *, own: bool) -> list[Fetched]:
        command = self.broker.fetch_command(worker.name, count, block_ms=None, own=own)
        try:
            answer = self.broker.wire.call(*command)
        except CommandError as error:
            assert "NOGROUP" in str(error)
            self.broker.ensure_group()
            answer = self.broker.wire.call(*command)
        calls, gone = self.broker.parse_fetch(answer)
        assert not gone, "an entry was deleted while it was pending"
        for got in calls:
            self.model.fetch(worker.name, got, own)
        return calls

    def fetch(self, worker: Worker, count: int = 1, *, lost: bool = False) -> None:
        self.settle_unanswered(worker)
        if lost:
            self.deliver(worker, count, own=False)
            worker.reconnects = True
            return
        calls = []
        if worker.reconnects and self.reads_own_pending:
            held = {copy.got.entry for copy in worker.copies}
            calls = [got for got in self.deliver(worker, 100, own=True) if got.entry not in held]
        worker.reconnects = False
        calls += self.deliver(worker, count, own=False)
        for got in calls:
            for digest in got.digests:
                assert self.broker.blob(digest) == digest.encode(), "an open call lost its blob"
            content = json.loads(got.payload)
            worker.copies.append(Copy(got, content["offset"], content["values"], got.first, got.first))

    def begin(self, worker: Worker) -> bool:
        """Start the next item, unless there is none or it has ended."""
        if not worker.copies:
            return False
        copy = worker.copies[0]
        if copy.begun or copy.at >= copy.got.items or self.skips(copy):
            return copy.begun
        self.model.start(copy.got, copy.offset, copy.at)
        copy.begun = True
        return True

    @staticmethod
    def skips(copy: Copy) -> bool:
        return copy.got.crashes == -1 and copy.got.charged == copy.at

    def run(self, worker: Worker, outcomes: Sequence[str], *, report: bool = True) -> None:
        """Run one item for each of `outcomes`; report them, or keep them for later."""
        self.settle_unanswered(worker)
        for kind in outcomes:
            if not worker.copies:
                return
            copy = worker.copies[0]
            skips = self.skips(copy)
            if skips:
                kind = SKIP
            else:
                self.begin(worker)
            copy.outcomes.append(kind)
            copy.at, copy.begun = copy.at + 1, False
            if kind in (RETRY, LATER) or skips or copy.at == copy.got.items:
                self.report(worker)
        if report:
            self.report(worker)

    def report(self, worker: Worker, *, lost: bool = False) -> None:
        if not worker.copies or not worker.copies[0].outcomes:
            return
        copy = worker.copies[0]
        outcomes, copy.outcomes = copy.outcomes, []
        delay, payload = None, b""
        if outcomes[-1] in (RETRY, LATER):
            delay = 0.0 if outcomes[-1] == RETRY else LATER_S
            if copy.got.items > 1:
                last = {"offset": copy.offset + copy.at - 1, "values": copy.values[copy.at - 1 : copy.at]}
                payload = json.dumps(last).encode()
        reply = [
            (copy.offset + i, kind, copy.values[i]) for i, kind in enumerate(outcomes, copy.reported)
        ]
        report = Report(
            copy.got,
            copy.reported,
            len(outcomes),
            outcomes.count(FAIL),
            json.dumps(reply).encode(),
            delay,
            payload,
        )
        copy.reported = copy.at
        worker.last = [report]
        self.finish(worker, [report], lost=lost)

    def finish(self, worker: Worker, reports: list[Report], *, lost: bool = False) -> None:
        answers = self.broker.finish(reports)
        assert answers == [self.model.finish(report) for report in reports]
        worker.unanswered = reports if lost else []
        for report, counted in zip(reports, () if lost else answers, strict=not lost):
            over = not counted or report.first + report.items == report.call.items
            if over:
                worker.copies = [copy for copy in worker.copies if copy.got.entry != report.call.entry]

    def settle_unanswered(self, worker: Worker) -> None:
        if worker.unanswered:
            self.finish(worker, worker.unanswered)

    def release(self, worker: Worker) -> None:
        """Give back all but the first copy, twice: the reply may be lost."""
        given = [copy for i, copy in enumerate(worker.copies) if i and copy.unstarted]
        entries = [copy.got.entry for copy in given]
        if entries:
            worker.copies = [copy for copy in worker.copies if copy not in given]
            assert self.broker.release(worker.name, entries) == self.model.release(worker.name, entries)
            assert self.broker.release(worker.name, entries) == 0

    # Supervisors

    def crash(self, worker: Worker, *, running: bool = True, cap: int = 1, zombie: bool = False) -> None:
        """A worker is declared dead and replaced. A zombie does not know."""
        host = self.host_of(worker)
        entry, item, reply = "", -1, b"[]"
        if running and self.begin(worker):
            copy = worker.copies[0]
            entry, item = copy.got.entry, copy.at
            reply = json.dumps([(copy.offset + item, DIED, None)]).encode()
        answer = self.broker.reclaim(worker.name, entry, item, cap, reply)
        assert answer == self.model.take_back(worker.name, entry, item, cap)
        assert self.broker.reclaim(worker.name, entry, item, cap, reply) == (0, 0)
        host.workers.remove(worker)
        self.add_worker(host)
        if zombie:
            self.zombies.append(worker)

    def beat(self, host: Host) -> None:
        living = {worker.name for worker in host.workers}
        answer = self.broker.beat(host.name, 2, self.state_of(host), living, host.epoch)
        expected = self.model.beat(host.name, living, host.epoch)
        if answer is None:
            assert expected == "fenced"
            self.join(host)  # its workers were killed
            return
        if isinstance(answer, Forgot):
            assert expected == "forgot"
            self.register(host)  # its workers go on
            self.beat(host)
            return
        due_s, counters = answer
        assert counters == expected
        parked = [call for call in self.model.open.values() if call.where == PARKED]
        assert (due_s is None) == (not parked)

    def reap(self, host: Host) -> None:
        counter = self.model.hosts.get(host.name)
        if counter is None:
            assert not self.broker.reap(host.name, 0)
            return
        assert not self.broker.reap(host.name, counter - 1), "a host was reaped that has beaten since"
        assert self.broker.reap(host.name, counter)
        assert not self.broker.reap(host.name, counter)
        del self.model.hosts[host.name]

    def leave(self, host: Host) -> None:
        for _ in range(2):
            self.broker.leave(host.name)
            self.model.leave(host.name)

    # Fate

    def lose_everything(self, *, restart: bool = False) -> None:
        # A call that is sent again must not get the entry of its old copy: entries are numbered by the
        # millisecond.
        time.sleep(0.002)
        if restart and self.restarts < 2:
            self.restarts += 1
            self.server.kill()
            self.server.start()
            self.broker.connect()
        else:
            self.broker.wire.send(("FLUSHALL",), ("SCRIPT", "FLUSH"))
            self.broker.wire.receive()
            self.broker.wire.receive()
        self.model.lose_everything(
            (client.name, str(sent.n))
            for client in self.clients
            for sent in client.calls.values()
            if sent.unsettled
        )

    def delete_mortal_keys(self, limit_s: int) -> None:
        """Let time pass: every key dies whose lifetime is not longer than this."""
        call = self.broker.wire.call
        for key in call("KEYS", "*"):
            if 0 <= call("TTL", key) <= limit_s:
                call("DEL", key)

    # Rules: everyday work

    @initialize(counts=sizes)
    def something_to_do(self, counts: list[int]) -> None:
        self.submit(self.clients[0], counts, 3)

    @rule(c=picks, counts=sizes, kind=picks, fate=st.sampled_from(["", "", "reply lost", "never arrived"]))
    def client_submits(self, c: int, counts: list[int], kind: int, fate: str) -> None:
        self.submit(self.clients[c % len(self.clients)], counts, kind, fate)

    @rule(c=picks, trim=st.booleans())
    def client_reads(self, c: int, trim: bool) -> None:
        client = self.clients[c % len(self.clients)]
        if not client.unsure:
            self.read(client, trim=trim)

    @rule(c=picks)
    def client_reconnects(self, c: int) -> None:
        self.resync(self.clients[c % len(self.clients)])

    @precondition(lambda self: len(self.clients) < 3)
    @rule()
    def client_joins(self) -> None:
        self.add_client()

    @precondition(lambda self: any(client.submits for client in self.clients))
    @rule(c=picks, s=picks)
    def client_repeats_a_submit(self, c: int, s: int) -> None:
        """The words are old, so they are told from the first ones by forged values."""
        client = self.clients[c % len(self.clients)]
        if client.submits:
            epoch, numbers = client.submits[s % len(client.submits)]
            if epoch == client.epoch:
                self.send(client, numbers, blobs=BLOBS, forged=self.knows(client))

    def knows(self, client: Client) -> bool:
        """Whether the server still has this client's record, so that old words must count for nothing."""
        return self.model.records.get(client.name, ("",))[0] == client.epoch and not client.unsure

    @rule(c=picks, k=picks, many=st.integers(1, 2))
    def client_cancels(self, c: int, k: int, many: int) -> None:
        client = self.clients[c % len(self.clients)]
        numbers = [n for n, sent in client.calls.items() if sent.unsettled]
        if numbers and not client.unsure:
            self.cancel(client, numbers[k % len(numbers) :][:many])

    @precondition(lambda self: self.working)
    @rule(w=picks, count=st.integers(1, 3), lost=st.sampled_from([False, False, True]))
    def worker_fetches(self, w: int, count: int, lost: bool) -> None:
        self.fetch(self.working[w % len(self.working)], count, lost=lost)

    @precondition(lambda self: self.working)
    @rule(w=picks, outcomes=st.lists(kinds, min_size=1, max_size=4), report=st.booleans())
    def worker_runs(self, w: int, outcomes: list[str], report: bool) -> None:
        busy = [worker for worker in self.working if worker.copies] or self.working
        worker = busy[w % len(busy)]
        if not worker.copies:
            self.fetch(worker)
        self.run(worker, outcomes, report=report)

    @precondition(lambda self: self.working)
    @rule(w=picks)
    def worker_loses_the_answer_to_a_finish(self, w: int) -> None:
        worker = self.working[w % len(self.working)]
        self.run(worker, [OK], report=False)
        self.report(worker, lost=True)

    @rule(w=picks)
    def worker_repeats_a_finish(self, w: int) -> None:
        told = [worker for worker in self.working + self.zombies if worker.last]
        if told:
            worker = told[w % len(told)]
            self.finish(worker, worker.last)

    @precondition(lambda self: self.working)
    @rule(w=picks)
    def worker_releases(self, w: int) -> None:
        self.release(self.working[w % len(self.working)])

    @precondition(lambda self: self.awake)
    @rule(h=picks)
    def host_beats(self, h: int) -> None:
        self.beat(self.awake[h % len(self.awake)])

    @rule(w=picks, message=st.binary(max_size=3))
    def worker_announces(self, w: int, message: bytes) -> None:
        busy = [worker for worker in self.working + self.zombies if worker.copies]
        if busy:
            got = busy[w % len(busy)].copies[0].got
            told = self.broker.announce(got.client, got.n, got.entry, message)
            assert told == self.model.is_current(got)
            self.model.replies[got.client] += told

    # Rules: faults

    @precondition(lambda self: self.working)
    @rule(w=picks, running=st.booleans(), cap=st.sampled_from([1, 1, -1]), zombie=st.booleans())
    def worker_dies(self, w: int, running: bool, cap: int, zombie: bool) -> None:
        self.crash(self.working[w % len(self.working)], running=running, cap=cap, zombie=zombie)

    @precondition(lambda self: self.zombies)
    @rule(z=picks, outcomes=st.lists(kinds, min_size=1, max_size=4), fetches=st.booleans())
    def zombie_answers_late(self, z: int, outcomes: list[str], fetches: bool) -> None:
        zombie = self.zombies[z % len(self.zombies)]
        if fetches:
            self.fetch(zombie)
        self.run(zombie, outcomes)

    @precondition(lambda self: self.awake)
    @rule(h=picks)
    def host_freezes(self, h: int) -> None:
        self.awake[h % len(self.awake)].frozen = True

    @precondition(lambda self: len(self.awake) < len(self.hosts))
    @rule()
    def host_thaws(self) -> None:
        next(host for host in self.hosts if host.frozen).frozen = False

    @rule(h=picks)
    def host_is_declared_dead(self, h: int) -> None:
        """Also one that is not: whoever judges by a clock may be wrong."""
        self.reap(self.hosts[h % len(self.hosts)])

    @precondition(lambda self: len(self.hosts) > 1)
    @rule(h=picks, zombies=st.booleans())
    def host_leaves(self, h: int, zombies: bool) -> None:
        host = self.hosts.pop(h % len(self.hosts))
        self.leave(host)
        self.zombies += host.workers if zombies else []

    @precondition(lambda self: len(self.hosts) < 4)
    @rule()
    def host_joins(self) -> None:
        self.add_host()

    @rule(dice=st.integers(0, 15))
    def server_loses_everything(self, dice: int) -> None:
        if dice < 6:
            self.lose_everything(restart=dice == 0)

    @rule()
    def an_hour_passes(self) -> None:
        """Blobs without an open call die, and with them nothing that is needed."""
        self.delete_mortal_keys(3600)
        self.model.blobs &= set(self.model.refs())

    @rule()
    def a_week_passes(self) -> None:
        """In which no host beats. Clients have read their replies: those die too."""
        for client in self.clients:
            self.resync(client)
        self.delete_mortal_keys(8 * 86400)
        self.model.blobs &= set(self.model.refs())
        self.model.hosts.clear()
        self.model.memory = ""
        self.model.replies.clear()
        self.model.counts.clear()
        for client in self.clients:
            if not self.model.open_of(client.name):
                self.model.records.pop(client.name, None)

    @rule(c=picks, w=picks, outcomes=st.lists(kinds, min_size=1, max_size=4))
    def memory_is_full(self, c: int, w: int, outcomes: list[str]) -> None:
        """New calls are refused. All else goes on, or the memory would stay full."""
        client = self.clients[c % len(self.clients)]
        self.resync(client)
        call = self.broker.wire.call
        call("CONFIG", "SET", "maxmemory", "1")
        try:
            (n,) = self.make_calls(client, [1])
            try:
                self.send(client, [n])
            except CommandError as error:
                assert "used memory > 'maxmemory'" in str(error)  # noqa: PT017 - the type differs by version
            else:
                raise AssertionError("a call was taken by a server that is out of memory")
            del client.calls[n]
            self.broker.connect()
            self.resync(client)
            self.read(client, trim=True)
            self.add_host()
            self.beat(self.hosts[0])
            for worker in self.working[w % len(self.working) :][:1]:
                self.fetch(worker)
                self.run(worker, outcomes)
                self.release(worker)
                self.crash(worker)
            self.leave(self.hosts.pop())
        finally:
            call("CONFIG", "SET", "maxmemory", "0")

    # Rules: sequences that chance finds too seldom

    def two_workers(self) -> tuple[Client, Worker, Worker]:
        """A client, and two idle workers on hosts in good standing, with nothing else to fetch."""
        client = self.clients[0]
        self.resync(client)
        first, second = self.add_host(), self.add_host()
        one, other = first.workers[0], second.workers[0]
        while any(call.where == QUEUED for call in self.model.open.values()):
            self.fetch(second.workers[1], 100)
        return client, one, other

    def forget_two_hosts(self) -> None:
        """Keep the number of hosts bounded."""
        for host in self.hosts[-2:]:
            self.zombies += host.workers
            self.leave(host)
        del self.hosts[-2:]

    @rule(late=kinds, items=st.integers(1, 3), cap=st.sampled_from([1, -1]), charged=st.booleans())
    def hard_zombie_answers_late(self, late: str, items: int, cap: int, charged: bool) -> None:
        """Declared dead in the middle of an item; another runs it; then the dead one speaks, then the other."""
        client, zombie, other = self.two_workers()
        self.submit(client, [items])
        self.fetch(zombie)
        self.begin(zombie)
        self.crash(zombie, running=charged, cap=cap, zombie=True)
        self.fetch(other)
        self.begin(other)
        self.run(zombie, [late] * items)
        self.run(other, [OK] * items)
        self.forget_two_hosts()

    @rule(late=kinds, thaws_late=st.booleans())
    def hard_frozen_host_thaws(self, late: str, thaws_late: bool) -> None:
        """Reaped while frozen, it thaws and fetches under its dead name before it hears of it."""
        client, frozen, other = self.two_workers()
        home, watcher = self.host_of(frozen), self.host_of(other)
        self.submit(client, [1, 2, 1])
        self.fetch(frozen)
        self.begin(frozen)
        self.reap(home)
        self.beat(watcher)
        self.fetch(other)
        if thaws_late:
            self.run(other, [OK])
        self.run(frozen, [late])
        self.fetch(frozen)
        self.begin(frozen)
        self.beat(watcher)
        self.run(frozen, [late])
        self.beat(home)
        self.fetch(other, 5)
        self.run(other, [OK] * 6)
        self.forget_two_hosts()

    @rule(dies=st.booleans())
    def hard_fetch_reply_is_lost(self, dies: bool) -> None:
        client, worker, other = self.two_workers()
        (n,) = self.submit(client, [2])
        self.fetch(worker, lost=True)
        if dies:
            self.crash(worker, running=False)
            worker = other
        self.fetch(worker)
        self.run(worker, [OK, OK])
        self.read(client)
        assert not client.calls[n].unsettled, "an entry whose delivery was lost is stranded"
        self.forget_two_hosts()

    @rule(kind=kinds, between=st.sampled_from(["", "promoted", "fetched"]))
    def hard_finish_is_repeated(self, kind: str, between: str) -> None:
        client, worker, other = self.two_workers()
        self.submit(client, [1, 3])
        self.fetch(worker, 2)
        for _ in range(2):
            self.run(worker, [kind])
            self.finish(worker, worker.last)
            if between:
                self.beat(self.host_of(other))
            if between == "fetched":
                self.fetch(other, 2)
            self.finish(worker, worker.last)
        self.run(other, [OK] * 2)
        self.run(worker, [OK] * 3)
        self.forget_two_hosts()

    @rule(counts=sizes)
    def hard_submit_is_repeated_after_the_end(self, counts: list[int]) -> None:
        client, worker, _ = self.two_workers()
        numbers = self.submit(client, counts)
        self.fetch(worker, len(counts))
        self.run(worker, [OK] * sum(counts))
        self.read(client)
        self.send(client, numbers, blobs=BLOBS, forged=True)
        self.forget_two_hosts()

    @rule(reported=st.integers(0, 2), cap=st.sampled_from([1, -1]))
    def hard_one_item_of_a_chunk_kills(self, reported: int, cap: int) -> None:
        """It alone is charged, twice over the same item, whatever was reported before."""
        client, worker, other = self.two_workers()
        home = self.host_of(worker)
        (n,) = self.submit(client, [4])
        for _ in range(3):
            worker = home.workers[-1]
            self.fetch(worker, 4)
            if not worker.copies:
                break
            copy = worker.copies[0]
            self.run(worker, [OK] * max(0, reported - copy.at))
            self.run(worker, [OK] * max(0, 2 - copy.at), report=False)
            if not worker.copies or worker.copies[0].at != 2 or self.skips(worker.copies[0]):
                break
            self.crash(worker, cap=cap)
        self.run(worker, [OK] * 4)
        self.read(client)
        assert client.calls[n].outcomes.get(2, (DIED,))[0] == DIED
        assert all(client.calls[n].outcomes.get(i, (OK,))[0] == OK for i in (0, 1, 3))
        self.forget_two_hosts()

    # What is always true

    @invariant()
    def server_and_model_agree(self) -> None:
        model, keys = self.model, self.broker.keys
        commands: list[tuple[Any, ...]] = []
        for stream in (keys.first, keys.normal):
            commands += [("XLEN", stream), ("EXISTS", stream), ("TTL", stream), ("XPENDING", stream, GROUP)]
        commands += [("ZCARD", keys.delayed), ("HLEN", keys.prefix + "zp")]
        for digest in BLOBS:
            commands += [("HMGET", keys.blob(digest), "b", "refs"), ("TTL", keys.blob(digest))]
        for client in self.clients:
            record = f"{keys.prefix}c:{client.name}"
            commands += [("HMGET", record, "epoch", "mark"), ("TTL", record)]
            commands += [("HGETALL", keys.open_calls(client.name)), ("XLEN", keys.replies(client.name))]
        self.broker.wire.send(*commands)
        answers = iter([self.answer() for _ in commands])
        queued = pending = 0
        for _ in range(2):
            length, exists, ttl, held = (next(answers) for _ in range(4))
            queued += length
            pending += held[0] if held else 0
            assert not exists or (ttl == -1) == (length > 0), "a stream lives while it holds calls"
        places = model.by_place()
        assert queued == places[QUEUED] + places[HELD], "entries in the streams"
        assert pending == places[HELD], "entries held by consumers"
        assert next(answers) == next(answers) == places[PARKED]
        refs = model.refs()
        for digest in BLOBS:
            (content, count), ttl = next(answers), next(answers)
            assert (content is not None) == (digest in model.blobs)
            assert int(count or 0) == refs[digest], f"references of {digest}"
            assert content is None or (ttl == -1) == (refs[digest] > 0), f"{digest} lives while it is needed"
        for client in self.clients:
            (epoch, mark), ttl, open_calls, replies = (next(answers) for _ in range(4))
            expected = model.open_of(client.name)
            assert (epoch and [epoch.decode(), int(mark)]) == model.records.get(client.name)
            assert epoch is None or (ttl == -1) == bool(expected), "a record lives while calls are open"
            standing = dict(zip(open_calls[::2], open_calls[1::2], strict=True))
            done = {n.decode(): int(value.rpartition(b"|")[2]) for n, value in standing.items()}
            assert done == {name: call.done for name, call in expected.items()}
            assert replies == model.replies[client.name], "a reply for every report that counted"

    def answer(self) -> Any:
        try:
            return self.broker.wire.receive()
        except CommandError as error:
            assert "NOGROUP" in str(error) or "no such key" in str(error)  # noqa: PT017 - or the group is there
            return None

    # The end

    def teardown(self) -> None:
        try:
            # Hypothesis calls this after a failure as well.
            if not self.failed:
                self.drain()
        finally:
            self.broker.wire.close()

    failed = False

    def drain(self) -> None:
        """An honest crew takes over; whatever the zombies still hold comes when all is over."""
        crew = [host for host in self.hosts]
        for host in crew:
            host.frozen = False
            self.zombies += host.workers
        crew = [self.add_host()]
        for host in self.hosts[:-1]:
            self.leave(host)
        self.hosts = crew
        worker = crew[0].workers[0]
        for client in self.clients:
            self.resync(client)
        for _ in range(20):
            for member in self.broker.wire.call("ZRANGE", self.broker.keys.delayed, 0, -1):
                self.broker.wire.call("ZADD", self.broker.keys.delayed, "XX", 0, member)
            for call in self.model.open.values():
                call.due = call.where == PARKED
            self.beat(crew[0])
            self.fetch(worker, 100)
            while worker.copies:
                self.run(worker, [OK])
            for client in self.clients:
                self.read(client)
            if not any(sent.unsettled for client in self.clients for sent in client.calls.values()):
                break
        for client in self.clients:
            self.resync(client)
            for sent in client.calls.values():
                assert not sent.unsettled, f"{client.name}/{sent.n}: items {sent.unsettled} never ended"
        self.beat(crew[0])
        self.fetch(worker, 100)
        while worker.copies:
            # What a client no longer waits for, because an older attempt's success arrived.
            self.run(worker, [OK])
        assert not self.model.open
        for zombie in self.zombies:
            while zombie.copies:
                self.run(zombie, [FAIL])
        self.server_and_model_agree()
        self.nothing_is_left(crew[0])

    def nothing_is_left(self, host: Host) -> None:
        keys, call = self.broker.keys, self.broker.wire.call
        self.beat(host)
        for stream in (keys.first, keys.normal):
            assert call("XLEN", stream) == 0
            assert call("XPENDING", stream, GROUP)[0] == 0
            consumers = {row[1].decode() for row in call("XINFO", "CONSUMERS", stream, GROUP)}
            assert consumers <= {worker.name for worker in host.workers}
        for key in call("KEYS", keys.prefix + "*"):
            assert call("TTL", key) > 0, f"{key} has no lifetime"
        counts = self.broker.counts()
        told = {"done": counts.done, "failed": counts.failed, "cancelled": counts.cancelled}
        told["retried"] = counts.retried
        assert told == {name: self.model.counts[name] for name in told}


def machine_on(server: PrivateServer, **changes: Any) -> type[ProtocolMachine]:
    return type("ProtocolMachine", (ProtocolMachine,), {"server": server, **changes})
