"""What stands in a message for a pickle: the pickle itself or, of large data, where in shared memory they lie.

`functions` makes frames, whoever unpickles one comes here. Always true here: a frame is bytes, and those of a pickle
never begin as a reference does; the reference is within the signed message, what it names is protected by its
directory's permissions; arrays arrive writable, each time anew, unless they are asked for otherwise.
"""

from __future__ import annotations

import mmap
import pickle
from collections.abc import Sequence
from typing import Any

from nbqueue.codec.segments import Segment, Shelf
from nbqueue.codec.shelves import visit
from nbqueue.errors import NbqueueError

__all__ = [
    *("SHARED_BYTES", "Frame", "buffers_of", "held_by", "is_reference", "is_there", "load_frame", "parts_of", "refer"),
    *("size_of", "stand_ins"),
]

# What is smaller travels in the message.
SHARED_BYTES = 128_000
# No pickle begins so, nor a body of `blobs.pack`.
_MARK = b"\0nbqseg\0"


class Frame(bytes):
    """A reference that keeps what it names, which has `size_bytes`."""

    segment: Segment | None = None
    size_bytes = 0

    @property
    def path(self) -> str:
        """Of the directory."""
        return _read(self)[0]

    @property
    def name(self) -> str:
        """Of the segment."""
        return _read(self)[1]


def refer(
    shelf: Shelf, stream: Sequence[Any], buffers: Sequence[memoryview], least_bytes: int = SHARED_BYTES
) -> Frame | None:
    """Write a pickle, as far as it is large, and the buffers that were left out of it; None if there is no room."""
    inline = b"".join(stream) if sum(map(len, stream)) < least_bytes else None
    shelved = shelf.shelve([*([stream] if inline is None else []), *([buffer] for buffer in buffers)])
    if shelved is None:
        return None
    frame = Frame(_MARK + pickle.dumps((shelf.path, shelved.name, shelved.sizes, inline), protocol=5))
    frame.segment = shelved.segment
    frame.size_bytes = len(inline or b"") + sum(shelved.sizes)
    return frame


def held_by(data: bytes) -> tuple[Segment, ...]:
    """What is to be kept as long as this frame may be asked for."""
    return (data.segment,) if isinstance(data, Frame) and data.segment is not None else ()


def is_reference(data: bytes | memoryview) -> bool:
    return data[:8] == _MARK


def size_of(data: bytes | memoryview) -> int:
    """What travels, wherever it lies."""
    if not is_reference(data):
        return len(data)
    _, _, sizes, inline = _read(data)
    return len(inline or b"") + sum(sizes)


def load_frame(data: bytes) -> Any:
    """The object. Runs users' unpickling code.

    Raises
    ------
    NbqueueError
        If its data are gone.
    """
    if not data.startswith(_MARK):
        return pickle.loads(data)
    stream, buffers = parts_of(data)
    return pickle.loads(stream, buffers=buffers)


def parts_of(data: bytes | memoryview, *, writable: bool = True, segment: Segment | None = None) -> Any:
    """The pickle of a reference, and the buffers that were left out of it. What is mapped keeps the `segment`."""
    path, name, sizes, inline = _read(data)
    if segment is None and isinstance(data, Frame):
        segment = data.segment
    parts = visit(path).read(name, sizes, writable=writable, segment=segment)
    return (parts[0], parts[1:]) if inline is None else (inline, parts)


def is_there(data: bytes | memoryview) -> bool:
    """Whether what a reference names still has that name."""
    path, name, _, _ = _read(data)
    try:
        return visit(path).has(name)
    except NbqueueError:
        return False


def buffers_of(data: bytes | memoryview) -> int:
    """How many buffers were left out of the pickle of a reference."""
    _, _, sizes, inline = _read(data)
    return len(sizes) - (inline is None)


def stand_ins(data: bytes | memoryview) -> tuple[bytes | memoryview | None, list[Any]]:
    """The pickle of a reference, None where it is not within it, and buffers of the right sizes that hold nothing."""
    _, _, sizes, inline = _read(data)
    return inline, [mmap.mmap(-1, size) if size else b"" for size in (sizes if inline is not None else sizes[1:])]


def _read(data: bytes | memoryview) -> tuple[str, str, tuple[int, ...], bytes | None]:
    found: tuple[str, str, tuple[int, ...], bytes | None] = pickle.loads(memoryview(data)[len(_MARK) :])
    return found

