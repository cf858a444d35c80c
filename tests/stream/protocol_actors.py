"""Clients, workers, supervisors and fate, driving the real steps on a real server, one at a time.

Each act compares the server's answer with the forecast of `protocol_model`. What the actors keep to is what
the protocol asks of the real ones:

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

from protocol_model import HELD, PARKED, QUEUED, Model

from nbqueue.stream.broker import Broker, Forgot, NeedBlobs, OtherEpoch, Taken
from nbqueue.stream.connect import CommandError, Wire
from nbqueue.stream.keys import GROUP, Keys
from nbqueue.stream.records import Call, Fetched, HostState, Report
from nbqueue.stream.server import PrivateServer

LATER_S = 3600.0
BLOBS = ("d0", "d1", "d2")
OK, FAIL, RETRY, LATER, SKIP, DIED, CANCELLED = "ok", "fail", "retry", "later", "skip", "died", "cancelled"


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


class Actors:
    """Everybody on one connection: the protocol ties nobody to his own."""

    server: PrivateServer
    reads_own_pending = True  # taken away by a mutant

    def __init__(self) -> None:
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

    def send(
        self,
        client: Client,
        numbers: Sequence[int],
        *,
        blobs: Sequence[str] = (),
        epoch: str = "",
        forged: bool = False,
    ) -> Any:
        """One SUBMIT, and a second one with the blobs that the server asks for."""
        epoch = epoch or client.epoch
        calls = []
        for n in numbers:
            sent = client.calls[n]
            calls.append(sent.call(first=min(sent.unsettled, default=0), forged=forged))
        for _ in range(2):
            answer = self.broker.submit(client.name, epoch, calls, {d: d.encode() for d in blobs})
            expected = self.model.submit(client.name, epoch, calls, blobs)
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
            if "NOGROUP" not in str(error):
                raise
            self.broker.ensure_group()
            answer = self.broker.wire.call(*command)
        calls, gone = self.broker.parse_fetch(answer)
        assert not gone, "an entry was deleted while it was pending"
        assert self.broker.sift(answer) == calls, "a true call was refused"
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
        reply = [(copy.offset + i, kind, copy.values[i]) for i, kind in enumerate(outcomes, copy.reported)]
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

    def crash(
        self,
        worker: Worker,
        *,
        running: bool = True,
        between: bool = False,
        cap: int = 1,
        zombie: bool = False,
    ) -> None:
        """A worker is declared dead and replaced. A zombie does not know.

        It dies while it runs its next item; or `between` two items, so that the last one seems to run.
        """
        host = self.host_of(worker)
        entry, item, reply = "", -1, b"[]"
        copy = worker.copies[0] if running and worker.copies else None
        between = between and copy is not None and not copy.unstarted and not copy.begun
        if copy and (between or self.begin(worker)):
            entry, item = copy.got.entry, copy.at - between
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
            (client.name, str(sent.n)) for client in self.clients for sent in client.calls.values() if sent.unsettled
        )

    def delete_mortal_keys(self, limit_s: int) -> None:
        """Let time pass: every key dies whose lifetime is not longer than this."""
        call = self.broker.wire.call
        for key in call("KEYS", "*"):
            if 0 <= call("TTL", key) <= limit_s:
                call("DEL", key)

    # What is always true

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
            if "NOGROUP" not in str(error):
                raise
            return None
