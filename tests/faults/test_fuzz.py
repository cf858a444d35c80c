"""100,000 messages that nobody of ours has sent: none is unpickled, none stops a loop, each is counted.

The forger knows the protocol and has seen true messages of every kind, of this queue and of others; all that it
lacks is the secret. First the loops of worker and client run in this process, where unpickling can be watched,
then real ones on a real server.
"""

from __future__ import annotations

import os
import pickle
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

from nbqueue.client.sending.listener import Link, OpenCall
from nbqueue.codec import messages
from nbqueue.codec.functions import digest, dump_function
from nbqueue.codec.messages import CallBody, RepliesBody, ReplyBody
from nbqueue.codec.seal import Seal
from nbqueue.errors import BadMessage
from nbqueue.stream.broker import Broker, entry_of
from nbqueue.stream.connect import Address
from nbqueue.stream.keys import Keys
from nbqueue.stream.records import Call
from nbqueue.worker.board import Board
from nbqueue.worker.loop import Worker
from nbqueue.worker.supplies import WorkerSpec

SECRET = bytes(range(32))
KEYS = Keys.of("tasks", "0a1b2c3d")
EACH = 50_000
AT_ONCE = 1_500
# The numbers of the calls whose messages the forger has seen begin here; what it forges is about others.
THEIRS = 10**9


class Evil:
    """A pickle of it makes a directory where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@dataclass
class Message:
    """What a message claims to be: its kind, and the call or blob it is about."""

    kind: str
    id: str
    data: bytes


class Forger:
    """Makes messages; `mixture` counts the ways in which it did."""

    def __init__(self, seed: int, seal: Seal, client: str, evil: bytes) -> None:
        self.random = random.Random(seed)
        self.evil = evil
        self.client = client
        self.mixture: Counter[str] = Counter()
        others = [Seal(SECRET, Keys.of("other", "0a1b2c3d").prefix), Seal(bytes(32), KEYS.prefix)]
        self.true = self._corpus(seal)
        self.foreign = [message for other in others for message in self._corpus(other)]
        self.ways = [getattr(self, name) for name in dir(self) if name.startswith("by_")]

    def _corpus(self, seal: Seal) -> list[Message]:
        bodies: list[tuple[str, bytes]] = []
        for n in range(20):
            frames = tuple(pickle.dumps(((i,), {})) for i in range(1 + n % 3))
            bodies.append(("call", messages.dump_call(CallBody("f", "aa", "bb", None, n % 2, frames=frames))))
            values = pickle.dumps(list(range(n + 1)))
            bodies.append(("reply", messages.dump_reply(ReplyBody(0, n + 1, b"", values, (), "w", 1, 0.0, 0.0))))
            bodies.append(("event", messages.dump_event("started", item=0, worker="w", attempt=1)))
            bodies.append(("refusal", b"A call message has a wrong signature."))
            bodies.append(("blob", self.evil))
        named = [(kind, f"{self.client}:{THEIRS + n}", body) for n, (kind, body) in enumerate(bodies)]
        # These are about a client, and not about a call: another one's.
        for n in range(1, 20):
            names = tuple(str(THEIRS + at) for at in range(n))
            frames = tuple(pickle.dumps(((at,), {})) for at in range(n))
            body = messages.dump_call(CallBody("f", "aa", "bb", None, 0, frames=frames, names=names))
            named.append(("calls", "d" * 16, body))
            times = (0.0,) * n
            several = RepliesBody(names, pickle.dumps(list(range(n))), "w", 1, times, times)
            named.append(("replies", "d" * 16, messages.dump_replies(several)))
        return [Message(kind, id, seal.close(kind, id, body)) for kind, id, body in named]

    def forge(self) -> bytes:
        """A message that was never signed for what it is going to be used for."""
        way = self.random.choice(self.ways)
        self.mixture[way.__name__] += 1
        data: bytes = way()
        return data

    def _pick(self) -> Message:
        return self.random.choice(self.true)

    def by_noise(self) -> bytes:
        return self.random.randbytes(self.random.randrange(200))

    def by_flipping_bits(self) -> bytes:
        data = bytearray(self._pick().data)
        for _ in range(self.random.randrange(1, 4)):
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        return bytes(data)

    def by_cutting(self) -> bytes:
        data = self._pick().data
        return data[: self.random.randrange(len(data))]

    def by_adding(self) -> bytes:
        return self._pick().data + self.random.randbytes(self.random.randrange(1, 20))

    def by_splicing(self) -> bytes:
        one, two = self._pick().data, self._pick().data
        at = self.random.randrange(len(one))
        return one[:at] + two[at:]

    def by_taking_anothers(self) -> bytes:
        """True, but about another call, or of another kind."""
        return self._pick().data

    def by_taking_another_queues(self) -> bytes:
        return self.random.choice(self.foreign).data

    def by_leaving_out_the_signature(self) -> bytes:
        return self.random.choice((self.evil, self._pick().data[33:], b"\x01" + self.evil))

    def by_putting_evil_behind_a_true_signature(self) -> bytes:
        return self._pick().data[:33] + self.evil

    def by_another_version(self) -> bytes:
        return bytes([self.random.choice((0, 2, 255))]) + self._pick().data[1:]


@pytest.fixture
def evil(tmp_path: Path) -> Iterator[bytes]:
    yield pickle.dumps(Evil(tmp_path / "evil"))
    assert not (tmp_path / "evil").exists(), "a forged message was unpickled"


@pytest.fixture
def unpickled(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is unpickled in this process from now on."""
    found: list[bytes] = []
    loads = pickle.loads

    def watched(data: bytes, **kwargs: Any) -> Any:
        found.append(bytes(data))
        return loads(data, **kwargs)

    monkeypatch.setattr(pickle, "loads", watched)
    return found


def test_the_evil_message_would_do_what_it_is_for(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "evil")))
    assert (tmp_path / "evil").exists()


# In this process


@dataclass
class FakeWire:
    """A server on which each call stands where it was found."""

    found: list[list[str]] = field(default_factory=list)  # the calls of each entry
    blobs: dict[str, bytes] = field(default_factory=dict)

    def send(self, *commands: Any) -> None:
        assert all(command[0] == "HMGET" for command in commands)
        assert [len(command) - 2 for command in commands] == [len(calls) for calls in self.found]

    def receive(self) -> list[bytes]:
        return [call.encode() + b"|0" for call in self.found.pop(0)]

    def call(self, command: str, key: str, *_: str) -> bytes:
        assert command == "HGET"
        return self.blobs[key]


class RefusingBroker(Broker):
    """Counts what it is told to refuse."""

    refused = 0

    def step(self, name: str, *args: Any) -> Any:
        assert name == "refuse"
        self.refused += len(args) // 5
        return len(args) // 5


def test_a_worker_refuses_what_was_not_signed_for_it(evil: bytes, unpickled: list[bytes], tmp_path: Path) -> None:
    client = "c" * 16
    seal = Seal(SECRET, KEYS.prefix)
    spec = WorkerSpec(0, "h:0:1", "tasks", KEYS.prefix, Address(path="/nowhere").to_dict(), SECRET.hex(), {})
    worker = Worker(spec, Board.create(1).slot(0), lambda: None)
    wire = FakeWire()
    worker._broker = broker = RefusingBroker(wire, KEYS)  # type: ignore[arg-type]
    # However slow this machine is, what has ended stays where it is looked at.
    worker._try_flush = lambda: None  # type: ignore[method-assign]
    forger = Forger(1, seal, client, evil)
    choose = forger.random

    def run(*entries: list[bytes]) -> int:
        """How many calls were in them; what is none counts as one."""
        rows = [(b"%d-0" % n, fields) for n, fields in enumerate(entries, start=1)]
        answer = [(KEYS.normal.encode(), rows)]
        calls, strange = broker.parse_fetch(answer)
        found: dict[str, list[str]] = {}
        for call in calls:
            found.setdefault(entry_of(call.entry), []).append(call.entry)
        wire.found = list(found.values())
        assert len(found) + len(strange) == len(entries)
        for call in broker.sift(answer):
            worker._run_call(call)
        return len(calls) + len(strange)

    def entry(n: bytes, payload: bytes, items: bytes = b"1", state: bytes = b"1 0 0 -1") -> list[bytes]:
        return [b"c", client.encode(), b"n", n, b"d", b"aa bb", b"i", items, b"s", state, b"p", payload]

    def forged() -> list[bytes]:
        fields = entry(b"%d" % choose.randrange(1, THEIRS), forger.forge(), b"%d" % choose.randrange(1, 10**9))
        if choose.random() < 0.3:
            # A bundle.
            names = [b"%d" % choose.randrange(1, THEIRS) for _ in range(choose.randrange(1, 40))]
            fields[3], fields[7] = b",".join(names), choose.choice((b"0", b"0", b"0", b"%d" % len(names)))
        if choose.random() < 0.3:
            at = choose.randrange(1, len(fields), 2)
            fields[at] = choose.choice((b"", b"-1", b"1e99", b"9" * 30, choose.randbytes(9), fields[at] + b"\0"))
            if at == 3:
                fields[3] = b"9" * 30
        if choose.random() < 0.05:
            del fields[choose.randrange(len(fields)) :]
        return fields

    sent = sum(run(*(forged() for _ in range(50))) for _ in range(EACH // 50))
    assert broker.refused == sent > 2 * EACH
    assert unpickled == []
    assert worker._outbox.reports() == []
    assert len(forger.mixture) == len(forger.ways) == 10

    # A true message whose unsigned head claims another number of items is opened, and not run.
    frames = (pickle.dumps(((1,), {})),)
    code = dump_function(lambda x: (tmp_path / "ran").touch() or x + 1, "f")
    name = digest(code)
    wire.blobs[KEYS.blob(name)] = seal.close("blob", name, code)
    true = seal.close("call", f"{client}:7", messages.dump_call(CallBody("f", name, "", None, 0, frames=frames)))
    run(entry(b"7", true, items=b"2"), entry(b"7", true, items=b"999999999"))
    assert broker.refused == sent + 2
    # A bundle's runs no other call than those that it names, and no call is a bundle.
    names = ("8", "9")
    body = CallBody("f", name, "", None, 0, frames=frames * 2, names=names)
    bundle = seal.close("calls", client, messages.dump_call(body))
    run(entry(b"5,6", bundle, items=b"0"), entry(b"8", bundle), entry(b"8,9", bundle, items=b"2"))
    run(entry(b"8,9", true, items=b"0"), entry(b"7", true, items=b"0"))
    half = messages.dump_call(body._replace(frames=frames))
    run(entry(b"8,9", seal.close("calls", client, half), items=b"0"))
    assert broker.refused == sent + 2 + 4 + 3 + 2
    assert not (tmp_path / "ran").exists()
    # And after all that the true calls run.
    run(entry(b"7", true))
    run(entry(b"8,9", bundle, items=b"0"))
    for n, report in zip(("7", *names), worker._outbox.reports(), strict=True):
        reply = messages.load_reply(seal.open("reply", f"{client}:{n}", report.reply))
        assert pickle.loads(reply.packed) == [2]


class Caller:
    """Takes what the listener hands on."""

    name = "f"
    many = False
    in_history = ""

    def __init__(self) -> None:
        self.replies: list[ReplyBody] = []
        self.values: list[Any] = []
        self.broken: list[Exception] = []
        self.started = 0

    def on_reply(self, call: OpenCall, item: int, body: ReplyBody) -> bool:
        self.replies.append(body)
        return True

    def on_value(self, value: Any, worker: str, attempt: int, seconds: float) -> None:
        self.values.append(value)

    def on_event(self, call: OpenCall, item: int, event: Mapping[str, Any]) -> None:
        self.started += 1

    def on_broken(self, call: OpenCall, item: int, error: Exception) -> bool:
        self.broken.append(error)
        return True

    def first_open(self, call: OpenCall) -> int:
        return 0

    def unanswered(self, call: OpenCall) -> Sequence[int]:
        return (0,)


@pytest.fixture
def link() -> Iterator[Link]:
    link = Link("tasks", lambda: Address(path="/nowhere"), KEYS, Seal(SECRET, KEYS.prefix))
    yield link
    os.close(link._wake_r)
    os.close(link._wake_w)


def test_a_client_refuses_what_was_not_signed_for_it(evil: bytes, unpickled: list[bytes], link: Link) -> None:
    seal = Seal(SECRET, KEYS.prefix)
    forger = Forger(2, seal, link.client, evil)
    choose = forger.random
    caller = Caller()
    ended = 0

    def arrive(n: bytes, kind: bytes, message: bytes) -> None:
        link._dispatch(Broker.parse_replies([(b"r", [(b"1-0", [b"n", n, b"k", kind, b"p", message])])]))

    for _ in range(EACH):
        number = choose.randrange(100, THEIRS)
        is_open = choose.random() < 0.5
        if is_open:
            link._open[number] = OpenCall(Call(number, (), 1, b""), {}, caller)
        tail = choose.choice((b"", b".0", b".999999999", b",%d" % (number + 1), b",%d" % number))
        n = b"%d" % number + tail
        if not is_open and choose.random() < 0.3:
            n = choose.choice((b"", b"-1", b"1e9", b"9" * 30, choose.randbytes(9), b"0", b",", b"7,", b"7,8.1"))
        kind = choose.choice((b"r", b"r", b"e", b"x", b"m", b"m", b"", b"?", choose.randbytes(2)))
        arrive(n, kind, forger.forge())
        # News that are wrong cost nothing, and so do names that are none. A reply that is wrong ends the call, once
        # and visibly.
        ends = is_open and kind != b"e" and tail[:1] in ((b"", b",") if kind == b"m" else (b"", b"."))
        assert (number in link._open) == (is_open and not ends)
        link._open.pop(number, None)
        ended += ends
    assert link.refused == EACH
    assert unpickled == []
    assert (len(caller.broken), len(caller.replies), caller.started) == (ended, 0, 0)
    assert {type(error) for error in caller.broken} == {BadMessage}
    assert len(forger.mixture) == len(forger.ways)

    # And after all that the true reply is taken, once: a replay is about a call that is over.
    link._open[7] = OpenCall(Call(7, (), 1, b""), {}, caller)
    body = ReplyBody(0, 1, b"", pickle.dumps([7]), (), "w", 1, 0.0, 0.0)
    for _ in range(3):
        arrive(b"7", b"r", seal.close("reply", f"{link.client}:7", messages.dump_reply(body)))
    assert caller.replies == [body]
    for number in (8, 9):
        link._open[number] = OpenCall(Call(number, (), 1, b""), {}, caller, light=CallBody("f", "aa", "", None, 0))
    several = RepliesBody(("8", "9"), pickle.dumps([8, 9]), "w", 1, (0.0, 0.0), (0.0, 0.0))
    for _ in range(3):
        arrive(b"8,9", b"m", seal.close("replies", link.client, messages.dump_replies(several)))
    assert caller.values == [8, 9]
    assert link.refused == EACH


# On a real server


@pytest.fixture
def client(queue: Any) -> Iterator[redis.Redis]:
    queue.submit(abs, -1).result(timeout=20)
    with redis.Redis(unix_socket_path=queue._core.address().path) as client:
        yield client


def pids(queue: Any) -> set[int]:
    # One that has just been ordered has none yet.
    return {worker.pid for worker in queue.status().workers if worker.pid}


def plant(client: Any, stream: str, open_calls: str, n: Any, fields: dict[Any, Any]) -> None:
    """Add an entry and, in the same step, the records that make it an open call's own, or a bundle of several."""
    client.eval(
        "local fields = {} for at = 3, #ARGV do fields[#fields + 1] = ARGV[at] end\n"
        "local id = redis.call('XADD', KEYS[1], '*', unpack(fields))\n"
        "local bundled = string.find(ARGV[1], ',')\n"
        "for n in string.gmatch(ARGV[1], '[^,]+') do\n"
        "  local place = bundled and '*' .. id .. '+' .. n or '/' .. id\n"
        "  redis.call('HSET', KEYS[2], n, ARGV[2] .. place .. '|0')\n"
        "end",
        *(2, stream, open_calls, n, stream[-1]),
        *[word for pair in fields.items() for word in pair],
    )


def test_real_workers_go_on_among_forged_entries(
    queue: Any, client: redis.Redis, evil: bytes, wait_until: Callable[..., Any]
) -> None:
    core = queue._core
    keys, victim = core.keys, "f" * 16
    before = wait_until(lambda: len(found := pids(queue)) == 2 and found, timeout=20)
    forger = Forger(3, Seal(core.secret, keys.prefix), victim, evil)
    sent = planted = 0
    for turn in range(10):
        working = queue.map(abs, range(-300, 0))
        with client.pipeline(transaction=False) as pipe:
            for i in range(AT_ONCE):
                sent += 1
                number = str(1000 + 2 * sent)
                fields: dict[Any, Any] = {"c": victim, "n": number, "d": "aa", "i": 10**8, "s": "1 0 0 -1"}
                fields["p"] = forger.forge()
                if i % 5 == 0:
                    del fields[forger.random.choice(list(fields))]
                stream = forger.random.choice(keys.streams)
                if i % 5 >= 3:
                    fields["n"], fields["i"] = f"{number},{1001 + 2 * sent}", 0
                if i % 5 in (1, 3):
                    # One who may write anything makes it look like an open call: its signature tells.
                    plant(pipe, stream, keys.open_calls(victim), fields["n"], fields)
                    # And each of a bundle is refused.
                    sent += i % 5 == 3
                    planted += 1 + (i % 5 == 3)
                else:
                    pipe.xadd(stream, fields)
            pipe.execute()
        assert working.results(timeout=60) == list(range(300, 0, -1)), turn
    wait_until(lambda: queue.status().refused == sent, timeout=60)
    assert client.xlen(keys.first) == client.xlen(keys.normal) == 0
    told = client.xrange(keys.replies(victim))
    assert len(told) == planted
    assert {fields[b"k"] for _, fields in told} == {b"x"}
    assert pids(queue) == before
    assert queue.status().failed == planted
    assert f"{sent} refused" in repr(queue.status())


def test_a_real_client_goes_on_among_forged_replies(
    queue: Any, client: redis.Redis, evil: bytes, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    core = queue._core
    link = core.link
    forger = Forger(4, Seal(core.secret, core.keys.prefix), link.client, evil)

    def held() -> str:
        import time

        while not (tmp_path / "go").exists():
            time.sleep(0.005)
        return "went"

    waiting = queue.submit(held)
    sent = 0
    for turn in range(10):
        working = queue.map(abs, range(-100, 0))
        with client.pipeline(transaction=False) as pipe:
            for _ in range(AT_ONCE):
                sent += 1
                kind = forger.random.choice(("r", "e", "x", "m", "?"))
                # The forged news are about the call that is open.
                n: Any = waiting._call.call.n if kind == "e" else 10**6 + sent
                if forger.random.random() < 0.3:
                    n = f"{10**6 + sent},{10**7 + sent}"
                pipe.xadd(core.keys.replies(link.client), {"n": n, "k": kind, "p": forger.forge()})
            pipe.execute()
        assert working.results(timeout=60) == list(range(100, 0, -1)), turn
    wait_until(lambda: link.refused == sent, timeout=60)
    assert queue.status().refused == sent
    assert not waiting.done()
    (tmp_path / "go").touch()
    assert waiting.result(timeout=20) == "went"


def test_a_forged_reply_ends_its_call_visibly_and_once(
    queue: Any, client: redis.Redis, evil: bytes, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    """Whoever can write can keep work from being done; it neither goes unnoticed nor becomes a wrong value."""
    core = queue._core

    def once() -> str:
        import time

        with (tmp_path / "runs").open("a") as file:
            file.write("x")
        while not (tmp_path / "go").exists():
            time.sleep(0.005)
        return "true value"

    future = queue.task(retries=3)(once)()
    wait_until((tmp_path / "runs").exists, timeout=20)
    client.xadd(core.keys.replies(core.link.client), {"n": future._call.call.n, "k": "r", "p": evil})
    with pytest.raises(BadMessage, match="wrong signature"):
        future.result(timeout=20)
    (tmp_path / "go").touch()
    status = wait_until(lambda: (s := queue.status()).done == 2 and s)
    assert (status.refused, status.retried) == (1, 0)
    assert isinstance(future.exception(), BadMessage)
    assert (tmp_path / "runs").read_text() == "x"


def test_a_call_whose_payload_was_exchanged_ends_visibly_and_is_not_run_again(
    queue: Any, client: redis.Redis, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    """Two open calls, each with the other's payload, and their records made to fit."""
    keys = queue._core.keys
    queue.shutdown()
    one = queue.task(retries=3)(lambda: (tmp_path / "ran").touch())()
    many = queue.map(lambda x: (tmp_path / "ran").touch(), range(5), retries=3, chunksize=5)
    rows = wait_until(lambda: len(rows := client.xrange(keys.normal)) >= 2 and rows, timeout=20)
    swapped = {}
    for (id, fields), (_, others) in zip(rows, [*rows[1:], rows[0]], strict=True):
        client.xdel(keys.normal, id)
        new = client.xadd(keys.normal, {**fields, b"p": others[b"p"]})
        swapped[fields[b"n"]] = b"1/" + new + b"|0"
    client.hset(keys.open_calls(queue._core.link.client), mapping=swapped)
    queue.run(2)
    with pytest.raises(BadMessage, match="wrong signature"):
        one.result(timeout=20)
    results = many.results(timeout=20, return_exceptions=True)
    assert [type(error) for error in results] == [BadMessage] * 5
    assert queue.status().refused == len(rows)
    assert queue.status().retried == 0
    assert not (tmp_path / "ran").exists()


def test_a_call_that_is_put_on_the_stream_again_does_not_run_again(
    redis_server: Any, new_key: str, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    """On a server that others can write to. Our own has a socket that only its user can open."""
    from nbqueue import TaskQueue

    queue = TaskQueue(redis_server.url, new_key)
    client = redis.Redis.from_url(redis_server.url)
    keys = queue._core.keys

    def run() -> None:
        with (tmp_path / "runs").open("a") as file:
            file.write("x")

    future = queue.submit(run)
    ((_, fields),) = wait_until(lambda: client.xrange(keys.normal), timeout=20)
    for stream in keys.streams:
        client.xadd(stream, fields)
    queue.run(2)
    future.result(timeout=20)
    for stream in keys.streams:
        client.xadd(stream, fields)
    wait_until(lambda: queue.status().refused == 6, timeout=20)
    assert (tmp_path / "runs").read_text() == "x"
    queue.shutdown()


def test_a_call_of_another_queue_is_not_run(
    queue: Any, client: redis.Redis, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    from nbqueue import TaskQueue

    other = TaskQueue(stream_key=queue.stream_key + "2", workers=1)
    other.run(1)
    other.shutdown()
    future = other.submit((tmp_path / "ran").touch)
    ((_, fields),) = wait_until(lambda: client.xrange(other._core.keys.normal), timeout=20)
    keys = queue._core.keys
    name = fields[b"c"].decode()
    plant(client, keys.normal, keys.open_calls(name), fields[b"n"], fields)
    wait_until(lambda: queue.status().refused == 1, timeout=20)
    future.cancel()
    assert not (tmp_path / "ran").exists()
