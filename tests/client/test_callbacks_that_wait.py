"""A done-callback runs in the thread that receives results: what it waits for there would never come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import nbqueue
from nbqueue import NbqueueError

TOLD = "A done-callback must not wait for another call of the queue"

WAITS: dict[str, Callable[[Any, Any], object]] = {
    "result": lambda queue, future: future.result(),
    "call": lambda queue, future: future(),
    "result with a limit": lambda queue, future: future.result(timeout=20),
    "exception": lambda queue, future: future.exception(),
    "a map": lambda queue, future: queue.map(abs, [-1, -2]).results(),
    "iteration": lambda queue, future: list(queue.map(abs, [-1, -2])),
    "gather": lambda queue, future: nbqueue.gather([future]),
    "wait": lambda queue, future: nbqueue.wait([future]),
    "as_completed": lambda queue, future: list(nbqueue.as_completed([future])),
    "shutdown": lambda queue, future: queue.shutdown(),
}


@pytest.mark.parametrize("way", WAITS)
def test_a_callback_that_waits_for_another_call_is_told_so_instead_of_waiting_for_ever(
    way: str, queue: Any, wait_until: Callable[..., Any]
) -> None:
    """Symptom: nothing of the queue ever arrived again."""
    raised: list[Exception] = []
    values: list[Any] = []

    def callback(done: Any) -> None:
        values.append(done.result())
        other = queue.submit(abs, -7)
        try:
            WAITS[way](queue, other)
        except NbqueueError as error:
            raised.append(error)
        values.append(other)

    future = queue.submit(abs, -5)
    future.add_done_callback(callback)
    wait_until(lambda: len(values) == 2, timeout=25)
    assert [str(error)[: len(TOLD)] for error in raised] == [TOLD]
    assert values[0] == 5
    # The listener is free again.
    assert values[1].result(timeout=20) == 7


def test_a_callback_may_look_at_what_has_ended_and_make_calls(queue: Any, wait_until: Callable[..., Any]) -> None:
    first = queue.submit(abs, -1)
    assert first.result(timeout=20) == 1
    values: list[Any] = []

    def callback(done: Any) -> None:
        values.append(done.result() + first.result() + nbqueue.gather([first])[0])
        queue.submit(abs, -7).add_done_callback(lambda other: values.append(other.result()))

    queue.submit(abs, -5).add_done_callback(callback)
    wait_until(lambda: values == [7, 7], timeout=20)
