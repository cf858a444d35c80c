"""What functools puts around functions of a cell: taken off to be pickled, and put on again where it arrives.

`functions` asks here for what cloudpickle cannot take or would look for in a ``__main__`` that no worker has; `parts`
and `remembered` look through the same wrappers. Always true here: what is found by its name travels by name; a cache
arrives empty, and what its author wrote on it arrives with it. Nothing here pickles.
"""

from __future__ import annotations

import functools
import gc
import types
from collections.abc import Callable
from typing import Any

__all__ = [
    *("CACHED", "OF_DISPATCH", "PARAMETERS", "function_of", "is_dispatch", "reduce_cached", "reduce_dispatch"),
    *("reduce_property", "within"),
]

CACHED: type = functools._lru_cache_wrapper


def _probe(value: object) -> None: ...


_probed = functools.lru_cache(_probe)
# Where its function is among all that a wrapper refers to: from the end, since what it has cached comes first.
_AT = next(at for at, found in enumerate(reversed(gc.get_referents(_probed)), 1) if found is _probe)
# Of the functions that tell a wrapper's parameters, written with and without parentheses: they read only their closure.
PARAMETERS = frozenset(made.cache_parameters.__code__ for made in (_probed, functools.lru_cache()(_probe)))
_DISPATCH = functools.singledispatch(_probe).__code__  # type: ignore[attr-defined]
# What `functools.singledispatch` writes on its function: they refer to the classes that it has met, weakly.
OF_DISPATCH = frozenset({"register", "dispatch", "registry", "_clear_cache"})


def is_dispatch(value: object) -> bool:
    """Whether it is what `functools.singledispatch` makes."""
    return type(value) is types.FunctionType and value.__code__ is _DISPATCH


def function_of(wrapper: Any) -> Any:
    """What a cached function calls.

    That is not always its ``__wrapped__``: ``functools.wraps(f)`` around a cached function writes `f` there.
    """
    return gc.get_referents(wrapper)[-_AT]


def within(value: Any) -> Any:
    """The function in a wrapper, or the value itself if it is none of those that are taken off here."""
    if type(value) is CACHED:
        return function_of(value)
    if is_dispatch(value):
        return value.registry[object]
    return value.func if type(value) is functools.cached_property else value


def reduce_cached(wrapper: Any) -> tuple[Any, ...]:
    """As `object.__reduce__`, by value."""
    function = function_of(wrapper)
    state = dict(vars(wrapper))
    # It is made anew, and so is this in most cases. No annotations are what it gets anyway.
    state.pop("cache_parameters", None)
    if state.get("__wrapped__") is function:
        del state["__wrapped__"]
    if not state.get("__annotations__"):
        state.pop("__annotations__", None)
    # Another cache's parameters are written on that which is around it; the size at least it knows itself.
    return _cached, (function, wrapper.cache_info().maxsize, bool(wrapper.cache_parameters()["typed"])), state or None


def _cached(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(function)


def reduce_property(prop: functools.cached_property[Any]) -> tuple[Any, ...]:
    """As `object.__reduce__`, without the lock that it has before Python 3.12."""
    state = {key: value for key, value in vars(prop).items() if key not in {"func", "lock"}}
    return functools.cached_property, (prop.func,), state


def reduce_dispatch(dispatch: Any) -> tuple[Any, ...]:
    """As `object.__reduce__`, by value: what was registered, without what was found for the classes that it has met."""
    registered = dict(dispatch.registry)
    default = registered.pop(object)
    written: dict[str, Any] = {key: getattr(dispatch, key, None) for key in functools.WRAPPER_ASSIGNMENTS}
    written.update((key, value) for key, value in vars(dispatch).items() if key not in OF_DISPATCH)
    if written.get("__wrapped__") is default:
        del written["__wrapped__"]
    return functools.singledispatch, (default,), (registered, written), None, None, _write_dispatch


def _write_dispatch(dispatch: Any, state: tuple[dict[type, Any], dict[str, Any]]) -> None:
    registered, written = state
    for cls, function in registered.items():
        dispatch.register(cls, function)
    for key, value in written.items():
        setattr(dispatch, key, value)
