"""How each item of a batch has ended, by its place: two flat arrays, which may lose their beginning.

A million items take nine megabytes here and their values. Of an input without an end, what was read is forgotten at
last; places stay what they are, and asking for one that was forgotten says so. Not locked: `arriving` does that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from nbqueue.client.results.outcome import Outcome
from nbqueue.codec.messages import VALUE

__all__ = ["CANCELLED", "FORGOTTEN", "OPEN", "Ledger"]

OPEN, CANCELLED, FORGOTTEN = 0, ord("c"), ord("f")


class Ledger:
    """Kinds and values of places. `first` is the first place that is still kept."""

    __slots__ = ("_kinds", "_outcomes", "_values", "first")

    def __init__(self) -> None:
        self.first = 0
        self._outcomes = False  # whether any value ever was one
        self._kinds = bytearray()
        self._values: list[Any] = []

    def __len__(self) -> int:
        """One more than the last place, what was forgotten included."""
        return self.first + len(self._kinds)

    def extend(self, number: int, kind: int = OPEN) -> None:
        self._kinds.extend(bytes([kind]) * number)
        self._values.extend([None] * number)

    def kind(self, place: int) -> int:
        """`OPEN` also for what does not exist yet."""
        at = place - self.first
        return FORGOTTEN if at < 0 else self._kinds[at] if at < len(self._kinds) else OPEN

    def value(self, place: int) -> Any:
        return None if place < self.first else self._values[place - self.first]

    def set(self, place: int, kind: int, value: Any) -> None:
        self._kinds[place - self.first] = kind
        self._values[place - self.first] = value
        self._outcomes = self._outcomes or isinstance(value, Outcome)

    def fill(self, start: int, values: Sequence[Any]) -> bool:
        """Give values to so many places from `start` on, if all of them are open. False if not."""
        at = start - self.first
        end = at + len(values)
        if at < 0 or self._kinds.count(OPEN, at, end) < len(values):
            return False
        self._values[at:end] = values
        self._kinds[at:end] = bytes([VALUE]) * len(values)
        return True

    def any_open(self, start: int, end: int) -> bool:
        return self._find_open(start, end) >= 0

    def any_cancelled(self, start: int, end: int) -> bool:
        return self._kinds.find(CANCELLED, max(0, start - self.first), max(0, end - self.first)) >= 0

    def first_open(self, start: int, end: int) -> int:
        """The first open place, `start` if there is none."""
        at = self._find_open(start, end)
        return start if at < 0 else self.first + at

    def _find_open(self, start: int, end: int) -> int:
        return self._kinds.find(OPEN, max(0, start - self.first), max(0, end - self.first))

    def places(self, kinds: Iterable[int], start: int = 0, end: int | None = None) -> list[int]:
        """Those that are of one of these kinds."""
        low = max(0, start - self.first)
        high = len(self._kinds) if end is None else max(0, end - self.first)
        wanted = frozenset(kinds)
        return [self.first + at for at, kind in enumerate(self._kinds[low:high], low) if kind in wanted]

    def run(self, start: int, most: int) -> list[Any]:
        """Values from `start` on, up to one that has not come, has failed, or must be decoded first."""
        at = start - self.first
        if at < 0:
            return []
        kinds = self._kinds[at : at + most]
        number = len(kinds) - len(kinds.lstrip(_VALUE))
        values = self._values[at : at + number]
        if not self._outcomes:
            return values
        types = list(map(type, values))
        return values[: types.index(Outcome)] if Outcome in types else values

    def all_values(self) -> list[Any] | None:
        """Of all that is kept, if each is there and needs no look."""
        if self._outcomes or self._kinds.count(VALUE) < len(self._kinds):
            return None
        return self._values.copy()

    def items(self) -> Iterable[tuple[int, int, Any]]:
        """Place, kind and value of all that is kept."""
        return zip(range(self.first, len(self)), self._kinds, self._values, strict=True)

    def blank(self, start: int, end: int) -> None:
        """Forget these, none of which is open. Their places stay."""
        at, number = start - self.first, end - start
        self._kinds[at : at + number] = _FORGOTTEN * number
        self._values[at : at + number] = [None] * number

    def drop(self, places: Iterable[int]) -> None:
        """Forget these, and take away the beginning as far as it was forgotten."""
        for place in places:
            if place >= self.first and self._kinds[place - self.first] != OPEN:
                self.set(place, FORGOTTEN, None)
        self._cut(len(self._kinds) - len(self._kinds.lstrip(_FORGOTTEN)))

    def drop_before(self, place: int) -> None:
        """Forget what lies before, as far as nothing of it is open."""
        at = self._kinds.find(OPEN, 0, max(0, place - self.first))
        self._cut(max(0, place - self.first) if at < 0 else at)

    def _cut(self, number: int) -> None:
        del self._kinds[:number]
        del self._values[:number]
        self.first += number


_VALUE = bytes([VALUE])
_FORGOTTEN = bytes([FORGOTTEN])
