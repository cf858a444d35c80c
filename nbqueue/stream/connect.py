"""A client, a URL or a socket path → connections with settings that suit a broker.

redis-py's own defaults bite here (a socket timeout shorter than a blocking read, silent re-sending of
commands, RESP3), so an `Address` takes over *where* a given client connects and *as whom*, and nothing else.
A `Wire` is one connection: several commands leave in one write, replies are read in order. It never
re-sends: whoever asks decides whether a step is safe to repeat.
"""

from __future__ import annotations

import inspect
import ipaddress
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import hiredis

from nbqueue.errors import (
    BadOption,
    ServerError,
    ServerRefused,
    ServerTooOld,
    ServerUnreachable,
    ServerUnsafe,
)
from nbqueue.stream.connection import CommandError, Connection, ForgotScripts, open_plain, open_with_redis_py

__all__ = ["MINIMUM_VERSION", "Address", "CommandError", "ForgotScripts", "Wire", "check_server", "explaining"]

MINIMUM_VERSION = (6, 2)
CONNECT_TIMEOUT_S = 5.0
# The lowest that a server's limit for one string (proto-max-bulk-len) can be; and how long it has to object.
LOWEST_LIMIT_BYTES = 1024 * 1024
OBJECT_S = 1.0

_TLS_OPTIONS = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Redis server is and as whom to speak to it. Its repr hides the password.

    >>> Address.from_url("redis://:secret@localhost:6380/2")
    Address(host='localhost', port=6380, path='', db=2, username=None, tls=None)
    """

    host: str = "localhost"
    port: int = 6379
    path: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Mapping[str, Any] | None = None
    private: bool = field(default=False, repr=False, compare=False)  # a supervisor of ours keeps it

    @classmethod
    def from_url(cls, url: str) -> Address:
        """Read ``redis://``, ``rediss://`` (TLS) and ``unix://`` URLs, as redis-py does.

        Raises
        ------
        BadOption
            If the URL has another scheme, or a database that is no number, or cannot be read; or if it has an option
            that no such connection takes.
        """
        from urllib.parse import urlsplit

        import redis.connection

        bad = None
        try:
            if re.match(r"rediss?://[^@]*[/?#].*@", url):
                raise ValueError("a password that is cut by one of / ? #")
            if re.match(r"rediss?://", url) and not re.fullmatch(r"/?[0-9]*", urlsplit(url).path):
                raise ValueError("a database that is no number, for which redis-py takes 0")
            kwargs: dict[str, Any] = dict(cast(Any, redis.connection).parse_url(url))
        except (ValueError, AttributeError):
            # Outside of this block, and without the cause: what it quotes may be a piece of the password.
            bad = BadOption(
                f"{_without_password(url)!r} is not a Redis URL. Write redis://[user:password@]host:port/0 "
                "or another number, rediss://… for TLS, or unix:///path/to/redis.sock; in a password / ? # @ as "
                "%2F %3F %23 %40."
            )
        if bad is not None:
            raise bad
        kind = cast(type, kwargs.pop("connection_class", redis.connection.Connection))
        taken = {name for base in kind.__mro__ for name in inspect.signature(base.__init__).parameters}  # type: ignore[misc]
        if unknown := kwargs.keys() - taken - redis.connection.URL_QUERY_ARGUMENT_PARSERS.keys():
            raise BadOption(
                f"{_without_password(url)!r} has an option that redis-py does not take there: "
                f"{', '.join(sorted(unknown))}."
            )
        return cls._from_kwargs(kind, kwargs)

    @classmethod
    def from_client(cls, client: Any) -> Address:
        """Take over where a ``redis.Redis`` connects; its timeouts, retries and decoding are left behind.

        Raises
        ------
        BadOption
            If it is no ``redis.Redis``, or one whose settings cannot be handed to worker processes.
        """
        pool = getattr(client, "connection_pool", None)
        kind = getattr(pool, "connection_class", None)
        if pool is None or not isinstance(kind, type) or "asyncio" in kind.__module__:
            raise BadOption(
                f"client must be None (a private server), a Redis URL or a redis.Redis, not {type(client).__name__}."
            )
        return cls._from_kwargs(kind, dict(pool.connection_kwargs))

    @classmethod
    def _from_kwargs(cls, kind: type, kwargs: dict[str, Any]) -> Address:
        import redis.connection

        if kwargs.get("credential_provider") is not None:
            raise BadOption("A credential_provider cannot be handed to worker processes; give username and password.")
        common: dict[str, Any] = {
            "db": int(kwargs.get("db") or 0),
            "username": kwargs.get("username"),
            "password": kwargs.get("password"),
        }
        if issubclass(kind, redis.connection.UnixDomainSocketConnection):
            return cls(path=str(kwargs["path"]), **common)
        tls = None
        if issubclass(kind, redis.connection.SSLConnection):
            tls = {name: kwargs[name] for name in _TLS_OPTIONS if kwargs.get(name) is not None}
        elif kind is not redis.connection.Connection:
            raise BadOption(
                f"Connections of the kind {kind.__name__} (Sentinel, Cluster or a kind of your own) are not "
                "supported yet; give the URL of one server."
            )
        return cls(host=str(kwargs.get("host", "localhost")), port=int(kwargs.get("port", 6379)), tls=tls, **common)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Address:
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def is_local(self) -> bool:
        """True where no byte leaves this host."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}" + (f"?db={self.db}" if self.db else "")
        return f"redis{'s' if self.tls is not None else ''}://{self.host}:{self.port}/{self.db}"

    def require_safe(self, *, insecure: bool) -> None:
        """Refuse to speak in the clear to another host.

        Whoever can write to the server can keep work from being done, and payloads are readable on the way.

        Raises
        ------
        ServerUnsafe
            If the server is not on this host and lacks TLS or a password, unless `insecure` is true.
        """
        if insecure or self.is_local or (self.tls is not None and self.password):
            return
        lacking = " and ".join(
            word for word, there in (("TLS", self.tls is not None), ("a password", self.password)) if not there
        )
        raise ServerUnsafe(
            f"{self} is on another host and would be used without {lacking}. Use rediss://user:password@host:port, "
            "or pass insecure=True if the network itself is private."
        )


class Wire:
    """One connection to a server: many commands in one write, replies in order, nothing re-sent.

    Not safe for threads. After any error it is closed, and the next `connect` starts afresh.

    Parameters
    ----------
    address : Address
    timeout_s : float
        The longest wait for one reply. Must be longer than any BLOCK that is sent.
    """

    def __init__(self, address: Address, *, timeout_s: float) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._connection: Connection | None = None

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def connect(self) -> None:
        """Open the connection and log in.

        Raises
        ------
        ServerUnreachable, ServerRefused
            With the address, the cause and what to do.
        """
        self.close()
        a = self.address
        with self._explained():
            if a.path and not (a.username or a.password or a.db):
                self._connection = open_plain(a.path, self._timeout_s)
                return
            kind = "UnixDomainSocketConnection" if a.path else "Connection" if a.tls is None else "SSLConnection"
            options: dict[str, Any] = {"db": a.db, "username": a.username, "password": a.password}
            if a.path:
                options["path"] = a.path
            else:
                options |= {"host": a.host, "port": a.port, "socket_connect_timeout": CONNECT_TIMEOUT_S}
                options |= {"socket_keepalive": True, **(a.tls or {})}
            self._connection = open_with_redis_py(kind, self._timeout_s, **options)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def fileno(self) -> int:
        return self._open.fileno()

    def send(self, *commands: Sequence[Any]) -> None:
        """Write one or more commands at once; read each one's reply with `receive`."""
        pack = hiredis.pack_command
        packed = pack(tuple(commands[0])) if len(commands) == 1 else b"".join([pack(tuple(each)) for each in commands])
        connection = self._connection or self._open
        try:
            connection.send(packed)
        except BaseException as error:
            self._explain(error)
            raise

    def receive(self) -> Any:
        """The next reply. An error reply is raised as `CommandError`; the connection stays usable."""
        connection = self._connection or self._open
        try:
            answer = connection.receive()
            if isinstance(answer, Exception):
                raise answer
        except BaseException as error:
            self._explain(error)
            raise
        return answer

    def call(self, *command: Any) -> Any:
        self.send(command)
        return self.receive()

    @property
    def buffered(self) -> bool:
        """True if a reply has begun to arrive and was read together with the one before."""
        return self._open.buffered

    def ready(self, timeout_s: float = 0.0) -> bool:
        """True if a reply has begun to arrive, or the connection has ended (then `receive` says so)."""
        try:
            return self._open.ready(timeout_s)
        except OSError:
            return True

    def takes(self, size: int) -> bool:
        """Whether the server lets a string of `size` bytes in (proto-max-bulk-len). The connection is used up.

        Only the announcement of such a string is sent: to the string itself a server does not answer in time,
        but cuts the connection in the middle of it, as a bad network does.

        Raises
        ------
        ServerError
            If it cannot be asked now.
        """
        self.connect()
        try:
            with self._explained():
                self._open.send(b"*2\r\n$4\r\nECHO\r\n$%d\r\n" % size)
            if self.ready(OBJECT_S):
                self.receive()
        except CommandError:
            return False
        finally:
            self.close()
        return True

    @property
    def _open(self) -> Connection:
        if self._connection is None:
            raise ServerUnreachable(f"Not connected to {self.address}.")
        return self._connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        connecting = self._connection is None
        try:
            yield
        except BaseException as error:
            self._explain(error, connecting=connecting)
            raise

    def _explain(self, error: BaseException, *, connecting: bool = False) -> None:
        """What went wrong, in our own words; of what needs none, only what is to be done. Raises from `error`."""
        if isinstance(error, CommandError):
            if "DB index is out of range" in str(error):
                raise ServerRefused(
                    f"The Redis server at {self.address} has no database {self.address.db}. Correct the number at the "
                    "end of the URL (most servers have 0 to 15)."
                ) from error
            if not _is_refusal(error):
                return
            self.close()
            raise self._refused(error) from error
        # Whatever it is, also an interrupt between a command and its reply: what comes next would be mistaken for it.
        self.close()
        if isinstance(error, OSError):
            if _is_refusal(error):
                raise self._refused(error) from error
            if connecting and self.address.tls is not None and "CERTIFICATE" not in str(error):
                # Told by a port that speaks in the clear: it waits for more, or answers with what is no TLS.
                raise ServerUnreachable(
                    f"No Redis server answers with TLS at {self.address}: {_short(error)}. Is it a port without TLS "
                    "(then write redis:// instead of rediss://)? Else start a server there or correct the address."
                ) from error
            if self.address.private:
                down = isinstance(error, ConnectionError | FileNotFoundError)
                raise ServerUnreachable(
                    "The private Redis server is down; it is started again."
                    if down
                    else f"The private Redis server cannot be reached: {_short(error)}."
                ) from error
            raise ServerUnreachable(
                f"No Redis server answers at {self.address}: {_short(error)}. Start one there, correct the "
                "address, or call TaskQueue() without a client for a private server."
            ) from error

    def _refused(self, error: Exception) -> ServerRefused:
        return ServerRefused(
            f"The Redis server at {self.address} refused this user: {_short(error)}. Check the user name and "
            "password in the URL, and the user's permissions (ACL)."
        )


@contextmanager
def explaining(address: Address) -> Iterator[None]:
    """For what a user asks himself: whatever command the server refuses, the error is one of ours.

    Raises
    ------
    ServerError
    """
    try:
        yield
    except CommandError as error:
        raise ServerError(f"The Redis server at {address} refused a command: {_short(error)}.") from error


def check_server(wire: Wire) -> list[str]:
    """Check once, at the first connection, that a server can be trusted with a queue.

    Returns
    -------
    list of str
        Warnings to show.

    Raises
    ------
    ServerTooOld, ServerUnsafe
    """
    try:
        with explaining(wire.address):
            info = _info(wire.call("INFO", "server")) | _info(wire.call("INFO", "memory"))
    except ServerRefused as error:
        if not str(error.__cause__).startswith("NOPERM"):
            # Not this one command: no password was given.
            raise
        wire.connect()
        return [f"{wire.address} forbids INFO: version and eviction policy could not be checked."]
    version = info.get("redis_version", "0")
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < MINIMUM_VERSION:
        raise ServerTooOld(
            f"The server at {wire.address} is Redis {version}; nbqueue needs 6.2 or later (or Valkey)."
        )
    policy = info.get("maxmemory_policy", "noeviction")
    limit = int(info.get("maxmemory", "0"))
    if policy.startswith("allkeys-") and limit:
        raise ServerUnsafe(
            f"The server at {wire.address} deletes any key when its memory is full (maxmemory-policy {policy}), "
            "which loses tasks. Set it to noeviction."
        )
    if policy.startswith("allkeys-") or (policy.startswith("volatile-") and limit):
        return [
            f"The server at {wire.address} has maxmemory-policy {policy}: when its memory is full it deletes keys. "
            "Set it to noeviction."
        ]
    return []


def wait_until_ready(address: Address, timeout_s: float, alive: Callable[[], bool] = lambda: True) -> None:
    """Wait until the server answers PING with PONG (not LOADING).

    Raises
    ------
    ServerUnreachable
        If it does not within `timeout_s`, or is no longer `alive`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        wire = Wire(address, timeout_s=2.0)
        try:
            wire.connect()
            if wire.call("PING") == b"PONG":
                return
        except ServerUnreachable:
            if time.monotonic() > deadline or not alive():
                raise
        except CommandError:
            if time.monotonic() > deadline:
                raise ServerUnreachable(f"{address} did not become ready in {timeout_s:g} s.") from None
        finally:
            wire.close()
        time.sleep(0.005)


def _info(reply: Any) -> dict[str, str]:
    lines = bytes(reply).decode("utf-8", "replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _is_refusal(error: BaseException) -> bool:
    text = str(error)
    if type(error) is PermissionError and error.errno is None:
        # Its own word, not the system's.
        return True
    return text.startswith(("NOAUTH", "WRONGPASS", "NOPERM", "ERR invalid password", "ERR AUTH"))


def _short(error: BaseException) -> str:
    cause = error.__cause__ or error.__context__
    text = str(error) or type(error).__name__
    if isinstance(cause, socket.gaierror):
        return f"unknown host ({cause.strerror})"
    if isinstance(cause, OSError) and cause.strerror and cause.strerror not in text:
        return f"{text} ({cause.strerror})"
    return text.rstrip(".")


def _without_password(url: object) -> str:
    text = str(url)
    head, at, tail = text.rpartition("@")
    shown = f"…@{tail}" if at and head else text
    # A password may be given as an option, too; and what stands where a port should be may be one.
    return re.sub(r"(?<=[?#]).*|(?<=:)(?!//|\d+(?:/|\Z))[^/?#]+", "…", shown, flags=re.DOTALL)


def is_out_of_memory(error: BaseException) -> bool:
    """True where a server refused a command because its memory is full."""
    # Inside a script Redis 6.2 says so in the text only.
    return str(error).startswith("OOM") or "used memory > 'maxmemory'" in str(error)


def may_be_too_large(error: BaseException) -> bool:
    """True where a server may have cut us off because of the size of a string: ask `Wire.takes`."""
    return isinstance(error, ServerError) or "invalid bulk length" in str(error)
