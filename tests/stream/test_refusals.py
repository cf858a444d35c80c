"""What others have put on the streams goes, is counted, and costs the owner of nothing else anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from nbqueue.stream.broker import Beat, Broker, Taken, entry_of
from nbqueue.stream.records import Call, Charge, Fetched, HostState, Report, Several

STATE = HostState("h", "laptop", 1)
GOOD = {"c": "c", "n": "1", "d": "", "i": "3", "s": "1 0 0 -1", "p": "payload"}
Drained = Callable[[], None]


def submit(broker: Broker, *calls: Call) -> None:
    epoch = broker.hello("c", "e1").epoch
    assert isinstance(broker.submit("c", epoch, calls, {d: b"blob" for c in calls for d in c.digests}), Taken)


def fetch(broker: Broker, *, own: bool = False) -> Any:
    return broker.wire.call(*broker.fetch_command("h:1", 100, block_ms=None, own=own))


def add(broker: Broker, fields: dict[str, Any]) -> bytes:
    id: bytes = broker.wire.call("XADD", broker.keys.normal, "*", *[x for pair in fields.items() for x in pair])
    return id


def refused(broker: Broker) -> int:
    return broker.counts().refused


@pytest.mark.parametrize(
    "change",
    [
        *({"i": word} for word in ("0", "-1", "many", "", "1e9", "9" * 20, " 3", "3\n")),
        *({"n": word} for word in ("", "-1", "1.", ".1", "1.1.1", "x", "1 ", "9" * 30, b"\xff")),
        *({"s": word} for word in ("", "1 0 0", "1 0 0 -1 0", "0 0 0 -1", "1 -2 0 -1", "1 0 -1 -1", "1 0 0 -2")),
        *({"s": word} for word in ("1 0 3 -1", "1 0 0 3", "9999999999 0 0 -1", "1 0 999999999999 -1", "a b c d")),
        {"c": b"\xff"},
        {"d": b"\xff"},
        {"more": "than we write"},
    ],
    ids=repr,
)
def test_an_entry_of_a_foreign_shape_is_refused(
    broker: Broker, change: dict[str, Any], assert_drained: Drained
) -> None:
    add(broker, {**GOOD, **change})
    assert broker.sift(fetch(broker)) == []
    assert refused(broker) == 1
    assert_drained()


def test_an_entry_with_too_few_fields_is_refused(broker: Broker, assert_drained: Drained) -> None:
    for left_out in GOOD:
        add(broker, {name: value for name, value in GOOD.items() if name != left_out})
    assert broker.sift(fetch(broker)) == []
    assert refused(broker) == len(GOOD)
    assert_drained()


def test_a_call_that_is_put_on_the_stream_once_more_is_refused(broker: Broker, assert_drained: Drained) -> None:
    submit(broker, Call(1, (), 1, b"payload"))
    answer = fetch(broker)
    fields = answer[0][1][0][1]
    copy = dict(zip(fields[::2], fields[1::2], strict=True))
    add(broker, copy)
    (got,) = broker.sift(answer)
    assert broker.sift(fetch(broker)) == []
    assert refused(broker) == 1
    # The true one is where it was.
    assert broker.sift(fetch(broker, own=True)) == [got]
    broker.refuse_call(got, b"ended")
    add(broker, copy)
    assert broker.sift(fetch(broker)) == []
    assert refused(broker) == 3
    assert_drained()


def test_a_key_of_a_foreign_type_stops_no_worker(broker: Broker) -> None:
    submit(broker, Call(1, (), 1, b"payload"))
    broker.wire.call("SET", broker.keys.open_calls("d"), "no hash")
    add(broker, {**GOOD, "c": "d"})
    assert [got.client for got in broker.sift(fetch(broker))] == ["c"]
    assert refused(broker) == 1
    broker.wire.call("DEL", broker.keys.open_calls("d"))


def test_what_was_deleted_or_cancelled_meanwhile_is_not_counted(broker: Broker) -> None:
    submit(broker, Call(1, (), 1, b"payload"), Call(2, (), 1, b"payload"))
    answer = fetch(broker)
    broker.cancel("c", ["1"])
    broker.wire.call("XDEL", broker.keys.normal, answer[0][1][1][0])
    assert broker.sift(answer)[0].n == "2"
    assert broker.sift(fetch(broker, own=True)) == []
    assert refused(broker) == 0


def test_a_refused_call_ends_at_once_with_all_its_items(broker: Broker, assert_drained: Drained) -> None:
    submit(broker, Call(1, ("d",), 100, b"payload"))
    (got,) = broker.sift(fetch(broker))
    assert broker.refuse_call(got, b"sealed")
    assert not broker.refuse_call(got, b"sealed")
    assert [(m.n, m.kind, m.message) for m in broker.read_replies("c", b"0")] == [("1", "x", b"sealed")]
    counts = broker.counts()
    assert (counts.refused, counts.failed, counts.done, counts.queued, counts.fetched) == (1, 1, 0, 0, 0)
    assert broker.wire.call("TTL", broker.keys.blob("d")) == 3600
    assert_drained()


def test_a_refusal_of_an_old_attempt_ends_nothing(broker: Broker) -> None:
    submit(broker, Call(1, (), 1, b"payload"))
    (got,) = broker.sift(fetch(broker))
    broker.release("h:1", [got.entry])
    assert not broker.refuse_call(got, b"sealed")
    assert broker.read_replies("c", b"0") == []
    (again,) = broker.sift(fetch(broker))
    assert isinstance(again, Fetched)
    assert again.entry != got.entry


def test_a_refusal_of_a_copy_ends_nothing(broker: Broker) -> None:
    submit(broker, Call(1, (), 1, b"payload"))
    (got,) = broker.sift(fetch(broker))
    copy = got._replace(entry=f"1/{add(broker, GOOD).decode()}")
    assert broker.refuse_call(copy, b"sealed")
    assert broker.read_replies("c", b"0") == []
    assert broker.sift(fetch(broker, own=True)) == [got]
    broker.cancel("c", ["1"])


def test_refusals_work_while_memory_is_full(broker: Broker) -> None:
    add(broker, GOOD)
    submit(broker, Call(2, (), 1, b"payload"))
    broker.wire.call("CONFIG", "SET", "maxmemory", "1")
    (got,) = broker.sift(fetch(broker))
    assert broker.refuse_call(got, b"sealed")
    broker.wire.call("CONFIG", "SET", "maxmemory", "0")
    assert refused(broker) == 2


def test_refusals_work_on_a_server_that_has_forgotten_its_scripts(broker: Broker) -> None:
    add(broker, GOOD)
    broker.wire.call("SCRIPT", "FLUSH")
    assert broker.sift(fetch(broker)) == []
    assert refused(broker) == 1


def test_foreign_words_in_what_hosts_publish_are_read_past(broker: Broker) -> None:
    """They would end a supervisor, and a status with an error."""
    epoch = broker.register("h", 1, STATE, "e")
    keys = broker.keys
    worker: dict[str, Any] = {"slot": 0, "pid": 1, "state": "busy", "task": None}
    task = {"name": "f", "client": "c", "n": "1", "item": 0, "attempt": 1, "seconds": 1.0}
    workers = [[4], 7, None, [{**worker, "pid": "1"}], [{**worker, "state": 1}], [{}], [{**worker, "task": 7}]]
    workers += [[{**worker, "task": {**task, "seconds": "long"}}], [{**worker, "task": {**task, "name": None}}]]
    host = {"host": "x", "hostname": "y", "pid": 3, "workers": []}
    forged = [{**host, "workers": some} for some in workers] + [{**host, "pid": "x"}, {**host, "host": 1}, [], 7, {}]
    for n, text in enumerate([b"", b"\xff", b"[" * 10**5, *(json.dumps(one) for one in forged)]):
        broker.wire.call("HSET", keys.pool, f"x{n}", text)
    broker.wire.call("HSET", keys.beats, "x", "many", b"\xff", "1")
    broker.wire.call("HSET", keys.prefix + "hw", "x", "many")
    broker.wire.call("HSET", keys.counts, "done", "many")
    assert broker.hosts() == [STATE]
    assert broker.counters()["h"] == 0
    assert broker.counts().done == 0
    assert list(broker.counts().hosts) == [STATE]
    assert broker.hello("c", "e1").workers == 1
    answer = broker.beat("h", 1, STATE, [], epoch)
    assert isinstance(answer, Beat)
    assert answer.counters["h"] == 1


# Steps among records that others have written


def test_entries_with_too_few_fields_do_not_stop_a_beat(broker: Broker, assert_drained: Drained) -> None:
    epoch = broker.register("h", 1, STATE, "e")
    for number in range(1, len(GOOD)):
        add(broker, dict(list(GOOD.items())[:number]))
    fetch(broker)
    assert isinstance(broker.beat("h", 1, STATE, [], epoch), Beat)
    broker.leave("h")
    assert_drained()


def test_streams_that_others_have_deleted_do_not_stop_a_beat(broker: Broker) -> None:
    epoch = broker.register("h", 1, STATE, "e")
    broker.wire.call("DEL", *broker.keys.streams)
    assert isinstance(broker.beat("h", 1, STATE, [], epoch), Beat)
    submit(broker, Call(1, (), 1, b"payload"))
    assert [got.n for got in broker.sift(fetch(broker))] == ["1"]
    broker.cancel("c", ["1"])


def test_a_call_whose_record_others_have_deleted_is_not_given_back(broker: Broker, assert_drained: Drained) -> None:
    submit(broker, Call(1, (), 1, b"payload"))
    (got,) = broker.sift(fetch(broker))
    broker.wire.call("DEL", broker.keys.open_calls("c"))
    assert broker.release("h:1", [got.entry]) == 0
    submit(broker)
    assert_drained()


def test_a_consumer_that_is_nobodys_does_not_stop_a_beat(broker: Broker) -> None:
    submit(broker, Call(1, (), 1, b"payload"))
    epoch = broker.register("h", 1, STATE, "e")
    for consumer in (":", ":x", ""):
        broker.wire.call("XGROUP", "CREATECONSUMER", broker.keys.normal, "w", consumer)
    broker.wire.call(*broker.fetch_command(":x", 1, block_ms=None))
    assert isinstance(broker.beat("h", 1, STATE, ["h:1"], epoch), Beat)
    (got,) = broker.sift(fetch(broker))
    assert got.n == "1"
    broker.leave("h")
    assert broker.wire.call("XINFO", "CONSUMERS", broker.keys.normal, "w") == []


@pytest.mark.parametrize("delay_s", [None, 5.0], ids=["ended", "parked"])
def test_a_report_sent_again_leaves_the_entry_alone_that_has_its_name_by_now(
    broker: Broker, delay_s: float | None
) -> None:
    """A stream that is emptied and made anew within a millisecond gives the same name twice."""
    submit(broker, Call(1, (), 1, b"payload"))
    (first,) = broker.sift(fetch(broker))
    assert broker.finish([Report(first, 0, 1, 0, b"reply", retry_delay_s=delay_s)]) == [True]
    submit(broker, Call(2, (), 1, b"payload"))
    (second,) = broker.sift(fetch(broker))
    again = first._replace(entry=second.entry)
    assert broker.finish([Report(again, 0, 1, 0, b"reply", retry_delay_s=delay_s)]) == [False]
    assert broker.sift(fetch(broker, own=True)) == [second]
    assert broker.cancel("c", ["1", "2"]) == (["2"] if delay_s is None else ["1", "2"])


@pytest.mark.parametrize("change", [{"s": "x"}, {"s": ""}, {"i": "x"}, {"i": ""}], ids=repr)
def test_a_forged_record_of_a_forged_entry_does_not_stop_a_beat(broker: Broker, change: dict[str, Any]) -> None:
    epoch = broker.register("h", 1, STATE, "e")
    id = add(broker, {**GOOD, **change})
    broker.wire.call("HSET", broker.keys.open_calls("c"), "1", b"1/" + id + b"|0")
    fetch(broker)
    assert broker.reclaim("h:1", Charge(f"1/{id.decode()}", 0, 1, b"reply")) == (0, 0)
    assert isinstance(broker.beat("h", 1, STATE, [], epoch), Beat)
    assert broker.wire.call("XLEN", broker.keys.normal) == 0
    broker.wire.call("DEL", broker.keys.open_calls("c"))


def test_what_others_have_parked_does_not_stop_a_beat_or_a_cancel(broker: Broker) -> None:
    epoch = broker.register("h", 1, STATE, "e")
    parked = [b"", b"\xc1", b"\x01", b"\x90", b"\x97" + b"\x01" * 7, b"\xdd\xff\xff\xff\xff", b"\x91" * 50]
    # Seven words, one of which is none, or of which the last is no stream of ours.
    parked += [b"\x97" + b"\xa1x" * at + b"\x90" + b"\xa1x" * (5 - at) + b"\xa10" for at in range(6)]
    parked += [b"\x97" + b"\xa1x" * 6 + last for last in (b"\x90", b"\xa1x", b"\xa13", b"\xa0", b"\xa202")]
    for n, content in enumerate(parked, 100):
        for due, name in (("1", f"c {n}"), ("inf", f"c 9{n}")):
            broker.wire.call("ZADD", broker.keys.delayed, due, name)
            broker.wire.call("HSET", broker.keys.prefix + "zp", name, content)
        broker.wire.call("HSET", broker.keys.open_calls("c"), f"9{n}", "z/2|0")
    assert isinstance(broker.beat("h", 1, STATE, [], epoch), Beat)
    assert len(broker.cancel("c", [f"9{n}" for n in range(100, 100 + len(parked))])) == len(parked)
    assert broker.wire.call("ZCARD", broker.keys.delayed) == 0
    assert [broker.wire.call("XLEN", key) for key in broker.keys.streams] == [0, 0, 0]
    found = broker.wire.call("KEYS", broker.keys.prefix + "s:*")
    assert sorted(found) == [key.encode() for key in broker.keys.streams]


@pytest.mark.parametrize("how", ["cancelled", "told together", "told one by one", "without a record"])
def test_what_lay_in_a_bundle_that_others_have_deleted_leaves_nothing_pending(broker: Broker, how: str) -> None:
    submit(broker, Call(2, (), 0, b"payload", names=("1", "2")))
    calls = broker.sift(fetch(broker))
    broker.wire.call("XDEL", broker.keys.normal, entry_of(calls[0].entry)[2:])
    several = Several(tuple(calls), b"m")
    if how == "cancelled":
        assert broker.cancel("c", ["1", "2"]) == ["1", "2"]
    elif how == "told together":
        assert broker.values(several) == [True, True]
    elif how == "told one by one":
        assert broker.finish([Report(call, 0, 1, 0, b"reply") for call in calls]) == [True, True]
    else:
        broker.wire.call("DEL", broker.keys.open_calls("c"))
        assert broker.values(several) == [False, False]
    assert broker.wire.call("XPENDING", broker.keys.normal, "w")[0] == 0


def test_values_sent_again_leave_the_entry_alone_that_has_their_name_by_now(broker: Broker) -> None:
    """A stream that is emptied and made anew within a millisecond gives the same name twice."""
    submit(broker, Call(1, (), 1, b"payload"))
    (first,) = broker.sift(fetch(broker))
    assert broker.values(Several((first,), b"m")) == [True]
    submit(broker, Call(3, (), 0, b"payload", names=("2", "3")))
    second = broker.sift(fetch(broker))
    again = first._replace(entry=second[0].entry)
    assert broker.values(Several((again,), b"m")) == [False]
    assert broker.sift(fetch(broker, own=True)) == second


def test_a_bundle_that_others_have_changed_stops_nobody(broker: Broker) -> None:
    """Its calls are taken from where they are said to stand, whatever is there."""
    epoch = broker.register("h", 1, STATE, "e")
    for change in ({"n": "x"}, {"n": "1," * 9000 + "1"}, {"s": "x"}, {"i": "x"}, {"i": "1"}, {"i": "2", "n": "1"}):
        id = add(broker, {**GOOD, "n": "1,2", "i": "0", **change})
        for name in ("1", "2"):
            broker.wire.call("HSET", broker.keys.open_calls("c"), name, b"1*" + id + b"+" + name.encode() + b"|0")
        fetch(broker)
        entry = f"1*{id.decode()}+1"
        assert broker.release("h:1", [entry]) in (0, 1)
        assert broker.reclaim("h:1", Charge(entry, 0, 1, b"reply"))[1] == 0
        assert isinstance(broker.beat("h", 1, STATE, [], epoch), Beat)
        assert broker.cancel("c", ["1", "2"]) == ["1", "2"]
        assert [broker.wire.call("XLEN", stream) for stream in broker.keys.streams] == [0, 0, 0]
    broker.leave("h")
    submit(broker)


def test_a_retry_whose_entry_others_have_deleted_does_not_stop_its_worker(broker: Broker) -> None:
    """Its report was refused with an error, and sent again for ever."""
    submit(broker, Call(1, (), 1, b"payload"))
    (got,) = broker.sift(fetch(broker))
    broker.wire.call("XDEL", broker.keys.normal, got.entry.partition("/")[2])
    assert broker.finish([Report(got, 0, 1, 0, b"reply", retry_delay_s=0.0)]) == [False]
    assert broker.counts().fetched == 0
    broker.cancel("c", ["1"])


@pytest.mark.parametrize("place", ["", "|", "|0", "1/1-1", "1/1-1|", "1/1-1|x", "*", "1*1-1+1|0"], ids=repr)
def test_a_record_of_a_call_that_others_have_spoilt_does_not_stop_its_worker(broker: Broker, place: str) -> None:
    submit(broker, Call(1, (), 0, b"payload", names=("1", "2")))
    calls = broker.sift(fetch(broker))
    broker.wire.call("HSET", broker.keys.open_calls("c"), "1", place)
    answers = broker.values(Several(tuple(calls), b"m"))
    assert answers[1] is True
    assert broker.finish([Report(calls[0], 0, 1, 0, b"reply")]) == [False]
    assert broker.refuse_call(calls[0], b"sealed") is False
    assert broker.release("h:1", [calls[0].entry]) == 0
    broker.wire.call("DEL", broker.keys.open_calls("c"))


@pytest.mark.parametrize("failed", [0, 1], ids=["value", "failure"])
def test_a_parked_call_that_others_have_deleted_does_not_stop_what_it_waits_for(broker: Broker, failed: int) -> None:
    submit(broker, Call(1, (), 1, b"payload"), Call(2, (), 1, b"payload", needs=("1",)))
    broker.wire.call("DEL", broker.keys.prefix + "zp")
    (got,) = broker.sift(fetch(broker))
    assert broker.finish([Report(got, 0, 1, failed, b"reply")]) == [True]
    assert broker.sift(fetch(broker)) == []
    broker.cancel("c", ["2"])
    assert broker.counts().delayed == 0


@pytest.mark.parametrize("failed", [0, 1], ids=["value", "failure"])
def test_what_others_say_of_who_waits_touches_no_call_that_does_not(broker: Broker, failed: int) -> None:
    submit(broker, Call(1, (), 1, b"payload"), Call(2, (), 1, b"payload"), Call(3, (), 1, b"payload", needs=("2",)))
    words = [word for name in ("2", "77", "x", "b") for word in (name, "")]
    broker.wire.call("HSET", broker.keys.blob("vc.1"), *words)
    first, second = broker.sift(fetch(broker))
    assert broker.finish([Report(first, 0, 1, failed, b"reply")]) == [True]
    assert broker.sift(fetch(broker, own=True)) == [second]
    assert broker.finish([Report(second, 0, 1, 0, b"reply")]) == [True]
    assert [got.n for got in broker.sift(fetch(broker))] == ["3"]
    broker.cancel("c", ["3"])
    broker.wire.call("DEL", *[broker.keys.blob(f"vc.{n}") for n in (1, 2)])
