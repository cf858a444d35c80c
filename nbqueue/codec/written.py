"""Files of shared memory that are written again and again, mapped once: to copy into a mapping costs half of a write.

Always true here: a file is mapped only when it was written to its end before, so that all of its pages are there; what
was unlinked is forgotten soon, since its memory lives as long as the mapping.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence

__all__ = ["Written"]

# Below that it hardly matters.
LEAST_BYTES = 8_000_000
MOST_FILES = 4


class Written:
    """What this process has written to; `pour` and `forget` may be called by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[int, tuple[int, mmap.mmap]] = OrderedDict()  # by inode: a descriptor, its memory

    def pour(self, fd: int, pieces: Sequence[memoryview], size: int) -> bool:
        """Copy the pieces, of `size` bytes together, to the beginning of a file. False if that has to be written."""
        if size < LEAST_BYTES:
            return False
        found = os.fstat(fd)
        if found.st_size < size:
            return False
        with self._lock:
            kept = self._files.pop(found.st_ino, None)
            if kept is not None and len(kept[1]) < size:
                _close(kept)
                kept = None
            if kept is None:
                flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
                try:
                    kept = os.dup(fd), mmap.mmap(fd, found.st_size, flags=flags)
                except (OSError, ValueError):
                    # No descriptor left, or no address.
                    return False
            self._files[found.st_ino] = kept
            if len(self._files) > MOST_FILES:
                _close(self._files.popitem(last=False)[1])
            at = 0
            for piece in pieces:
                kept[1][at : at + piece.nbytes] = piece
                at += piece.nbytes
        return True

    def forget(self) -> None:
        """Let go of what was unlinked."""
        with self._lock:
            for inode, kept in list(self._files.items()):
                try:
                    gone = not os.fstat(kept[0]).st_nlink
                except OSError:
                    gone = True
                if gone:
                    del self._files[inode]
                    _close(kept)

    def close(self) -> None:
        """Of a forked child, too, which must not keep memory that its parent has freed."""
        # Not with the lock, which another thread of the parent may have held.
        files, self._files = self._files, OrderedDict()
        for kept in files.values():
            _close(kept)


def _close(kept: tuple[int, mmap.mmap]) -> None:
    fd, memory = kept
    memory.close()
    os.close(fd)
