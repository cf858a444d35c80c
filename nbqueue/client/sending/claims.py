"""Large results that wait in this process's shared memory: claimed when their reply arrives, removed when none will.

The listener visits, in one thread. Always true here: a result is claimed before its call is closed, so that of a call
that is closed nothing is removed which anybody may still ask for.
"""

from __future__ import annotations

from collections.abc import Callable

from nbqueue.codec import shelves
from nbqueue.codec.frames import Frame, parts_of
from nbqueue.codec.messages import PACKED, ReplyBody

__all__ = ["claimed", "let_go", "sweep"]


def claimed(body: ReplyBody) -> ReplyBody:
    """The reply, whose large values are ours now: each goes when the last that needs it does.

    Raises
    ------
    NbqueueError
        What lies there as a whole is gone.
    """
    own = shelves.existing()
    packed, frames = body.packed, list(body.frames)
    for offset in body.large:
        frame = Frame(packed if offset == PACKED else frames[offset])
        if own is not None and frame.path == own.path:
            frame.segment = own.claim(frame.name)
            if offset != PACKED:
                frames[offset] = frame
        if offset == PACKED:
            # Mapped, and nothing more: it is unpickled as the bytes of any other reply are.
            packed = parts_of(frame, writable=False)[0]
    return body._replace(packed=packed, frames=tuple(frames))


def let_go() -> None:
    """Take back what nobody needs any more. Costs next to nothing when there is nothing."""
    own = shelves.existing()
    if own is not None:
        own.let_go()


def sweep(client: str, is_open: Callable[[int], bool]) -> None:
    """Remove results of calls that are over, whose replies will not arrive or do not count."""
    own = shelves.existing()
    if own is not None:
        own.sweep_results(client, is_open)
