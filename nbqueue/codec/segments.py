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
import shutil
import stat
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from nbqueue.errors import NbqueueError

__all__ = [
    *("MAPPED_BYTES", "Directory", "Guest", "Mapping", "Own", "Segment", "Shelf", "Shelved"),
    *("base", "existing", "ours", "remove_ours", "sweep", "visit"),
]

# What is smaller is read rather than mapped: that costs no more, and neither a descriptor nor a lock.
MAPPED_BYTES = 1_000_000
# Each mapping has a descriptor, of which a process may have 1024 by default. Beyond this, segments are read.
MOST_MAPPED = 256
# Segments that wait to be written again, whose pages are there already.
POOL_BYTES, POOL_FILES = 256_000_000, 64
# One of the pool is taken for what fills at least a half of it.
_WASTE = 2
_ALIGN = 64
_NOTHING = memoryview(bytes(_ALIGN))
_MOST_PIECES = 512
_BASE = "/dev/shm"
_PREFIX = "nbqueue-"
_LOCK, _POOL = "lock", "pool"
_NAME = re.compile(r"[ar]-[0-9a-f-]{8,80}")
_DIRECTORY = re.compile(rf"/.*/{_PREFIX}[0-9]+-[0-9]+-[0-9a-f]+")
_CLOSED = os.O_CLOEXEC | os.O_NOFOLLOW
# Directories of others that are kept open. A task that calls tasks has one of its own.
_VISITED = 16


class Mapping(mmap.mmap):
    """The memory of a segment. While anything uses it, the segment is locked; `segment` lives as long."""

    segment: Segment | None = None
    alive = 0

    def __del__(self) -> None:
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
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _CLOSED)
            found = os.fstat(self._fd)
            self._inode = found.st_ino
            if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
                raise OSError(errno.EPERM, "others may read or write it")
        except OSError as error:
            raise NbqueueError(f"The shared memory {path} cannot be used: {error.strerror}.") from error

    def __del__(self) -> None:
        if self._fd >= 0 and self.is_open():
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
            _write_all(fd, pieces)
        except BaseException:
            os.unlink(name, dir_fd=self._fd)
            raise
        finally:
            os.close(fd)

    def _claim(self, name: str, size: int) -> int:
        """A file of that name to write to: one of the pool, since touching fresh pages costs more than the copy."""
        for found, entry in sorted(self._pool()):
            if size * 7 // 8 <= found <= size * _WASTE:
                try:
                    os.rename(f"{_POOL}/{entry}", name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
                    return os.open(name, os.O_RDWR | _CLOSED, dir_fd=self._fd)
                except FileNotFoundError:
                    # Another was faster.
                    continue
        return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _CLOSED, 0o600, dir_fd=self._fd)

    def _pool(self) -> list[tuple[int, str]]:
        """Size and name of each file in the pool."""
        pool = os.open(_POOL, os.O_RDONLY | os.O_DIRECTORY | _CLOSED, dir_fd=self._fd)
        try:
            return [(int(entry.partition("-")[0]), entry) for entry in os.listdir(pool)]
        finally:
            os.close(pool)

    def _empty_pool(self) -> bool:
        """Give back the memory of all that is in the pool. False if there was nothing."""
        return sum(self._unlink(f"{_POOL}/{entry}") for _, entry in self._pool()) > 0

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
            if not _NAME.fullmatch(name):
                raise OSError(errno.EINVAL, "not a name of ours")
            fd = os.open(name, os.O_RDONLY | _CLOSED, dir_fd=self._fd)
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
                Mapping.alive += 1
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


class Own(Directory):
    """This process's directory. It holds the lock in it for as long as it lives."""

    def __init__(self, base: str) -> None:
        self.pid = os.getpid()
        self._unneeded: deque[str] = deque()
        self._claimed: set[str] = set()
        self._letting_go = threading.Lock()
        path = f"{base}/{_PREFIX}{os.getuid()}-{self.pid}-{secrets.token_hex(8)}"
        os.mkdir(path, 0o700)
        self._lock = _lock_of(path)
        if self._lock < 0:
            raise OSError(errno.EBUSY, "it was swept away before it was locked")
        super().__init__(path)
        os.mkdir(_POOL, 0o700, dir_fd=self._fd)

    def shelve(self, parts: Sequence[Sequence[Any]]) -> Shelved | None:
        self.let_go()
        name = f"a-{secrets.token_hex(8)}"
        sizes = self.write(name, parts)
        return None if sizes is None else Shelved(name, sizes, Segment(name, self._unneeded))

    def claim(self, name: str) -> Segment:
        """A segment that another has written here for us, as a message that is signed says."""
        if not _NAME.fullmatch(name):
            raise NbqueueError(f"{name!r} is not the name of a segment.")
        self._claimed.add(name)
        return Segment(name, self._unneeded)

    def let_go(self) -> None:
        """Take back what nobody needs any more: into the pool, or away for good if somebody still maps it."""
        if not self._unneeded or self.pid != os.getpid() or not self._letting_go.acquire(blocking=False):
            return
        try:
            while self._unneeded:
                name = self._unneeded.popleft()
                self._claimed.discard(name)
                try:
                    self._take_back(name)
                except OSError:
                    # It is gone already.
                    pass
            self._trim_pool()
        except OSError:
            # The directory is gone.
            pass
        finally:
            self._letting_go.release()

    def _take_back(self, name: str) -> None:
        fd = os.open(name, os.O_RDWR | _CLOSED, dir_fd=self._fd)
        try:
            size = os.fstat(fd).st_size
            if size > POOL_BYTES:
                os.unlink(name, dir_fd=self._fd)
                return
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # A worker that keeps it, or a child of one. Its memory is free when they are done.
                os.unlink(name, dir_fd=self._fd)
                return
            os.rename(name, f"{_POOL}/{size}-{time.monotonic_ns():x}", src_dir_fd=self._fd, dst_dir_fd=self._fd)
        finally:
            os.close(fd)

    def _trim_pool(self) -> None:
        found = sorted(self._pool(), key=lambda entry: entry[1].partition("-")[2], reverse=True)
        room = POOL_BYTES
        for i, (size, entry) in enumerate(found):
            room -= size
            if room < 0 or i >= POOL_FILES:
                self._unlink(f"{_POOL}/{entry}")

    def sweep_results(self, client: str, is_open: Callable[[int], bool]) -> None:
        """Remove results of calls that are not open any more, and that nobody has claimed: their replies are lost."""
        start = f"r-{client}-"
        if self.pid != os.getpid():
            return
        for name in os.listdir(self._fd):
            if not name.startswith(start) or is_open(int(name[len(start) :].partition("-")[0])):
                continue
            # In this order: a reply is claimed before its call is closed.
            if name not in self._claimed:
                self._unlink(name)

    def remove(self) -> None:
        if self.pid == os.getpid():
            shutil.rmtree(self.path, ignore_errors=True)
        self.abandon()

    def abandon(self) -> None:
        """Of a forked child: what is its parent's is none of its business, nor may the child keep the lock."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _lock_of(path: str) -> int:
    """Lock a directory for good; -1 if it is gone meanwhile or another has it."""
    try:
        fd = os.open(f"{path}/{_LOCK}", os.O_RDWR | os.O_CREAT | _CLOSED, 0o600)
    except OSError:
        return -1
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(f"{path}/{_LOCK}").st_ino == os.fstat(fd).st_ino:
            return fd
    except OSError:
        # Its owner lives, or whoever sweeps it has it.
        pass
    os.close(fd)
    return -1


# This process's own, and those of others that it has visited

_ours: Own | None = None
_none = False  # there can be none
_visited: OrderedDict[str, Directory] = OrderedDict()
_guard = threading.RLock()


def base() -> str:
    """Where directories are made; empty where shared memory is not to be used."""
    chosen = os.environ.get("NBQUEUE_SHARED_MEMORY", _BASE if sys.platform.startswith("linux") else "")
    return "" if chosen in ("", "0") or not os.path.isabs(chosen) or not os.path.isdir(chosen) else chosen


def ours() -> Own | None:
    """This process's directory, made when it is first asked for; None where there can be none."""
    global _ours, _none
    if _ours is not None:
        return _ours
    with _guard:
        where = base()
        if _none or not where:
            return None
        if _ours is None:
            try:
                _ours = Own(where)
            except (OSError, NbqueueError):
                # Everything travels another way.
                _none = True
        return _ours


def existing() -> Own | None:
    """This process's directory, if it has made one."""
    return _ours


def remove_ours() -> None:
    """Remove this process's directory. What is mapped stays so."""
    global _ours
    with _guard:
        own, _ours = _ours, None
        if own is not None:
            own.remove()


def visit(path: str) -> Directory:
    """The directory of a client, which may be ourselves."""
    own = _ours
    if own is not None and own.path == path:
        return own
    with _guard:
        found = _visited.get(path)
        if found is None or not found.is_open():
            found = _visited[path] = Directory(path)
            if len(_visited) > _VISITED:
                _visited.popitem(last=False)
        _visited.move_to_end(path)
        return found


def sweep(pid: int | None = None) -> bool:
    """Remove directories whose owner is dead. True if none is left of the process `pid`."""
    where = base()
    gone = True
    for path in Path(where).glob(f"{_PREFIX}{os.getuid()}-*") if where else ():
        try:
            found = path.lstat()
            if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
                continue
            if not (path / _LOCK).exists() and time.time() - found.st_mtime < 60:
                # Another process is just making it.
                continue
        except OSError:
            # It is just being removed.
            continue
        fd = _lock_of(str(path))
        if fd >= 0:
            shutil.rmtree(path, ignore_errors=True)
            os.close(fd)
        elif path.name.split("-")[2] == str(pid):
            gone = False
    return gone


def _in_child() -> None:
    global _ours, _guard
    _guard = threading.RLock()
    own, _ours = _ours, None
    if own is not None:
        own.abandon()


os.register_at_fork(after_in_child=_in_child)
