"""Futures among the arguments of a call that is being made: what travels in their places, and when the call does.

The pickler of a call visits, once it has met one. Always true here: the value of a future that has ended travels with
the arguments; for one that is open a stand-in does, and the server brings the call to its stream when that value is
there; the same future gives the same object wherever it stands in the arguments. An open item of a batch travels with
others, and the server knows nothing of it alone: a call that needs one is sent when it has ended, by whoever hears of
it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any

from nbqueue.client.results.future import TaskFuture
from nbqueue.client.results.outcome import Outcome
from nbqueue.client.sending.calls import Node
from nbqueue.client.sending.listener import Link, OpenCall
from nbqueue.codec.blobs import Put, Share
from nbqueue.codec.frames import held_by, load_frame
from nbqueue.codec.inputs import Unfit, value_of
from nbqueue.codec.messages import ERROR, VALUE, ReplyBody
from nbqueue.codec.segments import Segment, Shelf
from nbqueue.codec.values import dump_value
from nbqueue.errors import NbqueueError
from nbqueue.stream.keys import value_name

__all__ = ["Inputs"]

# Names of values that the server is sent, beside those of calls.
_numbers = itertools.count(1)


class Inputs:
    """Takes the futures of one call, and whatever else its pickler asks for; then sends the call."""

    def __init__(self, link: Link, share: Share | None, shelf: Shelf | None) -> None:
        self._link = link
        self._share = share
        self._shelf = shelf
        self.kinds: Collection[type] = _Kinds(() if share is None else share.kinds)
        # By what they are: where there is no room in shared memory, all is pickled once more.
        self._calls: dict[int, OpenCall] = {}
        self._later: dict[TaskFuture[Any], str] = {}
        self._held: tuple[Segment, ...] = ()  # where values lie that have come
        self._unmet: TaskFuture[Any] | None = None  # has no value, and will have none

    def __call__(self, value: Any) -> Put[Any] | tuple[Any, ...] | None:
        if isinstance(value, TaskFuture):
            return self._instead_of(value)
        return None if self._share is None else self._share(value)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the values that are to come."""
        return (*map(str, self._calls), *self._later.values())

    def _instead_of(self, future: TaskFuture[Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if future._link is not self._link:
            raise Unfit(
                f"the future of `{future.name}` is another queue's, and this one's workers cannot get its value. Use "
                "its result()."
            )
        client, call = self._link.client, future._call
        if call is not None and not future.done() and self._link.want(call):
            self._calls[call.call.n] = call
            return value_of, (value_name(client, call.call.n), future.name)
        if not future.done():
            token = self._later.setdefault(future, f"b{next(_numbers)}")
            return value_of, (value_name(client, token), future.name)
        if not _has_value(future):
            self._unmet = self._unmet or future
            return value_of, ("", future.name)
        assert future._outcome is not None
        reduction, held = future._outcome.sent_on()
        self._held += held
        return reduction

    def send(
        self,
        body: bytes,
        digests: tuple[str, ...],
        blobs: Mapping[str, bytes],
        future: TaskFuture[Any],
        fn: Callable[..., Any],
        puts: Mapping[str, Put[Any]],
        held: tuple[Segment, ...],
        stream: str,
    ) -> None:
        """Put the call on its way, as soon as that can be. What cannot run any more ends at once."""
        if self._unmet is not None:
            future.on_unmet(self._unmet, lambda _: None)
            return

        def go() -> None:
            values, where = self._values()
            call = self._link.submit(
                body,
                (*digests, *values),
                {**blobs, **values},
                future,
                puts=puts,
                held=(*held, *self._held, *where),
                inputs=tuple(self._calls.values()),
                stream=stream,
            )
            if self._later:
                call.node = call.node or Node()
                call.node.items = {value_name(self._link.client, token): item for item, token in self._later.items()}
            future._sent(call, fn)

        if self._later:
            _HeldBack(self._link, future, tuple(self._later), go)
        else:
            go()

    def _values(self) -> tuple[dict[str, bytes], tuple[Segment, ...]]:
        """What has come later, sealed as the server is to keep it, and where it lies."""
        values: dict[str, bytes] = {}
        where: tuple[Segment, ...] = ()
        for item, token in self._later.items():
            assert item._outcome is not None
            (make, (data,)), held = item._outcome.sent_on()
            if make is not load_frame:
                data = dump_value(data, item.name, self._shelf)
                held = held_by(data)
            reply = ReplyBody(0, 1, b"", b"", (bytes(data),), "", 1, 0.0, 0.0)
            values[value_name(self._link.client, token)] = self._link.seal_value(token, reply)
            where += held
        return values, where


class _HeldBack:
    """A call that is sent when all `sources` have ended, or ends with the first of them that has no value."""

    def __init__(
        self, link: Link, future: TaskFuture[Any], sources: tuple[TaskFuture[Any], ...], go: Callable[[], None]
    ) -> None:
        self._link = link
        self._future = future
        self._go = go
        self._open = len(sources)
        self._lock = threading.Lock()
        # Whoever waits for the whole queue waits for it, too.
        link.begin_input(future)
        future.add_done_callback(lambda _: link.end_input(future))
        for source in sources:
            source.add_done_callback(partial(self._hear, source))

    def _hear(self, source: TaskFuture[Any], _: object) -> None:
        with self._lock:
            self._open -= 1
            last = not self._open
        if self._future.done():
            return
        if not _has_value(source):
            self._future.on_unmet(source, lambda _: None)
        elif last:
            try:
                self._go()
            except NbqueueError as error:
                # Such as of a value that was changed here, and cannot be pickled any more.
                self._future._arrive(Outcome(ERROR, error, True), None)
            self._link.end_input(self._future)


def _has_value(future: TaskFuture[Any]) -> bool:
    outcome = future._outcome
    return not future.cancelled() and outcome is not None and outcome.kind == VALUE


class _Kinds(Collection[type]):
    """All kinds of futures of ours, and those `others`."""

    def __init__(self, others: Collection[type]) -> None:
        self._others = others

    def __contains__(self, kind: object) -> bool:
        return (isinstance(kind, type) and issubclass(kind, TaskFuture)) or kind in self._others

    def __iter__(self) -> Iterator[type]:
        yield TaskFuture
        yield from self._others

    def __len__(self) -> int:
        return 1 + len(self._others)
