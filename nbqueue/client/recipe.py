"""What the calls of a batch have in common, and how items are packed into calls."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from nbqueue.client.options import Options
from nbqueue.codec.functions import dump_arguments, dumps, is_plain
from nbqueue.codec.messages import CallBody, dump_call, item_arguments, load_call
from nbqueue.codec.seal import body_of
from nbqueue.errors import NotSendable

__all__ = ["Packed", "Recipe", "arguments_of"]

# Bytes of arguments that travel together at most.
CHUNK_BYTES = 1_000_000


# An item on its way: plain arguments as they are, others pickled, or why it cannot be sent.
Prepared = tuple[Any, ...] | bytes | NotSendable


class Packed(NamedTuple):
    """A call's body: `items` items from `offset` on."""

    offset: int
    items: int
    body: bytes


class Recipe:
    """What all calls of a batch have in common. `make` pickles the function as it is now."""

    def __init__(
        self,
        fn: Callable[..., Any],
        options: Options,
        kwargs: dict[str, Any],
        make: Callable[[], tuple[str, str, dict[str, bytes]]],
    ) -> None:
        self.fn = fn
        self.options = options
        self.kwargs = kwargs
        self._make = make
        self.renew()

    def renew(self) -> None:
        """Pickle the function and take note of the surroundings again."""
        self.function, self.setting, self.blobs = self._make()
        # Refused here with the name of the argument, then made as a packed call wants it.
        dump_arguments((), self.kwargs, self.options.name, self.fn)
        self.keywords = dumps(self.kwargs) if self.kwargs else b""

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple(self.blobs)

    def body(self, packed: bytes = b"", frames: tuple[bytes, ...] = ()) -> bytes:
        o = self.options
        common = self.keywords if packed else b""
        return dump_call(
            CallBody(o.name, self.function, self.setting, o.timeout, o.retries, packed, frames, common)
        )

    def prepare(self, args: tuple[Any, ...]) -> Prepared:
        """Take hold of an item's value now: a generator may refill the buffer that it has just given."""
        if all(is_plain(value) and not _is_long(value) for value in args):
            return args
        try:
            return dump_arguments(args, self.kwargs, self.options.name, self.fn)
        except NotSendable as error:
            return error

    def pack(self, items: Sequence[Prepared]) -> tuple[list[Packed], list[tuple[int, NotSendable]]]:
        """Bodies for prepared items, and the offsets of those that cannot be sent, with the reason."""
        if all(type(item) is tuple for item in items):
            return [Packed(0, len(items), self.body(packed=pickle.dumps(items, protocol=5)))], []
        calls: list[Packed] = []
        refused: list[tuple[int, NotSendable]] = []
        frames: list[bytes] = []
        size = 0

        def close(end: int) -> None:
            nonlocal frames, size
            if frames:
                calls.append(Packed(end - len(frames), len(frames), self.body(frames=tuple(frames))))
            frames, size = [], 0

        for offset, item in enumerate(items):
            if isinstance(item, NotSendable):
                close(offset)
                refused.append((offset, item))
                continue
            frame = item if isinstance(item, bytes) else dump_arguments(item, self.kwargs, self.options.name, self.fn)
            if size + len(frame) > CHUNK_BYTES:
                close(offset)
            frames.append(frame)
            size += len(frame)
        close(len(items))
        return calls, refused


def arguments_of(payload: bytes, item: int) -> bytes:
    """The pickled ``(args, kwargs)`` of one item, out of a call's sealed message of our own making."""
    body = load_call(body_of(payload))
    if body.frames:
        return body.frames[item]
    return dumps(item_arguments(body, pickle.loads(body.packed), item))


def _is_long(value: object) -> bool:
    # Long strings go as frames, whose sizes are added up.
    return isinstance(value, str | bytes) and len(value) > 10_000
