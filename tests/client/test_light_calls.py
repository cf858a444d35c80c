"""Short calls that travel together: how many, what they carry, and what one message says of several."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from nbqueue.client.sending import graph, history
from nbqueue.client.sending.history import History
from nbqueue.client.sending.listener import Link, OpenCall
from nbqueue.client.sending.outgoing import TOGETHER_S
from nbqueue.codec import messages
from nbqueue.codec.functions import dump_frame
from nbqueue.codec.messages import CallBody, RepliesBody, ReplyBody
from nbqueue.codec.seal import Seal
from nbqueue.errors import BadMessage
from nbqueue.stream.broker import Broker
from nbqueue.stream.connect import Address
from nbqueue.stream.keys import Keys, value_name
from nbqueue.stream.records import MOST_TOGETHER, Call

KEYS = Keys.of("tasks", "0a1b2c3d")
SEAL = Seal(bytes(range(32)), KEYS.prefix)
LIGHT = CallBody("f", "code", "setting", None, 0)


class Caller:
    """Takes what the listener hands on."""

    name = "f"
    many = False
    in_history = ""

    def __init__(self) -> None:
        self.values: list[tuple[Any, ...]] = []
        self.replies: list[ReplyBody] = []
        self.broken: list[Exception] = []

    def on_value(self, value: Any, worker: str, attempt: int, seconds: float) -> None:
        self.values.append((value, worker, attempt, seconds))

    def on_reply(self, call: OpenCall, item: int, body: ReplyBody) -> bool:
        self.replies.append(body)
        return True

    def on_event(self, call: OpenCall, item: int, event: Mapping[str, Any]) -> None:
        raise AssertionError("nothing is told of light calls here")

    def on_broken(self, call: OpenCall, item: int, error: Exception) -> bool:
        self.broken.append(error)
        return True

    def unanswered(self, call: OpenCall) -> Sequence[int]:
        return (0,)


@pytest.fixture
def link() -> Iterator[Link]:
    link = Link("tasks", lambda: Address(path="/nowhere"), KEYS, SEAL)
    yield link
    os.close(link._wake_r)
    os.close(link._wake_w)


def made(n: int, light: CallBody | None = LIGHT, sink: Caller | None = None) -> OpenCall:
    """A call of ``f(n)``."""
    payload = dump_frame(((n,), {}))
    if light is None:
        payload = SEAL.close("call", f"c:{n}", messages.dump_call(LIGHT._replace(frames=(payload,))))
    return OpenCall(Call(n, ("code", "setting"), 1, payload), {}, sink or Caller(), sent_at=100.0, light=light)


def opened(link: Link, *numbers: int, light: CallBody | None = LIGHT) -> list[Any]:
    """The callers of open calls of these numbers."""
    for n in numbers:
        link._open[n] = made(n, light)
    return [link._open[n].sink for n in numbers]


def replies(*names: str, values: Sequence[Any] | None = None) -> RepliesBody:
    packed = pickle.dumps(list(map(int, names)) if values is None else values)
    times = tuple(float(at) for at in range(len(names)))
    return RepliesBody(names, packed, "h:0:1", 2, times, tuple(0.25 + at for at in times))


def arrive(link: Link, names: str, message: bytes, kind: bytes = b"m") -> None:
    row = b"1-0", [b"n", names.encode(), b"k", kind, b"p", message]
    link._dispatch(Broker.parse_replies([(b"r", [row])]))


def sealed(link: Link, body: RepliesBody) -> bytes:
    return SEAL.close("replies", link.client, messages.dump_replies(body))


# How many leave together


def test_as_many_leave_together_as_are_done_in_a_moment(link: Link) -> None:
    opened(link, *range(10_000))
    link.workers = 2
    assert link._most_together(LIGHT) == 1, "nothing is known of it yet"
    for pace_s, number in ((TOGETHER_S / 8, 8), (TOGETHER_S / 1.5, 1), (60.0, 1), (0.0, MOST_TOGETHER)):
        link._paces["code"] = pace_s
        assert link._most_together(LIGHT) == number
    assert link._most_together(LIGHT._replace(function="other")) == 1


@pytest.mark.parametrize(
    ("calls", "workers", "number"), [(1, 1, 1), (10, 1, 5), (10, 5, 1), (80, 2, 20), (80, 0, 40), (4, 64, 1)]
)
def test_no_worker_is_left_without_calls_since_they_travel_together(
    link: Link, calls: int, workers: int, number: int
) -> None:
    opened(link, *range(calls))
    link.workers, link._paces["code"] = workers, 0.0
    assert link._most_together(LIGHT) == number


def test_that_a_function_takes_long_is_believed_at_once_and_that_it_is_short_by_and_by(link: Link) -> None:
    def pace() -> float:
        return link._paces["code"]

    link._note_pace("code", 0.0001)
    assert pace() == 0.0001
    link._note_pace("code", 2.0)
    assert pace() == 2.0
    link._note_pace("code", 0.0001)
    assert 0.0001 < pace() < 2.0
    for _ in range(100):
        link._note_pace("code", 0.0001)
    assert pace() == 0.0001


def test_paces_are_learned_from_replies_of_one_call_and_of_several(link: Link) -> None:
    opened(link, 1, 2, 3)
    body = ReplyBody(0, 1, b"", pickle.dumps([7]), (), "w", 1, 0.0, 0.5)
    arrive(link, "1", SEAL.close("reply", f"{link.client}:1", messages.dump_reply(body)), b"r")
    assert link._paces == {"code": 0.5}
    arrive(link, "2,3", sealed(link, replies("2", "3")))
    assert link._paces == {"code": 0.75}, "what they took on average"
    for n in range(5_000):
        link._note_pace(f"f{n}", 1.0)
    assert len(link._paces) <= 1_000


def test_one_that_leaves_alone_is_a_call_like_any_other(link: Link) -> None:
    call = made(7)
    sent = link._sealed([call])
    assert (sent.n, sent.items, sent.names) == (7, 1, ())
    body = messages.load_call(SEAL.open("call", f"{link.client}:7", sent.payload))
    assert body == LIGHT._replace(frames=(call.call.payload,)) == call.body()
    assert call.call.payload == made(7).call.payload, "it can be sent again, with others"


def test_several_that_leave_together_are_named_and_each_has_its_arguments(link: Link) -> None:
    calls = [made(n) for n in (7, 8, 11)]
    sent = link._sealed(calls)
    assert (sent.n, sent.items, sent.names, sent.digests) == (11, 0, ("7", "8", "11"), ("code", "setting"))
    each = messages.from_each(messages.load_call(SEAL.open("calls", link.client, sent.payload)))
    assert each == {str(call.call.n): call.body() for call in calls}
    # Nobody can make one call of it.
    for kind, id in (("call", f"{link.client}:7"), ("call", f"{link.client}:11"), ("calls", "d" * 16)):
        with pytest.raises(BadMessage):
            SEAL.open(kind, id, sent.payload)


def test_a_bundle_that_does_not_hold_what_it_names_is_refused() -> None:
    for names in ((), ("1",), ("1", "2", "3")):
        with pytest.raises(BadMessage, match="does not hold what it names"):
            messages.from_each(LIGHT._replace(frames=(b"x", b"y"), names=names))


# What one message says of several


def test_each_is_told_its_value_and_what_it_took(link: Link) -> None:
    one, two, three = opened(link, 1, 2, 3)
    arrive(link, "1,3", sealed(link, replies("1", "2", "3", values=["a", "b", "c"])))
    # The second had left before, so the server has not named it.
    assert (one.values, three.values) == ([("a", "h:0:1", 2, 0.25)], [("c", "h:0:1", 2, 2.25)])
    assert not two.values
    assert list(link._open) == [2]
    told = link.history.last(10)
    assert [(task.arguments, task.outcome, task.attempts, task.started, task.seconds) for task in told] == [
        ("1", "done", 2, 0.0, 0.25),
        ("3", "done", 2, 2.0, 2.25),
    ]
    assert link.refused == 0


def test_a_second_message_about_calls_that_are_over_is_passed_over(link: Link) -> None:
    one, two, three = opened(link, 1, 2, 3)
    message = sealed(link, replies("1", "2"))
    arrive(link, "1,2", message)
    for names in ("1,2", "2", "1,77"):
        arrive(link, names, message)
    assert [len(each.values) for each in (one, two, three)] == [1, 1, 0]
    assert len(link.history.last(10)) == 2
    assert link.refused == 0
    assert not any(each.broken for each in (one, two, three))


def test_one_of_several_that_was_cancelled_does_not_keep_the_others_from_ending(link: Link) -> None:
    one, two, three = opened(link, 1, 2, 3)
    link.cancel([link._open[2]])
    arrive(link, "1,2,3", sealed(link, replies("1", "2", "3")))
    assert [len(each.values) for each in (one, two, three)] == [1, 0, 1]
    assert not link._open


def test_a_call_that_is_named_twice_ends_once(link: Link) -> None:
    """Names are not signed: whoever can write to the server can say one twice."""
    (one,) = opened(link, 1)
    arrive(link, "1,1,01", sealed(link, replies("1", "2")))
    assert len(one.values) == len(link.history.last(10)) == 1


@pytest.mark.parametrize("wrong", ["noise", "kind", "client", "key", "others", "not light", "no reply", "too few"])
def test_a_message_that_cannot_be_trusted_ends_each_call_that_it_names_visibly(link: Link, wrong: str) -> None:
    callers = opened(link, 1, 2)
    (untouched,) = opened(link, 3)
    data = messages.dump_replies(replies("1", "2"))
    reply = messages.dump_reply(ReplyBody(0, 1, b"", pickle.dumps([7]), (), "w", 1, 0.0, 0.0))
    if wrong == "not light":
        link._open[2] = made(2, None, callers[1])
    message = {
        "noise": b"\x01" * 80,
        "kind": SEAL.close("reply", link.client, data),
        "client": SEAL.close("replies", "d" * 16, data),
        "key": Seal(bytes(32), KEYS.prefix).close("replies", link.client, data),
        "others": sealed(link, replies("1", "4")),
        "not light": sealed(link, replies("1", "2")),
        # Of a version that speaks otherwise: it took the connection along, and nobody was told.
        "no reply": SEAL.close("replies", link.client, reply),
        "too few": sealed(link, replies("1", "2", values=[7])),
    }[wrong]
    arrive(link, "1,2", message)
    for caller in callers:
        (error,) = caller.broken
        assert isinstance(error, BadMessage)
        assert not caller.values
    assert list(link._open) == [3]
    assert link.refused == 1
    assert [task.outcome for task in link.history.last(10, failed=True)] == ["failed"] * 2
    # And the listener goes on.
    arrive(link, "3", sealed(link, replies("3", "5")))
    assert untouched.values
    assert not untouched.broken


@pytest.mark.parametrize("names", ["", ",", "1,", ",1", "1,,2", "x", "1 ,2", "-1", "1.0,2", "1,2.1", "9" * 19, "1;2"])
def test_names_that_are_none_are_read_past(link: Link, names: str) -> None:
    callers = opened(link, 1, 2)
    arrive(link, names, sealed(link, replies("1", "2")))
    assert not any(caller.values or caller.broken for caller in callers)
    assert link.refused == 1


def test_a_caller_that_raises_does_not_keep_the_others_from_hearing(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "excepthook", lambda *args: told.append(args[1]))

    def raises(*_: Any) -> None:
        raise ValueError("no")

    one, two, three = opened(link, 1, 2, 3)
    two.on_value = raises
    arrive(link, "1,2,3", sealed(link, replies("1", "2", "3")))
    assert one.values
    assert three.values
    assert isinstance(told[0], ValueError)
    # It was never told, and waited for ever.
    assert isinstance(two.broken[0], BadMessage)
    assert not link._open


def test_a_value_that_is_wanted_while_those_beside_it_are_told_is_passed_on(link: Link) -> None:
    """Another thread makes a call with the future of the first, which had not ended when it looked. The call waited for
    ever: its value was forgotten with it."""
    _, two = opened(link, 1, 2)
    first = link._open[1]
    needing = made(3, light=None)
    tell = two.on_value

    def meanwhile(*args: Any) -> None:
        assert link.want(first)
        with link._lock:
            assert graph.join(link.client, needing, [first], link._open) is None
            link._open[3] = needing
        tell(*args)

    two.on_value = meanwhile
    message = sealed(link, replies("1", "2"))
    arrive(link, "1,2", message)
    assert list(link._open) == [3]
    assert graph.needs(needing, link._open) == ()
    assert needing.blobs == {value_name(link.client, 1): message}


# The history


def test_the_history_forgets_arguments_of_several_together_when_they_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(history, "BYTES_KEPT", 300)
    notes = History()
    for first in range(0, 40, 10):
        calls = [made(n) for n in range(first, first + 10)]
        notes.note_several(calls, [(float(call.call.n), 0.5) for call in calls], replies("1"))
    told = notes.last(100)
    assert [task.started for task in told] == list(range(40)), "in the order of their ends"
    kept = [task.arguments for task in told if task.arguments != "…"]
    assert kept == [str(n) for n in range(40 - len(kept), 40)]
    assert 0 < len(kept) < 40
    assert 0 < sum(note.size for note in notes._notes) <= 300


def test_the_history_of_calls_that_were_told_of_together_is_bounded_like_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was bounded by messages, each of which tells of 32 now: a busy queue's came to 50 MB."""
    monkeypatch.setattr(history, "NOTES_KEPT", 50)
    monkeypatch.setattr(history, "CALLS_KEPT", 100)
    notes = History()
    for first in range(0, 1_000, 10):
        calls = [made(n) for n in range(first, first + 10)]
        notes.note_several(calls, [(float(call.call.n), 0.5) for call in calls], replies("1"))
    assert [task.arguments for task in notes.last(10_000)] == [str(n) for n in range(900, 1_000)]
    assert list(notes._heavy) == list(notes._notes), "nothing else holds what is gone"
    assert notes._bytes == sum(note.size for note in notes._notes)
    for n in range(200):
        notes.note_cancelled(made(n), (0,))
    assert len(notes.last(10_000)) == 50
    assert list(notes._heavy) == list(notes._notes)
    assert notes._bytes == sum(note.size for note in notes._notes)


def test_the_history_gives_as_many_of_several_as_were_asked_for(link: Link) -> None:
    notes = History()
    calls = [made(n) for n in range(10)]
    notes.note_several(calls, [(float(n), 0.5) for n in range(10)], replies("1"))
    assert [task.arguments for task in notes.last(3)] == ["7", "8", "9"]
    assert len(notes.last(3, failed=True)) == 0


def test_too_much_at_once_is_not_kept_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "LARGEST_BYTES", 100)
    notes = History()
    calls = [made(n) for n in range(10)]
    notes.note_several(calls, [(float(n), 0.5) for n in range(10)], replies("1"))
    assert [task.arguments for task in notes.last(10)] == ["…"] * 10
    assert notes._bytes == 0


# Which calls are light


@pytest.mark.parametrize("kind", ["builtin", "closure"])
def test_functions_that_are_pickled_anew_for_each_call_travel_together_too(queue: Any, kind: str) -> None:
    """Only those whose bytes are remembered did, as functions of a cell are."""
    captured = [1, 2]
    function = abs if kind == "builtin" else lambda x: x + len(captured)
    one, two = (queue.submit(function, x)._call for x in (1, 2))
    assert one.light is not None
    assert one.light is two.light
    captured.append(3)
    three = queue.submit(function, 3)._call
    assert (three.light is one.light) == (kind == "builtin"), "of a closure, what it holds has changed"
