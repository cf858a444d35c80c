"""Where to connect and as whom is taken over from the user; how is ours; what is wrong is said in words."""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
import redis
import redis.asyncio

from nbqueue.errors import (
    BadOption,
    ServerError,
    ServerRefused,
    ServerTooOld,
    ServerUnreachable,
    ServerUnsafe,
)
from nbqueue.stream.broker import Broker
from nbqueue.stream.connect import (
    Address,
    CommandError,
    Wire,
    check_server,
    wait_until_ready,
)
from nbqueue.stream.keys import Keys
from nbqueue.stream.server import PrivateServer
from tests.conftest import free_port


@pytest.fixture
def connect(server: PrivateServer) -> Iterator[Callable[..., Wire]]:
    wires = []

    def make(address: Address | None = None, timeout_s: float = 5) -> Wire:
        wire = Wire(address or server.address, timeout_s=timeout_s)
        wires.append(wire)
        wire.connect()
        return wire

    yield make
    for wire in wires:
        wire.close()


@pytest.fixture
def with_password(connect: Callable[..., Wire]) -> Iterator[str]:
    wire = connect()
    wire.call("CONFIG", "SET", "requirepass", "secret")
    yield "secret"
    wire.call("CONFIG", "SET", "requirepass", "")


@pytest.fixture
def speaking() -> Iterator[Callable[[dict[bytes, bytes]], Address]]:
    """A TCP server that has one answer for each command it knows."""
    ends: list[Callable[[], None]] = []

    def start(answers: dict[bytes, bytes]) -> Address:
        listener = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                while data := connection.recv(4096):
                    for word, answer in answers.items():
                        if word in data:
                            connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        ends.extend((lambda: thread.join(5), listener.close))
        return Address(host="127.0.0.1", port=listener.getsockname()[1])

    yield start
    for end in ends:
        end()


def _ping(wire: Wire) -> None:
    # Without a password, the first command is refused; with a wrong one, the connection.
    wire.connect()
    wire.call("PING")


def bulk(text: str) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(text), text.encode())


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://", Address()),
        ("redis://host:1/2", Address("host", 1, db=2)),
        ("redis://host:1/", Address("host", 1)),
        ("redis://me:pw@host", Address("host", username="me", password="pw")),
        ("redis://:p%40w@[::1]:5", Address("::1", 5, password="p@w")),
        ("rediss://host?ssl_ca_certs=/ca.pem", Address("host", tls={"ssl_ca_certs": "/ca.pem"})),
        ("unix:///run/redis.sock?db=3", Address(path="/run/redis.sock", db=3)),
    ],
)
def test_a_url_is_read_as_redis_py_reads_it(url: str, address: Address) -> None:
    assert Address.from_url(url) == address


@pytest.mark.parametrize(
    "url",
    ["http://me:secret@host", "host:6379", "redis://host:port", "", "redis://:secret@host/tasks", "rediss://host:1/2/3"],
)
def test_what_is_no_redis_url_is_refused_without_repeating_its_password(url: str) -> None:
    with pytest.raises(BadOption, match="redis://") as caught:
        Address.from_url(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "option"),
    [
        ("redis://:secret@host?databse=3", "databse"),
        ("redis://:secret@host/3?ssl_ca_certs=ca.pem", "ssl_ca_certs"),
        ("unix:///r.sock?foo=bar", "foo"),
    ],
)
def test_an_option_that_no_connection_takes_is_named(url: str, option: str) -> None:
    with pytest.raises(BadOption, match=f"does not take there: {option}") as caught:
        Address.from_url(url)
    assert "secret" not in str(caught.value)
    tls = Address.from_url("rediss://host?ssl_ca_certs=ca.pem&socket_timeout=1&max_connections=2&decode_responses=yes")
    assert tls.tls == {"ssl_ca_certs": "ca.pem"}


def test_a_client_hands_over_where_and_as_whom_and_nothing_else() -> None:
    client = redis.Redis("host", 1, db=2, username="me", password="pw", socket_timeout=0.1)
    assert Address.from_client(client) == Address("host", 1, db=2, username="me", password="pw")


def test_a_client_with_tls_hands_over_its_certificates() -> None:
    client = redis.Redis("host", ssl=True, ssl_ca_certs="/ca.pem", ssl_check_hostname=True)
    tls = Address.from_client(client).tls
    assert tls is not None
    assert tls["ssl_ca_certs"] == "/ca.pem"
    assert tls["ssl_check_hostname"] is True


@pytest.mark.parametrize("client", [redis.asyncio.Redis(), object(), 7], ids=["asyncio", "object", "number"])
def test_what_is_no_client_is_refused(client: object) -> None:
    with pytest.raises(BadOption, match=r"client must be None .*redis\.Redis"):
        Address.from_client(client)


def test_a_client_with_a_credential_provider_is_refused() -> None:
    provider = redis.credentials.UsernamePasswordCredentialProvider("me", "pw")
    with pytest.raises(BadOption, match="credential_provider"):
        Address.from_client(redis.Redis(credential_provider=provider))


def test_bytes_survive_although_the_users_client_decodes(server: PrivateServer) -> None:
    client = redis.Redis(unix_socket_path=server.address.path, decode_responses=True)
    broker = Broker(Wire(Address.from_client(client), timeout_s=5), Keys.of("q", "0"))
    broker.connect()
    broker.wire.call("SET", "key", b"\xff\x00")
    assert broker.wire.call("GET", "key") == b"\xff\x00"
    broker.wire.close()
    client.close()


def test_the_password_shows_nowhere() -> None:
    address = Address.from_url("redis://me:secret@localhost:1")
    assert "secret" not in repr(address) + str(address)
    wire = Wire(address, timeout_s=1)
    with pytest.raises(ServerUnreachable) as caught:
        wire.connect()
    assert "secret" not in str(caught.value)


def test_an_address_travels_as_a_dict() -> None:
    address = Address("host", tls={"ssl_ca_certs": "/ca.pem"}, password="pw")
    assert Address.from_dict(address.to_dict()) == address


@pytest.mark.parametrize("url", ["redis://host", "redis://:pw@host", "rediss://host", "redis://10.0.0.1"])
def test_another_host_without_tls_and_password_is_refused(url: str) -> None:
    address = Address.from_url(url)
    with pytest.raises(ServerUnsafe, match="insecure=True"):
        address.require_safe(insecure=False)
    address.require_safe(insecure=True)


@pytest.mark.parametrize(
    "url", ["redis://", "redis://127.0.0.1", "redis://[::1]", "unix:///run/r.sock", "rediss://:pw@host"]
)
def test_this_host_and_a_guarded_one_are_fine(url: str) -> None:
    Address.from_url(url).require_safe(insecure=False)


def test_nothing_listens() -> None:
    port = free_port()
    wire = Wire(Address("127.0.0.1", port), timeout_s=1)
    with pytest.raises(ServerUnreachable, match=rf"No Redis server answers at redis://127\.0\.0\.1:{port}/0"):
        wire.connect()
    with pytest.raises(ServerUnreachable, match="Not connected"):
        wire.call("PING")
    with pytest.raises(ServerUnreachable):
        wait_until_ready(wire.address, 0.02)


def test_a_wrong_password_is_told_from_a_missing_server(server: PrivateServer, with_password: str) -> None:
    for password in (None, "wrong"):
        wire = Wire(Address(path=server.address.path, password=password), timeout_s=5)
        with pytest.raises(ServerRefused, match="refused this user"):
            _ping(wire)
        assert not wire.connected


def test_the_right_password_opens(server: PrivateServer, with_password: str, connect: Callable[..., Wire]) -> None:
    wire = connect(Address(path=server.address.path, password=with_password))
    assert wire.call("PING") == b"PONG"


def test_a_user_who_may_not_is_refused_at_the_command(server: PrivateServer, connect: Callable[..., Wire]) -> None:
    admin = connect()
    admin.call("ACL", "SETUSER", "guest", "on", ">pw", "+ping")
    guest = connect(Address(path=server.address.path, username="guest", password="pw"))
    with pytest.raises(ServerRefused, match="ACL"):
        guest.call("GET", "key")
    admin.call("ACL", "DELUSER", "guest")


def test_a_server_that_is_too_old_is_refused(
    speaking: Callable[[dict[bytes, bytes]], Address], connect: Callable[..., Wire]
) -> None:
    info = bulk("# Server\r\nredis_version:6.0.16\r\nmaxmemory_policy:noeviction\r\n")
    wire = connect(speaking({b"INFO": info}))
    with pytest.raises(ServerTooOld, match=r"6\.0\.16; nbqueue needs 6\.2"):
        check_server(wire)
    wire.close()


def test_a_server_that_forbids_info_is_used_with_a_warning(server: PrivateServer, connect: Callable[..., Wire]) -> None:
    admin = connect()
    admin.call("ACL", "SETUSER", "guest", "on", ">pw", "+ping")
    wire = connect(Address(path=server.address.path, username="guest", password="pw"))
    (warning,) = check_server(wire)
    assert "forbids INFO" in warning
    assert wire.call("PING") == b"PONG"
    admin.call("ACL", "DELUSER", "guest")


def test_a_server_that_evicts_is_refused_when_it_has_a_limit(connect: Callable[..., Wire]) -> None:
    wire = connect()
    assert check_server(wire) == []
    try:
        wire.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        (warning,) = check_server(wire)
        assert "allkeys-lru" in warning
        wire.call("CONFIG", "SET", "maxmemory", "1gb")
        with pytest.raises(ServerUnsafe, match="noeviction"):
            check_server(wire)
        wire.call("CONFIG", "SET", "maxmemory-policy", "volatile-ttl")
        (warning,) = check_server(wire)
        assert "volatile-ttl" in warning
    finally:
        wire.call("CONFIG", "SET", "maxmemory", "0")
        wire.call("CONFIG", "SET", "maxmemory-policy", "noeviction")


def test_several_commands_leave_in_one_write_and_an_error_keeps_its_place(
    connect: Callable[..., Wire],
) -> None:
    wire = connect()
    wire.send(("SET", "key", "1"), ("LPUSH", "key", "x"), ("GET", "key"))
    assert wire.receive() == b"OK"
    with pytest.raises(CommandError, match="wrong kind"):
        wire.receive()
    assert wire.receive() == b"1"
    assert not wire.ready()


def test_a_server_that_does_not_answer_in_time_is_given_up(
    speaking: Callable[[dict[bytes, bytes]], Address],
) -> None:
    wire = Wire(speaking({}), timeout_s=0.05)
    wire.connect()
    with pytest.raises(ServerUnreachable):
        wire.call("PING")
    assert not wire.connected


def test_a_command_that_was_cut_is_not_sent_again(
    own_server: PrivateServer,
) -> None:
    wire = Wire(own_server.address, timeout_s=5)
    wire.connect()
    own_server.kill()
    with pytest.raises(ServerUnreachable):
        wire.call("INCR", "key")
    own_server.start()
    wire.connect()
    assert wire.call("GET", "key") is None
    wire.close()


@pytest.mark.parametrize("kind", [ServerUnreachable, ServerRefused, ServerTooOld, ServerUnsafe])
def test_errors_survive_a_pickle_round_trip(kind: type[ServerError]) -> None:
    error = pickle.loads(pickle.dumps(kind("why")))
    assert (type(error), str(error)) == (kind, "why")
    assert isinstance(error, ConnectionError)


@pytest.mark.parametrize("name", ["", "a b", "{a}", "x" * 201])
def test_a_queue_name_that_would_break_its_keys_is_refused(name: str) -> None:
    with pytest.raises(BadOption, match="stream_key"):
        Keys.of(name, "0")


def test_every_key_of_a_queue_lies_on_one_slot() -> None:
    keys = Keys.of("tasks", "1a2b")
    every = [
        *keys.streams,
        keys.replies("c"),
        keys.open_calls("c"),
        keys.blob("d"),
        keys.inbox("h"),
    ]
    assert all(key.startswith("nbq:{tasks:1a2b}:") for key in [*every, keys.pool, keys.counts, keys.delayed])
