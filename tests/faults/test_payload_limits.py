"""Payloads just below, at and just above the limit; and a server whose own limit is lower than ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nbqueue import NotSendable, TaskQueue
from nbqueue.codec import functions, values
from nbqueue.errors import RemoteError, ResultNotSendable
from tests.conftest import free_port

pytestmark = pytest.mark.apart

LIMIT = 300_000


@pytest.fixture(autouse=True)
def through_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """In shared memory there is no such limit."""
    monkeypatch.setenv("NBQUEUE_SHARED_MEMORY", "0")


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The notebook's limit; a task that wants a low one for its result calls `lower` in its worker."""
    monkeypatch.setattr(functions, "LARGEST_BYTES", LIMIT)


def lower() -> None:
    functions.LARGEST_BYTES = values.LARGEST_BYTES = 300_000


def filled(measure: Callable[[bytes], int], size: int) -> bytes:
    """Bytes with which `measure` gives exactly `size`."""
    data = b"x" * (size - 10_000)
    data = b"x" * (size - (measure(data) - len(data)))
    assert measure(data) == size
    return data


def one_argument(data: bytes) -> int:
    return len(functions.dumps(((data,), {})))


def one_keyword(data: bytes) -> int:
    return len(functions.dumps(((), {"data": data})))


def _length(data: bytes) -> int:
    return len(data)


def _two(i: int, data: bytes = b"") -> int:
    return i + len(data)


def _blow_up(size: int) -> bytes:
    lower()
    return b"x" * size


def _sequence(size: int) -> list[bytes]:
    lower()
    return [b"x" * size]


def _text(size: int) -> str:
    lower()
    return "x" * size


def _integer(size: int) -> int:
    lower()
    return 1 << (8 * size)


def _raise(size: int) -> None:
    lower()
    raise ValueError("x" * size)


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_arguments_of_a_call(over: int, queue: Any, low_limit: None) -> None:
    for measure, call in (
        (one_argument, lambda data: queue.submit(_length, data)),
        (one_keyword, lambda data: queue.submit(_length, data=data)),
    ):
        data = filled(measure, LIMIT + over)
        if over <= 0:
            assert call(data).result(timeout=20) == len(data)
            continue
        told = r"`_length` could not be sent.*300,001 bytes.*argument `data`, bytes, with 2\d+,\d+\).*limit is 300,000"
        with pytest.raises(NotSendable, match=told):
            call(data)
    assert queue.submit(_length, b"abc").result(timeout=20) == 3


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_items_of_a_map(over: int, queue: Any, low_limit: None) -> None:
    data = filled(one_argument, LIMIT + over)
    items = [b"a", data, b"abc", b"x" * 1000]
    batch = queue.map(_length, items, chunksize=4)
    results = batch.results(return_exceptions=True, timeout=20)
    assert results[0] == 1
    assert results[2:] == [3, 1000]
    if over <= 0:
        assert results[1] == len(data)
    else:
        assert isinstance(results[1], NotSendable)
        assert "argument `data`, bytes" in str(results[1])
    assert queue.map(_length, [b"12", b"3"]).results(timeout=20) == [2, 1]


def test_a_first_item_over_the_limit_is_refused_where_the_map_is_made(queue: Any, low_limit: None) -> None:
    with pytest.raises(NotSendable, match="argument `data`, bytes"):
        queue.map(_length, [b"x" * LIMIT, b"a"])
    assert queue.map(_length, [b"12", b"3"]).results(timeout=20) == [2, 1]


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_keyword_arguments_that_a_map_has_in_common(over: int, queue: Any, low_limit: None) -> None:
    """Symptom: plain items were packed without a look at what they share, which could be of any size."""

    def measure(data: bytes) -> int:
        return len(functions.dumps(((), {"data": data})))

    data = filled(measure, LIMIT + over)
    task = queue.task(_two)
    if over <= 0:
        assert task.map([1, 2], data=data).results(timeout=20) == [1 + len(data), 2 + len(data)]
    else:
        with pytest.raises(NotSendable, match="argument `data`, bytes"):
            task.map([1, 2], data=data)
    assert task.map([1, 2]).results(timeout=20) == [1, 2]


def test_an_enormous_integer_counts_as_well(queue: Any, low_limit: None) -> None:
    huge = 1 << (8 * LIMIT)
    results = queue.map(int.bit_length, [1, huge, 3], chunksize=3).results(return_exceptions=True, timeout=20)
    assert [results[0], results[2]] == [1, 2]
    assert isinstance(results[1], NotSendable)


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_what_a_function_captures(over: int, queue: Any, low_limit: None) -> None:
    def make(captured: bytes) -> Callable[[], int]:
        return lambda: len(captured)

    captured = filled(lambda data: len(functions.dumps(make(data))), LIMIT + over)
    if over <= 0:
        assert queue.submit(make(captured)).result(timeout=20) == len(captured)
    else:
        told = r"with what it captures it is 300,001 bytes.*closure variable `captured`, bytes, with .*limit is 300,000"
        with pytest.raises(NotSendable, match=told):
            queue.submit(make(captured))
    assert queue.submit(make(b"abc")).result(timeout=20) == 3


@pytest.mark.parametrize("over", [-1, 0, 1])
@pytest.mark.parametrize("make", [_blow_up, _text, _sequence])
def test_results(make: Callable[[int], Any], over: int, queue: Any) -> None:
    """Symptom: a plain string was sent whatever its size, and cut the worker's connection for ever."""
    size = len(filled(lambda data: len(functions.dumps(_like(make, data))), LIMIT + over))
    future = queue.submit(make, size)
    if over <= 0:
        assert len(future.result(timeout=20)) in (size, 1)
    else:
        told = r"ran to its end, but its result \(\w+\) is 300,001 bytes.*limit is 300,000.*return the path"
        with pytest.raises(ResultNotSendable, match=told):
            future.result(timeout=20)
    assert queue.submit(abs, -3).result(timeout=20) == 3


def _like(make: Callable[[int], Any], data: bytes) -> Any:
    return {_blow_up: data, _text: data.decode(), _sequence: [data]}[make]


def test_a_result_that_is_too_large_costs_its_neighbours_in_the_chunk_nothing(queue: Any) -> None:
    results = queue.map(_blow_up, [1, 2 * LIMIT, 3], chunksize=3).results(return_exceptions=True, timeout=20)
    assert [results[0], results[2]] == [b"x", b"xxx"]
    assert isinstance(results[1], ResultNotSendable)


def test_an_integer_as_a_result_that_is_too_large(queue: Any) -> None:
    with pytest.raises(ResultNotSendable, match=r"its result \(int\)"):
        queue.submit(_integer, 2 * LIMIT).result(timeout=20)


def test_an_exception_that_is_too_large_arrives_cut(queue: Any) -> None:
    """Symptom: nobody looked at the size of an exception; it travels several times in one message."""
    with pytest.raises(ValueError, match="^x{1000}\n"):
        queue.submit(_raise, 1000).result(timeout=20)
    with pytest.raises(RemoteError, match=r"ValueError: x{900}.*cut: .* bytes when pickled; the limit is 300,000"):
        queue.submit(_raise, LIMIT).result(timeout=20)
    assert queue.submit(abs, -3).result(timeout=20) == 3


@pytest.mark.soak
def test_the_real_limit(queue: Any) -> None:
    """500 MB and one byte more: nothing is lowered here. Needs several gigabytes of memory, and an idle machine."""
    limit = functions.LARGEST_BYTES
    data = filled(one_argument, limit)
    assert queue.submit(_length, data).result(timeout=120) == len(data)
    with pytest.raises(NotSendable, match="argument `data`"):
        queue.submit(_length, data + b"x")


# A server whose own limit is lower: managed ones may be set so, and may not tell.

MEGABYTES = 3 * 1024 * 1024


def _returning(size: int) -> bytes:
    return b"x" * size


@pytest.fixture(params=["unix", "tcp"])
def narrow(request: pytest.FixtureRequest, make_server: Callable[..., Any], new_key: str) -> Any:
    """A queue on a server that takes 2 MB at once, over a unix socket or TCP."""
    port = free_port() if request.param == "tcp" else 0
    server = make_server("--proto-max-bulk-len", "2mb", *(("--port", str(port), "--bind", "127.0.0.1") if port else ()))
    queue = TaskQueue(f"redis://127.0.0.1:{port}" if port else server.url, new_key)
    queue.run(2)
    return queue


def test_a_call_that_the_server_does_not_let_in_ends_with_an_error_and_the_others_go_on(narrow: TaskQueue) -> None:
    """Symptom: the server cut the connection in the middle of it, and the listener sent it again, for ever."""
    before = narrow.submit(_length, b"a")
    large = narrow.submit(_length, b"x" * MEGABYTES)
    after = narrow.submit(_length, b"abc")
    with pytest.raises(NotSendable, match=r"`_length` could not be sent: 3,\d+,\d+ bytes.*proto-max-bulk-len"):
        large.result(timeout=20)
    assert before.result(timeout=20) == 1
    assert after.result(timeout=20) == 3
    assert narrow.submit(_length, b"x" * 1_900_000).result(timeout=20) == 1_900_000


def test_an_item_and_a_function_that_the_server_does_not_let_in(narrow: TaskQueue) -> None:
    items = [b"a", b"x" * MEGABYTES, b"abc"]
    results = narrow.map(_length, items).results(return_exceptions=True, timeout=20)
    assert [results[0], results[2]] == [1, 3]
    assert isinstance(results[1], NotSendable)
    captured = b"x" * MEGABYTES
    with pytest.raises(NotSendable, match="proto-max-bulk-len"):
        narrow.submit(lambda: len(captured)).result(timeout=20)
    assert narrow.submit(_length, b"ab").result(timeout=20) == 2


def test_a_result_that_the_server_does_not_let_in_ends_with_an_error_and_the_worker_goes_on(
    narrow: TaskQueue,
) -> None:
    """Symptom: the server cut the worker's connection in the middle of it, and the worker sent it again, for ever."""
    large = narrow.submit(_returning, MEGABYTES)
    with pytest.raises(ResultNotSendable, match=r"`_returning` .* 3,\d+,\d+ bytes.*proto-max-bulk-len"):
        large.result(timeout=20)
    results = narrow.map(_returning, [1, MEGABYTES, 2, 1_000_000], chunksize=4).results(
        return_exceptions=True, timeout=20
    )
    assert [len(results[i]) for i in (0, 2, 3)] == [1, 2, 1_000_000]
    assert isinstance(results[1], ResultNotSendable)
    assert narrow.status().failed == 2
    assert [narrow.submit(abs, -i).result(timeout=20) for i in range(4)] == [0, 1, 2, 3]


def test_many_small_results_that_are_too_large_together_all_arrive(narrow: TaskQueue) -> None:
    """They are reported together, 8 MB at most: on such a server in several parts."""
    sizes = [20_000 + i for i in range(200)]
    assert [len(value) for value in narrow.map(_returning, sizes, chunksize=200).results(timeout=20)] == sizes
    texts = ["x" * 190 + str(i) for i in range(20_000)]
    assert narrow.map(_length, texts, chunksize=20_000).results(timeout=20) == [len(text) for text in texts]
