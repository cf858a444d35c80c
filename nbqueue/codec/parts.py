"""What a function or a call takes along when it is pickled, by the names that its author gave. Pickles nothing."""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nbqueue.codec.wrappers import CACHED, is_dispatch, within

__all__ = ["Part", "arguments", "contents", "has_code", "parts", "type_name"]


@dataclass(frozen=True, slots=True)
class Part:
    """Something that a pickle takes along: ``what`` it is to the whole, its ``name`` there, its value."""

    what: str
    name: str
    value: Any


def type_name(value: object) -> str:
    kind = type(value)
    if kind.__module__ in {"builtins", "__main__"}:
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def has_code(value: object) -> bool:
    return isinstance(value, types.FunctionType | type | CACHED)


def contents(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", item) for key, item in list(value.items()))
    elif isinstance(value, list | tuple):
        yield from ((f"[{index}]", item) for index, item in enumerate(value))
    elif not isinstance(value, types.ModuleType) and not has_code(value):
        yield from ((f".{key}", item) for key, item in list(getattr(value, "__dict__", {}).items()))


def parts(fn: object) -> Iterator[Part]:
    if isinstance(fn, functools.partial):
        yield Part("function", getattr(fn.func, "__name__", "func"), fn.func)
        yield from arguments(fn.args, fn.keywords, fn.func)
    elif isinstance(fn, types.MethodType):
        yield Part("object", "self", fn.__self__)
        yield Part("method", fn.__name__, fn.__func__)
    elif isinstance(fn, type):
        for key, value in list(vars(fn).items()):
            if key not in {"__dict__", "__weakref__"}:
                yield Part("attribute", key, getattr(value, "__func__", within(value)))
    elif is_dispatch(fn):
        for cls, function in list(fn.registry.items()):  # type: ignore[attr-defined]
            yield Part("function for", cls.__name__, function)
    elif isinstance(fn, types.FunctionType):
        yield from _parts_of_function(fn)
    elif isinstance(fn, CACHED):
        inner = within(fn)
        yield from parts(inner)
        known = getattr(inner, "__dict__", {})
        for key, value in vars(fn).items():
            if key not in known and key not in {"__wrapped__", "__annotations__"}:
                yield Part("attribute", key, value)


def _parts_of_function(fn: types.FunctionType) -> Iterator[Part]:
    for key in _globals_used(fn.__code__):
        if key in fn.__globals__:
            yield Part("global", key, fn.__globals__[key])
    for key, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            yield Part("closure variable", key, cell.cell_contents)
        except ValueError:
            continue  # a cell that is still empty
    positional = fn.__code__.co_varnames[: fn.__code__.co_argcount]
    # A function whose code was exchanged may have more defaults than parameters.
    for key, value in reversed([*zip(reversed(positional), reversed(fn.__defaults__ or ()), strict=False)]):
        yield Part("default of parameter", key, value)
    for key, value in (fn.__kwdefaults__ or {}).items():
        yield Part("default of parameter", key, value)
    for key, value in fn.__dict__.items():
        yield Part("attribute", key, value)
    for key, value in fn.__annotations__.items():
        yield Part("annotation of", key, value)


def _globals_used(code: types.CodeType) -> dict[str, None]:
    """Names of globals in order of use, those of nested functions included."""
    names = {str(step.argval): None for step in dis.get_instructions(code) if step.opname.endswith("_GLOBAL")}
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names.update(_globals_used(const))
    return names


def arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any], fn: Callable[..., Any] | None
) -> Iterator[Part]:
    names = [str(index) for index in range(len(args))]
    try:
        bound = inspect.signature(fn).bind_partial(*args) if fn is not None else None
    except (TypeError, ValueError):
        bound = None  # a builtin without signature, or arguments that do not fit it
    if bound is not None:
        names = []
        for key, value in bound.arguments.items():
            spread = bound.signature.parameters[key].kind is inspect.Parameter.VAR_POSITIONAL
            names += [f"{key}[{index}]" for index in range(len(value))] if spread else [key]
    for name, value in zip(names, args, strict=True):
        yield Part("argument", name, value)
    for name, value in kwargs.items():
        yield Part("argument", name, value)
