"""Whoever can write to the Redis must be able neither to run code nor to hurt anybody's work."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from nbqueue import TaskQueue
from nbqueue.client.sending.outgoing import Outgoing
from nbqueue.codec.messages import SKIPPED, RepliesBody, ReplyBody, call_id, dump_event, dump_replies, dump_reply
from nbqueue.errors import BadMessage


@pytest.fixture
def client(queue: Any) -> Iterator[redis.Redis]:
    queue.submit(abs, -1).result(timeout=20)
    with redis.Redis(unix_socket_path=queue._core.address().path) as client:
        yield client


@pytest.fixture(autouse=True)
def others_are_served(queue: Any) -> Iterator[None]:
    yield
    assert queue.map(abs, range(-50, 0)).results(timeout=30) == list(range(50, 0, -1))


class Evil:
    def __init__(self, path: Any) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_an_entry_that_is_no_call_is_dropped(queue: Any, client: redis.Redis, wait_until: Callable[..., Any]) -> None:
    keys = queue._core.keys
    for stream in keys.streams:
        client.xadd(stream, {"task": b"hello"})
        client.xadd(stream, {"c": b"\xff", "n": b"x", "d": b"", "i": b"many", "s": b"1 0 0 -1", "p": b""})
        client.xadd(stream, {"c": b"nobody", "n": b"x.y", "d": b"", "i": b"1", "s": b"1 0 0 -1", "p": b""})
        for names in (b"1", b"1,2", b"1,1", b"1," * 500 + b"1", b"1,,2"):
            client.xadd(stream, {"c": b"nobody", "n": names, "d": b"", "i": b"0", "s": b"1 0 0 -1", "p": b""})
    assert queue.submit(abs, -2).result(timeout=20) == 2
    wait_until(lambda: not any(client.xlen(stream) for stream in keys.streams))


def test_an_entry_that_is_no_call_in_the_hands_of_a_worker_that_dies_is_dropped(
    queue: Any, client: redis.Redis, wait_until: Callable[..., Any]
) -> None:
    stream = queue._core.keys.normal
    pid = queue.submit(os.getpid).result(timeout=20)
    consumers = wait_until(lambda: client.xinfo_consumers(stream, "w"))
    ours = [client.xadd(stream, {"task": b"hello"})]
    for names in (b"1,2", b"x,y"):
        ours.append(client.xadd(stream, {"c": b"c", "n": names, "d": b"", "i": b"0", "s": b"1 0 0 -1", "p": b""}))
    for consumer in consumers:
        client.xclaim(stream, "w", consumer["name"], 0, ours, force=True)
    os.kill(pid, 9)
    assert queue.submit(abs, -2).result(timeout=20) == 2
    wait_until(lambda: client.xlen(stream) == 0)


def test_foreign_words_in_a_supervisors_inbox_are_read_past(
    queue: Any, client: redis.Redis, wait_until: Callable[..., Any]
) -> None:
    keys = queue._core.keys
    (host,) = wait_until(lambda: client.hkeys(keys.pool))
    for fields in ({"what": "ever"}, {"op": "cancel"}, {b"\xff": b"\xff"}, {"op": "beat"}):
        client.xadd(keys.inbox(host.decode()), fields)
    client.expire(keys.inbox(host.decode()), 60)
    assert queue.submit(abs, -2).result(timeout=20) == 2
    assert client.hkeys(keys.pool) == [host]


def test_a_call_that_was_tampered_with_is_not_unpickled(
    queue: Any, client: redis.Redis, tmp_path: Any, wait_until: Callable[..., Any]
) -> None:
    """A true entry with another payload: its signature is wrong."""
    stream = queue._core.keys.normal
    queue.shutdown()
    future = queue.submit(abs, -3)
    (_, fields), = wait_until(lambda: client.xrange(stream))
    evil = pickle.dumps(Evil(tmp_path / "evil"))
    forged = {name: evil if len(value) > 100 else value for name, value in fields.items()}
    assert forged != fields
    client.xadd(stream, forged)
    queue.run(2)
    assert future.result(timeout=20) == 3
    wait_until(lambda: queue.status().refused == 1)
    assert not (tmp_path / "evil").exists()


def test_a_reply_that_was_forged_is_not_unpickled(queue: Any, client: redis.Redis, tmp_path: Any) -> None:
    core = queue._core
    queue.shutdown()
    future = queue.submit(abs, -3)
    n = str(core.link._last)
    evil = pickle.dumps(Evil(tmp_path / "evil"))
    client.xadd(core.keys.replies(core.link.client), {"n": n, "k": "r", "m": evil})
    client.xadd(core.keys.replies(core.link.client), {"what": "ever"})
    queue.run(2)
    assert isinstance(future.exception(timeout=20), BadMessage)
    assert not (tmp_path / "evil").exists()


def test_a_function_that_was_exchanged_on_the_server_is_not_run(
    queue: Any, client: redis.Redis, tmp_path: Any, wait_until: Callable[..., Any]
) -> None:
    keys = queue._core.keys
    queue.shutdown()
    future = queue.submit(lambda: "mine")
    wait_until(lambda: client.xlen(keys.normal))
    client.hset(keys.blob(future._call.call.digests[0]), "b", pickle.dumps(Evil(tmp_path / "evil")))
    queue.run(2)
    with pytest.raises(Exception, match="wrong signature"):
        future.result(timeout=20)
    assert not (tmp_path / "evil").exists()


def test_two_users_of_one_server_and_name_cannot_hurt_each_other(
    redis_server: Any, new_key: str, start_script: Callable[..., Any]
) -> None:
    """Different secrets are different keys: neither sees the other's calls."""
    code = """
import sys
from nbqueue import TaskQueue
queue = TaskQueue({url!r}, {key!r})
queue.run(1)
print("sum", sum(queue.map(abs, range(-{n}, 0)).results(timeout=30)), flush=True)
"""
    other = start_script(code.format(url=redis_server.url, key=new_key, n=300), env={"NBQUEUE_SECRET": "ab" * 32})
    mine = TaskQueue(redis_server.url, new_key)
    mine.run(1)
    assert sum(mine.map(abs, range(-200, 0)).results(timeout=30)) == sum(range(201))
    assert other.line("sum") == str(sum(range(301)))
    other.end()
    prefixes = {key.split(b"}")[0] for key in redis_server.client().scan_iter("nbq:*")}
    assert len(prefixes) == 2


def test_a_call_that_is_said_to_have_ended_before_ends_with_an_error(queue: Any, client: redis.Redis) -> None:
    """Whoever forges the records of open calls can have workers say so; a future once waited for ever then."""
    core = queue._core
    queue.shutdown()
    future, batch = queue.submit(abs, -3), queue.map(abs, [-4])
    for n in (core.link._last - 1, core.link._last):
        body = ReplyBody(0, 1, bytes([SKIPPED]), b"", (b"",), "host:0:1", 2, 0.0, 0.0)
        message = core.link._seal.close("reply", call_id(core.link.client, n), dump_reply(body))
        client.xadd(core.keys.replies(core.link.client), {"n": n, "k": "r", "p": message})
    client.expire(core.keys.replies(core.link.client), 60)
    for waits in (future.result, batch.results):
        with pytest.raises(BadMessage, match="ended before"):
            waits(timeout=20)
    queue.run(2)


def test_news_and_output_that_no_version_of_ours_writes_are_passed_over(
    queue: Any, client: redis.Redis, wait_until: Callable[..., Any]
) -> None:
    """An event without an item ended the listener's connection for a second, and so again with each one."""
    core = queue._core
    queue.shutdown()
    future, batch = queue.submit(abs, -3), queue.map(abs, [-4, -5])
    link = core.link

    def say(n: int, kind: str, message: bytes) -> None:
        sealed = link._seal.close({"e": "event", "r": "reply"}[kind], call_id(link.client, n), message)
        client.xadd(core.keys.replies(link.client), {"n": n, "k": kind, "p": sealed})

    wait_until(lambda: link.flush(1.0))
    for n in range(link._last - 2, link._last + 1):
        for event in (b"[]", b"7", b"{", b'{"kind":"output"}', b'{"kind":"output","item":"x"}', b'{"item":0}'):
            say(n, "e", event)
        for details in ({}, {"stream": 1, "at": -5, "size": 1 << 62, "text": "x", "attempt": 1}, {"id": [], "data": 3}):
            for event_kind in ("output", "display", "started", "news of tomorrow"):
                say(n, "e", dump_event(event_kind, item=0, **details))
    printed = (("a", None), (0, 1, 1 << 62, ((0, b"x"),)), (9, 9, 9, 9))
    body = ReplyBody(0, 1, b"", pickle.dumps([3]), (), "w", 1, 0.0, 0.0, printed, ((0, {}), 7))  # type: ignore[arg-type]
    say(link._last - 2, "r", dump_reply(body))
    client.expire(core.keys.replies(link.client), 60)
    assert future.result(timeout=20) == 3
    queue.run(2)
    assert batch.results(timeout=20) == [4, 5]
    assert link.failure is None


def test_junk_in_a_clients_own_record_does_not_end_its_listener(
    queue: Any, client: redis.Redis, wait_until: Callable[..., Any], capsys: Any
) -> None:
    """An answer of the wrong shape ended the thread, and everything waited for ever."""
    core = queue._core
    record = f"{core.keys.prefix}c:{core.link.client}"
    client.hset(record, "mark", "junk")
    wait_until(lambda: core.link.failure is not None, timeout=20)
    assert "cannot be understood" in str(core.link.failure)
    client.delete(record)
    assert queue.submit(abs, -3).result(timeout=30) == 3
    assert core.link.failure is None


# Calls that travel together


@pytest.fixture
def bundle(queue: Any, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., Any]) -> Any:
    """``bundle(function)``: futures of five calls of it, which lie in one entry, and no worker has come yet."""
    queue.shutdown()

    def make(fn: Callable[[int], Any], of: Any = queue) -> list[Any]:
        link = of._core.link
        with monkeypatch.context() as patch, link._helm:
            patch.setattr(Outgoing, "_most_together", lambda *_: 5)
            futures = [of.submit(fn, i) for i in range(5)]
            link._settle()
            link._send_calls(link._steps)
            link._settle()
        assert [fields[b"i"] for _, fields in client.xrange(of._core.keys.normal)][-1:] == [b"0"]
        return futures

    return make


def names_of(futures: list[Any]) -> tuple[str, ...]:
    return tuple(str(future._call.call.n) for future in futures)


def sevens(names: tuple[str, ...]) -> RepliesBody:
    """Each of these calls has given 7."""
    times = (0.0,) * len(names)
    return RepliesBody(names, pickle.dumps([7] * len(names)), "w", 1, times, times)


def test_a_bundle_that_was_tampered_with_is_not_unpickled_and_those_in_the_true_one_run(
    queue: Any, client: redis.Redis, tmp_path: Any, bundle: Any, wait_until: Callable[..., Any]
) -> None:
    keys = queue._core.keys
    futures = bundle(abs)
    ((_, fields),) = client.xrange(keys.normal)
    evil = pickle.dumps(Evil(tmp_path / "evil"))
    several = fields[b"n"].split(b",")
    for part in ({b"p": evil}, {b"n": several[0]}, {b"i": b"5"}, {b"n": b",".join(several[::-1])}, {b"n": b"7,8"}):
        client.xadd(keys.normal, {**fields, **part})
    queue.run(2)
    assert [future.result(timeout=20) for future in futures] == list(range(5))
    # Ours is alone on its server, as it believes: what is put there once more and fits is a call that ran.
    wait_until(lambda: client.xlen(keys.normal) == 0, timeout=20)
    assert not (tmp_path / "evil").exists()


def test_a_bundle_whose_payload_was_exchanged_ends_visibly_and_none_of_it_runs(
    queue: Any, client: redis.Redis, tmp_path: Any, bundle: Any, wait_until: Callable[..., Any]
) -> None:
    """Two bundles, each with the other's payload: both are signed, but hold other calls than those that they name."""
    keys, link = queue._core.keys, queue._core.link
    futures = [*bundle(lambda i: (tmp_path / "ran").touch()), *bundle(lambda i: [(tmp_path / "ran").touch()])]
    (id, fields), (id_too, others) = client.xrange(keys.normal)
    client.xdel(keys.normal, id, id_too)
    for true, payload in ((fields, others[b"p"]), (others, fields[b"p"])):
        new = client.xadd(keys.normal, {**true, b"p": payload}).decode()
        places = {n: f"1*{new}+{n.decode()}|0" for n in true[b"n"].split(b",")}
        client.hset(keys.open_calls(link.client), mapping=places)
    queue.run(2)
    for future in futures:
        with pytest.raises(BadMessage, match="was to hold the call"):
            future.result(timeout=20)
    wait_until(lambda: queue.status().refused == 10, timeout=20)
    assert not (tmp_path / "ran").exists()
    assert client.xlen(keys.normal) == 0


def test_values_of_several_calls_that_were_forged_are_not_unpickled_and_end_them_visibly(
    queue: Any, client: redis.Redis, tmp_path: Any, bundle: Any
) -> None:
    core = queue._core
    futures = bundle(abs)
    names = ",".join(names_of(futures))
    evil = pickle.dumps(Evil(tmp_path / "evil"))
    for n in (names, f"{names},", "1,x"):
        client.xadd(core.keys.replies(core.link.client), {"n": n, "k": "m", "p": evil})
    for future in futures:
        assert isinstance(future.exception(timeout=20), BadMessage)
    assert not (tmp_path / "evil").exists()
    queue.run(2)


@pytest.mark.parametrize("whose", ["another client's", "another queue's", "of other calls", "a single reply's"])
def test_values_of_several_calls_that_are_not_meant_for_these_end_them_visibly(
    queue: Any, client: redis.Redis, bundle: Any, wait_until: Callable[..., Any], whose: str
) -> None:
    core, other = queue._core, TaskQueue(stream_key=queue.stream_key + "2", workers=1)._core
    link, futures = core.link, bundle(abs)
    names = names_of(futures)
    body = sevens(names)
    others = sevens(("1", *names[1:]))
    single = ReplyBody(0, 1, b"", pickle.dumps([7]), (), "w", 1, 0.0, 0.0)
    message = {
        "another client's": link._seal.close("replies", "f" * 16, dump_replies(body)),
        "another queue's": other.link._seal.close("replies", link.client, dump_replies(body)),
        "of other calls": link._seal.close("replies", link.client, dump_replies(others)),
        "a single reply's": link._seal.close("reply", call_id(link.client, names[0]), dump_reply(single)),
    }[whose]
    client.xadd(core.keys.replies(link.client), {"n": ",".join(names), "k": "m", "p": message})
    for future in futures:
        assert isinstance(future.exception(timeout=20), BadMessage)
    assert link.refused == 1
    queue.run(2)


def test_values_of_several_calls_that_are_said_again_are_read_past(
    queue: Any, client: redis.Redis, bundle: Any, wait_until: Callable[..., Any]
) -> None:
    core = queue._core
    link, stream = core.link, core.keys.replies(core.link.client)
    futures = bundle(abs)
    names = names_of(futures)
    queue.run(1)
    assert [future.result(timeout=20) for future in futures] == list(range(5))
    said = [fields for _, fields in client.xrange(stream) if fields[b"k"] == b"m"]
    # What they really gave, and what would be another value.
    message = link._seal.close("replies", link.client, dump_replies(sevens(names)))
    said.append({"n": ",".join(names), "k": "m", "p": message})
    for fields in said:
        client.xadd(stream, fields)
    assert queue.submit(abs, -9).result(timeout=20) == 9
    assert [future.result() for future in futures] == list(range(5))
    assert link.refused == 0
    assert len(queue.history(100)) == 7
