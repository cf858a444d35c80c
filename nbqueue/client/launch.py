"""Start worker processes: the `Launcher` protocol, and the local launcher.

There is one local supervisor per kernel, shared by all its queues. It lives as long as the kernel, so results
stay readable after a pool was shut down. If it is killed, another takes its place with the same pools, and
what the dead one could not clean up is cleaned up from here.

Always true here: what was asked of a supervisor that died before it answered is asked of the next one, also while that
one starts; only when too many have died, or one cannot be replaced, is there a `failure`, which stays until a user asks
for workers anew (`begin_anew`).
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import nbqueue
from nbqueue import context, errors
from nbqueue.client.echo import Echo, way_out
from nbqueue.client.results.several import wait_for
from nbqueue.client.results.waiting import Interrupted
from nbqueue.client.sending.presses import Presses
from nbqueue.codec import shelves
from nbqueue.errors import ForkedQueue, NbqueueError, PoolError
from nbqueue.progress.places import shown_here
from nbqueue.stream.connect import Address
from nbqueue.stream.records import WorkerLimits

__all__ = ["Launcher", "LocalLauncher", "PoolOrder", "local_launcher"]

ANSWER_TIMEOUT_S = 60.0
# How long the supervisor has to end with the kernel, and how long an interrupt goes unnoticed meanwhile.
END_S, PRESS_S = 10.0, 0.05
# What is true as well when the supervisor has died: no worker of before lives.
_ENDS = ("stop", "renew")
# A supervisor that keeps dying is not started for ever, unless somebody asks for it each time.
MOST_RESTARTS, RESTART_WINDOW_S = 5, 60.0


class PoolOrder(Protocol):
    """What a launcher must know of a queue to start workers for it."""

    id: str
    queue: str
    prefix: str
    secret: bytes
    limits: WorkerLimits

    def address(self) -> Address: ...

    def lost(self) -> None:
        """The local workers cannot be kept any longer. Must not wait."""


class Launcher(Protocol):
    """Places workers somewhere: here, or by a cluster's scheduler."""

    def start(self, order: PoolOrder, workers: int | None) -> int:
        """Start a pool or change its size (None: as many as cores). Returns the number of workers."""

    def renew(self, order: PoolOrder) -> None:
        """Replace each worker as it becomes idle. Returns when all have been."""

    def stop(self, order: PoolOrder) -> None:
        """Let running calls finish and end the pool. Returns when it has ended."""


class _Died(PoolError):
    """The supervisor has died before it could answer. Nobody but this module sees it."""


class _Stopped(PoolError):
    """The pool was stopped before it had started."""


class LocalLauncher:
    """Talks to the supervisor process of this kernel, and starts it when it is first needed."""

    def __init__(self) -> None:
        self.failure: PoolError | None = None  # why there is no supervisor any more
        self._beginnings = 0  # how often it was begun anew after a failure
        self._pid = context.pid()
        self._serving = threading.Lock()  # held while the private server is being started
        self._lock = threading.Lock()  # guards the process and who waits for its answers; never held for long
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._echo: Echo | None = None
        self._waiting: dict[tuple[str, str | None], list[concurrent.futures.Future[dict[str, Any]]]] = {}
        self._pools: dict[str, tuple[PoolOrder, int | None]] = {}
        self._executable: str | None = None
        self._server: Address | None = None
        self._deaths = 0
        self._restarts: list[float] = []
        self._closing = False
        atexit.register(self.close)

    def serve(self, executable: str) -> Address:
        """The address of this kernel's private server; it is started at the first call.

        Raises
        ------
        ServerUnreachable
            If it does not start; with the end of its log.
        """
        self._check()
        with self._serving:
            server = self._server
            if server is None:
                self._executable = executable
                answer = self._ask(lambda: {"op": "server", "id": None, "executable": executable})
                server = Address(path=answer["path"], private=True)
            return server

    def start(self, order: PoolOrder, workers: int | None) -> int:
        self._check()
        before = self._pools.get(order.id)
        # Noted first: whoever replaces the supervisor meanwhile asks for so many, too.
        self._pools[order.id] = order, workers
        try:
            return self._start(order)
        except NbqueueError:
            if self._pools.pop(order.id, None) is not None and before is not None:
                self._pools[order.id] = before
            raise

    def _start(self, order: PoolOrder) -> int:
        def message() -> dict[str, Any]:
            # First, since it may take a while: the server of the dead supervisor is gone with it.
            address = order.address().to_dict()
            noted = self._pools.get(order.id)
            if noted is None:
                self.check_kept()
                raise _Stopped("The workers were stopped while they were being started.")
            return {
                "op": "pool",
                "id": order.id,
                "queue": order.queue,
                "prefix": order.prefix,
                "address": address,
                "secret": order.secret.hex(),
                "size": noted[1],
                "limits": asdict(order.limits),
                # In a notebook, what a call prints is shown by whoever called.
                "echo": not shown_here(),
            }

        return int(self._ask(message)["size"])

    def renew(self, order: PoolOrder) -> None:
        self._check()
        if order.id in self._pools:
            self._ask_and_wait({"op": "renew", "id": order.id}, lambda: "workers are replaced as their calls end.")

    def stop(self, order: PoolOrder, interrupted: Interrupted) -> None:
        if self._closing or self._pools.pop(order.id, None) is None or self.failure is not None:
            # All pools end with it, or have ended.
            return
        self._check()
        try:
            self._ask_and_wait({"op": "stop", "id": order.id}, interrupted)
        except PoolError:
            if not self._closing:
                raise

    def close(self) -> None:
        """End the supervisor and all that it started. Called when the kernel ends.

        An interrupt here means that somebody cannot wait: the supervisor is killed, and takes everything with it.
        """
        if os.getpid() != self._pid:
            return
        # Raised in the midst of this, it would leave behind what is cleaned up below.
        with Presses() as presses:
            self._close(presses)

    def _close(self, presses: Presses) -> None:
        with self._lock:
            self._closing = True
            process, control = self._process, self._socket
            self._process = self._socket = None
        if control is not None:
            try:
                # Closing is not enough: the reading thread's file holds the socket open, and the supervisor
                # would never see its end.
                control.shutdown(socket.SHUT_RDWR)
            except OSError:
                # The supervisor went first.
                pass
            control.close()
        if process is not None and not _ends(process, presses):
            process.kill()
            process.wait()
        if self._echo is not None:
            self._echo.end()
        self._remove_left_over()
        shelves.remove_ours()

    @property
    def closing(self) -> bool:
        """Python is ending, and all pools with it: who was about to start one need not be told."""
        return self._closing

    def begin_anew(self) -> None:
        """A user asks for workers: what failed before is tried again. The pools of before have ended."""
        if self.failure is None:
            return
        with self._lock:
            if self.failure is not None:
                self.failure = None
                self._beginnings += 1
                self._restarts.clear()
                self._pools.clear()

    def check_kept(self) -> None:
        """Raises PoolError where there is no supervisor any more."""
        failure = self.failure
        if failure is not None:
            # Not the same object each time, which would gather the frames of all who raise it.
            raise PoolError(*failure.args)

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedQueue("This process is a fork of the one that made the queue; make a new TaskQueue here.")
        self.check_kept()
        if self._closing:
            raise PoolError("This Python process is ending; no workers can be started any more.")

    def _launch(self) -> socket.socket:
        ours, twin = socket.socketpair()
        with twin:
            # Not as 0, 1 or 2, which this process may have lacked: the supervisor's standard streams come there.
            theirs = socket.socket(fileno=fcntl.fcntl(twin.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))
        here = str(Path(nbqueue.__path__[0]).parent)
        # Appended: where nbqueue is installed it is found there, and nothing beside a notebook is found first.
        code = (
            f"import sys; sys.path.append({here!r}); from nbqueue.worker.supervisor import main; "
            f"main({theirs.fileno()})"
        )
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", code],
                    stdin=subprocess.DEVNULL,
                    stdout=way_out(1),
                    stderr=way_out(2),
                    pass_fds=(theirs.fileno(),),
                    # Jupyter interrupts and kills a kernel's whole process group.
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            raise PoolError(f"The supervisor process could not be started: {error}") from error
        self._socket = ours
        self._echo = Echo(self._process)
        threading.Thread(
            target=self._read, args=(ours, self._process), name="nbqueue-launcher", daemon=True
        ).start()
        return ours

    def _send(self, message: dict[str, Any], deaths: int | None = None) -> concurrent.futures.Future[dict[str, Any]]:
        """Ask the supervisor; one is started if there is none.

        Raises
        ------
        _Died
            If more have died than `deaths`: what the message says, a server's address, say, may hold no longer.
        """
        future: concurrent.futures.Future[dict[str, Any]] = concurrent.futures.Future()
        with self._lock:
            # Checked here, too, or a thread that comes late would launch another supervisor.
            self._check()
            if deaths not in (None, self._deaths):
                raise _Died
            control = self._socket if self._socket is not None else self._launch()
            self._waiting.setdefault((message["op"], message["id"]), []).append(future)
            try:
                control.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                # It has died. Who reads its answers notices, and answers instead.
                pass
        return future

    def _ask_and_wait(self, message: dict[str, Any], interrupted: Interrupted) -> None:
        """However long the running calls take. An interrupt ends the waiting; what was asked for goes on."""
        answer = self._send(message)
        wait_for(answer, interrupted)
        _checked(answer.result())

    def _ask(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The answer to a message, which is made anew for each supervisor that dies over it. Deaths are limited."""
        while True:
            deaths = self._deaths
            try:
                return _checked(self._send(make(), deaths).result(ANSWER_TIMEOUT_S))
            except _Died:
                continue
            except TimeoutError:
                raise PoolError(f"The supervisor process did not answer within {ANSWER_TIMEOUT_S:g} s.") from None

    def _read(self, control: socket.socket, process: subprocess.Popen[bytes]) -> None:
        with control, control.makefile("rb") as lines:
            try:
                for line in lines:
                    message = json.loads(line)
                    if message["op"] == "server-lost":
                        sys.stderr.write(f"nbqueue: {message['error']}\n")
                        continue
                    with self._lock:
                        if message["op"] == "server" and "path" in message:
                            self._server = Address(path=message["path"], private=True)
                        futures = self._waiting.get((message["op"], message["id"]), [])
                        # One end of a pool, or of its workers, answers everybody who waits for it.
                        answered = futures[:] if message["op"] in _ENDS else futures[:1]
                        del futures[: len(answered)]
                    for future in answered:
                        future.set_result(message)
            except (OSError, ValueError):
                # Closed from here; or it died in the midst of a word.
                pass
        process.wait()
        with self._lock:
            if self._process is not process or self._closing:
                return
            self._process = self._socket = None
            self._remove_left_over()
            served, self._server = self._server is not None, None
            self._deaths += 1
            now = time.monotonic()
            self._restarts = [at for at in self._restarts if now - at < RESTART_WINDOW_S] + [now]
            keeps_dying = len(self._restarts) > MOST_RESTARTS
            waiting, self._waiting = self._waiting, {}
            beginnings = self._beginnings
        if keeps_dying:
            # Before anybody asks again.
            why = "The supervisor process keeps dying; its workers cannot be kept. Call queue.run() to try again."
            self._give_up(why, beginnings)
        for (op, _), futures in waiting.items():
            for future in futures:
                if op in _ENDS:
                    future.set_result({})
                else:
                    future.set_exception(_Died())
        if not keeps_dying:
            self._replace(served, beginnings)

    def _replace(self, served: bool, beginnings: int) -> None:
        """The supervisor died without being told to: start another one with the same pools.

        If that one dies, too, whoever reads its answers does the same beside this: to ask twice does no harm.
        """
        try:
            # The answers are read by another thread than this one.
            if served and self._executable is not None:
                self.serve(self._executable)
            for order, _ in list(self._pools.values()):
                with contextlib.suppress(_Stopped):
                    self._start(order)
        except NbqueueError as error:
            why = f"The supervisor process died and could not be replaced; call queue.run() to try again. {error}"
            self._give_up(why, beginnings)

    def _give_up(self, why: str, beginnings: int) -> None:
        """From now on there is no supervisor any more, unless it was begun anew after what is the reason."""
        with self._lock:
            if self.failure is not None or self._closing or beginnings != self._beginnings:
                return
            self.failure = PoolError(why)
            # Here, so that nobody who begins anew is told so of the workers that he gets.
            for order, _ in list(self._pools.values()):
                order.lost()
        sys.stderr.write(f"nbqueue: {why}\n")

    def _remove_left_over(self) -> None:
        if self._server is not None:
            shutil.rmtree(Path(self._server.path).parent, ignore_errors=True)


def _ends(process: subprocess.Popen[bytes], presses: Presses) -> bool:
    """Wait for its end; False if that takes too long, or an interrupt says so."""
    give_up = time.monotonic() + END_S
    while not presses.number and time.monotonic() < give_up:
        try:
            process.wait(PRESS_S)
        except subprocess.TimeoutExpired:
            continue
        return True
    return process.poll() is not None


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        kind = getattr(errors, answer.get("kind", ""), PoolError)
        raise (kind if issubclass(kind, NbqueueError) else PoolError)(answer["error"])
    return answer


_local: LocalLauncher | None = None
_local_lock = threading.Lock()


def local_launcher() -> LocalLauncher:
    """The launcher of this process; a forked child gets one of its own."""
    global _local
    found = _local
    if found is None or found._pid != context.pid():
        with _local_lock:
            found = _local
            if found is None or found._pid != context.pid():
                found = _local = LocalLauncher()
    return found
