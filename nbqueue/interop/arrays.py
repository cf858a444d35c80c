"""Large arrays of many calls: sent once, although nobody has put them.

Who hands the same array to call after call, as joblib's users do, means one thing by it. Always true here: an array is
taken for the one that was sent only while it is that very object, and only if its bytes are what they were (a buffer
may have been filled anew); where it arrives it is read-only, as joblib's own are; it is held no longer than its owner
holds it, or a call that is open needs it. An array in a file is sent as its place there, so tasks may write to it.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Arrays"]

# What is compared at a time: much less than a cache, so that nothing is read twice from memory.
_COMPARED_BYTES = 1 << 18
# More than this is refused by a server, where there is no shared memory; then it travels as it always does.
_MOST_PUT_BYTES = 400_000_000


class Handle(Protocol):
    """What `put` gives."""

    def get(self) -> Any: ...


class Arrays:
    """Asked for each array that a call's arguments hold: gives what is to travel in its place, or None.

    Parameters
    ----------
    put : callable
        Takes an array as it is now.
    least_bytes : int or None
        Smaller arrays travel with each call; None: all do.
    same_host : bool
        The workers see this host's files.
    unbounded : bool
        There is shared memory, so any size may be put.
    """

    def __init__(
        self, put: Callable[[Any], Handle], least_bytes: int | None, *, same_host: bool, unbounded: bool
    ) -> None:
        self._put = put
        self._least_bytes = least_bytes
        self._same_host = same_host
        self._unbounded = unbounded
        self._sent: dict[int, tuple[weakref.ref[Any], Handle]] = {}

    @property
    def kinds(self) -> tuple[type, ...]:
        """What it is to be asked for: nothing, as long as NumPy is not there."""
        numpy = sys.modules.get("numpy")
        return () if numpy is None else (numpy.ndarray, numpy.memmap)

    def __call__(self, value: Any) -> Any:
        numpy = sys.modules["numpy"]
        if self._same_host and (place := _place_in_file(value, numpy)) is not None:
            return place
        if self._least_bytes is None or value.nbytes < self._least_bytes or not _is_plain(value, numpy):
            return None
        if not self._unbounded and value.nbytes > _MOST_PUT_BYTES:
            return None
        return self._handle(value, numpy)

    def _handle(self, value: Any, numpy: Any) -> Handle:
        key = id(value)
        sent = self._sent.get(key)
        if sent is not None and sent[0]() is value and _same(value, sent[1].get(), numpy):
            return sent[1]
        handle = self._put(value)
        self._sent[key] = weakref.ref(value, lambda _: self._sent.pop(key, None)), handle
        return handle


def _is_plain(value: Any, numpy: Any) -> bool:
    """Whether its bytes are all that it is, in one piece."""
    flags = value.flags
    return type(value) is numpy.ndarray and not value.dtype.hasobject and (flags.c_contiguous or flags.f_contiguous)


def _same(value: Any, sent: Any, numpy: Any) -> bool:
    """Whether two plain arrays are equal to the last bit: a NaN equals itself, and 0.0 is not -0.0."""
    if (value.shape, value.strides, value.dtype) != (sent.shape, sent.strides, sent.dtype):
        return False
    ours, theirs = (array.ravel(order="K").view(numpy.uint8) for array in (value, sent))
    for start in range(0, len(ours), _COMPARED_BYTES):
        a, b = ours[start : start + _COMPARED_BYTES], theirs[start : start + _COMPARED_BYTES]
        if len(a) % 8 == 0:
            a, b = a.view(numpy.uint64), b.view(numpy.uint64)
        if not numpy.array_equal(a, b):
            return False
    return True


def _place_in_file(value: Any, numpy: Any) -> tuple[Any, ...] | None:
    """How an array that lies in a file is opened elsewhere; None for any other."""
    backing = value
    while type(backing.base) in (numpy.memmap, numpy.ndarray):
        backing = backing.base
    if type(backing) is not numpy.memmap or not backing.filename or not value.size:
        return None
    mode = "r+" if backing.mode == "w+" else backing.mode
    if mode not in ("r", "r+") or value.dtype.hasobject:
        # Of one that is copied when it is written to, the file knows nothing.
        return None
    start = value.__array_interface__["data"][0] - backing.__array_interface__["data"][0] + backing.offset
    low = value[tuple(slice(None, None, -1 if stride < 0 else 1) for stride in value.strides)] if value.ndim else value
    if low.__array_interface__["data"][0] != value.__array_interface__["data"][0]:
        # It runs backwards somewhere.
        return None
    if not value.flags.writeable:
        mode = "r"
    return _open, (str(backing.filename), mode, start, value.dtype, value.shape, value.strides)


def _open(path: str, mode: str, start: int, dtype: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    import numpy as np

    size = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + dtype.itemsize
    whole = np.memmap(path, dtype=np.uint8, mode=mode, offset=start, shape=(size,))  # type: ignore[call-overload]
    return np.ndarray(shape, dtype, whole, 0, strides)
