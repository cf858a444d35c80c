"""Large objects that travel once: the handles that stand for them, and where a worker keeps what it was sent.

`client` makes a `Put` of an object and sends its bytes, signed, under their digest, as it sends functions. Where
`functions` pickles a call it writes the digest in the handle's place, and tells which it met; `worker.supplies` fetches
those before it begins the call, and unpickling finds the object in the worker's `Store`.

Always true here: bytes are never copied to be unpickled, so the arrays in them are views, and read-only; what a
call needs stays in the store until the next call. The message of a large object may say where in shared memory its
bytes lie; that other messages lie in Redis is known elsewhere.
"""

from __future__ import annotations

import pickle
import struct
import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Any, Generic, Protocol, TypeVar

from nbqueue.codec.frames import buffers_of, is_reference, is_there, parts_of, size_of
from nbqueue.codec.parts import type_name
from nbqueue.codec.seal import HEAD_BYTES
from nbqueue.codec.segments import Segment
from nbqueue.errors import NbqueueError

__all__ = [
    *("Put", "Share", "Sharing", "Store", "are_put", "arrived", "as_it_is", "as_keywords", "find", "got", "handle_of"),
    *("keywords_handle", "load_keywords", "pack", "size_text", "unpack"),
]

T = TypeVar("T")

# What a worker keeps of objects that its present call does not need, as long as they were pickled.
KEPT_BYTES = 1_000_000_000
# Of buffers within a signed message: bytes objects begin at such an address, too.
_ALIGN = 16


class Put(Generic[T]):
    """Stands for an object that was sent once. Made by ``queue.put``.

    A task that is given one, as an argument, inside of one, or captured by its
    function, receives the object. Pickled anywhere else (in a task's result, by
    you), it becomes the object as well.

    Attributes
    ----------
    size_bytes : int
        What travels.
    digest : str
        Names the content: equal content travels once. What lies in shared memory
        has a name by chance, since to digest it takes longer than to copy it.

    Examples
    --------
    >>> table = queue.put({"a": 1, "b": 2})
    >>> table
    <Put dict, ...>
    >>> queue.submit(sorted, table).result()
    ['a', 'b']
    """

    __slots__ = ("__weakref__", "_form", "_segment", "_type_name", "_value", "digest", "message", "scope", "size_bytes")

    def __init__(
        self, digest: str, message: bytes, scope: str, type_name: str = "object", segment: Segment | None = None
    ) -> None:
        self.digest = digest
        self.message = message  # signed for the queue `scope`
        self.scope = scope
        self.size_bytes = size_of(self.body)
        self._segment = segment
        self._type_name = type_name
        self._value: list[T] = []
        self._form: tuple[Any, ...] | None = None
        _handles[digest] = self

    def __repr__(self) -> str:
        return f"<Put {self._type_name}, {size_text(self.size_bytes)}>"

    @property
    def body(self) -> memoryview:
        return memoryview(self.message)[HEAD_BYTES:]

    def get(self) -> T:
        """The object, as it was when it was put. Arrays in it are read-only; all who ask get the same one.

        Examples
        --------
        >>> queue.put([1, 2, 3]).get()
        [1, 2, 3]
        """
        if not self._value:
            value: T = unpack(self.body, self._segment)
            self._value.append(value)
            self._type_name = type_name(value)
            # An array in our bytes stays as it is: sent on, it travels as its handle. Of other objects nobody knows.
            if _buffers_of(self.body) == 1 and (form := _form(value)) is not None:
                key, self._form = id(value), form
                got[key] = weakref.ref(self, lambda _: got.pop(key, None))
        return self._value[0]

    def __copy__(self) -> Put[T]:
        return self

    def __deepcopy__(self, memo: object) -> Put[T]:
        return self

    def fresh(self) -> T:
        """The object once more, as an argument arrives: nobody else has it, and its arrays can be written to."""
        if is_reference(self.body):
            pickled, buffers = parts_of(self.body, segment=self._segment)
        else:
            pickled, *views = _parts(self.body)
            buffers = [bytearray(view) for view in views]
        value: T = pickle.loads(pickled, buffers=buffers)
        return value

    @property
    def pickled(self) -> bytes | memoryview:
        """Its pickle alone, of what lies in shared memory a reference."""
        return self.body if is_reference(self.body) else _parts(self.body)[0]

    @property
    def is_lost(self) -> bool:
        """Whether its bytes lay in shared memory, and are gone: whoever put it has forgotten it."""
        return is_reference(self.body) and not is_there(self.body)

    def packed(self) -> bytes:
        """The body with all its bytes, for where shared memory does not reach."""
        if not is_reference(self.body):
            return bytes(self.body)
        pickled, buffers = parts_of(self.body, writable=False)
        return pack(pickled, buffers)

    def __reduce__(self) -> tuple[Any, ...]:
        return (as_it_is, (self.get(),)) if is_reference(self.body) else (_from_message, (self.message,))


# Of the handles of this process: by digest, and by the id of their object, which they keep alive.
_handles: weakref.WeakValueDictionary[str, Put[Any]] = weakref.WeakValueDictionary()
got: dict[int, weakref.ref[Put[Any]]] = {}


def find(digest: str, scope: str) -> Put[Any] | None:
    """The handle of this content in this process."""
    handle = _handles.get(digest)
    return handle if handle is not None and handle.scope == scope else None


def handle_of(value: object) -> Put[Any] | None:
    """What stands for `value` where it is sent: itself if it is a handle, or the handle that it was got from."""
    if type(value) is Put:
        return value
    found = got.get(id(value)) if got else None
    handle = None if found is None else found()
    return handle if handle is not None and handle._form == _form(value) else None


def _form(value: Any) -> tuple[Any, ...] | None:
    """How a read-only array reads its bytes, which can be changed in place; None of anything else."""
    numpy = sys.modules.get("numpy")
    if numpy is None or type(value) is not numpy.ndarray or value.flags.writeable or value.flags.owndata:
        return None
    return value.shape, value.strides, value.dtype


def arrived(digest: str) -> Any:
    """What a handle in a call becomes where it is unpickled.

    Raises
    ------
    NbqueueError
        If this process was not sent it.
    """
    handle = _handles.get(digest)
    if handle is None:
        raise NbqueueError(
            f"The object {digest} that was put is not in this process. Put it again, and pass the new handle."
        )
    return handle.get()


class Share(Protocol):
    """Asked for what a call's arguments hold, as far as it is exactly of one of the `kinds`."""

    @property
    def kinds(self) -> Collection[type]: ...

    def __call__(self, value: Any) -> Put[Any] | tuple[Any, ...] | None:
        """What is to travel in its place: a handle, or a pickler's own reduction; None: it as it is."""


class Sharing(list[Put[Any]]):
    """The handles that were met in a call, for which somebody else is asked, too."""

    def __init__(self, share: Share) -> None:
        super().__init__()
        self._share = share
        self._kinds = share.kinds

    def instead_of(self, value: object) -> tuple[Any, ...] | None:
        if type(value) not in self._kinds:
            return None
        found = self._share(value)
        if not isinstance(found, Put):
            return found
        self.append(found)
        return arrived, (found.digest,)


def size_text(size_bytes: int) -> str:
    """
    >>> size_text(80_000_163), size_text(1_250), size_text(12)
    ('80 MB', '1.2 kB', '12 bytes')
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.{0 if size_bytes >= 10 * factor else 1}f} {unit}"
    return f"{size_bytes} bytes"


def pack(pickled: bytes, buffers: Sequence[memoryview]) -> bytes:
    """One body of a pickle and the buffers that were left out of it."""
    parts: list[Any] = [pickled, *buffers]
    head = struct.pack(f"<{1 + len(parts)}Q", len(parts), *(len(part) for part in parts))
    pieces: list[Any] = [head]
    at = len(head)
    for part in parts:
        gap = _start(at) - at
        pieces += (bytes(gap), part)
        at += gap + len(part)
    return b"".join(pieces)


def _parts(body: memoryview) -> list[memoryview]:
    (count,) = struct.unpack_from("<Q", body)
    sizes = struct.unpack_from(f"<{count}Q", body, 8)
    at = 8 + 8 * count
    parts = []
    for size in sizes:
        at = _start(at)
        parts.append(body[at : at + size])
        at += size
    return parts


def _start(at: int) -> int:
    """The next place in a body that is aligned in its message."""
    return at + -(at + HEAD_BYTES) % _ALIGN


def _buffers_of(body: memoryview) -> int:
    """How many buffers were left out of its pickle."""
    return buffers_of(body) if is_reference(body) else len(_parts(body)) - 1


def unpack(body: memoryview, segment: Segment | None = None) -> Any:
    """The object, whose arrays lie in `body`, or where it says. Runs users' unpickling code."""
    if is_reference(body):
        pickled, buffers = parts_of(body, writable=False, segment=segment)
    else:
        pickled, *buffers = _parts(body)
    value = pickle.loads(pickled, buffers=buffers)
    if type(value).__module__ == "numpy" and hasattr(value, "setflags"):
        # One that is not contiguous has no buffer outside of the pickle.
        value.setflags(write=False)
    return value


def _from_message(message: bytes) -> Any:
    return unpack(memoryview(message)[HEAD_BYTES:])


# Keywords of a batch that travel as what is put begin so; no pickle does.
_MARK = b"\0nbqput\0"


def as_keywords(handle: Put[Any]) -> bytes:
    """Stands for the large keywords that all items of a batch have in common, and that are sent once."""
    return _MARK + handle.digest.encode()


def are_put(keywords: bytes) -> bool:
    """Whether these are sent apart from the items: then none of them has keywords of its own."""
    return keywords.startswith(_MARK)


def keywords_handle(keywords: bytes) -> Put[Any] | None:
    return _handles.get(keywords[len(_MARK) :].decode())


def load_keywords(keywords: bytes) -> dict[str, Any]:
    """A batch's keywords, fresh for each item, however they were sent. Runs users' unpickling code.

    Raises
    ------
    NbqueueError
        If they are not in this process, or gone.
    """
    found: dict[str, Any]
    if are_put(keywords):
        handle = keywords_handle(keywords)
        if handle is None:
            raise NbqueueError("The keywords that this batch has in common are not in this process. Send it again.")
        found = handle.fresh()
    else:
        found = pickle.loads(keywords)
    return found


def as_it_is(value: Any) -> Any:
    """What a pickle makes of another object that stands for this one."""
    return value


class Store:
    """What a worker was sent: all that its present call needs, and of the rest what was used last."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._handles: OrderedDict[str, Put[Any]] = OrderedDict()

    def hold(self, digests: Sequence[str], fetch: Callable[[str], Put[Any]]) -> bool:
        """Have all of these until the next time. True if others were dropped for it."""
        for digest in digests:
            if digest not in self._handles:
                self._handles[digest] = fetch(digest)
            self._handles.move_to_end(digest)
        size = sum(handle.size_bytes for handle in self._handles.values())
        dropped = False
        while size > self._kept_bytes and len(self._handles) > len(set(digests)):
            _, handle = self._handles.popitem(last=False)
            size -= handle.size_bytes
            dropped = True
        return dropped

    def let_go(self) -> bool:
        """Drop what was put in shared memory and is forgotten there. True if there was some."""
        lost = [digest for digest, handle in self._handles.items() if handle.is_lost]
        for digest in lost:
            del self._handles[digest]
        return bool(lost)
