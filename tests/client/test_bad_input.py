"""Bad input is refused where it is made, by one error that names the cause and what to do."""

from __future__ import annotations

import inspect
import os
import socket
import sqlite3
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nbqueue
from nbqueue import NbqueueError, NotSendable, TaskQueue
from nbqueue.client.results.waiting import because
from nbqueue.errors import (
    BadCall,
    BadOption,
    ForkedQueue,
    InputNotAvailable,
    ResultNotSendable,
    ServerNotFound,
    ServerRefused,
    ServerTooOld,
    ServerUnreachable,
    ServerUnsafe,
    UnsupportedKernel,
)
from tests.conftest import free_port


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("NBQUEUE_REDIS_SERVER", raising=False)
    monkeypatch.setattr("nbqueue.stream.server._bundled", lambda: None)


def test_no_server_to_start(no_server: None) -> None:
    with pytest.raises(ServerNotFound) as caught:
        TaskQueue(stream_key="none")
    for words in ("apt-get install redis-server", "brew install redis", "conda install", "NBQUEUE_REDIS_SERVER"):
        assert words in str(caught.value)


def test_a_chosen_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBQUEUE_REDIS_SERVER", "/nowhere/redis-server")
    with pytest.raises(ServerNotFound, match="NBQUEUE_REDIS_SERVER='/nowhere/redis-server'"):
        TaskQueue(stream_key="none")


def test_a_url_that_is_none() -> None:
    with pytest.raises(BadOption, match="is not a Redis URL.*redis://"):
        TaskQueue("http://localhost:6379")


def test_a_bad_url_does_not_show_its_password() -> None:
    with pytest.raises(BadOption) as caught:
        TaskQueue("rediz://me:hunter2@example.net")
    assert "hunter2" not in str(caught.value)


def test_a_url_where_nobody_listens() -> None:
    port = free_port()
    with pytest.raises(ServerUnreachable, match=rf"redis://127.0.0.1:{port}/0.*TaskQueue\(\)"):
        TaskQueue(f"redis://127.0.0.1:{port}")


def test_a_wrong_password(make_server: Callable[..., Any]) -> None:
    server = make_server("--requirepass", "right")
    for url in (server.url, server.url.replace("unix://", "unix://:wrong@")):
        with pytest.raises(ServerRefused, match="user name and password"):
            TaskQueue(url)


def test_a_server_that_is_too_old() -> None:
    told = r"Redis 5\.0\.14.*6\.2 or later"
    with _FakeServer("redis_version:5.0.14") as url, pytest.raises(ServerTooOld, match=told):
        TaskQueue(url)


def test_a_server_that_evicts_keys(make_server: Callable[..., Any]) -> None:
    server = make_server("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    with pytest.raises(ServerUnsafe, match="allkeys-lru.*noeviction"):
        TaskQueue(server.url)


def test_a_server_elsewhere_without_tls_and_password() -> None:
    with pytest.raises(ServerUnsafe, match="without TLS and a password.*insecure=True"):
        TaskQueue("redis://192.0.2.1:6379")


def test_a_client_that_is_none() -> None:
    with pytest.raises(BadOption, match=r"a Redis URL or a redis\.Redis, not int"):
        TaskQueue(6379)


def test_an_argument_that_cannot_be_pickled_is_named(queue: Any) -> None:
    @queue.task
    def load(path: str, conn: Any = None) -> None: ...

    with sqlite3.connect(":memory:") as conn, pytest.raises(NotSendable) as caught:
        load("x", conn=conn)
    for words in ("`load`", "argument `conn`", "sqlite3.Connection", "Open it inside the task"):
        assert words in str(caught.value)


def test_a_captured_variable_that_cannot_be_pickled_is_named(queue: Any) -> None:
    lock = threading.Lock()

    @queue.task
    def guarded() -> None:
        with lock:
            pass

    with pytest.raises(NotSendable, match="`guarded`.*`lock`"):
        guarded()


def test_a_result_that_cannot_be_pickled(queue: Any) -> None:
    @queue.task
    def opened() -> Any:
        return threading.Lock()

    with pytest.raises(ResultNotSendable, match="`opened` ran to its end.*lock"):
        opened().result(timeout=20)
    assert queue.submit(abs, -1).result(timeout=20) == 1


def test_a_forked_child_of_the_kernel(queue: Any) -> None:
    assert queue.submit(abs, -1).result(timeout=20) == 1
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            queue.submit(abs, -2)
            os.write(write, b"no error")
        except ForkedQueue as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    with os.fdopen(read) as told:
        assert "make a new TaskQueue here" in told.read()
    assert queue.submit(abs, -3).result(timeout=20) == 3


def test_input_in_a_task(queue: Any) -> None:
    @queue.task
    def ask() -> str:
        return input()

    with pytest.raises(InputNotAvailable, match="pass the answer as an argument"):
        ask().result(timeout=20)


def test_a_kernel_that_loses_what_threads_send(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NBQUEUE_PROGRESS")
    kernel = types.ModuleType("ipykernel")
    kernel.version_info = (7, 0, 1)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ipykernel", kernel)
    monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", types.ModuleType("ipykernel.kernelapp"))
    with pytest.raises(UnsupportedKernel, match=r"pip install 'ipykernel!=7\.0\.\*'"):
        TaskQueue(stream_key="none")
    kernel.version_info = (7, 1, 0)  # type: ignore[attr-defined]
    TaskQueue(stream_key="none")


@pytest.mark.parametrize("workers", [0, -1, "four", 1.5, True])
def test_a_number_of_workers_that_cannot_be_meant(workers: Any, queue: Any) -> None:
    with pytest.raises(BadOption, match=r"workers=.*whole number, 1 or more"):
        TaskQueue(workers=workers)
    with pytest.raises(BadOption, match="whole number, 1 or more"):
        queue.run(workers)


@pytest.mark.parametrize("timeout", [-1, 0, "60", float("nan"), float("inf"), True])
def test_a_time_limit_that_cannot_be_meant(timeout: Any, queue: Any) -> None:
    with pytest.raises(BadOption, match=r"timeout=.*seconds greater than 0"):
        queue.task(timeout=timeout)


@pytest.mark.parametrize(
    ("option", "value"),
    [("retries", -1), ("retries", 1.5), ("chunksize", 0), ("name", 7), ("priority", "urgent"), ("priority", [])],
)
def test_other_options_that_cannot_be_meant(option: str, value: Any, queue: Any) -> None:
    with pytest.raises(BadOption, match=option):
        queue.task(**{option: value})


def test_an_option_that_does_not_exist(queue: Any) -> None:
    with pytest.raises(BadOption, match=r"no option 'retry'; the options are .*retries"):
        queue.task(retry=3)


def test_map_over_something_that_is_not_iterable(queue: Any) -> None:
    with pytest.raises(TypeError, match=r"map needs something to iterate over, not int \(5\)"):
        queue.map(abs, 5)
    with pytest.raises(TypeError, match="at least one iterable"):
        queue.map(abs)


@pytest.mark.parametrize("function", [nbqueue.gather, nbqueue.wait, lambda given: list(nbqueue.as_completed(given))])
def test_waiting_for_what_are_no_futures(function: Any, queue: Any) -> None:
    """It was "'int' object has no attribute '_condition'"."""
    future = queue.submit(abs, -1)
    with pytest.raises(BadCall, match=r"takes futures, and number 1 of what it was given is 2 \(int\)"):
        function([future, 2])
    with pytest.raises(BadCall, match=r"number 0 .*`batch\.futures` those of a batch"):
        function(queue.map(abs, [-1, -2]))
    with pytest.raises(BadCall, match="takes several futures: "):
        function(future)
    with pytest.raises(BadCall, match="takes several futures, not int"):
        function(5)
    assert function([future])


@pytest.mark.parametrize("index", ["a", 1.0, None, (0, 1)])
def test_an_index_that_is_none(index: Any, queue: Any) -> None:
    """It was "'<' not supported between instances of 'str' and 'int'"."""
    batch = queue.map(abs, range(-3, 0))
    for sequence in (batch, batch.futures):
        with pytest.raises(BadCall, match=rf"has numbered items, from 0 on: .* \({type(index).__name__}\) is none"):
            sequence[index]
    with pytest.raises(BadCall):
        batch.future(index)
    numpy = pytest.importorskip("numpy")
    assert batch[numpy.int64(1)] == batch.futures[numpy.int64(-2)].result(timeout=20) == 2


@pytest.mark.parametrize("n", [-3, 1.5, "all", None])
def test_a_number_of_past_tasks_that_cannot_be_meant(n: Any, queue: Any) -> None:
    with pytest.raises(BadOption, match=r"history\(.*a whole number, 0 or more"):
        queue.history(n)


@pytest.mark.parametrize(
    ("name", "why"), [("nowhere", "does not exist"), ("file", "is no directory"), ("", "is not an absolute path")]
)
def test_shared_memory_in_a_place_that_cannot_be_used(
    name: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_key: str
) -> None:
    """It was passed over without a word."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("NBQUEUE_SHARED_MEMORY", str(tmp_path / name) if name else "memory")
    with pytest.warns(RuntimeWarning, match=f"NBQUEUE_SHARED_MEMORY=.*{why}: large data go through Redis") as caught:
        queue = TaskQueue(stream_key=new_key, workers=1)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TaskQueue(stream_key=new_key)
    assert queue.submit(len, bytes(1_000_000)).result(timeout=20) == 1_000_000


@pytest.mark.parametrize("chosen", ["0", "", "/dev/shm"])
def test_shared_memory_that_is_turned_off_or_there_is_no_matter(
    chosen: str, monkeypatch: pytest.MonkeyPatch, new_key: str
) -> None:
    monkeypatch.setenv("NBQUEUE_SHARED_MEMORY", chosen)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TaskQueue(stream_key=new_key)


def test_a_task_that_is_no_function(queue: Any) -> None:
    with pytest.raises(BadOption, match="must be a function, not int"):
        queue.task(5)


def test_an_async_generator_or_concurrency_of_a_plain_function(queue: Any) -> None:
    """However the function is given. A coroutine function is a task like any other: tests/story/test_async_tasks.py."""

    async def numbers() -> Any:
        yield 1

    for give in (queue.task, queue.submit, lambda fn: queue.map(fn, [1]), lambda fn: queue.executor().submit(fn)):
        with pytest.raises(BadOption, match="`numbers` is an async generator, and a task has one result"):
            give(numbers)
    with pytest.raises(BadOption, match="`abs` is a plain function, of which a worker runs one call at a time"):
        queue.map(abs, [-1], concurrency=2)
    with pytest.raises(BadOption, match="`abs` is a plain function"):
        queue.executor(concurrency=2).submit(abs, -1)


@pytest.mark.parametrize("name", ["", "two words", "{braces}", 5, "x" * 201])
def test_a_queue_name_that_cannot_be_a_key(name: Any) -> None:
    with pytest.raises(BadOption, match="1 to 200 characters"):
        TaskQueue(stream_key=name)


def test_waiting_where_nobody_will_work_gives_a_hint_and_goes_on(
    queue: Any, capsys: pytest.CaptureFixture[str], wait_until: Callable[..., Any]
) -> None:
    queue.run(1)
    queue.shutdown()
    future = queue.submit(abs, -7)
    errors: list[str] = []

    def hinted() -> bool:
        # A short wait each time, as somebody who is waiting would.
        future(timeout=4)
        errors.append(capsys.readouterr().err)
        return "no worker serves the queue" in "".join(errors)

    wait_until(hinted, timeout=30)
    assert "queue.run()" in "".join(errors)
    queue.run(1)
    assert future.result(timeout=20) == 7


def test_no_hint_is_given_while_our_own_workers_are_on_their_way(queue: Any) -> None:
    """On a busy machine they took longer than the hint to be known to the server."""
    queue.run(1)
    link = queue._core.link
    future = queue.submit(time.sleep, 60)
    link.workers = 0
    assert because(link) == ""
    future.cancel()
    queue.shutdown()
    future = queue.submit(abs, -7)
    assert "No worker serves the queue" in because(link)
    future.cancel()


def test_every_error_is_one_of_ours_and_survives_a_pickle() -> None:
    import pickle

    from nbqueue import errors

    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, NbqueueError)
        copy = pickle.loads(pickle.dumps(kind("what happened")))
        assert (type(copy), str(copy)) == (kind, "what happened")


class _FakeServer:
    """Answers what a client asks at first like a server of another version."""

    def __init__(self, info: str) -> None:
        self._info = f"# Server\r\n{info}\r\n"

    def __enter__(self) -> str:
        self._socket = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()
        return f"redis://127.0.0.1:{self._socket.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self) -> None:
        try:
            while True:
                connection, _ = self._socket.accept()
                with connection:
                    while data := connection.recv(4096):
                        answer = f"${len(self._info)}\r\n{self._info}\r\n" if b"INFO" in data else "+OK\r\n"
                        connection.sendall(answer.encode())
        except OSError:
            return


def test_the_secret_file_is_the_users_alone(session_home: Path, redis_server: Any) -> None:
    TaskQueue(redis_server.url)
    secret = session_home / "config" / "nbqueue" / "secret"
    assert secret.stat().st_mode & 0o777 == 0o600


def test_tls_to_a_port_without_it_names_tls_as_the_likely_cause(
    make_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Symptom: the one word "timeout". A server without TLS waits for the rest of what it takes for a command."""
    monkeypatch.setattr("nbqueue.client.queue.CONNECT_PATIENCE_S", 0.5)
    port = free_port()
    make_server("--port", str(port), "--bind", "127.0.0.1")
    with pytest.raises(ServerUnreachable, match="with TLS.*Is it a port without TLS.*redis:// instead of rediss://"):
        TaskQueue(f"rediss://:secret@127.0.0.1:{port}")
    with pytest.raises(ServerUnreachable, match="with TLS.*Is it a port without TLS"), _FakeServer("") as url:
        TaskQueue(url.replace("redis://", "rediss://"))


def test_an_option_among_a_maps_keywords_is_refused_with_where_to_put_it(queue: Any) -> None:
    """Every item failed with an unexpected keyword argument."""

    @queue.task
    def square(x: int) -> int:
        return x * x

    with pytest.raises(TypeError, match=r"takes no keyword 'chunksize'.*square\.options\(chunksize=2\)\.map"):
        square.map([1], chunksize=2)

    @queue.task
    def takes_it(x: int, timeout: int) -> int:
        return x + timeout

    assert takes_it.map([1], timeout=2).results(timeout=20) == [3]


def test_a_keyword_of_the_function_in_a_map_of_the_queue_is_refused_with_where_to_put_it(queue: Any) -> None:
    """It was "TaskQueue.map() got an unexpected keyword argument 'd'", which does not say how it is done."""

    def scaled(x: int, d: int) -> int:
        return x * d

    with pytest.raises(BadCall, match=r"no option 'd'; .*`scaled`.*queue\.task\(scaled\)\.map\(…, d=…\)\. .*chunksize"):
        queue.map(scaled, [1], d=3)
    with pytest.raises(BadCall, match=r"no option 'd'; .*: scaled\.map\(…, d=…\)\."):
        queue.map(queue.task(scaled), [1], d=3)
    assert queue.task(scaled).map([1], d=3).results(timeout=20) == [3]
    assert "d" not in inspect.signature(queue.map).parameters
    assert list(inspect.signature(queue.map).parameters)[:3] == ["fn", "iterables", "timeout"]


def test_an_option_of_a_map_that_the_function_may_have_been_meant_by_is_refused(queue: Any) -> None:
    """`queue.map(fetch, urls, timeout=9)` took it as the option, and the function had its default without a word."""

    def fetch(x: int, timeout: int = 5) -> int:
        return x + timeout

    with pytest.raises(BadCall, match=r"timeout= is an option of the map, and `fetch` has a parameter of that name\."):
        queue.map(fetch, [1], timeout=9)
    assert queue.map(fetch, [1], [2], timeout=9).results(timeout=20) == [3]
    assert queue.map(fetch, [1], retries=1).results(timeout=20) == [6]
    assert queue.map(pow, [2], [3], timeout=9).results(timeout=20) == [8]
