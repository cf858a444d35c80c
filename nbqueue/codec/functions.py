"""Functions and their arguments → bytes; the only user of cloudpickle.

`client` visits when a call is made, `tracebacks` and `values` for whatever may hold something defined in a
cell. Always true here: a plain pickle is made only of values that cannot refer to ``__main__``, because no
worker could import that. Who is to blame is searched only after a pickle has failed, by trying the parts.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import io
import math
import pickle
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import cloudpickle
from cloudpickle import cloudpickle as _internals

from nbqueue.codec.blobs import Put, Sharing, arrived, got, handle_of, pack
from nbqueue.codec.frames import SHARED_BYTES, refer
from nbqueue.codec.inputs import FutureMet, Unfit
from nbqueue.codec.parts import Part, arguments, contents, has_code, parts, type_name
from nbqueue.codec.remembered import Remembered
from nbqueue.codec.segments import Shelf
from nbqueue.codec.wrappers import CACHED, is_dispatch, reduce_cached, reduce_dispatch, reduce_property
from nbqueue.errors import NotSendable

__all__ = [
    "LARGEST_BYTES",
    "PLAIN",
    "Large",
    "all_plain_and_short",
    "all_short",
    "digest",
    "dump_arguments",
    "dump_frame",
    "dump_function",
    "dump_function_apart",
    "dump_put",
    "dumps",
    "is_long",
    "is_plain",
    "loads_at_home",
]

PROTOCOL = 5
# A Redis string holds 512 MB (proto-max-bulk-len); what is left is for the frame around the value.
LARGEST_BYTES = 500_000_000

# Exactly these, no subclass: nothing can change them, and they cannot refer to a user's code.
PLAIN = frozenset({int, float, str, bytes, bool, type(None), complex})
_SHORT = frozenset({float, bool, type(None), complex})
_INTEGERS, _TEXTS = frozenset({int, bool}), frozenset({str, bytes})
# Of an integer that is as large as a float can be.
_FLOAT_BYTES = sys.float_info.max_exp // 8

# What the fast path looks through. Beyond it, cloudpickle's fixed cost (about 10 µs) no longer shows.
_LEVELS = 3
_ELEMENTS = 64

# How far a message follows helpers, containers and attributes down to the part at fault.
_BLAME_LEVELS = 4


def is_plain(value: object) -> bool:
    """Whether a value is exactly a primitive, no subclass: many of them may share one plain pickle."""
    return type(value) in PLAIN


def all_plain_and_short(values: Sequence[object], most_bytes: int) -> bool:
    """Whether all are plain and none is longer. Of numbers of one kind, at about 0.01 µs each."""
    types = list(map(type, values))
    # Half of what a set of them costs.
    alike = not types or types.count(types[0]) == len(types)
    kinds = set(types[:1] if alike else types)
    return kinds <= PLAIN and all_short(values, kinds, most_bytes)


def all_short(values: Sequence[object], kinds: AbstractSet[type], most_bytes: int) -> bool:
    """The same of values that are known to be of these plain `kinds`, which takes half of that."""
    if kinds <= _SHORT:
        return True
    numbers: Any = values
    if kinds <= _INTEGERS:
        return _fit_into_floats(numbers, most_bytes) or max(map(int.bit_length, numbers)) <= 8 * most_bytes
    if kinds <= _TEXTS:
        return max(map(len, numbers)) <= most_bytes
    return not any(is_long(value, most_bytes) for value in values)


def _fit_into_floats(numbers: Sequence[int], most_bytes: int) -> bool:
    """Whether all do, at less than half of what it costs to ask for their lengths, and none is longer for it."""
    try:
        math.fsum(numbers)
    except OverflowError:
        return False
    return most_bytes >= _FLOAT_BYTES


def is_long(value: Any, most_bytes: int) -> bool:
    """Whether a plain value is longer: a text, bytes, or an integer of so many digits."""
    kind = type(value)
    if kind is int:
        bits: int = value.bit_length()
        return bits > 8 * most_bytes
    return kind in _TEXTS and len(value) > most_bytes


def dumps(
    obj: object,
    buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None,
    handles: list[Put[Any]] | None = None,
) -> bytes:
    """Pickle anything, also what was defined in a cell. Raises whatever the object's own pickling raises.

    With a list for `handles`, objects that were put travel as their digests, and their handles are added to it.
    """
    with io.BytesIO() as file:
        pickler = _Pickler(file, PROTOCOL, buffer_callback)
        pickler.handles = handles
        pickler.dump(obj)
        return file.getvalue()


def dump_frame(
    obj: object,
    handles: list[Put[Any]] | None = None,
    shelf: Shelf | None = None,
    least_bytes: int = SHARED_BYTES,
) -> bytes:
    """As `dumps`, for a message; what is large lies on the shelf, as far as there is one with room for it."""
    if shelf is not None:
        stream, buffers = _dump_apart(obj, handles, least_bytes)
        if not buffers and sum(map(len, stream)) < least_bytes:
            return b"".join(stream)
        frame = refer(shelf, stream, buffers, least_bytes)
        if frame is not None:
            return frame
    return dumps(obj, None, handles)


def _dump_apart(
    obj: object, handles: list[Put[Any]] | None, least_bytes: int
) -> tuple[list[Any], list[memoryview]]:
    """A pickle in pieces, of which large bytes objects are ones of their own, and the buffers that were left out."""
    buffers: list[memoryview] = []

    def stays(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:
            # Not contiguous.
            return True
        if raw.nbytes < least_bytes:
            return True
        buffers.append(raw)
        return False

    file = _Pieces()
    pickler = _Pickler(file, PROTOCOL, stays)
    pickler.handles = handles
    pickler.dump(obj)
    return [piece.raw() if type(piece) is pickle.PickleBuffer else piece for piece in file.pieces], buffers


class _Pieces:
    """Takes what a pickler writes: small things in frames of 64 kB, large bytes objects as they are, uncopied."""

    __slots__ = ("pieces", "write")

    def __init__(self) -> None:
        self.pieces: list[Any] = []
        self.write = self.pieces.append


def loads_at_home(data: bytes, namespace: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Unpickle what comes from a notebook's cell: its functions get `namespace` for their globals.

    cloudpickle alone would give them a copy of the globals that they had, in which no later change is seen.

    Returns
    -------
    value, globals
        And the globals of its functions, as they were there.
    """
    coming = _HomeComing(io.BytesIO(data), namespace)
    return coming.load(), coming.their_globals


class _HomeComing(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, namespace: dict[str, Any]) -> None:
        super().__init__(file)
        self._namespace = namespace
        self.their_globals: dict[str, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if found is getattr(_internals, "_make_function", None):
            return self._make_function
        if found is getattr(_internals, "_function_setstate", None):
            return self._set_state
        return found

    def _make_function(self, code: types.CodeType, its_globals: dict[str, Any], *rest: Any) -> Any:
        if its_globals.get("__name__") == "__main__":
            return types.FunctionType(code, self._namespace, *rest)
        # Of a module that is pickled by value.
        return _internals._make_function(code, its_globals, *rest)

    def _set_state(self, function: Any, state: tuple[Any, dict[str, Any]]) -> None:
        if function.__globals__ is not self._namespace:
            _internals._function_setstate(function, state)
            return
        self.their_globals.update(state[1]["__globals__"])
        state[1]["__globals__"] = {}
        builtins = self._namespace.get("__builtins__")
        _internals._function_setstate(function, state)
        # It was put there, another form of the same.
        self._namespace["__builtins__"] = builtins


def digest(data: bytes | memoryview) -> str:
    """24 hex characters that name these bytes."""
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def dump_function(fn: Callable[..., Any], name: str, handles: list[Put[Any]] | None = None) -> bytes:
    """Pickle a function with all that it reaches. The handles among that are added to `handles`.

    Raises
    ------
    NotSendable
        It cannot be pickled, or is too large with what it captures. The message names the global, closure
        variable or default at fault.
    """
    code = _remembered.get(fn)
    if code is not None:
        return code
    code = _noted(fn, name, lambda: dumps(fn, None, handles))
    if len(code) > LARGEST_BYTES:
        raise NotSendable(
            f"`{name}` could not be sent: with what it captures it is {len(code):,} bytes when pickled"
            f"{_largest(parts(fn))}; the limit is {LARGEST_BYTES:,}. Pass large data as arguments, or load them in "
            "the task."
        )
    return code


def dump_function_apart(fn: Callable[..., Any], name: str, handles: list[Put[Any]]) -> bytes | Large:
    """The same, for where there is shared memory: what is large is not copied yet, and may have any size."""
    code = _remembered.get(fn)
    if code is not None:
        return code
    large: list[Large] = []

    def dump() -> bytes:
        found = Large(*_dump_apart(fn, handles, SHARED_BYTES))
        if found.size_bytes < SHARED_BYTES:
            return b"".join(found.stream)
        large.append(found)
        return b""

    code = _noted(fn, name, dump)
    if large:
        _remembered.forget(fn)
        return large[0]
    return code


@dataclass(frozen=True, slots=True)
class Large:
    """A large pickle in pieces, and the buffers that were left out of it: views of what may change soon."""

    stream: list[Any]
    buffers: list[memoryview]

    @property
    def size_bytes(self) -> int:
        return sum(map(len, [*self.stream, *self.buffers]))

    def digest(self) -> str:
        """Names the content."""
        state = hashlib.blake2b(digest_size=12)
        for part in (self.stream, *([buffer] for buffer in self.buffers)):
            state.update(sum(map(len, part)).to_bytes(8, "little"))
            for piece in part:
                state.update(piece)
        return state.hexdigest()


def _noted(fn: Callable[..., Any], name: str, dump: Callable[[], bytes]) -> bytes:
    try:
        return _remembered.note(fn, dump)
    except Exception as error:
        raise NotSendable(f"`{name}` could not be sent: {_blame_function(fn, error)}") from error


def dump_arguments(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    name: str,
    fn: Callable[..., Any] | None = None,
    handles: list[Put[Any]] | None = None,
    shelf: Shelf | None = None,
) -> bytes:
    """Pickle ``(args, kwargs)`` of one call; `fn` only lends its parameter names to a message.

    The handles among the arguments are added to `handles`. Large ones are put on the `shelf`, if there is one.

    Raises
    ------
    NotSendable
        An argument cannot be pickled, or they are too large together. The message names the one at fault.
    FutureMet
        There is a future among them, and `handles` is not what takes those.
    """
    call = (args, kwargs)
    if (
        _all_plain(args, _LEVELS)
        and (not kwargs or _all_plain_mapping(kwargs, _LEVELS))
        and (shelf is None or not (_any_long(args) or (kwargs and _any_long(kwargs.values()))))
    ):
        data = pickle.dumps(call, PROTOCOL)
        if shelf is not None and len(data) >= SHARED_BYTES:
            data = refer(shelf, [data], []) or data
    else:
        try:
            data = dump_frame(call, handles, shelf)
        except FutureMet:
            raise
        except Exception as error:
            blame = _blame_arguments(args, kwargs, fn, error)
            refusal = NotSendable(f"`{name}` could not be sent: {blame}")
            if isinstance(error, Unfit):
                # It has said all that there is.
                raise refusal from None
            raise refusal from error
    if len(data) > LARGEST_BYTES:
        raise NotSendable(
            f"`{name}` could not be sent: its arguments are {len(data):,} bytes when pickled"
            f"{_largest(arguments(args, kwargs, fn))}; the limit is {LARGEST_BYTES:,}. Load the data in the task, or "
            "send it in parts."
        )
    return data


def dump_put(value: object, shelf: Shelf | None = None) -> bytes:
    """The body of an object that is put: its pickle, and the buffers of its arrays beside it.

    A large one is put on the `shelf`, if there is one with room for it, and the body is a reference.

    Raises
    ------
    NotSendable
        It cannot be pickled, or is too large for one string of the server.
    """
    try:
        stream, buffers = _dump_apart(value, None, 0)
    except Exception as error:
        blame = " ".join(_blame(Part("object", "x", value)))
        raise NotSendable(f"`put` could not take it: the {blame}") from error
    size = sum(map(len, [*stream, *buffers]))
    if shelf is not None and size >= SHARED_BYTES and (frame := refer(shelf, stream, buffers)) is not None:
        return frame
    if size > LARGEST_BYTES:
        raise NotSendable(
            f"`put` could not take it: the object ({type_name(value)}) is {size:,} bytes when pickled; the limit is "
            f"{LARGEST_BYTES:,}. Put it in parts, or write it to a file and have the tasks open that."
        )
    return pack(b"".join(stream), buffers)


def _any_long(values: Iterable[object]) -> bool:
    # A loop, since each call pays for it.
    for value in values:
        kind = type(value)
        if (kind is str or kind is bytes) and len(value) > SHARED_BYTES:  # type: ignore[arg-type]
            return True
    return False


def _all_plain(values: Iterable[object], levels: int) -> bool:
    for value in values:
        kind = type(value)
        if kind in PLAIN:
            continue
        if levels == 0 or not _shallow_plain(kind, value, levels - 1):
            return False
    return True


def _shallow_plain(kind: type, value: Any, levels: int) -> bool:
    if kind is tuple or kind is list:
        return len(value) <= _ELEMENTS and _all_plain(value, levels)
    return kind is dict and _all_plain_mapping(value, levels)


def _all_plain_mapping(value: Mapping[Any, object], levels: int) -> bool:
    return len(value) <= _ELEMENTS and _all_plain(value, 0) and _all_plain(value.values(), levels)


_native: weakref.WeakSet[type] = weakref.WeakSet()
_arrived: weakref.WeakSet[type] = weakref.WeakSet()
_FILENAME = 10  # of the arguments of `types.CodeType`
_set_class_state: Callable[[type, Any], Any] | None = getattr(_internals, "_class_setstate", None)


def _globals_of(code: types.CodeType) -> Iterable[str]:
    names: Iterable[str] = _internals._extract_code_globals(code)
    return names


def _not_to_be_remembered() -> object:
    # What later versions look at is not known; and modules may have been registered to travel by value.
    return not _KNOWN_CLOUDPICKLE or _internals._PICKLE_BY_VALUE_MODULES


_KNOWN_CLOUDPICKLE = cloudpickle.__version__.split(".")[:2] in (["3", "0"], ["3", "1"])
_remembered = Remembered(_globals_of, _not_to_be_remembered)


def _reduce_cached(wrapper: Any) -> Any:
    found = _internals._lookup_module_and_qualname(wrapper)
    if found is None or _internals._is_registered_pickle_by_value(found[0]):
        return reduce_cached(wrapper)
    return found[1]


# Of what cloudpickle leaves to pickle, which takes it by its name, or with its lock.
_WRAPPERS: dict[type, Callable[[Any], Any]] = {CACHED: _reduce_cached, functools.cached_property: reduce_property}


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle, except that code keeps its file's name, a class which comes home is left as it is, what was put
    travels as its digest, and functools' wrappers travel with their functions.

    cloudpickle 3.1.3 and later drop the name for the sake of equal bytes, and with it the lines of a traceback.

    A class of a cell goes to a worker by value, and comes back with each of its instances and exceptions.
    cloudpickle finds the class that it is, then overwrites its methods with copies whose globals are those
    of the time of sending: a helper redefined since would stay old, in the kernel itself.
    """

    handles: list[Put[Any]] | None = None

    def reducer_override(self, obj: object) -> Any:
        handles = self.handles
        if handles is not None:
            if (type(obj) is Put or got) and (handle := handle_of(obj)) is not None:
                handles.append(handle)
                return arrived, (handle.digest,)
            if type(handles) is Sharing and (found := handles.instead_of(obj)) is not None:
                return found
        if isinstance(obj, types.CodeType):
            make, args = self.dispatch_table[types.CodeType](obj)
            return make, (*args[:_FILENAME], obj.co_filename, *args[_FILENAME + 1 :])
        reduced = super().reducer_override(obj)
        if isinstance(obj, type) and type(reduced) is tuple and reduced[-1] is _set_class_state:
            if obj not in _arrived:
                _native.add(obj)
            return (*reduced[:-1], _update_class)
        if reduced is NotImplemented:
            reduce = _WRAPPERS.get(type(obj))
            return reduced if reduce is None else reduce(obj)
        return reduce_dispatch(obj) if is_dispatch(obj) else reduced


def _update_class(cls: type, state: Any) -> None:
    if cls not in _native and _set_class_state is not None:
        _arrived.add(cls)
        _set_class_state(cls, state)


# Everything below runs only after a pickle has failed, or has become too large.


def _blame_function(fn: object, error: Exception) -> str:
    found = _search(fn, seen=set(), levels=_BLAME_LEVELS)
    if found is None:
        return f"it {_verdict(fn, error)}"
    trail, part = found
    subject, verdict = _blame(part)
    if trail:
        return f"its helper {' → '.join(trail)} uses the {subject}, which {verdict}"
    return f"its {subject} {verdict}"


def _blame_arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any], fn: Callable[..., Any] | None, error: Exception
) -> str:
    failures = ((part, _failure(part.value)) for part in arguments(args, kwargs, fn))
    # Futures may be among them.
    part = next((part for part, why in failures if why is not None and type(why) is not FutureMet), None)
    return f"its arguments {_verdict(None, error)}" if part is None else " ".join(_blame(part))


def _largest(parts: Iterable[Part]) -> str:
    sizes = [(_size(part.value), part) for part in parts]
    if not sizes:
        return ""
    size, part = max(sizes, key=lambda pair: pair[0])
    return f" (the largest is the {part.what} `{part.name}`, {type_name(part.value)}, with {size:,})"


def _size(value: object) -> int:
    try:
        return len(dumps(value))
    except Exception:  # noqa: BLE001 - as a part of the whole it was pickled: it only cannot be weighed alone
        return 0


def _search(fn: object, *, seen: set[int], levels: int) -> tuple[list[str], Part] | None:
    """Find what cannot be pickled, and the helpers (functions or classes of a cell) that lead there."""
    seen.add(id(fn))
    guilty = [p for p in parts(fn) if id(p.value) not in seen and _failure(p.value) is not None]
    for part in guilty:
        if not has_code(part.value):
            return [], part
    for part in guilty:
        if levels and (found := _search(part.value, seen=seen, levels=levels - 1)) is not None:
            return [f"`{part.name}`", *found[0]], found[1]
    return None


def _blame(part: Part) -> tuple[str, str]:
    """("argument `conn` (sqlite3.Connection)", "cannot be pickled. Open it inside the task.")"""
    name, value, error = part.name, part.value, _failure(part.value)
    for _ in range(_BLAME_LEVELS):
        if error is None or _too_deep(error) or _is_unfit(value, error):
            break
        inner = next(((step, v, e) for step, v in contents(value) if (e := _failure(v)) is not None), None)
        if inner is None:
            break
        name, value, error = name + inner[0], inner[1], inner[2]
    return f"{part.what} `{name}` ({type_name(value)})", _verdict(value, error)


def _failure(value: object) -> Exception | None:
    try:
        dumps(value)
    except Exception as error:  # noqa: BLE001 - a __reduce__ written by a user may raise anything
        return error
    return None


def _verdict(value: object, error: Exception | None) -> str:
    if isinstance(error, FutureMet | Unfit):
        return f"cannot be sent: {error}"
    if isinstance(value, concurrent.futures.Future):
        return "cannot be pickled. Pass its result()."
    if error is not None and _too_deep(error):
        return "is nested too deeply to be pickled. Send it in a flatter form, such as a list."
    if isinstance(value, types.GeneratorType):
        return "cannot be pickled. Send a list of what it yields, or call it inside the task."
    if hasattr(value, "close"):
        return "cannot be pickled. Open it inside the task."
    if has_code(value) or value is None:
        return f"cannot be pickled ({type(error).__name__}: {error})."
    return "cannot be pickled. Create it inside the task."


def _is_unfit(value: object, error: Exception) -> bool:
    """Whether it is this that cannot be sent, whatever it holds."""
    said = isinstance(error, FutureMet | Unfit) and not isinstance(value, list | tuple | dict)
    return said or isinstance(value, concurrent.futures.Future)


def _too_deep(error: BaseException) -> bool:
    return isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError)
