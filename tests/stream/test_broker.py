"""What each step of the protocol does, one at a time. `test_protocol_model` has what they do together."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest

from nbqueue.stream import broker as broker_module
from nbqueue.stream.broker import Beat, Broker, Ended, Forgot, NeedBlobs, OtherEpoch, Taken
from nbqueue.stream.connect import Address, CommandError, Wire
from nbqueue.stream.keys import GROUP
from nbqueue.stream.records import Call, Charge, Fetched, HostState, Incoming, Report
from nbqueue.stream.server import PrivateServer

STATE = HostState("h", "laptop", 1)
EPOCH = "e1"


def call(n: int, items: int = 1, *digests: str, first: int = 0, stream: str = "1") -> Call:
    return Call(n, digests, items, b"payload %d" % n, first, stream=stream)


def submit(broker: Broker, *calls: Call) -> None:
    broker.hello("c", EPOCH)
    assert isinstance(broker.submit("c", EPOCH, calls, {d: b"blob" for c in calls for d in c.digests}), Taken)


def fetch(broker: Broker, consumer: str = "h:1", count: int = 10, *, own: bool = False) -> list[Fetched]:
    calls, gone = broker.parse_fetch(broker.wire.call(*broker.fetch_command(consumer, count, block_ms=None, own=own)))
    assert not gone
    return calls


def report(got: Fetched, first: int = 0, items: int = 1, **more: object) -> Report:
    return Report(got, first, items, int(more.pop("failed", 0)), b"reply", **more)  # type: ignore[arg-type]


def replies(broker: Broker, cursor: bytes = b"0") -> list[tuple[str, str, bytes]]:
    return [(m.n, m.kind, m.message) for m in broker.read_replies("c", cursor)]


@pytest.fixture
def full(broker: Broker) -> Callable[[], None]:
    """Make the server believe that its memory is full; the next test finds it as it was."""
    return lambda: broker.wire.call("CONFIG", "SET", "maxmemory", "1")


# The client's steps


def test_hello_keeps_the_first_epoch_and_says_where_the_client_stands(broker: Broker) -> None:
    assert broker.hello("c", EPOCH) == (EPOCH, 0, 0)
    broker.register("h", 3, STATE)
    submit(broker, call(4))
    assert broker.hello("c", "e2") == (EPOCH, 4, 3)


def test_a_call_comes_out_as_it_went_in(broker: Broker) -> None:
    submit(broker, call(1, 3, "d1", "d2", first=1))
    (got,) = fetch(broker)
    assert got == Fetched(got.entry, "c", "1", ("d1", "d2"), 3, 1, 0, 1, -1, b"payload 1")
    assert broker.blob("d1") == b"blob"


def test_a_submit_that_is_repeated_does_nothing_even_after_the_call_has_finished(
    broker: Broker, assert_drained: Callable[[], None]
) -> None:
    submit(broker, call(1))
    broker.finish([report(fetch(broker)[0])])
    assert broker.submit("c", EPOCH, [call(1)], {}) == (1, 0)
    assert fetch(broker) == []
    assert_drained()


def test_a_submit_to_a_server_without_memory_of_the_client_is_refused(broker: Broker) -> None:
    assert broker.submit("c", EPOCH, [call(1)], {}) == OtherEpoch()
    broker.hello("c", "another")
    assert broker.submit("c", EPOCH, [call(1)], {}) == OtherEpoch()


def test_blobs_that_are_missing_are_asked_for_and_nothing_is_taken(broker: Broker) -> None:
    broker.hello("c", EPOCH)
    answer = broker.submit("c", EPOCH, [call(1, 1, "d1", "d2")], {"d1": b"blob"})
    assert answer == NeedBlobs(("d2",))
    assert fetch(broker) == []
    assert broker.submit("c", EPOCH, [call(1, 1, "d1", "d2")], {"d2": b"blob"}) == (1, 0)


def test_a_blob_dies_only_after_the_last_call_that_needs_it(broker: Broker) -> None:
    submit(broker, call(1, 1, "d"), call(2, 1, "d"))
    one, two = fetch(broker)
    broker.finish([report(one)])
    assert broker.wire.call("TTL", broker.keys.blob("d")) == -1
    broker.finish([report(two)])
    assert broker.wire.call("TTL", broker.keys.blob("d")) == 3600


def test_replies_are_read_after_the_cursor_and_trimmed_up_to_it(broker: Broker) -> None:
    submit(broker, call(1), call(2))
    broker.finish([report(got) for got in fetch(broker)])
    first, second = broker.read_replies("c", b"0")
    assert first == Incoming(first.id, "1", "r", b"reply")
    assert broker.read_replies("c", first.id) == [second]
    broker.wire.call(*broker.trim_replies_command("c", first.id))
    assert broker.read_replies("c", b"0") == [second]


def test_replies_died_while_their_client_slept_with_other_calls_open(broker: Broker) -> None:
    """It was still known to the server when it woke, so it sent nothing again, and waited for them for ever."""
    what_it_has = broker.keys.prefix + "c:c", broker.keys.replies("c")

    def lifetimes() -> list[int]:
        return [broker.wire.call("TTL", key) for key in what_it_has]

    submit(broker, call(1), call(2))
    one, two = fetch(broker)
    broker.finish([report(one)])
    assert lifetimes() == [-1, -1]
    broker.finish([report(two)])
    assert min(lifetimes()) > 600_000
    submit(broker, call(3))
    assert lifetimes() == [-1, -1]
    assert broker.cancel("c", ["3"]) == ["3"]
    assert min(lifetimes()) > 600_000


@pytest.mark.parametrize("where", ["queued", "fetched", "delayed"])
def test_a_cancelled_call_is_forgotten(broker: Broker, where: str, assert_drained: Callable[[], None]) -> None:
    submit(broker, call(1, 1, "d"))
    held = [] if where == "queued" else fetch(broker)
    if where == "delayed":
        broker.finish([report(held[0], retry_delay_s=60.0)])
    assert broker.cancel("c", ["1", "2"]) == ["1"]
    assert broker.cancel("c", ["1", "2"]) == []
    assert broker.finish([report(got) for got in held]) == [False] * len(held)
    assert broker.counts().cancelled == 1
    assert_drained()


def test_the_host_of_a_cancelled_call_is_told_who_runs_it(broker: Broker) -> None:
    submit(broker, call(1))
    (got,) = fetch(broker, "h:7")
    broker.cancel("c", ["1"])
    answer = broker.wire.call(*broker.read_inbox_command("h", b"0", block_ms=1))
    assert [message for _, message in broker.parse_inbox(answer)] == [
        {"op": "cancel", "entry": got.entry, "consumer": "h:7"}
    ]


def test_counts_tell_queued_from_fetched_from_delayed(broker: Broker) -> None:
    broker.register("h", 2, STATE)
    submit(broker, *(call(n) for n in range(1, 7)))
    one, two, three = fetch(broker, count=3)
    broker.finish([report(one), report(two, failed=1), report(three, retry_delay_s=60.0)])
    fetch(broker, count=1)
    counts = broker.counts()
    assert (counts.queued, counts.fetched, counts.delayed) == (2, 1, 1)
    assert (counts.done, counts.failed, counts.retried) == (1, 1, 1)
    assert counts.hosts == (STATE,)
    assert broker.hello("w", "e").workers == 2


def test_asking_for_counts_leaves_nothing_without_a_lifetime(
    broker: Broker, assert_drained: Callable[[], None]
) -> None:
    broker.wire.call("FLUSHALL")
    assert broker.counts().queued == 0
    assert_drained()


# The worker's steps


def test_what_was_delivered_and_not_received_is_among_the_workers_own(broker: Broker) -> None:
    submit(broker, call(1))
    (lost,) = fetch(broker)
    assert fetch(broker) == []
    assert fetch(broker, own=True) == [lost]


def test_an_entry_that_was_deleted_while_pending_is_named_and_can_be_forgotten(broker: Broker) -> None:
    submit(broker, call(1))
    (got,) = fetch(broker)
    broker.wire.call("XDEL", broker.keys.normal, got.entry.partition("/")[2])
    answer = broker.wire.call(*broker.fetch_command("h:1", 1, block_ms=None, own=True))
    assert broker.parse_fetch(answer) == ([], [got.entry])
    assert broker.refuse([got.entry]) == 0
    assert fetch(broker, own=True) == []


def test_a_worker_that_is_killed_while_it_refuses_a_foreign_entry_leaves_none_in_the_stream(broker: Broker) -> None:
    """Between two commands the entry was acknowledged and not deleted: it stayed for good, and so did its stream."""
    entry = "1/" + broker.wire.call("XADD", broker.keys.normal, "*", "what", "is this").decode()
    broker.wire.call(*broker.fetch_command("h:1", 1, block_ms=None))
    assert _commands_of(broker, lambda: broker.refuse([entry])) == 1
    assert broker.wire.call("XLEN", broker.keys.normal) == 0
    assert broker.wire.call("TTL", broker.keys.normal) > 0


def test_a_client_that_is_killed_while_it_asks_a_host_leaves_no_inbox_for_ever(broker: Broker) -> None:
    assert _commands_of(broker, lambda: broker.poke("h")) == 1


def _commands_of(broker: Broker, step: Callable[[], object]) -> int:
    """How many commands a step sends: between two of them a process can die."""
    sent: list[tuple[object, ...]] = []
    send, broker.wire.send = broker.wire.send, lambda *commands: (sent.extend(commands), send(*commands))  # type: ignore
    try:
        step()
    finally:
        del broker.wire.send
    return len(sent)


def test_a_submit_that_lacks_blobs_leaves_no_stream_without_a_lifetime(broker: Broker) -> None:
    broker.hello("c", EPOCH)
    broker.wire.call("DEL", *broker.keys.streams)
    assert isinstance(broker.submit("c", EPOCH, [call(1, 1, "d")], {}), NeedBlobs)
    assert broker.wire.call("EXISTS", *broker.keys.streams) == 0


def test_a_user_who_may_not_make_a_group_is_told_so(server: PrivateServer, broker: Broker) -> None:
    broker.wire.call("ACL", "SETUSER", "guest", "on", ">pw", "~*", "+@all", "-xgroup")
    broker.wire.call("DEL", broker.keys.first)
    guest = Broker(Wire(Address(path=server.address.path, username="guest", password="pw"), timeout_s=5), broker.keys)
    guest.wire.connect()
    with pytest.raises(CommandError, match="can't run this command|no permissions"):
        guest.ensure_group()
    guest.wire.close()
    broker.wire.call("ACL", "DELUSER", "guest")


@pytest.mark.parametrize("lost", [["FLUSHALL"], ["SCRIPT", "FLUSH"]], ids=["data", "scripts"])
def test_a_step_mends_a_server_that_was_restarted(broker: Broker, lost: list[str]) -> None:
    broker.wire.call(*lost)
    assert broker.hello("c", EPOCH).epoch == EPOCH
    submit(broker, call(1))
    assert [got.n for got in fetch(broker)] == ["1"]


def test_a_fetch_from_a_server_without_the_group_says_nogroup(broker: Broker) -> None:
    broker.wire.call("FLUSHALL")
    with pytest.raises(CommandError, match="NOGROUP"):
        fetch(broker)
    broker.ensure_group()
    assert fetch(broker) == []


def test_finished_items_are_told_once(broker: Broker, assert_drained: Callable[[], None]) -> None:
    submit(broker, call(1, 3, "d"))
    (got,) = fetch(broker)
    half, rest = report(got, 0, 2, failed=1), report(got, 2, 1)
    assert broker.finish([half]) == [True]
    assert broker.finish([half]) == [True]
    assert broker.finish([rest]) == [True]
    assert broker.finish([rest]) == [False]
    assert replies(broker) == [("1", "r", b"reply")] * 2
    counts = broker.counts()
    assert (counts.done, counts.failed) == (2, 1)
    assert_drained()


def test_a_report_that_leaves_a_gap_does_not_count(broker: Broker) -> None:
    submit(broker, call(1, 3))
    (got,) = fetch(broker)
    assert broker.finish([report(got, 1, 2)]) == [False]
    assert replies(broker) == []


def test_of_two_attempts_the_old_one_may_succeed_but_not_fail_or_retry(broker: Broker) -> None:
    submit(broker, call(1))
    (old,) = fetch(broker, "h:1")
    broker.reclaim("h:1")
    (new,) = fetch(broker, "h:2")
    assert broker.finish([report(old, failed=1)]) == [False]
    assert broker.finish([report(old, retry_delay_s=0.0)]) == [False]
    assert replies(broker) == []
    assert broker.finish([report(old)]) == [True]
    assert broker.finish([report(new)]) == [False]
    assert replies(broker) == [("1", "r", b"reply")]


def test_a_retried_call_waits_and_comes_back_as_its_next_attempt(broker: Broker) -> None:
    broker.register("h", 1, STATE)
    submit(broker, call(1, 1, "d"))
    broker.finish([report(fetch(broker)[0], retry_delay_s=0.0)])
    assert fetch(broker) == []
    assert broker.beat("h", 1, STATE, ["h:1"]) == Beat(None, {"h": 1})
    (again,) = fetch(broker)
    assert (again.n, again.attempt, again.payload, again.digests) == ("1", 2, b"payload 1", ("d",))


def test_a_retried_item_of_a_chunk_becomes_a_call_of_its_own(broker: Broker) -> None:
    broker.register("h", 1, STATE)
    submit(broker, call(1, 3))
    (chunk,) = fetch(broker)
    assert broker.finish([report(chunk, 0, 2, retry_delay_s=0.0, retry_payload=b"item 1")]) == [True]
    broker.beat("h", 1, STATE, ["h:1"])
    (item,) = fetch(broker)
    assert (item.n, item.items, item.attempt, item.payload) == ("1.1", 1, 2, b"item 1")
    assert broker.finish([report(chunk, 2, 1), report(item)]) == [True, True]


def test_a_retry_is_not_early(broker: Broker) -> None:
    broker.register("h", 1, STATE)
    submit(broker, call(1))
    broker.finish([report(fetch(broker)[0], retry_delay_s=60.0)])
    answer = broker.beat("h", 1, STATE, ["h:1"])
    assert isinstance(answer, Beat)
    assert answer.due_s is not None
    assert 59 < answer.due_s <= 60
    assert fetch(broker) == []


def test_a_call_waits_for_what_it_needs_and_finds_it(broker: Broker, assert_drained: Callable[[], None]) -> None:
    needs = call(3, 1, "vc.1", "vc.2")._replace(needs=("1", "2"))
    broker.hello("c", EPOCH)
    assert broker.submit("c", EPOCH, [call(1), call(2), needs], {}) == Taken(3, 0)
    assert (broker.counts().queued, broker.counts().delayed) == (2, 1)
    assert [entry.entry for entry in broker.open_entries()][2:] == ["w/2"]
    first, second = fetch(broker)
    broker.finish([report(first)])
    assert fetch(broker) == []
    broker.finish([report(second)])
    (got,) = fetch(broker)
    assert (got.n, got.digests, got.payload) == ("3", ("vc.1", "vc.2"), b"payload 3")
    assert broker.blobs(got.digests) == [b"reply", b"reply"]
    broker.finish([report(got)])
    assert_drained()


def test_a_call_that_needs_what_has_ended_is_not_taken(broker: Broker) -> None:
    submit(broker, call(1), call(2))
    for got in fetch(broker):
        broker.finish([report(got)])
    needs = call(4, 1, "vc.1", "vc.3")._replace(needs=("1", "3"))
    assert broker.submit("c", EPOCH, [call(3), needs], {}) == Ended((1,))
    assert broker.counts().queued == 0
    given = needs._replace(needs=("3",))
    assert broker.submit("c", EPOCH, [call(3), given], {}) == NeedBlobs(("vc.1",))
    assert broker.submit("c", EPOCH, [call(3), given], {"vc.1": b"value"}) == Taken(4, 0)
    # Again: it was taken, whatever has become of what it needs.
    (got,) = fetch(broker)
    broker.finish([report(got)])
    assert broker.submit("c", EPOCH, [call(3), given], {}) == Taken(4, 0)
    broker.cancel("c", ["4"])


@pytest.mark.parametrize("how", ["fails", "is cancelled", "dies", "is refused"])
def test_what_waits_ends_with_what_it_needs(broker: Broker, how: str, assert_drained: Callable[[], None]) -> None:
    submit(broker, call(1), call(2, 1, "d", "vc.1")._replace(needs=("1",)))
    submit(broker, call(3, 1, "vc.2", "vc.1")._replace(needs=("2", "1")))
    (got,) = fetch(broker)
    if how == "fails":
        broker.finish([report(got, failed=1)])
    elif how == "is cancelled":
        assert broker.cancel("c", ["1", "2"]) == ["1"]
    elif how == "dies":
        broker.reclaim("h:1", Charge(got.entry, 0, -1, b"reply"))
    else:
        broker.refuse_call(got, b"refused")
    counts = broker.counts()
    assert (counts.delayed, counts.cancelled) == (0, 3 if how == "is cancelled" else 2)
    assert_drained()


def test_released_calls_go_first_and_are_not_charged(broker: Broker) -> None:
    submit(broker, call(1), call(2))
    (one,) = fetch(broker, "h:1", 1)
    assert broker.release("h:1", [one.entry]) == 1
    assert broker.release("h:1", [one.entry]) == 0
    again = fetch(broker, "h:2")
    assert [(got.n, got.attempt, got.crashes) for got in again] == [("1", 1, 0), ("2", 1, 0)]


def test_calls_come_in_the_order_of_their_priority(broker: Broker) -> None:
    submit(broker, *(call(n, stream=stream) for n, stream in enumerate("2102", 1)))
    assert [got.n for got in fetch(broker)] == ["3", "2", "1", "4"]


def test_of_each_stream_that_is_read_some_come(broker: Broker) -> None:
    submit(broker, *(call(n, stream=stream) for n, stream in enumerate("222111000", 1)))
    for streams, entries in [(1, "0"), (2, "01"), (3, "012")]:
        command = broker.fetch_command("h:1", 1, block_ms=None, streams=streams)
        calls, _ = broker.parse_fetch(broker.wire.call(*command))
        assert [got.entry[0] for got in calls] == list(entries)


@pytest.mark.parametrize(("stream", "comes_back_in"), [("0", "0"), ("1", "0"), ("2", "2")])
@pytest.mark.parametrize("why", ["released", "its worker died", "its host left", "retried", "an item retried"])
def test_what_comes_back_goes_first_and_what_is_low_stays_low(
    broker: Broker, stream: str, comes_back_in: str, why: str
) -> None:
    broker.register("h", 1, STATE)
    submit(broker, call(1, 2 if why == "an item retried" else 1, stream=stream))
    (got,) = fetch(broker)
    assert got.entry[0] == stream
    if why == "released":
        broker.release("h:1", [got.entry])
    elif why == "its worker died":
        broker.reclaim("h:1", Charge(got.entry, 0, 1, b""))
    elif why == "its host left":
        broker.leave("h")
    else:
        broker.finish([report(got, retry_delay_s=0.0, retry_payload=b"item")])
        broker.beat("h", 1, STATE, ["h:1"])
    (again,) = fetch(broker, "g:1")
    assert again.entry[0] == comes_back_in
    assert broker.counts().fetched == (2 if got.items > 1 else 1)


def test_counts_and_listings_know_every_stream(broker: Broker) -> None:
    submit(broker, *(call(n, stream=stream) for n, stream in enumerate("012012", 1)))
    held = fetch(broker, count=1)
    assert [got.n for got in held] == ["1", "2", "3"]
    counts = broker.counts()
    assert (counts.queued, counts.fetched) == (3, 3)
    assert [entry.n for entry in broker.open_entries()] == ["1", "4", "2", "5", "3", "6"]
    assert broker.fetched_entries() == {got.entry for got in held} == set(broker.pending("h:1"))


def test_calls_that_workers_have_or_had_are_told_from_those_that_none_has_seen(broker: Broker) -> None:
    submit(broker, *(call(n) for n in range(1, 1_502)))
    first, second = fetch(broker, count=2)
    broker.finish([report(first)])
    entries = broker.fetched_entries()
    assert entries == {second.entry}
    # The last has not reached the server.
    assert broker.fetched_calls("c", range(1, 1_503), entries) == {1, 2}
    assert broker.fetched_calls("another", [1, 2], entries) == set()
    broker.release("h:1", [second.entry])
    assert broker.fetched_calls("c", [1, 2], broker.fetched_entries()) == {1}


def test_a_worker_cannot_release_what_another_holds(broker: Broker) -> None:
    submit(broker, call(1))
    (got,) = fetch(broker, "h:1")
    assert broker.release("h:2", [got.entry]) == 0
    assert fetch(broker, "h:1", own=True) == [got]


def _double(broker: Broker) -> Fetched:
    """Put a second entry of an open call into the stream, as no step of ours does."""
    submit(broker, call(1))
    (got,) = fetch(broker, "h:1")
    fields: Sequence[str | bytes] = ("c", "c", "n", "1", "d", "", "i", "1", "s", "1 0 0 -1", "p", b"stray")
    broker.wire.call("XADD", broker.keys.normal, "*", *fields)
    (stray,) = fetch(broker, "h:2")
    assert stray.entry != got.entry
    return stray


def test_an_entry_that_is_not_the_current_one_is_dropped_when_taken_back(broker: Broker) -> None:
    _double(broker)
    assert broker.reclaim("h:2") == (0, 0)
    assert broker.wire.call("XLEN", broker.keys.normal) == 1


def test_an_entry_that_is_not_the_current_one_is_dropped_when_released(broker: Broker) -> None:
    stray = _double(broker)
    assert broker.release("h:2", [stray.entry]) == 0
    assert broker.wire.call("XLEN", broker.keys.normal) == 1


def test_only_the_current_attempt_may_announce(broker: Broker) -> None:
    submit(broker, call(1))
    (old,) = fetch(broker, "h:1")
    assert broker.announce("c", "1", old.entry, b"started")
    broker.reclaim("h:1")
    assert not broker.announce("c", "1", old.entry, b"progress")
    assert replies(broker) == [("1", "e", b"started")]


@pytest.mark.parametrize("name", broker_module._SCRIPTS)
def test_a_step_carries_the_functions_that_it_calls(name: str) -> None:
    text = broker_module.script(name).decode()
    for function, whole in broker_module.functions_of(broker_module._source("_common")):
        called = bool(function) and re.search(rf"(?<!function )\b{function}\(", text) is not None
        assert not called or whole in text
    assert ("local function take_back(" in text) == (name in ("beat", "leave", "reclaim"))


def test_calls_that_travel_together_cost_the_server_few_commands_each(broker: Broker) -> None:
    """References to blobs, counters and lifetimes are written once for all of them."""

    def cost(step: Callable[[], object]) -> int:
        before = _commands_run(broker)
        step()
        return _commands_run(broker) - before

    last = 0
    costs = []
    for many in (1, 10, 110):
        calls = [call(n, 1, "d1", "d2") for n in range(last + 1, last + many + 1)]
        last += many
        sent = cost(lambda calls=calls: submit(broker, *calls))
        reports = [report(got) for got in fetch(broker, count=many)]
        costs.append((sent, cost(lambda reports=reports: broker.finish(reports))))
    # The first calls of all find nothing there.
    sent, ended = (more - less for less, more in zip(*costs[1:], strict=True))
    assert (sent, ended) == (2 * 100, 5 * 100)


def _commands_run(broker: Broker) -> int:
    """By clients, and by scripts."""
    told = broker.wire.call("INFO", "commandstats").decode()
    return sum(int(calls) for calls in re.findall(r"(?m)^cmdstat_[^:]+:calls=([0-9]+)", told))


# The supervisor's steps


def test_a_crash_is_charged_to_the_item_that_was_running_and_the_rest_goes_back(broker: Broker) -> None:
    submit(broker, call(1, 3), call(2))
    running, waiting = fetch(broker, "h:1")
    broker.finish([report(running, 0, 1)])
    assert broker.reclaim("h:1", Charge(running.entry, 1, 1, b"died")) == (2, 0)
    assert broker.reclaim("h:1", Charge(running.entry, 1, 1, b"died")) == (0, 0)
    again, free = fetch(broker, "h:2")
    assert (again.attempt, again.crashes, again.first, again.charged) == (2, 1, 1, 1)
    assert (free.n, free.attempt, free.crashes) == (waiting.n, 1, 0)


def test_over_the_cap_the_guilty_item_ends_and_its_neighbours_do_not(
    broker: Broker, assert_drained: Callable[[], None]
) -> None:
    submit(broker, call(1, 3))
    for moved, ended in [(1, 0), (1, 1)]:
        (got,) = fetch(broker)
        assert broker.reclaim("h:1", Charge(got.entry, got.first, 1, b"died")) == (moved, ended)
    assert replies(broker) == [("1", "r", b"died")]
    (rest,) = fetch(broker)
    assert (rest.first, rest.crashes, rest.charged) == (1, 0, -1)
    assert broker.finish([report(rest, 1, 2)]) == [True]
    assert_drained()


def test_an_item_that_ended_behind_unreported_ones_is_marked_to_be_skipped(broker: Broker) -> None:
    submit(broker, call(1, 3))
    (got,) = fetch(broker)
    assert broker.reclaim("h:1", Charge(got.entry, 1, -1, b"timeout")) == (1, 1)
    (again,) = fetch(broker)
    assert (again.first, again.crashes, again.charged) == (0, -1, 1)


def test_items_that_end_out_of_order_end_once_if_each_skip_is_reported_before_the_next_item(
    broker: Broker, assert_drained: Callable[[], None]
) -> None:
    """An entry has room for one such item: the mark of the next one would take its place, and so on for ever."""
    submit(broker, call(1, 3))
    (got,) = fetch(broker)
    broker.reclaim("h:1", Charge(got.entry, 1, -1, b"timeout of 1"))
    (got,) = fetch(broker)
    assert broker.finish([report(got, 0, 2)]) == [True]
    assert broker.reclaim("h:1", Charge(got.entry, 2, -1, b"timeout of 2")) == (0, 1)
    assert [message for _, _, message in replies(broker)] == [b"timeout of 1", b"reply", b"timeout of 2"]
    assert_drained()


def test_an_item_that_has_ended_does_not_run_again_because_its_worker_died_while_loading(broker: Broker) -> None:
    submit(broker, call(1, 3))
    (got,) = fetch(broker, "h:1")
    broker.reclaim("h:1", Charge(got.entry, 1, -1, b"died"))
    (got,) = fetch(broker, "h:2")
    assert broker.finish([report(got, 0)]) == [True]
    broker.reclaim("h:2")
    (got,) = fetch(broker, "h:3")
    assert (got.first, got.charged, got.crashes) == (1, 1, -1)
    assert broker.reclaim("h:3", Charge(got.entry, 1, 1, b"died")) == (1, 0)
    (got,) = fetch(broker, "h:4")
    assert (got.first, got.charged, got.crashes) == (1, 1, -1)


def test_an_item_that_was_reported_before_its_worker_died_is_not_charged(broker: Broker) -> None:
    submit(broker, call(1, 2))
    (got,) = fetch(broker)
    broker.finish([report(got, 0, 1)])
    assert broker.reclaim("h:1", Charge(got.entry, 0, -1, b"died")) == (1, 0)


def test_a_beat_gives_back_what_its_own_dead_and_unregistered_hosts_hold_and_nothing_else(
    broker: Broker,
) -> None:
    submit(broker, *(call(n) for n in range(1, 5)))
    for host in ("h", "other"):
        broker.register(host, 1, STATE)
    for consumer in ("h:living", "h:dead", "other:1", "nobody:1"):
        fetch(broker, consumer, 1)
    broker.beat("h", 1, STATE, ["h:living"])
    assert [got.n for got in fetch(broker, "h:living")] in (["2", "4"], ["4", "2"])


def test_a_host_that_was_declared_dead_is_fenced(broker: Broker) -> None:
    epoch = broker.register("h", 1, STATE, EPOCH)
    assert broker.beat("h", 1, STATE, [], epoch) == Beat(None, {"h": 1})
    assert not broker.reap("h", 0), "it has beaten since"
    assert broker.reap("h", 1)
    assert not broker.reap("h", 1)
    assert broker.beat("h", 1, STATE, [], epoch) is None
    assert broker.hello("w", "e").workers == 0


def test_a_server_that_lost_its_data_is_told_from_a_fence(broker: Broker) -> None:
    epoch = broker.register("h", 1, STATE, EPOCH)
    assert broker.register("h", 1, STATE, "e2") == epoch, "its reply was lost"
    broker.wire.call("FLUSHALL")
    assert broker.beat("h", 1, STATE, [], epoch) == Forgot()
    assert broker.register("h", 1, STATE, "e3") == "e3"


def test_a_host_that_leaves_gives_back_what_it_holds(broker: Broker) -> None:
    broker.register("h", 1, STATE)
    submit(broker, call(1))
    fetch(broker, "h:1")
    broker.leave("h")
    assert [got.attempt for got in fetch(broker, "g:1")] == [1]
    assert broker.counts().hosts == ()


# A full memory


def test_a_full_server_refuses_calls_and_lets_all_else_go_on(broker: Broker, full: Callable[[], None]) -> None:
    submit(broker, call(1), call(2))
    one, two = fetch(broker, "h:1")
    full()
    with pytest.raises(CommandError, match="used memory > 'maxmemory'"):
        broker.submit("c", EPOCH, [call(3)], {})
    broker.connect()
    assert broker.hello("c", EPOCH).mark == 2
    broker.register("h", 1, STATE)
    assert isinstance(broker.beat("h", 1, STATE, ["h:1"]), Beat)
    assert broker.finish([report(one)]) == [True]
    assert broker.reclaim("h:1", Charge(two.entry, 0, -1, b"died")) == (0, 1)
    assert [message for _, _, message in replies(broker)] == [b"reply", b"died"]
    assert broker.counts().fetched == 0
    broker.poke("h")


def test_a_piece_of_a_chunk_can_be_reported_to_a_full_server(broker: Broker, full: Callable[[], None]) -> None:
    submit(broker, call(1, 3))
    (got,) = fetch(broker)
    full()
    assert broker.finish([report(got, 0, 2)]) == [True]
    assert broker.finish([report(got, 2, 1)]) == [True]


def test_an_error_among_several_replies_does_not_shift_the_ones_after_it(broker: Broker) -> None:
    broker.wire.call("SET", broker.keys.delayed, "no sorted set")
    with pytest.raises(CommandError):
        broker.counts()
    assert broker.wire.call("PING") == b"PONG"


def test_a_poke_arrives_in_the_inbox(broker: Broker) -> None:
    broker.poke("h")
    answer = broker.wire.call(*broker.read_inbox_command("h", b"0", block_ms=1))
    assert [message for _, message in broker.parse_inbox(answer)] == [{"op": "beat"}]
    assert broker.wire.call("TTL", broker.keys.inbox("h")) == 60


def test_a_blocked_read_can_be_ended_from_another_connection(
    broker: Broker, make_broker: Callable[..., Broker], wait_until: Callable[..., object]
) -> None:
    reader = make_broker()
    me = reader.wire.call("CLIENT", "ID")
    reader.wire.send(reader.read_replies_command("c", b"0", block_ms=2000))
    wait_until(lambda: b"flags=b" in broker.wire.call("CLIENT", "LIST", "ID", str(me)))
    broker.unblock(me)
    assert reader.parse_replies(reader.wire.receive()) == []


def test_queues_of_one_server_do_not_see_each_other(make_broker: Callable[..., Broker]) -> None:
    one, other = make_broker("one"), make_broker("other")
    submit(one, call(1))
    assert fetch(other) == []
    assert one.wire.call("XINFO", "GROUPS", one.keys.normal)[0][1] == GROUP.encode()
