"""File descriptors that a worker keeps for itself, in a process where a task may close and open whatever it likes."""

from __future__ import annotations

import fcntl
import os

__all__ = ["out_of_the_way", "size_of"]

# Where they begin.
_OWN = 200


def out_of_the_way(fd: int) -> int:
    """A copy of a descriptor for this process alone, where nobody is who closes or opens small numbers."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _OWN)


def size_of(fd: int, inode: int) -> int:
    """Of the file that a descriptor leads to; -1 where a task has closed it, though another may have its number."""
    try:
        found = os.fstat(fd)
    except OSError:
        return -1
    return found.st_size if found.st_ino == inode else -1
