"""Loops over a batch's results: what they take, want, and leave behind.

Always true here: what a loop has read is forgotten where `demand` has it so, and places stay what they are; a loop
learns of its end from the batch alone, whatever an item has raised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nbqueue.client.results.asking import Asked
from nbqueue.client.results.failures import not_an_end
from nbqueue.client.results.frames import hand_out, user_frames_only
from nbqueue.client.results.future import TaskFuture
from nbqueue.client.results.ledger import FORGOTTEN, OPEN
from nbqueue.client.results.reading import Reading
from nbqueue.client.results.waiting import wait_until

__all__ = ["Looped"]

# Results that a loop takes together.
RUN = 1_000
# And how many futures it takes at most before the feeder hears of it.
LOOK_EVERY = 64


class Looped(Asked):
    """The items of one batch, as loops over them see them."""

    def reading(self) -> Reading:
        """A loop over results: it is waited for, and the input is drawn as far as it wants."""
        return Reading(self._demand, self._changed, self)

    def next_run(self, place: int) -> list[Any]:
        """Values from `place` on that are there and need no look. What lies before has been read."""
        if not self._limited:
            return self._ledger.run(place, RUN)
        with self._changed:
            self._demand.read(place)
            kept = self._demand.kept
            if place - kept - self._ledger.first > self._demand.step:
                self._ledger.drop_before(place - kept)
                self._forget()
            self._changed.notify_all()
            return self._ledger.run(place, RUN)

    def get_in_loop(self, place: int) -> Any:
        """The value of an item that has ended, for a loop: what looks like the loop's end must not end it.

        Raises
        ------
        RuntimeError
            In the place of a StopIteration of the task's, as Python does it in generators.
        Exception
            What the item has raised.
        """
        try:
            with user_frames_only:
                return self.get(place)
        except Exception as error:
            self.add_summary(error)
            if isinstance(error, StopIteration | StopAsyncIteration):
                hand_out(not_an_end(f"{self.name}[{place}]", error))
            raise

    def give(self, place: int) -> list[Any]:
        """Values from `place` on, of which at least the first has come. They are kept no longer, places stay.

        Raises
        ------
        Exception
            What the first has raised.
        """
        run = self._ledger.run(place, RUN) or [self.get_in_loop(place)]
        with self._lock:
            self._ledger.blank(place, place + len(run))
        return run

    def keep_order(self) -> None:
        """Note from now on in which order items end."""
        with self._lock:
            if self._order is None:
                self._order = [place for place, kind, _ in self._ledger.items() if kind != OPEN]
                self._order_first = self._ledger.first

    def wait_for_ended(self, number: int, timeout: float | None) -> bool | None:
        """Wait until so many and one have ended. False at the timeout, None if no more will."""
        if not wait_until(self._changed, self.more_than(number), timeout, self._link, self.interrupted):
            return False
        return True if self._ended_number > number else None

    def more_than(self, number: int) -> Callable[[], bool]:
        """Whether more than so many have ended, or no more will."""
        return lambda: self._ended_number > number or self.done

    def has_ended(self, number: int) -> bool:
        return self._ended_number > number

    @property
    def _ended_number(self) -> int:
        return self._order_first + len(self._order or ())

    def ended(self, number: int) -> TaskFuture[Any]:
        """The future of the item that was the `number`-th to end. Those before have been read."""
        assert self._order is not None
        if self._limited and number % min(LOOK_EVERY, self._demand.step) == 0:
            with self._changed:
                self._demand.read(number)
                past = number - self._demand.kept - self._order_first
                if past > self._demand.step:
                    self._ledger.drop(self._order[:past])
                    del self._order[:past]
                    self._order_first += past
                    self._forget()
                self._changed.notify_all()
        at = number - self._order_first
        if at < 0:
            self.check_kept(0)
        return self.future(self._order[max(0, at)])

    @property
    def _limited(self) -> bool:
        return not self._demand.known

    def _forget(self) -> None:
        """The ledger has forgotten its beginning. The lock is held."""
        first = self._ledger.first
        self._details.forget(first)
        for place in [place for place in self._arguments if self._ledger.kind(place) == FORGOTTEN]:
            del self._arguments[place]
        self._unfinished = [call for call in self._unfinished if call.base + call.call.items > first]
