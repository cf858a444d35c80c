"""A bad network between a queue and its server: slow, resetting, stalling, or silently gone.

A TCP port of this host that forwards to a server's unix socket, in one thread of the test. What is wrong with
the network is set from the test while connections are open.
"""

from __future__ import annotations

import os
import random
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable

__all__ = ["Connection", "Proxy"]

CHUNK_BYTES = 65_536
# More is not read from a sender whose receiver does not take it: as a real network, it pushes back.
MOST_BYTES = 1_000_000


class _Way:
    """One direction of a connection: what was read and is due to be written."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source = source
        self.target = target
        self.chunks: deque[tuple[float, bytes]] = deque()
        self.size = 0
        self.ended = False


class Connection:
    """A client's connection and the one to the server that stands for it.

    `asked` is what the client wrote last, so that a test can tell connections apart.
    """

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.ways = (_Way(client, server), _Way(server, client))
        self.asked = b""
        self.vanished = False
        self.ghost = False


class Proxy:
    """Forwards to the unix socket `path`, until it is closed.

    Attributes
    ----------
    delay_s : float
        Each direction takes so long.
    resets : float
        The chance that a chunk is not forwarded, but ends its connection with a reset at both ends.
    stalled : bool
        Nothing is forwarded or accepted, nothing is closed; what was sent waits.
    cut : int
        How many connections were reset.
    """

    def __init__(self, path: str, *, delay_s: float = 0.0, resets: float = 0.0, seed: int = 0) -> None:
        self.delay_s = delay_s
        self.resets = resets
        self.stalled = False
        self.cut = 0
        self._path = path
        self._random = random.Random(seed)
        self._connections: list[Connection] = []
        self._lock = threading.Lock()  # guards what tests and the thread both touch
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._listener.setblocking(False)
        self._wake_r, self._wake_w = os.pipe()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._closing = True
        os.write(self._wake_w, b"!")
        self._thread.join(10)
        assert not self._thread.is_alive()
        for connection in self._connections:
            connection.client.close()
            connection.server.close()
        self._listener.close()
        os.close(self._wake_r)
        os.close(self._wake_w)

    # What can go wrong

    def connections(self) -> list[Connection]:
        with self._lock:
            return [c for c in self._connections if not (c.vanished or c.ghost)]

    def vanish(self, which: Callable[[Connection], bool] = lambda _: True) -> int:
        """Connections that are open now go nowhere from now on, and neither end is told. Returns how many."""
        return self._mark(which, "vanished")

    def forsake(self, which: Callable[[Connection], bool] = lambda _: True) -> int:
        """Reset connections at the client's end; the server goes on to believe in them. Returns how many."""
        return self._mark(which, "ghost")

    def _mark(self, which: Callable[[Connection], bool], flag: str) -> int:
        with self._lock:
            marked = [c for c in self._connections if not (c.vanished or c.ghost) and which(c)]
            for connection in marked:
                setattr(connection, flag, True)
                if flag == "ghost":
                    _reset(connection.client)
        os.write(self._wake_w, b"!")
        return len(marked)

    # The thread

    def _run(self) -> None:
        while not self._closing:
            with selectors.DefaultSelector() as selector:
                with self._lock:
                    timeout = self._register(selector)
                ready = selector.select(timeout)
                with self._lock:
                    for key, events in ready:
                        if key.data is None:
                            os.read(self._wake_r, 4096)
                        elif key.data == "accept":
                            self._accept()
                        else:
                            self._move(*key.data, events)

    def _register(self, selector: selectors.BaseSelector) -> float:
        """Watch what may move now. Returns how long it may take until something else is due."""
        timeout = 0.05
        selector.register(self._wake_r, selectors.EVENT_READ, None)
        if self.stalled:
            return timeout
        selector.register(self._listener, selectors.EVENT_READ, "accept")
        now = time.monotonic()
        for connection in self._connections:
            if connection.ghost:
                continue
            wanted: dict[socket.socket, int] = {}
            for way in connection.ways:
                if way.size < MOST_BYTES and not way.ended:
                    wanted[way.source] = wanted.get(way.source, 0) | selectors.EVENT_READ
                if way.chunks and way.chunks[0][0] <= now:
                    wanted[way.target] = wanted.get(way.target, 0) | selectors.EVENT_WRITE
                elif way.chunks:
                    timeout = min(timeout, way.chunks[0][0] - now)
            for end, events in wanted.items():
                selector.register(end, events, (connection, end))
        return timeout

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self._path)
        except OSError:
            # The server is away: as if nobody listened.
            server.close()
            _reset(client)
            return
        for end in (client, server):
            end.setblocking(False)
        self._connections.append(Connection(client, server))

    def _move(self, connection: Connection, end: socket.socket, events: int) -> None:
        if connection not in self._connections or connection.ghost:
            return
        try:
            for way in connection.ways:
                if way.source is end and events & selectors.EVENT_READ:
                    self._take(connection, way)
                if way.target is end and events & selectors.EVENT_WRITE:
                    self._give(way)
        except BlockingIOError:
            return
        except OSError:
            self._end(connection)
            return
        if any(way.ended and not way.chunks for way in connection.ways):
            self._end(connection)

    def _take(self, connection: Connection, way: _Way) -> None:
        data = way.source.recv(CHUNK_BYTES)
        if connection.vanished:
            way.ended = not data
            way.chunks.clear()
        elif not data:
            way.ended = True
        else:
            if way.source is connection.client:
                connection.asked = data
            way.chunks.append((time.monotonic() + self.delay_s, data))
            way.size += len(data)

    def _give(self, way: _Way) -> None:
        if self.resets and self._random.random() < self.resets:
            self.cut += 1
            raise ConnectionResetError
        due, data = way.chunks.popleft()
        try:
            sent = way.target.send(data)
        except BlockingIOError:
            sent = 0
        way.size -= sent
        if sent < len(data):
            way.chunks.appendleft((due, data[sent:]))

    def _end(self, connection: Connection) -> None:
        self._connections.remove(connection)
        _reset(connection.client)
        connection.server.close()


def _reset(end: socket.socket) -> None:
    # Closed with a lifetime of zero, a TCP socket says RST instead of FIN.
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()
