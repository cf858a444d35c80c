"""One queue's workers on this host, and what must be said to Redis for them.

The supervisor's loop calls `tick` ten times a second, twice while the pool is `quiet`, and at once when something has
happened. Redis may be away at any time: what must be told it waits in a list, and everything told is safe to repeat.
"""

from __future__ import annotations

import os
import pickle
import secrets
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from nbqueue.codec import messages
from nbqueue.codec.messages import ERROR, Printed, ReplyBody, call_id
from nbqueue.codec.seal import Seal
from nbqueue.errors import ServerError
from nbqueue.stream.broker import BLOCK_MS, Beat, Broker, Forgot
from nbqueue.stream.connect import Address, CommandError, Wire, explaining
from nbqueue.stream.keys import Keys
from nbqueue.stream.records import Charge, HostState, RunningTask, WorkerLimits, WorkerState
from nbqueue.worker import board
from nbqueue.worker.attempt import CRASH_CAP, SPAWNER_CRASH_CAP, Exit, death
from nbqueue.worker.board import Line, Slot, place_of
from nbqueue.worker.coroutines.watch import Several
from nbqueue.worker.memory import resident_bytes
from nbqueue.worker.spawn import Spawner, end_group
from nbqueue.worker.supplies import WorkerSpec
from nbqueue.worker.telling.output import Outlet
from nbqueue.worker.telling.recorder import Recorder

__all__ = ["Member", "Pool", "PoolSpec"]

BEAT_S = 2.0
# Several beats: one may be late while the machine is busy, and a wrong verdict costs a host its pool.
LEASE_S = 12.0
# Redis must not hold up the supervisor's loop, in which the kernel's death is noticed.
STEP_TIMEOUT_S = 2.0
RECONNECT_S = 0.25
# Longer than BLOCK_MS: an inbox that is silent for longer has a dead connection.
INBOX_TIMEOUT_S = BLOCK_MS / 1000 + 10
# How long an interrupted task has to end by itself.
GRACE_S = 0.5
# A worker holds 64 entries at most; the others in its pending list are finished and on their way out.
CANCELS_KEPT = 1000
# A task that runs this long is shown as running.
ANNOUNCE_S = 0.2
# Of the calls that one worker runs at a time, so many are shown.
MOST_SHOWN = 32
# A worker that uses more than this share of its memory limit is replaced between two calls.
MUCH_MEMORY = 0.8
# Substitutes for workers that wait for a task of their own stay this long after they were last needed.
LINGER_S = 1.0
MOST_SUBSTITUTES = 256


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """What a pool is made of; `environ` is set in its workers. With `echo`, what they print goes to the outlets,
    too; where a notebook shows it, only what belongs to no call does."""

    id: str
    queue: str
    prefix: str
    address: dict[str, Any] = field(repr=False)  # with its password
    secret: str = field(repr=False)
    size: int
    environ: dict[str, str]
    limits: WorkerLimits
    echo: bool = True
    alone: bool = False  # nobody else can write to the server


@dataclass(slots=True)
class Member:
    """One worker process, from its order to its death."""

    index: int
    slot: Slot
    consumer: str
    recorder: Recorder
    substitute: bool = False  # started while the pool stops, for calls that others wait for
    pid: int = 0
    stopping: bool = False
    old: bool = False  # to leave as soon as its item has ended, and to be replaced if it is needed
    blameless: bool = False  # killed by us: what it ran is not charged
    orphaned: bool = False  # died with the spawner
    overdue_s: float | None = None  # killed for this time limit
    over_bytes: int = 0  # killed for using so much memory
    kill_at: float | None = None
    aimed: tuple[str, int] | None = None
    announced: tuple[str, int] | None = None
    several: Several = field(default_factory=Several)
    # Entries cancelled before they ran here: on their way to the worker, or fetched ahead by it.
    cancelled: deque[str] = field(default_factory=lambda: deque(maxlen=CANCELS_KEPT))

    def quiet(self, now_ns: int) -> bool:
        """Whether nothing is to be done about it: it is idle, or runs what is too short to be talked about."""
        if self.stopping or self.old:
            return False
        if self.slot.state() == board.IDLE:
            return True
        return not (self.kill_at or self.cancelled) and self.slot.just_began(now_ns, ANNOUNCE_S)


class Pool:
    """The workers of one queue on this host.

    Parameters
    ----------
    spec : PoolSpec
    spawner : Spawner
    take_slot, free_slot : callable
        Lend and take back lines of the board.
    outlets
        Where workers' stdout and stderr go.
    """

    def __init__(
        self,
        spec: PoolSpec,
        spawner: Spawner,
        take_slot: Callable[[], tuple[int, Slot]],
        free_slot: Callable[[int], None],
        outlets: tuple[Outlet, Outlet],
    ) -> None:
        self.spec = spec
        self.size = spec.size
        self.limits = spec.limits
        self.stopping = False
        self.closed = False
        self.trouble = ""  # why the server cannot be used now
        self.troubled_since = 0.0
        self.members: dict[str, Member] = {}
        self._spawner = spawner
        self._take_slot = take_slot
        self._free_slot = free_slot
        self._outlets = outlets
        self._seal = Seal(bytes.fromhex(spec.secret), spec.prefix)
        self._serial = 0
        self._host = ""
        self._epoch = ""
        address, keys = Address.from_dict(spec.address), Keys(spec.prefix)
        self._broker = Broker(Wire(address, timeout_s=STEP_TIMEOUT_S), keys)
        self._inbox = Broker(Wire(address, timeout_s=INBOX_TIMEOUT_S), keys)
        self._inbox_cursor = b"0"
        self._inbox_heard = 0.0
        self._retry_at = 0.0
        self._beat_at = 0.0
        self._unblock_at = 0.0
        self._surplus_since: float | None = None
        self._warned = False
        self._early_deaths = 0
        self._start_at = 0.0
        self._to_reclaim: list[tuple[str, list[Charge]]] = []
        self._others: dict[str, tuple[int, float]] = {}
        self._new_host()

    def _new_host(self) -> None:
        self._host = secrets.token_hex(6)
        self._epoch = ""
        self._inbox_cursor = b"0"

    # What the supervisor's loop calls

    def fileno(self) -> int | None:
        """The inbox's connection, to wake the loop; None while there is none."""
        return self._inbox.wire.fileno() if self._inbox.wire.connected else None

    def change(self, size: int, limits: WorkerLimits) -> None:
        """Have `size` workers from now on: of those that are too many, the idle leave first, the others after the item
        that they run. Limits count at once; that of items, for new workers."""
        self.size = size
        self.limits = limits
        self.stopping = False
        self._beat_at = 0.0
        active = [member for member in self.members.values() if not member.stopping]
        free = sorted((m for m in active if not _waits(m)), key=lambda m: m.slot.state() != board.IDLE)
        # Those that wait have others in their places.
        for member in free[: max(0, len(free) - size)]:
            member.old = True
        self._replace_old()

    def renew(self) -> None:
        """Replace every worker that is there now, each as soon as it is idle."""
        for member in self.members.values():
            member.old = True

    @property
    def renewing(self) -> bool:
        """Whether there are workers from before `renew`."""
        return any(member.old for member in self.members.values())

    def _replace_old(self) -> None:
        for member in self.members.values():
            if not member.old or member.stopping:
                continue
            if member.slot.state() == board.IDLE:
                member.stopping = True
                member.slot.ask_to_stop()
            else:
                member.slot.ask_to_leave()

    def stop(self) -> None:
        """Let running calls finish and idle workers fetch once more; then the pool is closed."""
        self.stopping = True

    def hurry(self) -> None:
        """Something happened that the server should hear of (a retry was parked, a worker waits)."""
        self._beat_at = 0.0

    def quiet(self, now: float) -> bool:
        """Whether there is nothing to do until something happens or what a worker runs has taken some time."""
        if self.stopping or self.limits.memory_bytes or len(self.members) != self.size:
            return False
        if not (self._epoch and self._reachable() and self._inbox.wire.connected):
            return False
        if self._to_reclaim or now >= self._beat_at:
            return False
        now_ns = time.monotonic_ns()
        return all(member.quiet(now_ns) for member in self.members.values())

    def tick(self, now: float) -> None:
        self._watch(now)
        if self.limits.memory_bytes:
            self._watch_memory(self.limits.memory_bytes)
        self._pass_on_output()
        self._replace_old()
        self._staff(now)
        if now >= self._retry_at:
            try:
                with explaining(self._broker.wire.address):
                    self._talk(now)
                self.trouble = ""
            except ServerError as error:
                if not self.trouble:
                    self.troubled_since = now
                self.trouble = str(error)
                self._broker.wire.close()
                self._inbox.wire.close()
                self._retry_at = time.monotonic() + RECONNECT_S
        if self.stopping and not self.members and not self.closed and (not self._to_reclaim or not self._reachable()):
            self.close()

    def kill(self) -> None:
        """End every worker now; nobody is charged."""
        for member in self.members.values():
            member.blameless = True
            self._signal(member, signal.SIGKILL)

    def close(self) -> None:
        """Take leave of the server. Workers must have ended."""
        self.closed = True
        try:
            if self._broker.wire.connected and self._epoch:
                self._broker.leave(self._host)
        except (ServerError, CommandError):
            # Whoever beats next sweeps up after us.
            pass
        self._broker.wire.close()
        self._inbox.wire.close()

    def state(self) -> HostState:
        workers = []
        now = time.monotonic_ns()
        for member in self.members.values():
            line = member.slot.read()
            if line is None:
                continue
            lines = [line] if line.running else []
            if member.slot.runs_several():
                lines = sorted((one for _, one in member.slot.beside()), key=lambda one: one.started_ns)
            tasks = [_running(one, now) for one in lines[:MOST_SHOWN]]
            state, used_bytes = board.STATE_NAMES[line.state], resident_bytes(member.pid)
            task = tasks[0] if tasks else None
            workers.append(WorkerState(member.index, member.pid, state, task, used_bytes, tuple(tasks[1:])))
        return HostState(self._host, socket.gethostname(), os.getpid(), tuple(workers), machine())

    # Births and deaths

    def _staff(self, now: float) -> None:
        if self.stopping:
            self._wind_down(now)
            self._unblock_stopping(now)
            return
        active = [m for m in self.members.values() if not m.stopping]
        waiting = sum(_waits(m) for m in active)
        if waiting >= MOST_SUBSTITUTES and not self._warned:
            self._warned = True
            sys.stderr.write(
                f"nbqueue: {waiting} workers of the queue {self.spec.queue!r} wait for calls of their own, and no more "
                "are started. If nothing moves, cancel. A task that calls itself without .submit runs in place.\n"
            )
        wanted = self.size + min(waiting, MOST_SUBSTITUTES)
        if len(active) < wanted:
            self._surplus_since = None
            if now >= self._start_at:
                for _ in range(wanted - len(active)):
                    self._start_worker()
                self._beat_at = 0.0
        elif len(active) > wanted:
            if self._surplus_since is None:
                self._surplus_since = now
            if now - self._surplus_since > LINGER_S:
                idle = [m for m in active if m.slot.state() == board.IDLE]
                for member in idle[: len(active) - wanted]:
                    member.stopping = True
                    member.slot.ask_to_stop()
        else:
            self._surplus_since = None
        self._unblock_stopping(now)

    def _wind_down(self, now: float) -> None:
        """Let all go; but as long as one waits for a call of its own there is another that may run it."""
        waiting = [m for m in self.members.values() if _waits(m)]
        for member in self.members.values():
            if not waiting or not member.substitute:
                member.stopping = True
                member.slot.ask_to_stop()
        free = [m for m in self.members.values() if not m.stopping and m not in waiting]
        if waiting and not free and now >= self._start_at:
            self._start_worker(substitute=True)

    def _start_worker(self, *, substitute: bool = False) -> None:
        index, slot = self._take_slot()
        slot.clear()
        self._serial += 1
        consumer = f"{self._host}:{index}:{self._serial}"
        recorder = Recorder(self._outlets, echo=self.spec.echo)
        self.members[consumer] = Member(index, slot, consumer, recorder, substitute)
        spec = self.spec
        order = WorkerSpec(
            *(index, consumer, spec.queue, spec.prefix, spec.address, spec.secret, spec.environ),
            max_tasks=self.limits.tasks,
            alone=spec.alone,
            echo=spec.echo,
        )
        try:
            self._spawner.start(order, recorder.fds)
        except EOFError:
            # The spawner has just died. The supervisor is about to hear of it, and calls `all_died`.
            return

    def _unblock_stopping(self, now: float) -> None:
        """Workers that are to stop may sit in a blocking read; it is ended for them, until they have noticed."""
        if now < self._unblock_at or not self._broker.wire.connected:
            return
        self._unblock_at = now + 0.02
        try:
            for member in self.members.values():
                line = member.slot.read() if member.stopping and member.slot.state() == board.IDLE else None
                if line is not None and line.redis_id:
                    self._broker.unblock(line.redis_id)
        except (ServerError, CommandError):
            # They will see it when their read ends, BLOCK_MS later at most.
            self._unblock_at = now + 1.0

    def born(self, consumer: str, pid: int) -> None:
        member = self.members.get(consumer)
        if member is not None:
            member.pid = pid
            if member.blameless:
                self._signal(member, signal.SIGKILL)

    def died(self, member: Member, exit: Exit) -> None:
        """A worker process has ended: charge what it was running, take back the rest, make room."""
        line = member.slot.read()
        charges = [] if member.blameless else self._charges(member, line, exit)
        member.recorder.pass_on(member.slot, ended=True)
        member.recorder.close()
        del self.members[member.consumer]
        member.slot.clear()
        self._free_slot(member.index)
        self._to_reclaim.append((member.consumer, charges))
        now = time.monotonic()
        if not member.stopping and (line is None or line.state in (board.OFF, board.STARTING)):
            # It never got to work: do not spin.
            self._early_deaths += 1
            self._start_at = now + min(5.0, 0.1 * 2 ** min(6, self._early_deaths))
        else:
            self._early_deaths = 0
        # A read that the dead worker had sent may still be answered; the sweep of the next beat finds it.
        self._beat_at = min(self._beat_at, now + 0.2)

    def use(self, spawner: Spawner) -> None:
        """From now on, start workers through this one."""
        self._spawner = spawner

    def all_died(self) -> None:
        """The spawner died and took every worker with it."""
        for member in list(self.members.values()):
            member.orphaned = True
            if member.pid:
                end_group(member.pid)
            self.died(member, Exit(signal.SIGKILL, None, None))

    def _pass_on_output(self) -> None:
        for member in self.members.values():
            member.recorder.pass_on(member.slot)

    def _charges(self, member: Member, line: Line | None, exit: Exit) -> list[Charge]:
        """What a worker was running when it died; of several, all, unless some were its death for sure."""
        if member.slot.runs_several():
            overdue = member.several.overdue
            blamed = overdue.keys() or member.several.suspects
            lines = [one for _, one in member.slot.beside() if not blamed or one.entry in blamed]
            return [self._charge(member, one, exit, overdue.get(one.entry)) for one in lines]
        if line is None or not line.running:
            return []
        # If it runs once more, nothing else tells what it printed until now.
        self._tell_output(member, line, ended=True)
        return [self._charge(member, line, exit, member.overdue_s, member.recorder.printed(line))]

    def _charge(
        self, member: Member, line: Line, exit: Exit, overdue_s: float | None, printed: tuple[Printed, ...] = ()
    ) -> Charge:
        cap = SPAWNER_CRASH_CAP if member.orphaned else CRASH_CAP
        if overdue_s is not None:
            cap = -1
        return Charge(line.entry, line.item, cap, self._death_notice(member, line, exit, overdue_s, printed))

    def _death_notice(
        self, member: Member, line: Line, exit: Exit, overdue_s: float | None, printed: tuple[Printed, ...]
    ) -> bytes:
        error = death(
            line.name,
            exit,
            attempts=line.attempt,
            timeout_s=overdue_s,
            over=(member.over_bytes, self.limits.memory_bytes) if member.over_bytes else None,
            last_output=member.recorder.last_lines(line),
        )
        seconds = (time.monotonic_ns() - line.started_ns) / 1e9
        body = ReplyBody(
            first=line.item,
            items=1,
            kinds=bytes([ERROR]),
            packed=b"",
            frames=(pickle.dumps(error),),
            worker=member.consumer,
            attempt=line.attempt,
            started=time.time() - seconds,
            seconds=seconds,
            printed=printed,
        )
        return self._seal.close("reply", call_id(line.client, line.n), messages.dump_reply(body))

    # Time limits, cancels, news of what runs

    def _watch(self, now: float) -> None:
        now_ns = time.monotonic_ns()
        for member in self.members.values():
            if member.kill_at is not None and now >= member.kill_at:
                self._finish_off(member)
                continue
            if member.slot.runs_several():
                member.several.look(member.slot, member.cancelled, _Hands(self, member), now, GRACE_S, ANNOUNCE_S)
                continue
            if member.slot.state() not in (board.BUSY, board.WAITING):
                continue
            line = member.slot.read()
            if line is None or not line.running:
                continue
            age_s = (now_ns - line.started_ns) / 1e9
            if member.cancelled and line.entry in member.cancelled and member.aimed != (line.entry, -1):
                self._interrupt(member, line.entry, -1, board.CANCEL, now)
                continue
            if line.timeout_ms and age_s * 1000 > line.timeout_ms and member.aimed != (line.entry, line.item):
                self._interrupt(member, line.entry, line.item, board.TIMEOUT, now)
            if age_s > ANNOUNCE_S:
                if self._reachable() and member.announced != (line.entry, line.item):
                    member.announced = (line.entry, line.item)
                    self._tell_started(member, line)
                    self._take_back(member, line)
                self._tell_output(member, line)

    def _watch_memory(self, limit_bytes: int) -> None:
        """Kill a worker that uses too much while it runs a task, and replace one that keeps much for itself."""
        for member in self.members.values():
            used_bytes = own_memory(member.pid) if member.pid and not member.blameless else 0
            if used_bytes <= limit_bytes * MUCH_MEMORY:
                continue
            if member.slot.state() == board.IDLE:
                member.stopping = True
                member.slot.ask_to_stop()
            elif used_bytes <= limit_bytes:
                member.slot.ask_to_leave()
            else:
                member.over_bytes = used_bytes
                self._signal(member, signal.SIGKILL)

    def _interrupt(self, member: Member, entry: str, item: int, why: int, now: float) -> None:
        member.aimed = (entry, item)
        member.kill_at = now + GRACE_S
        member.slot.aim(entry, item, why)
        self._signal(member, signal.SIGINT)

    def _finish_off(self, member: Member) -> None:
        """The grace of an interrupted task is over: is it still the same one?"""
        member.kill_at = None
        line = member.slot.read()
        if line is None or not line.running or member.aimed is None or line.entry != member.aimed[0]:
            return
        if member.aimed[1] < 0:
            member.blameless = True
        elif line.item == member.aimed[1]:
            member.overdue_s = line.timeout_ms / 1000
        else:
            return
        self._signal(member, signal.SIGKILL)

    def _take_back(self, member: Member, line: Line) -> None:
        """Give back what waits behind an item that runs for long. A worker does so itself, unless the item holds the
        interpreter."""
        if self.stopping or member.stopping:
            return
        try:
            # What comes before is finished, and its report on the way.
            here = place_of(line.entry)
            waiting = [entry for entry in self._broker.pending(member.consumer) if place_of(entry) > here]
            bundle, _, n = line.entry.partition("+")
            if n:
                # And what is behind it in its bundle.
                waiting.insert(0, f"{bundle}+{int(n) + 1}")
            if not waiting:
                return
            member.slot.take_back()
            now = member.slot.read()
            if now is not None and now.running and (now.entry, now.item) == (line.entry, line.item):
                self._broker.release(member.consumer, waiting)
        except (ServerError, CommandError):
            # They stay where they are, and are looked at when the worker's next item runs for long.
            return

    def _tell_output(self, member: Member, line: Line, *, ended: bool = False) -> None:
        if self._reachable():
            for event in member.recorder.news(member.slot, line, time.monotonic(), ended=ended):
                self._announce(line, **event)

    def _tell_started(self, member: Member, line: Line) -> None:
        self._announce(line, kind="started", item=line.item, worker=member.consumer, attempt=line.attempt)

    def _announce(self, line: Line, **event: Any) -> None:
        """News only: what cannot be told now is not told, and output goes with the reply, too."""
        id = call_id(line.client, line.n)
        try:
            message = self._seal.close("event", id, messages.dump_event(**event))
            self._broker.announce(line.client, line.n, line.entry, message)
        except (ServerError, CommandError):
            return

    def _signal(self, member: Member, signum: int) -> None:
        if member.pid:
            try:
                os.kill(member.pid, signum)
            except ProcessLookupError:
                # It has just ended; its death is on the way to us.
                pass

    # Talking to Redis

    def _reachable(self) -> bool:
        return self._broker.wire.connected

    def _talk(self, now: float) -> None:
        broker = self._broker
        if not broker.wire.connected:
            broker.connect()
            self._beat_at = 0.0
        if not self._epoch:
            self._register()
        while self._to_reclaim:
            consumer, charges = self._to_reclaim[0]
            broker.reclaim(consumer, *charges)
            self._to_reclaim.pop(0)
        self._read_inbox()
        if now >= self._beat_at:
            self._beat(now)

    def _register(self) -> None:
        self._epoch = self._broker.register(self._host, self._offered(), self.state(), secrets.token_hex(8))
        self._bury_neighbours()

    def _bury_neighbours(self) -> None:
        """Reap hosts of this very machine whose supervisor is dead for sure: no need to watch them for a lease."""
        here = machine()
        dead = {s.host for s in self._broker.hosts() if here and s.machine == here and not _alive(s.pid)}
        if not dead:
            return
        for host, counter in self._broker.counters().items():
            if host in dead:
                self._broker.reap(host, counter)
        self._beat_at = 0.0

    def _offered(self) -> int:
        return 0 if self.stopping else self.size

    def _beat(self, now: float) -> None:
        living = list(self.members)
        answer = self._broker.beat(self._host, self._offered(), self.state(), living, self._epoch)
        if isinstance(answer, Forgot):
            self._register()
            return
        if answer is None:
            # Others have given our work away: whoever still runs it must not go on.
            self.kill()
            self._new_host()
            self._register()
            return
        self._beat_at = now + (BEAT_S if answer.due_s is None else min(BEAT_S, answer.due_s + 0.001))
        self._judge_others(answer, now)

    def _judge_others(self, answer: Beat, now: float) -> None:
        """Reap hosts whose counter has stood still for a lease, by our own clock."""
        seen: dict[str, tuple[int, float]] = {}
        for host, counter in answer.counters.items():
            if host == self._host:
                continue
            before = self._others.get(host)
            seen[host] = before if before is not None and before[0] == counter else (counter, now)
            if now - seen[host][1] > LEASE_S and self._broker.reap(host, counter):
                del seen[host]
                self._beat_at = 0.0
        self._others = seen

    def woke_late(self, gap_s: float) -> None:
        """This process was held up: what looked still to it may not have been."""
        self._others = {host: (counter, since + gap_s) for host, (counter, since) in self._others.items()}

    def _read_inbox(self) -> None:
        inbox = self._inbox
        if not inbox.wire.connected:
            inbox.wire.connect()
        elif inbox.wire.ready():
            for id, message in inbox.parse_inbox(inbox.wire.receive()):
                self._inbox_cursor = id
                if message.get("op") == "beat":
                    self._beat_at = 0.0
                elif message.get("op") == "cancel":
                    self._cancelled(message.get("consumer", ""), message.get("entry", ""))
        elif time.monotonic() - self._inbox_heard > INBOX_TIMEOUT_S:
            # Beats go another way, so that nothing else would tell.
            inbox.wire.connect()
        else:
            return
        self._inbox_heard = time.monotonic()
        inbox.wire.send(inbox.read_inbox_command(self._host, self._inbox_cursor, block_ms=BLOCK_MS))

    def _cancelled(self, consumer: str, entry: str) -> None:
        member = self.members.get(consumer)
        if member is not None:
            line = member.slot.read()
            if line is not None and line.running and line.entry == entry:
                self._interrupt(member, entry, -1, board.CANCEL, time.monotonic())
            else:
                member.cancelled.append(entry)


@dataclass(frozen=True, slots=True)
class _Hands:
    """What is done to a worker that runs several calls."""

    pool: Pool
    member: Member

    def signal(self) -> None:
        self.pool._signal(self.member, signal.SIGINT)

    def kill(self, *, blameless: bool) -> None:
        self.member.blameless = self.member.blameless or blameless
        self.pool._signal(self.member, signal.SIGKILL)

    def tell(self, line: Line) -> bool:
        if not self.pool._reachable():
            return False
        self.pool._tell_started(self.member, line)
        return True


def _waits(member: Member) -> bool:
    """Whether it waits for a call of its own, and another one is needed in its place."""
    return member.slot.state() in (board.WAITING, board.SEVERAL_WAITING)


def _running(line: Line, now_ns: int) -> RunningTask:
    seconds = round((now_ns - line.started_ns) / 1e9, 3)
    return RunningTask(line.name, line.client, line.n, line.item, line.attempt, seconds)


def own_memory(pid: int) -> int:
    """Resident memory of a process in bytes, without what it shares (mapped files); 0 if it is gone."""
    # Here, since only those need it who set a limit.
    import psutil

    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0
    return int(memory.rss - getattr(memory, "shared", 0))


@cache
def machine() -> str:
    """Names this boot of this machine and this process's view of process numbers; empty where there is no /proc."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # Somebody else's: alive.
        return True
    return True
