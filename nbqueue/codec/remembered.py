"""Bytes of functions that may be used again, because nothing that they reach can have changed.

`functions` asks before it pickles one. What cloudpickle reads of a function is compared, by identity, with what it
was when the bytes were made: its code, names and defaults, the globals and closure variables that its code names, and
the same of each helper. Only where all of these are immutable is anything remembered: numbers, short strings, tuples
of them, functions of the notebook, also with a cache around them (`functools.lru_cache`), and modules, builtins,
functions and classes that travel by name. A class or a list of the notebook in reach, and the function is pickled at
each call.

Always true here: whatever is not understood is not remembered, a cloudpickle of a later version included.
"""

from __future__ import annotations

import sys
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import is_
from typing import Any

from nbqueue.codec.wrappers import CACHED, PARAMETERS, function_of

__all__ = ["Remembered"]

# Names that cloudpickle takes from a function's globals besides those in its code.
_BASE = ("__package__", "__name__", "__path__", "__file__")
_ATOMS = frozenset({int, float, bool, complex, type(None)})
# What is remembered is kept alive.
_SHORT = 1_000
_KEPT = 64
_NOTED = 1_000
_MISSING = object()
_FUNCTIONS = (types.FunctionType, CACHED)


@dataclass(slots=True)
class _Function:
    """One function as it was, and where to look whether it still is."""

    function: types.FunctionType
    attributes: tuple[object, ...]
    get: Callable[[str, object], object]
    names: tuple[str, ...]
    missing: tuple[object, ...]
    values: tuple[object, ...]
    cells: tuple[types.CellType, ...]
    contents: tuple[object, ...]


@dataclass(slots=True)
class _Cached:
    """A cached function: what is written on it. What it calls is one of the functions, and never another."""

    wrapper: Any
    written: tuple[object, ...]


@dataclass(slots=True)
class _Memory:
    data: bytes = b""
    functions: list[_Function] = field(default_factory=list)
    caches: list[_Cached] = field(default_factory=list)
    # Where what travels by name is found: namespace, name, value.
    places: list[tuple[dict[str, Any], str, object]] = field(default_factory=list)
    # And the names by which it is looked for: value, module, name.
    named: list[tuple[Any, str, str]] = field(default_factory=list)
    modules: tuple[int, object] = (0, None)

    def holds(self) -> bool:
        # Loops, since each call pays for it.
        if self.places:
            if self.modules != _modules_mark():
                return False
            for namespace, name, value in self.places:
                if namespace.get(name) is not value:
                    return False
        for value, home, name in self.named:
            if value.__module__ != home or getattr(value, "__qualname__", None) != name:
                return False
        for f in self.functions:
            if not all(map(is_, _attributes(f.function), f.attributes)):
                return False
            if not all(map(is_, map(f.get, f.names, f.missing), f.values)):
                return False
            try:
                for cell, value in zip(f.cells, f.contents, strict=True):
                    if cell.cell_contents is not value:
                        return False
            except ValueError:
                # It is empty now.
                return False
        for c in self.caches:
            now = _written(c.wrapper)
            if len(now) != len(c.written) or not all(map(is_, now, c.written)):
                return False
            if vars(c.wrapper).get("__annotations__"):
                return False
        return True

    def note_function(self, f: types.FunctionType, names: tuple[str, ...]) -> tuple[object, ...] | None:
        """What it reaches by these names of globals, and otherwise; None if some of it may change unnoticed."""
        attributes = _attributes(f)
        if any(mutable is not None for mutable in attributes[6:]) or not _is_constant(f.__doc__):
            return None
        values = tuple(f.__globals__.get(name, _MISSING) for name in names)
        cells = f.__closure__ or ()
        try:
            contents = tuple(cell.cell_contents for cell in cells)
        except ValueError:
            return None
        self.functions.append(
            _Function(f, attributes, f.__globals__.get, names, (_MISSING,) * len(names), values, cells, contents)
        )
        return (*values, *contents, *(f.__defaults__ or ()))

    def note_cached(self, wrapper: Any) -> tuple[object, ...] | None:
        """The same of a cached function."""
        written = dict(wrapper.__dict__)
        self.caches.append(_Cached(wrapper, _written(wrapper)))
        told, annotations = written.pop("cache_parameters", None), written.pop("__annotations__", None)
        inner = written.pop("__wrapped__", None)
        if type(told) is not types.FunctionType or told.__code__ not in PARAMETERS:
            return None
        parameters = self.note_function(told, ())
        if parameters is None or not all(map(_is_constant, (*written, *written.values(), *parameters))):
            return None
        if annotations is not None and (type(annotations) is not dict or annotations):
            return None
        return function_of(wrapper), inner

    def note_place(self, value: Any) -> bool:
        """Whether `value` travels by name, which it does as long as it is found there."""
        if type(value) is types.ModuleType:
            name = value.__dict__.get("__name__")
            if type(name) is not str or sys.modules.get(name) is not value:
                return False
            self.places += [(value.__dict__, key, value.__dict__.get(key)) for key in ("__name__", "__package__")]
            self.places.append((sys.modules, name, value))
            return True
        if type(value) not in (*_FUNCTIONS, type) and not (
            type(value) is types.BuiltinFunctionType and type(value.__self__) is types.ModuleType
        ):
            return False
        home, name = _home(value), getattr(value, "__qualname__", None)
        if type(home) is not str or type(name) is not str or home == "__main__":
            return False
        module = sys.modules.get(home)
        if type(module) is not types.ModuleType or module.__dict__.get(name) is not value:
            return False
        self.places += [(module.__dict__, name, value), (sys.modules, home, module)]
        self.named.append((value, home, name))
        return True


def _modules_mark() -> tuple[int, object]:
    """Changes when a module is imported or forgotten: what a package's name brings along depends on it."""
    return len(sys.modules), next(reversed(sys.modules), None)


def _attributes(f: types.FunctionType) -> tuple[object, ...]:
    """All that is pickled of a function, its globals and cells apart. The last four are mutable: they must be empty."""
    return (
        f.__code__,
        f.__defaults__,
        f.__name__,
        f.__qualname__,
        f.__module__,
        f.__doc__,
        f.__kwdefaults__,
        f.__dict__ or None,
        f.__annotations__ or None,
        getattr(f, "__type_params__", None) or None,
    )


def _written(wrapper: Any) -> tuple[object, ...]:
    """All that is pickled of a cached function, what it calls and its parameters apart."""
    return (*wrapper.__dict__, *wrapper.__dict__.values())


class Remembered:
    """What is known of the functions that were pickled last.

    Parameters
    ----------
    globals_of : callable
        The names of globals that cloudpickle finds in a code object.
    by_value : callable
        Whether modules were registered to travel by value: then nothing is remembered.
    """

    def __init__(self, globals_of: Callable[[types.CodeType], Iterable[str]], by_value: Callable[[], object]) -> None:
        self._globals_of = globals_of
        self._by_value = by_value
        self._memories: OrderedDict[int, _Memory] = OrderedDict()
        # Functions that were pickled once, by id; False: and cannot be remembered.
        self._noted: dict[int, tuple[weakref.ref[Any], bool]] = {}

    def get(self, fn: object) -> bytes | None:
        """The bytes of `fn`, if they would be the same now."""
        memory = self._memories.get(id(fn))
        if memory is None:
            return None
        if memory.holds() and not self._by_value():
            return memory.data
        self._memories.pop(id(fn), None)
        return None

    def forget(self, fn: object) -> None:
        self._memories.pop(id(fn), None)

    def note(self, fn: object, pickle: Callable[[], bytes]) -> bytes:
        """Pickle `fn`. What is pickled for the second time is remembered, if it can be."""
        key = id(fn)
        noted = self._noted.get(key)
        # Another one had this id before, if it is not the same.
        if noted is None or noted[0]() is not fn:
            if type(fn) in _FUNCTIONS:
                if len(self._noted) >= _NOTED:
                    self._noted.clear()
                self._noted[key] = weakref.ref(fn), True
            return pickle()
        # Looked at first: what changes meanwhile is noticed at the next time.
        memory = self._look(fn) if noted[1] and not self._by_value() else None
        data = pickle()
        if memory is None:
            self._noted[key] = noted[0], False
        else:
            # It is noted anew when it has changed, so that one that changes at each call is not looked at each time.
            self._noted.pop(key, None)
            memory.data = data
            self._memories[key] = memory
            if len(self._memories) > _KEPT:
                self._memories.popitem(last=False)
        return data

    def _look(self, fn: object) -> _Memory | None:
        """All that the pickle of `fn` depends on; None if some of it may change unnoticed."""
        if not (type(fn) in _FUNCTIONS and _is_of_notebook(fn)):
            return None
        memory = _Memory(modules=_modules_mark())
        waiting: list[Any] = [fn]
        seen = {id(fn)}
        while waiting:
            f = waiting.pop()
            if type(f) is CACHED:
                reached = memory.note_cached(f)
            else:
                reached = memory.note_function(f, (*_BASE, *self._globals_of(f.__code__)))
            if reached is None:
                return None
            for value in reached:
                if _is_constant(value):
                    continue
                if type(value) in _FUNCTIONS and _is_of_notebook(value):
                    if id(value) not in seen:
                        seen.add(id(value))
                        waiting.append(value)
                elif not memory.note_place(value):
                    return None
        return memory


def _home(value: Any) -> object:
    return getattr(value, "__module__", None)


def _is_of_notebook(f: Any) -> bool:
    home = _home(f)
    return type(home) is str and home == "__main__"


def _is_constant(value: object) -> bool:
    kind = type(value)
    if kind in _ATOMS or value is _MISSING:
        return True
    if kind is str or kind is bytes:
        return len(value) <= _SHORT  # type: ignore[arg-type]
    if kind is tuple or kind is frozenset:
        return len(value) <= _SHORT and all(_is_constant(each) for each in value)  # type: ignore[arg-type, attr-defined]
    return False
