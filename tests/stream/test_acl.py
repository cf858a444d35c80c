"""The least rights: a whole job runs with them, nothing in them is more than it needs, and nothing else is let in."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nbqueue import TaskQueue
from nbqueue.codec.seal import fingerprint, user_secret
from nbqueue.errors import BadOption, ServerRefused
from nbqueue.stream.acl import COMMANDS, PASSWORD_HERE, rights, setuser
from nbqueue.stream.connect import Address, CommandError, Wire
from nbqueue.stream.keys import Keys
from nbqueue.stream.server import PrivateServer

PASSWORD = "of ana: 100% @/?"
# These have commands of their own below them.
FAMILIES = {"client", "script", "xgroup", "xinfo"}
# Only where the URL names a database other than 0, of which a private server has none.
NOT_IN_THE_JOB = {"select"}
# Everybody may; and what is the administrator's here.
NEEDS_NO_RIGHT = {"auth", "script|flush"}


@pytest.fixture
def admin(own_server: PrivateServer) -> Iterator[Wire]:
    """The only one who may do anything on this server."""
    wire = Wire(Address(path=own_server.address.path), timeout_s=10)
    wire.connect()
    wire.call("ACL", "SETUSER", "admin", "on", ">admin", "~*", "&*", "+@all")
    wire.call("AUTH", "admin", "admin")
    wire.call("ACL", "SETUSER", "default", "off")
    yield wire
    wire.close()


@pytest.fixture
def log_in(own_server: PrivateServer) -> Iterator[Callable[..., Wire]]:
    wires = []

    def log_in(user: str = "ana", password: str = PASSWORD) -> Wire:
        wires.append(Wire(Address(path=own_server.address.path, username=user, password=password), timeout_s=10))
        wires[-1].connect()
        return wires[-1]

    yield log_in
    for wire in wires:
        wire.close()


def keys_of(queue: str) -> Keys:
    return Keys.of(queue, fingerprint(user_secret()))


def url_of(server: PrivateServer) -> str:
    from urllib.parse import quote

    return f"unix://ana:{quote(PASSWORD, safe='')}@{server.address.path}"


@pytest.fixture
def queue(own_server: PrivateServer, admin: Wire) -> Iterator[Any]:
    admin.call(*setuser("ana", keys_of("jobs"), PASSWORD).split(" "))
    queue = TaskQueue(url_of(own_server), "jobs")
    yield queue
    queue.cancel()
    queue.shutdown()
    queue._core.link.close()


def watch(wire: Wire) -> None:
    wire.send(("MONITOR",))
    assert wire.receive() == b"OK"


def seen(wire: Wire, admin: Wire) -> set[str]:
    """What the server was asked to do since `watch`, by scripts as well."""
    end = secrets.token_hex(8).encode()
    admin.call("PING", end)
    found = set()
    while end not in (line := wire.receive()):
        match = re.match(rb'\S+ \[\d+ [^\]]*\] "([^"]*)"(?: "([^"]*)")?', line)
        assert match is not None, line
        name = match[1].decode().lower()
        found.add(f"{name}|{match[2].decode().lower()}" if name in FAMILIES else name)
    # MONITOR does not show CLIENT. The statistics do; those of Redis 6.2 do not tell one CLIENT from another.
    statistics = admin.call("INFO", "commandstats").decode()
    told = set(re.findall(r"^cmdstat_(client[^:]*):", statistics, re.MULTILINE))
    return found | ({"client|id", "client|unblock"} if told == {"client"} else told)


def test_a_whole_job_runs_with_the_least_rights_and_needs_each_of_them(
    queue: Any,
    own_server: PrivateServer,
    admin: Wire,
    log_in: Callable[..., Wire],
    tmp_path: Path,
    wait_until: Callable[..., Any],
) -> None:
    monitor = log_in("admin", "admin")
    watch(monitor)
    another = TaskQueue(url_of(own_server), "jobs")
    assert another.status().workers == ()
    queue.run(2)

    # Calls, maps, retries, limits, calls inside tasks, what takes long, what is cancelled.
    assert queue.submit(pow, 2, 5).result(timeout=30) == 32
    assert queue.submit(pow, queue.submit(abs, -2), 5).result(timeout=30) == 32
    assert queue.map(abs, range(-200, 0)).results(timeout=30) == list(range(200, 0, -1))

    def second_time(path: str) -> str:
        if not os.path.exists(path):
            open(path, "w").close()
            raise OSError("first")
        return "second"

    assert queue.task(retries=2)(second_time)(str(tmp_path / "one")).result(timeout=30) == "second"
    paths = [str(tmp_path / name) for name in "abc"]
    assert queue.map(second_time, paths, retries=2, chunksize=3).results(timeout=30) == ["second"] * 3
    assert queue.submit(lambda: queue.submit(abs, -3).result()).result(timeout=30) == 3
    with pytest.raises(Exception, match="timeout of 0.1 s"):
        queue.task(timeout=0.1)(time.sleep)(60).result(timeout=30)
    held = [queue.submit(time.sleep, 300) for _ in range(4)]
    wait_until(lambda: held[0].running() and len(queue.status().running) > 1, timeout=30)
    queue.cancel()
    wait_until(lambda: queue.status().cancelled == 4 and not queue.status().running, timeout=30)

    # A worker dies, the scripts are forgotten.
    died = queue.submit(lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert type(died.exception(timeout=30)).__name__ == "WorkerDied"
    admin.call("SCRIPT", "FLUSH")
    assert queue.status().retried == 4
    assert queue.submit(pow, 2, 6).result(timeout=30) == 64
    queue.shutdown()
    assert queue.status().workers == ()

    # Workers and status from the command line.
    env = {**os.environ, "NBQUEUE_URL": url_of(own_server)}
    command = [sys.executable, "-m", "nbqueue.cli"]
    program = subprocess.Popen(
        [*command, "worker", "--queue", "jobs", "-n", "1"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert queue.map(abs, [-1, -2]).results(timeout=30) == [1, 2]
        look = [*command, "status", "--queue", "jobs", "--json"]
        told = subprocess.run(look, env=env, capture_output=True, check=True, timeout=30)
        assert [worker["slot"] for worker in json.loads(told.stdout)["workers"]] == [0]
        subprocess.run([*command, "cancel", "--queue", "jobs"], env=env, capture_output=True, check=True, timeout=30)
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=20)
        assert (program.returncode, errors) == (0, b"")
    finally:
        if program.poll() is None:
            program.kill()
            program.communicate()

    # Nothing was asked for that the line does not allow; and the line allows nothing that was not asked for.
    assert admin.call("ACL", "LOG") == []
    assert seen(monitor, admin) - NEEDS_NO_RIGHT == set(COMMANDS) - NOT_IN_THE_JOB


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_status_of_a_server_that_tells_nothing_of_itself_goes_without_its_memory(
    own_server: PrivateServer, admin: Wire
) -> None:
    admin.call(*setuser("ana", keys_of("jobs"), PASSWORD).split(" "))
    queue = TaskQueue(url_of(own_server), "jobs")
    assert queue.status().memory_bytes > 0
    admin.call("ACL", "SETUSER", "ana", "-info")
    status = queue.status()
    assert (status.memory_bytes, status.done) == (0, 0)
    assert "Redis holds" not in repr(status)
    queue._core.link.close()


def test_each_right_is_named_once() -> None:
    assert len(COMMANDS) == len(set(COMMANDS))
    line = rights(Keys.of("tasks", "0a1b2c3d")).split(" ")
    assert line[:4] == ["resetchannels", "resetkeys", "~nbq:{tasks:0a1b2c3d}:*", "-@all"]
    assert line[4:] == ["+" + name for name in COMMANDS]


def test_nothing_else_is_let_in(admin: Wire, log_in: Callable[..., Wire]) -> None:
    # One who could do everything before.
    admin.call("ACL", "SETUSER", "ana", "on", "nopass", ">old", "~*", "&*", "+@all")
    keys = Keys.of("tasks", "0a1b2c3d")
    admin.call(*setuser("ana", keys, PASSWORD).split(" "))
    wire = log_in()
    wire.call("HSET", keys.counts, "done", "1")
    wire.call("SELECT", "0")
    foreign = [Keys.of("tasks", "ffffffff").counts, Keys.of("task", "0a1b2c3d").counts, "nbq:", "x"]
    denied: list[tuple[str, ...]] = [("HGETALL", key) for key in foreign]
    denied += [("EVAL", f"return redis.call('HSET', '{key}', 'a', 'b')", "0") for key in foreign]
    denied += [("EVAL", "return redis.call('KEYS', '*')", "0"), ("KEYS", "*"), ("SCAN", "0"), ("FLUSHALL",)]
    denied += [("CONFIG", "GET", "*"), ("ACL", "LIST"), ("CLIENT", "LIST"), ("CLIENT", "KILL", "TYPE", "normal")]
    denied += [("SCRIPT", "FLUSH"), ("MONITOR",), ("SHUTDOWN",), ("XGROUP", "DESTROY", keys.first, "w")]
    denied += [("PUBLISH", "c", "m"), ("SET", keys.counts, "x"), ("DEL", keys.counts), ("MODULE", "LIST"), ("SAVE",)]
    for command in denied:
        with pytest.raises((CommandError, ServerRefused), match="ACL|permission|can't (run|access)"):
            wire.call(*command)
        if not wire.connected:
            wire.connect()
    assert admin.call("HGETALL", keys.counts) == [b"done", b"1"]
    for password in ("old", ""):
        with pytest.raises(ServerRefused):
            log_in(password=password).call("XLEN", keys.first)


@pytest.mark.parametrize("name", ["a*", "a?", "[ab]", "a\\", "a]b[", "a\"b'c", "ü", "a-b.c/d"])
def test_a_name_that_looks_like_a_pattern_is_none(
    name: str, admin: Wire, log_in: Callable[..., Wire], own_server: PrivateServer
) -> None:
    """As redis-cli reads the line."""
    line = setuser("ana", Keys.of(name, "0a1b2c3d"), PASSWORD)
    told = redis_cli(own_server, line)
    assert told == "OK"
    wire = log_in()
    assert wire.call("HGETALL", Keys.of(name, "0a1b2c3d").counts) == []
    for other in ("ab", "aXc", "a", "b", "aa"):
        with pytest.raises(ServerRefused):
            wire.call("HGETALL", Keys.of(other, "0a1b2c3d").counts)
        wire.connect()


def redis_cli(server: PrivateServer, line: str) -> str:
    program = [str(Path(server.executable).with_name("redis-cli")), "-s", server.address.path]
    program += ["--user", "admin", "--pass", "admin", "--no-auth-warning"]
    told = subprocess.run(program, input=line + "\n", capture_output=True, text=True, check=True, timeout=20)
    return told.stdout.strip()


def test_a_line_whose_password_was_not_filled_in_is_refused_by_the_server(
    admin: Wire, own_server: PrivateServer
) -> None:
    line = setuser("ana", Keys.of("tasks", "0a1b2c3d"))
    assert f" {PASSWORD_HERE} " in line
    assert redis_cli(own_server, line).startswith("ERR")
    assert admin.call("ACL", "GETUSER", "ana") is None
    assert redis_cli(own_server, line.replace("THE PASSWORD", "mine")) == "OK"


@pytest.mark.parametrize(
    ("user", "password"), [("default", None), ("", None), ("a b", None), ("a'b", None), ("x" * 101, None), ("ana", "")]
)
def test_users_who_cannot_be_meant_are_refused(user: str, password: str | None) -> None:
    with pytest.raises(BadOption):
        setuser(user, Keys.of("tasks", "0a1b2c3d"), password)
