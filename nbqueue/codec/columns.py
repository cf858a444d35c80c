"""Arguments of many items, laid out as columns: the first ones of all items, the second ones, and so on.

A list of tuples takes a worker six times as long to unpickle as a list of what is in them, and a tuple for each item is
made wherever the items pass. Always true here: a column has one plain value for each item; a `range` stays one.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any, overload

__all__ = ["Columns", "columns_of", "dump_items", "load_items"]


class Columns(Sequence[tuple[Any, ...]]):
    """Argument tuples, made when they are asked for. `columns` are all of one length, and there is one at least.

    >>> items = Columns(([1, 2, 3], range(3)))
    >>> items[1], list(items[1:])
    ((2, 1), [(2, 1), (3, 2)])
    """

    __slots__ = ("columns",)

    def __init__(self, columns: tuple[Sequence[Any], ...]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return zip(*self.columns, strict=True)

    @overload
    def __getitem__(self, at: int) -> tuple[Any, ...]: ...
    @overload
    def __getitem__(self, at: slice) -> Columns: ...
    def __getitem__(self, at: int | slice) -> tuple[Any, ...] | Columns:
        parts = tuple([column[at] for column in self.columns])
        return Columns(parts) if isinstance(at, slice) else parts


def columns_of(items: Sequence[Any]) -> Columns | None:
    """The same items as columns, if all are tuples of one length. Their values are for the caller to know."""
    if set(map(type, items)) != {tuple} or len(set(map(len, items))) > 1 or not items[0]:
        return None
    return Columns(tuple([list(map(itemgetter(at), items)) for at in range(len(items[0]))]))


def dump_items(items: Sequence[Any]) -> bytes:
    """Plain items, pickled: a tuple of columns, or a list of tuples."""
    return pickle.dumps(items.columns if isinstance(items, Columns) else items, protocol=5)


def load_items(packed: bytes) -> Sequence[tuple[Any, ...]]:
    """What `dump_items` has pickled. Runs no user's code."""
    items: Any = pickle.loads(packed)
    return Columns(items) if type(items) is tuple else items
