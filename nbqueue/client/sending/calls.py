"""Calls between their submission and the end of their last item, and who waits for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from nbqueue.codec.blobs import Put
from nbqueue.codec.messages import ReplyBody
from nbqueue.codec.segments import Segment
from nbqueue.errors import NbqueueError
from nbqueue.stream.records import Call

__all__ = ["Input", "OpenCall", "Sink"]


class Input(Protocol):
    """What has more to send by and by: a batch that is being fed."""

    def _more(self) -> bool:
        """Whether more will be sent, as far as is known. Called with the lock held; takes none."""


class Sink(Protocol):
    """Takes what comes back for a call. Called by the listener; must not block. `many`: it has numbered items."""

    name: str
    many: bool

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


@dataclass(slots=True)
class OpenCall:
    """A call between its submission and the end of its last item. `base` is its first item's place in a batch."""

    call: Call
    blobs: Mapping[str, bytes]
    sink: Sink
    base: int = 0
    splits: bool = False  # items may be retried on their own
    sent_at: float = 0.0
    puts: Mapping[str, Put[Any]] = field(default_factory=dict)  # what its function and items hold, by digest
    held: tuple[Segment, ...] = ()  # where its large arguments lie
