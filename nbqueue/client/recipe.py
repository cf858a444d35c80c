"""What the calls of a batch have in common, and how items are packed into calls."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from nbqueue.client.options import Options
from nbqueue.codec.functions import dump_arguments, dumps, is_plain
from nbqueue.codec.messages import CallBody, dump_call, load_call
from nbqueue.codec.seal import body_of
from nbqueue.errors import NotSendable

__all__ = ["Packed", "Prepared", "Recipe", "items_of"]

# Bytes of arguments that travel together at most.
CHUNK_BYTES = 1_000_000
# Strings and integers that are longer do not count as plain.
LONG = 200


# An item on its way: plain arguments as they are, others pickled, or why it cannot be sent.
# None for one that was cancelled before it left.
Prepared = tuple[Any, ...] | bytes | NotSendable | None


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
        make: Callable[[Callable[..., Any]], tuple[str, str, dict[str, bytes]]],
    ) -> None:
        self.fn = fn
        self.options = options
        self.kwargs = kwargs
        self._make = make
        self.renew()

    def renew(self) -> None:
        """Pickle the function, as its notebook defines it now, and take note of the surroundings again."""
        self.fn = _latest(self.fn)
        self.function, self.setting, self.blobs = self._make(self.fn)
        # Refused here with the name of the argument, then made as a packed call wants it.
        dump_arguments((), self.kwargs, self.options.name, self.fn)
        self.keywords = dumps(self.kwargs) if self.kwargs else b""

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple(self.blobs)

    def body(self, packed: bytes = b"", frames: tuple[bytes, ...] = ()) -> bytes:
        o = self.options
        common = self.keywords if packed else b""
        body = CallBody(
            o.name, self.function, self.setting, o.timeout, o.retries, packed, frames, common, o.retry_on_names
        )
        return dump_call(body)

    def prepare(self, args: tuple[Any, ...]) -> Prepared:
        """Take hold of an item's value now: a generator may refill the buffer that it has just given."""
        for value in args:
            # Long strings go as frames, whose sizes are added up.
            if not is_plain(value) or (isinstance(value, str | bytes) and len(value) > LONG):
                break
            if type(value) is int and value.bit_length() > 8 * LONG:
                break
        else:
            return args
        return self.frame(args)

    def frame(self, args: tuple[Any, ...]) -> bytes | NotSendable:
        """An item pickled with the keywords, or why that cannot be sent."""
        try:
            return dump_arguments(args, self.kwargs, self.options.name, self.fn)
        except NotSendable as error:
            return error

    def pack(self, items: Sequence[Prepared]) -> tuple[list[Packed], list[tuple[int, NotSendable | None]]]:
        """Bodies for prepared items, and the offsets of those that are not sent, with the reason."""
        if all(type(item) is tuple for item in items):
            return self._pack_plain(0, items), []
        calls: list[Packed] = []
        refused: list[tuple[int, NotSendable | None]] = []
        frames: list[bytes] = []
        size = 0

        def close(end: int) -> None:
            nonlocal frames, size
            if frames:
                calls.append(Packed(end - len(frames), len(frames), self.body(frames=tuple(frames))))
            frames, size = [], 0

        for offset, item in enumerate(items):
            frame = self.frame(item) if isinstance(item, tuple) else item
            if not isinstance(frame, bytes):
                close(offset)
                refused.append((offset, frame))
                continue
            if size + len(frame) > CHUNK_BYTES:
                close(offset)
            frames.append(frame)
            size += len(frame)
        close(len(items))
        return calls, refused

    def _pack_plain(self, offset: int, items: Sequence[Prepared]) -> list[Packed]:
        packed = pickle.dumps(items, protocol=5)
        if len(packed) > CHUNK_BYTES and len(items) > 1:
            half = len(items) // 2
            return self._pack_plain(offset, items[:half]) + self._pack_plain(offset + half, items[half:])
        return [Packed(offset, len(items), self.body(packed=packed))]


def items_of(payload: bytes) -> Sequence[tuple[Any, ...] | bytes]:
    """The prepared items of a call, out of its sealed message, which is of our own making."""
    body = load_call(body_of(payload))
    return body.frames or cast("list[tuple[Any, ...]]", pickle.loads(body.packed))


def _latest(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function that now has this one's name where it was defined, in case its cell was run again."""
    name = getattr(fn, "__qualname__", "")
    found = getattr(fn, "__globals__", {}).get(name)
    # A decorated one is a task, which wraps it.
    found = getattr(found, "__wrapped__", found)
    same = getattr(found, "__qualname__", None) == name and getattr(found, "__module__", "") == fn.__module__
    return found if same and callable(found) else fn
