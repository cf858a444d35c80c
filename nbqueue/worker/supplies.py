"""What a worker needs for the calls that it fetches: functions, settings, what was put, values of other calls.

Always true here: nothing is unpickled, or kept, whose seal was not found right; what many calls need is fetched once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from nbqueue.codec import messages
from nbqueue.codec.blobs import Put, Store
from nbqueue.codec.frames import is_reference, load_frame
from nbqueue.codec.functions import digest as digest_of
from nbqueue.codec.messages import CallBody, call_id, value_in, value_of
from nbqueue.codec.seal import Seal, body_of
from nbqueue.errors import BadMessage
from nbqueue.stream.broker import Broker
from nbqueue.stream.connect import Address, Wire
from nbqueue.stream.keys import Keys, value_name
from nbqueue.stream.records import Fetched, Setting

__all__ = ["Supplies", "WorkerSpec"]

# Longer than BLOCK_MS: a reply that is later than this means a dead connection.
REPLY_TIMEOUT_S = 12.0
FUNCTIONS_KEPT = 128


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker is told at its birth. `consumer` is its name in the group, used by nobody before; after
    `max_tasks` items it leaves, to be replaced (0: never). It is `alone` on a server that only its user can reach.
    With `echo`, somebody looks on at a terminal."""

    slot: int
    consumer: str
    queue: str
    prefix: str
    address: dict[str, Any] = field(repr=False)  # with its password
    secret: str = field(repr=False)
    environ: dict[str, str]
    max_tasks: int = 0
    alone: bool = False
    echo: bool = False


@dataclass(frozen=True, slots=True)
class _Packed:
    """A function that was fetched and not unpickled yet."""

    data: bytes


class Supplies:
    """The base of `Carrier`. Parameter is that of `Worker`."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._secret = bytes.fromhex(spec.secret)
        self._seal = Seal(self._secret, spec.prefix)
        self._broker = Broker(self._new_wire(), Keys(spec.prefix))
        self._io = threading.Lock()  # guards the wire; the main thread holds it except while a task runs
        self._store = Store()
        self._functions: OrderedDict[str, Any] = OrderedDict()
        self._settings: dict[str, Setting] = {}
        self._paces: dict[str, float] = {}  # how long each function's last call took
        self._lengths: dict[str, int] = {}  # of the next sprint of functions whose items are short
        self._armed = False  # a user's code runs, in which an interrupt may be raised

    def _new_wire(self) -> Wire:
        return Wire(Address.from_dict(self._spec.address), timeout_s=REPLY_TIMEOUT_S)

    def _fetch_blobs(self, body: CallBody) -> None:
        if body.puts and self._store.hold(body.puts, self._put):
            # Functions may hold what the store has dropped.
            self._functions.clear()
        if body.setting and body.setting not in self._settings:
            self._settings[body.setting] = Setting.from_bytes(body_of(self._blob(body.setting)))
        if body.function not in self._functions:
            self._functions[body.function] = _Packed(body_of(self._blob(body.function)))
            if len(self._functions) > FUNCTIONS_KEPT:
                oldest, _ = self._functions.popitem(last=False)
                self._paces.pop(oldest, None)
                self._lengths.pop(oldest, None)

    def _fetch_inputs(self, call: Fetched, body: CallBody) -> dict[str, Callable[[], Any]]:
        """What makes the values of other calls that this one needs, whose seals are right."""
        names = [value_name(call.client, n) for n in body.inputs]
        with self._io:
            found = self._broker.blobs(names)
        values: dict[str, Callable[[], Any]] = {}
        for n, name, message in zip(body.inputs, names, found, strict=True):
            if message is None:
                # The server lost its data, then the client submits the call again and this answer counts no more.
                raise BadMessage("The value of another call, which this one needs, is no longer on the server.")
            values[name] = self._value(call.client, n, message)
        return values

    def _value(self, client: str, n: str, message: bytes) -> Callable[[], Any]:
        """What makes the value of a call, out of its reply or of that of several. Raises BadMessage."""
        try:
            data = self._seal.open("reply", call_id(client, n), message)
        except BadMessage:
            replies = messages.load_replies(self._seal.open("replies", client, message))
            if n not in replies.names:
                raise
            return partial(value_of, replies, n)
        reply = messages.load_reply(data)
        if reply.items != 1 or reply.kinds:
            raise BadMessage("Another call, whose value this one needs, has none.")
        return partial(value_in, reply)

    def _load(self, body: CallBody) -> Any:
        function = self._functions[body.function]
        if isinstance(function, _Packed):
            data = function.data
            function = self._guarded(lambda: load_frame(data))
            self._functions[body.function] = function
        self._functions.move_to_end(body.function)
        return function

    def _blob(self, digest: str) -> bytes:
        """The sealed message of a blob, whose seal and content are right."""
        with self._io:
            message = self._broker.blob(digest)
        if message is None:
            # The server lost its data, then the client submits the call again and this answer counts no more.
            raise BadMessage("The function of this call, or what was put for it, is no longer on the server.")
        # A view: what was put is large. What lies in shared memory is protected there, and only its place is signed.
        body = self._seal.open("blob", digest, memoryview(message))
        if not is_reference(body) and digest_of(body) != digest:
            raise BadMessage(f"The blob {digest} holds other bytes than its name says.")
        return message

    def _put(self, digest: str) -> Put[Any]:
        return Put(digest, self._blob(digest), self._spec.prefix)

    def _guarded(self, run: Callable[[], Any]) -> Any:
        """Run a user's code so that an interrupt meant for it, and no other, is raised in it."""
        try:
            self._armed = True
            return run()
        finally:
            self._armed = False
