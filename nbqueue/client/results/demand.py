"""How far the input of a batch is drawn. Pure: no lock, no clock, no thread.

An input of known length is drawn to its end. A generator may have none, so who wants its results counts:

- nobody has begun to read: it runs by itself, as a list does; if nobody holds the batch any more, so that nobody
  ever will, for a limited number of items;
- a loop over the results: a limited number of items ahead of that loop, of large ones few;
- the loop was left: no further, until another begins, or somebody waits for all of it, or asks for an item;
- it was left and nobody holds the batch: it is over.

As many results are kept behind a loop, or as many bytes.
"""

from __future__ import annotations

__all__ = ["Demand", "Reader"]

# Of small results about 10 MB; a second or two of the quickest work.
UNREAD_ITEMS = 100_000
UNREAD_BYTES = 100_000_000
# However large they are: for each worker one that it makes, and one that may wait for the loop to come to it.
FEWEST_EACH = 2
# Items to draw where there is no limit.
NO_LIMIT = 1 << 62


class Reader:
    """A loop over results."""

    __slots__ = ()


class Demand:
    """Who wants the results of one batch.

    Attributes
    ----------
    known : bool
        The length of the input is.
    dropped : bool
        Nobody holds the batch any more.
    """

    def __init__(self, *, known: bool) -> None:
        self.known = known
        self.dropped = False
        self._was_read = False
        self._read = 0
        self._readers: set[Reader] = set()
        self._waiting = 0
        self._asked = 0
        self._item_bytes = 0.0

    # What happens

    def arrived(self, items: int, size_bytes: int) -> None:
        mean = size_bytes / items
        self._item_bytes = 0.8 * self._item_bytes + 0.2 * mean if self._item_bytes else mean

    def begin(self, reader: Reader) -> None:
        """A loop begins."""
        self._was_read = True
        self._readers.add(reader)

    def leave(self, reader: Reader) -> None:
        # Called by whatever ends a loop, the collection of garbage too: nothing but this one step.
        self._readers.discard(reader)

    def read(self, number: int) -> None:
        """A loop has come so far."""
        self._read = max(self._read, number)

    def ask(self, place: int) -> None:
        """This item is wanted."""
        self._asked = max(self._asked, place + 1)

    def wait(self, more: int) -> None:
        """So many more wait for all of it."""
        self._waiting += more

    # What follows

    @property
    def kept(self) -> int:
        """How many items that were read are kept."""
        if self._item_bytes * UNREAD_ITEMS <= UNREAD_BYTES:
            return UNREAD_ITEMS
        return max(1, int(UNREAD_BYTES / self._item_bytes))

    @property
    def step(self) -> int:
        """After so many more that were read it is worth while to forget some, and to draw others."""
        return max(1, self.kept // 4)

    def room(self, drawn: int, workers: int = 1) -> int:
        """How many items may be drawn now for so many workers, when so many were."""
        if self.known or self._waiting:
            return NO_LIMIT
        if drawn < self._asked:
            return self._asked - drawn
        if self.dropped:
            return 0 if self._was_read else max(0, UNREAD_ITEMS - drawn)
        if not self._was_read:
            return NO_LIMIT
        if not self._readers:
            return 0
        most = max(self.kept, FEWEST_EACH * workers)
        room = most - (drawn - self._read)
        # Not for each item that is read, or chunks would be of one.
        return room if room >= most // 4 else 0

    def left(self, drawn: int) -> bool:
        """Whether nobody will ever want more than what was drawn."""
        return self.dropped and self.room(drawn) == 0

    @property
    def unwanted(self) -> bool:
        """Nobody will ever see what is drawn already."""
        return self.dropped and self._was_read and not (self.known or self._waiting)
