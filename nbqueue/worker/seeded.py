"""An item's random generator, made in the worker just before the item runs.

Always true here: it depends on the call's seed and the item's place, and on nothing that this worker has done before.
"""

from __future__ import annotations

from typing import Any

from nbqueue import context
from nbqueue.codec.seeds import Rng, generator

__all__ = ["seeded"]


def seeded(kwargs: dict[str, Any], rng: Rng, item: int) -> dict[str, Any]:
    """Keywords of a call's `item`, with its generator."""
    name, seed, first = rng
    context.seed_item(seed, first + item)
    return {**kwargs, name: generator(seed, first + item)}
