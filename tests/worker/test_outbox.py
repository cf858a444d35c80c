"""What a worker has finished is kept until the server has answered, and travels in as few messages as may be."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator

import pytest

from nbqueue.client.sending import claims
from nbqueue.codec import messages, shelves
from nbqueue.codec.messages import ERROR, EXCEPTION, RETRYING, VALUE, CallBody, RepliesBody, ReplyBody
from nbqueue.codec.seal import Seal, body_of
from nbqueue.codec.segments import Guest
from nbqueue.errors import ResultNotSendable
from nbqueue.stream.connect import LOWEST_LIMIT_BYTES
from nbqueue.stream.records import MOST_TOGETHER, Fetched, Report, Several
from nbqueue.worker.outbox import SHORT_BYTES, Outbox
from nbqueue.worker.telling.prints import NOTHING, Said

PAYLOAD = Seal(b"s" * 32, "q").close("call", "c:1", messages.dump_call(CallBody("work", "f", "s", None, 0)))


def call(entry: str = "1/1-0", items: int = 9) -> Fetched:
    return Fetched(entry, "c", "1", ("f",), items, 1, 0, 0, -1, PAYLOAD)


@pytest.fixture
def outbox() -> Outbox:
    return Outbox(Seal(b"s" * 32, "q"), "host:0:1")


def reply(report: Report) -> ReplyBody:
    return messages.load_reply(body_of(report.reply))


def test_consecutive_items_travel_together_until_they_are_taken(outbox: Outbox) -> None:
    chunk = call()
    for item in range(3):
        outbox.note(chunk, item, VALUE, item * 10, True, 0.5)
    (report,) = outbox.reports()
    body = reply(report)
    assert (body.first, body.items, body.seconds, pickle.loads(body.packed)) == (0, 3, 1.5, [0, 10, 20])
    outbox.note(chunk, 3, VALUE, 30, True, 0.5)
    assert [r.first for r in outbox.reports()] == [0, 3]
    assert [r.first for r in outbox.reports()] == [0, 3], "they stay until they are settled"
    outbox.settle(outbox.reports(), [True, True])
    assert outbox.reports() == []
    assert not outbox.stale


def test_a_call_of_one_item_is_reported_like_any_other(outbox: Outbox) -> None:
    one = call(items=1)
    outbox.note(one, 0, VALUE, "value", True, 0.5)
    outbox.close()
    outbox.note_whole(one, "value", 0.5)
    item_by_item, whole = outbox.reports()
    assert reply(whole)._replace(started=0.0) == reply(item_by_item)._replace(started=0.0)
    assert abs(reply(whole).started - reply(item_by_item).started) < 5
    assert whole._replace(reply=b"") == item_by_item._replace(reply=b"")


def test_a_call_of_one_item_does_not_overtake_what_ended_before(outbox: Outbox) -> None:
    outbox.note(call(), 0, VALUE, 1, True, 0.0)
    outbox.note_whole(call("1/2-0", items=1), 2, 0.0)
    assert [report.call.entry for report in outbox.reports()] == ["1/1-0", "1/2-0"]


def test_items_of_another_call_are_another_report(outbox: Outbox) -> None:
    outbox.note(call(), 8, VALUE, 1, True, 0.0)
    outbox.note(call("1/2-0"), 0, EXCEPTION, b"error", False, 0.0)
    first, second = outbox.reports()
    assert (first.failed, second.failed) == (0, 1)
    assert (second.call.entry, reply(second).frames) == ("1/2-0", (b"error",))


def test_a_report_that_no_longer_counts_makes_its_entry_stale(outbox: Outbox) -> None:
    outbox.note(call(), 0, VALUE, 1, True, 0.0)
    outbox.settle(outbox.reports(), [False])
    assert outbox.stale == {"1/1-0"}


def test_a_retry_ends_its_report_in_the_same_step(outbox: Outbox) -> None:
    """The courier takes reports at any time: one without the delay would lose the item."""
    chunk = call()
    outbox.note(chunk, 0, VALUE, 1, True, 0.0)
    outbox.note_retry(chunk, 1, b"error", 0.1, 0.25, b"its own message")
    outbox.note(chunk, 2, VALUE, 3, True, 0.0)
    retried, rest = outbox.reports()
    assert (retried.items, retried.retry_delay_s, retried.retry_payload) == (2, 0.25, b"its own message")
    assert reply(retried).kinds == bytes([VALUE, RETRYING])
    assert (rest.first, rest.retry_delay_s) == (2, None)


def test_a_piece_is_due_when_it_is_old_or_large(outbox: Outbox) -> None:
    assert not outbox.is_due(1e9, 0.1), "there is none"
    outbox.note(call(), 0, VALUE, "x", True, 0.0)
    assert outbox.is_due(1e9, 0.1)
    assert not outbox.is_due(0.0, 0.1)
    outbox.note(call(), 1, VALUE, b"x" * 9_000_000, True, 0.0)
    assert outbox.is_due(0.0, 0.1)


def test_texts_that_came_together_count_as_large(outbox: Outbox) -> None:
    chunk = call()
    outbox.note_plain(chunk, 0, [1, 2], 0.0, {int})
    assert not outbox.is_due(0.0, 0.1)
    outbox.note_plain(chunk, 2, ["x" * 5_000_000, 3, b"x" * 5_000_000], 0.5, {str, int, bytes})
    assert outbox.is_due(0.0, 0.1)
    (report,) = outbox.reports()
    assert (reply(report).kinds, report.items, reply(report).seconds) == (b"", 5, 0.5)


def test_a_report_that_is_not_let_in_is_split_and_only_an_item_that_is_too_large_alone_fails(outbox: Outbox) -> None:
    chunk = call()
    large = b"y" * (LOWEST_LIMIT_BYTES // 3)
    for item in range(4):
        outbox.note(chunk, item, VALUE, large, True, 1.0)
    outbox.note_retry(chunk, 4, b"error", 1.0, 0.5, b"again")
    (whole,) = outbox.reports()
    parts = outbox.with_smaller(len(whole.reply))
    assert (parts[0].first, parts[0].items) == (0, 1)
    assert sum(r.items for r in parts) == 5
    assert [r.retry_payload for r in parts if r.retry_delay_s is not None] == [b"again"] == [parts[-1].retry_payload]
    frames = [frame for r in parts for frame in reply(r).frames]
    assert [pickle.loads(frame) for frame in frames[:4]] == [large] * 4
    (alone, *_) = [r for r in parts if r.items == 1]
    outbox.with_smaller(len(alone.reply))
    failed = [r for r in outbox.reports() if r.failed]
    assert failed
    body = reply(failed[0])
    assert body.kinds == bytes([ERROR])
    assert isinstance(pickle.loads(body.frames[0]), ResultNotSendable)


def test_what_items_printed_stays_theirs_when_a_report_is_split(outbox: Outbox) -> None:
    chunk = call()
    for item in range(4):
        said = Said([(1, 300_000, ((0, b"%d" % item * 300_000),))], [])
        outbox.note(chunk, item, VALUE, item, True, 0.0, said if item != 1 else NOTHING)
    (report,) = outbox.reports()
    parts = outbox.with_smaller(len(report.reply))
    assert all(len(part.reply) < LOWEST_LIMIT_BYTES for part in parts)
    printed = {
        body.first + offset: pieces[0][1][:1]
        for body in map(reply, parts)
        for offset, _, _, pieces in body.printed
    }
    assert printed == {0: b"0", 2: b"2", 3: b"3"}
    assert [pickle.loads(frame) for body in map(reply, parts) for frame in body.frames] == [0, 1, 2, 3]


def test_an_item_alone_that_is_too_large_gives_up_what_it_printed_first(outbox: Outbox) -> None:
    said = Said([(1, 600_000, ((0, b"x" * 600_000),))], [{"bytes": 600_000, "data": "y" * 600_000}])
    outbox.note(call(items=1), 0, VALUE, b"v" * 200_000, False, 0.0, said)
    (report,) = outbox.reports()
    (smaller,) = outbox.with_smaller(len(report.reply))
    body = reply(smaller)
    assert (body.printed, body.shown) == (((0, 1, 600_000, ()),), ())
    assert body.frames == (b"v" * 200_000,), "its value is kept"


# Calls of bundles


def one_of(n: int, entry: str = "1*1-0", client: str = "c", attempt: int = 1, digests: str = "f") -> Fetched:
    """A call of a bundle."""
    return Fetched(f"{entry}+{n}", client, str(n), (digests,), 1, attempt, 0, 0, -1, PAYLOAD)


def together(report: Report | Several, client: str = "c") -> RepliesBody:
    assert isinstance(report, Several)
    return messages.load_replies(Seal(b"s" * 32, "q").open("replies", client, report.message))


def test_calls_of_bundles_that_gave_short_values_are_reported_together(outbox: Outbox) -> None:
    for n in (5, 6):
        outbox.note_bundled(one_of(n), n * 10, 0.5)
    outbox.note_bundled(one_of(9, "2*8-0"), "x" * SHORT_BYTES, 0.25)
    assert outbox.waiting
    (report,) = outbox.reports()
    body = together(report)
    assert (body.names, pickle.loads(body.packed)) == (("5", "6", "9"), [50, 60, "x" * SHORT_BYTES])
    assert (body.worker, body.attempt, body.seconds) == ("host:0:1", 1, (0.5, 0.5, 0.25))
    assert body.started[0] <= body.started[1] <= body.started[2]
    assert isinstance(report, Several)
    assert [each.entry for each in report.calls] == ["1*1-0+5", "1*1-0+6", "2*8-0+9"]


def test_what_ends_alone_is_reported_like_any_call(outbox: Outbox) -> None:
    outbox.note_bundled(one_of(5), 50, 0.5)
    outbox.note_whole(one_of(5), 50, 0.5)
    bundled, whole = sorted(outbox.reports(), key=lambda report: reply(report).started)  # type: ignore[arg-type]
    assert reply(bundled)._replace(started=0.0) == reply(whole)._replace(started=0.0)
    assert bundled._replace(reply=b"") == whole._replace(reply=b"")


def test_a_long_value_travels_alone(outbox: Outbox) -> None:
    outbox.note_bundled(one_of(5), 50, 0.5)
    outbox.note_bundled(one_of(6), "x" * (SHORT_BYTES + 1), 0.5)
    outbox.note_bundled(one_of(7), 70, 0.5)
    long, several = outbox.reports()
    assert isinstance(long, Report)
    assert pickle.loads(reply(long).packed) == ["x" * (SHORT_BYTES + 1)]
    assert together(several).names == ("5", "7")


def test_calls_of_several_kinds_are_not_reported_together(outbox: Outbox) -> None:
    """Of one message there is one client, and one attempt; and what is said of the blobs holds for all."""
    different = [{}, {"client": "d"}, {"attempt": 2}, {"digests": "g"}]
    for at in range(2):
        for kind, difference in enumerate(different):
            outbox.note_bundled(one_of(10 * kind + at, **difference), at, 0.0)  # type: ignore[arg-type]
    reports = outbox.reports()
    clients = ["c", "d", "c", "c"]
    assert [together(each, client).names for each, client in zip(reports, clients, strict=True)] == [
        ("0", "1"), ("10", "11"), ("20", "21"), ("30", "31")
    ]  # fmt: skip
    assert [together(each, client).attempt for each, client in zip(reports, clients, strict=True)] == [1, 1, 2, 1]


def test_no_more_are_reported_together_than_a_step_takes(outbox: Outbox) -> None:
    number = 2 * MOST_TOGETHER + 1
    for n in range(number):
        outbox.note_bundled(one_of(n), n, 0.0)
    names = [together(each).names for each in outbox.reports()]
    assert [len(each) for each in names] == [MOST_TOGETHER, MOST_TOGETHER, 1]
    assert [n for each in names for n in each] == [str(n) for n in range(number)]


def test_calls_that_were_reported_together_are_kept_until_they_are_settled(outbox: Outbox) -> None:
    outbox.note_bundled(one_of(5), 50, 0.0)
    outbox.note_bundled(one_of(6), 60, 0.0)
    (first,) = outbox.reports()
    outbox.note_bundled(one_of(7), 70, 0.0)
    assert outbox.reports()[0] is first, "what was sent once is the same when it is sent again"
    assert len(outbox.reports()) == 2
    outbox.settle_several(first, [True, False])  # type: ignore[arg-type]
    assert outbox.stale == {"1*1-0+6"}
    (second,) = outbox.reports()
    outbox.settle([second], [True])  # type: ignore[list-item]
    assert not outbox.reports()
    assert not outbox.waiting


def test_what_ended_before_a_call_of_a_bundle_is_not_kept_open_by_it(outbox: Outbox) -> None:
    outbox.note(call(), 0, VALUE, 1, True, 0.0)
    outbox.note_bundled(one_of(5), 50, 0.0)
    outbox.note(call("1/2-0"), 0, VALUE, 2, True, 0.0)
    assert {report.call.entry for report in outbox.reports()} == {"1/1-0", "1/2-0", "1*1-0+5"}  # type: ignore[union-attr]


def test_calls_that_were_reported_together_are_small_enough_for_any_server(outbox: Outbox) -> None:
    for n in range(MOST_TOGETHER):
        outbox.note_bundled(one_of(n), "ä" * SHORT_BYTES, 0.0)
    (report,) = outbox.reports()
    assert isinstance(report, Several)
    assert len(report.message) < LOWEST_LIMIT_BYTES // 4
    assert outbox.with_smaller(1) == [report], "so it is never split"


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[shelves.Own]:
    """A client's shared memory, and afterwards a look at what is left in it."""
    if not shelves.base():
        pytest.skip("there is no shared memory")
    made = shelves.Own(shelves.base())
    monkeypatch.setattr(shelves, "_ours", made)
    yield made
    made.let_go()
    left = {name for name in os.listdir(made.path) if name not in ("lock", "pool")}
    made.remove()
    assert not left


def test_many_plain_values_travel_through_shared_memory_as_one(outbox: Outbox, own: shelves.Own) -> None:
    outbox.shelf_of = lambda call: Guest(own, call.client, call.n)
    values = [bytes([i]) * 50_000 for i in range(10)]
    outbox.note_plain(call(items=10), 0, values, 0.5, {bytes})
    (report,) = outbox.reports()
    assert len(report.reply) < 1_000
    body = claims.claimed(reply(report))
    assert (pickle.loads(body.packed), body.items, body.kinds) == (values, 10, b"")


def test_plain_values_that_cannot_lie_in_shared_memory_travel_in_the_message(outbox: Outbox) -> None:
    full = Guest.__new__(Guest)
    full.shelve = lambda _parts: None  # type: ignore[method-assign]
    outbox.shelf_of = lambda _call: full
    values = [bytes([i]) * 50_000 for i in range(10)]
    outbox.note_plain(call(items=10), 0, values, 0.5, {bytes})
    assert pickle.loads(reply(outbox.reports()[0]).packed) == values


def test_a_report_that_is_split_for_what_it_printed_brings_its_values_back_from_shared_memory(
    outbox: Outbox, own: shelves.Own
) -> None:
    outbox.shelf_of = lambda call: Guest(own, call.client, call.n)
    values = [bytes([i]) * 50_000 for i in range(10)]
    outbox.note_plain(call(items=10), 0, values, 0.5, {bytes})
    first, *more = [reply(report) for report in outbox.with_smaller(len(outbox.reports()[0].reply))]
    assert [pickle.loads(frame) for body in (first, *more) for frame in body.frames] == values
    assert not any(body.large for body in (first, *more))
    # Nobody has claimed what lay there, and its call is over.
    own.sweep_results("c", lambda _n: False)
