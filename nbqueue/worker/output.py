"""What workers print: on its way to the notebook, and the last lines of a worker that died.

::

    task ─▶ descriptors 1 and 2 ─▶ two tapes a worker ─▶ supervisor ─▶ outlet: the notebook's stdout, stderr

A *tape* is a file without a name, to which all append that hold the descriptor: Python, compiled code, programs
that a task starts. So nothing is lost when one of them dies, and whose a line is follows from where it stands.
The supervisor reads along, passes whole lines on and frees what was passed on. It never waits for whoever reads:
of a worker that prints faster than that, the middle is left out, and a line says so.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import tempfile
from collections.abc import Callable

__all__ = ["Outlet", "Tape", "last_lines"]

# What is looked at in one go, and what may wait to be passed on before some of it is left out.
PIECE_BYTES = 65_536
MOST_BEHIND_BYTES = 32_000_000
# What stays readable for the error of a task whose worker dies.
KEPT_BYTES = 65_536
FREE_EVERY_BYTES = 1_000_000
# A pipe that polls as writable takes this much without blocking (pipe(7)).
_PIPE_BYTES = 4096
_MOST_LINES = 10
_LONGEST_LINE = 200


class Tape:
    """One output stream of one worker; `fd` becomes its descriptor 1 or 2."""

    def __init__(self) -> None:
        self.fd = _file_without_a_name()
        self._passed = 0
        self._freed = 0
        self._seen = 0

    def pass_on(self, outlet: Outlet, *, ended: bool = False) -> None:
        """Give the outlet what is new, if it has room: whole lines, but a part of one that is not growing too."""
        size = os.fstat(self.fd).st_size
        if size - self._passed > MOST_BEHIND_BYTES:
            left_out = size - KEPT_BYTES - self._passed
            self._passed = size - KEPT_BYTES
            outlet.write(b"\nnbqueue: a task prints faster than can be shown; %d bytes are left out\n" % left_out)
        while self._passed < size and outlet.has_room:
            data = os.pread(self.fd, min(PIECE_BYTES, size - self._passed), self._passed)
            complete = data.rfind(b"\n") + 1
            if not complete and len(data) < PIECE_BYTES and size != self._seen and not ended:
                break
            data = data[: complete or len(data)]
            outlet.write(data)
            self._passed += len(data)
        self._seen = size
        if self._passed - KEPT_BYTES - self._freed > FREE_EVERY_BYTES:
            self._free(self._passed - KEPT_BYTES)

    def read(self, start: int) -> str:
        """What was printed from byte `start` on, as far as it is kept."""
        size = os.fstat(self.fd).st_size
        start = max(start, size - KEPT_BYTES, 0)
        return os.pread(self.fd, size - start, start).decode(errors="replace")

    def close(self) -> None:
        os.close(self.fd)

    def _free(self, upto: int) -> None:
        upto -= upto % 4096
        _punch_hole(self.fd, self._freed, upto - self._freed)
        self._freed = upto


class Outlet:
    """Where output goes: a descriptor of this process that must never make it wait."""

    def __init__(self, fd: int) -> None:
        self._fd = _not_blocking(fd)
        self._pending = bytearray()

    @property
    def has_room(self) -> bool:
        return len(self._pending) < PIECE_BYTES

    @property
    def behind(self) -> bool:
        return bool(self._pending)

    def write(self, data: bytes) -> None:
        self._pending += data
        self.flush()

    def flush(self) -> None:
        """Write as much as is taken without waiting."""
        while self._pending:
            poller = select.poll()
            poller.register(self._fd, select.POLLOUT)
            if not poller.poll(0):
                return
            try:
                written = os.write(self._fd, self._pending[:_PIPE_BYTES])
            except BlockingIOError:
                return
            except OSError:
                # Nobody is there to read it.
                self._pending.clear()
                return
            del self._pending[:written]


def last_lines(out: str, err: str) -> str:
    """The end of what a task printed, for the error that tells of its worker's death.

    Of a crash in compiled code, where in the task it was: faulthandler writes its calls, the innermost first.

    >>> last_lines("one\\ntwo\\n", "")
    'one\\ntwo'
    """
    before, fatal, after = err.partition("Fatal Python error: ")
    lines = [line for text in (out, before) for line in text.splitlines() if line.strip()][-_MOST_LINES:]
    if fatal:
        calls = [line for line in after.splitlines() if line.startswith("  File ") and "nbqueue/worker/" not in line]
        lines = [*lines[-_MOST_LINES // 2 :], fatal + after.splitlines()[0], *calls[: _MOST_LINES // 2]]
    return "\n".join(line[:_LONGEST_LINE] for line in lines)


def _file_without_a_name() -> int:
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("nbqueue-output")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    # Several processes may write to it, a task's own and those that it starts.
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
    return fd


def _find_fallocate() -> Callable[[int, int, int], object] | None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "fallocate"):
        return None
    keep_size_and_punch_hole = 0x01 | 0x02  # linux/falloc.h
    offset = ctypes.c_int64
    return lambda fd, start, length: libc.fallocate(fd, keep_size_and_punch_hole, offset(start), offset(length))


_fallocate = _find_fallocate()


def _punch_hole(fd: int, start: int, length: int) -> None:
    """Give the memory back, if this system can. Later bytes keep their places."""
    if _fallocate is not None and length > 0:
        _fallocate(fd, start, length)


def _not_blocking(fd: int) -> int:
    """Another way to the same pipe or terminal, since to change this one would change it for the notebook, too."""
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode) or os.isatty(fd):
            return os.open(f"/dev/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        # Closed, or there is no such way: then it is written to in small pieces, when it polls as writable.
        pass
    return fd
