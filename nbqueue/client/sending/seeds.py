"""The options `rng` and `seed`: checked where they are written, and made into the seed of a call or a batch.

Always true here: a task without `rng` pays nothing; a seed that nobody gave is drawn once for each call or batch,
inside a seeded task from that one's, so that it runs again with the same numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from nbqueue import context
from nbqueue.client.sending.options import Options
from nbqueue.codec.seeds import child_seed, fresh_seed, generator
from nbqueue.errors import BadCall, BadOption

__all__ = ["check_given", "check_items", "check_rng", "seed_for", "with_generator"]


def check_rng(fn: Callable[..., Any], options: Options) -> None:
    """Raises BadOption if `fn` has no parameter of that name which takes a keyword."""
    rng = options.rng
    parameters = _parameters(fn) if rng is not None else None
    if rng is None or parameters is None:
        return
    found = parameters.get(rng)
    if found is not None and found.kind in (found.POSITIONAL_OR_KEYWORD, found.KEYWORD_ONLY):
        return
    if found is None and any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return
    why = "has no such parameter" if found is None else "takes it only by its place"
    raise BadOption(
        f"rng={rng!r}: `{options.name}` {why}. Name the parameter that is to receive the random generator: "
        f"def {options.name}(…, *, {rng})."
    )


def seed_for(options: Options) -> int | None:
    """The seed of a new call or batch; None where its task takes no generator."""
    if options.rng is None:
        return None
    if options.seed is not None:
        return options.seed
    parent = context.next_child()
    return fresh_seed() if parent is None else child_seed(*parent)


def check_given(fn: Callable[..., Any], options: Options, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raises BadCall if a call gives a generator of its own."""
    if options.rng is not None and (options.rng in kwargs or len(args) > _place(fn, options.rng)):
        raise _given_twice(options)


def check_items(
    fn: Callable[..., Any], options: Options, items: Iterable[tuple[Any, ...]], kwargs: Mapping[str, Any]
) -> Iterable[tuple[Any, ...]]:
    """The same of all items of a map, as they are drawn; of the keywords at once."""
    if options.rng is None:
        return items
    check_given(fn, options, (), kwargs)
    return _checked(items, _place(fn, options.rng), options)


def _checked(items: Iterable[tuple[Any, ...]], place: float, options: Options) -> Iterator[tuple[Any, ...]]:
    for args in items:
        if len(args) > place:
            raise _given_twice(options)
        yield args


def _given_twice(options: Options) -> BadCall:
    return BadCall(
        f"`{options.name}` was given {options.rng!r} twice: by the call, and by its option rng={options.rng!r}. Leave "
        "it out of the call; .options(seed=…) chooses the numbers. If others follow it, make it keyword-only."
    )


def with_generator(
    fn: Callable[..., Any], options: Options, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Keywords of a call that runs right here: with a generator, unless it was given one."""
    rng, seed = options.rng, None
    if rng is not None and rng not in kwargs and len(args) <= _place(fn, rng):
        seed = seed_for(options)
    return kwargs if rng is None or seed is None else {**kwargs, rng: generator(seed, 0)}


def _place(fn: Callable[..., Any], rng: str) -> float:
    """How many positional arguments there may be before one is the generator."""
    for place, each in enumerate((_parameters(fn) or {}).values()):
        if each.kind not in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD):
            break
        if each.name == rng:
            return place
    return float("inf")


def _parameters(fn: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(fn).parameters
    except (ValueError, TypeError):
        # Compiled, and silent about what it takes.
        return None
