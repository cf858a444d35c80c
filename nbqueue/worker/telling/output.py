"""What workers print: the tapes that it is written to, and the outlet of those who look on from here.

::

    task ─▶ descriptors 1 and 2 ─▶ two tapes a worker ─┬▶ worker ─▶ reply: all of it, up to a bound
                                                       └▶ supervisor ─▶ events, while the task runs
                                                                     ─▶ outlet: stdout and stderr of a script

A *tape* is a file without a name, to which all append that hold the descriptor: Python, compiled code, programs
that a task starts. So nothing is lost when one of them dies, and whose a line is follows from where it stands.
Positions are bytes since the worker's birth. The supervisor (`recorder`) never waits for whoever reads: of a
worker that prints faster than that, the middle is left out, and a line says so.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import tempfile
import time
from collections.abc import Callable

__all__ = ["HEAD_BYTES", "TAIL_BYTES", "Outlet", "Tape", "last_lines", "pieces"]

# What is looked at in one go, and what may wait to be passed on before some of it is left out.
PIECE_BYTES = 65_536
MOST_BEHIND_BYTES = 32_000_000
# What stays readable for the error of a task whose worker dies.
KEPT_BYTES = 65_536
FREE_EVERY_BYTES = 1_000_000
# Of what one item prints on one stream, these two ends travel with its reply.
HEAD_BYTES = TAIL_BYTES = 131_072
# What one event carries while the task runs.
EVENT_BYTES = 32_768
# A part of a line that grows at each look, as a row of dots does, is shown after this.
PART_S = 0.5
# A pipe that polls as writable takes this much without blocking (pipe(7)).
_PIPE_BYTES = 4096
_LEFT_OUT = b"\nnbqueue: a task prints faster than can be shown; %d bytes are left out\n"
_MOST_LINES = 10
_LONGEST_LINE = 200


class Tape:
    """One output stream of one worker; `fd` becomes its descriptor 1 or 2."""

    def __init__(self) -> None:
        self.fd = _file_without_a_name()
        self.passed = 0
        self._low = 0  # what lies below has been freed
        self._freed = 0
        self._passing, self._telling = _Part(), _Part()

    @property
    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def pass_on(self, outlet: Outlet, *, ended: bool = False) -> None:
        """Give the outlet what is new, if it has room: whole lines, and a part of one that has grown long enough.

        Of a tape that has `ended`, all of it, since nobody asks again.
        """
        size = self.size
        grown = self._passing.grown(size, time.monotonic())
        if size - self.passed > MOST_BEHIND_BYTES:
            left_out = size - KEPT_BYTES - self.passed
            self.passed = size - KEPT_BYTES
            outlet.write(_LEFT_OUT % left_out)
        while self.passed < size and (outlet.has_room or (ended and outlet.has_room_for_the_rest)):
            data = os.pread(self.fd, min(PIECE_BYTES, size - self.passed), self.passed)
            complete = data.rfind(b"\n") + 1
            if not complete and len(data) < PIECE_BYTES and not grown and not ended:
                break
            data = data[: complete or len(data)]
            outlet.write(data)
            self.passed += len(data)
            self._passing.shown()
        if self.passed >= size:
            self._passing.shown()
        elif ended:
            outlet.write(_LEFT_OUT % (size - self.passed))

    def skip(self, upto: int) -> None:
        """What lies before has been taken care of otherwise."""
        self.passed = max(self.passed, upto)

    def news(self, start: int, now: float, *, ended: bool = False) -> tuple[int, bytes]:
        """What is new from `start` on and can be shown, and where it begins: of much, the end.

        Whole lines, and a part of one that has grown long enough; never a part of a character.
        """
        size = self.size
        if size - start > EVENT_BYTES:
            start = size - EVENT_BYTES
            start += os.pread(self.fd, EVENT_BYTES, start).find(b"\n") + 1
        data = os.pread(self.fd, max(0, size - start), start)
        complete = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        grown = self._telling.grown(size, now)
        if not ended:
            data = data[:complete] if complete or not grown else data[: _whole_characters(data)]
        if data or size <= start:
            self._telling.shown()
        return start, data

    def read(self, start: int) -> str:
        """What was printed from byte `start` on, as far as it is kept."""
        size = self.size
        start = max(start, size - KEPT_BYTES, 0)
        return os.pread(self.fd, size - start, start).decode(errors="replace")

    def close(self) -> None:
        os.close(self.fd)

    def free(self, start: int, upto: int) -> None:
        """Give back the memory of what lies before `upto`, but keep the two ends of what begins at `start`."""
        upto = min(upto, self.size - TAIL_BYTES)
        if upto - self._freed < FREE_EVERY_BYTES:
            return
        _punch_hole(self.fd, self._low, min(start, upto))
        _punch_hole(self.fd, max(self._low, start + HEAD_BYTES), upto)
        self._low, self._freed = min(start, upto), upto


class _Part:
    """When a part of a line is shown: when it stands still between two looks, or has waited for a while."""

    def __init__(self) -> None:
        self._size = 0
        self._since: float | None = None

    def grown(self, size: int, now: float) -> bool:
        stands_still, self._size = size == self._size, size
        if self._since is None and not stands_still:
            self._since = now
        return stands_still or (self._since is not None and now - self._since >= PART_S)

    def shown(self) -> None:
        self._since = None


def pieces(fd: int, start: int, end: int) -> tuple[tuple[int, bytes], ...]:
    """What a tape has between two places, as ``(at, bytes)`` counted from `start`; of much, the two ends."""
    if end - start <= HEAD_BYTES + TAIL_BYTES:
        return ((0, os.pread(fd, end - start, start)),)
    tail = end - TAIL_BYTES
    return (0, os.pread(fd, HEAD_BYTES, start)), (tail - start, os.pread(fd, TAIL_BYTES, tail))


def _whole_characters(data: bytes) -> int:
    """How many bytes of it end with a whole character."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte >= 0xC0:  # the first byte of a character of several, of two, three or four
            return len(data) - back if back < 2 + (byte >= 0xE0) + (byte >= 0xF0) else len(data)
        if byte < 0x80:
            break
    return len(data)


class Outlet:
    """Where output goes: a descriptor of this process that must never make it wait."""

    def __init__(self, fd: int) -> None:
        self._fd = _not_blocking(fd)
        self._pending = bytearray()

    @property
    def has_room(self) -> bool:
        return len(self._pending) < PIECE_BYTES

    @property
    def has_room_for_the_rest(self) -> bool:
        return len(self._pending) < MOST_BEHIND_BYTES

    @property
    def behind(self) -> int:
        """How many bytes wait."""
        return len(self._pending)

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


def _punch_hole(fd: int, start: int, end: int) -> None:
    """Give whole pages of memory back, if this system can. Later bytes keep their places."""
    start, end = start + -start % 4096, end - end % 4096
    if _fallocate is not None and end > start:
        _fallocate(fd, start, end - start)


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
