"""Large buffers in shared memory: files that are written once, and mapped wherever on this host they are needed.

::

    owner    writes a segment ──▶ its name, in a signed message ──▶ visitor locks it (shared) and maps it
      ▲                                                                      │
      └─ nobody maps it: into the pool, to be written again ◀── unmapped ◀───┘

Each client process owns one directory. Always true here: a mapping holds a shared lock on its file for exactly as long
as it lives, in a forked child, too, so whoever gets the file for himself alone may write to it again, and a process
that dies holds nothing; what is in the pool has no name that a message knows; a file that cannot be written costs
nothing but its speed, since its data then travel another way. Nothing here pickles.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import secrets
import stat
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from nbqueue.errors import NbqueueError

__all__ = [
    *("CLOSED", "MAPPED_BYTES", "MOST_MAPPED", "NAME", "POOL", "PREFIX"),
    *("Directory", "Guest", "Mapping", "Segment", "Shelf", "Shelved"),
]

# What is smaller is read rather than mapped: that costs no more, and neither a descriptor nor a lock.
MAPPED_BYTES = 1_000_000
# Each mapping has a descriptor, of which a process may have 1024 by default. Beyond this, segments are read.
MOST_MAPPED = 256
# One of the pool is taken for what fills at least a half of it.
_WASTE = 2
# What comes for one reader alone is most likely read as a whole. To prepare 100 MB takes 10 ms.
_TOUCHED_BYTES = 256_000_000
_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux, which Python has no name for
_ALIGN = 64
# An eighth of shared memory is left to other programs: many of them die when there is none.
_LEFT = 8
_NOTHING = memoryview(bytes(_ALIGN))
_MOST_PIECES = 512
PREFIX = "nbqueue-"
POOL = "pool"
NAME = re.compile(r"[ar]-[0-9a-f-]{8,80}")
_DIRECTORY = re.compile(rf"/.*/{PREFIX}[0-9]+-[0-9]+-[0-9a-f]+")
CLOSED = os.O_CLOEXEC | os.O_NOFOLLOW


class Mapping(mmap.mmap):
    """The memory of a segment. While anything uses it, the segment is locked; `segment` lives as long."""

    segment: Segment | None = None
    counted = False
    alive = 0

    def count(self) -> None:
        self.counted = True
        Mapping.alive += 1

    def __del__(self) -> None:
        if self.counted:
            Mapping.alive -= 1


class Segment:
    """Keeps one segment of ours; when it is gone, so is what it names."""

    __slots__ = ("__weakref__", "_unneeded", "name")

    def __init__(self, name: str, unneeded: deque[str]) -> None:
        self.name = name
        self._unneeded = unneeded

    def __del__(self) -> None:
        # It may end anywhere, in the midst of what is locked, too: it only leaves a note.
        self._unneeded.append(self.name)


class Shelved(NamedTuple):
    """What was written: its name, the sizes of its parts, and what keeps it, where it is our own."""

    name: str
    sizes: tuple[int, ...]
    segment: Segment | None


class Shelf(Protocol):
    """Takes what is large. `path` is the directory that it lies in."""

    path: str

    def shelve(self, parts: Sequence[Sequence[Any]]) -> Shelved | None:
        """Write a segment of several parts, each made of pieces; None if there is no room for it."""


class Directory:
    """A client's directory, as everybody sees it who may.

    Raises
    ------
    NbqueueError
        If there is none, or it is not this user's alone.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        try:
            if not _DIRECTORY.fullmatch(path):
                raise OSError(errno.EINVAL, "not a name of ours")
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | CLOSED)
            found = os.fstat(self._fd)
            self._inode = found.st_ino
            if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
                raise OSError(errno.EPERM, "others may read or write it")
        except OSError as error:
            raise NbqueueError(f"The shared memory {path} cannot be used: {error.strerror}.") from error

    def __del__(self) -> None:
        # It may have none, where the directory could not even be made.
        if getattr(self, "_fd", -1) >= 0 and self.is_open():
            os.close(self._fd)

    def is_open(self) -> bool:
        """Whether its descriptor is still its own: a task may close what it has not opened."""
        try:
            return os.fstat(self._fd).st_ino == self._inode
        except OSError:
            return False

    # Writing

    def write(self, name: str, parts: Sequence[Sequence[Any]]) -> tuple[int, ...] | None:
        """Write a segment of several parts, each made of pieces. Returns their sizes, None if that is not possible."""
        views = [[_bytes_of(piece) for piece in part] for part in parts]
        sizes = tuple(sum(view.nbytes for view in part) for part in views)
        for _ in range(2):
            try:
                self._write(name, sizes, views)
                return sizes
            except OSError as error:
                if error.errno != errno.ENOSPC or not self._empty_pool():
                    # Full, gone, forbidden, no descriptor left: the data travel another way.
                    return None
        return None

    def _write(self, name: str, sizes: tuple[int, ...], views: list[list[memoryview]]) -> None:
        *starts, total = places(sizes)
        at = 0
        pieces: list[memoryview] = []
        for start, size, part in zip(starts, sizes, views, strict=True):
            pieces += (_NOTHING[: start - at], *part)
            at = start + size
        fd = self._claim(name, total)
        try:
            self._pour(fd, pieces, total)
        except BaseException:
            os.unlink(name, dir_fd=self._fd)
            raise
        finally:
            os.close(fd)

    def _pour(self, fd: int, pieces: list[memoryview], _size: int) -> None:
        _write_all(fd, pieces)

    def _claim(self, name: str, size: int) -> int:
        """A file of that name to write to: one of the pool, since touching fresh pages costs more than the copy."""
        for found, entry in sorted(self._pool()):
            if size * 7 // 8 <= found <= size * _WASTE:
                try:
                    os.rename(f"{POOL}/{entry}", name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
                    return os.open(name, os.O_RDWR | CLOSED, dir_fd=self._fd)
                except FileNotFoundError:
                    # Another was faster.
                    continue
        room = os.fstatvfs(self._fd)
        if room.f_bavail * room.f_frsize < size + room.f_blocks * room.f_frsize // _LEFT:
            raise OSError(errno.ENOSPC, "no room would be left for others")
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | CLOSED, 0o600, dir_fd=self._fd)
        # A task may have set an umask that forbids it to everybody.
        os.fchmod(fd, 0o600)
        return fd

    def _pool(self) -> list[tuple[int, str]]:
        """Size and name of each file in the pool."""
        pool = os.open(POOL, os.O_RDONLY | os.O_DIRECTORY | CLOSED, dir_fd=self._fd)
        try:
            return [(int(entry.partition("-")[0]), entry) for entry in os.listdir(pool)]
        finally:
            os.close(pool)

    def _empty_pool(self) -> bool:
        """Give back the memory of all that is in the pool. False if there was nothing."""
        return sum(self._unlink(f"{POOL}/{entry}") for _, entry in self._pool()) > 0

    def _unlink(self, name: str) -> bool:
        try:
            os.unlink(name, dir_fd=self._fd)
        except FileNotFoundError:
            # Another was faster.
            return False
        return True

    # Reading

    def has(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except OSError:
            return False
        return True

    def read(self, name: str, sizes: Sequence[int], *, writable: bool, segment: Segment | None) -> list[memoryview]:
        """The parts of a segment. They can be written to if `writable`, and nobody else sees what was.

        Raises
        ------
        NbqueueError
            If it is not there any more, or shorter than it should be.
        """
        *starts, total = places(sizes)
        try:
            if not NAME.fullmatch(name):
                raise OSError(errno.EINVAL, "not a name of ours")
            fd = os.open(name, os.O_RDONLY | CLOSED, dir_fd=self._fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                found = os.fstat(fd)
                # Before the lock it may have gone into the pool, and come back as another.
                if os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_ino != found.st_ino:
                    raise OSError(errno.ENOENT, "it is gone")
                if found.st_size < total:
                    raise OSError(errno.EIO, f"it has {found.st_size:,} bytes only")
                if total < MAPPED_BYTES or Mapping.alive >= MOST_MAPPED:
                    return [_read_at(fd, at, size, writable) for at, size in zip(starts, sizes, strict=True)]
                mapping = Mapping(fd, total, access=mmap.ACCESS_COPY if writable else mmap.ACCESS_READ)
                mapping.count()
                if writable and total <= _TOUCHED_BYTES:
                    _touch(mapping)
                mapping.segment = segment
            finally:
                os.close(fd)
        except OSError as error:
            raise NbqueueError(
                f"Its data in shared memory ({total:,} bytes, {name}) cannot be read: {error.strerror}. Send them "
                "again."
            ) from error
        whole = memoryview(mapping)
        return [whole[at : at + size] for at, size in zip(starts, sizes, strict=True)]


def _touch(mapping: Mapping) -> None:
    """Have all of it in this process's page tables at once: one by one, as they are read, costs half as much again."""
    try:
        mapping.madvise(_POPULATE_READ)
    except (OSError, ValueError):
        # Before Linux 5.14.
        pass


def places(sizes: Iterable[int]) -> list[int]:
    """Where parts of these sizes begin, and last where they end together."""
    found, at, end = [], 0, 0
    for size in sizes:
        found.append(at)
        end = at + size
        at = end + -end % _ALIGN
    return [*found, end]


def _bytes_of(piece: Any) -> memoryview:
    return piece.raw() if hasattr(piece, "raw") else memoryview(piece).cast("B")


def _write_all(fd: int, pieces: list[memoryview]) -> None:
    waiting, at = deque(piece for piece in pieces if piece.nbytes), 0
    while waiting:
        now = [waiting.popleft() for _ in range(min(_MOST_PIECES, len(waiting)))]
        written = os.pwritev(fd, now, at)
        at += written
        for i, piece in enumerate(now):
            if written < piece.nbytes:
                # Two gigabytes at most are written at once.
                waiting.extendleft(reversed([piece[written:], *now[i + 1 :]]))
                break
            written -= piece.nbytes


def _read_at(fd: int, at: int, size: int, writable: bool) -> memoryview:
    view = memoryview(bytearray(size))
    done = 0
    while done < size:
        got = os.preadv(fd, [view[done:]], at + done)
        if not got:
            raise OSError(errno.EIO, "it has become shorter")
        done += got
    return view if writable else view.toreadonly()


class Guest:
    """Writes results of the call `n` of `client` into that client's directory."""

    def __init__(self, directory: Directory, client: str, n: str) -> None:
        self.path = directory.path
        self._directory = directory
        self._start = f"r-{client}-{n.partition('.')[0]}"

    def shelve(self, parts: Sequence[Sequence[Any]]) -> Shelved | None:
        name = f"{self._start}-{secrets.token_hex(8)}"
        sizes = self._directory.write(name, parts)
        return None if sizes is None else Shelved(name, sizes, None)
