"""joblib on a queue: what its users know holds, and what nbqueue promises holds too."""

from __future__ import annotations

import importlib
import os
import secrets
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config

import nbqueue.interop.joblib  # noqa: F401 - registers the backend
from nbqueue.errors import BadOption, NotSendable

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def queue(session_home: Any, leaving_nothing: Any) -> Iterator[Any]:
    """One for all tests: a worker takes a second to load joblib and NumPy."""
    from nbqueue import TaskQueue

    with leaving_nothing():
        yield TaskQueue(stream_key=f"t{secrets.token_hex(4)}", workers=2)


@pytest.fixture(autouse=True)
def nothing_left(queue: Any, wait_until: Any) -> Iterator[None]:
    """After every test: nothing is open. At the module's end: nothing else is left either."""
    with parallel_config(backend="nbqueue", queue=queue, n_jobs=2):
        yield
    wait_until(lambda: is_idle(queue))
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "nbqueue-joblib"])


def is_idle(queue: Any) -> bool:
    status = queue.status()
    return not status.running and not status.queued


def square(x: int) -> int:
    return x * x


def pid_and_first(array: Any) -> tuple[int, bool, float]:
    return os.getpid(), array.flags.writeable, float(array.flat[0])


def test_results_are_in_order_and_come_from_other_processes():
    def who(x: int) -> tuple[int, int]:
        return x, os.getpid()

    found = Parallel()(delayed(who)(x) for x in range(50))
    assert [x for x, _ in found] == list(range(50))
    assert os.getpid() not in {pid for _, pid in found}


@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_results_can_be_taken_as_they_come(return_as: str):
    results = Parallel(return_as=return_as)(delayed(square)(x) for x in range(20))
    assert sorted(results) == [x * x for x in range(20)]


def test_an_error_is_the_tasks_own_with_its_line_and_none_of_our_frames():
    def pick(x: int) -> int:
        return {0: 1}[x]

    with pytest.raises(KeyError) as caught:
        Parallel()(delayed(pick)(x) for x in range(4))
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert frames[-1].name == "pick"
    assert frames[-1].line == "return {0: 1}[x]"
    assert not [frame for frame in frames if "/nbqueue/" in frame.filename]
    assert Parallel()(delayed(square)(x) for x in range(4)) == [0, 1, 4, 9]


def test_what_cannot_be_sent_is_raised_also_when_it_comes_late():
    with pytest.raises(NotSendable, match="`square` could not be sent: argument `x` .*lock.* cannot be pickled"):
        Parallel()(delayed(square)(x if x < 30 else threading.Lock()) for x in range(40))


def test_an_input_that_ends_the_program_is_raised_and_hangs_nothing():
    def inputs() -> Iterator[Any]:
        yield from (delayed(square)(x) for x in range(30))
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        Parallel(batch_size=1)(inputs())


def test_a_timeout_is_joblibs_and_cancels_what_ran(queue: Any, wait_until: Any):
    from multiprocessing import TimeoutError as JoblibsTimeout

    with pytest.raises(JoblibsTimeout):
        Parallel(timeout=0.2)(delayed(time.sleep)(60) for _ in range(4))
    wait_until(lambda: is_idle(queue))


def test_a_call_whose_sending_is_interrupted_does_not_run_on(
    queue: Any, monkeypatch: pytest.MonkeyPatch, wait_until: Any
):
    Parallel()(delayed(abs)(x) for x in range(4))
    send = type(queue._core.link)._send_here

    def pressed(link: Any, opened: Any) -> bool:
        send(link, opened)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(queue._core.link), "_send_here", pressed)
        with pytest.raises(KeyboardInterrupt):
            Parallel()(delayed(time.sleep)(60) for _ in range(9))
    wait_until(lambda: is_idle(queue))


def test_a_generator_that_is_lost_cancels_what_it_has_sent(queue: Any, wait_until: Any):
    results = Parallel(return_as="generator")(delayed(time.sleep)(60 * x) for x in range(4))
    next(results)
    with warnings.catch_warnings():
        # joblib says how much was not used.
        warnings.simplefilter("ignore")
        del results
    wait_until(lambda: is_idle(queue))


def test_generators_of_two_parallel_objects_do_not_mix():
    first = Parallel(return_as="generator")(delayed(square)(x) for x in range(30))
    second = Parallel(return_as="generator")(delayed(square)(x) for x in range(100, 130))
    pairs = list(zip(first, second, strict=True))
    assert pairs == [(x * x, (100 + x) ** 2) for x in range(30)]


def test_parallel_inside_a_task_starts_no_processes():
    def inner() -> tuple[int, set[int]]:
        return os.getpid(), set(Parallel(n_jobs=2)(delayed(os.getpid)() for _ in range(4)))

    def explicit() -> tuple[int, set[int]]:
        importlib.import_module("nbqueue.interop.joblib")
        return os.getpid(), set(Parallel(n_jobs=2, backend="nbqueue")(delayed(os.getpid)() for _ in range(4)))

    for pid, inside in Parallel()(delayed(each)() for each in (inner, explicit)):
        assert inside == {pid}


def test_a_smaller_n_jobs_bounds_what_is_under_way(queue: Any):
    queue.run(3)
    try:
        results = Parallel(batch_size=1, pre_dispatch="all", return_as="generator")(
            delayed(time.sleep)(0.05) for _ in range(8)
        )
        seen = [queue.status() for _ in results]
    finally:
        queue.run(2)
    assert max(len(status.running) + status.queued for status in seen) <= 2


# Arrays


def test_an_array_of_many_calls_lies_in_shared_memory_once_and_is_read_only(monkeypatch: pytest.MonkeyPatch):
    from nbqueue.client.core import Core

    puts: list[Any] = []
    put = Core.put
    monkeypatch.setattr(Core, "put", lambda core, value: puts.append(value) or put(core, value))
    array = np.arange(300_000.0)
    found = Parallel(batch_size=1)(delayed(pid_and_first)(array) for _ in range(10))
    assert {(writeable, first) for _, writeable, first in found} == {(False, 0.0)}
    assert len(puts) == 1
    Parallel()(delayed(pid_and_first)({"deep": [array]}["deep"][0]) for _ in range(2))
    assert len(puts) == 2, "kept beyond its Parallel call"


def test_a_buffer_that_is_filled_anew_gives_each_call_what_it_held():
    buffer = np.zeros(300_000)

    def filled() -> Iterator[Any]:
        for x in range(6):
            buffer[:] = x
            # Two at a time are drawn before either is sent: joblib's way.
            yield delayed(pid_and_first)(buffer if x % 2 else buffer.copy())

    assert [first for _, _, first in Parallel(batch_size=1)(filled())] == [0, 1, 2, 3, 4, 5]


def test_arrays_inside_of_objects_are_shared_too():
    import pandas as pd

    def look(table: Any) -> tuple[bool, float]:
        values = table.to_numpy()
        return values.flags.writeable, float(values[-1, 0])

    table = pd.DataFrame(np.arange(400_000.0).reshape(-1, 2))
    assert set(Parallel()(delayed(look)(table) for _ in range(4))) == {(False, 399_998.0)}


def test_with_max_nbytes_none_each_call_has_its_own_array():
    array = np.arange(300_000.0)
    found = Parallel(max_nbytes=None)(delayed(pid_and_first)(array) for _ in range(2))
    assert {writeable for _, writeable, _ in found} == {True}


def test_tasks_write_into_a_file_that_is_mapped(tmp_path: Any):
    def fill(output: Any, i: int) -> None:
        output[i] = i

    output = np.memmap(tmp_path / "out", dtype="f8", mode="w+", shape=(8, 3))
    Parallel()(delayed(fill)(output[2:], i) for i in range(6))
    assert output[:, 1].tolist() == [0, 0, 0, 1, 2, 3, 4, 5]


# Options


def test_what_the_backend_does_not_do_is_refused():
    with pytest.raises(BadOption, match="initializer"):
        Parallel(initializer=print)(delayed(square)(x) for x in range(2))
    with pytest.raises(BadOption, match="mmap_mode"):
        Parallel(mmap_mode="r+")(delayed(square)(x) for x in range(2))
    with pytest.raises(BadOption, match="TaskQueue"):
        parallel_config(backend="nbqueue", queue="tasks")
    for option in ({"progress": False}, {"queue": "tasks"}):
        with pytest.raises(BadOption, match=r"give it to joblib\.parallel_config"):
            Parallel(backend="nbqueue", **option)(delayed(square)(x) for x in range(2))


def test_n_jobs_counts_as_joblib_does(queue: Any):
    from joblib import effective_n_jobs

    queue.run(2)
    assert [effective_n_jobs(n) for n in (-1, -2, 5, 1)] == [2, 1, 5, 1]
    with pytest.raises(ValueError, match="n_jobs == 0"):
        effective_n_jobs(0)


def test_inner_max_num_threads_reaches_the_workers(queue: Any):
    def threads() -> set[int]:
        import numpy as np
        from threadpoolctl import threadpool_info

        np.dot(np.ones((2, 2)), np.ones((2, 2)))
        return {pool["num_threads"] for pool in threadpool_info()}

    with parallel_config(backend="nbqueue", queue=queue, n_jobs=2, inner_max_num_threads=1):
        assert Parallel()(delayed(threads)() for _ in range(2)) == [{1}, {1}]
