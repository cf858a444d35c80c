"""Neither the signing secret nor a password lies where others can read it: in Redis, in what programs show of
themselves, in errors, logs and reprs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from nbqueue import TaskQueue
from nbqueue.client import launch
from nbqueue.codec.seal import user_secret
from nbqueue.errors import NbqueueError, ServerRefused, ServerUnreachable
from nbqueue.stream.connect import Address, Wire
from nbqueue.worker.supervisor import make_spec
from nbqueue.worker.supplies import WorkerSpec

PASSWORD = "hunter2-hunter2"


@pytest.fixture
def guarded(make_server: Callable[..., Any]) -> Any:
    return make_server("--requirepass", PASSWORD)


def url_of(server: Any) -> str:
    return f"unix://:{PASSWORD}@{server.path}"


@pytest.fixture
def queue(guarded: Any) -> Iterator[Any]:
    queue = TaskQueue(url_of(guarded), workers=1)
    queue.run()
    yield queue
    queue.cancel()
    queue.shutdown()


def words_of(secret: bytes) -> list[bytes]:
    return [PASSWORD.encode(), secret, secret.hex().encode(), secret.hex().upper().encode()]


def assert_clean(shown: str | bytes, secret: bytes | None = None) -> None:
    data = shown.encode() if isinstance(shown, str) else shown
    for word in words_of(secret or user_secret()):
        assert word not in data


def everything_on(client: redis.Redis) -> bytes:
    """Every key and value."""
    read = {
        b"string": lambda key: client.get(key),
        b"hash": lambda key: client.hgetall(key),
        b"stream": lambda key: client.xrange(key),
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        b"none": lambda key: None,
    }

    def flat(value: Any) -> Iterator[bytes]:
        if isinstance(value, dict):
            value = [*value.keys(), *value.values()]
        if isinstance(value, list | tuple):
            for part in value:
                yield from flat(part)
        elif isinstance(value, bytes):
            yield value

    return b"\n".join(word for key in client.scan_iter() for word in (key, *flat(read[client.type(key)](key))))


def test_nothing_of_them_is_on_the_server(
    queue: Any, guarded: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    # Set in a cell, after the queue was made: such changes are sent along.
    monkeypatch.setenv("NBQUEUE_SECRET", user_secret().hex())
    monkeypatch.setenv("NBQUEUE_URL", url_of(guarded))
    monkeypatch.setenv("OF_THE_USER", "goes-along")

    def held(path: str) -> str | None:
        while not os.path.exists(path):
            time.sleep(0.005)
        # A queue that a task reaches is sent along as well.
        return queue.submit(os.environ.get, "OF_THE_USER").result()

    with guarded.client(password=PASSWORD) as client:
        running, queued = queue.submit(held, str(tmp_path / "go")), queue.submit(abs, -1)
        wait_until(running.running, timeout=30)
        found = everything_on(client)
        assert_clean(found)
        # It is looked at, all of it.
        for word in (b"goes-along", b":o:", b":hb", b":f:", b":s:1", b":pool"):
            assert word in found
        (tmp_path / "go").touch()
        assert running.result(timeout=30) == "goes-along"
        assert queued.result(timeout=30) == 1
        assert_clean(everything_on(client))


def test_a_variable_of_ours_that_was_there_at_first_is_not_taken_from_the_workers(
    start_script: Callable[..., Any], redis_server: Any
) -> None:
    """A task may make a queue on the same server: it needs the same secret."""
    code = f"""
import os
from nbqueue import TaskQueue
queue = TaskQueue({redis_server.url!r})
queue.run(1)
os.environ.pop("NBQUEUE_SECRET")
prefix = queue.submit(lambda: TaskQueue({redis_server.url!r})._core.prefix).result(timeout=30)
print("seen", prefix == queue._core.prefix)
"""
    assert start_script(code, env={"NBQUEUE_SECRET": "ab" * 32}).end() == "seen True"


def test_nothing_of_them_is_shown_of_our_processes(queue: Any, wait_until: Callable[..., Any]) -> None:
    """Other users see the arguments of a program; what a task starts inherits the environment."""
    supervisor = psutil.Process(launch.local_launcher()._process.pid)
    wait_until(lambda: len(supervisor.children(recursive=True)) > 1, timeout=20)
    for process in (supervisor, *supervisor.children(recursive=True)):
        shown = [*process.cmdline(), *(f"{name}={value}" for name, value in process.environ().items())]
        assert_clean("\n".join(shown))
    assert_clean("\n".join(queue.submit(lambda: [*sys.argv, *os.environ.values()]).result(timeout=20)))


def test_a_private_queues_secret_is_nowhere_but_in_memory(new_key: str, wait_until: Callable[..., Any]) -> None:
    queue = TaskQueue(stream_key=new_key, workers=1)
    secret = queue._core.secret
    assert queue.submit(abs, -1).result(timeout=30) == 1
    directory = Path(queue._core.address().path).parent
    with redis.Redis(unix_socket_path=queue._core.address().path) as client:
        assert_clean(everything_on(client), secret)
    for path in directory.iterdir():
        if path.is_file():
            assert_clean(path.read_bytes(), secret)
    supervisor = psutil.Process(launch.local_launcher()._process.pid)
    for process in (supervisor, *supervisor.children(recursive=True)):
        assert_clean("\n".join([*process.cmdline(), *process.environ().values()]), secret)
    queue.shutdown()


def test_nothing_of_them_is_in_a_repr(queue: Any) -> None:
    core = queue._core
    address = core.address()
    secret = core.secret.hex()
    message = {"id": "i", "queue": "q", "prefix": core.prefix, "address": address.to_dict(), "secret": secret}
    message["limits"] = {}
    future = queue.submit(abs, -1)
    things = [queue, core, core.link, core.link._seal, address, Wire(address, timeout_s=1), core.launcher]
    things += [make_spec(message, 1), WorkerSpec(0, "c", "q", "p", address.to_dict(), secret, {})]
    things += [future, future._call, queue.status(), queue.task(abs)]
    for thing in things:
        assert_clean(f"{thing!r} {thing!s}")
    in_a_task = queue.submit(lambda: repr(__import__("nbqueue.context").context.current()))
    assert_clean(in_a_task.result(timeout=20))
    future.result(timeout=20)


def traceback_of(call: Callable[[], object]) -> str:
    """As a notebook keeps it, with its causes."""
    with pytest.raises(NbqueueError) as caught:
        call()
    error: BaseException | None = caught.value
    assert error is not None
    return "".join(traceback.format_exception(error))


def test_nothing_of_them_is_in_an_error(guarded: Any, tmp_path: Path) -> None:
    wrong = f"unix://:wrong-{PASSWORD}@{guarded.path}"
    nobody = f"unix://:{PASSWORD}@{tmp_path}/nothing.sock"
    for call, kind in (
        (lambda: TaskQueue(wrong), ServerRefused),
        (lambda: TaskQueue(f"unix://me:{PASSWORD}@{guarded.path}"), ServerRefused),
        (lambda: TaskQueue(nobody), ServerUnreachable),
        (lambda: TaskQueue(f"redis://:{PASSWORD}@192.0.2.1"), NbqueueError),
        (lambda: TaskQueue(url_of(guarded), "no spaces"), NbqueueError),
        (lambda: TaskQueue(redis.Redis(unix_socket_path="/nowhere", password=PASSWORD)), ServerUnreachable),
    ):
        shown = traceback_of(call)
        assert kind.__name__ in shown or kind is NbqueueError
        assert_clean(shown)


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{PASSWORD}/x@host",
        f"redis://:x/{PASSWORD}@host",
        f"redis://:{PASSWORD}?@host",
        f"redis://:{PASSWORD}#@host",
        f"redis://:12/{PASSWORD}@host",
        f"redis://:{PASSWORD}",
        f"redis://me:{PASSWORD}",
        f"redis://host:port?password={PASSWORD}",
        f"unix:///socket?password={PASSWORD}&socket_timeout=long",
        f"http://me:{PASSWORD}@host",
        f"http://host?password={PASSWORD}",
    ],
)
def test_a_url_that_cannot_be_read_is_not_repeated(url: str) -> None:
    """A password with signs that end it early is the usual reason; what is left of it looks like a port."""
    shown = traceback_of(lambda: Address.from_url(url))
    assert "is not a Redis URL" in shown
    assert_clean(shown)


def test_nothing_of_them_is_on_the_screen_of_the_command_line(guarded: Any, wait_until: Callable[..., Any]) -> None:
    env = {**os.environ, "NBQUEUE_URL": url_of(guarded)}
    program = [sys.executable, "-m", "nbqueue.cli"]
    worker = subprocess.Popen(
        [*program, "worker", "-n", "1"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert worker.stdout is not None
        ready = worker.stdout.readline()
        assert "1 worker serves" in ready
        for process in (psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)):
            assert_clean("\n".join(process.cmdline()))
        for options in (["--json"], []):
            shown = subprocess.run([*program, "status", *options], env=env, capture_output=True, check=True, timeout=30)
            assert_clean(shown.stdout + shown.stderr)
            assert not options or len(json.loads(shown.stdout)["workers"]) == 1
        shown = subprocess.run([*program, "acl", "ana"], env=env, capture_output=True, check=True, timeout=30)
        assert_clean(shown.stdout)
    finally:
        worker.terminate()
        out, errors = worker.communicate(timeout=20)
    assert_clean(ready + out + errors)


@pytest.mark.apart
def test_nothing_of_them_is_shown_when_the_server_goes_and_workers_die(
    guarded: Any, start_script: Callable[..., Any]
) -> None:
    code = f"""
import os, signal, sys, time
from nbqueue import TaskQueue
queue = TaskQueue({url_of(guarded)!r}, workers=1)
queue.run()
died = queue.submit(lambda: os.kill(os.getpid(), signal.SIGKILL))
print("died", type(died.exception(timeout=30)).__name__, flush=True)
print("supervisor", queue._core.launcher._process.pid, flush=True)
os.kill(queue._core.launcher._process.pid, signal.SIGKILL)
print("again", queue.submit(abs, -1).result(timeout=60), flush=True)
print("ready", flush=True)
deadline = time.monotonic() + 60
while queue._core.link.failure is None and time.monotonic() < deadline:
    time.sleep(0.01)
print("failure", queue._core.link.failure, flush=True)
try:
    queue.status()
except Exception as error:
    import traceback
    traceback.print_exception(error)
    print("status", type(error).__name__, flush=True)
"""
    script = start_script(code)
    script.line("ready", timeout=90)
    guarded.stop()
    assert "No Redis server answers" in script.line("failure", timeout=60)
    assert script.line("status") == "ServerUnreachable"
    script.end()
    assert script.line("died") == "WorkerDied"
    assert_clean(script.text)
