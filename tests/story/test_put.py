"""`queue.put`: a large object travels once; its handle stands for it wherever calls need it."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbqueue import NotSendable, Put, TaskQueue
from nbqueue.client.sending import outgoing
from nbqueue.codec import functions, shelves
from nbqueue.stream.broker import Broker

Cell = Callable[..., dict[str, Any]]
WAYS = ["shared", "redis"] if sys.platform.startswith("linux") else ["redis"]


@pytest.fixture(autouse=True, params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """How what is large travels."""
    if request.param == "redis":
        monkeypatch.setenv("NBQUEUE_SHARED_MEMORY", "0")
    return request.param


@pytest.fixture
def data() -> Any:
    return np.arange(50_000.0)


def test_a_task_receives_the_object_wherever_the_handle_is(queue: Any, data: Any) -> None:
    handle = queue.put(data)

    def look(x: Any, deep: Any = None, *, key: Any = None) -> list[bool]:
        found = [each for each in (x, deep and deep["list"][1], key) if each is not None]
        return [type(each) is np.ndarray and float(each.sum()) == 1249975000.0 for each in found]

    assert queue.submit(look, handle).result(timeout=20) == [True]
    assert queue.submit(look, None, {"list": [0, handle]}, key=handle).result(timeout=20) == [True, True]
    assert queue.submit(look, data).result(timeout=20) == [True]


def test_the_function_may_capture_it(queue: Any, cell: Cell, data: Any) -> None:
    """As a global and as a closure variable, with a helper in between: it ships as a name, without the object."""
    namespace = cell(
        """
        def helper(i): return float(data[i])
        @queue.task
        def work(i): return helper(i)
        """,
        queue=queue,
        data=queue.put(data),
    )
    assert namespace["work"].map(range(5)).results(timeout=20) == [0.0, 1.0, 2.0, 3.0, 4.0]
    handle = namespace["data"]
    handles: list[Any] = []
    assert len(functions.dump_function(lambda i: handle[i], "f", handles)) < 2_000
    assert handles == [handle]
    # What the notebook says now: another handle, or none.
    cell("data = queue.put(-data.get())")
    assert namespace["work"](3).result(timeout=20) == -3.0
    cell("data = [7.0, 8.0]")
    assert namespace["work"](1).result(timeout=20) == 8.0


def test_maps_take_it_for_each_item_and_for_all(queue: Any, data: Any) -> None:
    handles = [queue.put(data + i) for i in range(4)]
    assert queue.map(lambda x: float(x[1]), handles).results(timeout=20) == [1.0, 2.0, 3.0, 4.0]
    assert queue.map(lambda x, i: float(x[i]), [handles[1]] * 3, range(3)).results(timeout=20) == [1.0, 2.0, 3.0]

    @queue.task
    def pick(i: int, table: Any = None) -> float:
        return float(table["x"][i])

    assert pick.map(range(10), table={"x": handles[0]}).results(timeout=20) == [float(i) for i in range(10)]
    assert pick.map([np.int64(2)], table={"x": handles[0]}).results(timeout=20) == [2.0]


def test_failed_items_are_run_again_with_it(queue: Any, data: Any, tmp_path: Any) -> None:
    handle, mended = queue.put(data), tmp_path / "mended"

    def work(x: Any) -> float:
        return float(x[2]) if mended.exists() else 1 / 0

    batch = queue.map(work, [handle] * 3, retries=0)
    batch.wait(20)
    assert len(batch.failed) == 3
    mended.touch()
    assert batch.retry_failed().results(timeout=20) == [2.0] * 3
    mended.unlink()

    def once(x: Any) -> float:
        if not mended.exists():
            mended.touch()
            raise ValueError
        return float(x[3])

    # An item of a chunk that is retried goes on alone.
    assert queue.map(once, [handle] * 3, retries=2, chunksize=3).results(timeout=20) == [3.0] * 3


def test_calls_inside_tasks_send_it_on_as_a_name(queue: Any, data: Any) -> None:
    handle = queue.put(data)

    @queue.task
    def inner(i: int) -> float:
        return float(handle[i])

    @queue.task
    def outer(x: Any) -> Any:
        sent: list[Any] = []
        dump = functions.dump_arguments
        # What leaves this worker: its size tells that the array does not.
        from nbqueue.client import core

        core.dump_arguments = lambda *args: sent.append(dump(*args)) or sent[-1]
        try:
            first = inner.submit(1).result()
            second = queue.submit(lambda x: float(x[2]), x).result()
        finally:
            core.dump_arguments = dump
        return first, second, max(map(len, sent)) < 2_000

    assert outer(handle).result(timeout=30) == (1.0, 2.0, True)


def test_a_task_may_put(queue: Any) -> None:
    @queue.task
    def work() -> Any:
        handle = queue.put(list(range(1_000)))
        return queue.submit(sum, handle).result(), handle

    # A handle in a result is the object.
    assert work().result(timeout=30) == (499500, list(range(1_000)))


def test_a_worker_unpickles_it_once(new_key: str) -> None:
    queue = TaskQueue(stream_key=new_key, workers=1)

    def work(x: Any) -> tuple[int, int]:
        return os.getpid(), id(x)

    handle = queue.put({"any": "object"})
    assert len({queue.submit(work, handle).result(timeout=20) for _ in range(5)}) == 1
    assert len(set(queue.map(work, [handle] * 20).results(timeout=20))) == 1


def test_arrays_in_it_are_read_only_and_what_was_put_is_a_copy(queue: Any, data: Any) -> None:
    handle = queue.put(data)
    data[0] = 99.0

    def change(x: Any) -> None:
        x[0] = 1.0

    with pytest.raises(ValueError, match="read-only"):
        queue.submit(change, handle).result(timeout=20)
    with pytest.raises(ValueError, match="read-only"):
        queue.submit(change, queue.put(np.arange(100.0).reshape(10, 10)[::2, ::3])).result(timeout=20)
    assert queue.submit(lambda x: float(x[0]), handle).result(timeout=20) == 0.0
    assert handle.get()[0] == 0.0


def test_get_copies_and_pickles_of_a_handle(queue: Any, data: Any, way: str) -> None:
    handle = queue.put(data)
    assert repr(handle) == "<Put numpy.ndarray, 400 kB>"
    assert isinstance(handle, Put)
    assert handle.get() is handle.get()
    assert copy.deepcopy([handle])[0] is copy.copy(handle) is handle
    assert queue.put(handle) is handle
    # In shared memory, what is equal is not found: to digest it takes longer than to copy it.
    assert (queue.put(data.copy()) is handle) == (way == "redis")
    assert (pickle.loads(pickle.dumps(handle)) == data).all()
    nested = queue.put({"inside": handle})
    assert queue.submit(lambda d: float(d["inside"][3]), nested).result(timeout=20) == 3.0
    # What was got stands for itself again where it is sent.
    handles: list[Any] = []
    assert len(functions.dump_arguments((handle.get(),), {}, "f", None, handles)) < 500
    assert handles == [handle]


def test_a_handle_of_another_queue(queue: Any, new_key: str, data: Any) -> None:
    other = TaskQueue(stream_key=f"{new_key}-other", workers=1)
    handle = other.put(data)
    for _ in range(2):
        assert queue.submit(lambda x: float(x[5]), handle).result(timeout=20) == 5.0
    assert other.submit(lambda x: float(x[6]), handle).result(timeout=20) == 6.0


def test_it_travels_once(queue: Any, data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    submit = Broker.submit_command

    def noting(broker: Broker, client: str, epoch: str, calls: Any, blobs: Any) -> Any:
        sent.extend(blobs)
        return submit(broker, client, epoch, calls, blobs)

    monkeypatch.setattr(Broker, "submit_command", noting)
    handle = queue.put(data)
    assert queue.map(lambda x, i: float(x[i]), [handle] * 50, range(50), chunksize=2).results(timeout=20)[49] == 49.0
    assert queue.submit(lambda x: float(x[1]), handle).result(timeout=20) == 1.0
    assert sent.count(handle.digest) == 1


def test_large_ones_leave_one_by_one(queue: Any, data: Any, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Several of 400 MB in one command are more than a server takes: it cut the connection, again and again."""
    if way == "shared":
        pytest.skip("they do not leave")
    together: list[int] = []
    submit = Broker.submit_command

    def noting(broker: Broker, client: str, epoch: str, calls: Any, blobs: Any) -> Any:
        together.append(sum(len(blob) > 300_000 for blob in blobs.values()))
        return submit(broker, client, epoch, calls, blobs)

    monkeypatch.setattr(Broker, "submit_command", noting)
    monkeypatch.setattr(outgoing, "MOST_BYTES", 300_000)
    handles = [queue.put(data + i) for i in range(4)]
    assert queue.submit(lambda *x: [float(a[0]) for a in x], *handles).result(timeout=20) == [0.0, 1.0, 2.0, 3.0]
    assert max(together) == 1
    assert sum(together) == 4


def test_what_cannot_be_put_is_refused_where_it_is_put(queue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotSendable, match=r"`put` could not take it: the object `x\['lock'\]` \(_thread.lock\) cannot"):
        queue.put({"lock": threading.Lock()})
    monkeypatch.setattr(functions, "LARGEST_BYTES", 1_000)
    with pytest.raises(NotSendable, match=r"\(numpy.ndarray\) is 8,\d\d\d bytes when pickled; the limit is 1,000"):
        queue.put(np.arange(1_000.0))


def test_an_interrupt_while_it_is_put_leaves_nothing_behind_and_says_so(queue: Any, data: Any) -> None:
    """It was a bare KeyboardInterrupt out of the midst of a pickler."""

    class Pressed:
        def __reduce__(self) -> Any:
            os.kill(os.getpid(), signal.SIGINT)
            return int, ()

    def files() -> list[str]:
        own = shelves.existing()
        return [] if own is None else [name for name in os.listdir(own.path) if name.startswith("a-")]

    queue.put(data)
    gc.collect()
    before = set(files())
    with pytest.raises(KeyboardInterrupt, match="nothing was put; the queue and what runs in it go on") as caught:
        queue.put([data + 1, Pressed()])
    assert caught.traceback[-1].path == Path(__file__)
    assert set(files()) <= before
    assert queue.submit(len, queue.put(data)).result(timeout=20) == 50_000


# What rides along with every call


def test_a_large_capture_is_named_once_with_its_size_and_the_remedy(queue: Any, cell: Cell, recwarn: Any) -> None:
    namespace = cell(
        """
        def helper(i): return float(data[i])
        @queue.task
        def work(i): return helper(i)
        """,
        queue=queue,
        data=np.zeros(2_000_000),
    )
    namespace["work"](1).result(timeout=20)
    assert [warning.filename for warning in recwarn] == [__file__]
    text = str(recwarn[0].message)
    assert "`work` takes 16 MB along with every call: its helper `helper` captures the global `data` " in text
    assert "(numpy.ndarray, 16 MB). Send it once: with `data = queue.put(data)`" in text
    namespace["work"](2).result(timeout=20)
    namespace["work"].map(range(3)).results(timeout=20)
    queue.submit(namespace["work"], 3).result(timeout=20)
    assert len(recwarn) == 1
    cell("data = queue.put(data)")
    assert namespace["work"](1).result(timeout=20) == 0.0
    cell("more = bytes(11_000_000)\ndef helper(i): return len(more)")
    assert namespace["work"](1).result(timeout=20) == 11_000_000
    assert len(recwarn) == 2
    assert "global `more` (bytes, 11 MB)" in str(recwarn[1].message)


def test_maps_closures_and_defaults_warn_as_well(queue: Any, recwarn: Any) -> None:
    big = bytes(12_000_000)
    queue.map(lambda i: len(big) + i, range(2)).results(timeout=20)
    queue.submit(lambda x=big: len(x)).result(timeout=20)
    texts = [str(warning.message) for warning in recwarn]
    assert [warning.filename for warning in recwarn] == [__file__] * 2
    assert "it captures the closure variable `big` (bytes, 12 MB)" in texts[0]
    assert "it captures the default of parameter `x` (bytes, 12 MB)" in texts[1]


def test_nothing_is_searched_for_while_functions_are_small(queue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbqueue.codec import captured

    monkeypatch.setattr(captured, "_weight", lambda value: 1 / 0)
    big = bytes(9_000_000)
    assert queue.submit(lambda: len(big)).result(timeout=20) == 9_000_000
