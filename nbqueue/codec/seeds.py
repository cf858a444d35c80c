"""Random numbers of tasks: one generator an item, made from a seed and the item's place.

Always true here: the same seed and place give the same numbers, whoever asks, when and how often; NumPy is loaded
only where a generator is made, and not needed.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

__all__ = ["Rng", "child_seed", "fresh_seed", "generator"]

Rng = tuple[str, int, int]
"""The parameter that receives a generator, the seed, and the place of a call's first item."""

# As numpy.random.SeedSequence draws for itself.
SEED_BITS = 128


def generator(seed: int, index: int) -> Any:
    """A ``numpy.random.Generator``, or a ``random.Random`` where there is no NumPy, for one item.

    NumPy's is ``Generator(PCG64(SeedSequence(seed, spawn_key=(index,))))``: what ``SeedSequence(seed).spawn(n)[index]``
    seeds, so the streams of different items are independent (NumPy's guide, *Parallel random number generation*).

    >>> generator(7, 3).random() == generator(7, 3).random() != generator(7, 4).random()
    True
    """
    try:
        from numpy.random import PCG64, Generator, SeedSequence
    except ImportError:
        import random

        # A text is hashed with SHA-512, everywhere alike.
        return random.Random(f"{seed}/{index}")
    return Generator(PCG64(SeedSequence(seed, spawn_key=(index,))))


def fresh_seed() -> int:
    """From the system's entropy."""
    return secrets.randbits(SEED_BITS)


def child_seed(seed: int, index: int, number: int) -> int:
    """Of what item `index` sends as its `number`-th: the same each time that the item runs."""
    made = hashlib.sha256(f"{seed}/{index}/{number}".encode()).digest()
    return int.from_bytes(made[: SEED_BITS // 8], "big")
