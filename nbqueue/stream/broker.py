"""The one door to Redis: one method is one atomic step, safe to repeat.

`client.sending.listener` knocks from the kernel, `worker.carrier` and `worker.supervisor` from the worker. Nothing here
pickles, and nothing here decides what a step means. A method that is named ``…_command`` only builds the
command, so that a caller can send several in one write and read their replies later.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from nbqueue.errors import ServerRefused
from nbqueue.stream.connect import CommandError, ForgotScripts, Wire
from nbqueue.stream.keys import GROUP, STREAMS, Keys, value_name
from nbqueue.stream.records import (
    MOST_TOGETHER,
    Call,
    Charge,
    Fetched,
    HostState,
    Incoming,
    OpenEntry,
    QueueCounts,
    Report,
    Several,
)

__all__ = [
    *("BLOCK_MS", "Beat", "Broker", "Ended", "Forgot", "Hello", "NeedBlobs", "OtherEpoch", "Taken", "entry_of"),
    *("given_back", "preload"),
]

# A blocked read under FLUSHALL sleeps on in Redis 6.2, so it must end by itself soon; a reconnect would
# notice nothing either.
BLOCK_MS = 2000
# Of what may be long, so much is read in one go.
PAGE = 1000
# How long a client that sleeps can still be told of the end of its calls when all else is deleted.
UNREAD_S = 3600

_SCRIPTS = (
    "prepare",
    "hello",
    "submit",
    "finish",
    "values",
    "cancel",
    "register",
    "beat",
    "reap",
    "leave",
    "reclaim",
    "release",
    "announce",
    "refuse",
    "poke",
)


class Hello(NamedTuple):
    epoch: str
    mark: int
    workers: int


class Taken(NamedTuple):
    """SUBMIT took every call up to `mark`; `workers` are registered on all hosts."""

    mark: int
    workers: int


class OtherEpoch(NamedTuple):
    """The server has no memory of this client: say hello, read the replies to their end, send again."""


class NeedBlobs(NamedTuple):
    """Nothing was taken: send these blobs along."""

    digests: tuple[str, ...]


class Ended(NamedTuple):
    """Nothing was taken: these calls, whose values are needed, are not open. Read the replies to their end."""

    numbers: tuple[int, ...]


class Beat(NamedTuple):
    """Seconds until the next delayed retry (None: there is none), and every host's counter."""

    due_s: float | None
    counters: dict[str, int]


class Forgot(NamedTuple):
    """The server has lost its data since this host registered: register again."""


@cache
def script(name: str) -> bytes:
    """The full text of a step, with what it needs of the common part before it."""
    return compose(_common(), _source(name)).encode()


def _source(name: str) -> str:
    return (resources.files("nbqueue.stream") / "scripts" / f"{name}.lua").read_text("utf-8")


@cache
def _common() -> tuple[tuple[str, str], ...]:
    return functions_of(_source("_common"))


def functions_of(common: str) -> tuple[tuple[str, str], ...]:
    """The functions of the common part, each with its name; what stands between them has none. Without comments."""
    parts = _FUNCTION.split(re.sub(r"(?m)^ *--.*\n", "", common))
    # Text between functions; then, of each function, all of it and its name.
    blocks = [("", parts[0])]
    for whole, name, between in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        blocks += [(name, whole), ("", between)]
    return tuple(blocks)


def compose(common: Sequence[tuple[str, str]], step: str) -> str:
    """A step and the functions that it needs: the server makes them anew for each call, which takes it as long as half
    a command for each."""
    text = step
    for name, block in reversed(common):
        # A function calls only those before it.
        if not name or f"{name}(" in text:
            text = block + text
    return text


@cache
def _sha(name: str) -> str:
    return hashlib.sha1(script(name), usedforsecurity=False).hexdigest()


def preload() -> None:
    """Put all steps together, so that processes that are forked from this one need not: it takes a worker as long as
    all else that it does until it asks for work."""
    for name in _SCRIPTS:
        _sha(name)


class Broker:
    """The steps of the protocol on one `Wire`, for one queue's `Keys`.

    Raises from every method: `ServerError` when the connection fails (the step may or may not have been
    done: repeat it), `CommandError` when the server refuses a command, for example out of memory.
    """

    def __init__(self, wire: Wire, keys: Keys) -> None:
        self.wire = wire
        self.keys = keys

    def connect(self) -> None:
        """Connect, load the steps and make the group."""
        self.wire.connect()
        self.load_steps()
        self.ensure_group()

    def load_steps(self) -> None:
        self.wire.send(*[("SCRIPT", "LOAD", script(name)) for name in _SCRIPTS])
        for _ in _SCRIPTS:
            self.wire.receive()

    def ensure_group(self) -> None:
        """Make the streams and their group if they are missing, also when memory is full."""
        self.step("prepare")

    def command(self, name: str, *args: Any) -> tuple[Any, ...]:
        return ("EVALSHA", _sha(name), "1", self.keys.prefix, *args)

    def step(self, name: str, *args: Any) -> Any:
        """Run one step. A server that was restarted has forgotten its scripts: the text is sent again."""
        try:
            return self.wire.call(*self.command(name, *args))
        except ForgotScripts:
            pass
        return self.wire.call("EVAL", script(name), "1", self.keys.prefix, *args)

    def _read_all(self, *commands: Sequence[Any]) -> list[Any]:
        """Send commands in one write. An error is raised only when every reply has been read: one left
        behind would be taken for the answer to the next command."""
        self.wire.send(*commands)
        answers: list[Any] = []
        refused: CommandError | None = None
        for _ in commands:
            try:
                answers.append(self.wire.receive())
            except CommandError as error:
                refused = refused or error
        if refused is not None:
            raise refused
        return answers

    # Client

    def hello(self, client: str, fresh_epoch: str) -> Hello:
        epoch, mark, workers = self.step("hello", client, fresh_epoch)
        return Hello(epoch.decode(), mark, workers)

    def submit(
        self, client: str, epoch: str, calls: Sequence[Call], blobs: Mapping[str, bytes]
    ) -> Taken | OtherEpoch | NeedBlobs | Ended:
        """Take `calls` (their numbers rising) and the `blobs` that the server may not have yet."""
        return self.parse_submit(self.step("submit", *self._submit_args(client, epoch, calls, blobs)))

    def submit_command(
        self, client: str, epoch: str, calls: Sequence[Call], blobs: Mapping[str, bytes]
    ) -> tuple[Any, ...]:
        """The same for whoever reads the answer later; a server that was restarted answers `ForgotScripts`."""
        return self.command("submit", *self._submit_args(client, epoch, calls, blobs))

    @staticmethod
    def parse_submit(answer: Any) -> Taken | OtherEpoch | NeedBlobs | Ended:
        if answer[0] == b"OK":
            return Taken(answer[1], answer[2])
        if answer[0] == b"EPOCH":
            return OtherEpoch()
        if answer[0] == b"ENDED":
            return Ended(tuple(map(int, answer[1:])))
        return NeedBlobs(tuple(digest.decode() for digest in answer[1:]))

    @staticmethod
    def _submit_args(client: str, epoch: str, calls: Sequence[Call], blobs: Mapping[str, bytes]) -> list[Any]:
        needs: set[str] = set()
        for call in calls:
            needs.update(call.digests)
        for call in calls:
            if call.needs:
                # There, as soon as those have ended.
                needs.difference_update(value_name(client, need) for need in call.needs)
        args: list[Any] = [client, epoch, str(len(blobs))]
        for digest, data in blobs.items():
            args += (digest, data)
        args.append(str(len(needs)))
        args += needs
        args.append(str(len(calls)))
        for call in calls:
            waits = " ".join(call.needs) if call.needs else ""
            name = ",".join(call.names) if call.names else str(call.n)
            args += (name, " ".join(call.digests), str(call.items), str(call.first), call.stream)
            args += (call.payload, waits)
        return args

    def read_replies_command(self, client: str, cursor: bytes, *, block_ms: int | None) -> tuple[Any, ...]:
        block = () if block_ms is None else ("BLOCK", str(block_ms))
        return ("XREAD", "COUNT", "500", *block, "STREAMS", self.keys.replies(client), cursor)

    @staticmethod
    def parse_replies(answer: Any) -> list[Incoming]:
        if not answer:
            return []
        return [_incoming(id, fields) for id, fields in answer[0][1]]

    def read_replies(self, client: str, cursor: bytes) -> list[Incoming]:
        """Replies after `cursor` that are there now, at most 500."""
        return self.parse_replies(self.wire.call(*self.read_replies_command(client, cursor, block_ms=None)))

    def trim_replies_command(self, client: str, cursor: bytes) -> tuple[Any, ...]:
        """Delete what was read, `cursor` included."""
        ms, _, seq = cursor.partition(b"-")
        return ("XTRIM", self.keys.replies(client), "MINID", b"%s-%d" % (ms, int(seq) + 1))

    def cancel(self, client: str, names: Iterable[str]) -> list[str]:
        return [name.decode() for name in self.step("cancel", client, *names)]

    def let_go(self, digest: str) -> bool:
        """Have a blob go now that no open call needs, of whichever client. Before Redis 7.0 it goes in an hour."""
        try:
            # Only where it has a lifetime: what an open call needs has none.
            return bool(self.wire.call("EXPIRE", self.keys.blob(digest), "1", "XX"))
        except CommandError:
            return False

    def counts(self) -> QueueCounts:
        """What the streams say now. Several reads, not one step."""
        self.ensure_group()
        keys, streams = self.keys, self.keys.streams
        *told, delayed, counts, pool = self._read_all(
            *[("XLEN", key) for key in streams],
            *[("XPENDING", key, GROUP) for key in streams],
            ("ZCARD", keys.delayed),
            ("HGETALL", keys.counts),
            ("HGETALL", keys.pool),
        )
        lengths, pending = told[: len(streams)], told[len(streams) :]
        fetched = sum(summary[0] for summary in pending)
        n = _numbers(counts)
        memory = self._memory()
        return QueueCounts(
            # Of a bundle that was fetched, one call runs at a time.
            queued=max(0, sum(lengths) + n.get("bundled", 0) - fetched),
            fetched=fetched,
            delayed=delayed,
            done=n.get("done", 0),
            failed=n.get("failed", 0),
            cancelled=n.get("cancelled", 0),
            retried=n.get("retried", 0),
            refused=n.get("refused", 0),
            hosts=_states(pool[1::2]),
            memory_bytes=memory.get("used_memory", 0),
            memory_limit_bytes=memory.get("maxmemory", 0),
        )

    def _memory(self) -> dict[str, int]:
        try:
            told: bytes = self.wire.call("INFO", "memory")
        except (CommandError, ServerRefused):
            # An administrator may keep that to himself.
            return {}
        return {name.decode(): int(value) for name, value in re.findall(rb"(?m)^(\w+):([0-9]{1,18})\r?$", told)}

    # All clients

    def open_entries(self) -> Iterator[OpenEntry]:
        """Calls that are queued, taken by a worker, or wait for a retry or for others; those that were there when it
        began."""
        for stream, key in enumerate(self.keys.streams):
            left, start = self.wire.call("XLEN", key), "-"
            while left > 0:
                rows = self.wire.call("XRANGE", key, start, "+", "COUNT", str(min(left, PAGE)))
                if not rows:
                    break
                left -= len(rows)
                start = f"({rows[-1][0].decode()}"
                for id, fields in rows:
                    try:
                        calls = _calls_in(stream, id.decode(), fields)
                    except (TypeError, ValueError):
                        # Nothing that we wrote.
                        continue
                    for call in calls:
                        yield OpenEntry(call.client, call.n, call.entry, call.items)
        for member in self.wire.call("ZRANGE", self.keys.delayed, "0", "-1"):
            client, _, n = _text(member).partition(" ")
            place = self.wire.call("HGET", self.keys.open_calls(client), n)
            if place is not None:
                yield OpenEntry(client, n, _text(place.rpartition(b"|")[0]))

    def items_done(self, client: str, names: Sequence[str]) -> list[int]:
        """How many items of each of these calls have ended, as long as it is open."""
        places = self.wire.call("HMGET", self.keys.open_calls(client), *names)
        # Whatever others have written there.
        return [int(done) if (done := (place or b"").rpartition(b"|")[2]).isdigit() else 0 for place in places]

    def fetched_entries(self) -> frozenset[str]:
        """Entries that a worker has; of bundles, see `entry_of`."""
        found: set[str] = set()
        for stream, key in enumerate(self.keys.streams):
            start = "-"
            while rows := self.wire.call("XPENDING", key, GROUP, start, "+", str(PAGE)):
                found.update(f"{stream}/{row[0].decode()}" for row in rows)
                start = f"({rows[-1][0].decode()}"
        return frozenset(found)

    def fetched_calls(self, client: str, numbers: Sequence[int], entries: Container[str]) -> set[int]:
        """Which of a client's calls have ended, or lie in one of these `fetched_entries`."""
        mark, *pages = self._read_all(
            ("HGET", self.keys.client(client), "mark"),
            *[
                ("HMGET", self.keys.open_calls(client), *numbers[start : start + PAGE])
                for start in range(0, len(numbers), PAGE)
            ],
        )
        # Above it are those that the server has not taken yet.
        taken = int(mark or 0)
        fetched = set()
        for n, place in zip(numbers, itertools.chain(*pages), strict=True):
            entry = _text(place or b"").rpartition("|")[0]
            if (not entry and n <= taken) or (entry and entry_of(entry) in entries):
                fetched.add(n)
        return fetched

    def unread(self) -> list[bytes]:
        """The reply streams in which is what a client has not read, or has not said so yet."""
        return [key for page in self._pages_of_keys("r:") for key in page if self.holds_messages(key)]

    def holds_messages(self, key: bytes) -> bool:
        """Whether there is anything in a stream."""
        try:
            return bool(self.wire.call("XLEN", key))
        except CommandError:
            # Of a foreign type.
            return False

    def may_delete(self) -> None:
        """Raises ServerRefused for a user that may not `delete_all`: it needs rights that a queue does without."""
        next(self._pages_of_keys(""))
        self.wire.call("UNLINK", self.keys.prefix)

    def delete_all(self, unread: Iterable[bytes] = ()) -> int:
        """Delete every key of the queue. How many there were. The `unread` streams live for another hour."""
        spared = set(unread)
        for key in spared:
            self.wire.call("EXPIRE", key, str(UNREAD_S))
        deleted = 0
        for page in self._pages_of_keys(""):
            keys = [key for key in page if key not in spared]
            if keys:
                deleted += self.wire.call("UNLINK", *keys)
        return deleted

    def _pages_of_keys(self, kind: str) -> Iterator[list[bytes]]:
        """Keys of the queue that begin so; some more than once."""
        pattern, cursor = re.sub(r"([*?\[\]\\])", r"\\\1", self.keys.prefix + kind) + "*", b"0"
        while True:
            cursor, keys = self.wire.call("SCAN", cursor, "MATCH", pattern, "COUNT", str(PAGE))
            yield keys
            if cursor == b"0":
                return

    # Worker

    def fetch_command(
        self, consumer: str, count: int, *, block_ms: int | None, own: bool = False, streams: int = len(STREAMS)
    ) -> tuple[Any, ...]:
        """Read new entries, or with `own` those that this consumer was given before; at most `count` of each stream.

        Of the streams, so many are read, from the first on, and what they have comes in this order.

        A lost reply leaves its entries in the consumer's own pending list, so that is read first after every
        (re)connect.
        """
        block = () if block_ms is None or own else ("BLOCK", str(block_ms))
        start = "0" if own else ">"
        return (
            *("XREADGROUP", "GROUP", GROUP, consumer, "COUNT", str(count)),
            *block,
            *("STREAMS", *self.keys.streams[:streams], *[start] * streams),
        )

    def parse_fetch(self, answer: Any) -> tuple[list[Fetched], list[str]]:
        """Calls, and entries that are none: deleted while pending, or foreign (to be dropped with `refuse`)."""
        entries, gone = self._entries(answer)
        return [call for together in entries for call in together], gone

    @staticmethod
    def _entries(answer: Any) -> tuple[list[list[Fetched]], list[str]]:
        """The same, the calls of each entry by themselves."""
        entries: list[list[Fetched]] = []
        gone: list[str] = []
        for key, rows in answer or ():
            stream = key.decode()[-1]
            for id, fields in rows:
                try:
                    entries.append(_calls_in(stream, id.decode(), fields))
                except (TypeError, ValueError):
                    # Deleted while pending, or nothing that we wrote.
                    gone.append(f"{stream}/{id.decode()}")
        return entries, gone

    def sift(self, answer: Any, *, alone: bool = False) -> list[Fetched]:
        """The calls of a fetch that are open and stand where they were found.

        Everything else is refused: what is no call of ours, and true calls that somebody has put on the stream
        once more, which would run again. Where we are `alone` on the server nobody has, and it need not be asked; but
        of a bundle, which calls have left it.
        """
        entries, strange = self._entries(answer)
        asked = [together for together in entries if not alone or together[0].bundled]
        if asked:
            self.wire.send(
                *[
                    ("HMGET", self.keys.open_calls(together[0].client), *[call.n for call in together])
                    for together in asked
                ]
            )
        for together in asked:
            entry = entry_of(together[0].entry)
            try:
                places = self.wire.receive()
            except CommandError:
                # A key of a foreign type.
                places = [None] * len(together)
            together[:] = [call for call, at in zip(together, places, strict=True) if _stands(at, call.entry)]
            if not together:
                strange.append(entry)
        if strange:
            self.refuse(strange)
        return [call for together in entries for call in together]

    def refuse(self, entries: Iterable[str]) -> int:
        """Drop entries that are no calls of ours, and count them. Returns how many were still there."""
        return int(self.step("refuse", *[word for entry in entries for word in (entry, "", "", "", "")]))

    def refuse_call(self, call: Fetched, message: bytes) -> bool:
        """End a call that cannot be trusted: all its items, with a sealed `message`. It counts as refused."""
        return bool(self.step("refuse", call.entry, call.client, call.n, " ".join(call.digests), message))

    def blob(self, digest: str) -> bytes | None:
        data: bytes | None = self.wire.call("HGET", self.keys.blob(digest), "b")
        return data

    def blobs(self, digests: Iterable[str]) -> list[bytes | None]:
        return self._read_all(*[("HGET", self.keys.blob(digest), "b") for digest in digests])

    def finish_command(self, reports: Sequence[Report]) -> tuple[Any, ...]:
        return self.command("finish", *self._finish_args(reports))

    def finish(self, reports: Sequence[Report]) -> list[bool]:
        """Report finished items. False for each report that no longer counts: drop what is left of that call."""
        return self.parse_finish(self.step("finish", *self._finish_args(reports)))

    @staticmethod
    def parse_finish(answer: Any) -> list[bool]:
        return [word == b"OK" for word in answer]

    def values(self, several: Several) -> list[bool]:
        """Report calls that gave values. False for each that no longer counts."""
        return self.parse_finish(self.step("values", *self._values_args(several)))

    def values_command(self, several: Several) -> tuple[Any, ...]:
        return self.command("values", *self._values_args(several))

    @staticmethod
    def _values_args(several: Several) -> list[Any]:
        first = several.calls[0]
        args: list[Any] = [first.client, " ".join(first.digests), several.message]
        for call in several.calls:
            args += (call.entry, call.n)
        return args

    @staticmethod
    def _finish_args(reports: Sequence[Report]) -> list[Any]:
        args: list[Any] = []
        for r in reports:
            delay = "" if r.retry_delay_s is None else str(int(r.retry_delay_s * 1000))
            call = r.call
            args += (call.entry, call.client, call.n, " ".join(call.digests), str(r.first), str(r.items))
            args += (str(call.items), str(r.failed), r.reply, delay, r.retry_payload)
        return args

    def pending(self, consumer: str) -> list[str]:
        """Entries that a consumer has fetched and not finished, at most 100 of each stream."""
        keys = self.keys.streams
        answers = self._read_all(*[("XPENDING", key, GROUP, "-", "+", "100", consumer) for key in keys])
        return [f"{stream}/{row[0].decode()}" for stream, rows in enumerate(answers) for row in rows]

    def release(self, consumer: str, entries: Iterable[str]) -> int:
        """Give back entries, as `given_back` names them. How many calls went."""
        return int(self.step("release", consumer, *entries))

    # Supervisor

    def register(self, host: str, workers: int, state: HostState, fresh_epoch: str = "0") -> str:
        """Join as `host`. Returns the epoch of the server's memory, to be given with every beat."""
        epoch: bytes = self.step("register", host, str(workers), state.to_json(), fresh_epoch)
        return epoch.decode()

    def beat(
        self, host: str, workers: int, state: HostState, living: Iterable[str], epoch: str = ""
    ) -> Beat | Forgot | None:
        """One heartbeat. None when this host is fenced: others have declared it dead.

        With `epoch`, `Forgot` when the server has lost its data since.
        """
        answer = self.step("beat", host, str(workers), state.to_json(), epoch, *living)
        if answer[0] == b"FENCED":
            return None
        if answer[0] == b"FORGOT":
            return Forgot()
        due = None if int(answer[1]) < 0 else int(answer[1]) / 1000
        return Beat(due, _numbers(answer[2:]))

    def hosts(self) -> list[HostState]:
        """Every registered host as it last published itself."""
        return list(_states(self.wire.call("HVALS", self.keys.pool)))

    def reap(self, host: str, counter: int) -> bool:
        return bool(self.step("reap", host, str(counter)))

    def leave(self, host: str) -> None:
        self.step("leave", host)

    def reclaim(self, consumer: str, *charges: Charge) -> tuple[int, int]:
        """Take back what a dead worker held, and charge what it was running. Returns calls moved, items ended."""
        args: list[Any] = []
        for charge in charges:
            args += (charge.entry, str(charge.item), str(charge.cap), charge.reply)
        moved, ended = self.step("reclaim", consumer, *args)
        return moved, ended

    def announce(self, client: str, n: str, entry: str, message: bytes) -> bool:
        return bool(self.step("announce", client, n, entry, message))

    def announce_all(self, events: Sequence[tuple[str, str, str, bytes]]) -> list[bool]:
        """The same for several in one write. Of a server that was restarted meanwhile, nobody hears them."""
        return [bool(answer) for answer in self._read_all(*[self.command("announce", *event) for event in events])]

    def read_inbox_command(self, host: str, cursor: bytes, *, block_ms: int) -> tuple[Any, ...]:
        return ("XREAD", "COUNT", "100", "BLOCK", str(block_ms), "STREAMS", self.keys.inbox(host), cursor)

    @staticmethod
    def parse_inbox(answer: Any) -> list[tuple[bytes, dict[str, str]]]:
        if not answer:
            return []
        return [
            (id, {_text(k): _text(v) for k, v in zip(fields[::2], fields[1::2], strict=True)})
            for id, fields in answer[0][1]
        ]

    def counters(self) -> dict[str, int]:
        """Every host's heartbeat counter."""
        return _numbers(self.wire.call("HGETALL", self.keys.beats))

    def poke(self, host: str) -> None:
        """Ask a host's supervisor to publish its state now."""
        self.step("poke", host)

    def unblock(self, redis_id: int) -> None:
        """End another connection's blocking read."""
        self.wire.call("CLIENT", "UNBLOCK", str(redis_id))


# All of it, and its name: on one line, or up to an "end" at the margin.
_FUNCTION = re.compile(r"(?ms)^(local function (\w+)\((?:[^\n]* end$|.*?^end$)\n)")
_CALL_NAME = re.compile(rb"[0-9]{1,18}(\.[0-9]{1,9})?")
_CALL_NAMES = re.compile(rb"[0-9]{1,18}(,[0-9]{1,18})*")
_ITEMS = re.compile(rb"[1-9][0-9]{0,8}")
_STATE = re.compile(rb"([1-9][0-9]{0,8}) (-?[0-9]{1,9}) ([0-9]{1,9}) (-?[0-9]{1,9})")


def entry_of(entry: str) -> str:
    """The entry in which a call lies, alone or with others."""
    return f"{entry[0]}/{entry[2:].partition('+')[0]}"


def given_back(calls: Iterable[Fetched]) -> list[str]:
    """What `release` is told of calls, in the order in which they would run: of a bundle, the first that goes."""
    entries: dict[str, str] = {}
    for call in calls:
        entries.setdefault(entry_of(call.entry), call.entry)
    return list(entries.values())


def _calls_in(stream: str | int, id: str, fields: Sequence[bytes]) -> list[Fetched]:
    """The call of an entry, or those of a bundle.

    Raises TypeError or ValueError for what `submit` did not write: anybody may XADD.
    """
    if len(fields) != 12 or fields[7] != b"0":
        return [_fetched(f"{stream}/{id}", fields)]
    if not _CALL_NAMES.fullmatch(fields[3]):
        raise ValueError("no bundle of ours")
    names = fields[3].split(b",")
    if len(names) > MOST_TOGETHER or len(set(names)) < len(names):
        raise ValueError("no bundle of ours")
    first = names[0].decode()
    call = _fetched(f"{stream}*{id}+{first}", [*fields[:3], names[0], *fields[4:7], b"1", *fields[8:]])
    if call.first:
        raise ValueError("no bundle of ours")
    client, rest = call.client, call[3:]
    others = [name.decode() for name in names[1:]]
    return [call, *[Fetched(f"{stream}*{id}+{name}", client, name, *rest) for name in others]]


def _fetched(entry: str, fields: Sequence[bytes]) -> Fetched:
    state = _STATE.fullmatch(fields[9]) if len(fields) == 12 else None
    if state is None or not _CALL_NAME.fullmatch(fields[3]) or not _ITEMS.fullmatch(fields[7]):
        raise ValueError("no call of ours")
    attempt, crashes, first, charged = map(int, state.groups())
    if not first < int(fields[7]) > charged or min(crashes, charged) < -1:
        raise ValueError("no call of ours")
    return Fetched(
        entry=entry,
        client=fields[1].decode(),
        n=fields[3].decode(),
        digests=tuple(fields[5].decode().split()),
        items=int(fields[7]),
        attempt=attempt,
        crashes=crashes,
        first=first,
        charged=charged,
        payload=fields[11],
    )


def _stands(place: bytes | None, entry: str) -> bool:
    """Whether an open call, whose `place` the server has told, stands at this entry."""
    return place is not None and place.startswith(b"%b|" % entry.encode())


def _incoming(id: bytes, fields: Sequence[bytes]) -> Incoming:
    if len(fields) == 6 and (_CALL_NAMES if fields[3] == b"m" else _CALL_NAME).fullmatch(fields[1]):
        return Incoming(id, fields[1].decode(), fields[3].decode(errors="replace"), fields[5])
    # Nothing that we wrote: about call 0, which is nobody's, and read past.
    return Incoming(id, "0", "?", b"")


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _numbers(pairs: Sequence[bytes]) -> dict[str, int]:
    """A hash of numbers, without what is none: a foreign word must not stop a supervisor."""
    found = zip(pairs[::2], pairs[1::2], strict=True)
    return {_text(name): int(value) for name, value in found if re.fullmatch(rb"-?[0-9]{1,19}", value)}


def _states(texts: Iterable[bytes]) -> tuple[HostState, ...]:
    """What hosts have published about themselves, without what no host can have written."""
    states = []
    for text in texts:
        try:
            states.append(HostState.from_json(text))
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            continue
    return tuple(states)
