"""A call and its reply with nothing around them: the floor of whatever goes through a Redis server.

::

    client ── SUBMIT, XREAD ──▶ server ──▶ XREADGROUP ──▶ worker     two processes made fresh,
           ◀──── the reply ────        ◀── FINISH, XREADGROUP ──     plain sockets, hiredis' parser

The server is the one that nbqueue starts, the scripts are its own, and so are the commands of a call. All else is left
out: whether functions are fresh, futures, locks, threads, the slot board, what is printed, progress. Each of `STEPS`
adds one thing to the one before, so that one sees what it costs.

Always true here: every answer is compared with what it must be; loops are bounded; no process is left.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hiredis

from nbqueue.codec import messages
from nbqueue.codec.frames import load_frame
from nbqueue.codec.functions import digest, dump_arguments
from nbqueue.codec.messages import CallBody, ReplyBody, call_id
from nbqueue.codec.seal import Seal
from nbqueue.stream.broker import Broker
from nbqueue.stream.connect import Address, Wire
from nbqueue.stream.keys import GROUP, STREAMS, Keys
from nbqueue.stream.records import Call
from nbqueue.stream.server import PrivateServer, find_executable, tie_to_parent

__all__ = ["STEPS", "Exchange", "Plain", "identity", "packed", "served"]

# Streams alone; with the scripts SUBMIT and FINISH in place of XADD; with pickling, signing and checking, too.
STEPS = STREAMS_ALONE, SCRIPTS, SEALED = "streams", "scripts", "sealed"

SECRET = b"f" * 32
CLIENT = "floor000floor000"
# Of a function and of the surroundings that it runs in: what each call needs.
DIGESTS = digest(b"function"), digest(b"setting")
BLOB_BYTES = 500
# As many as nbqueue sends and fetches at most in one command.
TOGETHER, AT_ONCE, REPLIES = 500, 64, 500
BLOCK_MS = 2_000
# Longer than BLOCK_MS. No work lasts as long.
LIMIT_S = 10.0
# Reads that bring nothing, one after the other, before nobody is believed to be there.
MOST_EMPTY = 5

clock = time.perf_counter
ROOT = Path(__file__).resolve().parents[2]


def identity(value: Any) -> Any:
    return value


class Plain:
    """A unix socket and a parser: what cannot be done without."""

    def __init__(self, path: str) -> None:
        self._reader = hiredis.Reader()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        # The system keeps the time: a socket with a timeout of Python's is asked twice for each read.
        limit = struct.pack("ll", int(LIMIT_S), 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> Any:
        while (reply := self._reader.gets()) is False:
            data = self._socket.recv(65_536)
            if not data:
                raise ConnectionError("the server has closed the connection")
            self._reader.feed(data)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def close(self) -> None:
        self._socket.close()


def packed(*commands: Sequence[Any]) -> bytes:
    return b"".join([hiredis.pack_command(tuple(command)) for command in commands])


@contextmanager
def served() -> Iterator[str]:
    """The path of the socket of a server as nbqueue starts it."""
    server = PrivateServer(find_executable(), on_fork=tie_to_parent())
    try:
        server.start()
        yield server.address.path
    finally:
        server.remove()


class Exchange:
    """The client of one step, and its workers, until it is closed."""

    def __init__(self, path: str, step: str, workers: int = 1) -> None:
        self.step = step
        self.keys = Keys.of(f"floor-{step}", "0" * 8)
        self._seal = Seal(SECRET, self.keys.prefix)
        self._broker = Broker(Wire(Address(path=path), timeout_s=LIMIT_S), self.keys)
        self._broker.connect()
        self._epoch = self._broker.hello(CLIENT, "0" * 16).epoch
        blobs = {name: self._seal.close("blob", name, bytes(BLOB_BYTES)) for name in DIGESTS}
        self._broker.submit(CLIENT, self._epoch, [], blobs)
        self._calls, self._replies = Plain(path), Plain(path)
        self._cursor = b"0"
        self._last = 0
        self._workers: list[subprocess.Popen[str]] = []
        try:
            for number in range(workers):
                self._workers.append(_start(path, step, f"floor:{number}:1"))
            for worker in self._workers:
                assert worker.stdout is not None
                if worker.stdout.readline() != "ready\n":
                    raise RuntimeError("A worker of the floor did not start; what it said is above.")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
            worker.wait()
            if worker.stdout is not None:
                worker.stdout.close()
        for each in (self._calls, self._replies, self._broker.wire):
            each.close()

    def one_by_one(self, values: Sequence[Any]) -> list[float]:
        """Each value goes when the one before is back, in one write with the question for its reply. How long each
        took."""
        first, samples, came = self._last + 1, [], []
        requests = self._requests(values, 1)
        for n in range(first, first + len(values)):
            began = clock()
            self._calls.write(next(requests) + self._read(1))
            self._check_taken(self._calls.receive())
            ((id, fields),) = self._calls.receive()[0][1]
            self._cursor = id
            came.append(self._value(n, fields[5]) if self.step == SEALED else fields[5])
            samples.append(clock() - began)
        if self.step != SEALED:
            came = [self._value(n, message) for n, message in enumerate(came, first)]
        _compare(came, list(values))
        return samples

    def together(self, values: Sequence[Any]) -> float:
        """All go as fast as they can. How long it took until the last was back."""
        first, sent, came = self._last + 1, 0, {}
        requests = self._requests(values, TOGETHER)
        began = clock()
        for request in requests:
            self._calls.write(request)
            sent += 1
        for _ in range(sent if self.step != STREAMS_ALONE else len(values)):
            self._check_taken(self._calls.receive())
        empty = 0
        while len(came) < len(values):
            self._replies.write(self._read(REPLIES))
            answer = self._replies.receive()
            empty = 0 if answer else empty + 1
            if empty > MOST_EMPTY:
                raise RuntimeError(f"{len(values) - len(came)} calls of the floor did not come back.")
            for id, fields in answer[0][1] if answer else ():
                self._cursor = id
                n = int(fields[1])
                came[n] = self._value(n, fields[5]) if self.step == SEALED else fields[5]
        took = clock() - began
        if self.step != SEALED:
            came = {n: self._value(n, message) for n, message in came.items()}
        _compare([came[n] for n in range(first, first + len(values))], list(values))
        return took

    def left(self) -> dict[str, int]:
        """What is still on the server of all that was sent."""
        call = self._broker.wire.call
        return {
            "in the streams": sum(call("XLEN", key) for key in self.keys.streams),
            "pending": sum(call("XPENDING", key, GROUP)[0] for key in self.keys.streams),
            "open": call("HLEN", self.keys.open_calls(CLIENT)),
        }

    def _requests(self, values: Sequence[Any], size: int) -> Iterator[bytes]:
        """So many calls in each write. What is not part of the step is made before the clock runs."""
        first = self._last + 1
        self._last += len(values)
        made = (self._request(first + at, values[at : at + size]) for at in range(0, len(values), size))
        return made if self.step == SEALED else iter(list(made))

    def _request(self, first: int, values: Sequence[Any]) -> bytes:
        calls = [Call(n, DIGESTS, 1, self._payload(n, value)) for n, value in enumerate(values, first)]
        if self.step != STREAMS_ALONE:
            return packed(self._broker.submit_command(CLIENT, self._epoch, calls, {}))
        common = ("d", " ".join(DIGESTS), "i", "1", "s", "1 0 0 -1")
        return packed(
            *[
                ("XADD", self.keys.normal, "*", "c", CLIENT, "n", str(call.n), *common, "p", call.payload)
                for call in calls
            ]
        )

    def _payload(self, n: int, value: Any) -> bytes:
        arguments = dump_arguments((value,), {}, "identity", identity, [], None)
        body = CallBody("identity", *DIGESTS, None, 0, frames=(bytes(arguments),))
        return self._seal.close("call", call_id(CLIENT, n), messages.dump_call(body))

    def _read(self, most: int) -> bytes:
        return packed(("XREAD", "COUNT", str(most), "BLOCK", str(BLOCK_MS), "STREAMS", self.keys.replies(CLIENT),
                       self._cursor))  # fmt: skip

    def _check_taken(self, answer: Any) -> None:
        if self.step != STREAMS_ALONE and answer[0] != b"OK":
            raise RuntimeError(f"The server has not taken a call of the floor: {answer!r}")

    def _value(self, n: int, message: bytes) -> Any:
        if self.step == SEALED:
            return messages.value_in(messages.load_reply(self._seal.open("reply", call_id(CLIENT, n), message)))
        # The call itself is what comes back.
        body = messages.load_call(self._seal.open("call", call_id(CLIENT, n), message))
        return load_frame(body.frames[0])[0][0]


def _compare(found: list[Any], wanted: list[Any]) -> None:
    if found != wanted:
        raise AssertionError(f"wrong answers: {str(found)[:80]} instead of {str(wanted)[:80]}")


# The worker


def _start(path: str, step: str, consumer: str) -> subprocess.Popen[str]:
    code = "import sys; from tests.bench.exchange import serve; serve(*sys.argv[1:])"
    known = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-c", code, path, step, consumer],
        env={**os.environ, "PYTHONPATH": known},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )


def serve(path: str, step: str, consumer: str) -> None:
    """Answer calls until the server is gone, nothing has come for a while, or somebody ends this process."""
    keys = Keys.of(f"floor-{step}", "0" * 8)
    broker = Broker(Wire(Address(path=path), timeout_s=LIMIT_S), keys)
    finish = broker.command("finish")
    fetch = packed(broker.fetch_command(consumer, AT_ONCE, block_ms=BLOCK_MS))
    reply = _answering(Seal(SECRET, keys.prefix), consumer) if step == SEALED else (lambda fields: fields[11])
    wire = Plain(path)
    wire.write(fetch)
    print("ready", flush=True)
    empty = 0
    while empty <= MOST_EMPTY:
        answer = wire.receive()
        if not answer:
            empty += 1
            wire.write(fetch)
            continue
        empty = 0
        calls = [(key[-1:], id, fields) for key, rows in answer for id, fields in rows]
        if step == STREAMS_ALONE:
            commands = [command for call in calls for command in _bare(keys, *call, reply(call[2]))]
        else:
            reports = [_report(*call, reply(call[2])) for call in calls]
            commands = [(*finish, *[word for report in reports for word in report])]
        wire.write(packed(*commands) + fetch)
        for _ in commands:
            wire.receive()


def _bare(keys: Keys, stream: bytes, id: bytes, fields: Sequence[bytes], reply: bytes) -> list[tuple[Any, ...]]:
    """Without scripts: what FINISH does to the streams."""
    key = keys.streams[STREAMS.index(stream.decode())]
    told = ("XADD", keys.replies(fields[1].decode()), "*", "n", fields[3], "k", "r", "p", reply)
    return [("XACK", key, GROUP, id), ("XDEL", key, id), told]


def _report(stream: bytes, id: bytes, fields: Sequence[bytes], reply: bytes) -> tuple[Any, ...]:
    """Of a call with one item that has ended well, as `Broker.finish` words it."""
    return (b"%b/%b" % (stream, id), fields[1], fields[3], fields[5], "0", "1", "1", "0", reply, "", "")


def _answering(seal: Seal, consumer: str) -> Callable[[Sequence[bytes]], bytes]:
    def answer(fields: Sequence[bytes]) -> bytes:
        id = call_id(fields[1].decode(), fields[3].decode())
        body = messages.load_call(seal.open("call", id, fields[11]))
        args, kwargs = load_frame(body.frames[0])
        value = identity(*args, **kwargs)
        told = ReplyBody(0, 1, b"", pickle.dumps([value], protocol=5), (), consumer, 1, time.time(), 0.0)
        return seal.close("reply", id, messages.dump_reply(told))

    return answer
