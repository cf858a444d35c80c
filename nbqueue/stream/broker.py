"""The one door to Redis: one method is one atomic step, safe to repeat.

`client.listener` knocks from the kernel, `worker.loop` and `worker.supervisor` from the worker. Nothing here
pickles, and nothing here decides what a step means. A method that is named ``…_command`` only builds the
command, so that a caller can send several in one write and read their replies later.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from nbqueue.stream.connect import CommandError, ForgotScripts, Wire
from nbqueue.stream.keys import GROUP, Keys
from nbqueue.stream.records import Call, Fetched, HostState, Incoming, QueueCounts, Report

__all__ = ["BLOCK_MS", "Beat", "Broker", "Forgot", "Hello", "NeedBlobs", "OtherEpoch", "Taken"]

# A blocked read under FLUSHALL sleeps on in Redis 6.2, so it must end by itself soon; a reconnect would
# notice nothing either.
BLOCK_MS = 2000

_SCRIPTS = (
    "prepare",
    "hello",
    "submit",
    "finish",
    "cancel",
    "register",
    "beat",
    "reap",
    "leave",
    "reclaim",
    "release",
    "announce",
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


class Beat(NamedTuple):
    """Seconds until the next delayed retry (None: there is none), and every host's counter."""

    due_s: float | None
    counters: dict[str, int]


class Forgot(NamedTuple):
    """The server has lost its data since this host registered: register again."""


@cache
def script(name: str) -> bytes:
    """The full text of a step, with the common part before it."""
    folder = resources.files("nbqueue.stream") / "scripts"
    common = (folder / "_common.lua").read_bytes()
    return common + b"\n" + (folder / f"{name}.lua").read_bytes()


@cache
def _sha(name: str) -> str:
    return hashlib.sha1(script(name), usedforsecurity=False).hexdigest()


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
        self.wire.send(*[("SCRIPT", "LOAD", script(name)) for name in _SCRIPTS])
        for _ in _SCRIPTS:
            self.wire.receive()
        self.ensure_group()

    def ensure_group(self) -> None:
        """Make both streams and their group if they are missing, also when memory is full."""
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
    ) -> Taken | OtherEpoch | NeedBlobs:
        """Take `calls` (their numbers rising) and the `blobs` that the server may not have yet."""
        needs = {digest for call in calls for digest in call.digests}
        args: list[Any] = [client, epoch, str(len(blobs))]
        for digest, data in blobs.items():
            args += (digest, data)
        args.append(str(len(needs)))
        args += needs
        args.append(str(len(calls)))
        for call in calls:
            args += (str(call.n), " ".join(call.digests), str(call.items), str(call.first), call.payload)
        answer = self.step("submit", *args)
        if answer[0] == b"OK":
            return Taken(answer[1], answer[2])
        if answer[0] == b"EPOCH":
            return OtherEpoch()
        return NeedBlobs(tuple(digest.decode() for digest in answer[1:]))

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

    def counts(self) -> QueueCounts:
        """What the streams say now. Several reads, not one step."""
        self.ensure_group()
        keys = self.keys
        first, normal, pending0, pending1, delayed, counts, pool = self._read_all(
            ("XLEN", keys.first),
            ("XLEN", keys.normal),
            ("XPENDING", keys.first, GROUP),
            ("XPENDING", keys.normal, GROUP),
            ("ZCARD", keys.delayed),
            ("HGETALL", keys.counts),
            ("HGETALL", keys.pool),
        )
        fetched = pending0[0] + pending1[0]
        n = {k.decode(): int(v) for k, v in zip(counts[::2], counts[1::2], strict=True)}
        return QueueCounts(
            queued=max(0, first + normal - fetched),
            fetched=fetched,
            delayed=delayed,
            done=n.get("done", 0),
            failed=n.get("failed", 0),
            cancelled=n.get("cancelled", 0),
            retried=n.get("retried", 0),
            hosts=tuple(HostState.from_json(text) for text in pool[1::2]),
        )

    def workers(self) -> int:
        """Number of workers registered on all hosts."""
        return sum(int(n) for n in self.wire.call("HVALS", self.keys.host_workers))

    # Worker

    def fetch_command(self, consumer: str, count: int, *, block_ms: int | None, own: bool = False) -> tuple[Any, ...]:
        """Read new entries, or with `own` those that this consumer was given before.

        A lost reply leaves its entries in the consumer's own pending list, so that is read first after every
        (re)connect.
        """
        block = () if block_ms is None or own else ("BLOCK", str(block_ms))
        start = "0" if own else ">"
        keys = self.keys
        return (
            *("XREADGROUP", "GROUP", GROUP, consumer, "COUNT", str(count)),
            *block,
            *("STREAMS", keys.first, keys.normal, start, start),
        )

    def parse_fetch(self, answer: Any) -> tuple[list[Fetched], list[str]]:
        """Calls, and entries that are none: deleted while pending, or foreign (to be dropped with `forget`)."""
        calls: list[Fetched] = []
        gone: list[str] = []
        for key, rows in answer or ():
            stream = "0" if key == self.keys.first.encode() else "1"
            for id, fields in rows:
                entry = f"{stream}/{id.decode()}"
                try:
                    calls.append(_fetched(entry, fields))
                except (IndexError, TypeError, ValueError):
                    # Deleted while pending, or nothing that we wrote.
                    gone.append(entry)
        return calls, gone

    def forget_commands(self, entries: Iterable[str]) -> list[tuple[Any, ...]]:
        """Throw away what is no call. XDEL before XACK: a connection that ends between them leaves an entry of
        its reader's pending list without content, which is forgotten again, and not one that nobody gets."""
        commands: list[tuple[Any, ...]] = []
        for entry in entries:
            stream, _, id = entry.partition("/")
            key = f"{self.keys.prefix}s:{stream}"
            commands += [("XDEL", key, id), ("XACK", key, GROUP, id)]
        return commands

    def forget(self, entries: Iterable[str]) -> None:
        for entry in entries:
            self._read_all(*self.forget_commands([entry]))

    def blob(self, digest: str) -> bytes | None:
        data: bytes | None = self.wire.call("HGET", self.keys.blob(digest), "b")
        return data

    def finish_command(self, reports: Sequence[Report]) -> tuple[Any, ...]:
        return self.command("finish", *self._finish_args(reports))

    def finish(self, reports: Sequence[Report]) -> list[bool]:
        """Report finished items. False for each report that no longer counts: drop what is left of that call."""
        return self.parse_finish(self.step("finish", *self._finish_args(reports)))

    @staticmethod
    def parse_finish(answer: Any) -> list[bool]:
        return [word == b"OK" for word in answer]

    @staticmethod
    def _finish_args(reports: Sequence[Report]) -> list[Any]:
        args: list[Any] = []
        for r in reports:
            delay = "" if r.retry_delay_s is None else str(int(r.retry_delay_s * 1000))
            call = r.call
            args += (call.entry, call.client, call.n, " ".join(call.digests), str(r.first), str(r.items))
            args += (str(call.items), str(r.failed), r.reply, delay, r.retry_payload)
        return args

    def release(self, consumer: str, entries: Iterable[str]) -> int:
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
        return Beat(due, {k.decode(): int(v) for k, v in zip(answer[2::2], answer[3::2], strict=True)})

    def hosts(self) -> list[HostState]:
        """Every registered host as it last published itself."""
        return [HostState.from_json(text) for text in self.wire.call("HVALS", self.keys.pool)]

    def reap(self, host: str, counter: int) -> bool:
        return bool(self.step("reap", host, str(counter)))

    def leave(self, host: str) -> None:
        self.step("leave", host)

    def reclaim(self, consumer: str, running: str, item: int, cap: int, reply: bytes) -> tuple[int, int]:
        """Take back what a dead worker held. `cap` is how many crashes one item may survive; -1 ends it now."""
        moved, ended = self.step("reclaim", consumer, running, str(item), str(cap), reply)
        return moved, ended

    def announce(self, client: str, n: str, entry: str, message: bytes) -> bool:
        return bool(self.step("announce", client, n, entry, message))

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
        answer = self.wire.call("HGETALL", self.keys.beats)
        return {host.decode(): int(n) for host, n in zip(answer[::2], answer[1::2], strict=True)}

    def poke(self, host: str) -> None:
        """Ask a host's supervisor to publish its state now."""
        inbox = self.keys.inbox(host)
        self._read_all(("XADD", inbox, "MAXLEN", "~", "1000", "*", "op", "beat"), ("EXPIRE", inbox, "60"))

    def unblock(self, redis_id: int) -> None:
        """End another connection's blocking read."""
        self.wire.call("CLIENT", "UNBLOCK", str(redis_id))


_CALL_NAME = re.compile(rb"[0-9]{1,18}(\.[0-9]{1,9})?")


def _fetched(entry: str, fields: Sequence[bytes]) -> Fetched:
    """Raises TypeError, ValueError or IndexError for what `submit` did not write: anybody may XADD."""
    attempt, crashes, first, charged = map(int, fields[9].split())
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


def _incoming(id: bytes, fields: Sequence[bytes]) -> Incoming:
    if len(fields) == 6 and _CALL_NAME.fullmatch(fields[1]):
        return Incoming(id, fields[1].decode(), _text(fields[3]), fields[5])
    # Nothing that we wrote: about call 0, which is nobody's, and read past.
    return Incoming(id, "0", "?", b"")


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
