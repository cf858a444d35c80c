"""Batches at their edges: slow inputs, cancelled places, late futures. Each was once a defect."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nbqueue import NotSendable, TaskCancelled, TaskQueue
from nbqueue.codec import functions


@pytest.fixture
def gate(tmp_path: Path) -> Any:
    """``gate.hold(x)`` waits in a worker until ``gate.open()``."""

    class Gate:
        path = str(tmp_path / "open")

        @property
        def hold(self) -> Callable[[Any], Any]:
            path = self.path

            def hold(value: Any) -> Any:
                from pathlib import Path

                while not Path(path).exists():
                    time.sleep(0.005)
                return value

            return hold

        def open(self) -> None:
            Path(self.path).touch()

    return Gate()


def test_an_item_cancelled_before_it_was_sent_does_not_run(queue: Any, gate: Any) -> None:
    batch = queue.map(gate.hold, range(50), chunksize=1)
    assert batch.futures[49].cancel()
    gate.open()
    assert batch.wait(20)
    with pytest.raises(TaskCancelled):
        batch[49]
    assert batch[:49] == list(range(49))
    assert batch.progress.cancelled == 1


def test_items_do_not_wait_for_an_input_that_is_slow(queue: Any, wait_until: Callable[..., Any]) -> None:
    more = threading.Event()

    def items() -> Iterator[int]:
        yield from range(100)
        more.wait(30)
        yield 100

    batch = queue.map(abs, items())
    wait_until(lambda: batch.progress.done == 100, timeout=20)
    more.set()
    assert batch.results(timeout=20) == list(range(101))


def test_an_input_may_wait_for_earlier_results(queue: Any) -> None:
    started = threading.Event()
    batches: list[Any] = []

    def items() -> Iterator[int]:
        for i in range(40):
            yield i
            if i >= 20:
                started.wait(20)
                assert batches[0].futures[i].result(timeout=20) == i

    batches.append(queue.map(abs, items()))
    started.set()
    assert batches[0].results(timeout=30) == list(range(40))


def test_a_cancelled_batch_can_run_its_failed_items_again(queue: Any) -> None:
    batch = queue.map(lambda x: 1 / x, [0, 1])
    assert batch.wait(20)
    batch.cancel()
    assert batch.retry_failed().wait(20)
    assert batch.progress.failed == 1


def test_a_function_that_was_defined_again_is_used_by_retry_failed(queue: Any, new_key: str) -> None:
    namespace: dict[str, Any] = {"queue": queue, "__name__": "__main__"}
    exec("@queue.task\ndef half(x): return 1 / x\nbatch = half.map([0, 2])", namespace)
    assert namespace["batch"].wait(20)
    exec("@queue.task\ndef half(x): return x + 7", namespace)
    assert namespace["batch"].retry_failed().results(timeout=20) == [7, 0.5]


def test_a_future_made_late_knows_who_ran_it(queue: Any) -> None:
    batch = queue.map(abs, range(-30, 0))
    assert batch.wait(20)
    for future in (batch.futures[0], batch.futures[17], batch.futures[-1]):
        assert future.worker
        assert future.attempts == 1
        assert future.seconds >= 0


def test_there_are_no_futures_beyond_the_end(queue: Any) -> None:
    batch = queue.map(abs, [1, 2])
    for index in (2, -3):
        with pytest.raises(IndexError):
            batch.futures[index]
    endless = queue.map(abs, iter([1, 2]))
    assert endless.wait(20)
    with pytest.raises(IndexError):
        endless.futures[2]


def test_an_item_that_is_too_large_costs_only_itself(queue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "LARGEST_BYTES", 10_000)
    batch = queue.map(len, ["a", "b" * 20_000, "c"])
    assert batch.wait(20)
    assert [type(r) for r in batch.results(return_exceptions=True)] == [int, NotSendable, int]


def test_many_strings_of_middle_length_travel_in_parts(queue: Any) -> None:
    texts = ["x" * 9_000 + str(i) for i in range(500)]
    batch = queue.map(len, texts, chunksize=500)
    assert batch.results(timeout=20) == [len(text) for text in texts]
    assert len(batch._items._details._lines) >= 4


def test_a_callback_that_ends_the_program_does_not_end_the_listener(
    queue: Any, capsys: pytest.CaptureFixture[str], wait_until: Callable[..., Any]
) -> None:
    future = queue.submit(abs, -1)
    future.add_done_callback(lambda _: sys.exit(3))
    assert future.result(timeout=20) == 1
    assert queue.submit(abs, -2).result(timeout=20) == 2


def test_two_databases_of_one_server_are_two_queues(
    redis_server: Any, new_key: str, wait_until: Callable[..., Any]
) -> None:
    three = TaskQueue(redis_server.client(db=3), new_key)
    zero = TaskQueue(redis_server.client(), new_key)
    three.run(1)
    assert three.submit(abs, -3).result(timeout=20) == 3
    zero.submit(abs, -4)
    assert zero.status().workers == ()
    # A host that is busy with other things tells of its workers a little later.
    wait_until(lambda: len(three.status().workers) == 1)
    zero.cancel()


def test_map_returns_although_its_generator_is_slow(queue: Any) -> None:
    go_on = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        go_on.wait(30)
        yield 2

    batch = queue.map(abs, items())
    go_on.set()
    assert batch.results(timeout=20) == [1, 2]
