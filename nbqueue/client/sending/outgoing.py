"""Calls on their way to the server, and the two connections on which all goes: steps on one, replies on the other.

Always true here: calls are numbered and sent in rising order, and the server takes each number once; one SUBMIT at a
time is without its answer, and what comes together meanwhile leaves with the next; a server that lost its data is told
everything again.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from nbqueue.client.sending import graph
from nbqueue.client.sending.calls import OpenCall
from nbqueue.client.sending.ends import Ends
from nbqueue.codec.messages import CallBody, call_id, dump_call
from nbqueue.codec.seal import Seal
from nbqueue.errors import BadMessage, NbqueueError, NotSendable, ServerError, ServerUnreachable
from nbqueue.stream.broker import BLOCK_MS, Broker, Ended, Hello, OtherEpoch, Taken
from nbqueue.stream.connect import (
    LOWEST_LIMIT_BYTES,
    Address,
    CommandError,
    ForgotScripts,
    Wire,
    is_out_of_memory,
    may_be_too_large,
)
from nbqueue.stream.keys import Keys
from nbqueue.stream.records import MOST_TOGETHER, Call

__all__ = ["STEP_TIMEOUT_S", "Outgoing"]

STEP_TIMEOUT_S = 30.0
# Longer than BLOCK_MS: a reply that is later than this means a dead connection.
REPLY_TIMEOUT_S = BLOCK_MS / 1000 + 10
# One SUBMIT: as many calls as a script does in a few milliseconds, as many bytes as pass quickly.
MOST_CALLS = 500
MOST_BYTES = 8_000_000
# Calls that travel together take so long together, as far as those before them tell: whoever waits for one of them
# waits for all, and other workers cannot help.
TOGETHER_S = 0.001
# Replies that were read are deleted when so many, or so large ones, have come together.
TRIM_EVERY = 200
TRIM_BYTES = 8_000_000
# How long to wait before the next attempt while the server's memory is full: what is refused travels each time.
FULL_S, LONGEST_FULL_S = 0.2, 2.0


class _Asked(NamedTuple):
    """A SUBMIT whose answer has not been read: the first `numbers` calls of the outbox, and these blobs. The answer
    comes on `wire`."""

    numbers: int
    last: int
    blobs: frozenset[str]
    largest: int
    wire: Wire


class Outgoing(Ends):
    """The base of `Helm`. Parameters are those of `Link`."""

    def __init__(self, queue: str, address: Callable[[], Address], keys: Keys, seal: Seal) -> None:
        super().__init__(queue, seal)
        self.workers = 0  # registered on all hosts, as last heard
        self.failure: NbqueueError | None = None  # why the server cannot be used now
        self._address = address
        self._keys = keys
        self._outbox: deque[int] = deque()
        self._unneeded: deque[str] = deque()
        # Below: guarded by the helm.
        self._steps: Broker | None = None
        self._replies: Broker | None = None
        self._asked: _Asked | None = None
        self._listening = False  # the server was asked for the next replies
        self._here = False  # and they have come, with another answer
        self._heard = 0.0
        self._epoch = ""
        self._mark = 0
        self._said_hello = 0.0
        self._full_s = 0.0  # the server refused calls because its memory is full: the pause before the next attempt
        self._send_at = 0.0
        self._at_once = MOST_CALLS  # in one SUBMIT: fewer where memory is scarce
        self._suspect = 0  # bytes of the largest string that was on its way when the connection was lost
        self._sent_blobs: set[str] = set()

    def _connect(self) -> None:
        address = self._address()
        self._steps = Broker(Wire(address, timeout_s=STEP_TIMEOUT_S), self._keys)
        self._replies = Broker(Wire(address, timeout_s=REPLY_TIMEOUT_S), self._keys)
        if self._suspect:
            if not Wire(address, timeout_s=STEP_TIMEOUT_S).takes(self._suspect):
                self._refuse(self._suspect)
            self._suspect = 0
        self._steps.connect()
        self._replies.wire.connect()
        self._sent_blobs.clear()
        self._listening = self._here = False
        self._say_hello(self._steps)

    def _say_hello(self, steps: Broker) -> None:
        """Compare epoch and mark with the server's, and send again what it does not know."""
        hello: Hello = steps.hello(self.client, secrets.token_hex(8))
        self._said_hello = time.monotonic()
        self.workers = hello.workers
        if hello.epoch != self._epoch:
            # A server that knows nothing of us: new, restarted or emptied. Its ids may even be older.
            self._epoch = hello.epoch
            self._cursor = b"0"
            self._untrimmed = self._untrimmed_bytes = 0
            self._sent_blobs.clear()
        elif hello.mark >= self._mark:
            self._mark = hello.mark
            return
        while arrived := steps.read_replies(self.client, self._cursor):
            self._dispatch(arrived)
        with self._changed:
            self._mark = hello.mark
            self._outbox = deque(sorted(n for n in self._open if n > hello.mark))
            self._wake()

    # Replies

    def _listen(self, *, idle: bool) -> None:
        """Ask for the next replies, unless that has been done. Those that were read are deleted when many have come
        together, or it is `idle`."""
        if self._listening:
            return
        replies = self._replies
        assert replies is not None
        read = self._question(replies)
        if not (self._much_untrimmed or (idle and self._untrimmed)):
            replies.wire.send(read)
            return
        self._untrimmed = self._untrimmed_bytes = 0
        replies.wire.send(replies.trim_replies_command(self.client, self._cursor), read)
        replies.wire.receive()
        # They may have come together with that answer, so that no poll tells.
        self._here = replies.wire.buffered

    def _question(self, replies: Broker) -> tuple[object, ...]:
        """For the next replies. It is sent now."""
        self._listening, self._heard = True, time.monotonic()
        return replies.read_replies_command(self.client, self._cursor, block_ms=BLOCK_MS)

    @property
    def _much_untrimmed(self) -> bool:
        return self._untrimmed >= TRIM_EVERY or self._untrimmed_bytes >= TRIM_BYTES

    def _hear(self) -> None:
        """Read the replies that have come, and hand them out."""
        replies = self._replies
        assert replies is not None
        answer = replies.wire.receive()
        self._here = self._listening = False
        self._heard = time.monotonic()
        self._dispatch(replies.parse_replies(answer))

    def _check_silence(self, now: float) -> None:
        """Raises ServerUnreachable where replies are overdue. The other connection may live on, so that nothing else
        would tell."""
        if self._listening and now - self._heard > REPLY_TIMEOUT_S:
            assert self._replies is not None
            raise ServerUnreachable(f"{self._replies.wire.address} has fallen silent.")

    # Calls

    def _try_to_send(self) -> None:
        """Send calls; where the server's memory is full they wait, and what runs there can still end."""
        if (self._outbox or self._full_s) and self._asked is None and time.monotonic() >= self._send_at:
            assert self._steps is not None
            self._send_calls(self._steps)
            if self._asked is None:
                self._not_full()

    def _send_calls(self, steps: Broker, listening: Broker | None = None) -> None:
        """Send what has come together; `_settle` reads the answer. Where somebody is `listening`, it goes there, and
        the question for the replies with it."""
        while self._outbox and self._asked is None:
            together: list[list[OpenCall] | Call] = []
            blobs: dict[str, bytes] = {}
            looked_at: Mapping[str, bytes] | None = None
            size = largest = room = 0
            with self._lock:
                taken = 0
                for n in self._outbox:
                    if taken >= self._at_once or size > MOST_BYTES:
                        break
                    taken += 1
                    opened = self._open.get(n)
                    if opened is None:
                        # Cancelled, or ended, before it left.
                        continue
                    call = opened.call
                    if opened.light is not None:
                        bundle = together[-1] if room else None
                        if isinstance(bundle, list) and bundle[0].light is opened.light:
                            bundle.append(opened)
                            room -= 1
                        else:
                            together.append([opened])
                            room = self._most_together(opened.light) - 1
                    else:
                        if call.items > 1 and (first := opened.sink.first_open(opened)):
                            call = call._replace(first=first)
                        if opened.node is not None:
                            call = call._replace(needs=graph.needs(opened, self._open))
                        together.append(call)
                        room = 0
                    bytes_of_it = len(call.payload)
                    size += bytes_of_it
                    largest = max(largest, bytes_of_it)
                    if opened.blobs is looked_at:
                        # As many calls of one function do.
                        continue
                    looked_at = opened.blobs
                    for digest, data in looked_at.items():
                        if digest not in self._sent_blobs and digest not in blobs:
                            blobs[digest] = data
                            size += len(data)
                last = self._outbox[taken - 1]
            if not together:
                self._taken(taken, last)
                continue
            calls = [self._sealed(each) if isinstance(each, list) else each for each in together]
            if blobs:
                # A large one goes alone: a server takes one gigabyte in one command at most.
                large = next((digest for digest, data in blobs.items() if len(data) > MOST_BYTES), None)
                if large is not None and len(blobs) > 1:
                    calls, blobs, taken, largest = [], {large: blobs[large]}, 0, 0
                largest = max(largest, *map(len, blobs.values()))
            submit = steps.submit_command(self.client, self._epoch, calls, blobs)
            wire = steps.wire if listening is None else listening.wire
            self._asked = _Asked(taken, last, frozenset(blobs), largest, wire)
            try:
                if listening is None:
                    wire.send(submit)
                else:
                    wire.send(submit, self._question(listening))
            except (ServerError, CommandError) as error:
                self._suspect_size(largest, error)
                raise

    def _most_together(self, light: CallBody) -> int:
        """Of calls that are all short, as many as are done in a moment, as long as there are enough for all workers.
        The lock is held."""
        pace_s = self._paces.get(light.function)
        if pace_s is None:
            return 1
        share = len(self._open) // (2 * max(1, self.workers))
        return max(1, min(MOST_TOGETHER, share, int(TOGETHER_S / max(pace_s, 1e-6))))

    def _sealed(self, together: list[OpenCall]) -> Call:
        """A light call, or a bundle of several."""
        first = together[0]
        if len(together) == 1:
            id = call_id(self.client, first.call.n)
            return first.call._replace(payload=self._seal.close("call", id, dump_call(first.body())))
        light = first.light
        assert light is not None
        names = tuple([str(opened.call.n) for opened in together])
        body = light._replace(frames=tuple([opened.call.payload for opened in together]), names=names)
        payload = self._seal.close("calls", self.client, dump_call(body))
        return together[-1].call._replace(items=0, payload=payload, names=names)

    def _suspect_size(self, largest: int, error: Exception) -> None:
        """What was on its way when the connection was lost, or refused, may have been too large for the server."""
        if may_be_too_large(error):
            self._suspect = largest if largest > LOWEST_LIMIT_BYTES else 0

    def _settle(self) -> None:
        """Read the answer to what was sent, if there is one to come."""
        asked, steps = self._asked, self._steps
        if asked is None:
            return
        assert steps is not None
        try:
            answer = steps.parse_submit(asked.wire.receive())
        except ServerError as error:
            self._suspect_size(asked.largest, error)
            raise
        except ForgotScripts as error:
            raise ServerError("the server forgot its scripts") from error
        except CommandError as error:
            self._suspect_size(asked.largest, error)
            if not is_out_of_memory(error):
                raise
            self._answered(asked)
            if asked.numbers > 1:
                # There may be room for some of them: at once.
                self._at_once = asked.numbers // 2
                self._full_s = self._full_s or FULL_S
            else:
                self._full_s = min(LONGEST_FULL_S, self._full_s * 2 or FULL_S)
                self._send_at = time.monotonic() + self._full_s
            self.failure = ServerError(
                "The server's memory is full (maxmemory). Calls wait until results have been taken, or until it is "
                "given more."
            )
            return
        self._answered(asked)
        if self._full_s:
            self._not_full()
        if isinstance(answer, Taken):
            if asked.blobs:
                self._sent_blobs |= asked.blobs
                if len(self._sent_blobs) > 10_000:
                    self._sent_blobs.clear()
            self.workers = answer.workers
            if asked.numbers:
                self._taken(asked.numbers, asked.last)
                self._at_once = min(MOST_CALLS, self._at_once * 2)
        elif isinstance(answer, OtherEpoch):
            self._say_hello(steps)
        elif isinstance(answer, Ended):
            self._catch_up(steps, answer)
        else:
            self._sent_blobs -= set(answer.digests)

    def _answered(self, asked: _Asked) -> None:
        self._asked = None
        assert self._replies is not None
        if asked.wire is self._replies.wire and asked.wire.buffered:
            # Replies have come together with the answer, so that no poll tells.
            self._here = True

    def _catch_up(self, steps: Broker, answer: Ended) -> None:
        """Calls have ended that others need, and it was not known here yet: those are sent with the values then."""
        while arrived := steps.read_replies(self.client, self._cursor):
            self._dispatch(arrived)
        with self._lock:
            self._wake()
            lost = [self._open[n] for n in answer.numbers if n in self._open]
        if not lost:
            return
        epoch = self._epoch
        self._say_hello(steps)
        # The same server as that which has said so, or it has lost their replies, and is sent all again.
        for opened in lost if self._epoch == epoch else ():
            # Somebody has deleted what it knew of them.
            self._end_broken(opened, 0, BadMessage("The server has forgotten this call. Make it again."))
            self._over(opened, b"", None)

    def _not_full(self) -> None:
        if self._full_s:
            self._full_s, self.failure = 0.0, None

    def _taken(self, numbers: int, last: int) -> None:
        """The server has the first calls of the outbox."""
        with self._lock:
            for _ in range(numbers):
                self._outbox.popleft()
            self._mark = max(self._mark, last)
            self._changed.notify_all()

    def _refuse(self, size: int) -> None:
        """End the calls that this server does not let in, so that those behind them can leave."""
        with self._lock:
            waiting = [opened for n in self._outbox if (opened := self._open.get(n)) is not None]
        for opened in waiting:
            largest = max(len(opened.call.payload), *map(len, opened.blobs.values()))
            if largest < size:
                continue
            name = opened.body().name
            error = NotSendable(
                f"`{name}` could not be sent: {largest:,} bytes are more than the server lets in at once. Raise its "
                "proto-max-bulk-len, load the data in the task, or send it in parts."
            )
            self._end_broken(opened, 0, error)
            self._over(opened, b"", None)

    def _let_go(self) -> None:
        steps = self._steps
        assert steps is not None
        self._settle()
        while self._unneeded:
            digest = self._unneeded.popleft()
            self._sent_blobs.discard(digest)
            steps.let_go(digest)

    def _send_cancels(self) -> None:
        with self._lock:
            names = self._cancels[:5000]
        if names:
            assert self._steps is not None
            self._settle()
            self._steps.cancel(self.client, names)
            with self._changed:
                del self._cancels[: len(names)]
                self._changed.notify_all()
                if self._cancels:
                    self._wake()
