"""The directories of shared memory: this process's own, and those of others that it has visited.

Each client process has one, which it makes when it first needs it and locks for as long as it lives, so that whoever
finds one that is not locked may remove it. Always true here: a forked child never touches its parent's; a file of ours
that nobody needs goes into the pool only when nobody maps it, and is removed otherwise, so that its memory is free when
they are done.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nbqueue.codec.segments import CLOSED, NAME, POOL, PREFIX, Directory, Segment, Shelved
from nbqueue.codec.written import Written
from nbqueue.errors import NbqueueError

__all__ = ["Own", "base", "existing", "ours", "remove_ours", "sweep", "unusable", "visit"]

# Segments that wait to be written again, whose pages are there already; and for how long, after the last was written.
POOL_BYTES, POOL_FILES = 256_000_000, 64
POOL_IDLE_S = 30.0
_BASE = "/dev/shm"
CHOSEN_BY = "NBQUEUE_SHARED_MEMORY"
_LOCK = "lock"
_RESULT = re.compile(r"r-([0-9a-f]+)-([0-9]+)-[0-9a-f]+")
_TRIES = 100
# Directories of others that are kept open. A task that calls tasks has one of its own.
_VISITED = 16


class Own(Directory):
    """This process's directory. It holds the lock in it for as long as it lives."""

    def __init__(self, base: str) -> None:
        self.pid = os.getpid()
        self._unneeded: deque[str] = deque()
        self._claimed: set[str] = set()
        self._letting_go = threading.Lock()
        self._used_at = 0.0
        self._written = Written()
        path = f"{base}/{PREFIX}{os.getuid()}-{self.pid}-{secrets.token_hex(8)}"
        os.mkdir(path, 0o700)
        os.chmod(path, 0o700)
        self._lock = _lock_of(path)
        if self._lock < 0:
            raise OSError(errno.EBUSY, "it was swept away before it was locked")
        super().__init__(path)
        os.mkdir(POOL, 0o700, dir_fd=self._fd)
        os.chmod(f"{path}/{POOL}", 0o700)

    def shelve(self, parts: Sequence[Sequence[Any]]) -> Shelved | None:
        self.let_go()
        self._used_at = time.monotonic()
        name = f"a-{secrets.token_hex(8)}"
        sizes = self.write(name, parts)
        return None if sizes is None else Shelved(name, sizes, Segment(name, self._unneeded))

    def _pour(self, fd: int, pieces: list[memoryview], size: int) -> None:
        if not self._written.pour(fd, pieces, size):
            super()._pour(fd, pieces, size)

    def claim(self, name: str) -> Segment:
        """A segment that another has written here for us, as a message that is signed says."""
        if not NAME.fullmatch(name):
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
                self._used_at = time.monotonic()
                try:
                    self._take_back(name)
                except OSError:
                    # It is gone already.
                    pass
            self._trim_pool()
            self._written.forget()
        except OSError:
            # The directory is gone.
            pass
        finally:
            self._letting_go.release()

    def _take_back(self, name: str) -> None:
        fd = os.open(name, os.O_RDWR | CLOSED, dir_fd=self._fd)
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
            os.rename(name, f"{POOL}/{size}-{time.monotonic_ns():x}", src_dir_fd=self._fd, dst_dir_fd=self._fd)
        finally:
            os.close(fd)

    def _trim_pool(self) -> None:
        found = sorted(self._pool(), key=lambda entry: entry[1].partition("-")[2], reverse=True)
        room = POOL_BYTES
        for i, (size, entry) in enumerate(found):
            room -= size
            if room < 0 or i >= POOL_FILES:
                self._unlink(f"{POOL}/{entry}")

    def sweep_results(self, client: str, is_open: Callable[[int], bool]) -> None:
        """Remove results of calls that are not open any more, and that nobody has claimed: their replies are lost."""
        if self.pid != os.getpid():
            return
        try:
            for name in os.listdir(self._fd):
                found = _RESULT.fullmatch(name)
                if found is None or found[1] != client or is_open(int(found[2])):
                    continue
                # In this order: a reply is claimed before its call is closed.
                if name not in self._claimed:
                    self._unlink(name)
            if time.monotonic() - self._used_at > POOL_IDLE_S:
                self._empty_pool()
            self._written.forget()
        except OSError:
            # The directory is gone.
            pass

    def remove(self) -> None:
        if self.pid == os.getpid():
            for _ in range(_TRIES):
                shutil.rmtree(self.path, ignore_errors=True)
                # A worker of another pool may just have written into it.
                if not os.path.exists(self.path):
                    break
        self.abandon()

    def abandon(self) -> None:
        """Of a forked child: what is its parent's is none of its business, nor may the child keep the lock."""
        self._written.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _lock_of(path: str) -> int:
    """Lock a directory for good; -1 if it is gone meanwhile or another has it."""
    try:
        fd = os.open(f"{path}/{_LOCK}", os.O_RDWR | os.O_CREAT | CLOSED, 0o600)
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
    chosen = os.environ.get(CHOSEN_BY, _BASE if sys.platform.startswith("linux") else "")
    return "" if chosen in ("", "0") or not os.path.isabs(chosen) or not os.path.isdir(chosen) else chosen


def unusable() -> str | None:
    """Why the place that the user has chosen cannot be used; None if it can, or if he has chosen none."""
    chosen = os.environ.get(CHOSEN_BY, "0")
    if chosen in ("", "0"):
        return None
    if not os.path.isabs(chosen):
        why = "is not an absolute path"
    elif not os.path.isdir(chosen):
        why = "is no directory" if os.path.exists(chosen) else "does not exist"
    elif not os.access(chosen, os.W_OK | os.X_OK):
        why = "may not be written to"
    else:
        return None
    return (
        f"{CHOSEN_BY}={chosen!r} {why}: large data go through Redis instead, which is slower. Name a directory in "
        "memory, or 0 to have no shared memory and no warning."
    )


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


# Now, and not when there is one: so this comes after the end of workers, who would write into it to the last.
atexit.register(remove_ours)


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
    gone = True
    # Also where this process uses none: others may have.
    for path in (path for where in {base(), _BASE} if where for path in Path(where).glob(f"{PREFIX}{os.getuid()}-*")):
        try:
            found = path.lstat()
            if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
                continue
            if not (path / _LOCK).exists() and time.time() - found.st_mtime < 60 and _lives(path):
                # It is just being made.
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


def _lives(path: Path) -> bool:
    """Whether there is a process that may have made this directory."""
    try:
        os.kill(int(path.name.split("-")[2]), 0)
    except (ProcessLookupError, ValueError, IndexError):
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _in_child() -> None:
    global _ours, _guard
    _guard = threading.RLock()
    own, _ours = _ours, None
    if own is not None:
        own.abandon()


os.register_at_fork(after_in_child=_in_child)
