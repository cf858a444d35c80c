"""Futures as arguments: a call is given what others return, and waits for them on the server."""

from __future__ import annotations

import concurrent.futures
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbqueue import InputFailed, NotSendable, TaskCancelled, TaskFuture, TaskQueue
from nbqueue.codec.frames import is_reference

HERE = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="shared memory")


def held(go: Path, value: Any) -> Any:
    """Returns when it may; so whoever needs it was sent before."""
    while not go.exists():
        time.sleep(0.005)
    return value


def fails(x: Any = None) -> None:
    raise ValueError(f"no {x}")


@pytest.fixture
def go(tmp_path: Path) -> Path:
    return tmp_path / "go"


@pytest.fixture(params=["open", "ended"])
def source(request: pytest.FixtureRequest, queue: Any, go: Path) -> Callable[[Any], Any]:
    """``source(value)``: the future of a call that gives it, which has ended or has not when it is given to others."""

    def make(value: Any) -> Any:
        if request.param == "open":
            return queue.submit(held, go, value)
        future = queue.submit(lambda: value)
        concurrent.futures.wait([future], 20)
        return future

    return make


def test_a_task_is_given_the_value_wherever_the_future_is(queue: Any, go: Path, source: Callable[..., Any]) -> None:
    def look(x: Any, deep: Any, *, key: Any) -> Any:
        return x, deep, key

    one, two = source([1]), source({"two": 2})
    future = queue.submit(look, one, [two, {"in": (one, 5)}], key=two)
    go.touch()
    assert future.result(timeout=20) == ([1], [{"two": 2}, {"in": ([1], 5)}], {"two": 2})


def test_the_same_future_gives_the_same_object(queue: Any, go: Path, source: Callable[..., Any]) -> None:
    one = source(np.zeros(3))
    future = queue.submit(lambda a, b: a is b[0], one, [one])
    other = queue.submit(lambda a: a.flags.writeable, one)
    go.touch()
    assert future.result(timeout=20)
    assert other.result(timeout=20), "an argument is the task's own"


def test_calls_that_need_each_other_run_in_their_order(queue: Any) -> None:
    @queue.task
    def add(*numbers: int) -> int:
        return sum(numbers)

    middle = [add(add(i), 1) for i in range(20)]
    last = add(*middle)
    assert last.result(timeout=20) == sum(range(20)) + 20
    chain = add(0)
    for _ in range(100):
        chain = add(chain, 1)
    assert chain.result(timeout=20) == 100


def test_what_waits_for_others_is_counted_and_takes_no_worker(
    queue: Any, go: Path, wait_until: Callable[..., Any]
) -> None:
    first = queue.submit(held, go, 1)
    waiting = [queue.submit(lambda x: x, first) for _ in range(5)]
    wait_until(lambda: queue.status().delayed == 5)
    # Two workers, of which one is busy.
    assert queue.submit(abs, -3).result(timeout=20) == 3
    assert not any(future.done() for future in waiting)
    go.touch()
    assert [future.result(timeout=20) for future in waiting] == [1] * 5
    assert queue.status().delayed == 0


def test_a_value_that_was_looked_at_travels_too(queue: Any) -> None:
    first = queue.submit(list, "abc")
    assert first.result(timeout=20) == ["a", "b", "c"]
    assert queue.submit(len, first).result(timeout=20) == 3
    array = queue.submit(np.arange, 30_000.0)
    assert array.result(timeout=20)[7] == 7.0
    assert queue.submit(lambda x: float(x.sum()), array).result(timeout=20) == 449985000.0


# Failing


def test_a_failed_input_fails_what_needs_it_with_a_chain_that_says_so(
    queue: Any, go: Path, tmp_path: Path
) -> None:
    gate = queue.submit(held, go, "value")
    broken = queue.task(fails, name="broken").submit(gate)
    ran = tmp_path / "ran"
    middle = queue.task(lambda x: ran.touch(), name="middle").submit([broken])
    last = queue.task(lambda x, y: ran.touch(), name="last").submit(gate, {"y": middle})
    go.touch()
    with pytest.raises(InputFailed, match=r"`middle` did not run: its input `broken` failed \(.*no value") as caught:
        middle.result(timeout=20)
    assert type(caught.value.__cause__) is ValueError
    assert any("task broken" in note for note in caught.value.__cause__.__notes__)
    with pytest.raises(InputFailed, match="its input `middle` did not run, because `broken` failed") as caught:
        last.result(timeout=20)
    assert str(caught.value.__cause__) == "no value"
    assert caught.value.input == "broken"
    # And one that is made when it is known.
    late = queue.task(len, name="late").submit(middle)
    with pytest.raises(InputFailed, match="`late` did not run") as caught:
        late.result(timeout=20)
    assert str(caught.value.__cause__) == "no value"
    assert not ran.exists()
    assert [record.outcome for record in queue.history() if record.name in ("middle", "last")] == ["failed"] * 2
    assert "did not run" in repr(queue.history(failed=True))


def test_a_deep_chain_fails_as_a_whole(queue: Any, go: Path) -> None:
    future = queue.submit(fails, queue.submit(held, go, 0))
    for _ in range(2_000):
        future = queue.submit(abs, future)
    go.touch()
    with pytest.raises(InputFailed) as caught:
        future.result(timeout=30)
    assert type(caught.value.__cause__) is ValueError


def test_a_failed_call_that_was_given_values_can_be_replayed(queue: Any, go: Path) -> None:
    @queue.task
    def divide(x: float, y: float) -> float:
        return x / y

    future = divide(queue.submit(held, go, 1), queue.submit(held, go, 0))
    go.touch()
    error = future.exception(timeout=20)
    assert type(error) is ZeroDivisionError
    assert any("x=<future held>, y=<future held>" in note for note in error.__notes__)
    with pytest.raises(ZeroDivisionError):
        future.replay()


def test_retries_are_for_each_call_alone(queue: Any, tmp_path: Path) -> None:
    tries = tmp_path / "tries"

    @queue.task(retries=2)
    def flaky(x: int) -> int:
        with tries.open("a") as file:
            file.write("x")
        if tries.stat().st_size % 2:
            raise ValueError("once")
        return x + 1

    assert flaky(flaky(1)).result(timeout=20) == 3
    assert tries.stat().st_size == 4


# Cancelling


def test_cancelling_flows_downstream_and_not_up(queue: Any, go: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    first = queue.submit(held, go, 1)
    middle = queue.submit(lambda x: ran.touch(), first)
    last = queue.submit(lambda x: ran.touch(), middle)
    beside = queue.submit(lambda x: x + 1, first)
    assert middle.cancel()
    with pytest.raises(TaskCancelled):
        last.result(timeout=20)
    assert queue.submit(abs, last).cancelled(), "what needs one that was cancelled is, too"
    go.touch()
    assert beside.result(timeout=20) == 2
    assert first.result(timeout=20) == 1
    assert not ran.exists()
    assert queue.status().delayed == 0


def test_an_interrupt_also_cancels_what_only_its_call_needed(
    queue: Any, go: Path, wait_until: Callable[..., Any]
) -> None:
    shared, own = queue.submit(held, go, 1), queue.submit(held, go, 2)
    beside = queue.submit(abs, shared)
    future = queue.submit(lambda x, y: x + y, shared, queue.submit(abs, own))
    assert future._interrupted() == "`<lambda>` was cancelled."
    assert own.cancelled()
    assert not shared.cancelled()
    go.touch()
    assert beside.result(timeout=20) == 1


# What cannot be given


def test_what_is_no_single_call_of_this_queue_is_refused_with_what_to_do(queue: Any, new_key: str, go: Path) -> None:
    other = TaskQueue(stream_key=f"{new_key}-other")
    elsewhere = other.submit(abs, -1)
    with pytest.raises(NotSendable, match=r"`abs` could not be sent.*`abs` is another queue's.*Use its result\(") as no:
        queue.submit(abs, elsewhere)
    assert no.value.__suppress_context__
    with pytest.raises(TypeError, match=r"argument `x` .*Future\) cannot be pickled. Pass its result\(\)"):
        queue.submit(fails, concurrent.futures.Future())
    batch = queue.map(abs, [-1, 2])
    with pytest.raises(NotSendable, match=r"argument `x` .*Batch\) cannot be sent: a batch is many results. Use its"):
        queue.submit(fails, batch)
    future = queue.submit(abs, -1)
    with pytest.raises(NotSendable, match=r"an item of the map holds a future. Make single calls"):
        queue.map(abs, [future, 1])
    with pytest.raises(NotSendable, match=r"the keywords of the map hold a future\. Make single calls"):
        queue.task(pow).map([1], exp=future)
    with pytest.raises(NotSendable, match="its global `future`|its closure variable `future`"):
        queue.submit(lambda: future)
    assert batch.results(timeout=20) == [1, 2]
    elsewhere.result(timeout=20)
    other.shutdown()


def test_an_item_of_a_batch_is_given_when_it_has_ended(queue: Any, go: Path, wait_until: Callable[..., Any]) -> None:
    def work(x: int) -> Any:
        held(go, None)
        return [x] if x else 1 / x

    batch = queue.map(work, [3, 4, 0], chunksize=3)
    first, second, third = batch.futures
    single = queue.submit(held, go, [5])
    both = queue.submit(lambda x, y, z: x + y + z, second, [first][0], single)
    then = queue.submit(len, both)
    failed = queue.submit(len, third)
    cancelled = queue.submit(len, second)
    assert cancelled.cancel()
    assert queue._core.link.open_calls == 2, "those that need items are not sent"
    go.touch()
    assert both.result(timeout=20) == [4, 3, 5]
    assert then.result(timeout=20) == 3
    with pytest.raises(InputFailed, match=r"its input `work\[2\]` failed") as caught:
        failed.result(timeout=20)
    assert type(caught.value.__cause__) is ZeroDivisionError
    wait_until(lambda: queue._core.link.drained)
    # And when it has ended before.
    assert queue.submit(len, second).result(timeout=20) == 1


def test_the_end_of_a_block_waits_for_what_needs_items_of_a_batch(new_key: str) -> None:
    with TaskQueue(stream_key=new_key, workers=1) as queue:
        batch = queue.map(abs, [-1, -2])
        future = queue.submit(lambda *numbers: sum(numbers), *batch.futures)
    assert future.result(timeout=0) == 3


# Elsewhere


def test_inside_a_task_futures_that_were_made_there_are_given(queue: Any) -> None:
    @queue.task
    def add(x: int, y: int) -> int:
        return x + y

    def outer() -> int:
        return int(add.submit(add.submit(1, 2), add.submit(3, 4)).result())

    assert queue.submit(outer).result(timeout=20) == 10


def test_an_executor_takes_them_too(queue: Any) -> None:
    with queue.executor() as executor:
        assert executor.submit(pow, executor.submit(abs, -2), 3).result(timeout=20) == 8


# Where values go


def test_on_another_server_values_go_from_there_to_the_worker(
    redis_server: Any, new_key: str, traffic: Any, go: Path
) -> None:
    """They come to the kernel as any result does, and leave it not."""
    queue = TaskQueue(redis_server.url, new_key)
    parts = [queue.submit(held, go, 0)]
    parts += [queue.submit(lambda _, i: bytes([i]) * 100_000, parts[0], i) for i in range(5)]
    total = queue.submit(lambda parts: sum(len(part) for part in parts[1:]), parts)
    queue.run(2)
    go.touch()
    assert total.result(timeout=20) == 500_000
    assert traffic.sent < 20_000
    queue.shutdown()


@HERE
def test_a_value_stays_where_it_is_as_long_as_it_is_needed(queue: Any, go: Path) -> None:
    """Also when its future is gone, or was looked at, which frees its memory here."""
    first = queue.submit(np.zeros, 100_000)
    gate = queue.submit(held, go, 0)
    needs = queue.submit(lambda x, _: float(x.sum()), first, gate)
    assert first.result(timeout=20).size == 100_000
    del first
    for i in range(20):
        # These would write to what is not needed any more.
        assert queue.submit(np.full, 100_000, float(i)).result(timeout=20)[0] == i
    go.touch()
    assert needs.result(timeout=20) == 0.0


@HERE
def test_what_has_ended_and_was_not_looked_at_is_given_where_it_lies(queue: Any) -> None:
    first = queue.submit(np.ones, 100_000)
    concurrent.futures.wait([first], 20)
    assert is_reference(first._outcome._data)
    assert queue.submit(lambda x: float(x.sum()), first).result(timeout=20) == 100_000.0
    assert is_reference(first._outcome._data), "it was unpickled here"


def test_a_long_chain_keeps_nothing_of_what_is_behind(queue: Any) -> None:
    import gc
    import weakref

    future = queue.submit(abs, 0)
    first = weakref.ref(future)
    for _ in range(50):
        future = queue.submit(lambda x: x + 1, future)
    assert future.result(timeout=20) == 50
    gc.collect()
    assert first() is None


def test_a_call_that_is_wanted_while_others_end_that_came_with_it_gives_its_value(
    queue: Any, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., Any]
) -> None:
    """Its future has ended, and the call is still open: whoever wanted it then was told that it had failed."""
    link = queue._core.link
    calls: list[Any] = []
    wanted: list[Any] = []
    end = TaskFuture.on_value

    def end_and_want(self: Any, *told: Any) -> None:
        end(self, *told)
        wanted.extend(call for call in calls if link.want(call))

    assert queue.submit(abs, -1).result(timeout=20) == 1
    link.workers = 1
    link._paces.update(dict.fromkeys(link._paces, 1e-6))
    monkeypatch.setattr(TaskFuture, "on_value", end_and_want)
    with link._helm:
        futures = [queue.submit(abs, -i) for i in range(8)]
        # Of those that have ended, none is open: but those that came with it.
        calls += [future._call for future in futures[:3]]
    assert [future.result(timeout=20) for future in futures] == list(range(8))
    wait_until(lambda: not link._open)
    assert wanted
    assert all(call.node.reply for call in wanted), "what it gave is not kept for whoever wanted it"
