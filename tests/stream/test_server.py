"""A private server: which one is started, who can reach it, and what is left of it."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from nbqueue.errors import ServerError, ServerNotFound, ServerTooOld, ServerUnreachable
from nbqueue.stream import server as server_module
from nbqueue.stream.connect import Wire
from nbqueue.stream.server import PrivateServer, find_executable, state_base, sweep


@pytest.fixture(autouse=True)
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place of their own for the directories, with a short path: pytest's are too long for a socket."""
    directory = Path(tempfile.mkdtemp(prefix="nbqs-", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def nothing_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No server anywhere, and a directory on PATH to put one into."""
    monkeypatch.delenv("NBQUEUE_REDIS_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(server_module.importlib.util, "find_spec", lambda name: None)
    return tmp_path


def program(folder: Path, name: str, version: str) -> str:
    """A program that says which version it is, and can do no more."""
    path = folder / name
    path.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0'\n")
    path.chmod(0o755)
    return str(path)


# Which one


def test_the_chosen_one_comes_before_all_others(nothing_found: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(nothing_found, "redis-server", "7.0.0")
    chosen = program(nothing_found, "my-server", "6.2.0")
    monkeypatch.setenv("NBQUEUE_REDIS_SERVER", chosen)
    assert find_executable() == chosen
    monkeypatch.setenv("NBQUEUE_REDIS_SERVER", "my-server")
    assert find_executable() == chosen


def test_redis_then_valkey_from_path(nothing_found: Path) -> None:
    valkey = program(nothing_found, "valkey-server", "8.0.1")
    assert find_executable() == valkey
    redis = program(nothing_found, "redis-server", "7.0.0")
    assert find_executable() == redis


def test_one_that_is_too_old_is_passed_over(nothing_found: Path) -> None:
    program(nothing_found, "redis-server", "6.0.16")
    valkey = program(nothing_found, "valkey-server", "8.0.1")
    assert find_executable() == valkey


def test_the_bundled_one_is_the_last_resort(
    nothing_found: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "package" / "bin").mkdir(parents=True)
    bundled = program(tmp_path / "package" / "bin", "redis-server", "6.2.14")
    os.chmod(bundled, 0o644)  # as some installers leave it
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path / "package")]})
    monkeypatch.setattr(server_module.importlib.util, "find_spec", lambda name: spec)
    assert find_executable() == bundled
    assert os.access(bundled, os.X_OK)


def test_where_there_is_none_the_message_says_how_to_get_one(nothing_found: Path) -> None:
    with pytest.raises(ServerNotFound, match="Install one") as caught:
        find_executable()
    for way in ("apt-get", "brew", "conda", "pip", "NBQUEUE_REDIS_SERVER"):
        assert way in str(caught.value)
    old = program(nothing_found, "redis-server", "5.0.7")
    with pytest.raises(ServerNotFound, match=f"{old} is older than 6.2"):
        find_executable()


def test_a_choice_that_cannot_be_meant_is_not_replaced_by_another(
    nothing_found: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(nothing_found, "redis-server", "7.0.0")
    monkeypatch.setenv("NBQUEUE_REDIS_SERVER", "/nowhere/redis-server")
    with pytest.raises(ServerNotFound, match="/nowhere/redis-server"):
        find_executable()
    monkeypatch.setenv("NBQUEUE_REDIS_SERVER", program(nothing_found, "old-server", "6.0.16"))
    with pytest.raises(ServerTooOld, match=r"6\.0; nbqueue needs 6\.2"):
        find_executable()
    mute = nothing_found / "mute"
    mute.write_text("#!/bin/sh\n")
    mute.chmod(0o755)
    monkeypatch.setenv("NBQUEUE_REDIS_SERVER", str(mute))
    with pytest.raises(ServerNotFound, match="is not a redis-server"):
        find_executable()


# Who can reach it


def test_only_its_user_can_reach_it_and_not_over_the_network(own_server: PrivateServer) -> None:
    directory, socket = own_server.directory, Path(own_server.address.path)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    assert own_server.process is not None
    process = psutil.Process(own_server.process.pid)
    # Renamed in psutil 6.
    connections = getattr(process, "net_connections", None) or process.connections
    kinds = {connection.family.name for connection in connections("all")}
    assert kinds <= {"AF_UNIX"}


def test_it_keeps_nothing_on_disk_and_evicts_nothing(own_server: PrivateServer) -> None:
    wire = Wire(own_server.address, timeout_s=5)
    wire.connect()
    assert wire.call("CONFIG", "GET", "maxmemory-policy")[1] == b"noeviction"
    assert wire.call("CONFIG", "GET", "save")[1] == b""
    wire.call("SET", "key", "value")
    own_server.kill()
    assert {path.name for path in own_server.directory.iterdir()} <= {"lock", "redis.log", "redis.sock"}
    own_server.start()
    wire.connect()
    assert wire.call("GET", "key") is None
    wire.close()


def test_a_path_that_is_too_long_for_a_socket_is_not_used(monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    assert state_base() == base
    deep = base / ("x" * 90)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    assert state_base() == Path(tempfile.gettempdir())


def test_without_any_usable_directory_the_message_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "SOCKET_PATH_LIMIT", 10)
    with pytest.raises(ServerError, match="TMPDIR"):
        state_base()


def test_a_server_that_does_not_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\necho 'no memory, alas'\nexit 1\n")
    broken.chmod(0o755)
    server = PrivateServer(str(broken))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(server_module, "START_TIMEOUT_S", 0.2)
            with pytest.raises(ServerUnreachable, match="no memory, alas"):
                server.start()
        assert server.process is not None
        assert server.process.poll() is not None
    finally:
        server.remove()


# What others delete


def _deleted(server: PrivateServer, what: str) -> None:
    if what == "directory":
        shutil.rmtree(server.directory)
    else:
        (server.directory / what).unlink()


@pytest.mark.parametrize("what", ["directory", "redis.sock", "lock"])
def test_what_was_deleted_of_a_running_server_is_missed_and_comes_back_with_the_next(
    one_server: PrivateServer, what: str
) -> None:
    assert one_server.serves
    first = one_server.process
    assert first is not None
    _deleted(one_server, what)
    assert not one_server.serves
    one_server.start()
    assert one_server.serves
    assert first.poll() is not None
    assert stat.S_IMODE(one_server.directory.stat().st_mode) == 0o700
    assert sweep() == 0
    with pytest.raises(BlockingIOError):
        server_module._lock(one_server.directory)


def _squat_with_link(directory: Path, base: Path) -> None:
    (base / "theirs").mkdir(mode=0o700)
    directory.symlink_to(base / "theirs")


SQUATTERS: dict[str, Callable[[Path, Path], object]] = {
    "a link": _squat_with_link,
    "a file": lambda directory, _: directory.touch(),
    "a directory for all": lambda directory, _: (directory.mkdir(), directory.chmod(0o777)),
    "no place": lambda _, base: base.rename(f"{base}-moved"),
}


@pytest.mark.parametrize("squat", SQUATTERS.values(), ids=SQUATTERS)
def test_no_server_is_started_where_its_directory_cannot_be_made_again(
    one_server: PrivateServer, base: Path, squat: Callable[[Path, Path], object]
) -> None:
    _deleted(one_server, "directory")
    squat(one_server.directory, base)
    try:
        with pytest.raises(ServerUnreachable, match=r"was deleted, and cannot be made again: .*Restart the kernel\."):
            one_server.start()
    finally:
        if not base.exists():
            Path(f"{base}-moved").rename(base)
    # Whoever is connected goes on.
    assert one_server.process is not None
    assert one_server.process.poll() is None


# What is left


def test_nothing_is_left_of_a_removed_server(own_server: PrivateServer) -> None:
    assert own_server.process is not None
    own_server.remove()
    assert not own_server.directory.exists()
    assert own_server.process.poll() is not None


def test_a_sweep_removes_a_dead_owners_directory_and_leaves_a_living_ones(
    own_server: PrivateServer, base: Path
) -> None:
    dead = base / "nbqueue-dead"
    dead.mkdir(mode=0o700)
    (dead / "lock").touch()
    (dead / "redis.log").touch()
    assert sweep() == 1
    assert not dead.exists()
    assert own_server.directory.exists()
    assert sweep() == 0


def test_a_sweep_leaves_what_is_not_ours_or_just_being_made(base: Path, tmp_path: Path) -> None:
    (base / "nbqueue-link").symlink_to(tmp_path)
    (base / "nbqueue-new").mkdir()
    (base / "else").mkdir()
    assert sweep() == 0
    assert {path.name for path in base.iterdir()} == {"nbqueue-link", "nbqueue-new", "else"}
    os.utime(base / "nbqueue-new", (0, 0))
    assert sweep() == 1


def test_a_sweep_stops_a_server_that_outlived_its_owner(own_server: PrivateServer) -> None:
    """Its lock is free, as it is once the owner is gone."""
    assert own_server.process is not None
    fcntl.flock(own_server._lock, fcntl.LOCK_UN)
    assert sweep() == 1
    assert own_server.process.wait(10) == 0
    assert not own_server.directory.exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ties a child's life to its parent's")
def test_a_server_dies_with_the_process_that_owns_it(
    base: Path, own_server: PrivateServer, wait_until: Callable[..., object]
) -> None:
    code = (
        "import os, signal, sys\n"
        "from nbqueue.stream.server import PrivateServer, tie_to_parent\n"
        "server = PrivateServer(sys.argv[1], tie_to_parent())\n"
        "server.start()\n"
        "print(server.process.pid, server.directory, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    owner = subprocess.run(
        [sys.executable, "-c", code, own_server.executable], capture_output=True, text=True, check=False
    )
    pid, directory = owner.stdout.split()
    wait_until(lambda: not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == "zombie")
    assert sweep() == 1
    assert not Path(directory).exists()
