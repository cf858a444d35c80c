"""What a worker holds ahead of what it runs, and how it measures how much that may be."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator

import pytest

from nbqueue.stream.connect import Address
from nbqueue.stream.keys import Keys
from nbqueue.stream.records import Fetched
from nbqueue.worker.board import Board
from nbqueue.worker.carrier import Carrier
from nbqueue.worker.supplies import WorkerSpec

PAYLOAD = b"of all"


def call(n: int, entry: str = "1*1-0", payload: bytes = PAYLOAD) -> Fetched:
    """A call of a bundle, or alone."""
    name = f"{entry}+{n}" if entry[1] == "*" else entry
    return Fetched(name, "c", str(n), ("f",), 1, 1, 0, 0, -1, payload)


@pytest.fixture
def carrier() -> Iterator[Carrier]:
    board = Board.create(1)
    prefix = Keys.of("tasks", "0a1b2c3d").prefix
    spec = WorkerSpec(0, "h:0:1", "tasks", prefix, Address(path="/nowhere").to_dict(), "00" * 32, {})
    yield Carrier(spec, board.slot(0))
    os.close(board.fd)


def test_calls_of_a_bundle_are_measured_together_since_they_are_fetched_so(carrier: Carrier) -> None:
    bundle = [call(n) for n in range(3)]
    alone = call(9, "1/2-0", b"another")
    carrier._ahead.extend([*bundle[1:], alone])
    for one in bundle:
        assert carrier._seconds == 0.0
        carrier._note_pace(one, "f", 0.25)
        carrier._next()
    assert carrier._seconds == 0.75
    assert carrier._paces == {"f": 0.25}
    carrier._note_pace(alone, "f", 0.75)
    assert carrier._seconds == pytest.approx(0.75)


def test_a_bundle_of_which_the_rest_was_given_back_is_measured_as_it_was_run(carrier: Carrier) -> None:
    one, two, three = (call(n) for n in range(3))
    carrier._ahead.extend([two, three])
    carrier._note_pace(one, "f", 0.25)
    carrier._ahead.clear()
    carrier._note_pace(two, "f", 0.5)
    assert carrier._seconds == 0.75
    # What comes next does not count it once more.
    carrier._note_pace(call(9, "1/2-0", b"another"), "f", 0.75)
    assert carrier._seconds == pytest.approx(0.75)


def test_what_is_ahead_may_be_given_back_while_it_is_looked_at(carrier: Carrier) -> None:
    """By the courier, a moment after a call that ran for long: the worker died of it, and the call ran twice."""

    class Ahead(deque[Fetched]):
        """It is given back as soon as that can be: when it is looked at, unless it is locked."""

        def __len__(self) -> int:
            number = super().__len__()
            if not carrier._lock.locked():
                giver = threading.Thread(target=self.clear)
                giver.start()
                giver.join()
            return number

    carrier._ahead = Ahead([call(1)])
    carrier._note_pace(call(0), "f", 0.25)
    assert carrier._paces == {"f": 0.25}
