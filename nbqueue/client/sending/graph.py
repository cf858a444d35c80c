"""Calls that need the values of other calls: who needs whom, from their submission to their end.

::

    f ──┐ value: on the server, or in shared memory ──▶ the worker that runs h
    g ──┴─ its reply, to here as well: kept until h has ended, for a server that loses its data

The server brings a call to its stream when all that it needs has ended; nothing here has a hand in that. What is here
answers for the rest: a call that is sent again takes the values along that there are by then, and one whose input has
ended without a value ends as well. Always true here: the lock of the link is held; what a call needs was submitted
before it, so there are no circles; a call that has a value holds nothing of what it needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from nbqueue.client.sending.calls import Node, OpenCall
from nbqueue.codec.frames import held_by
from nbqueue.codec.messages import ReplyBody
from nbqueue.stream.keys import value_name

__all__ = ["cut", "join", "needless", "needs", "pass_on", "want"]

_Open = Mapping[int, OpenCall]


def want(call: OpenCall, open_calls: _Open) -> bool:
    """Have its value kept for a call that is about to be made. False if it has ended."""
    if call.call.n not in open_calls:
        return False
    if call.node is None:
        call.node = Node()
    return True


def join(client: str, call: OpenCall, inputs: Sequence[OpenCall], open_calls: _Open) -> OpenCall | None:
    """A new call needs what these give, all of which were wanted. Returns one that has ended without a value."""
    call.node = Node(tuple(inputs))
    for source in inputs:
        node = source.node
        assert node is not None
        if source.call.n in open_calls:
            node.dependents.append(call)
        elif node.reply:
            _give(client, source, node, call)
        else:
            return source
    return None


def needs(call: OpenCall, open_calls: _Open) -> tuple[str, ...]:
    """What has not ended of all that a call needs."""
    assert call.node is not None
    return tuple(str(source.call.n) for source in call.node.inputs if source.call.n in open_calls)


def pass_on(client: str, call: OpenCall, message: bytes, body: ReplyBody) -> None:
    """It has ended with a value."""
    node = call.node
    assert node is not None
    node.reply, node.held = message, tuple(segment for frame in body.frames for segment in held_by(frame))
    for dependent in node.dependents:
        _give(client, call, node, dependent)
    node.inputs, node.dependents = (), []


def _give(client: str, source: OpenCall, node: Node, call: OpenCall) -> None:
    call.blobs = {**call.blobs, value_name(client, source.call.n): node.reply}
    call.held += node.held


def cut(call: OpenCall, open_calls: dict[int, OpenCall]) -> list[tuple[OpenCall, OpenCall]]:
    """It has ended without a value: so do the calls that need it, and those that need them, all at once.

    Returns each of them, which are open no longer, with what it needed; none before that.
    """
    ended: list[tuple[OpenCall, OpenCall]] = []
    sources = deque([call])
    while sources:
        source = sources.popleft()
        if source.node is not None:
            for each in source.node.dependents:
                if open_calls.pop(each.call.n, None) is not None:
                    ended.append((each, source))
                    sources.append(each)
            source.node.dependents = []
    return ended


def needless(call: OpenCall, open_calls: _Open) -> list[OpenCall]:
    """Open calls that were needed by this one, which has ended, and are by nothing else."""
    if call.node is None:
        return []
    return [
        source
        for source in call.node.inputs
        if source.call.n in open_calls
        and source.node is not None
        and not any(each.call.n in open_calls for each in source.node.dependents)
    ]
