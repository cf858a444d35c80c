"""A queue as an Executor: what anything that takes one may rely on."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import itertools
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nbqueue import TaskFuture, TaskQueue
from nbqueue.errors import BadOption, NotSendable


@pytest.fixture
def executor(queue: Any) -> Any:
    return queue.executor()


@pytest.fixture(autouse=True)
def as_much_time_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may let calls wait for longer than a user should."""
    monkeypatch.setattr("nbqueue.interop.executor.FETCH_TIMEOUT_S", 20.0)


@pytest.fixture
def held(tmp_path: Path) -> Any:
    """``held(x)`` is x, once ``held.go()`` was called; `held.begun` counts the calls that have begun."""
    gate, begun = tmp_path / "go", tmp_path / "begun"
    begun.mkdir()

    def held(x: Any = None) -> Any:
        (begun / str(x)).touch()
        while not gate.exists():
            time.sleep(0.005)
        return x

    held.go = gate.touch  # type: ignore[attr-defined]
    held.begun = lambda: len(list(begun.iterdir()))  # type: ignore[attr-defined]
    return held


def test_it_is_an_executor_whose_futures_are_the_queues(executor: Any) -> None:
    assert isinstance(executor, concurrent.futures.Executor)
    future = executor.submit(divmod, 7, 2)
    assert isinstance(future, TaskFuture)
    assert concurrent.futures.wait([future], timeout=20).done == {future}
    assert future.result() == (3, 1)


def test_shutdown_waits_for_its_own_calls_and_leaves_the_queue_alone(
    queue: Any, held: Any, wait_until: Callable[..., Any]
) -> None:
    others = queue.submit(held, "other")
    wait_until(lambda: held.begun() == 1, timeout=20)
    with queue.executor() as executor:
        mine = executor.submit(abs, -1)
    assert mine.done()
    assert not others.done()
    held.go()
    assert others.result(timeout=20) == "other"
    assert queue.submit(abs, -2).result(timeout=20) == 2, "the workers are everybody's"


def test_after_a_shutdown_calls_are_refused_as_by_any_executor(executor: Any) -> None:
    executor.shutdown()
    executor.shutdown()
    for send in (lambda: executor.submit(abs, 1), lambda: executor.map(abs, [1])):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            send()
    assert "shut down" in repr(executor)


def test_shutdown_without_waiting_lets_calls_go_on(executor: Any, held: Any) -> None:
    future = executor.submit(held, 1)
    executor.shutdown(wait=False)
    assert not future.done()
    held.go()
    assert future.result(timeout=20) == 1


def test_shutdown_cancels_what_no_worker_has_begun_and_nothing_else(
    executor: Any, held: Any, wait_until: Callable[..., Any]
) -> None:
    futures = [executor.submit(held, i) for i in range(6)]
    results = executor.map(held, range(6, 16), chunksize=2)
    wait_until(lambda: held.begun() == 2, timeout=20)
    executor.shutdown(wait=False, cancel_futures=True)
    assert [future.cancelled() for future in futures] == [False, False, True, True, True, True]
    held.go()
    executor.shutdown()
    assert [future.result() for future in futures[:2]] == [0, 1]
    assert held.begun() == 2
    with pytest.raises(concurrent.futures.CancelledError):
        next(results)


def test_a_call_that_a_worker_has_and_is_about_to_begin_is_not_cancelled(
    redis_server: Any, new_key: str, held: Any, wait_until: Callable[..., Any]
) -> None:
    """As when a worker takes a moment to wake up: both are stopped while they wait for work."""
    queue = TaskQueue(redis_server.url, new_key)
    queue.run(2)
    pids = {*queue.map(lambda _: time.sleep(0.02) or os.getpid(), range(20)).results()}
    assert len(pids) == 2

    def signal_both(signum: int) -> None:
        for pid in pids:
            os.kill(pid, signum)

    with redis_server.client() as client:
        blocked = lambda: [row["cmd"] for row in client.client_list() if "b" in row["flags"]]  # noqa: E731
        wait_until(lambda: blocked().count("xreadgroup") == 2, timeout=20)
    signal_both(signal.SIGSTOP)
    executor = queue.executor()
    futures = [executor.submit(held, i) for i in range(4)]
    executor.shutdown(wait=False, cancel_futures=True)
    signal_both(signal.SIGCONT)
    held.go()
    executor.shutdown()
    assert [future.cancelled() for future in futures] == [False, False, True, True]
    assert [future.result() for future in futures[:2]] == [0, 1]


def test_a_callback_may_shut_down_and_cancels_nothing_that_runs(
    executor: Any, held: Any, wait_until: Callable[..., Any]
) -> None:
    long = executor.submit(held, 1)
    wait_until(lambda: held.begun() == 1, timeout=20)
    executor.submit(abs, -1).add_done_callback(lambda _: executor.shutdown(wait=False, cancel_futures=True))
    wait_until(lambda: "shut down" in repr(executor), timeout=20)
    held.go()
    assert long.result(timeout=20) == 1


def test_a_call_that_has_ended_is_not_cancelled_though_nobody_has_read_its_result(
    queue: Any, executor: Any, wait_until: Callable[..., Any]
) -> None:
    """As long as a callback runs, no result is read."""
    over: list[Any] = []

    def shut_down(future: Any) -> None:
        if not over:
            wait_until(lambda: queue.status().done == 2, timeout=20)
            executor.shutdown(wait=False, cancel_futures=True)
        over.append(future)

    with queue._core.link._helm:
        futures = [executor.submit(abs, -1), executor.submit(abs, -2)]
        for future in futures:
            future.add_done_callback(shut_down)
    wait_until(lambda: len(over) == 2, timeout=30)
    assert [future.result() for future in futures] == [1, 2]


def test_a_chunk_of_a_map_that_has_begun_is_finished(
    queue: Any, held: Any, wait_until: Callable[..., Any]
) -> None:
    executor = queue.executor()
    results = executor.map(held, range(12), chunksize=3)
    wait_until(lambda: held.begun() == 2, timeout=20)
    executor.shutdown(wait=False, cancel_futures=True)
    held.go()
    executor.shutdown()
    assert list(itertools.islice(results, 6)) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(concurrent.futures.CancelledError):
        next(results)


def test_map_gives_results_in_order_and_reads_its_input_at_once(executor: Any) -> None:
    inputs = iter(range(10))
    results = executor.map(pow, inputs, [2] * 10)
    assert list(inputs) == []
    assert list(results) == [i * i for i in range(10)]
    assert list(executor.map(pow, range(10), range(10), chunksize=4)) == [i**i for i in range(10)]
    assert list(executor.map(abs)) == []


def test_an_input_that_raises_raises_from_map(executor: Any) -> None:
    def inputs() -> Any:
        yield 1
        raise LookupError("from the input")

    with pytest.raises(LookupError, match="from the input"):
        executor.map(abs, inputs())


def test_a_map_whose_results_nobody_wants_runs_to_its_end(executor: Any, held: Any) -> None:
    executor.map(held, range(5))
    gc.collect()
    held.go()
    executor.shutdown()
    assert held.begun() == 5


@pytest.mark.parametrize("leave", ["closed", "dropped", "raised"])
def test_a_map_that_is_left_cancels_the_rest(leave: str, executor: Any, held: Any) -> None:
    def first_at_once(x: Any) -> Any:
        return 1 / x if x <= 1 else held(x)

    results = executor.map(first_at_once, [1, 0, *range(2, 40)], chunksize=1)
    assert next(results) == 1
    if leave == "closed":
        results.close()
    elif leave == "dropped":
        del results
    else:
        with pytest.raises(ZeroDivisionError):
            next(results)
        with pytest.raises(StopIteration):
            next(results)
    # Else this would wait for ever.
    executor.shutdown()
    assert held.begun() < 10


def test_the_timeout_of_a_map_counts_from_its_call(executor: Any, held: Any) -> None:
    results = executor.map(lambda x: held(x) if x else x, [0, 0, 1, 2], timeout=1)
    assert [next(results), next(results)] == [0, 0]
    with pytest.raises(TimeoutError, match=r"`<lambda>\[2\]` has not ended in time"):
        next(results)
    executor.shutdown()


def test_results_of_a_map_are_forgotten_when_they_are_given(executor: Any) -> None:
    class Value:
        pass

    def make(_: int) -> Any:
        return Value()

    for options in ({}, {"buffersize": 2}, {"buffersize": 2, "chunksize": 2}):
        results = executor.map(make, range(6), **options)
        for value in results:
            gone = weakref.ref(value)
            del value
            assert gone() is None


@pytest.mark.parametrize("chunksize", [None, 3])
def test_a_buffer_bounds_what_is_read_ahead_of_the_loop(chunksize: int | None, executor: Any) -> None:
    drawn = itertools.count()
    each = chunksize or 1
    results = executor.map(str, drawn, buffersize=4, chunksize=chunksize)
    assert next(drawn) == 4 * each
    # That was one for us.
    assert [next(results) for _ in range(each)] == [str(i) for i in range(each)]
    assert next(drawn) == 5 * each + 1
    results.close()
    executor.shutdown()


def test_a_buffered_map_gives_all_and_ends(executor: Any) -> None:
    for chunksize in (None, 2, 100):
        results = executor.map(pow, range(9), range(9), buffersize=2, chunksize=chunksize)
        assert list(results) == [i**i for i in range(9)]
    assert list(executor.map(abs, [], buffersize=3)) == []


@pytest.mark.parametrize(
    ("options", "error"),
    [({"buffersize": 0}, ValueError), ({"buffersize": "4"}, TypeError), ({"chunksize": 0}, ValueError)],
)
def test_sizes_that_cannot_be_meant_are_refused_at_once(options: Any, error: type[Exception], executor: Any) -> None:
    with pytest.raises(error, match=f"{next(iter(options))} must be"):
        executor.map(abs, [1], **options)


def test_its_calls_have_its_options(queue: Any, tmp_path: Path) -> None:
    def twice() -> str:
        if not (tmp_path / "tried").exists():
            (tmp_path / "tried").touch()
            raise OSError("the first time")
        return "well"

    with queue.executor(retries=1, timeout=30) as executor:
        future = executor.submit(twice)
        assert future.result(timeout=20) == "well"
        (tmp_path / "tried").unlink()
        assert executor.submit(queue.task(twice)).result(timeout=20) == "well", "of tasks, too"
        assert list(executor.map(queue.task(abs), [-1, -2])) == [1, 2]
    with pytest.raises(BadOption, match="no option 'max_workers'"):
        queue.executor(max_workers=4)


def test_a_buffered_map_with_a_seed_is_refused_since_all_would_draw_the_same(queue: Any) -> None:
    def draw(_: int, rng: Any) -> float:
        return float(rng.random())

    executor = queue.executor(rng="rng", seed=7)
    assert len(set(executor.map(draw, range(4)))) == 4
    with pytest.raises(BadOption, match="all draw the same"):
        executor.map(draw, range(4), buffersize=2)


def test_what_cannot_be_sent_is_refused_and_not_waited_for(executor: Any) -> None:
    with pytest.raises(NotSendable):
        executor.submit(len, threading.Lock())
    with pytest.raises(NotSendable):
        executor.map(len, [threading.Lock()])
    executor.shutdown()


def test_libraries_see_how_many_workers_there_are(queue: Any) -> None:
    executor = queue.executor()
    assert executor._max_workers == 2
    queue.run(3)
    assert executor._max_workers == 3


def test_an_event_loop_runs_things_in_it(executor: Any, held: Any, wait_until: Callable[..., Any]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await asyncio.gather(*(loop.run_in_executor(executor, abs, -i) for i in range(3))) == [0, 1, 2]
        waiting = loop.run_in_executor(executor, held)
        await loop.run_in_executor(None, wait_until, lambda: held.begun() == 1)
        waiting.cancel()

    asyncio.run(main())
    # The call was cancelled with it.
    executor.shutdown()


def test_a_bar_of_tqdm_around_a_map(
    executor: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tqdm = pytest.importorskip("tqdm")
    # It would leave a thread.
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)
    assert list(tqdm.tqdm(executor.map(abs, range(-5, 0)), total=5)) == [5, 4, 3, 2, 1]
    assert "5/5" in capsys.readouterr().err


def test_an_interrupt_in_a_with_block_cancels_what_it_has_sent(queue: Any, held: Any) -> None:
    with contextlib.suppress(KeyboardInterrupt), queue.executor() as executor:
        future = executor.submit(held)
        raise KeyboardInterrupt
    assert future.cancelled()


def test_interrupting_a_shutdown_cancels_what_it_waits_for(
    executor: Any, held: Any, wait_until: Callable[..., Any]
) -> None:
    futures = [executor.submit(held, i) for i in range(5)]
    results = executor.map(held, range(5, 9))

    def waits() -> bool:
        frame, names = sys._current_frames()[main], set()
        while frame is not None:
            names.add(frame.f_code.co_name)
            frame = frame.f_back
        return {"shutdown", "_wait"} <= names

    def press() -> None:
        wait_until(lambda: held.begun() == 2 and waits(), timeout=20)
        os.kill(os.getpid(), signal.SIGINT)

    main = threading.get_ident()
    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt, match="6 calls were cancelled"):
        executor.shutdown()
    thread.join()
    assert all(future.cancelled() for future in futures)
    with pytest.raises(concurrent.futures.CancelledError):
        next(results)


def test_tasks_have_executors_of_their_own(queue: Any) -> None:
    def squares(n: int) -> list[int]:
        with queue.executor() as executor:
            return list(executor.map(pow, range(n), [2] * n))

    assert queue.executor().submit(squares, 4).result(timeout=30) == [0, 1, 4, 9]


def test_an_exception_in_a_with_block_waits_as_the_standard_librarys_does(queue: Any, held: Any) -> None:
    with contextlib.suppress(LookupError), queue.executor() as executor:
        future = executor.submit(held, "done")
        held.go()
        raise LookupError
    assert future.result(timeout=0) == "done"


WAITS_AT_ITS_END = """
import time
from nbqueue import TaskQueue

def slow():
    time.sleep(0.3)
    return "slow"

queue = TaskQueue(workers=1)
queue.executor().submit(slow).add_done_callback(lambda future: print("ended:", future.result()))
"""


def test_python_waits_at_its_end_for_what_executors_have_sent(start_script: Any) -> None:
    script = start_script(WAITS_AT_ITS_END)
    assert script.end() == "ended: slow"
    assert not script.err


SERVED_BY_NOBODY = """
from nbqueue import TaskQueue

queue = TaskQueue(workers=1)
queue.submit(abs, 1).result()
queue.shutdown()
queue.executor().submit(abs, -1)
"""


def test_python_ends_where_nobody_would_do_what_executors_have_sent(start_script: Any) -> None:
    script = start_script(SERVED_BY_NOBODY)
    script.end()
    assert "Python ends while 1 call is still open" in script.err[0]


def test_a_kernel_that_ends_does_not_wait(executor: Any, held: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbqueue.interop import executor as room

    future = executor.submit(held)
    monkeypatch.setattr(room, "_ending", False)
    monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", sys)
    room._wait_at_exit()
    assert not future.done()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after interpreter shutdown"):
        executor.submit(abs, 1)
    held.go()
    future.result(timeout=20)
