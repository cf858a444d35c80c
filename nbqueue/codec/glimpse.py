"""What pickled arguments are, in a few words: for notes, tables and histories.

Always true here: no code of a user runs and nothing is imported, so a `__repr__` that raises or hangs and an
argument that cannot be unpickled do no harm; what comes out is short; nothing raises.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nbqueue.codec.blobs import Put, _handles, are_put, keywords_handle
from nbqueue.codec.frames import is_reference, parts_of, stand_ins

__all__ = ["LONGEST", "glimpse_arguments", "glimpse_keywords", "glimpse_value", "glimpse_values"]

# Characters of a whole call, of one argument, of a string in it.
LONGEST, _ARGUMENT, _STRING = 200, 70, 40
_ELEMENTS, _LEVELS = 4, 2
# To look into more takes as long as to copy it.
_MOST_BYTES = 64_000_000
_LONG_INTEGER_BITS = 200

_NUMPY = {"_reconstruct", "_frombuffer", "scalar", "ndarray", "dtype"}
_KNOWN = {
    "builtins": {"set", "frozenset", "complex", "range", "slice", "bytearray"},
    "collections": {"OrderedDict", "deque", "Counter"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "uuid": {"UUID"},
}
_SHOWN_AS_THEY_ARE = ("datetime", "decimal", "fractions", "uuid")


def glimpse_values(data: bytes) -> Any:
    """What `data` unpickles to, with stand-ins for all that only its own code could make; None if it cannot be read."""
    if len(data) > _MOST_BYTES:
        return None
    try:
        buffers: list[Any] = []
        if is_reference(data):
            stream, buffers = stand_ins(data)
            if stream is None:
                stream = parts_of(data)[0]
                if len(stream) > _MOST_BYTES:
                    return None
            data = bytes(stream)
        return _Reader(io.BytesIO(data), buffers=buffers).load()
    except Exception:  # noqa: BLE001 - it was not made to be read this way
        return None


def glimpse_keywords(data: bytes) -> dict[str, Any]:
    """The same of the keywords that a batch has in common; what is gone by now is left out."""
    if are_put(data):
        handle = keywords_handle(data)
        data = b"" if handle is None else bytes(handle.pickled)
    seen = glimpse_values(data) if data else None
    return seen if isinstance(seen, dict) else {}


def glimpse_arguments(args: Iterable[Any], kwargs: Mapping[str, Any], names: Iterable[str] = ()) -> str:
    """``seed=39, steps=1000``: arguments by the parameters' `names`, as far as there are such.

    >>> glimpse_arguments((39, "a"), {"steps": 1000}, ["seed"])
    "seed=39, 'a', steps=1000"
    """
    shown: list[str] = []
    known = iter(names)
    for value in args:
        name = next(known, "")
        shown.append(f"{name}={glimpse_value(value)}" if name else glimpse_value(value))
    shown += [f"{name}={glimpse_value(value)}" for name, value in kwargs.items()]
    return _cut(", ".join(shown), LONGEST)


def glimpse_value(value: Any) -> str:
    """A value in one short line."""
    try:
        return _cut(_show(value, _LEVELS), _ARGUMENT)
    except Exception:  # noqa: BLE001 - a number or an array of a kind that refuses to be shown
        return f"<{type(value).__name__}>"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _show(value: Any, levels: int) -> str:
    kind = type(value)
    if kind is int and value.bit_length() > _LONG_INTEGER_BITS:
        return f"<int of {value.bit_length():,} bits>"
    if kind in (int, float, bool, complex, type(None), range):
        return repr(value)
    if kind in (str, bytes, bytearray):
        shown = repr(value[:_STRING])
        return shown if len(value) <= _STRING else f"{shown[:-1]}…{shown[-1]}"
    if isinstance(value, _Stub):
        return value.shown(levels)
    if isinstance(value, type):
        return value.__name__
    if kind in _BRACKETS:
        start, end = _BRACKETS[kind]
        shown = _several(value, len(value), levels, lambda each: _show(each, levels - 1))
        return f"{start}{shown}{',' if kind is tuple and len(value) == 1 else ''}{end}"
    if isinstance(value, dict):
        pairs = _several(value.items(), len(value), levels, lambda p: f"{_show(p[0], 0)}: {_show(p[1], levels - 1)}")
        return f"{{{pairs}}}"
    if kind is Put:
        return repr(value)
    if kind.__module__ == "numpy":
        return _show_array(value) if kind.__name__ == "ndarray" else str(value)
    if kind.__module__.startswith("pathlib"):
        return _show(str(value), levels)
    if kind.__module__ in _SHOWN_AS_THEY_ARE:
        return str(value)
    return f"<{kind.__name__}>"


_BRACKETS: dict[type, tuple[str, str]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
}


def _several(values: Iterable[Any], number: int, levels: int, show: Callable[[Any], str]) -> str:
    if number and levels <= 0:
        return "…"
    shown = [show(value) for value, _ in zip(values, range(_ELEMENTS), strict=False)]
    return ", ".join(shown) + (f", … {number:,} in all" if number > _ELEMENTS else "")


def _show_array(array: Any) -> str:
    if array.ndim == 1 and array.size <= _ELEMENTS:
        return f"array({_show(array.tolist(), 1)})"
    return f"array({' × '.join(map(str, array.shape)) or 1} of {array.dtype})"


class _Stub:
    """Stands for an instance of a class that is not made here, as its pickle describes it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Stub:
        self = object.__new__(cls)
        self._args, self._kwargs, self._state = args, kwargs, {}
        return self

    _args: tuple[Any, ...]
    _kwargs: dict[str, Any]
    _state: dict[str, Any]

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> _Stub:
        return type(self)(*args, **kwargs)

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):  # dict, and what lies in slots
            if isinstance(part, dict):
                self._state.update(part)

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass

    def shown(self, levels: int) -> str:
        name = type(self).__name__
        if not name[:1].isupper() and not self._state:
            # Made by a function, whose arguments say nothing to a reader.
            return f"<{name.strip('_')}>"
        public = {key: value for key, value in self._state.items() if not str(key).startswith("_")}
        if public:
            pairs = public.items()
            return f"{name}({_several(pairs, len(public), levels, lambda p: f'{p[0]}={_show(p[1], levels - 1)}')})"
        return f"{name}({_several(self._args, len(self._args), levels, lambda each: _show(each, levels - 1))})"


def _stub_type(name: str) -> type[_Stub]:
    return type(name, (_Stub,), {})


def _class_of_a_cell(_made_by: object, name: str, *_: object) -> type[_Stub]:
    return _stub_type(name)


def _function_of_a_cell(*_: object) -> _Stub:
    return _stub_type("function")()


def _name_function(made: Any, state: Any) -> None:
    """A function of a cell learns of its name after it was made."""
    type(made).__name__ = f"function {state[1]['__name__']}"


def _module(name: str) -> _Stub:
    return _stub_type(f"module {name}")()


def _as_before_protocol_2(cls: Any, *_: object) -> Any:
    return cls() if isinstance(cls, type) and issubclass(cls, _Stub) else _stub_type("object")()


def _future(_name: str, task: str) -> _Stub:
    return _stub_type(f"future {task}")()


def _put(digest: str) -> Any:
    # A handle shows itself, and nothing of what it stands for.
    return _handles.get(digest) or _stub_type("Put")()


_MAKERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("cloudpickle.cloudpickle", "_make_skeleton_class"): _class_of_a_cell,
    ("cloudpickle.cloudpickle", "_make_skeleton_enum"): _class_of_a_cell,
    ("cloudpickle.cloudpickle", "_make_function"): _function_of_a_cell,
    ("cloudpickle.cloudpickle", "_function_setstate"): _name_function,
    ("cloudpickle.cloudpickle", "subimport"): _module,
    ("nbqueue.codec.blobs", "arrived"): _put,
    ("nbqueue.codec.blobs", "as_it_is"): lambda value: value,
    ("nbqueue.codec.frames", "load_frame"): glimpse_values,
    ("nbqueue.codec.inputs", "value_of"): _future,
    ("copyreg", "_reconstructor"): _as_before_protocol_2,
}


class _Reader(pickle.Unpickler):
    """Reads a pickle and calls nothing that it names, except what is known to be harmless."""

    def find_class(self, module: str, name: str) -> Any:
        maker = _MAKERS.get((module, name))
        if maker is not None:
            return maker
        # Newer Pythons have some of these in a private part of the module, such as pathlib._local.
        public = module.partition("._")[0]
        harmless = name in _NUMPY if public.partition(".")[0] == "numpy" else name in _KNOWN.get(public, ())
        found = getattr(sys.modules.get(module), name, None) if harmless else None
        return _stub_type(name.rpartition(".")[2]) if found is None else found
