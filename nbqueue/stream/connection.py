"""A socket on which a server has been logged in to, and the reader of its replies.

A unix socket that asks for nothing is opened here, all others by redis-py, which knows TLS and logging in; it is
loaded only then, since that takes longer than a worker takes to start. What comes after is the same for all: bytes
out, hiredis in.

Always true here: nothing is re-sent, and an error reply is a value like any other until `Wire` raises it.
"""

from __future__ import annotations

import inspect
import select
import socket
import struct
from functools import cache
from typing import Any

import hiredis

__all__ = ["CommandError", "Connection", "ForgotScripts", "ProtocolError", "open_plain", "open_with_redis_py"]

_PIECE_BYTES = 65_536
_NOT_YET = object()


class CommandError(Exception):
    """The server has refused a command; the connection stays usable."""


class ForgotScripts(CommandError):
    """It does not know the script: it was restarted, or told to forget."""


class ProtocolError(ConnectionError):
    """What came is not what a Redis server says."""


def _refused(text: str) -> Exception:
    if text.startswith("NOSCRIPT"):
        return ForgotScripts(text)
    if text.startswith("LOADING"):
        # It cannot be used yet, as if it were not there.
        return ConnectionError(text)
    # As redis-py words them.
    return CommandError(text.removeprefix("ERR "))


class Connection:
    """What a `Wire` sends to and reads from.

    Parameters
    ----------
    sock : socket
        Connected and logged in, with its timeout set.
    owner : object, optional
        What has opened it and is to be kept as long.
    """

    def __init__(self, sock: socket.socket, owner: object = None) -> None:
        self._sock: socket.socket | None = sock
        self._owner = owner
        self._reader = hiredis.Reader(protocolError=ProtocolError, replyError=_refused, notEnoughData=_NOT_YET)
        self._buffer = bytearray(_PIECE_BYTES)

    def fileno(self) -> int:
        if self._sock is None:
            raise _closed()
        return self._sock.fileno()

    def send(self, data: bytes) -> None:
        sock = self._sock
        if sock is None:
            raise _closed()
        sock.sendall(data)

    def receive(self) -> Any:
        """The next reply; of a refused command, the error as a value. Raises OSError."""
        reader, sock, buffer = self._reader, self._sock, self._buffer
        if sock is None:
            raise _closed()
        while (reply := reader.gets()) is _NOT_YET:
            size = sock.recv_into(buffer)
            if not size:
                raise ConnectionError("it has closed the connection")
            reader.feed(buffer, 0, size)  # type: ignore[arg-type]
        return reply

    @property
    def buffered(self) -> bool:
        """Whether some of a reply has been read already."""
        if self._reader.has_data():
            return True
        pending = getattr(self._sock, "pending", None)
        # TLS has read more than was asked for.
        return pending is not None and bool(pending())

    def ready(self, timeout_s: float) -> bool:
        """Whether a reply has begun to arrive, or the connection has ended."""
        if self.buffered:
            return True
        poller = select.poll()
        if self._sock is None:
            raise _closed()
        poller.register(self._sock, select.POLLIN)
        return bool(poller.poll(int(timeout_s * 1000)))

    def close(self) -> None:
        sock, self._sock, self._owner = self._sock, None, None
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                # It has ended from the other side.
                pass
            try:
                sock.close()
            except OSError:
                # A task has closed all descriptors that there are.
                pass


def _closed() -> ConnectionError:
    return ConnectionError("it is closed")


def open_plain(path: str, timeout_s: float) -> Connection:
    """A unix socket of a server without passwords. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect(path)
        # From here on the system keeps the time: Python would ask it twice for each read.
        sock.settimeout(None)
        limit = struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1_000_000))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, limit)
    except BaseException:
        sock.close()
        raise
    return Connection(sock)


def open_with_redis_py(kind: str, timeout_s: float, **options: Any) -> Connection:
    """A connection that redis-py opens and logs in to: of its class ``Connection``, ``SSLConnection`` or
    ``UnixDomainSocketConnection``, with its `options`.

    Raises
    ------
    OSError
        No server answers.
    PermissionError
        It refuses this user.
    CommandError
        It refuses anything else, a database that it has not among them.
    """
    import redis.connection
    import redis.exceptions
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    opened: Any = getattr(redis.connection, kind)(
        socket_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        decode_responses=False,
        health_check_interval=0,
        **_without_a_name(),
        **options,
    )
    try:
        opened.connect()
    except (redis.exceptions.AuthenticationError, redis.exceptions.NoPermissionError) as error:
        raise PermissionError(str(error)) from error
    except redis.exceptions.ResponseError as error:
        raise CommandError(str(error)) from error
    except redis.exceptions.TimeoutError as error:
        raise TimeoutError(str(error)) from error
    except redis.exceptions.ConnectionError as error:
        # Why is in its cause.
        raise ConnectionError(str(error)) from (error.__cause__ or error.__context__ or error)
    sock = opened._sock
    return Connection(sock, opened)


@cache
def _without_a_name() -> dict[str, Any]:
    """Not to introduce ourselves with CLIENT SETINFO, which costs two round trips. redis-py 7 renamed the options."""
    import redis.connection

    new = "driver_info" in inspect.signature(redis.connection.AbstractConnection.__init__).parameters
    return {"driver_info": None} if new else {"lib_name": None, "lib_version": None}
