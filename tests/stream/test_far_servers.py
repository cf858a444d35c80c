"""Which servers are spoken to in the clear: those on this host. And nobody can reach a private one from afar."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from nbqueue import TaskQueue
from nbqueue.client import launch
from nbqueue.errors import ServerUnsafe
from nbqueue.stream.connect import Address, Wire
from nbqueue.stream.server import PrivateServer

BOTH = "TLS and a password"


@pytest.mark.parametrize(
    ("url", "lacking"),
    [
        ("redis://example.net", BOTH),
        ("redis://me@example.net", BOTH),
        ("redis://:@example.net", BOTH),
        ("redis://me:pw@example.net", "TLS"),
        ("redis://example.net?password=pw", "TLS"),
        ("rediss://example.net", "a password"),
        ("rediss://me@example.net", "a password"),
        ("redis://192.0.2.1", BOTH),
        ("redis://10.0.0.1", BOTH),
        ("redis://[2001:db8::1]", BOTH),
        # These mean this host on some systems, and every address of it, or none, on others.
        ("redis://0.0.0.0", BOTH),
        ("redis://[::]", BOTH),
        ("redis://127.1", BOTH),
        # A name is what somebody's name server says it is.
        ("redis://localhost.example.net", BOTH),
        ("redis://127.0.0.1.example.net", BOTH),
        ("redis://ip6-localhost", BOTH),
    ],
)
def test_another_host_is_refused_for_what_it_lacks(url: str, lacking: str) -> None:
    with pytest.raises(ServerUnsafe, match=f"would be used without {lacking}\\. .*insecure=True"):
        Address.from_url(url).require_safe(insecure=False)
    Address.from_url(url).require_safe(insecure=True)


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://LocalHost:1",
        "redis://127.0.0.1",
        "redis://127.9.9.9",
        "redis://[::1]",
        "unix:///run/redis.sock",
        "rediss://localhost",
        "rediss://me:pw@example.net",
        "rediss://:pw@192.0.2.1",
        "rediss://example.net?password=pw",
    ],
)
def test_this_host_and_one_with_tls_and_password_are_fine(url: str) -> None:
    Address.from_url(url).require_safe(insecure=False)


@pytest.mark.parametrize(
    ("client", "safe"),
    [
        (redis.Redis("example.net", ssl=True, password="pw"), True),
        (redis.Redis("example.net", ssl=True), False),
        (redis.Redis("example.net", password="pw"), False),
        (redis.Redis("example.net"), False),
        (redis.Redis("localhost"), True),
        (redis.Redis("::1"), True),
        (redis.Redis(unix_socket_path="/run/redis.sock"), True),
        (redis.Redis.from_url("rediss://:pw@example.net"), True),
        (redis.Redis.from_url("redis://:pw@example.net"), False),
    ],
)
def test_a_client_is_judged_as_a_url_is(client: redis.Redis, safe: bool) -> None:
    address = Address.from_client(client)
    if safe:
        address.require_safe(insecure=False)
    else:
        with pytest.raises(ServerUnsafe):
            address.require_safe(insecure=False)


def test_a_name_that_is_this_host_today_may_be_another_tomorrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is judged by its name, without asking anybody."""

    def asked(*_: Any, **__: Any) -> Any:
        raise AssertionError("the name was looked up")

    monkeypatch.setattr(socket, "getaddrinfo", asked)
    with pytest.raises(ServerUnsafe):
        TaskQueue("redis://my-own-laptop")


def test_what_is_refused_is_not_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(self: Wire) -> None:
        raise AssertionError("connected")

    monkeypatch.setattr(Wire, "connect", connect)
    for client in ("redis://:pw@192.0.2.1", redis.Redis("192.0.2.1")):
        with pytest.raises(ServerUnsafe):
            TaskQueue(client)
        with pytest.raises(AssertionError, match="connected"):
            TaskQueue(client, insecure=True)


# A private server


def listening(process: psutil.Process) -> list[Any]:
    # Renamed in psutil 6.
    connections = getattr(process, "net_connections", None) or process.connections
    return [c for c in connections("all") if c.family != socket.AF_UNIX]


def test_a_queues_own_server_is_on_no_network_and_closed_to_others(queue: Any) -> None:
    queue.submit(abs, -1).result(timeout=30)
    path = Path(queue._core.address().path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with redis.Redis(unix_socket_path=str(path)) as client:
        assert client.config_get("port")["port"] == "0"
        assert client.config_get("tls-port").get("tls-port", "0") == "0"
        assert client.info("server")["tcp_port"] == 0
    supervisor = psutil.Process(launch.local_launcher()._process.pid)
    family = [supervisor, *supervisor.children(recursive=True)]
    assert any("redis-server" in process.name() or "valkey-server" in process.name() for process in family)
    assert {process.pid: listening(process) for process in family} == {process.pid: [] for process in family}


def test_the_modes_do_not_depend_on_the_umask(own_server: PrivateServer) -> None:
    before = os.umask(0)
    try:
        open_to_all = PrivateServer(own_server.executable)
        open_to_all.start()
    finally:
        os.umask(before)
    try:
        assert stat.S_IMODE(open_to_all.directory.stat().st_mode) == 0o700
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in open_to_all.directory.iterdir()}
        assert modes["redis.sock"] == modes["lock"] == 0o600
    finally:
        open_to_all.remove()


def test_a_directory_that_is_there_already_is_not_used(own_server: PrivateServer) -> None:
    """Each server makes its own, under a name that cannot be foreseen."""
    others = [PrivateServer(own_server.executable) for _ in range(2)]
    try:
        assert len({own_server.directory, *(server.directory for server in others)}) == 3
    finally:
        for server in others:
            server.remove()
