"""How calls end: by a reply, by a cancel, or because what they need did. Each sink hears of it once.

Always true here: a call's bytes are kept until its last item has ended; nothing is read of a message whose seal was not
found right; no lock is held while a sink is told.
"""

from __future__ import annotations

import os
import pickle
import secrets
import sys
import threading
from collections.abc import Iterable
from typing import cast

from nbqueue.client.sending import claims, graph
from nbqueue.client.sending.calls import OpenCall, ValueSink
from nbqueue.client.sending.chunking import Paces
from nbqueue.client.sending.history import History
from nbqueue.codec import messages
from nbqueue.codec.messages import ReplyBody, call_id
from nbqueue.codec.seal import Seal
from nbqueue.errors import BadMessage, NbqueueError
from nbqueue.stream.records import Incoming

__all__ = ["Ends"]

# What a message in the reply stream is signed as.
_KINDS = {"r": "reply", "e": "event", "x": "refusal"}


class _Counted(threading.Condition):
    """A condition that knows whether anybody waits, which is seldom: telling nobody takes as long as a small step."""

    def __init__(self, lock: threading.Lock) -> None:
        super().__init__(lock)
        self._waiting = 0

    def wait(self, timeout: float | None = None) -> bool:
        self._waiting += 1
        try:
            return super().wait(timeout)
        finally:
            self._waiting -= 1

    def notify_all(self) -> None:
        if self._waiting:
            super().notify_all()


class Ends:
    """The base of `Outgoing`. Parameters are those of `Link`."""

    def __init__(self, queue: str, seal: Seal) -> None:
        self.queue = queue
        self.client = secrets.token_hex(8)
        self.refused = 0  # messages that came back and could not be trusted
        self.history = History()
        self._seal = seal
        self._lock = threading.Lock()  # guards _last, _outbox, _open, _inputs, _cancels, _awake, _blobs
        self._changed = _Counted(self._lock)
        self._open: dict[int, OpenCall] = {}
        self._cancels: list[str] = []
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self._awake = False
        self._closed = False
        self.item_paces = Paces()  # of items of maps
        self._paces = Paces()  # of light calls
        # Below: guarded by the helm.
        self._helmsman = 0  # the thread that has it, while it may call others
        self._cursor = b"0"
        self._untrimmed = 0
        self._untrimmed_bytes = 0

    def cancel(self, calls: Iterable[OpenCall]) -> None:
        """Forget calls and those that need them, and have the server forget them: queued, waiting and running alike."""
        unmet: list[tuple[OpenCall, OpenCall]] = []
        with self._lock:
            for opened in calls:
                if self._open.pop(opened.call.n, None) is not None:
                    self._cancels += self._names(opened)
                    self.history.note_cancelled(opened, opened.sink.unanswered(opened))
                    unmet += self._cut(opened)
            self._changed.notify_all()
            self._wake()
        for opened, source in unmet:
            self._end_unmet(opened, source)

    def _cut(self, opened: OpenCall) -> list[tuple[OpenCall, OpenCall]]:
        """It has ended without a value: forget what needs it, which `_end_unmet` is to end then. The lock is held.

        In one step, or what is sent meanwhile would need what the server has ended by itself.
        """
        if opened.node is None:
            return []
        unmet = graph.cut(opened, self._open)
        for each, _ in unmet:
            # One that had a value on the server already has gone on there.
            self._cancels += self._names(each)
        if unmet:
            self._changed.notify_all()
            self._wake()
        return unmet

    def _end_unmet(self, opened: OpenCall, source: OpenCall) -> None:
        def note(error: NbqueueError | None) -> None:
            if error is None:
                self.history.note_cancelled(opened, (0,))
            else:
                self.history.note_broken(opened, (0,), error)

        opened.sink.on_unmet(source.sink, note)

    def _wake(self) -> None:
        # The lock is held.
        if not self._awake and not self._closed:
            self._awake = True
            try:
                os.write(self._wake_w, b"!")
            except BlockingIOError:
                # Full: it wakes anyway.
                pass

    @staticmethod
    def _names(opened: OpenCall) -> list[str]:
        n = opened.call.n
        names = [str(n)]
        if opened.splits:
            names += [f"{n}.{item}" for item in range(opened.call.items)]
        return names

    # Replies

    def _dispatch(self, arrived: list[Incoming]) -> None:
        self._helmsman = threading.get_ident()
        try:
            self._hand_out(arrived)
        finally:
            self._helmsman = 0

    def _hand_out(self, arrived: list[Incoming]) -> None:
        for incoming in arrived:
            self._cursor = incoming.id
            self._untrimmed += 1
            self._untrimmed_bytes += len(incoming.message)
            n = incoming.n
            if incoming.kind == "m":
                self._hand_out_several(n.split(","), incoming.message)
                continue
            number, shift = (int(n), 0) if n.isdigit() else map(int, n.split("."))
            # One step, so it needs no lock.
            opened = self._open.get(number)
            try:
                kind = _KINDS.get(incoming.kind, "foreign")
                data = self._seal.open(kind, call_id(self.client, n), incoming.message)
            except BadMessage as error:
                self.refused += 1
                refusal: BadMessage | None = error
                data = b""
            else:
                # A worker's word that it was the call that could not be trusted.
                refusal = BadMessage(data.decode()) if kind == "refusal" else None
            if opened is None:
                # Cancelled, or a late second answer, or nobody's.
                continue
            if kind == "event":
                # News only: a bad one costs nothing, the reply itself will be checked.
                if refusal is None:
                    self._event(opened, shift, data)
                continue
            body: ReplyBody | None = None
            try:
                if refusal is not None:
                    ended = self._end_broken(opened, shift, refusal)
                else:
                    body = messages.load_reply(data)
                    if body.large:
                        body = claims.claimed(body)
                    if opened.light is not None:
                        self._note_pace(opened.light.function, body.seconds)
                    # Before anybody can hear of it, and look.
                    self.history.note(opened, body.first + shift, body)
                    ended = opened.sink.on_reply(opened, body.first + shift, body)
            except BaseException as error:  # noqa: BLE001 - a bad reply or callback must not stop all others
                sys.excepthook(*sys.exc_info())
                body = None
                ended = self._end_broken(opened, shift, BadMessage(f"A reply could not be read: {error!r}"))
            if ended:
                self._over(opened, incoming.message, body)

    def _hand_out_several(self, names: list[str], message: bytes) -> None:
        """Light calls of these names have ended with values, as one message tells."""
        # Each once, whatever the names say, which nobody has signed.
        calls = {n: opened for n in map(int, names) if (opened := self._open.get(n)) is not None}
        try:
            body = messages.load_replies(self._seal.open("replies", self.client, message))
            told = dict(zip(map(int, body.names), pickle.loads(body.packed), strict=True))
            took = dict(zip(map(int, body.names), zip(body.started, body.seconds, strict=True), strict=True))
            if not all(n in told and opened.light is not None for n, opened in calls.items()):
                raise BadMessage("A reply names other calls than those that it is for.")
        except Exception as error:  # noqa: BLE001 - of a version that speaks otherwise: it must not stop all others
            self.refused += 1
            refusal = error if isinstance(error, BadMessage) else BadMessage(f"A reply could not be read: {error!r}")
            for opened in calls.values():
                self._end_broken(opened, 0, refusal)
                self._over(opened, b"", None)
            return
        if not calls:
            # Cancelled, or late second answers, or nobody's.
            return
        light = next(iter(calls.values())).light
        assert light is not None
        self._note_pace(light.function, sum(body.seconds) / len(body.seconds))
        # Before anybody can hear of it, and look.
        self.history.note_several(list(calls.values()), [took[n] for n in calls], body)
        for n, opened in calls.items():
            try:
                cast(ValueSink, opened.sink).on_value(told[n], body.worker, body.attempt, took[n][1])
            except BaseException as error:  # noqa: BLE001 - a bad callback must not stop all others
                sys.excepthook(*sys.exc_info())
                self._end_broken(opened, 0, BadMessage(f"A reply could not be read: {error!r}"))
        with self._lock:
            for n, opened in calls.items():
                self._open.pop(n, None)
                # Asked here: it may have been wanted until now.
                if opened.node is not None:
                    reply = ReplyBody(0, 1, b"", b"", (), body.worker, body.attempt, *took[n])
                    graph.pass_on(self.client, opened, message, reply)
            if not self._open:
                self._changed.notify_all()

    def _note_pace(self, function: str, seconds: float) -> None:
        """A long one is soon believed, short ones by and by."""
        self._paces.note(function, max(seconds, 0.8 * self._paces.get(function, 0.0)))

    def _over(self, opened: OpenCall, message: bytes, body: ReplyBody | None) -> None:
        """A call has ended, with this reply if there was one that could be read."""
        unmet: list[tuple[OpenCall, OpenCall]] = []
        with self._changed:
            self._open.pop(opened.call.n, None)
            if body is None or body.kinds:
                unmet = self._cut(opened)
            elif opened.node is not None:
                graph.pass_on(self.client, opened, message, body)
            if not self._open or body is None:
                self._changed.notify_all()
        for each, source in unmet:
            self._end_unmet(each, source)

    def _end_broken(self, opened: OpenCall, item: int, error: NbqueueError) -> bool:
        self.history.note_broken(opened, opened.sink.unanswered(opened), error)
        return opened.sink.on_broken(opened, item, error)

    def _event(self, opened: OpenCall, shift: int, data: bytes) -> None:
        try:
            event = messages.load_event(data)
            opened.sink.on_event(opened, event["item"] + shift, event)
        except Exception:  # noqa: BLE001 - news only, of a version that speaks otherwise: the reply counts
            self.refused += 1
