"""What the calls of a batch have in common, and how items are packed into calls."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nbqueue.client.sending.listener import OpenCall
from nbqueue.client.sending.options import Options
from nbqueue.client.sending.seeds import seed_for
from nbqueue.codec.blobs import Put, as_keywords
from nbqueue.codec.columns import Columns, columns_of, dump_items, load_items
from nbqueue.codec.frames import SHARED_BYTES, held_by, size_of
from nbqueue.codec.functions import all_plain_and_short, dump_arguments, dump_frame, is_long, is_plain
from nbqueue.codec.inputs import FutureMet
from nbqueue.codec.messages import CallBody, dump_call
from nbqueue.codec.seeds import Rng
from nbqueue.codec.segments import Segment, Shelf
from nbqueue.codec.wrappers import within
from nbqueue.errors import NotSendable

__all__ = ["Holding", "Made", "Packed", "Prepared", "Recipe", "are_short", "items_of", "latest"]

# Bytes of arguments that travel together at most.
CHUNK_BYTES = 1_000_000
# Strings and integers that are longer do not count as plain.
LONG = 200


class Made(NamedTuple):
    """A function and its setting on their way: their digests, both sealed, and the handles that the function holds."""

    function: str
    setting: str
    blobs: dict[str, bytes]
    puts: dict[str, Put[Any]]


@dataclass(frozen=True, slots=True)
class Holding:
    """A pickled item with handles in it, or whose large parts lie elsewhere."""

    frame: bytes
    puts: Mapping[str, Put[Any]]
    held: tuple[Segment, ...] = ()


_NONE: Mapping[str, Put[Any]] = {}

# An item on its way: plain arguments as they are, others pickled, or why it cannot be sent.
# None for one that was cancelled before it left.
Prepared = tuple[Any, ...] | bytes | Holding | NotSendable | None


class Packed(NamedTuple):
    """A call's body: `items` items from `offset` on, all handles that they and the function hold, and where their large
    arguments lie."""

    offset: int
    items: int
    body: bytes
    puts: Mapping[str, Put[Any]]
    held: tuple[Segment, ...] = ()


class Recipe:
    """What all calls of a batch have in common. `make` pickles the function as it is now, `keep` makes a handle for
    keywords that are large, and what else is goes on the `shelf`."""

    def __init__(
        self,
        fn: Callable[..., Any],
        options: Options,
        kwargs: dict[str, Any],
        make: Callable[[Callable[..., Any]], Made],
        shelf: Shelf | None,
        keep: Callable[[bytes], Put[Any]],
    ) -> None:
        self._shelf = shelf
        self._keep = keep
        self.fn = fn
        self.options = options
        self.kwargs = kwargs
        self.seed = seed_for(options)
        self._make = make
        self.renew()

    def renew(self) -> None:
        """Pickle the function, as its notebook defines it now, and take note of the surroundings again."""
        self.fn = latest(self.fn)
        self.function, self.setting, self.blobs, self._puts = self._make(self.fn)
        self.keywords, self._apart = b"", False
        self._puts_of_packed = self._puts
        if not self.kwargs:
            return
        handles: list[Put[Any]] = []
        try:
            keywords = dump_frame(self.kwargs, handles, self._shelf)
        except FutureMet:
            raise self._no_futures("the keywords of the map hold a future") from None
        except Exception:
            # Refused with the name of the argument.
            dump_arguments((), self.kwargs, self.options.name, self.fn, [])
            raise
        if not held_by(keywords):
            # It may be too large.
            dump_arguments((), self.kwargs, self.options.name, self.fn, [])
        if size_of(keywords) >= SHARED_BYTES:
            # Sent once: what stands for them is small, and the same for all items.
            self._apart = True
            handle = self._keep(keywords)
            keywords = as_keywords(handle)
            self._puts = {**self._puts, handle.digest: handle, **{each.digest: each for each in handles}}
        self.keywords = keywords
        self._puts_of_packed = {**self._puts, **{handle.digest: handle for handle in handles}}

    @property
    def digests(self) -> tuple[str, ...]:
        """Of the function and the setting."""
        return tuple(self.blobs)

    def rng(self, place: int) -> Rng | None:
        """What gives the item at `place` its random numbers."""
        rng, seed = self.options.rng, self.seed
        return None if rng is None or seed is None else (rng, seed, place)

    def body(
        self, puts: Mapping[str, Put[Any]], place: int, packed: bytes = b"", frames: tuple[bytes, ...] = ()
    ) -> bytes:
        o = self.options
        body = CallBody(
            *(o.name, self.function, self.setting, o.timeout, o.retries),
            packed=packed,
            frames=frames,
            common=self.keywords if packed or self._apart else b"",
            retry_on=o.retry_on_names,
            puts=tuple(puts),
            rng=self.rng(place),
            concurrency=o.concurrency or 0,
        )
        return dump_call(body)

    def prepare(self, args: tuple[Any, ...]) -> Prepared:
        """Take hold of an item's value now: a generator may refill the buffer that it has just given."""
        for value in args:
            # Long ones go as frames, whose sizes are added up.
            if not is_plain(value) or is_long(value, LONG):
                break
        else:
            return args
        return self.frame(args)

    def prepare_drawn(self, items: Sequence[Prepared]) -> Sequence[Prepared]:
        """The same for what was drawn one by one: prepared, but that values in tuples, all plain, may be long."""
        columns = items if isinstance(items, Columns) else columns_of(items)
        if columns is not None and are_short(columns):
            return columns
        return [self.prepare(item) if isinstance(item, tuple) else item for item in items]

    def frame(self, args: tuple[Any, ...]) -> bytes | Holding | NotSendable:
        """An item pickled with the keywords, or why that cannot be sent."""
        handles: list[Put[Any]] = []
        try:
            kwargs = {} if self._apart else self.kwargs
            frame = dump_arguments(args, kwargs, self.options.name, self.fn, handles, self._shelf)
        except FutureMet:
            return self._no_futures("an item of the map holds a future")
        except NotSendable as error:
            return error
        if not handles and type(frame) is bytes:
            return frame
        return Holding(frame, {handle.digest: handle for handle in handles} if handles else _NONE, held_by(frame))

    def _no_futures(self, what: str) -> NotSendable:
        return NotSendable(
            f"`{self.options.name}` could not be sent: {what}. Make single calls, as in "
            "[task(future) for future in futures]: each waits for its own, on the server."
        )

    def pack(
        self, items: Sequence[Prepared], start: int
    ) -> tuple[list[Packed], list[tuple[int, NotSendable | None]]]:
        """Bodies for prepared items from place `start` on, and the offsets of those not sent, with the reason."""
        if self.options.concurrency is not None and len(items) > 1:
            return self._pack_each(items, start)
        if isinstance(items, Columns) or set(map(type, items)) <= {tuple}:
            return self._pack_plain(start, 0, items), []
        calls: list[Packed] = []
        refused: list[tuple[int, NotSendable | None]] = []
        frames: list[bytes] = []
        puts = self._puts
        held: tuple[Segment, ...] = ()
        size = 0

        def close(end: int) -> None:
            nonlocal frames, puts, held, size
            if frames:
                body = self.body(puts, start + end - len(frames), frames=tuple(frames))
                calls.append(Packed(end - len(frames), len(frames), body, puts, held))
            frames, puts, held, size = [], self._puts, (), 0

        for offset, item in enumerate(items):
            prepared = self.frame(item) if isinstance(item, tuple) else item
            if isinstance(prepared, bytes):
                frame, more, bytes_all = prepared, _NONE, len(prepared)
            elif isinstance(prepared, Holding):
                frame, more, bytes_all = bytes(prepared.frame), prepared.puts, size_of(prepared.frame)
            else:
                close(offset)
                refused.append((offset, prepared))
                continue
            # What was put for one chunk is in a worker all at once.
            large = more and sum(handle.size_bytes for handle in {**puts, **more}.values()) > CHUNK_BYTES
            if size + bytes_all > CHUNK_BYTES or (large and not more.keys() <= puts.keys()):
                close(offset)
            frames.append(frame)
            if more:
                puts = {**puts, **more}
            if isinstance(prepared, Holding):
                held += prepared.held
            size += bytes_all
        close(len(items))
        return calls, refused

    def _pack_each(
        self, items: Sequence[Prepared], start: int
    ) -> tuple[list[Packed], list[tuple[int, NotSendable | None]]]:
        """The same, each item in a call of its own."""
        calls: list[Packed] = []
        refused: list[tuple[int, NotSendable | None]] = []
        for offset in range(len(items)):
            packed, wrong = self.pack(items[offset : offset + 1], start + offset)
            calls += [one._replace(offset=offset) for one in packed]
            refused += [(offset, why) for _, why in wrong]
        return calls, refused

    def _pack_plain(self, start: int, offset: int, items: Sequence[Prepared]) -> list[Packed]:
        packed = dump_items(items)
        if len(packed) > CHUNK_BYTES and len(items) > 1:
            half = len(items) // 2
            first = self._pack_plain(start, offset, items[:half])
            return first + self._pack_plain(start, offset + half, items[half:])
        puts = self._puts_of_packed
        return [Packed(offset, len(items), self.body(puts, start + offset, packed=packed), puts)]


def are_short(items: Columns) -> bool:
    """Whether all values are plain, so that they can travel as they are, and none is long."""
    return all(
        not (is_long(column.start, LONG) or is_long(column.stop, LONG))
        if isinstance(column, range)
        else all_plain_and_short(column, LONG)
        for column in items.columns
    )


def items_of(call: OpenCall) -> Sequence[tuple[Any, ...] | bytes | Holding]:
    """The prepared items of a call, out of its sealed message, which is of our own making."""
    body = call.body()
    if not body.frames:
        return load_items(body.packed)
    if not call.puts and not call.held:
        return body.frames
    return [Holding(frame, call.puts, call.held) for frame in body.frames]


def latest(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function that now has this one's name where it was defined, in case its cell was run again."""
    if isinstance(fn, types.MethodType):
        method = latest(fn.__func__)
        return fn if method is fn.__func__ else types.MethodType(method, fn.__self__)
    name = getattr(fn, "__qualname__", "")
    first, *attributes = name.split(".")
    found = getattr(within(fn), "__globals__", {}).get(first)
    for attribute in attributes:
        found = inspect.getattr_static(found, attribute, None)
    if type(found) is not type(fn):
        # A task wraps it, as a static method does. A decorator of the user's makes two of a kind.
        found = getattr(found, "__wrapped__", found)
    same = getattr(found, "__qualname__", None) == name and getattr(found, "__module__", "") == fn.__module__
    return found if same and callable(found) else fn
