"""What all tests share: queues of their own, servers of their own, scripts, and a check that nothing is left.

Every test runs with a configuration and a state directory that belong to this session, so neither the user's
secret nor a running notebook is touched. One supervisor serves the whole session, as it serves a kernel.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

# A shell has it ignored in what it starts in the background, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
# These draw, and are asked to.
SHOWING = ("progress", "notebook", "browser")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Soaks are left out unless asked for, in every room, and what is a step of its own."""
    for item in items:
        for mark, why in (("soak", "long"), ("apart", "a step of its own")):
            if item.get_closest_marker(mark):
                if mark not in config.option.markexpr:
                    item.add_marker(pytest.mark.skip(reason=f"{why}: ask for it with -m {mark}"))
                # A soak is one, in whatever step it lies.
                break


def eventually(predicate: Callable[[], object], timeout: float = 10) -> Any:
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.005)
    return value


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    """``wait_until(predicate, timeout=10)``: its first true value; the test fails when there never is one."""
    return eventually


@pytest.fixture(scope="session", autouse=True)
def session_home() -> Iterator[Path]:
    """Configuration and state directories of this session; at its end nothing of ours may lie in them."""
    home = Path(tempfile.mkdtemp(prefix="nbqt-", dir="/tmp"))
    before = {name: os.environ.get(name) for name in ("XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "PYTHONPATH")}
    for name in ("config", "run"):
        (home / name).mkdir(mode=0o700)
    os.environ["XDG_CONFIG_HOME"] = str(home / "config")
    os.environ["XDG_RUNTIME_DIR"] = str(home / "run")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before["PYTHONPATH"]]))
    yield home
    close_queues()
    end_supervisor()

    def left() -> list[str]:
        found = [str(path) for path in (home / "run").iterdir() if path.name.startswith("nbqueue-")]
        found += _shared_memory_left()
        children = [child for child in psutil.Process().children() if _lives(child) and not _is_tracker(child.pid)]
        return found + [f"{child.pid} {child.name()}" for child in children]

    # A kernel that has just been killed takes its supervisor with it a moment later.
    with contextlib.suppress(AssertionError):
        eventually(lambda: not left(), timeout=5)
    remains = left()
    shutil.rmtree(home)
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    assert not remains, f"left behind by the session: {remains}"


@pytest.fixture(autouse=True)
def no_bars(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.path.parent.name not in SHOWING:
        monkeypatch.setenv("NBQUEUE_PROGRESS", "0")


# Queues and servers


@dataclass
class Traffic:
    """The longest string that this process has sent with a call, and the longest message that came back."""

    sent: int = 0
    received: int = 0


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> Traffic:
    """What goes through this process from now on."""
    from nbqueue.stream.broker import Broker

    traffic, submit, parse = Traffic(), Broker.submit_command, Broker.parse_replies

    def submit_command(*args: Any) -> Any:
        command = submit(*args)
        traffic.sent = max(traffic.sent, *map(len, command))
        return command

    def parse_replies(answer: Any) -> Any:
        found = parse(answer)
        traffic.received = max([traffic.received, *(len(each.message) for each in found)])
        return found

    monkeypatch.setattr(Broker, "submit_command", submit_command)
    monkeypatch.setattr(Broker, "parse_replies", staticmethod(parse_replies))
    return traffic


def _core_module() -> Any:
    return sys.modules.get("nbqueue.client.core")


def close_queues(*, private: bool = True) -> None:
    """Close the queues that this process has open, with their listeners; or only those on others' servers."""
    module = _core_module()
    for key, core in list(module._cores.items()) if module else ():
        if core.private and not private:
            continue
        for sink in core.link.sinks():
            getattr(sink, "cancel", lambda: None)()
        core.shutdown()
        core.link.close()
        del module._cores[key]


def end_supervisor() -> None:
    launch = sys.modules.get("nbqueue.client.launch")
    if launch is not None and launch._local is not None:
        launch._local.close()
        launch._local = None


def supervisor_pid() -> int | None:
    launch = sys.modules.get("nbqueue.client.launch")
    process = launch._local._process if launch and launch._local else None
    return process.pid if process else None


@pytest.fixture
def new_key() -> str:
    """A queue name that no other test uses."""
    return f"t{secrets.token_hex(4)}"


@pytest.fixture
def queue(new_key: str) -> Iterator[Any]:
    """A queue on this session's private server, with two workers."""
    from nbqueue import TaskQueue

    queue = TaskQueue(stream_key=new_key, workers=2)
    yield queue
    queue.cancel()
    queue.shutdown()


@dataclass
class Server:
    """A redis-server of a test's own, on a unix socket, as others run them; `url` says where.

    `within` are the words before its command, which say where it is to run.
    """

    directory: Path
    options: tuple[str, ...] = ()
    within: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def path(self) -> str:
        return str(self.directory / "r.sock")

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def client(self, **kwargs: Any) -> redis.Redis:
        return redis.Redis(unix_socket_path=self.path, **kwargs)

    def start(self) -> None:
        from nbqueue.stream.server import find_executable, tie_to_parent

        self.process = subprocess.Popen(
            [*self.within, find_executable(), "--port", "0", "--unixsocket", self.path, "--save", "", *self.options],
            stdout=subprocess.DEVNULL,
            cwd=self.directory,
            preexec_fn=tie_to_parent(),
        )
        # The path is there a moment before anybody listens.
        eventually(self._listens)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self.path) == 0

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def make_server(session_home: Path) -> Iterator[Callable[..., Server]]:
    """``make_server("--requirepass", "x")``: another redis-server, stopped after the test."""
    servers: list[Server] = []

    def make(*options: str, within: tuple[str, ...] = ()) -> Server:
        directory = Path(tempfile.mkdtemp(prefix="r", dir=session_home))
        server = Server(directory, options, within)
        servers.append(server)
        server.start()
        return server

    yield make
    close_queues(private=False)
    for server in servers:
        server.stop()
        shutil.rmtree(server.directory)


@pytest.fixture
def redis_server(make_server: Callable[..., Server]) -> Server:
    """A server that is not private: workers start only with ``run()``."""
    return make_server()


# Scripts: other kernels


class Script:
    """A Python program in a process of its own: a kernel, as far as nbqueue can tell.

    `lines` waits for what it prints; ``run`` is its own state directory.
    """

    def __init__(self, code: str, folder: Path, run: Path, env: dict[str, str], argv: tuple[str, ...]) -> None:
        self.run = run
        path = folder / "script.py"
        path.write_text(code)
        self.process = subprocess.Popen(
            [*argv, sys.executable, str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "XDG_RUNTIME_DIR": str(run), "NBQUEUE_PROGRESS": "0", **env},
            start_new_session=True,
        )
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: Any, lines: list[str]) -> None:
        with stream:
            for line in stream:
                lines.append(line.rstrip("\n"))

    def line(self, start: str, timeout: float = 30) -> str:
        """The first line that starts so, without that start."""

        def find() -> str | None:
            found = [line for line in list(self.out) if line.startswith(start)]
            assert found or self.process.poll() is None or self._read_all(), f"ended early:\n{self.text}"
            return found[0] if found else None

        return eventually(find, timeout)[len(start) :].strip()

    def _read_all(self) -> bool:
        return any(reader.is_alive() for reader in self._readers)

    def end(self, timeout: float = 60) -> str:
        """Wait for a good end; returns what was printed."""
        code = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(10)
        assert code == 0, f"ended with {code}:\n{self.text}"
        return "\n".join(self.out)

    @property
    def text(self) -> str:
        return "\n".join([*self.out, "--- stderr ---", *self.err])

    def family(self) -> list[psutil.Process]:
        """The script's process, its supervisor, server, fork template and workers."""
        me = psutil.Process(self.process.pid)
        return [me, *me.children(recursive=True)]


@pytest.fixture
def start_script(session_home: Path) -> Iterator[Callable[..., Script]]:
    """``start_script(code, env={…})``: run a program beside the test; killed after it if it still runs."""
    scripts: list[tuple[Script, Path]] = []

    def start(code: str, env: dict[str, str] | None = None, argv: tuple[str, ...] = ()) -> Script:
        home = Path(tempfile.mkdtemp(prefix="s", dir=session_home))
        (home / "run").mkdir(mode=0o700)
        script = Script(code, home, home / "run", env or {}, argv)
        scripts.append((script, home))
        return script

    yield start
    for script, home in scripts:
        family: list[psutil.Process] = []
        if script.process.poll() is None:
            family = script.family()
            script.process.kill()
            script.process.wait()
        eventually(lambda family=family: not any(_lives(process) for process in family))
        shutil.rmtree(home, ignore_errors=True)


HOST = """
import sys
from nbqueue.worker import pool
pool.LEASE_S, pool.BEAT_S = {lease_s}, {lease_s} / 5
from nbqueue.cli import main
sys.exit(main(["worker", *{urls!r}, "--queue", {key!r}, "-n", "{workers}"]))
"""


@pytest.fixture
def start_host(start_script: Callable[..., Script]) -> Callable[..., Script]:
    """``start_host(url, key, workers=2, lease_s=12.0)``: ``nbqueue worker`` on another host, as far as can be told.

    Without `url`, that is `NBQUEUE_URL` in `env`; `argv` are words before the command.
    """

    def start(url: str | None, key: str, *, workers: int = 2, lease_s: float = 12.0, **where: Any) -> Script:
        urls = [] if url is None else [url]
        return start_script(HOST.format(urls=urls, key=key, workers=workers, lease_s=lease_s), **where)

    return start


# Kernels


class Kernel:
    """A real ipykernel; `run` gives every message that it published for a cell."""

    def __init__(self, manager: Any, client: Any) -> None:
        self.manager = manager
        self.client = client

    def run(self, code: str, timeout: float = 60) -> list[dict[str, Any]]:
        """All messages up to the end of the cell, in order."""
        msg_id = self.client.execute(code)
        messages = []
        deadline = time.monotonic() + timeout
        while True:
            message = self.client.get_iopub_msg(timeout=max(0.1, deadline - time.monotonic()))
            messages.append(message)
            if message["parent_header"].get("msg_id") != msg_id or message["msg_type"] != "status":
                continue
            if message["content"]["execution_state"] == "idle":
                return messages

    def until(self, predicate: Callable[[dict[str, Any]], bool], timeout: float = 10) -> dict[str, Any]:
        """The next message for which the predicate holds."""
        deadline = time.monotonic() + timeout
        while True:
            message = self.client.get_iopub_msg(timeout=max(0.1, deadline - time.monotonic()))
            if predicate(message):
                return message


def free_port() -> int:
    """A TCP port of this host for a server that is about to be started.

    Below those that the system gives out by itself: one of these may be another connection's before it is bound.
    """
    for _ in range(100):
        port = 10_000 + secrets.randbelow(22_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("a hundred ports were taken")


@pytest.fixture
def start_kernel(tmp_path: Path, session_home: Path) -> Iterator[Callable[..., Kernel]]:
    """``start_kernel(**environment)``: a kernel that imports this nbqueue; shut down after the test."""
    from jupyter_client.manager import KernelManager

    managers = []

    def start(**environment: str) -> Kernel:
        # Not TCP: a port that is found free may be taken before the kernel binds it. And a socket's path must be short.
        sockets = tempfile.mkdtemp(prefix="k", dir=session_home)
        manager = KernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/k")
        env = {**os.environ, "NBQUEUE_PROGRESS": "1", "IPYTHONDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
        # With it, ipykernel would leave its descriptors alone.
        env.pop("PYTEST_CURRENT_TEST", None)
        manager.start_kernel(env={**env, **environment}, cwd=str(tmp_path))
        client = manager.client()
        client.start_channels()
        managers.append((manager, client))
        client.wait_for_ready(timeout=60)
        return Kernel(manager, client)

    yield start
    for manager, client in managers:
        client.stop_channels()
        if manager.has_kernel:
            manager.shutdown_kernel(now=True)


# Nothing left


def _shared_memory_left() -> list[str]:
    """Directories of this process, and of those that have died."""
    found = []
    for path in Path("/dev/shm").glob("nbqueue-*"):
        pid = int(path.name.split("-")[2])
        if pid == os.getpid() or not psutil.pid_exists(pid):
            found.append(str(path))
    return found


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_tracker(pid: int) -> bool:
    """Python's own watch over locks that processes share, such as tqdm's: from 3.14 on it lives as long as we do."""
    try:
        return any("multiprocessing.resource_tracker" in word for word in psutil.Process(pid).cmdline())
    except psutil.NoSuchProcess:
        return False


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name != "nbqueue-launcher"}


def _family() -> set[int]:
    """Every descendant, except the supervisor and what lives as long: its server and its fork template.

    One look at the process table, which is what costs.
    """
    supervisor = supervisor_pid()
    descendants = psutil.Process().children(recursive=True)
    return {p.pid for p in descendants if supervisor is None or supervisor not in (p.pid, _parent(p))}


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return None


def _sockets() -> int:
    """Unix sockets: what nbqueue opens here. Each is asked: the system's list of all misses some while others come and
    go."""
    number = 0
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                with socket.socket(fileno=os.dup(fd)) as same:
                    number += same.family == socket.AF_UNIX
    return number


def _private_server() -> redis.Redis | None:
    launch = sys.modules.get("nbqueue.client.launch")
    server = launch._local._server if launch and launch._local else None
    return redis.Redis(unix_socket_path=server.path) if server else None


def _immortal_keys() -> list[bytes]:
    """Keys without a lifetime on this session's private server, which is emptied when there are none."""
    client = _private_server()
    if client is None:
        return []
    with client:
        keys = list(client.scan_iter("nbq:*", count=1000))
        with client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.ttl(key)
            left = [key for key, ttl in zip(keys, pipe.execute(), strict=True) if ttl == -1]
        if not left:
            client.flushall()
        return left


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test: no thread, child process, socket or worker more than before; no key without a lifetime."""
    if request.path.parent.name in SHOWING:
        yield
        return
    with _leaving_nothing():
        yield


@pytest.fixture(scope="session")
def leaving_nothing() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """``with leaving_nothing():`` closes all queues at its end, and leaves no more: for tests that share a queue."""
    return _leaving_nothing


@contextlib.contextmanager
def _leaving_nothing() -> Iterator[None]:
    threads, family = _threads(), _family()
    sockets = _sockets() if supervisor_pid() else None
    yield
    close_queues()
    for what, left in (
        ("threads", lambda: _threads() - threads),
        ("processes", lambda: {pid for pid in _family() - family if not _is_tracker(pid)}),
        ("keys without a lifetime", _immortal_keys),
        ("sockets", lambda: sockets is not None and _sockets() > sockets),
    ):
        try:
            eventually(lambda left=left: not left(), timeout=5)
        except AssertionError:
            pytest.fail(f"{what} left behind: {left()}")
