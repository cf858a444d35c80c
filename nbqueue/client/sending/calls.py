"""Calls between their submission and the end of their last item, and who waits for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

from nbqueue.codec.blobs import Put
from nbqueue.codec.messages import CallBody, ReplyBody, load_call
from nbqueue.codec.seal import body_of
from nbqueue.codec.segments import Segment
from nbqueue.errors import NbqueueError
from nbqueue.stream.records import Call

__all__ = ["Input", "Node", "OpenCall", "Sink", "ValueSink"]


class Input(Protocol):
    """What has more to send by and by: a batch that is being fed."""

    @property
    def open_items(self) -> int:
        """How many have not ended, sent or not, as far as they are known."""

    def _more(self) -> bool:
        """Whether more will be sent, as far as is known. Called with the lock held; takes none."""

    def on_lost(self, error: NbqueueError) -> None:
        """There is no server any more, nor will there be: what was to be sent ends with this error."""


class Sink(Protocol):
    """Takes what comes back for a call. Called by the listener; must not block. `many`: it has numbered items.
    `in_history` stands for its arguments where those say nothing that a person could read."""

    name: str
    many: bool
    in_history: str

    @property
    def open_items(self) -> int:
        """How many have not ended, sent or not, as far as they are known."""

    def on_reply(self, call: OpenCall, item: int, body: ReplyBody) -> bool:
        """Items of the call from `item` on have ended. True when all items of the call have."""

    def on_event(self, call: OpenCall, item: int, event: Mapping[str, Any]) -> None:
        """News of an item that runs: its ``kind`` is "started" (it has been running for a while), …"""

    def on_broken(self, call: OpenCall, item: int, error: NbqueueError) -> bool:
        """A reply came that cannot be trusted. True when all items of the call have ended."""

    def first_open(self, call: OpenCall) -> int:
        """The first item of the call that has not ended."""

    def unanswered(self, call: OpenCall) -> Sequence[int]:
        """Items of the call that have no outcome: open, or cancelled."""

    def on_unmet(self, source: Any, note: Callable[[NbqueueError | None], None]) -> None:
        """A call does not run, since `source`, another sink whose value it needs, has ended without one. `note` is to
        be called before anybody can hear of it, with the error, or None if it is cancelled as that one was."""


class ValueSink(Sink, Protocol):
    """That of a light call."""

    def on_value(self, value: Any, worker: str, attempt: int, seconds: float) -> None:
        """The call has ended with this plain value."""


@dataclass(slots=True)
class OpenCall:
    """A call between its submission and the end of its last item. `base` is its first item's place in a batch.

    A *light* call has one item with short arguments, and needs nothing but its function: it may travel in a bundle with
    others. Until it leaves, it is not sealed: its payload is the frame of its arguments, and `light` has the rest of
    what it carries; it is the same object for all that may travel together.
    """

    call: Call
    blobs: Mapping[str, bytes]
    sink: Sink
    base: int = 0
    splits: bool = False  # items may be retried on their own
    sent_at: float = 0.0
    puts: Mapping[str, Put[Any]] = field(default_factory=dict)  # what its function and items hold, by digest
    held: tuple[Segment, ...] = ()  # where its large arguments lie
    node: Node | None = None  # of one that needs others, or is needed
    light: CallBody | None = None

    def body(self) -> CallBody:
        """What it carries: of our own making, so no seal is checked."""
        if self.light is not None:
            return self.light._replace(frames=(self.call.payload,))
        return load_call(body_of(self.call.payload))

    def apart(self) -> OpenCall:
        """What was sent, for whoever keeps it when the call is over: it leads to nobody, so it is in no circle."""
        return replace(self, sink=cast(Sink, None))


@dataclass(slots=True, eq=False)
class Node:
    """A call's place in a graph of calls. See `graph`."""

    inputs: tuple[OpenCall, ...] = ()  # those that were open when this one was made, until it has a value
    dependents: list[OpenCall] = field(default_factory=list)  # until this one has ended
    reply: bytes = b""  # sealed, once there is a value
    held: tuple[Segment, ...] = ()  # where that lies
    items: Mapping[str, Any] = field(default_factory=dict)  # of batches that it needed: futures by their values' names
