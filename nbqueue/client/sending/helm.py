"""All that talks to Redis for a queue: sends calls, reads replies.

::

    any thread   submit ─▶ outbox ─┐            ┌─▶ sink: a future or a batch
                                   ▼            │
    helm               SUBMIT (many at once)   replies (many at once)

One thread at a time has the helm, and with it the connections: the listener, which is there from the first call on,
or a thread that waits for a result and has nothing better to do (`Link.steer`), which saves two changes of threads a
call. A lone call leaves in the thread that makes it; calls made while its answer is on the way leave together after.

Always true here: a call's bytes are kept until its last item has ended, so a server that lost its data can
be told everything again; calls are numbered and sent in rising order, and the server takes each number once;
on every (re)connect, and every two seconds while calls are open, epoch and mark are compared. Who has the helm
never waits for a view, and never runs a user's code except the callbacks of futures; no interrupt strikes there.
"""

from __future__ import annotations

import os
import secrets
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nbqueue.client.sending import claims, graph
from nbqueue.client.sending.calls import OpenCall
from nbqueue.client.sending.history import History
from nbqueue.client.sending.presses import Presses
from nbqueue.codec import messages
from nbqueue.codec.messages import ReplyBody, call_id
from nbqueue.codec.seal import Seal, body_of
from nbqueue.errors import (
    BadMessage,
    NbqueueError,
    NotSendable,
    ServerError,
    ServerRefused,
    ServerUnreachable,
)
from nbqueue.stream.broker import BLOCK_MS, Broker, Ended, Hello, NeedBlobs, OtherEpoch
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
from nbqueue.stream.records import Call, Incoming

__all__ = ["Helm"]

STEP_TIMEOUT_S = 30.0
# Longer than BLOCK_MS: a reply that is later than this means a dead connection.
REPLY_TIMEOUT_S = BLOCK_MS / 1000 + 10
HELLO_S = 2.0
# Between attempts to connect. A server that was restarted is used again within this time.
LONGEST_PAUSE_S = 0.25
# One SUBMIT: as many calls as a script does in a few milliseconds, as many bytes as pass quickly.
MOST_CALLS = 500
MOST_BYTES = 8_000_000
# Replies that were read are deleted when so many, or so large ones, have come together.
TRIM_EVERY = 200
TRIM_BYTES = 8_000_000
WATCH_MS = 50
# What a message in the reply stream is signed as.
_KINDS = {"r": "reply", "e": "event", "x": "refusal"}
# How long to wait before the next attempt while the server's memory is full: what is refused travels each time.
FULL_S, LONGEST_FULL_S = 0.2, 2.0
# Who waits for results one after the other takes the helm again so soon that the listener need not be woken between.
QUIET_S, QUIETLY_S = 0.005, 0.02
# How long it is waited for who has the helm just now, before the result is waited for.
HELM_S = 0.0005
# Between two looks of who steers, at whether he was interrupted.
STEER_S = 0.05
# What a thread sends itself when it makes a call; more is the listener's.
SENT_HERE_BYTES = 64_000


@dataclass(frozen=True, slots=True)
class _Asked:
    """A SUBMIT whose answer has not been read: the first `numbers` calls of the outbox, and these blobs."""

    numbers: int
    last: int
    blobs: frozenset[str]
    largest: int


class Helm:
    """The connections of one `Link`, and the thread that listens there. Parameters are those of `Link`."""

    def __init__(self, queue: str, address: Callable[[], Address], keys: Keys, seal: Seal) -> None:
        self.queue = queue
        self.client = secrets.token_hex(8)
        self.workers = 0  # registered on all hosts, as last heard
        self.failure: NbqueueError | None = None  # why the server cannot be used now
        self.refused = 0  # messages that came back and could not be trusted
        self.history = History()
        self._address = address
        self._keys = keys
        self._seal = seal
        self._lock = threading.Lock()  # guards _last, _outbox, _open, _inputs, _cancels, _awake, _blobs
        self._changed = threading.Condition(self._lock)
        self._outbox: deque[int] = deque()
        self._open: dict[int, OpenCall] = {}
        self._cancels: list[str] = []
        self._watched: list[Callable[[], bool]] = []
        self._unneeded: deque[str] = deque()
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self._awake = False
        self._closing = False
        self._closed = False
        self._thread: threading.Thread | None = None
        self._resume = threading.Event()  # the listener may take the helm again
        self._helm = threading.Lock()
        # Below: guarded by the helm.
        self._helmsman = 0  # the thread that has it, while it may call others
        self._steered_since = 0.0  # not by the listener; 0.0 when it is
        self._steered_at = 0.0
        self._turns = 0
        self._trouble: BaseException | None = None  # of who had the helm before: the listener sees to it
        self._asked: _Asked | None = None
        self._poller_here: select.poll | None = None  # of who steers
        self._polling = False  # the listener waits for the connections, and not for the helm
        self._listening = False  # the server was asked for the next replies
        self._here = False  # and they have come, with another answer
        self._heard = 0.0
        self._epoch = ""
        self._mark = 0
        self._cursor = b"0"
        self._untrimmed = 0
        self._untrimmed_bytes = 0
        self._full_s = 0.0  # the server refused calls because its memory is full: the pause before the next attempt
        self._send_at = 0.0
        self._suspect = 0  # bytes of the largest string that was on its way when the connection was lost
        self._sent_blobs: set[str] = set()
        self._steps: Broker | None = None
        self._replies: Broker | None = None
        self._said_hello = 0.0

    # Any thread

    def _send_here(self, opened: OpenCall) -> bool:
        """Send what was just submitted. False if somebody else is to do it."""
        if self._asked is not None:
            # It goes with what has come together when the answer is there, and whoever reads that looks here.
            return True
        if len(opened.call.payload) > SENT_HERE_BYTES:
            return False
        with Presses() as presses:
            sent = presses.masked and self._try_here(opened)
        presses.again()
        return sent

    def _try_here(self, opened: OpenCall) -> bool:
        if not self._helm.acquire(blocking=False):
            return False
        try:
            steps = self._steps
            if steps is None or not (self._epoch and steps.wire.connected) or self._trouble or self._cancels:
                return False
            unsent = sum(len(data) for digest, data in opened.blobs.items() if digest not in self._sent_blobs)
            if unsent > SENT_HERE_BYTES or time.monotonic() < self._send_at:
                return False
            self._send_calls(steps)
        except (NbqueueError, CommandError) as error:
            self._leave_trouble(error)
            return False
        else:
            return True
        finally:
            self._helm.release()

    def steer(self, ended: Callable[[], bool], until: float, interrupted: Callable[[], bool]) -> bool:
        """Do here what the listener does, until something has ended, the clock says `until`, or an interrupt.

        Only where no interrupt can be raised.

        Returns
        -------
        bool
            False if that cannot be done now: then wait.
        """
        if not self._helm.acquire(timeout=HELM_S):
            return False
        began = self._steered_since = time.monotonic()
        try:
            if self._trouble is not None or self._poller_here is None:
                return False
            while not (ended() or interrupted() or self._closing):
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._turn(self._poller_here, min(left, STEER_S))
            if self._polling:
                # It may have slept through what was read here, and waits for what nobody has asked for.
                self._listen()
        except BaseException as error:  # noqa: BLE001 - the listener tells of it, and connects again
            self._leave_trouble(error)
            return False
        finally:
            now = self._steered_at = time.monotonic()
            self._steered_since = 0.0
            self._helm.release()
            if now - began > QUIETLY_S:
                self._resume.set()
        return True

    def _leave_trouble(self, error: BaseException) -> None:
        self._trouble = error
        with self._lock:
            self._wake()
        self._resume.set()

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

    @property
    def _is_helmsman(self) -> bool:
        """Whether this thread is handing out what has arrived, and would wait for itself."""
        return self._helmsman == threading.get_ident() or threading.current_thread() is self._thread

    def _wake(self) -> None:
        # The lock is held.
        if not self._awake and not self._closed:
            self._awake = True
            try:
                os.write(self._wake_w, b"!")
            except BlockingIOError:
                # Full: it wakes anyway.
                pass

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="nbqueue-listener", daemon=True)
        self._thread.start()

    @staticmethod
    def _names(opened: OpenCall) -> list[str]:
        n = opened.call.n
        names = [str(n)]
        if opened.splits:
            names += [f"{n}.{item}" for item in range(opened.call.items)]
        return names

    # The listener

    def _run(self) -> None:
        pause = 0.01
        since: float | None = None
        while not self._closing:
            served: float | None = None
            try:
                with self._helm:
                    self._connect()
                served, self.failure = time.monotonic(), None
                self._serve()
            except (NbqueueError, CommandError) as error:
                self._disconnect()
                now = time.monotonic()
                # What the server refuses each time, it lets us connect before.
                if served is not None and (isinstance(error, ServerError) or now - served > 3.0):
                    pause, since = 0.01, None
                since = since or now
                passing = isinstance(error, ServerError | CommandError) and not isinstance(error, ServerRefused)
                if not passing or now - since > 3.0:
                    self.failure = error if isinstance(error, NbqueueError) else ServerError(str(error))
                time.sleep(pause)
                pause = min(LONGEST_PAUSE_S, pause * 2)
            except Exception as error:  # noqa: BLE001 - whatever others write into our keys must not end the thread
                self._disconnect()
                if self.failure is None:
                    sys.excepthook(*sys.exc_info())
                why = f"{type(error).__name__}: {error}"
                self.failure = ServerError(f"What the server says cannot be understood ({why}).")
                time.sleep(1.0)
        self._disconnect()

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

    def _disconnect(self) -> None:
        with self._helm:
            for broker in (self._steps, self._replies):
                if broker is not None:
                    broker.wire.close()
            self._poller_here, self._trouble, self._asked = None, None, None

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

    def _serve(self) -> None:
        with self._helm:
            # What was on its way when the last connection broke: nobody wakes us for it again.
            self._send_cancels()
            self._try_to_send()
            poller, self._poller_here = self._new_poller(), self._new_poller()
        while not self._closing:
            if self._trouble is not None:
                raise self._trouble
            if self._park():
                continue
            with self._helm:
                self._listen()
                turns = self._turns
                self._polling = True
            ready = self._poll(poller, BLOCK_MS / 1000)
            with self._helm:
                self._polling = False
                if turns == self._turns:
                    self._act(ready)

    def _new_poller(self) -> select.poll:
        assert self._steps is not None
        assert self._replies is not None
        poller = select.poll()
        for fd in (self._wake_r, self._steps.wire.fileno(), self._replies.wire.fileno()):
            poller.register(fd, select.POLLIN)
        return poller

    def _park(self) -> bool:
        """Leave the helm to others, and look again in a while. False when nobody needs it."""
        since, now = self._steered_since, time.monotonic()
        if not since and now - self._steered_at > QUIET_S:
            return False
        # Whoever has had it for longer says when he is done.
        self._resume.wait(QUIET_S if not since or now - since < QUIETLY_S else HELLO_S)
        self._resume.clear()
        return True

    def _turn(self, poller: select.poll, longest_s: float) -> None:
        """Wait for something to do, and do it. The helm is ours."""
        self._listen()
        self._act(self._poll(poller, longest_s))

    def _poll(self, poller: select.poll, longest_s: float) -> set[int]:
        if self._watched:
            longest_s = min(longest_s, WATCH_MS / 1000)
        elif self._full_s:
            longest_s = min(longest_s, FULL_S)
        # Rounded up: a wait that ends before its time would be one more turn.
        return {fd for fd, _ in poller.poll(0 if self._here else int(longest_s * 1000) + 1)}

    def _act(self, ready: set[int]) -> None:
        steps, replies = self._steps, self._replies
        assert steps is not None
        assert replies is not None
        self._turns += 1
        if self._wake_r in ready:
            with self._lock:
                os.read(self._wake_r, 64)
                self._awake = False
        if self._asked is not None and steps.wire.fileno() in ready:
            self._settle()
        if self._here or replies.wire.fileno() in ready:
            answer = replies.wire.receive()
            self._here = self._listening = False
            self._heard = time.monotonic()
            self._dispatch(replies.parse_replies(answer))
        elif self._listening and time.monotonic() - self._heard > REPLY_TIMEOUT_S:
            # The other connection may live on, so that nothing else would tell.
            raise ServerUnreachable(f"{replies.wire.address} has fallen silent.")
        if self._watched:
            self._look_after()
        self._send_cancels()
        self._try_to_send()
        if self._unneeded:
            self._let_go()
        claims.let_go()
        if time.monotonic() - self._said_hello > HELLO_S:
            claims.sweep(self.client, self._open.__contains__)
            self._settle()
            self._say_hello(steps)

    def _look_after(self) -> None:
        with self._lock:
            watched, self._watched = self._watched, []
        kept = [check for check in watched if check()]
        with self._lock:
            self._watched += kept

    def _listen(self) -> None:
        """Ask for the next replies, unless that has been done."""
        if self._listening:
            return
        replies = self._replies
        assert replies is not None
        read = replies.read_replies_command(self.client, self._cursor, block_ms=BLOCK_MS)
        much = self._untrimmed >= TRIM_EVERY or self._untrimmed_bytes >= TRIM_BYTES
        idle = not self._open and not self._steered_since
        self._listening, self._heard = True, time.monotonic()
        if not (much or (idle and self._untrimmed)):
            replies.wire.send(read)
            return
        self._untrimmed = self._untrimmed_bytes = 0
        replies.wire.send(replies.trim_replies_command(self.client, self._cursor), read)
        replies.wire.receive()
        # They may have come together with that answer, so that no poll tells.
        self._here = replies.wire.ready()

    def _try_to_send(self) -> None:
        """Send calls; where the server's memory is full they wait, and what runs there can still end."""
        if (self._outbox or self._full_s) and self._asked is None and time.monotonic() >= self._send_at:
            assert self._steps is not None
            self._send_calls(self._steps)
            if self._asked is None:
                self._not_full()

    def _send_calls(self, steps: Broker) -> None:
        """Send what has come together; `_settle` reads the answer."""
        while self._outbox and self._asked is None:
            calls: list[Call] = []
            blobs: dict[str, bytes] = {}
            size = 0
            with self._lock:
                taken = 0
                for n in self._outbox:
                    if taken >= MOST_CALLS or size > MOST_BYTES:
                        break
                    taken += 1
                    opened = self._open.get(n)
                    if opened is None:
                        # Cancelled, or ended, before it left.
                        continue
                    first = opened.sink.first_open(opened)
                    call = opened.call if not first else opened.call._replace(first=first)
                    if opened.node is not None:
                        call = call._replace(needs=graph.needs(opened, self._open))
                    calls.append(call)
                    size += len(opened.call.payload)
                    for digest, data in opened.blobs.items():
                        if digest not in self._sent_blobs and digest not in blobs:
                            blobs[digest] = data
                            size += len(data)
                last = self._outbox[taken - 1]
            if not calls:
                self._taken(taken, last)
                continue
            # A large one goes alone: a server takes one gigabyte in one command at most.
            large = next((digest for digest, data in blobs.items() if len(data) > MOST_BYTES), None)
            if large is not None and len(blobs) > 1:
                calls, blobs, taken = [], {large: blobs[large]}, 0
            largest = max(map(len, [*blobs.values(), *(call.payload for call in calls)]))
            self._asked = _Asked(taken, last, frozenset(blobs), largest)
            with self._suspecting(largest):
                steps.wire.send(steps.submit_command(self.client, self._epoch, calls, blobs))

    @contextmanager
    def _suspecting(self, largest: int) -> Iterator[None]:
        try:
            yield
        except (ServerError, CommandError) as error:
            if may_be_too_large(error):
                self._suspect = largest if largest > LOWEST_LIMIT_BYTES else 0
            raise

    def _settle(self) -> None:
        """Read the answer to what was sent, if there is one to come."""
        asked, steps = self._asked, self._steps
        if asked is None:
            return
        assert steps is not None
        try:
            with self._suspecting(asked.largest):
                answer = steps.parse_submit(steps.wire.receive())
        except ForgotScripts as error:
            raise ServerError("the server forgot its scripts") from error
        except CommandError as error:
            if not is_out_of_memory(error):
                raise
            self._asked = None
            self._full_s = min(LONGEST_FULL_S, self._full_s * 2 or FULL_S)
            self._send_at = time.monotonic() + self._full_s
            self.failure = ServerError(
                "The server's memory is full (maxmemory). Calls wait until results have been taken, or until it is "
                "given more."
            )
            return
        self._asked = None
        self._not_full()
        if isinstance(answer, OtherEpoch):
            self._say_hello(steps)
        elif isinstance(answer, Ended):
            self._catch_up(steps, answer)
        elif isinstance(answer, NeedBlobs):
            self._sent_blobs -= set(answer.digests)
        else:
            self._sent_blobs |= asked.blobs
            if len(self._sent_blobs) > 10_000:
                self._sent_blobs.clear()
            self.workers = answer.workers
            if asked.numbers:
                self._taken(asked.numbers, asked.last)

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
        with self._changed:
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
            name = messages.load_call(body_of(opened.call.payload)).name
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
            number, _, split = incoming.n.partition(".")
            with self._lock:
                opened = self._open.get(int(number))
            shift = int(split) if split else 0
            try:
                kind = _KINDS.get(incoming.kind, "foreign")
                data = self._seal.open(kind, call_id(self.client, incoming.n), incoming.message)
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
                    # Before anybody can hear of it, and look.
                    self.history.note(opened, body.first + shift, body)
                    ended = opened.sink.on_reply(opened, body.first + shift, body)
            except BaseException as error:  # noqa: BLE001 - a bad reply or callback must not stop all others
                sys.excepthook(*sys.exc_info())
                body = None
                ended = self._end_broken(opened, shift, BadMessage(f"A reply could not be read: {error!r}"))
            if ended and opened.node is not None:
                self._over(opened, incoming.message, body)
            elif ended:
                with self._changed:
                    self._open.pop(opened.call.n, None)
                    if not self._open:
                        self._changed.notify_all()

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
