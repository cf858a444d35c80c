"""The bodies of sealed messages: what a call carries to a worker, what a reply carries back.

A body is one pickle of builtin types only, so that it can be opened without running a user's code. Users'
values lie in it as bytes of their own, one frame an item, so that an item that cannot be unpickled costs
only itself. Items that are all plain (numbers, strings, bytes, None) travel as one pickle of a list, which
costs a twentieth.

Short calls may travel as a *bundle*, in one message, and be told of in one if they gave plain values: what these name
is signed with them, and with their client.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

from nbqueue.codec.blobs import load_keywords
from nbqueue.codec.columns import load_items
from nbqueue.codec.frames import load_frame
from nbqueue.codec.seeds import Rng
from nbqueue.errors import BadMessage

__all__ = [
    "ERROR",
    "EXCEPTION",
    "PACKED",
    "RETRYING",
    "SKIPPED",
    "VALUE",
    "CallBody",
    "Printed",
    "RepliesBody",
    "ReplyBody",
    "call_id",
    "dump_call",
    "dump_event",
    "dump_replies",
    "dump_reply",
    "from_each",
    "item_arguments",
    "load_call",
    "load_event",
    "load_replies",
    "load_reply",
    "only_item",
    "plain_items",
    "said_of",
    "type_name",
    "value_in",
    "value_of",
]

VALUE, EXCEPTION, ERROR, RETRYING, SKIPPED = b"vxers"
"""How an item ended: a value; the task's own exception; one of ours (pickled plainly, or with the task's frames as its
own are); not yet, it will run again; long ago (its outcome was sent by a supervisor)."""


# Among the offsets of large values: all of them together.
PACKED = -1

Printed = tuple[int, int, int, tuple[tuple[int, bytes], ...]]


def call_id(client: str, n: str | int) -> str:
    """What a message about the call `n` of `client` is signed for."""
    return f"{client}:{n}"


class CallBody(NamedTuple):
    """What a worker needs to run a call.

    Either `packed` (plain argument tuples, see `columns`) or `frames` (one pickled ``(args, kwargs)`` an item)
    is given; `common` is a pickled dict of keyword arguments for every item, or empty. `retry_on` has the
    names of the exception types that `retries` is for; empty means all. `puts` are the digests of what was put that
    the function and the items hold. `rng` says which parameter receives a random generator, and from what it is made.
    `inputs` are the names of calls of the same client whose values the items hold.
    `concurrency` is how many calls, this one among them, a worker may run at a time; 0 for one of a plain function.
    `names` are those of a bundle: calls of one item, a frame each.
    """

    name: str
    function: str
    setting: str
    timeout_s: float | None
    retries: int
    packed: bytes = b""
    frames: tuple[bytes, ...] = ()
    common: bytes = b""
    retry_on: tuple[str, ...] = ()
    puts: tuple[str, ...] = ()
    rng: Rng | None = None
    inputs: tuple[str, ...] = ()
    concurrency: int = 0
    names: tuple[str, ...] = ()


class ReplyBody(NamedTuple):
    """How items ``first … first + items - 1`` of a call ended.

    `kinds` has one byte an item, or is empty when all are values. Either `packed` (a pickled list of plain
    values) or `frames` is given. `started` is Unix time; `seconds` is what the items took together.

    `printed` tells what items printed: ``(offset, stream, size, pieces)``, where `offset` counts from `first`,
    `stream` is 1 or 2, `size` is how many bytes it was, and `pieces` are those kept, as ``(at, bytes)`` from the
    item's start on. `shown` has displays that may not have left by themselves, as ``(offset, event)``. `large` are the
    offsets of values that lie in the client's shared memory, or `PACKED`, when `packed` does as a whole.
    """

    first: int
    items: int
    kinds: bytes
    packed: bytes
    frames: tuple[bytes, ...]
    worker: str
    attempt: int
    started: float
    seconds: float
    printed: tuple[Printed, ...] = ()
    shown: tuple[tuple[int, dict[str, Any]], ...] = ()
    large: tuple[int, ...] = ()


class RepliesBody(NamedTuple):
    """What several calls of one item gave, by their names: `packed` is a pickled list of plain values. Each has its
    `started`, as Unix time, and the `seconds` that it took; all were run by the `worker`, as this `attempt`."""

    names: tuple[str, ...]
    packed: bytes
    worker: str
    attempt: int
    started: tuple[float, ...]
    seconds: tuple[float, ...]


def type_name(kind: type) -> str:
    """By which a type of one process is known in another: a class of a cell is not the same object there.

    Not the qualified name, which cloudpickle drops.
    """
    return f"{said_of(kind, '__module__')}.{said_of(kind, '__name__')}"


def said_of(kind: type, what: str) -> Any:
    """A class's ``__module__``, ``__name__``, ``__qualname__`` or ``__mro__``, past its metaclass."""
    return type.__dict__[what].__get__(kind)


def dump_call(body: CallBody) -> bytes:
    return pickle.dumps(tuple(body), protocol=5)


def load_call(data: bytes) -> CallBody:
    return CallBody(*pickle.loads(data))


def dump_reply(body: ReplyBody) -> bytes:
    return pickle.dumps(tuple(body), protocol=5)


def load_reply(data: bytes) -> ReplyBody:
    return ReplyBody(*pickle.loads(data))


def dump_replies(body: RepliesBody) -> bytes:
    return pickle.dumps(tuple(body), protocol=5)


def load_replies(data: bytes) -> RepliesBody:
    return RepliesBody(*pickle.loads(data))


def value_in(body: ReplyBody) -> Any:
    """What a call of one item gave, as its reply tells. Runs users' unpickling code."""
    return load_frame(body.packed)[0] if body.packed else load_frame(body.frames[0])


def value_of(body: RepliesBody, n: str) -> Any:
    """What one of several calls gave."""
    return pickle.loads(body.packed)[body.names.index(n)]


def dump_event(kind: str, **details: Any) -> bytes:
    """News about a call that is still open, for whoever watches; nothing depends on its arrival."""
    return json.dumps({"kind": kind, **details}, separators=(",", ":")).encode()


def load_event(data: bytes) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(data)
    return event


def only_item(body: CallBody, plain: Sequence[Any] | None, item: int) -> CallBody:
    """The call with one item only, to be sent on its own. Runs no user's code."""
    if body.rng is not None:
        name, seed, first = body.rng
        body = body._replace(rng=(name, seed, first + item))
    if plain is None:
        return body._replace(frames=(body.frames[item],))
    return body._replace(packed=pickle.dumps([plain[item]], protocol=5))


def from_each(body: CallBody) -> dict[str, CallBody]:
    """The calls of a bundle, by their names. Runs no user's code.

    Raises
    ------
    BadMessage
        If it has not a frame for each.
    """
    if len(body.frames) != len(body.names):
        raise BadMessage(f"A bundle of calls of `{body.name}` does not hold what it names. None was run.")
    at = CallBody._fields.index("frames")
    alone = body._replace(names=())
    before, behind = alone[:at], alone[at + 1 :]
    # Two thirds of what `_replace` takes.
    return {
        name: CallBody._make((*before, (frame,), *behind)) for name, frame in zip(body.names, body.frames, strict=True)
    }


def plain_items(body: CallBody, items: int) -> Sequence[Any] | None:
    """The argument tuples of a packed call, None of one with frames. Runs no user's code.

    Raises
    ------
    BadMessage
        If the call has not as many `items` as its entry, which nobody has signed, claims.
    """
    plain = load_items(body.packed) if body.packed else None
    if len(body.frames if plain is None else plain) != items:
        raise BadMessage(f"A call of `{body.name}` claims {items} items and holds another number. It was not run.")
    return plain


def item_arguments(body: CallBody, plain: Sequence[Any] | None, item: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of one item; `plain` is what `plain_items` gave. Runs users' unpickling code."""
    if plain is not None:
        return plain[item], (load_keywords(body.common) if body.common else {})
    args, kwargs = load_frame(body.frames[item])
    return args, load_keywords(body.common) if body.common else kwargs
