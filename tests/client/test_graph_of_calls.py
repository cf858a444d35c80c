"""Who needs whom among open calls, as the link keeps it: without a server."""

from __future__ import annotations

from typing import Any

from nbqueue.client.sending import graph
from nbqueue.client.sending.calls import OpenCall
from nbqueue.codec.messages import ReplyBody
from nbqueue.stream.records import Call


class Calls(dict[int, OpenCall]):
    """Those that are open."""

    def make(self, *inputs: OpenCall) -> OpenCall:
        n = max(self, default=0) + 1
        call = OpenCall(Call(n, (), 1, b""), {}, sink=f"sink {n}")  # type: ignore[arg-type]
        assert all(graph.want(source, self) for source in inputs)
        assert graph.join("c", call, inputs, self) is None
        self[n] = call
        return call


def value() -> ReplyBody:
    return ReplyBody(0, 1, b"", b"packed", (), "", 1, 0.0, 0.0)


def test_a_call_needs_what_is_open_and_holds_the_values_of_what_is_not() -> None:
    calls = Calls()
    first, second = calls.make(), calls.make()
    both = calls.make(first, second)
    assert graph.needs(both, calls) == ("1", "2")
    del calls[1]
    graph.pass_on("c", first, b"reply", value())
    assert graph.needs(both, calls) == ("2",)
    assert both.blobs == {"vc.1": b"reply"}
    # One that was wanted before, and is made after.
    late = OpenCall(Call(4, (), 1, b""), {}, sink=None)  # type: ignore[arg-type]
    assert graph.join("c", late, [first, second], calls) is None
    assert late.blobs == {"vc.1": b"reply"}
    assert not graph.want(first, calls)


def test_what_needs_a_failed_call_is_open_no_longer_all_at_once_and_each_comes_after_what_it_needed() -> None:
    """One that left later was taken for open by what was sent between."""
    calls = Calls()
    first = calls.make()
    left, right = calls.make(first), calls.make(first)
    last = calls.make(left, right)
    beside = calls.make()
    del calls[1]
    assert graph.cut(first, calls) == [(left, first), (right, first), (last, left)]
    assert list(calls.values()) == [beside]
    late: Any = OpenCall(Call(6, (), 1, b""), {}, sink=None)  # type: ignore[arg-type]
    assert graph.join("c", late, [beside, last], calls) is last


def test_only_what_nothing_else_needs_is_needless() -> None:
    calls = Calls()
    own, shared = calls.make(), calls.make()
    call = calls.make(own, shared)
    other = calls.make(shared)
    del calls[call.call.n]
    assert graph.needless(call, calls) == [own]
    del calls[other.call.n]
    assert graph.needless(call, calls) == [own, shared]
