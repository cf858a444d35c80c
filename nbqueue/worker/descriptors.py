"""File descriptors that a worker keeps for itself, in a process where a task may close and open whatever it likes.

And those that a program finds open when it begins: 0, 1 and 2. Where it was started without one of them (``>&-`` in a
shell, some service managers), the next file that is opened gets that number, and what tasks print goes into it.
"""

from __future__ import annotations

import fcntl
import os
import resource

__all__ = ["fill_standard", "out_of_the_way", "size_of"]

# Where they begin; and where so many are not allowed, how many have room before the limit.
_OWN, _ROOM = 200, 16


def fill_standard() -> None:
    """Open the null device as each of 0, 1 and 2 that is closed. For a program that has just begun."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def out_of_the_way(fd: int) -> int:
    """A copy of a descriptor for this process alone, where nobody is who closes or opens small numbers."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    lowest = _OWN if soft == resource.RLIM_INFINITY else min(_OWN, soft - _ROOM)
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(0, lowest))


def size_of(fd: int, inode: int) -> int:
    """Of the file that a descriptor leads to; -1 where a task has closed it, though another may have its number."""
    try:
        found = os.fstat(fd)
    except OSError:
        return -1
    return found.st_size if found.st_ino == inode else -1
