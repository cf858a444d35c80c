"""The program between a kernel and its workers: it starts them, watches them and cleans up after all.

::

    kernel ── control socket ──▶ supervisor (own session: Ctrl-C never reaches it)
                                  ├─ redis-server   private queues' own
                                  └─ spawner ─ workers

It runs no user code and unpickles nothing that a user wrote. One thread, one loop: it wakes when the kernel
speaks, a worker rings or dies, a message for this host arrives, and ten times a second, if only for a look at the
board. It ends when the kernel does, noticed by the end of the control socket or by a new parent process, and takes
everything with it. Without a kernel (``nbqueue worker URL``) it serves one pool until it is told to stop.

Control messages are lines of JSON: ``{"op": "server" | "pool" | "renew" | "stop" | "quit", …}``; each is answered by
one with the same ``op`` and ``id``, or an ``error``.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import sys
import time
from dataclasses import replace
from typing import Any, NoReturn

from nbqueue.codec import shelves
from nbqueue.errors import NbqueueError
from nbqueue.stream import server as private
from nbqueue.stream.records import WorkerLimits
from nbqueue.worker.board import Board, Slot
from nbqueue.worker.cores import available_cores, thread_limits
from nbqueue.worker.descriptors import fill_standard
from nbqueue.worker.loop import NEWS
from nbqueue.worker.pool import Pool, PoolSpec
from nbqueue.worker.spawn import Born, Dead, Spawner, spawner
from nbqueue.worker.telling.output import Outlet

__all__ = ["Supervisor", "main"]

TICK_S = 0.1
# While nothing happens and no worker runs anything for long, only the board is looked at as often, and everything
# else, which takes several times as long, so often.
QUIET_S = 0.5
# A server that is back sooner is not talked about.
TROUBLE_S = 2.0
SLOTS = 1024
MOST_BY_DEFAULT = 256
# At the end, what was printed last is read or not: whoever reads nothing for so long is not waited for, nor anybody
# for longer. The kernel may be gone, and with it all of this soon.
READ_AGAIN_S, LAST_WORDS_S = 0.5, 2.0
# How long the lock of a kernel that has died may still seem to be held: much memory takes its time to be freed.
SWEEP_S = 2.0


class Supervisor:
    """One per kernel or, as a program of its own, one per host and queue.

    Parameters
    ----------
    kernel : socket, optional
        The control socket; None where nobody is to be followed into death.
    """

    def __init__(self, kernel: socket.socket | None) -> None:
        self._kernel = kernel
        self._parent = os.getppid()
        self._buffer = b""
        self._board = Board.create(SLOTS)
        self._free = list(range(SLOTS - 1, -1, -1))
        self._doorbell_r, self._doorbell_w = os.pipe()
        for fd in (self._doorbell_r, self._doorbell_w):
            os.set_blocking(fd, False)
        os.set_inheritable(self._doorbell_w, True)
        # First of all: the template must be forked before there are sockets or servers.
        self._spawner: Spawner = spawner(self._board, self._doorbell_w)
        _allow_descriptors()
        self._outlets = Outlet(1), Outlet(2)
        self._pools: dict[str, Pool] = {}
        self._renewing: set[str] = set()
        self._server: private.PrivateServer | None = None
        self._server_starts: list[float] = []
        self._ending = False
        self._quitting = False
        self._told: set[str] = set()

    # The loop

    def run(self) -> int:
        """Serve until the kernel ends or says quit. Returns the exit code."""
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop if self._kernel is None else signal.SIG_IGN)
        swept = False
        last = time.monotonic()
        try:
            while not self._ending:
                self._wait()
                now = time.monotonic()
                if now - last > 3.0:
                    for pool in self._pools.values():
                        pool.woke_late(now - last)
                last = now
                for outlet in self._outlets:
                    outlet.flush()
                died = self._hear_spawner()
                self._check_server(now)
                for pool in list(self._pools.values()):
                    pool.tick(now)
                    if pool.closed:
                        del self._pools[pool.spec.id]
                        self._say({"op": "stop", "id": pool.spec.id})
                self._tell_renewed()
                if self._kernel is None:
                    self._tell_trouble(now)
                if died:
                    # One whose tasks sent large data to others had shared memory of its own. First comes its successor.
                    shelves.sweep()
                if self._quitting and not self._pools:
                    break
                if not swept and (self._server is not None or self._pools):
                    swept = True
                    private.sweep()
                    shelves.sweep()
        finally:
            self._clean_up()
        return 0

    def _wait(self) -> None:
        poller = select.poll()
        kernel = self._kernel
        watched = [self._spawner.fileno(), self._doorbell_r]
        watched += [fd for pool in self._pools.values() if (fd := pool.fileno()) is not None]
        if kernel is not None:
            watched.append(kernel.fileno())
        for fd in watched:
            poller.register(fd, select.POLLIN)
        hurry = any(pool.stopping or pool.renewing for pool in self._pools.values())
        hurry = hurry or any(out.behind for out in self._outlets)
        events = poller.poll(20) if hurry else self._sleep(poller)
        ready = {fd for fd, _ in events}
        if self._doorbell_r in ready and NEWS in os.read(self._doorbell_r, 4096):
            for pool in self._pools.values():
                pool.hurry()
        if kernel is not None and kernel.fileno() in ready:
            self._hear_kernel(kernel)
        if self._orphaned:
            # The other end of the socket may live on in a forked child.
            self._ending = True

    def _sleep(self, poller: select.poll) -> list[tuple[int, int]]:
        """Until something happens, somebody has something to do, or it is time to look after everything."""
        until = time.monotonic() + QUIET_S - TICK_S / 2
        while not (events := poller.poll(TICK_S * 1000)):
            now = time.monotonic()
            if now >= until or self._ending or self._quitting or self._orphaned:
                break
            if not all(pool.quiet(now) for pool in self._pools.values()):
                break
        return events

    @property
    def _orphaned(self) -> bool:
        return self._kernel is not None and os.getppid() != self._parent

    def _tell_renewed(self) -> None:
        for id in [id for id in self._renewing if id not in self._pools or not self._pools[id].renewing]:
            self._renewing.discard(id)
            self._say({"op": "renew", "id": id})

    def _tell_trouble(self, now: float) -> None:
        """Where no notebook says it: why nothing is done here, each reason once, and that it is over."""
        for pool in self._pools.values():
            queue, trouble = pool.spec.queue, pool.trouble
            if not trouble:
                if self._told:
                    self._told.clear()
                    self._outlets[1].write(f"nbqueue: the queue {queue!r} is served again.\n".encode())
            elif trouble not in self._told and now - pool.troubled_since > TROUBLE_S:
                self._told.add(trouble)
                words = f"nbqueue: the queue {queue!r} cannot be served now, and will be as soon as it can: {trouble}\n"
                self._outlets[1].write(words.encode())

    def _on_stop(self, _signum: int, _frame: object) -> None:
        if self._quitting or self._kernel is not None:
            self._ending = True
        self._quitting = True
        for pool in self._pools.values():
            pool.stop()

    def _clean_up(self) -> None:
        for pool in self._pools.values():
            pool.kill()
        deadline = time.monotonic() + 2.0
        try:
            while any(pool.members for pool in self._pools.values()) and time.monotonic() < deadline:
                select.select([self._spawner.fileno()], [], [], 0.1)
                self._hear_spawner(respawn=False)
        except EOFError:
            # The spawner went first, and its workers with it.
            pass
        self._spawner.close()
        shelves.sweep()
        for pool in self._pools.values():
            pool.close()
        if self._server is not None:
            self._server.remove()
        self._sweep_after_kernel()
        self._flush_outlets()

    def _sweep_after_kernel(self) -> None:
        """Remove what a kernel that was killed has left in shared memory; one that lives does so itself."""
        if self._kernel is None:
            return
        give_up = time.monotonic() + SWEEP_S
        # Its death reaches us a moment before its lock is free.
        while not shelves.sweep(self._parent) and os.getppid() != self._parent and time.monotonic() < give_up:
            time.sleep(0.005)

    def _flush_outlets(self) -> None:
        """What was printed last is still read, as long as anybody reads."""
        now = time.monotonic()
        last, give_up = now + LAST_WORDS_S, now + READ_AGAIN_S
        behind = -1
        while any(outlet.behind for outlet in self._outlets) and now < min(last, give_up):
            for outlet in self._outlets:
                outlet.flush()
            before, behind = behind, sum(outlet.behind for outlet in self._outlets)
            if behind != before:
                give_up = now + READ_AGAIN_S
            time.sleep(0.005)
            now = time.monotonic()

    # Workers

    def _hear_spawner(self, *, respawn: bool = True) -> bool:
        """Note who was born and who died. Whether somebody died."""
        try:
            events = self._spawner.events()
        except EOFError:
            if not respawn:
                raise
            self._spawner.close()
            for pool in self._pools.values():
                pool.all_died()
            self._spawner = spawner(self._board, self._doorbell_w)
            for pool in self._pools.values():
                pool.use(self._spawner)
            return True
        for event in events:
            for pool in self._pools.values():
                if isinstance(event, Born):
                    pool.born(event.consumer, event.pid)
                elif isinstance(event, Dead):
                    for member in list(pool.members.values()):
                        if member.pid == event.pid:
                            pool.died(member, event.exit)
        return any(isinstance(event, Dead) for event in events)

    def _take_slot(self) -> tuple[int, Slot]:
        if not self._free:
            raise NbqueueError(f"No more than {SLOTS} workers can run at once.")
        index = self._free.pop()
        return index, self._board.slot(index)

    def add_pool(self, spec: PoolSpec) -> None:
        """Start a pool, or give the one with this id its new size."""
        pool = self._pools.get(spec.id)
        if pool is not None:
            if pool.stopping:
                # Asked to run again before it had ended: whoever waits for the end waits no longer.
                self._say({"op": "stop", "id": spec.id})
            pool.change(spec.size, spec.limits)
            return
        self._pools[spec.id] = Pool(spec, self._spawner, self._take_slot, self._free.append, self._outlets)

    # The private server

    def _start_server(self, executable: str) -> str:
        if self._server is None:
            tie = private.tie_to_parent()
            server = private.PrivateServer(executable, on_fork=tie)
            try:
                server.start()
            except BaseException:
                server.remove()
                raise
            self._server = server
        return str(self._server.address.path)

    def _check_server(self, now: float) -> None:
        server = self._server
        if server is None or server.serves:
            return
        self._server_starts = [at for at in self._server_starts if now - at < 60.0]
        if self._server_starts and now - self._server_starts[-1] < 0.1 * 2 ** len(self._server_starts):
            # It keeps dying: not at once again.
            return
        self._server_starts.append(now)
        try:
            server.start()
        except (NbqueueError, OSError) as error:
            # Of the system: its directory is just being deleted.
            self._say({"op": "server-lost", "error": str(error)})

    # The kernel

    def _hear_kernel(self, kernel: socket.socket) -> None:
        try:
            data = kernel.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._ending = True
            return
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            message = json.loads(line)
            try:
                self._obey(message)
            except (NbqueueError, OSError) as error:
                answer = {"op": message["op"], "id": message.get("id"), "error": str(error)}
                self._say({**answer, "kind": type(error).__name__})

    def _obey(self, message: dict[str, Any]) -> None:
        op = message["op"]
        if op == "server":
            self._say({"op": op, "id": None, "path": self._start_server(message["executable"])})
        elif op == "pool":
            size = message["size"] or min(available_cores(), MOST_BY_DEFAULT)
            spec = make_spec(message, size)
            server = self._server
            if server is not None and spec.address.get("path") == str(server.address.path):
                # Its socket is its user's alone.
                spec = replace(spec, alone=True)
            self.add_pool(spec)
            self._say({"op": op, "id": spec.id, "size": size})
        elif op == "renew":
            if message["id"] in self._pools:
                self._pools[message["id"]].renew()
            self._renewing.add(message["id"])
        elif op == "stop":
            pool = self._pools.get(message["id"])
            if pool is None:
                self._say({"op": op, "id": message["id"]})
            else:
                pool.stop()
        elif op == "quit":
            self._ending = True

    def _say(self, message: dict[str, Any]) -> None:
        if self._kernel is not None:
            try:
                self._kernel.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                self._ending = True


def _allow_descriptors() -> None:
    """Two for each worker's output, and then some: more than the usual 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def make_spec(message: dict[str, Any], size: int) -> PoolSpec:
    """A pool of `size` workers; their numeric libraries get as many threads as there are cores for each."""
    return PoolSpec(
        id=message["id"],
        queue=message["queue"],
        prefix=message["prefix"],
        address=message["address"],
        secret=message["secret"],
        size=size,
        environ=thread_limits(size, available_cores(), os.environ),
        limits=WorkerLimits(**message["limits"]),
        echo=message.get("echo", True),
    )


def main(control_fd: int) -> NoReturn:
    """The program that a kernel starts."""
    fill_standard()
    kernel = socket.socket(fileno=control_fd)
    os.set_inheritable(control_fd, False)
    sys.exit(Supervisor(kernel).run())
