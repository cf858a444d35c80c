"""Short items of one call, run one after the other with nothing between them that costs more than they do.

::

    arguments ─▶ function ─▶ plain results ─▶ outbox, all at once

With all that `loop` does for each item (clocks, looks at what was printed, notes) a tiny one costs a worker 2 µs, here
a tenth.

Always true here: the slot board names the item before its code runs; a result is one that nothing can change later;
an item that draws attention to itself (it prints, shows or tells something, waits, forks, runs for long) is the last
one: whoever notices calls `leave` first, from whichever thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from nbqueue.codec.columns import Columns
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


class Name(Protocol):
    """A place for one number."""

    def __setitem__(self, at: int, item: int, /) -> None: ...


class Sprint:
    """Items `first`, … of a call, with these `arguments`.

    Parameters
    ----------
    name : Name
        Where the slot board names an item.

    Attributes
    ----------
    results : list
        Of the items that have ended, all plain. It grows while others look.
    odd : object
        The result that is not plain, of the item after those; else `NOTHING`.
    kinds : set of type
        The types of the results.
    """

    __slots__ = ("_arguments", "_name", "_single", "first", "kinds", "lock", "noted", "odd", "results")

    def __init__(self, first: int, arguments: Sequence[tuple[Any, ...]], name: Name) -> None:
        self.first = first
        self.results: list[Any] = []
        self.kinds: set[type] = set()
        self.odd: object = NOTHING
        self.lock = threading.Lock()  # guards `noted`, and the board's line against two writers
        self.noted = 0  # how many of the results are in the outbox
        column = arguments.columns[0] if isinstance(arguments, Columns) and len(arguments.columns) == 1 else None
        self._single = column is not None
        self._arguments: list[Any] = list(arguments if column is None else column)
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
        if kwargs:
            function = partial(function, **kwargs)
        # The loops themselves name the items, and look at a type only when it is another: that is half of what they
        # would cost. They differ in how they call.
        name, results, kind = self._name, self.results, None
        if self._single:
            for name[0], argument in enumerate(self._arguments, self.first):
                value = function(argument)
                if type(value) is not kind and (kind := self._new_kind(value)) is None:
                    return
                results.append(value)
        else:
            for name[0], arguments in enumerate(self._arguments, self.first):
                value = function(*arguments)
                if type(value) is not kind and (kind := self._new_kind(value)) is None:
                    return
                results.append(value)

    def _new_kind(self, value: Any) -> type | None:
        """The type of a result, which is not that of the one before; None where it is not plain, and the last one."""
        kind = type(value)
        if kind not in PLAIN:
            self.odd = value
            return None
        self.kinds.add(kind)
        return kind
