"""Bring worker processes into the world, and hear of their deaths.

On Linux a *fork template* does both: a clean, pre-imported, single-threaded process that never opened a
socket, forked from the supervisor before anything else. A replacement worker costs milliseconds, and workers
inherit nothing that could be shared by accident. The template waits for its children, so a death is known at
once with its signal and peak memory, never from a pipe's end (a forked grandchild keeps a pipe open).
Elsewhere (macOS, where forking a process that has loaded system frameworks is not safe) each worker is a
fresh interpreter and the supervisor waits for it itself.

::

    supervisor ── one line of JSON a message ──▶ template ── fork ──▶ worker
               ◀─ {"born": …} {"dead": …} ──────
"""

from __future__ import annotations

import errno
import faulthandler
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import nbqueue
from nbqueue.stream.broker import preload
from nbqueue.stream.server import tie_to_parent
from nbqueue.worker.attempt import Exit
from nbqueue.worker.board import Board
from nbqueue.worker.descriptors import out_of_the_way
from nbqueue.worker.loop import Worker
from nbqueue.worker.supplies import WorkerSpec

__all__ = ["Born", "Dead", "ForkTemplate", "Interpreters", "Spawner", "end_group", "spawner"]

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, slots=True)
class Born:
    consumer: str
    pid: int


@dataclass(frozen=True, slots=True)
class Dead:
    pid: int
    exit: Exit


class Spawner(Protocol):
    """Starts workers; `events` tells what has happened since it was last asked."""

    def start(self, spec: WorkerSpec, output: tuple[int, int]) -> None:
        """`output` are the descriptors that its stdout and stderr write to."""

    def events(self) -> list[Born | Dead]:
        """Raises EOFError when the spawner itself has died, and with it all its workers."""

    def fileno(self) -> int: ...

    def close(self) -> None:
        """End the spawner. Workers must have been killed before."""


def spawner(board: Board, doorbell: int) -> Spawner:
    """The kind for this system, or the one that ``NBQUEUE_START_METHOD`` (fork, spawn) names."""
    method = os.environ.get("NBQUEUE_START_METHOD") or ("fork" if sys.platform.startswith("linux") else "spawn")
    return Interpreters(board, doorbell) if method == "spawn" else ForkTemplate(board, doorbell)


class ForkTemplate:
    """A child of the supervisor that forks workers. Make it before the supervisor has threads."""

    def __init__(self, board: Board, doorbell: int) -> None:
        ours, theirs = socket.socketpair()
        tie = tie_to_parent()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                if tie is not None:
                    tie()
                _run_template(theirs, board, doorbell)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                raise
            finally:
                os._exit(70)
        theirs.close()
        self._socket = ours
        self._socket.setblocking(False)
        self._buffer = b""

    def start(self, spec: WorkerSpec, output: tuple[int, int]) -> None:
        data = json.dumps(asdict(spec)).encode() + b"\n"
        self._socket.setblocking(True)
        try:
            sent = socket.send_fds(self._socket, [data], output)
            self._socket.sendall(data[sent:])
        except OSError as error:
            raise EOFError("the fork template has died") from error
        finally:
            self._socket.setblocking(False)

    def events(self) -> list[Born | Dead]:
        ended = False
        while True:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                ended = True
                break
            self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        events: list[Born | Dead] = []
        for line in lines:
            message = json.loads(line)
            if "born" in message:
                events.append(Born(message["born"], message["pid"]))
            else:
                events.append(Dead(message["dead"], _exit(message["status"], message["rss"])))
        if ended and not events:
            raise EOFError("the fork template has died")
        return events

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            # It ended when its socket did.
            pass
        os.waitpid(self.pid, 0)


def _run_template(control: socket.socket, board: Board, doorbell: int) -> NoReturn:
    _close_all_but({0, 1, 2, control.fileno(), board.fd, doorbell})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    wake_r, wake_w = os.pipe()
    os.set_blocking(wake_w, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
    tie = tie_to_parent()
    # Workers find it done.
    preload()
    # Objects made until now are never garbage: keep their pages shared.
    gc.freeze()
    buffer = b""
    outputs: deque[int] = deque()
    while True:
        readable, _, _ = select.select([control.fileno(), wake_r], [], [])
        if wake_r in readable:
            os.read(wake_r, 4096)
            _report_deaths(control)
        if control.fileno() not in readable:
            continue
        try:
            data, fds, _, _ = socket.recv_fds(control, 65536, 2)
        except ConnectionError:
            # The supervisor died before it had read what we told it.
            data, fds = b"", []
        if not data:
            os._exit(0)
        outputs.extend(fds)
        buffer += data
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            spec = WorkerSpec(**json.loads(line))
            output = outputs.popleft(), outputs.popleft()
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                if tie is not None:
                    tie()
                control.close()
                os.close(wake_r)
                os.close(wake_w)
                for fd, standard in zip(output, (1, 2), strict=True):
                    os.dup2(fd, standard)
                    os.close(fd)
                _become_worker(spec, board, doorbell)
            for fd in output:
                os.close(fd)
            _tell(control, {"born": spec.consumer, "pid": pid})


def _report_deaths(control: socket.socket) -> None:
    while True:
        try:
            ended = _reap(-1)
        except ChildProcessError:
            return
        if ended is None:
            return
        pid, status, rss_bytes = ended
        _tell(control, {"dead": pid, "status": status, "rss": rss_bytes})


def _reap(pid: int) -> tuple[int, int, int] | None:
    """A child that has ended (-1: any), its status and peak memory. What it leaves behind is ended, too."""
    if hasattr(os, "waitid"):
        which = (os.P_ALL, 0) if pid < 0 else (os.P_PID, pid)
        ended = os.waitid(*which, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        # Before its number can be given to another.
        end_group(ended.si_pid)
        pid, status, usage = os.wait4(ended.si_pid, 0)
    else:
        pid, status, usage = os.wait4(pid, os.WNOHANG)
        if pid == 0:
            return None
        end_group(pid)
    return pid, status, usage.ru_maxrss * _RSS_UNIT


def end_group(pid: int) -> None:
    """End what a worker leaves behind: programs that its tasks started and that made no group of their own."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # There is none; or, on macOS, nobody in it but the dead worker.
        pass


def _tell(control: socket.socket, message: dict[str, Any]) -> None:
    try:
        control.sendall(json.dumps(message).encode() + b"\n")
    except ConnectionError:
        # The supervisor has been killed, and its end reaches us sooner than the signal that ends us with it.
        os._exit(0)


def _exit(status: int, rss_bytes: int) -> Exit:
    code = os.waitstatus_to_exitcode(status)
    return Exit(-code if code < 0 else None, None if code < 0 else code, rss_bytes)


def _become_worker(spec: WorkerSpec, board: Board, doorbell: int) -> NoReturn:
    code = 70
    try:
        os.setpgid(0, 0)
        # Nobody types to a worker, and one in the background of a terminal would be stopped for trying to read.
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        # So that a crash in compiled code says where in the task it was.
        faulthandler.enable(2, all_threads=False)
        _be_first_to_be_killed()
        bell = out_of_the_way(doorbell)
        os.close(doorbell)
        code = Worker(spec, board.slot(spec.slot), _bell(bell)).run()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise
    finally:
        # Not sys.exit: a worker must not run the template's exit handlers, nor wait for a task's threads.
        os._exit(code)


def _be_first_to_be_killed() -> None:
    """When memory runs out, a worker is to die rather than the kernel that holds the notebook's state."""
    try:
        Path("/proc/self/oom_score_adj").write_text("500")
    except OSError:
        # Not Linux, or not allowed: the system chooses.
        pass


def _bell(doorbell: int) -> Any:
    def ring(why: bytes) -> bool:
        try:
            os.write(doorbell, why)
        except BlockingIOError:
            # Full: it will ring anyway.
            pass
        except OSError as error:
            # Or the supervisor has been killed, and we are about to be.
            return error.errno != errno.EBADF
        return True

    return ring


def _close_all_but(keep: set[int]) -> None:
    start = 0
    for fd in sorted(keep):
        if start < fd:
            # Not for an empty range: closerange(0, 0) closes everything (close_range(2) with last = -1).
            os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, min(65536, os.sysconf("SC_OPEN_MAX")))


class Interpreters:
    """Each worker is a fresh interpreter, a child of the supervisor."""

    def __init__(self, board: Board, doorbell: int) -> None:
        self._board = board
        self._doorbell = doorbell
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._born: list[Born | Dead] = []
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self._before = signal.signal(signal.SIGCHLD, lambda *_: self._ring())

    def _ring(self) -> None:
        try:
            os.write(self._wake_w, b"!")
        except BlockingIOError:
            # Full: it will be read anyway.
            pass

    def start(self, spec: WorkerSpec, output: tuple[int, int]) -> None:
        ours, theirs = socket.socketpair()
        here = str(Path(nbqueue.__path__[0]).parent)
        code = (
            f"import sys; sys.path.append({here!r}); from nbqueue.worker.spawn import main; "
            f"main({theirs.fileno()}, {self._board.fd}, {self._board.slots}, {self._doorbell}, {os.getpid()})"
        )
        with ours, theirs:
            child = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=output[0],
                stderr=output[1],
                pass_fds=(theirs.fileno(), self._board.fd, self._doorbell),
                preexec_fn=tie_to_parent(),
            )
            # By socket, not by argument: what ps shows must not hold a secret.
            ours.sendall(json.dumps(asdict(spec)).encode() + b"\n")
        self._children[child.pid] = child
        self._born.append(Born(spec.consumer, child.pid))
        self._ring()

    def events(self) -> list[Born | Dead]:
        try:
            os.read(self._wake_r, 4096)
        except BlockingIOError:
            # Asked without having been rung for.
            pass
        events, self._born = self._born, []
        for pid in list(self._children):
            ended = _reap(pid)
            if ended is not None:
                _, status, rss_bytes = ended
                self._children.pop(pid).returncode = os.waitstatus_to_exitcode(status)
                events.append(Dead(pid, _exit(status, rss_bytes)))
        return events

    def fileno(self) -> int:
        return self._wake_r

    def close(self) -> None:
        for child in self._children.values():
            child.kill()
            child.wait()
        signal.signal(signal.SIGCHLD, self._before)
        os.close(self._wake_r)
        os.close(self._wake_w)


def main(control_fd: int, board_fd: int, slots: int, doorbell: int, parent: int) -> NoReturn:
    """A worker that is an interpreter of its own."""
    with socket.socket(fileno=control_fd) as control, control.makefile("rb") as lines:
        spec = WorkerSpec(**json.loads(lines.readline()))
    _die_with(parent)
    _become_worker(spec, Board(board_fd, slots), doorbell)


def _die_with(parent: int) -> None:
    """Where the system cannot tie a child's life to its parent's, a thread looks."""
    if tie_to_parent() is not None:
        return
    import threading
    import time

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="nbqueue-parent-watch", daemon=True).start()
