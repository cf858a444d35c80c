"""Who talks to Redis for a queue, and when.

::

    any thread   submit ─▶ outbox ─┐            ┌─▶ sink: a future or a batch
                                   ▼            │
    helm        `outgoing`: SUBMIT (many)   `ends`: replies (many)

One thread at a time has the helm, and with it the connections: the listener, which is there from the first call on,
or a thread that waits for a result and has nothing better to do (`Link.steer`), which saves two changes of threads a
call. A lone call leaves in the thread that makes it; calls made while its answer is on the way leave together after.

Always true here: on every (re)connect, and every 0.8 seconds while calls are open, epoch and mark are compared. Who has
the helm never waits for a view, and never runs a user's code except the callbacks of futures; no interrupt strikes
there.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from abc import abstractmethod
from collections.abc import Callable

from nbqueue.client.sending import claims
from nbqueue.client.sending.calls import OpenCall
from nbqueue.client.sending.outgoing import FULL_S, Outgoing
from nbqueue.client.sending.presses import Presses
from nbqueue.codec.seal import Seal
from nbqueue.errors import NbqueueError, ServerError, ServerRefused
from nbqueue.stream.broker import BLOCK_MS
from nbqueue.stream.connect import Address, CommandError
from nbqueue.stream.keys import Keys

__all__ = ["Helm"]

# Nothing else tells of a server that lives and was emptied. Its calls run again within a second.
HELLO_S = 0.8
# Between attempts to connect. A server that was restarted is used again within this time.
LONGEST_PAUSE_S = 0.25
WATCH_MS = 50
# Who waits for results one after the other takes the helm again so soon that the listener need not be woken between.
QUIET_S, QUIETLY_S = 0.005, 0.02
# How long it is waited for who has the helm just now, before the result is waited for.
HELM_S = 0.0005
# Between two looks of who steers, at whether he was interrupted.
STEER_S = 0.05
# Who waits for one call and nothing else does not sleep so long, if the one before was brief: to be woken takes a
# fifth of a lone call's time.
SPIN_S = 0.0003
# What a thread sends itself when it makes a call; more is the listener's.
SENT_HERE_BYTES = 64_000
# Where there is one core only, it would be taken from who does the work.
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_SPINS = _CORES > 1 and hasattr(os, "sched_yield")


class Helm(Outgoing):
    """The base of `Link`, whose parameters it has: whose turn it is, and the thread that listens when nobody waits."""

    def __init__(self, queue: str, address: Callable[[], Address], keys: Keys, seal: Seal) -> None:
        super().__init__(queue, address, keys, seal)
        self._watched: list[Callable[[], bool]] = []
        self._closing = False
        self.lost: NbqueueError | None = None  # why there is no server any more
        self._thread: threading.Thread | None = None
        self._resume = threading.Event()  # the listener may take the helm again
        self._helm = threading.Lock()
        # Below: guarded by the helm.
        self._steered_since = 0.0  # not by the listener; 0.0 when it is
        self._steered_at = 0.0
        self._turns = 0
        self._trouble: BaseException | None = None  # of who had the helm before: the listener sees to it
        self._poller_here: select.poll | None = None  # of who steers
        self._brief = False  # what was waited for last came at once
        self._polling = False  # the listener waits for the connections, and not for the helm
        self._steps_fd = self._replies_fd = -1

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
        if not self._helm.acquire(False):
            return False
        try:
            steps = self._steps
            if steps is None or not (self._epoch and steps.wire.connected) or self._trouble or self._cancels:
                return False
            if not opened.blobs.keys() <= self._sent_blobs:
                unsent = sum(len(data) for digest, data in opened.blobs.items() if digest not in self._sent_blobs)
                if unsent > SENT_HERE_BYTES:
                    return False
            if self._full_s and time.monotonic() < self._send_at:
                return False
            # One write instead of two, where nobody listens yet: as a rule, who makes a lone call waits for it.
            alone = not (self._listening or self._much_untrimmed)
            self._send_calls(steps, self._replies if alone else None)
        except (NbqueueError, CommandError) as error:
            self._leave_trouble(error)
            return False
        else:
            return True
        finally:
            self._helm.release()

    def steer(self, ended: Callable[[], bool], until: float, presses: Presses) -> bool:
        """Do here what the listener does, until something has ended, the clock says `until`, or an interrupt.

        Only where no interrupt can be raised, as within `presses`, which count it.

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
            waits = False
            while not (presses.number or ended() or self._closing):
                now = time.monotonic()
                left = until - now
                if left <= 0:
                    break
                if waits := self._has_to_wait(now):
                    break
                spins = self._brief and len(self._open) == 1
                self._turn(self._poller_here, min(left, STEER_S), began + SPIN_S if spins else 0.0)
            if self._polling:
                # It may have slept through what was read here, and waits for what nobody has asked for.
                self._listen(idle=False)
            if waits:
                with self._lock:
                    self._wake()
                self._resume.set()
                return False
        except Exception as error:  # noqa: BLE001 - the listener tells of it, and connects again
            self._leave_trouble(error)
            return False
        except BaseException:
            # What somebody raises in other threads, as a debugger does: it is for the one who waits.
            self._leave_trouble(ServerError("the exchange with the server was cut off"))
            raise
        finally:
            now = self._steered_at = time.monotonic()
            self._steered_since = 0.0
            self._brief = _SPINS and now - began < 2 * SPIN_S
            self._helm.release()
            if now - began > QUIETLY_S:
                self._resume.set()
        return True

    def _leave_trouble(self, error: BaseException) -> None:
        self._trouble = error
        with self._lock:
            self._wake()
        self._resume.set()

    @property
    def _is_helmsman(self) -> bool:
        """Whether this thread is handing out what has arrived, and would wait for itself."""
        ident = threading.get_ident()
        return ident == self._helmsman or (self._thread is not None and ident == self._thread.ident)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="nbqueue-listener", daemon=True)
        self._thread.start()

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
                if (lost := self.lost) is not None:
                    self._break_all(lost)
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

    @abstractmethod
    def _break_all(self, error: NbqueueError) -> None:
        """End every open call with an error, and all that was to be sent. Only while there is no connection."""

    def _disconnect(self) -> None:
        with self._helm:
            for broker in (self._steps, self._replies):
                if broker is not None:
                    broker.wire.close()
            self._poller_here, self._trouble, self._asked = None, None, None

    def _serve(self) -> None:
        with self._helm:
            # What was on its way when the last connection broke: nobody wakes us for it again.
            self._send_cancels()
            self._try_to_send()
            assert self._steps is not None
            assert self._replies is not None
            self._steps_fd, self._replies_fd = self._steps.wire.fileno(), self._replies.wire.fileno()
            poller, self._poller_here = self._new_poller(), self._new_poller()
        while not self._closing:
            if self._trouble is not None:
                raise self._trouble
            if self._park():
                continue
            with self._helm:
                self._listen(idle=not self._open and not self._steered_since)
                turns = self._turns
                self._polling = True
            ready = self._poll(poller, BLOCK_MS / 1000)
            with self._helm:
                self._polling = False
                if turns == self._turns:
                    self._act(ready)

    def _new_poller(self) -> select.poll:
        poller = select.poll()
        for fd in (self._wake_r, self._steps_fd, self._replies_fd):
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

    def _turn(self, poller: select.poll, longest_s: float, spin_until: float) -> None:
        """Wait for something to do, and do it. The helm is ours."""
        if not self._listening:
            self._listen(idle=False)
        self._act(self._poll(poller, longest_s, spin_until))

    def _poll(self, poller: select.poll, longest_s: float, spin_until: float = 0.0) -> set[int]:
        while spin_until and time.monotonic() < spin_until and not self._here:
            if ready := poller.poll(0):
                return {fd for fd, _ in ready}
            os.sched_yield()
        if self._watched:
            longest_s = min(longest_s, WATCH_MS / 1000)
        elif self._full_s:
            longest_s = min(longest_s, FULL_S)
        elif self._open:
            longest_s = min(longest_s, HELLO_S)
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
        arrived = self._replies_fd in ready
        asked = self._asked
        if asked is not None:
            if asked.wire is replies.wire:
                if arrived:
                    # It comes first. Whether replies have come as well, it says.
                    self._settle()
                    arrived = False
            elif self._steps_fd in ready:
                self._settle()
        now = time.monotonic()
        if self._here or arrived:
            self._hear()
        else:
            self._check_silence(now)
        if self._watched:
            self._look_after()
        # Whoever adds to one of these wakes us: it is not overlooked.
        waits = not self._steered_since and self._has_to_wait(now)
        if waits and self._cancels:
            self._send_cancels()
        if self._outbox or self._full_s:
            self._try_to_send()
        claims.let_go()
        if waits and self._unneeded:
            self._let_go()
        if waits and now - self._said_hello > HELLO_S:
            claims.sweep(self.client, self._open.__contains__)
            self._settle()
            self._say_hello(steps)

    def _has_to_wait(self, now: float) -> bool:
        """Whether there is something to do for which an answer is waited for at once. Where a network stalls that takes
        long, and who steers could not be interrupted: it is the listener's."""
        return bool(self._cancels or self._unneeded) or now - self._said_hello > HELLO_S

    def _look_after(self) -> None:
        with self._lock:
            watched, self._watched = self._watched, []
        kept = [check for check in watched if check()]
        with self._lock:
            self._watched += kept
