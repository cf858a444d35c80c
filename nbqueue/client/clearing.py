"""Ending calls that somebody else has made: ``nbqueue cancel`` and ``nbqueue purge``.

Always true here: whoever waits for a call is told that it was cancelled, and has at least an hour to read it; only
calls are ended that were there when it began, so it comes to an end however busy the queue is.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator

from nbqueue.codec import messages
from nbqueue.codec.messages import call_id
from nbqueue.codec.seal import Seal
from nbqueue.errors import NbqueueError, ServerRefused
from nbqueue.stream.broker import BLOCK_MS, Broker, entry_of
from nbqueue.stream.connect import CommandError
from nbqueue.stream.records import OpenEntry

__all__ = ["cancel_calls", "purge"]

_TOGETHER = 500
# Whoever is there asks for more, and deletes what was read, once in BLOCK_MS.
_READ_S = BLOCK_MS / 1000 + 1.0


def cancel_calls(broker: Broker, seal: Seal, *, queued_only: bool = False) -> int:
    """End all calls of all clients that share our secret. How many there were; of a map, each item that was sent.

    Parameters
    ----------
    queued_only : bool
        Leave those alone that a worker has taken.
    """
    ended = 0
    for entries in _pages(broker, queued_only):
        for client, theirs in _by_client(entries).items():
            done = broker.items_done(client, [entry.n for entry in theirs])
            event = messages.dump_event("cancelled", item=0)
            sealed = [seal.close("event", call_id(client, entry.n), event) for entry in theirs]
            # All in one write: the owner of a map, once told of a part of it, ends the others, and nobody could count
            # them any more.
            told = broker.announce_all([(client, e.n, e.entry, m) for e, m in zip(theirs, sealed, strict=True)])
            ending = {
                entry.n: max(1, entry.items - number)
                for entry, number, heard in zip(theirs, done, told, strict=True)
                if heard
            }
            if ending:
                # Their owner may have done it meanwhile.
                broker.cancel(client, ending)
                ended += sum(ending.values())
    return ended


def _by_client(entries: Iterable[OpenEntry]) -> dict[str, list[OpenEntry]]:
    found: dict[str, list[OpenEntry]] = defaultdict(list)
    for entry in entries:
        found[entry.client].append(entry)
    return found


def _pages(broker: Broker, queued_only: bool) -> Iterator[list[OpenEntry]]:
    taken = broker.fetched_entries() if queued_only else frozenset()
    page: list[OpenEntry] = []
    # The last first: what runs makes room when it ends, in which what is still queued must not start.
    for entry in reversed(list(broker.open_entries())):
        # An item of a chunk that waits for its retry belongs to the chunk, which may run.
        if entry_of(entry.entry) not in taken and not (queued_only and "." in entry.n):
            page.append(entry)
        if len(page) >= _TOGETHER:
            yield page
            page = []
    if page:
        yield page


def purge(broker: Broker, seal: Seal) -> tuple[int, int]:
    """Cancel all calls, and delete all that the server keeps of the queue. How many calls and keys there were.

    Workers and notebooks that are there go on, and register anew. It waits a few seconds for notebooks to read what
    has become of their calls; for one that sleeps, that is kept for an hour.

    Raises
    ------
    NbqueueError
        If the user may not delete them. Nothing is cancelled then.
    """
    try:
        broker.may_delete()
    except ServerRefused as error:
        raise NbqueueError(
            "To purge a queue takes an administrator's rights, among them SCAN and UNLINK. Nothing was cancelled or "
            f"deleted; `nbqueue cancel` needs no more than a worker does. ({error})"
        ) from error
    try:
        ended = cancel_calls(broker, seal)
    except CommandError:
        # What others have made of its keys has no calls; whoever waits for some sends them again.
        ended = 0
    unread, until = broker.unread(), time.monotonic() + _READ_S
    while unread and time.monotonic() < until:
        time.sleep(0.02)
        unread = [key for key in unread if broker.holds_messages(key)]
    return ended, broker.delete_all(unread)
