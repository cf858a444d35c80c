"""Clients, workers, supervisors and fate, driving the real steps on a real server, one at a time.

Each act compares the server's answer with the forecast of `protocol_model`. What the actors keep to is what
the protocol asks of the real ones:

- A client that learns of a new epoch reads its replies to their end and sends its open calls again, numbers
  rising, before any new one; so does one that does not know whether a SUBMIT arrived.
- A worker that (re)connects reads its own pending entries first and keeps copies that it still holds. It
  keeps its reports until they are answered, in order, and sends them before it fetches; it closes one before
  it goes past an item that has ended while another worker ran it. FINISH and the next fetch leave in one write.
- It may report calls of one item that gave values, of one client and with the same blobs, in one message.
- A supervisor never uses a consumer's name twice, and lists a worker as living before it fetches.
- A call of a bundle that is to run again is reported with a message of its own.
- Whoever cancels a call names its retried items as well: ``7``, ``7.0``, ``7.1`` …
- A client that hears that a needed call has ended reads its replies to their end, and sends again: with the value, or
  not at all where there is none. What it needs was numbered before.

Each of these is a line of code somewhere else; `Actors` has a switch for the ones that a mutant takes away.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import hiredis
from protocol_model import HELD, PARKED, QUEUED, STREAMS, WAITING, Model

from nbqueue.stream.broker import Broker, Ended, Forgot, NeedBlobs, OtherEpoch, Taken, entry_of, given_back
from nbqueue.stream.connect import CommandError, ForgotScripts, Wire
from nbqueue.stream.keys import GROUP, Keys, value_name
from nbqueue.stream.records import Call, Charge, Fetched, HostState, Report, Several
from nbqueue.stream.server import PrivateServer

FORGED = b"forged"
REFUSAL = b"refused"
LATER_S = 5000.0
# How long a history may take on a busy machine.
SLACK_S = 40
BLOBS = ("d0", "d1", "d2")
OK, FAIL, RETRY, LATER, SKIP, DIED, CANCELLED = "ok", "fail", "retry", "later", "skip", "died", "cancelled"
REFUSED, UNMET = "refused", "unmet"


@dataclass
class Sent:
    """A call as its client keeps it until the end. `outcomes`: item → (kind, value), first one only. `inputs` are calls
    of one item that were open when it was made, and whose values it needs."""

    n: int
    values: list[str]
    digests: tuple[str, ...]
    stream: str = "1"
    outcomes: dict[int, tuple[str, str | None]] = field(default_factory=dict)
    inputs: tuple[int, ...] = ()

    @property
    def unsettled(self) -> list[int]:
        return [i for i in range(len(self.values)) if i not in self.outcomes]

    def call(self, *, first: int = 0, forged: bool = False, needs: tuple[str, ...] = ()) -> Call:
        values = ["forged"] * len(self.values) if forged else self.values
        payload = json.dumps({"offset": 0, "values": values}).encode()
        return Call(self.n, self.digests, len(self.values), payload, first, needs, self.stream)

    def fits(self, other: Sent) -> bool:
        """Whether both can lie in one bundle."""
        alike = (self.digests, self.stream, 1) == (other.digests, other.stream, len(self.values))
        return alike and len(other.values) == 1


def bundle_of(together: Sequence[Sent], *, forged: bool = False) -> Call:
    values = {str(sent.n): "forged" if forged else sent.values[0] for sent in together}
    payload = json.dumps({"bundle": values}).encode()
    last = together[-1]
    return Call(last.n, last.digests, 0, payload, stream=last.stream, names=tuple(values))


@dataclass
class Client:
    name: str
    epoch: str = ""
    cursor: bytes = b"0"
    calls: dict[int, Sent] = field(default_factory=dict)
    unsure: bool = False  # a SUBMIT has had no answer
    submits: list[tuple[str, list[int], dict[int, tuple[str, ...]]]] = field(default_factory=list)
    resends: int = 0

    def needs(self, n: int) -> tuple[str, ...]:
        """What this call needs and has not come yet, as far as the client knows."""
        return tuple(str(m) for m in self.calls[n].inputs if self.calls[m].unsettled)

    def content(self, digest: str) -> bytes:
        """Of a blob: a value is what was replied."""
        if not digest.startswith(f"v{self.name}."):
            return digest.encode()
        kind, value = self.calls[int(digest.rpartition(".")[2])].outcomes[0]
        assert kind == OK, "only a value can be given to others"
        return json.dumps([(0, kind, value)]).encode()


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
class Parcel:
    """What is reported in one step: with a message for each, or with one for `several`."""

    reports: list[Report]
    several: Several | None = None


def parcels(reports: Sequence[Report], *, gathers: bool) -> list[Parcel]:
    """First what has to be told one by one, then values, by their clients and digests."""
    single: list[Report] = []
    alike: dict[tuple[str, tuple[str, ...]], list[Report]] = {}
    for report in reports:
        call = report.call
        is_value = (call.items, report.failed, report.retry_delay_s) == (1, 0, None)
        # A retried item of a chunk is none of those that its client has numbered.
        if gathers and is_value and "." not in call.n:
            alike.setdefault((call.client, call.digests), []).append(report)
        else:
            single.append(report)
    packed = [Parcel(single)] if single else []
    for together in alike.values():
        message = {report.call.n: json.loads(report.reply)[0][2] for report in together}
        several = Several(tuple(report.call for report in together), json.dumps(message).encode())
        packed.append(Parcel(together, several))
    return packed


@dataclass
class Worker:
    name: str
    copies: list[Copy] = field(default_factory=list)
    reconnects: bool = True
    outbox: list[Report] = field(default_factory=list)  # what no answer has come for
    last: list[Parcel] = field(default_factory=list)
    gathers: bool = False  # values, to report several in one message
    line: tuple[Fetched, int, int] | None = None  # on the slot board: call, offset, item that was last begun


@dataclass
class Host:
    name: str = ""
    epoch: str = ""
    workers: list[Worker] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)
    offers: int = 2  # how many workers it says it has
    frozen: bool = False
    inbox_cursor: bytes = b"0"


class Actors:
    """Everybody on one connection: the protocol ties nobody to his own."""

    server: PrivateServer
    timeout_s = 5.0
    # Taken away by mutants, one at a time.
    reads_own_pending = True
    keeps_reports = True
    reports_before_it_fetches = True
    lists_its_newest = True
    strikes_its_dead = True
    reads_before_it_resends = True
    resends_in_order = True
    cancels_retried_items = True
    repacks_what_it_retries = True

    def __init__(self) -> None:
        self.broker = Broker(Wire(self.server.address, timeout_s=self.timeout_s), Keys.of("model", "0"))
        self.broker.wire.connect()
        self.broker.wire.call("FLUSHALL")
        self.model = Model()
        self.connect()
        self.clients: list[Client] = []
        self.hosts: list[Host] = []
        self.zombies: list[Worker] = []  # declared dead, still acting
        self.names = 0
        self.restarts = 0
        self.add_client()
        self.add_host()
        self.add_host()

    def connect(self) -> None:
        self.broker.connect()
        self.model.prepare()

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
        host.workers, host.dead, host.inbox_cursor = [], [], b"0"
        self.add_worker(host)
        self.add_worker(host)
        self.register(host)

    def register(self, host: Host) -> None:
        for _ in range(2):  # its reply may be lost
            fresh = self.fresh("e")
            host.epoch = self.broker.register(host.name, host.offers, self.state_of(host), fresh)
            assert host.epoch == self.model.register(host.name, fresh, host.offers)

    def add_host(self) -> Host:
        host = Host()
        self.hosts.append(host)
        self.join(host)
        return host

    @staticmethod
    def state_of(host: Host) -> HostState:
        return HostState(host.name, host.name, host.offers)

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
        assert hello.workers == self.model.workers()
        if hello.epoch != client.epoch:
            client.epoch, client.cursor = hello.epoch, b"0"
        if self.reads_before_it_resends:
            self.read(client)
        lost = [n for n, sent in sorted(client.calls.items()) if sent.unsettled and n > hello.mark]
        client.unsure = False
        if lost:
            # They need not lie together as they did.
            client.resends += 1
            self.send(client, lost if self.resends_in_order else lost[::-1], together=client.resends % 4)
        self.read(client)

    def send(
        self,
        client: Client,
        numbers: Sequence[int],
        *,
        blobs: Sequence[str] = (),
        epoch: str = "",
        forged: bool = False,
        needs: dict[int, tuple[str, ...]] | None = None,
        together: int = 0,
    ) -> Any:
        """One SUBMIT, and further ones with the blobs that the server asks for, and for what has ended meanwhile. With
        `together`, so many calls lie in a bundle at most, where they fit."""
        epoch = epoch or client.epoch
        for _ in range(4):
            calls = self.calls_of(client, numbers, forged, needs, together)
            answer = self.broker.submit(client.name, epoch, calls, {d: client.content(d) for d in blobs})
            expected = self.model.submit(client.name, epoch, calls, blobs)
            if isinstance(answer, NeedBlobs):
                assert set(answer.digests) == expected
                blobs = answer.digests
            elif isinstance(answer, Ended):
                assert list(answer.numbers) == expected
                self.read(client)
                assert not any(client.calls[n].unsettled for n in answer.numbers), "a call has ended without a word"
                numbers = [n for n in numbers if client.calls[n].unsettled]
            else:
                break
        if isinstance(answer, Taken):
            assert answer == (expected, self.model.workers())
        else:
            assert isinstance(answer, OtherEpoch)
            assert expected == "epoch"
        return answer

    @staticmethod
    def calls_of(
        client: Client,
        numbers: Sequence[int],
        forged: bool,
        needs: dict[int, tuple[str, ...]] | None,
        together: int,
    ) -> list[Call]:
        calls: list[Call] = []
        bundle: list[Sent] = []
        for n in numbers:
            sent = client.calls[n]
            needed = client.needs(n) if needs is None else needs[n]
            if together and len(sent.values) == 1 and not needed:
                if bundle and len(bundle) < together and sent.fits(bundle[-1]):
                    bundle.append(sent)
                    calls.pop()
                else:
                    bundle = [sent]
                calls.append(bundle_of(bundle, forged=forged))
            else:
                bundle = []
                calls.append(sent.call(first=min(sent.unsettled, default=0), forged=forged, needs=needed))
        return calls

    def make_calls(
        self, client: Client, counts: Sequence[int], kind: int = 0, reach: Sequence[int] = (), stream: str = "1"
    ) -> list[int]:
        """New calls. Those of one item need the open ones that are so many places before them, as far as there are."""
        digests = (BLOBS[:1], BLOBS[:2], BLOBS[1:], ())[kind % 4]
        start = max(client.calls, default=0) + 1
        for n, items in enumerate(counts, start):
            single = [m for m, sent in client.calls.items() if len(sent.values) == 1 and sent.unsettled]
            inputs = tuple({single[-back]: None for back in reach if back <= len(single)}) if items == 1 else ()
            wanted = (*digests, *(value_name(client.name, m) for m in inputs))
            values = [f"{client.name}/{n}/{i}" for i in range(items)]
            client.calls[n] = Sent(n, values, wanted, stream, inputs=inputs)
        return list(range(start, start + len(counts)))

    def submit(
        self,
        client: Client,
        counts: Sequence[int],
        kind: int = 0,
        fate: str = "",
        reach: Sequence[int] = (),
        stream: str = "1",
        together: int = 0,
    ) -> list[int]:
        if client.unsure:
            self.resync(client)
        numbers = self.make_calls(client, counts, kind, reach, stream)
        if fate == "never arrived":
            client.unsure = True
            return numbers
        blobs = [d for d in client.calls[numbers[0]].digests if d in BLOBS] if kind >= 3 else ()
        client.submits.append((client.epoch, numbers, {n: client.needs(n) for n in numbers}))
        answer = self.send(client, numbers, blobs=blobs, together=together)
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
                elif message.kind == "m":
                    values = json.loads(message.message)
                    for name in message.n.split(","):
                        self.settle(client, client.calls[int(name)], 0, OK, values[name])
                elif message.kind == "x":
                    assert message.message == REFUSAL
                    number, _, split = message.n.partition(".")
                    sent = client.calls[int(number)]
                    items = [int(split)] if split else range(len(sent.values))
                    sent.outcomes |= {i: (REFUSED, None) for i in items if i not in sent.outcomes}
                    self.end_dependents(client, sent)
        if trim and client.cursor != b"0":
            self.broker.wire.call(*self.broker.trim_replies_command(client.name, client.cursor))
            self.model.replies[client.name] = 0

    def lose_record(self, client: Client) -> None:
        """As under a policy that evicts keys with a lifetime, which a server is only warned about."""
        if not self.model.open_of(client.name) and client.name in self.model.records:
            self.broker.wire.call("DEL", f"{self.broker.keys.prefix}c:{client.name}")
            self.model.lose_record(client.name)

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
        if kind != OK:
            self.end_dependents(client, sent)

    def end_dependents(self, client: Client, sent: Sent) -> None:
        """It has ended without a value: what needs it ends as well."""
        for other in client.calls.values():
            if sent.n in other.inputs and other.unsettled:
                other.outcomes[0] = (UNMET, None)
                self.end_dependents(client, other)

    def cancel(self, client: Client, numbers: Sequence[int]) -> None:
        self.read(client)
        names = []
        for n in numbers:
            sent = client.calls[n]
            names.append(str(n))
            if len(sent.values) > 1 and self.cancels_retried_items:
                names += [f"{n}.{i}" for i in range(len(sent.values))]
        assert self.broker.cancel(client.name, names) == self.model.cancel(client.name, names)
        assert self.broker.cancel(client.name, names) == []
        for n in numbers:
            sent = client.calls[n]
            self.model.cancelled.add((client.name, str(n)))
            sent.outcomes |= dict.fromkeys(sent.unsettled, (CANCELLED, None))
            self.end_dependents(client, sent)

    # Workers

    def deliver(self, worker: Worker, count: int, *, own: bool, reads: int = len(STREAMS)) -> Any:
        command = self.broker.fetch_command(worker.name, count, block_ms=None, own=own, streams=reads)
        try:
            answer = self.broker.wire.call(*command)
        except CommandError as error:
            if "NOGROUP" not in str(error):
                raise
            self.prepare()
            answer = self.broker.wire.call(*command)
        self.delivered(worker, answer, own=own)
        return answer

    def delivered(self, worker: Worker, answer: Any, *, own: bool) -> None:
        calls, foreign = self.sort(answer)
        bundles: dict[str, list[Fetched]] = {}
        for got in calls:
            if got.bundled:
                bundles.setdefault(entry_of(got.entry), []).append(got)
            else:
                self.model.fetch(worker.name, got, own)
        for listed in bundles.values():
            self.model.fetch_bundle(worker.name, listed, own)
        for entry in foreign:
            self.model.fetch_foreign(worker.name, entry, own)

    def sort(self, answer: Any) -> tuple[list[Fetched], list[str]]:
        """True calls, those included that have left a bundle, and entries of strangers."""
        calls, foreign = self.broker.parse_fetch(answer)
        foreign += {entry_of(got.entry): None for got in calls if got.payload == FORGED}
        return [got for got in calls if got.payload != FORGED], foreign

    def sift(self, worker: Worker, answer: Any, *, cut: bool = False) -> list[Fetched]:
        """What may run: strangers' entries are refused. With `cut` the answer to that is lost."""
        calls, foreign = self.sort(answer)
        calls = [got for got in calls if not got.bundled or self.model.is_current(got)]
        if cut and foreign:
            assert self.broker.refuse(foreign) == self.model.refuse(foreign)
            worker.reconnects = True
            return []
        assert self.broker.sift(answer) == calls, "a true call was refused"
        if foreign:
            self.model.refuse(foreign)
        return calls

    def fetch(
        self, worker: Worker, count: int = 1, *, reads: int = len(STREAMS), lost: bool = False, cut: bool = False
    ) -> None:
        """Report, read what is ours, read more, of the first streams or of all. The answer may be `lost`; the
        connection may be `cut` while an entry that is no call is refused."""
        if self.reports_before_it_fetches:
            self.flush(worker)
        if lost:
            self.deliver(worker, count, own=False, reads=reads)
            worker.reconnects = True
            return
        if worker.reconnects and self.reads_own_pending:
            held = {copy.got.entry for copy in worker.copies}
            own = self.sift(worker, self.deliver(worker, 100, own=True))
            self.take(worker, [got for got in own if got.entry not in held])
        worker.reconnects = False
        self.take(worker, self.sift(worker, self.deliver(worker, count, own=False, reads=reads), cut=cut))

    def take(self, worker: Worker, calls: Sequence[Fetched]) -> None:
        for got in calls:
            for digest in got.digests:
                content = self.broker.blob(digest)
                if digest in BLOBS:
                    assert content == digest.encode(), "an open call lost its blob"
                    continue
                number = digest.rpartition(".")[2]
                value = f"{got.client}/{number}/0"
                assert content is not None, "a value that a call needs is not there"
                reply = json.loads(content)
                # Of one that was told together with others, there is all that was told.
                assert (reply[number] == value) if isinstance(reply, dict) else (reply == [[0, OK, value]])
            content = json.loads(got.payload)
            if got.bundled:
                content = {"offset": 0, "values": [content["bundle"][got.n]]}
            worker.copies.append(Copy(got, content["offset"], content["values"], got.first, got.first))

    def refuse(self, worker: Worker) -> None:
        """The message of the worker's next call cannot be trusted. Said twice: the reply may be lost."""
        for copy in [copy for copy in worker.copies if copy.unstarted][:1]:
            worker.copies.remove(copy)
            assert self.broker.refuse_call(copy.got, REFUSAL) == self.model.refuse_call(copy.got)
            assert not self.broker.refuse_call(copy.got, REFUSAL)

    def report_and_fetch(self, worker: Worker, count: int = 1, fate: str = "") -> None:
        """FINISH and XREADGROUP in one write: a whole answer, or half of it, or none may come back.

        With `cut` the connection ends behind the FINISH; `scripts forgotten` is a FINISH that is refused
        while the fetch behind it is not.
        """
        if worker.reconnects or not worker.outbox:
            self.fetch(worker, count)
            return
        self.connect()
        worker.last = sent = parcels(worker.outbox, gathers=worker.gathers)
        told = [self.command(parcel) for parcel in sent]
        fetch = self.broker.fetch_command(worker.name, count, block_ms=None)
        before = self.server_ms()
        if fate == "cut":
            # Behind the first of them.
            self.cut_after(told[0], [*told, fetch][1])
            self.told(sent[0])
            self.note_due_times(before)
            worker.reconnects = True
            return
        if fate == "scripts forgotten":
            self.broker.wire.call("SCRIPT", "FLUSH")
        self.broker.wire.send(*told, fetch)
        answers = []
        for _ in sent:
            try:
                answers.append(self.broker.parse_finish(self.broker.wire.receive()))
            except ForgotScripts:
                assert fate == "scripts forgotten"
        fetched = self.broker.wire.receive()
        if fate == "scripts forgotten":
            assert not answers
            self.delivered(worker, fetched, own=False)
            self.connect()
            worker.reconnects = True
            return
        assert answers == [self.told(parcel) for parcel in sent]
        self.note_due_times(before)
        self.delivered(worker, fetched, own=False)
        if fate == "both lost":
            worker.reconnects = True
            return
        self.settle_reports(worker, sent, answers)
        if fate == "fetch lost":
            worker.reconnects = True
            return
        self.take(worker, self.sift(worker, fetched))

    def command(self, parcel: Parcel) -> tuple[Any, ...]:
        if parcel.several:
            return self.broker.values_command(parcel.several)
        return self.broker.finish_command(parcel.reports)

    def told(self, parcel: Parcel) -> list[bool]:
        """What the server has to answer."""
        return self.model.values(parcel.several) if parcel.several else self.model.finish(parcel.reports)

    def cut_after(self, whole: Sequence[Any], half: Sequence[Any]) -> None:
        """One command and a piece of another on a connection that then ends."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(self.timeout_s)
            connection.connect(self.server.address.path)
            connection.sendall(hiredis.pack_command(tuple(whole)) + hiredis.pack_command(tuple(half))[:-9])
            answer = connection.recv(1)
            assert answer == b"*", answer + connection.recv(1000)

    def prepare(self) -> None:
        self.broker.ensure_group()
        self.model.prepare()

    def begin(self, worker: Worker) -> bool:
        """Start the next item, unless there is none or it has ended."""
        if not worker.copies:
            return False
        copy = worker.copies[0]
        if copy.begun or copy.at >= copy.got.items or self.skips(copy):
            return copy.begun
        self.model.start(copy.got, copy.offset, copy.at)
        copy.begun = True
        worker.line = copy.got, copy.offset, copy.at
        return True

    @staticmethod
    def skips(copy: Copy) -> bool:
        return copy.got.crashes == -1 and copy.got.charged == copy.at

    def run(self, worker: Worker, outcomes: Sequence[str], *, report: bool = True, away: bool = False) -> None:
        """Run one item for each of `outcomes`; report them, or keep them for later.

        While the server is `away`, what must be told at once waits in the outbox, and the work goes on; so it does
        where the worker gathers values.
        """
        for kind in outcomes:
            if not worker.copies:
                break
            copy = worker.copies[0]
            skips = self.skips(copy)
            if skips:
                kind = SKIP
            else:
                self.begin(worker)
            copy.outcomes.append(kind)
            copy.at, copy.begun = copy.at + 1, False
            over = copy.at == copy.got.items
            if kind in (RETRY, LATER) or skips or over:
                self.close_piece(copy, worker)
                if over:
                    worker.copies.remove(copy)
                if not away and not worker.gathers:
                    self.flush(worker)
        if report:
            self.report(worker)

    def report(self, worker: Worker, *, fate: str = "") -> None:
        if worker.copies:
            self.close_piece(worker.copies[0], worker)
        self.flush(worker, fate=fate)

    def close_piece(self, copy: Copy, worker: Worker) -> None:
        if not copy.outcomes:
            return
        outcomes, copy.outcomes = copy.outcomes, []
        delay, payload = None, b""
        if outcomes[-1] in (RETRY, LATER):
            delay = 0.0 if outcomes[-1] == RETRY else LATER_S
            if copy.got.items > 1 or (copy.got.bundled and self.repacks_what_it_retries):
                last = {"offset": copy.offset + copy.at - 1, "values": copy.values[copy.at - 1 : copy.at]}
                payload = json.dumps(last).encode()
        reply = [(copy.offset + i, kind, copy.values[i]) for i, kind in enumerate(outcomes, copy.reported)]
        worker.outbox.append(
            Report(
                copy.got,
                copy.reported,
                len(outcomes),
                outcomes.count(FAIL),
                json.dumps(reply).encode(),
                delay,
                payload,
            )
        )
        copy.reported = copy.at

    def flush(self, worker: Worker, *, fate: str = "") -> None:
        """Send the outbox: it may never arrive, or the answer may get lost."""
        if not worker.outbox:
            return
        worker.last = sent = parcels(worker.outbox, gathers=worker.gathers)
        if fate == "never arrived":
            worker.reconnects = True
            worker.outbox = worker.outbox if self.keeps_reports else []
            return
        answers = self.tell(sent)
        if fate == "reply lost":
            worker.reconnects = True
        else:
            self.settle_reports(worker, sent, answers)

    def repeat(self, worker: Worker) -> None:
        """The last words once more: their answer was lost, or a client library sent them twice."""
        self.settle_reports(worker, worker.last, self.tell(worker.last))
        self.server_and_model_agree()

    def tell(self, sent: Sequence[Parcel]) -> list[list[bool]]:
        answers = []
        for parcel in sent:
            before = self.server_ms()
            if parcel.several:
                answers.append(self.broker.values(parcel.several))
                self.names_those_that_counted(parcel.several, answers[-1])
            else:
                answers.append(self.broker.finish(parcel.reports))
            assert answers[-1] == self.told(parcel)
            self.note_due_times(before)
        return answers

    def names_those_that_counted(self, several: Several, counted: Sequence[bool]) -> None:
        """The message of several does, to its client."""
        names = [call.n for call, counts in zip(several.calls, counted, strict=True) if counts]
        if names:
            ((_, fields),) = self.broker.wire.call(
                "XREVRANGE", self.broker.keys.replies(several.calls[0].client), "+", "-", "COUNT", "1"
            )
            assert fields == [b"n", ",".join(names).encode(), b"k", b"m", b"p", several.message]

    def note_due_times(self, before: int) -> None:
        """Retries are parked since then, by the server's clock."""
        new = [call for call in self.model.parked() if call.due_ms is None]
        if new:
            after = self.server_ms()
            for call in new:
                delay = int((call.due - self.model.clock) * 1000)
                call.due_ms = before + delay, after + delay

    def server_ms(self) -> int:
        s, us = self.broker.wire.call("TIME")
        return int(s) * 1000 + int(us) // 1000

    @staticmethod
    def settle_reports(worker: Worker, sent: Sequence[Parcel], answers: list[list[bool]]) -> None:
        reports = [report for parcel in sent for report in parcel.reports]
        worker.outbox = [report for report in worker.outbox if report not in reports]
        for report, counted in zip(reports, [counted for each in answers for counted in each], strict=True):
            if not counted:
                worker.copies = [copy for copy in worker.copies if copy.got.entry != report.call.entry]

    def announce(self, got: Fetched, message: bytes) -> None:
        """Something about a call that is still open, which its client may miss."""
        assert self.broker.announce(got.client, got.n, got.entry, message) == self.model.announce(got)

    def release(self, worker: Worker) -> None:
        """Give back all but the first copy, twice: the reply may be lost."""
        given = [copy for i, copy in enumerate(worker.copies) if i and copy.unstarted]
        entries = given_back(copy.got for copy in given)
        if entries:
            worker.copies = [copy for copy in worker.copies if copy not in given]
            assert self.broker.release(worker.name, entries) == self.model.release(worker.name, entries)
            assert self.broker.release(worker.name, entries) == 0

    # Supervisors

    def crash(
        self,
        worker: Worker,
        *,
        how: str = "running",
        cap: int = 1,
        zombie: bool = False,
    ) -> None:
        """A worker is declared dead and replaced. A zombie does not know.

        It dies ``running`` its next item; ``idle``; ``between`` two items, so that the last one seems to run,
        even when its whole call has ended; ``loading`` a call, before its first item, which seems to run; or running
        all calls that it has begun or could begin, ``beside`` each other, every other one with a higher cap.
        """
        host = self.host_of(worker)
        lines: list[tuple[Fetched, int, int] | None] = []
        copy = worker.copies[0] if worker.copies else None
        if (how == "running" and self.begin(worker)) or (how == "between" and not (copy and copy.begun)):
            lines = [worker.line]
        elif how == "loading" and copy and copy.unstarted:
            lines = [(copy.got, copy.offset, copy.at)]
        elif how == "beside":
            lines = [(copy.got, copy.offset, copy.at) for copy in worker.copies if copy.begun or copy.unstarted]
        charges = []
        for i, line in enumerate(lines):
            if line:
                got, offset, item = line
                reply = json.dumps([(offset + item, DIED, None)]).encode()
                charges.append(Charge(got.entry, item, cap + i % 2, reply))
        answer = self.broker.reclaim(worker.name, *charges)
        assert answer == self.model.reclaim(worker.name, charges)
        assert self.broker.reclaim(worker.name, *charges) == (0, 0)
        host.workers.remove(worker)
        host.dead.append(worker.name)
        self.add_worker(host)
        if zombie:
            self.zombies.append(worker)

    def beat(self, host: Host) -> None:
        living = {worker.name for worker in host.workers}
        before = self.server_ms()
        host.offers = host.offers % 3 + 1
        answer = self.broker.beat(host.name, host.offers, self.state_of(host), self.listed(host), host.epoch)
        expected = self.model.beat(host.name, living, host.epoch, host.offers)
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
        waiting = [call.due_ms for call in self.model.parked() if call.due_ms]
        assert (due_s is None) == (not waiting)
        if due_s is not None:
            soonest = min(first for first, _ in waiting) - self.server_ms()
            latest = min(last for _, last in waiting) - before
            assert soonest <= round(due_s * 1000) <= latest, "the next beat comes when the next retry is due"

    def listed(self, host: Host) -> list[str]:
        """The consumers that a host says are alive."""
        names = [worker.name for worker in host.workers]
        if not self.lists_its_newest:
            names.pop()
        return names if self.strikes_its_dead else names + host.dead

    def ask(self, host: Host) -> None:
        """For its state, which it then publishes."""
        self.broker.poke(host.name)
        self.model.poke(host.name)

    def hear(self, host: Host) -> None:
        """Read the inbox, and stop the work on what was cancelled."""
        words = self.model.inbox.get(host.name, [])
        if not words:
            return
        read = self.broker.read_inbox_command(host.name, host.inbox_cursor, block_ms=1)
        heard = self.broker.parse_inbox(self.broker.wire.call(*read))
        for id, word in heard:
            host.inbox_cursor = id
            assert word["op"] == ("cancel" if "entry" in word else "beat")
            for worker in host.workers:
                if worker.name == word.get("consumer"):
                    worker.copies = [copy for copy in worker.copies if copy.got.entry != word["entry"]]
        new = [(word.get("entry", ""), word.get("consumer", "")) for _, word in heard]
        assert new == words[len(words) - len(new) :]
        assert host.inbox_cursor != b"0", "a host was not told what was cancelled"

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
        restart = restart and self.restarts < 2
        if restart:
            self.restarts += 1
            self.server.kill()
            self.server.start()
        else:
            self.broker.wire.send(("FLUSHALL",), ("SCRIPT", "FLUSH"))
            self.broker.wire.receive()
            self.broker.wire.receive()
        for host in self.hosts:
            host.inbox_cursor = b"0"
        self.model.lose_everything(
            (client.name, str(sent.n)) for client in self.clients for sent in client.calls.values() if sent.unsettled
        )
        if restart:
            self.connect()

    def lose_empty_streams(self) -> None:
        """As under a policy that evicts keys with a lifetime."""
        for stream in STREAMS:
            if not self.model.length(stream) and not self.model.pending(stream):
                self.broker.wire.call("DEL", self.broker.keys.prefix + stream)
                self.model.dies.pop(stream, None)

    def pass_time(self, seconds: float) -> None:
        """Every lifetime and every delay is that much shorter."""
        call, prefix = self.broker.wire.call, self.broker.keys.prefix
        passed_ms = int(seconds * 1000)
        for key in call("KEYS", prefix + "*"):
            left_ms = call("PTTL", key)
            if left_ms >= 0:
                call("PEXPIRE", key, left_ms - passed_ms)
        for member in call("ZRANGE", self.broker.keys.delayed, 0, -1):
            call("ZINCRBY", self.broker.keys.delayed, -passed_ms, member)
        before = set(self.model.dies)
        self.model.pass_time(seconds)
        died = before - self.model.dies.keys()
        for client in self.clients:
            if not died.isdisjoint({"c:" + client.name, "r:" + client.name}):
                # Nothing is left of what it was told: it sends all again that it has not read of.
                for sent in client.calls.values():
                    self.model.faults[client.name, str(sent.n)] += bool(sent.unsettled)

    def intrude(self, stream: str, what: str, client: str = "?", n: str = "?") -> str:
        """A stranger writes: ``words``, what is ``like a call``, or what says it is one and is ``forged``, or that it
        is ``a bundle``. The streams' next step is somebody's."""
        state = "who knows" if what == "like a call" else "1 0 0 -1"
        names, items = (f"{n},{int(n) + 1}", "0") if what == "a bundle" else (n, "1")
        words = ("c", client, "n", names, "d", "", "i", items, "s", state, "p", FORGED)
        if what == "words":
            words = words[:2]
        id = self.broker.wire.call("XADD", self.broker.keys.prefix + stream, "*", *words)
        entry = f"{stream[2]}/{id.decode()}"
        self.model.foreign[entry] = ""
        self.prepare()
        return entry

    # What is always true

    def server_and_model_agree(self) -> None:
        model, keys = self.model, self.broker.keys
        names = self.keys_and_lifetimes_agree()
        commands: list[tuple[Any, ...]] = []
        for stream in STREAMS:
            commands += [("XLEN", keys.prefix + stream), ("XPENDING", keys.prefix + stream, GROUP)]
        commands += [("ZRANGE", keys.delayed, 0, -1, "WITHSCORES"), ("HKEYS", keys.prefix + "zp")]
        commands += [("HGETALL", keys.counts)]
        commands += [("HGETALL", keys.beats), ("HGETALL", keys.prefix + "hw"), ("HGETALL", keys.pool)]
        blobs = [*BLOBS, *model.value_blobs()]
        commands += [("HMGET", keys.blob(digest), "b", "refs") for digest in blobs]
        for client in self.clients:
            commands += [("HMGET", f"{keys.prefix}c:{client.name}", "epoch", "mark")]
            commands += [("HGETALL", keys.open_calls(client.name)), ("XLEN", keys.replies(client.name))]
        hosts = [name for name in names if name.startswith("h:")]
        commands += [("XLEN", keys.prefix + name) for name in hosts]
        self.broker.wire.send(*commands)
        answers = iter([self.answer() for _ in commands])
        for stream in STREAMS:
            assert next(answers) == model.length(stream), f"entries in {stream}"
            assert (next(answers) or [0])[0] == model.pending(stream), f"entries of {stream} held by consumers"
        due = pairs(next(answers))
        assert due.keys() == {name.decode() for name in next(answers)}
        parked = {f"{call.client} {call.name}": call.due_ms for call in model.parked()}
        waiting = {f"{call.client} {call.name}" for call in model.waiting()}
        assert due.keys() == parked.keys() | waiting
        assert {due[name] for name in waiting} <= {b"inf"}, "what waits for others is never due"
        for name, span in parked.items():
            assert span, f"nobody knows when {name} is due"
            assert span[0] <= int(due[name]) <= span[1], f"{name} is due when its delay is over"
        counts = {name: int(n) for name, n in pairs(next(answers)).items()}
        assert counts.pop("bundled", 0) == model.counts["bundled"] == model.bundled()
        assert counts == {name: n for name, n in model.counts.items() if n and name != "bundled"}
        assert {host: int(n) for host, n in pairs(next(answers)).items()} == model.hosts
        offers = {name: model.offers[name] for name in model.hosts}
        assert {host: int(n) for host, n in pairs(next(answers)).items()} == offers
        published = {name: self.state_of(Host(name, offers=n)).to_json().encode() for name, n in offers.items()}
        assert pairs(next(answers)) == published
        refs = model.refs()
        for digest in blobs:
            content, count = next(answers)
            assert (content is not None) == (digest in model.blobs)
            assert int(count or 0) == refs[digest], f"references of {digest}"
        bundles: dict[int, set[str]] = {}
        for client in self.clients:
            (epoch, mark), open_calls, replies = (next(answers) for _ in range(3))
            expected = model.open_of(client.name)
            assert (epoch and [epoch.decode(), int(mark)]) == model.records.get(client.name)
            for name, value in pairs(open_calls).items():
                entry, _, done = value.decode().partition("|")
                call = expected.pop(name)
                assert int(done) == call.done
                assert entry == call.entry or call.where != HELD
                assert entry == f"z/{call.attempt}" or call.where != PARKED
                assert entry == f"w/{len(call.needs)}" or call.where != WAITING
                assert "s:" + entry[0] == call.stream or call.where != QUEUED
                assert (entry[1] == "*") == bool(call.bundle), "it has an entry of its own, or lies in a bundle"
                if call.bundle:
                    assert entry.endswith("+" + name)
                    bundles.setdefault(call.bundle, set()).add(entry_of(entry))
            assert not expected, "a call is forgotten"
            assert replies == model.replies[client.name], "a reply for every report that counted"
        assert sorted(map(len, bundles.values())) == [1] * len(set.union(set(), *bundles.values())), "together or apart"
        for name in hosts:
            assert next(answers) == len(model.inbox[name[2:]])

    def keys_and_lifetimes_agree(self) -> list[str]:
        prefix = self.broker.keys.prefix
        names = sorted(key.decode().removeprefix(prefix) for key in self.broker.wire.call("KEYS", prefix + "*"))
        expected = self.model.lifetimes()
        assert names == sorted(expected), "the keys of the queue"
        self.broker.wire.send(*[("TTL", prefix + name) for name in names])
        for name in names:
            left, wanted = self.answer(), expected[name]
            if wanted is None:
                assert left == -1, f"{name} is needed, and dies in {left} s"
            else:
                assert wanted - SLACK_S <= left <= wanted + 1, f"{name} dies in {left} s and not in {wanted} s"
        return names

    def what_is_told_agrees(self) -> None:
        """What a person is shown."""
        counts, model = self.broker.counts(), self.model
        model.prepare()
        assert counts.queued == len(model.on_streams()) + len(model.foreign) - sum(map(model.pending, STREAMS))
        assert counts.fetched == sum(model.pending(stream) for stream in STREAMS)
        assert counts.delayed == len(model.parked()) + len(model.waiting())
        told = {"done": counts.done, "failed": counts.failed, "cancelled": counts.cancelled}
        told |= {"retried": counts.retried, "refused": counts.refused}
        assert told == {name: model.counts[name] for name in told}
        assert {host.host for host in counts.hosts} == set(model.hosts)
        assert self.broker.counters() == model.hosts

    def answer(self) -> Any:
        try:
            return self.broker.wire.receive()
        except CommandError as error:
            if "NOGROUP" not in str(error):
                raise
            return None


def pairs(flat: list[bytes]) -> dict[str, bytes]:
    return {key.decode(): value for key, value in zip(flat[::2], flat[1::2], strict=True)}
