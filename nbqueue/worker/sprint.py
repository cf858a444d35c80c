"""Short items of one call, run one after the other with nothing between them that costs more than they do.

::

    argument tuples ─▶ function ─▶ plain results ─▶ outbox, all at once

With all that `loop` does for each item (clocks, looks at what was printed, notes) a tiny one costs a worker 2 µs, here
0.4 µs.

Always true here: the slot board names the item before its code runs; a result is one that nothing can change later;
an item that draws attention to itself (it prints, shows or tells something, waits, forks, runs for long) is the last
one: whoever notices calls `leave` first, from whichever thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from nbqueue.codec.functions import PLAIN

__all__ = ["SHORT_S", "Sprint", "next_length"]

# Items that take less on the average are run so.
SHORT_S = 0.00005
# How long a sprint should last: as long as what is finished may go unnoticed at no harm.
TARGET_S = 0.002
_MOST_GROWTH = 8
NOTHING = object()


def next_length(length: int, took_s: float) -> int:
    """Items for the next sprint, after one of `length` items.

    >>> next_length(8, 0.000008), next_length(1000, 0.001), next_length(1000, 1.0)
    (64, 2000, 2)
    """
    return max(2, min(length * _MOST_GROWTH, int(length * TARGET_S / max(took_s, 1e-9))))


class Sprint:
    """Items `first`, … of a call, with these `arguments`.

    Parameters
    ----------
    name : callable
        Names an item on the slot board.

    Attributes
    ----------
    results : list
        Of the items that have ended, all plain. It grows while others look.
    odd : object
        The result that is not plain, of the item after those; else `NOTHING`.
    """

    __slots__ = ("_arguments", "_name", "first", "lock", "noted", "odd", "results")

    def __init__(self, first: int, arguments: Sequence[tuple[Any, ...]], name: Callable[[int], None]) -> None:
        self.first = first
        self.results: list[Any] = []
        self.odd: object = NOTHING
        self.lock = threading.Lock()  # guards `noted`, and the board's line against two writers
        self.noted = 0  # how many of the results are in the outbox
        self._arguments = list(arguments)
        self._name = name

    @property
    def item(self) -> int:
        """The one that runs."""
        return self.first + len(self.results)

    def leave(self) -> int:
        """Let the item that runs be the last one. Which it is."""
        ended = len(self.results)
        # The loop over the list ends where the list does.
        del self._arguments[ended + 1 :]
        return self.first + ended

    def run(self, function: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        """Raises whatever an item raises; `item` is the one then."""
        name, append, item = self._name, self.results.append, self.first
        for args in self._arguments:
            name(item)
            value = function(*args, **kwargs)
            if type(value) not in PLAIN:
                self.odd = value
                return
            append(value)
            item += 1
