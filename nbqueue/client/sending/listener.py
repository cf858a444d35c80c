"""What any thread may ask of one queue: to take calls, to forget them, to tell what is open.

Nothing here waits for the server: `helm` talks to it. Always true here: a call's bytes are kept until its last item has
ended; calls are numbered in the order in which they are submitted.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, finalize

from nbqueue import context
from nbqueue.client.sending import graph
from nbqueue.client.sending.calls import Input, OpenCall, Sink
from nbqueue.client.sending.helm import Helm
from nbqueue.client.sending.outgoing import STEP_TIMEOUT_S
from nbqueue.codec.blobs import Put
from nbqueue.codec.messages import CallBody, ReplyBody, call_id, dump_reply
from nbqueue.codec.seal import Seal
from nbqueue.codec.segments import Segment
from nbqueue.errors import ForkedQueue, NbqueueError
from nbqueue.stream.broker import Broker
from nbqueue.stream.connect import Address, Wire, explaining
from nbqueue.stream.keys import NORMAL, Keys, value_name
from nbqueue.stream.records import Call, QueueCounts

__all__ = ["Link", "OpenCall", "Sink"]

# How long a status waits for the hosts' word on what they run right now.
STATUS_S = 1.0
# Sealed blobs kept for calls to come, if they are small.
BLOBS_KEPT = 64
SMALL_BLOB_BYTES = 1_000_000
_NO_PUTS: Mapping[str, Put[Any]] = {}


class Link(Helm):
    """This process's connection to one queue.

    Parameters
    ----------
    address : callable
        Where the server is now; asked at each (re)connect, since a private server may move.
    keys, seal
        The queue's names and signatures.
    """

    def __init__(self, queue: str, address: Callable[[], Address], keys: Keys, seal: Seal) -> None:
        super().__init__(queue, address, keys, seal)
        self.expected_workers = 2  # to plan with, while none are
        self.starting = False  # workers are on their way
        self.private = False  # nobody else can reach the server
        self.served_here = False  # this process keeps workers, though the server may not know them yet
        self.hinted = ""  # the reason for waiting that the user was told last
        self._pid = context.pid()
        self._last = 0
        self._inputs: dict[int, Input] = {}
        self._blobs: OrderedDict[str, bytes] = OrderedDict()
        self._foreign: WeakKeyDictionary[Put[Any], bytes] = WeakKeyDictionary()

    # Any thread

    def check_process(self) -> None:
        """Raises ForkedQueue in a forked child of the process that made this link."""
        if context.pid() != self._pid:
            raise ForkedQueue(
                "This process is a fork of the one that made the queue and must not use its connections. Call tasks "
                "in the notebook's own process, or make a new TaskQueue here."
            )

    def check_thread(self) -> None:
        """Raises NbqueueError where a thread hears of the end of calls: it would wait for itself."""
        if self._is_helmsman:
            raise NbqueueError(
                f"A done-callback must not wait for another call of the queue {self.queue!r}: it runs in the thread "
                "that receives the results. Start a thread in the callback, or wait where the calls are made."
            )

    def seal_blob(self, digest: str, data: bytes) -> bytes:
        with self._lock:
            sealed = self._blobs.get(digest)
            if sealed is None:
                sealed = self._seal.close("blob", digest, data)
                if len(sealed) < SMALL_BLOB_BYTES:
                    self._blobs[digest] = sealed
                    if len(self._blobs) > BLOBS_KEPT:
                        self._blobs.popitem(last=False)
            return sealed

    def seal_put(self, digest: str, body: bytes) -> bytes:
        """The sealed message of what was put."""
        return self._seal.close("blob", digest, body)

    def seal_value(self, name: str, reply: ReplyBody) -> bytes:
        """The sealed message of a value that calls need, as if it were the reply of a call of that name."""
        return self._seal.close("reply", call_id(self.client, name), dump_reply(reply))

    def _message(self, handle: Put[Any]) -> bytes:
        if handle.scope == self._keys.prefix:
            return handle.message
        # It was put for another queue.
        message = self._foreign.get(handle)
        if message is None:
            # Where others can reach the server, workers may be elsewhere.
            body = bytes(handle.body) if self.private else handle.packed()
            message = self._foreign[handle] = self.seal_put(handle.digest, body)
            self.follow(handle)
        return message

    def follow(self, handle: Put[Any]) -> None:
        """Have the server forget what was put when neither a handle nor an open call needs it."""
        # It may end anywhere, in the midst of what is locked, too: it only leaves a note.
        finalize(handle, self._unneeded.append, handle.digest).atexit = False

    def submit(
        self,
        body: bytes,
        digests: tuple[str, ...],
        blobs: Mapping[str, bytes],
        sink: Sink,
        *,
        items: int = 1,
        base: int = 0,
        splits: bool = False,
        puts: Mapping[str, Put[Any]] = _NO_PUTS,
        held: tuple[Segment, ...] = (),
        inputs: Sequence[OpenCall] = (),
        stream: str = NORMAL,
        light: CallBody | None = None,
    ) -> OpenCall:
        """Put a call on its way; returns at once. It goes with the values of its `inputs`, which were wanted. Of a
        `light` one, the `body` is the frame of its arguments alone.

        Raises
        ------
        ForkedQueue
        """
        self.check_process()
        if puts:
            digests = (*digests, *(digest for digest in puts if digest not in digests))
            blobs = {**blobs, **{digest: self._message(handle) for digest, handle in puts.items()}}
        if inputs:
            digests = (*digests, *(value_name(self.client, source.call.n) for source in inputs))
        unmet: OpenCall | None = None
        with self._lock:
            self._last = n = self._last + 1
            payload = self._seal.close("call", call_id(self.client, n), body) if light is None else body
            call = Call(n, digests, items, payload, stream=stream)
            opened = OpenCall(call, blobs, sink, base, splits, time.time(), puts, held, light=light)
            if inputs:
                unmet = graph.join(self.client, opened, inputs, self._open)
            if unmet is None:
                self._open[n] = opened
                self._outbox.append(n)
            if self._thread is None:
                self._start()
        if unmet is not None:
            self._end_unmet(opened, unmet)
        elif not self._send_here(opened):
            with self._lock:
                self._wake()
        return opened

    def abandon(self, sink: Sink) -> None:
        """Forget what was submitted for it, though nobody may know the call, and what was to come."""
        with self._changed:
            self._inputs.pop(id(sink), None)
            calls = [opened for opened in self._open.values() if opened.sink is sink]
            self._changed.notify_all()
        self.cancel(calls)

    def want(self, call: OpenCall) -> bool:
        """Have its value kept for a call that is about to be made. False if it has ended."""
        with self._lock:
            return graph.want(call, self._open)

    def needless(self, call: OpenCall) -> list[OpenCall]:
        """Open calls that only this one, which has ended, needed."""
        with self._lock:
            return graph.needless(call, self._open)

    def flush(self, timeout_s: float) -> bool:
        """Wait until the server has taken everything submitted so far. False if it has not in time."""
        self.check_thread()
        with self._changed:
            last = self._last

            def taken() -> bool:
                return self._mark >= last or not any(n <= last for n in self._outbox)

            return self._changed.wait_for(lambda: not self._cancels and taken(), timeout_s)

    def settle_cancels(self, timeout_s: float) -> bool:
        """Wait until the server has heard of everything cancelled so far. False if it has not in time."""
        if self._is_helmsman:
            # It is the one that tells.
            return False
        with self._changed:
            return self._changed.wait_for(lambda: not self._cancels, timeout_s)

    def _break_all(self, error: NbqueueError) -> None:
        with self._lock:
            opened, sources = list(self._open.values()), list(self._inputs.values())
        for call in opened:
            self._end_broken(call, 0, error)
        self.cancel(opened)
        for source in sources:
            source.on_lost(error)
        with self._changed:
            # There is nobody to tell. Whoever has sent something meanwhile is heard at the next turn.
            self._outbox.clear()
            self._cancels.clear()
            self._changed.notify_all()

    def watch(self, check: Callable[[], bool]) -> None:
        """Call `check` from the listener every 50 ms, as long as it returns True."""
        with self._lock:
            self._watched.append(check)
            self._wake()

    def begin_input(self, source: Input) -> None:
        """It will submit calls, until `end_input`."""
        with self._lock:
            self._inputs[id(source)] = source

    def end_input(self, source: Input) -> None:
        with self._changed:
            self._inputs.pop(id(source), None)
            self._changed.notify_all()

    @property
    def drained(self) -> bool:
        """Whether no call is open and none is to come. The lock is held."""
        return not self._open and not any(source._more() for source in self._inputs.values())

    @property
    def planned_workers(self) -> int:
        """How many workers to plan with."""
        return self.workers or self.expected_workers

    @property
    def unserved(self) -> bool:
        """Whether no worker serves the queue, as far as is known, and none is on its way."""
        return bool(self._epoch) and not (self.workers or self.starting or self.served_here)

    @property
    def submitted(self) -> int:
        """How many calls were submitted, ever."""
        return self._last

    @property
    def open_calls(self) -> int:
        return len(self._open)

    @property
    def open_items(self) -> int:
        """How many calls and items of maps have not ended, sent or not, as far as they are known."""
        return sum(sink.open_items for sink in self.sinks())

    def sinks(self) -> list[Sink | Input]:
        """Whoever still waits for something or has more to send, each once."""
        with self._lock:
            found: dict[int, Sink | Input] = {id(opened.sink): opened.sink for opened in self._open.values()}
            return list({**found, **self._inputs}.values())

    @contextmanager
    def _asking(self) -> Iterator[Broker]:
        """A connection of its own, for a question to the server."""
        self.check_process()
        broker = Broker(Wire(self._address(), timeout_s=STEP_TIMEOUT_S), self._keys)
        broker.wire.connect()
        try:
            with explaining(broker.wire.address):
                yield broker
        finally:
            broker.wire.close()

    def counts(self) -> QueueCounts:
        """Ask the server, on a connection of its own."""
        with self._asking() as broker:
            before = broker.counters()
            for host in before:
                broker.poke(host)
            # Supervisors answer with a beat, in a few milliseconds; a host that is gone never does.
            deadline = time.monotonic() + STATUS_S
            while time.monotonic() < deadline:
                now = broker.counters()
                if all(now.get(host) != counter for host, counter in before.items()):
                    break
                time.sleep(0.005)
            counts = broker.counts()
            while self.served_here and time.monotonic() < deadline:
                # Workers that this process has just started are known before the server has heard of them.
                if sum(w.pid > 0 for host in counts.hosts for w in host.workers) >= self.expected_workers:
                    break
                for host in broker.counters():
                    broker.poke(host)
                time.sleep(0.02)
                counts = broker.counts()
            return counts

    def fetched(self, numbers: Sequence[int], timeout_s: float) -> set[int]:
        """Which of these calls workers have or had, as the server knows: once it has given them any of anybody's, or
        after `timeout_s`. It is asked on a connection of its own."""
        deadline = time.monotonic() + timeout_s
        with self._asking() as broker:
            while True:
                entries = broker.fetched_entries()
                found = broker.fetched_calls(self.client, numbers, entries)
                if entries or found or time.monotonic() >= deadline:
                    return found
                time.sleep(0.005)

    def close(self) -> None:
        """Stop listening. Calls that are open stay so on the server."""
        with self._lock:
            self._closing = True
            self._wake()
        self._resume.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(5.0)
        with self._lock:
            if not self._closed and (thread is None or not thread.is_alive()):
                self._closed = True
                os.close(self._wake_r)
                os.close(self._wake_w)
