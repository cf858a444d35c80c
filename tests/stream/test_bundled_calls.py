"""Several short calls in one entry: how each stands there, leaves and comes back, one rule at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nbqueue.stream.broker import Broker, Taken, entry_of, given_back
from nbqueue.stream.connect import CommandError
from nbqueue.stream.records import MOST_TOGETHER, Call, Charge, Fetched, HostState, Report, Several

STATE = HostState("h", "laptop", 1)
EPOCH = "e1"
Drained = Callable[[], None]


def bundle(*names: int, digests: tuple[str, ...] = (), stream: str = "1", payload: bytes = b"all") -> Call:
    return Call(names[-1], digests, 0, payload, stream=stream, names=tuple(map(str, names)))


def submit(broker: Broker, *calls: Call) -> None:
    broker.hello("c", EPOCH)
    assert isinstance(broker.submit("c", EPOCH, calls, {d: b"blob" for c in calls for d in c.digests}), Taken)


def fetch(broker: Broker, consumer: str = "h:1", *, own: bool = False, alone: bool = False) -> list[Fetched]:
    answer = broker.wire.call(*broker.fetch_command(consumer, 10, block_ms=None, own=own))
    return broker.sift(answer, alone=alone)


def names(calls: list[Fetched]) -> list[str]:
    return [call.n for call in calls]


def fetched(broker: Broker, *numbers: int, digests: tuple[str, ...] = ()) -> list[Fetched]:
    submit(broker, bundle(*numbers, digests=digests))
    return fetch(broker)


def report(got: Fetched, *, failed: int = 0, delay_s: float | None = None, payload: bytes = b"") -> Report:
    return Report(got, 0, 1, failed, b"reply", delay_s, payload)


def replies(broker: Broker) -> list[tuple[str, str, bytes]]:
    return [(m.n, m.kind, m.message) for m in broker.read_replies("c", b"0")]


def entries(broker: Broker) -> int:
    return sum(broker.wire.call("XLEN", stream) for stream in broker.keys.streams)


def bundled(broker: Broker) -> int:
    return int(broker.wire.call("HGET", broker.keys.counts, "bundled") or 0)


# Sent and fetched


def test_calls_of_a_bundle_come_out_one_by_one(broker: Broker) -> None:
    submit(broker, bundle(17, 18, 19, digests=("d",)))
    calls = fetch(broker)
    first = calls[0]
    id = first.entry[2:].partition("+")[0]
    assert calls == [Fetched(f"1*{id}+{n}", "c", n, ("d",), 1, 1, 0, 0, -1, b"all") for n in ("17", "18", "19")]
    assert all(call.bundled for call in calls)
    assert {entry_of(call.entry) for call in calls} == {f"1/{id}"} == set(broker.pending("h:1"))
    assert calls[1].payload is first.payload


def test_what_a_submit_took_before_is_left_out_of_a_bundle(broker: Broker) -> None:
    submit(broker, Call(1, (), 1, b"alone"), bundle(2, 3))
    assert broker.submit("c", EPOCH, [bundle(1, 2, 3, 4, 5)], {}) == Taken(5, 0)
    assert broker.submit("c", EPOCH, [bundle(1, 2, 3, 4, 5)], {}) == Taken(5, 0)
    assert names(fetch(broker)) == ["1", "2", "3", "4", "5"]
    assert entries(broker) == 3


def test_a_bundle_holds_its_blobs_for_each_of_its_calls(broker: Broker) -> None:
    calls = fetched(broker, 1, 2, digests=("d",))
    assert broker.wire.call("HGET", broker.keys.blob("d"), "refs") == b"2"
    broker.finish([report(calls[0])])
    assert broker.wire.call("TTL", broker.keys.blob("d")) == -1
    broker.finish([report(calls[1])])
    assert broker.wire.call("TTL", broker.keys.blob("d")) == 3600


@pytest.mark.parametrize("alone", [True, False])
def test_a_call_that_has_left_its_bundle_is_not_fetched_with_it(broker: Broker, alone: bool) -> None:
    submit(broker, bundle(1, 2, 3))
    broker.cancel("c", ["2"])
    assert names(fetch(broker, alone=alone)) == ["1", "3"]
    assert broker.counts().refused == 0


@pytest.mark.parametrize("alone", [True, False])
def test_a_bundle_that_all_have_left_while_it_was_fetched_runs_nothing(broker: Broker, alone: bool) -> None:
    submit(broker, bundle(1, 2))
    answer = broker.wire.call(*broker.fetch_command("h:1", 10, block_ms=None))
    broker.cancel("c", ["1", "2"])
    assert broker.sift(answer, alone=alone) == []
    assert broker.counts().refused == 0


def test_what_is_left_of_a_bundle_is_among_the_workers_own(broker: Broker) -> None:
    calls = fetched(broker, 1, 2, 3)
    broker.finish([report(calls[0])])
    assert fetch(broker, own=True) == calls[1:]


# Reported


def test_a_bundle_stays_until_its_last_call_has_ended(broker: Broker, assert_drained: Drained) -> None:
    calls = fetched(broker, 1, 2, 3)
    for number, call in enumerate(reversed(calls)):
        assert (entries(broker), bundled(broker)) == (1, 2 - number)
        assert broker.finish([report(call)]) == [True]
    assert broker.finish([report(call) for call in calls]) == [False] * 3
    assert replies(broker) == [(n, "r", b"reply") for n in ("3", "2", "1")]
    assert_drained()


def test_calls_of_a_bundle_succeed_and_fail_in_one_report(broker: Broker, assert_drained: Drained) -> None:
    calls = fetched(broker, 1, 2, 3)
    assert broker.finish([report(calls[0]), report(calls[1], failed=1), report(calls[2])]) == [True] * 3
    counts = broker.counts()
    assert (counts.done, counts.failed, bundled(broker)) == (2, 1, 0)
    assert_drained()


def test_a_retried_call_of_a_bundle_comes_back_alone_with_a_payload_of_its_own(broker: Broker) -> None:
    broker.register("h", 1, STATE)
    calls = fetched(broker, 1, 2, 3)
    assert broker.finish([report(calls[1], delay_s=0.0, payload=b"only 2")]) == [True]
    assert (broker.counts().delayed, bundled(broker)) == (1, 1)
    broker.beat("h", 1, STATE, ["h:1"])
    (again,) = fetch(broker)
    assert (again.n, again.items, again.attempt, again.payload, again.bundled) == ("2", 1, 2, b"only 2", False)
    assert names(fetch(broker, own=True)) == ["2", "1", "3"]


def test_a_late_success_ends_a_call_where_it_stands_now(broker: Broker, assert_drained: Drained) -> None:
    old = fetched(broker, 1, 2)
    broker.reclaim("h:1")
    new = fetch(broker, "h:2")
    assert names(new) == ["1", "2"]
    assert broker.finish([report(old[0], failed=1)]) == [False]
    assert broker.finish([report(old[0])]) == [True]
    assert fetch(broker, "h:2", own=True) == new[1:]
    assert broker.finish([report(call) for call in new]) == [False, True]
    assert_drained()


def test_several_values_are_told_in_one_message(broker: Broker, assert_drained: Drained) -> None:
    calls = fetched(broker, 1, 2, 3, digests=("d",))
    assert broker.values(Several(tuple(calls), b"all values")) == [True] * 3
    assert replies(broker) == [("1,2,3", "m", b"all values")]
    assert broker.counts().done == 3
    assert broker.wire.call("TTL", broker.keys.blob("d")) == 3600
    assert_drained()


def test_values_of_calls_from_bundles_and_of_calls_alone_can_be_told_together(
    broker: Broker, assert_drained: Drained
) -> None:
    submit(broker, bundle(1, 2), Call(3, (), 1, b"alone"), bundle(4, 5))
    calls = fetch(broker)
    assert broker.values(Several((calls[1], calls[2], calls[3]), b"m")) == [True] * 3
    assert replies(broker) == [("2,3,4", "m", b"m")]
    assert (entries(broker), bundled(broker)) == (2, 0)
    broker.finish([report(calls[0]), report(calls[4])])
    assert_drained()


def test_a_message_of_several_names_those_that_counted(broker: Broker, assert_drained: Drained) -> None:
    calls = fetched(broker, 1, 2, 3)
    broker.cancel("c", ["2"])
    assert broker.values(Several(tuple(calls), b"m")) == [True, False, True]
    assert broker.values(Several(tuple(calls), b"m")) == [False] * 3
    assert replies(broker) == [("1,3", "m", b"m")]
    assert (broker.counts().done, broker.counts().cancelled) == (2, 1)
    assert_drained()


def test_of_a_call_that_is_named_twice_among_several_one_value_counts(broker: Broker, assert_drained: Drained) -> None:
    one, two, three = fetched(broker, 1, 2, 3)
    assert broker.values(Several((one, two, one), b"m")) == [True, True, False]
    assert replies(broker) == [("1,2", "m", b"m")]
    assert (broker.counts().done, bundled(broker)) == (2, 0)
    broker.finish([report(three)])
    assert_drained()


def test_a_value_of_an_old_attempt_counts_among_several(broker: Broker, assert_drained: Drained) -> None:
    old = fetched(broker, 1, 2)
    broker.release("h:1", given_back(old))
    again = fetch(broker, "h:2")
    assert broker.finish([report(again[1], delay_s=60.0, payload=b"2")]) == [True]
    assert broker.values(Several(tuple(old), b"m")) == [True, True]
    assert broker.counts().delayed == 0
    assert_drained()


def test_whoever_needs_a_value_is_given_the_message_of_several(broker: Broker) -> None:
    calls = fetched(broker, 1, 2)
    submit(broker, Call(3, ("vc.1", "vc.2"), 1, b"needs both", needs=("1", "2")))
    assert broker.values(Several(tuple(calls), b"both values")) == [True, True]
    (got,) = fetch(broker)
    assert broker.blobs(got.digests) == [b"both values", b"both values"]
    broker.cancel("c", ["3"])


# Ended otherwise


def test_one_call_of_a_bundle_is_cancelled_and_its_host_told_which(broker: Broker) -> None:
    calls = fetched(broker, 1, 2, 3)
    assert broker.cancel("c", ["2"]) == ["2"]
    answer = broker.wire.call(*broker.read_inbox_command("h", b"0", block_ms=1))
    assert [message for _, message in broker.parse_inbox(answer)] == [
        {"op": "cancel", "entry": calls[1].entry, "consumer": "h:1"}
    ]
    assert names(fetch(broker, own=True)) == ["1", "3"]
    broker.cancel("c", ["1", "3"])


@pytest.mark.parametrize("held", [False, True])
def test_a_bundle_goes_with_the_last_of_its_calls_that_is_cancelled(
    broker: Broker, held: bool, assert_drained: Drained
) -> None:
    submit(broker, bundle(1, 2, 3, digests=("d",)))
    if held:
        fetch(broker)
    assert broker.cancel("c", ["1", "3"]) == ["1", "3"]
    assert (entries(broker), bundled(broker)) == (1, 0)
    assert broker.cancel("c", ["2"]) == ["2"]
    assert broker.wire.call("TTL", broker.keys.blob("d")) == 3600
    assert_drained()


def test_a_refused_call_of_a_bundle_ends_alone(broker: Broker, assert_drained: Drained) -> None:
    calls = fetched(broker, 1, 2)
    assert broker.refuse_call(calls[0], b"sealed")
    assert not broker.refuse_call(calls[0], b"sealed")
    assert replies(broker) == [("1", "x", b"sealed")]
    assert fetch(broker, own=True) == calls[1:]
    assert broker.refuse_call(calls[1], b"sealed")
    counts = broker.counts()
    assert (counts.refused, counts.failed) == (2, 2)
    assert_drained()


def test_a_refusal_of_a_call_that_has_left_its_bundle_ends_nothing(broker: Broker) -> None:
    calls = fetched(broker, 1, 2)
    broker.release("h:1", [calls[1].entry])
    assert not broker.refuse_call(calls[1], b"sealed")
    assert names(fetch(broker, "h:2")) == ["2"]
    assert replies(broker) == []


def test_a_bundle_that_is_put_on_the_stream_once_more_is_refused_as_one(
    broker: Broker, assert_drained: Drained
) -> None:
    submit(broker, bundle(1, 2))
    answer = broker.wire.call(*broker.fetch_command("h:1", 1, block_ms=None))
    fields = answer[0][1][0][1]
    broker.wire.call("XADD", broker.keys.first, "*", *fields)
    assert fetch(broker) == []
    assert broker.counts().refused == 1
    calls = fetch(broker, own=True)
    assert names(calls) == ["1", "2"]
    assert broker.values(Several(tuple(calls), b"m")) == [True, True]
    broker.wire.call("XADD", broker.keys.first, "*", *fields)
    assert fetch(broker) == []
    assert_drained()


@pytest.mark.parametrize(
    "n", ["", ",", "1,", ",1", "1,,2", "1,1", "1 2", "1,x", "1.0", "1,2.0", "-1", "9" * 30, "1," * 600 + "1"], ids=repr
)
@pytest.mark.parametrize("state", ["1 0 0 -1", "1 0 1 -1", "words"])
def test_a_bundle_of_a_foreign_shape_is_refused(broker: Broker, n: str, state: str, assert_drained: Drained) -> None:
    submit(broker, bundle(1, 2))
    calls = fetch(broker)
    words = ("c", "c", "n", n, "d", "", "i", "0", "s", state, "p", b"foreign")
    broker.wire.call("XADD", broker.keys.normal, "*", *words)
    assert fetch(broker) == []
    assert broker.counts().refused == 1
    assert fetch(broker, own=True) == calls
    broker.cancel("c", ["1", "2"])
    assert_drained()


def test_as_many_calls_as_a_bundle_may_hold_and_not_one_more(broker: Broker) -> None:
    assert len(fetched(broker, *range(10**15, 10**15 + MOST_TOGETHER))) == MOST_TOGETHER
    words = ("c", "c", "n", ",".join(map(str, range(MOST_TOGETHER + 1))), "d", "", "i", "0")
    broker.wire.call("XADD", broker.keys.normal, "*", *words, "s", "1 0 0 -1", "p", b"too many")
    assert fetch(broker, "h:2") == []
    assert broker.counts().refused == 1


# Back to be run


def test_calls_of_a_bundle_are_given_back_from_one_on_each_for_itself(broker: Broker) -> None:
    calls = fetched(broker, 17, 18, 19, 20)
    broker.finish([report(calls[2])])
    assert given_back(calls[1:]) == [calls[1].entry]
    assert broker.release("h:1", [calls[1].entry]) == 2
    assert broker.release("h:1", [calls[1].entry]) == 0
    assert fetch(broker, own=True) == calls[:1]
    again = fetch(broker, "h:2")
    assert [(got.n, got.attempt, got.crashes, got.entry[0]) for got in again] == [("18", 1, 0, "0"), ("20", 1, 0, "0")]
    assert len({entry_of(got.entry) for got in again}) == 2
    assert bundled(broker) == 0


def test_names_are_numbers_where_calls_are_given_back_from_one_on(broker: Broker) -> None:
    calls = fetched(broker, 9, 10, 11)
    assert broker.release("h:1", [calls[1].entry]) == 2
    assert names(fetch(broker, "h:2")) == ["10", "11"]


def test_a_whole_bundle_is_given_back_by_its_entry(broker: Broker, assert_drained: Drained) -> None:
    submit(broker, bundle(1, 2, stream="2"), Call(3, (), 1, b"alone", stream="2"))
    calls = fetch(broker)
    assert given_back(calls) == [calls[0].entry, calls[2].entry]
    assert broker.release("h:1", [entry_of(calls[0].entry)]) == 2
    assert broker.release("h:1", [entry_of(calls[0].entry)]) == 0
    again = fetch(broker, "h:2")
    assert [(got.n, got.entry[0]) for got in again] == [("1", "2"), ("2", "2")]
    broker.cancel("c", ["1", "2", "3"])
    assert_drained()


def test_a_worker_cannot_release_from_a_bundle_that_another_holds(broker: Broker) -> None:
    calls = fetched(broker, 1, 2)
    assert broker.release("h:2", given_back(calls)) == 0
    assert fetch(broker, own=True) == calls


def test_of_a_bundle_the_call_that_was_running_is_charged_and_the_others_stay_together(broker: Broker) -> None:
    calls = fetched(broker, 1, 2, 3, 4)
    broker.finish([report(calls[0])])
    assert broker.reclaim("h:1", Charge(calls[1].entry, 0, 1, b"died")) == (3, 0)
    assert broker.reclaim("h:1", Charge(calls[1].entry, 0, 1, b"died")) == (0, 0)
    again = fetch(broker, "h:2")
    told = [(got.n, got.attempt, got.crashes, got.charged) for got in again]
    assert told == [("2", 2, 1, 0), ("3", 1, 0, -1), ("4", 1, 0, -1)]
    assert len({entry_of(got.entry) for got in again[1:]}) == 1
    assert (entries(broker), bundled(broker)) == (2, 1)


def test_over_the_cap_a_call_of_a_bundle_ends_and_its_neighbours_do_not(
    broker: Broker, assert_drained: Drained
) -> None:
    submit(broker, bundle(1, 2, digests=("d",)), Call(3, ("vc.1",), 1, b"needs it", needs=("1",)))
    for moved, ended in [(2, 0), (1, 1)]:
        calls = fetch(broker)
        assert broker.reclaim("h:1", Charge(calls[0].entry, 0, 1, b"died")) == (moved, ended)
    assert replies(broker) == [("1", "r", b"died")]
    assert (broker.counts().failed, broker.counts().cancelled) == (1, 1)
    (rest,) = fetch(broker)
    assert (rest.n, rest.attempt, rest.crashes, rest.charged) == ("2", 1, 0, -1)
    assert broker.finish([report(rest)]) == [True]
    assert_drained()


def test_several_calls_of_a_bundle_that_ran_beside_each_other_are_each_charged(broker: Broker) -> None:
    calls = fetched(broker, 1, 2, 3, 4)
    charges = [Charge(call.entry, 0, cap, b"died") for call, cap in zip(calls, (1, -1, 1), strict=False)]
    assert broker.reclaim("h:1", *charges) == (3, 1)
    again = fetch(broker, "h:2")
    assert [(got.n, got.crashes) for got in again] == [("1", 1), ("3", 1), ("4", 0)]
    assert replies(broker) == [("2", "r", b"died")]
    assert bundled(broker) == 0


def test_a_charge_of_a_call_that_has_left_its_bundle_is_nobodys(broker: Broker) -> None:
    calls = fetched(broker, 1, 2)
    broker.finish([report(calls[0])])
    assert broker.reclaim("h:1", Charge(calls[0].entry, 0, -1, b"died")) == (1, 0)
    assert replies(broker) == [("1", "r", b"reply")]
    assert [(got.n, got.crashes) for got in fetch(broker)] == [("2", 0)]


@pytest.mark.parametrize("how", ["its worker is swept", "its host leaves", "its host is declared dead"])
def test_a_bundle_comes_back_with_its_host(broker: Broker, how: str) -> None:
    broker.register("h", 1, STATE)
    broker.register("g", 1, STATE)
    calls = fetched(broker, 1, 2, 3)
    broker.finish([report(calls[1])])
    if how == "its worker is swept":
        broker.beat("h", 1, STATE, [])
    elif how == "its host leaves":
        broker.leave("h")
    else:
        assert broker.reap("h", 0)
        broker.beat("g", 1, STATE, [])
    again = fetch(broker, "g:1")
    assert [(got.n, got.attempt, got.entry[0]) for got in again] == [("1", 1, "0"), ("3", 1, "0")]
    assert (entries(broker), bundled(broker)) == (1, 1)
    assert broker.fetched_entries() == {entry_of(again[0].entry)}
    assert broker.fetched_calls("c", [1, 2, 3], broker.fetched_entries()) == {1, 2, 3}


# Counted


def test_a_status_counts_calls_and_not_entries(broker: Broker) -> None:
    submit(broker, bundle(1, 2, 3), bundle(4, 5), Call(6, (), 1, b"alone"))
    assert (broker.counts().queued, broker.counts().fetched) == (6, 0)
    answer = broker.wire.call(*broker.fetch_command("h:1", 1, block_ms=None))
    calls = broker.sift(answer)
    # Of those that were fetched together one runs.
    assert (broker.counts().queued, broker.counts().fetched) == (5, 1)
    broker.values(Several(tuple(calls[:2]), b"m"))
    assert (broker.counts().queued, broker.counts().fetched) == (3, 1)
    broker.cancel("c", ["3", "4"])
    assert (broker.counts().queued, broker.counts().fetched) == (2, 0)


def test_the_number_of_calls_that_lie_together_outlives_the_other_counters(
    broker: Broker, assert_drained: Drained
) -> None:
    """It was forgotten after a week, and went below nothing when they ran."""
    submit(broker, bundle(1, 2, 3))
    assert broker.wire.call("TTL", broker.keys.counts) == -1
    broker.cancel("c", ["1"])
    assert broker.wire.call("TTL", broker.keys.counts) == -1
    submit(broker, Call(4, (), 1, b"alone"))
    broker.cancel("c", ["4"])
    assert broker.wire.call("TTL", broker.keys.counts) == -1
    broker.cancel("c", ["2"])
    assert broker.wire.call("TTL", broker.keys.counts) > 600_000
    broker.cancel("c", ["3"])
    assert_drained()


def test_listings_name_each_call_of_a_bundle(broker: Broker) -> None:
    calls = fetched(broker, 1, 2)
    assert [(entry.n, entry.entry, entry.items) for entry in broker.open_entries()] == [
        (call.n, call.entry, 1) for call in calls
    ]
    assert broker.announce("c", "2", calls[1].entry, b"started")
    assert not broker.announce("c", "2", calls[0].entry, b"started")


def test_a_bundle_is_reported_given_back_and_taken_back_while_memory_is_full(broker: Broker) -> None:
    submit(broker, bundle(1, 2, 3, 4, 5, 6))
    calls = fetch(broker)
    broker.wire.call("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(CommandError, match="used memory > 'maxmemory'"):
        broker.submit("c", EPOCH, [bundle(7, 8)], {})
    assert broker.finish([report(calls[0])]) == [True]
    assert broker.values(Several((calls[1],), b"m")) == [True]
    assert broker.refuse_call(calls[2], b"sealed")
    assert broker.cancel("c", ["4"]) == ["4"]
    assert broker.release("h:1", [calls[5].entry]) == 1
    assert broker.reclaim("h:1", Charge(calls[4].entry, 0, -1, b"died")) == (0, 1)
    assert [kind for _, kind, _ in replies(broker)] == ["r", "m", "x", "r"]
    assert names(fetch(broker)) == ["6"]
