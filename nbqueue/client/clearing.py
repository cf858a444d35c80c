"""Ending calls that somebody else has made: ``nbqueue cancel`` and ``nbqueue purge``.

Always true here: whoever waits for a call hears that it was cancelled, before the server forgets it; only calls are
ended that were there when it began, so it comes to an end however busy the queue is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from nbqueue.codec import messages
from nbqueue.codec.messages import call_id
from nbqueue.codec.seal import Seal
from nbqueue.stream.broker import Broker
from nbqueue.stream.records import OpenEntry

__all__ = ["cancel_calls", "purge"]

_TOGETHER = 500


def cancel_calls(broker: Broker, seal: Seal, *, queued_only: bool = False) -> int:
    """End all calls of all clients that share our secret. How many there were.

    Parameters
    ----------
    queued_only : bool
        Leave those alone that a worker has taken.
    """
    ended = 0
    for entries in _pages(broker, queued_only):
        names: dict[str, list[str]] = defaultdict(list)
        for entry in entries:
            event = messages.dump_event("cancelled", item=0)
            message = seal.close("event", call_id(entry.client, entry.n), event)
            if broker.announce(entry.client, entry.n, entry.entry, message):
                names[entry.client].append(entry.n)
        for client, numbers in names.items():
            # Their owner may have done it meanwhile.
            broker.cancel(client, numbers)
            ended += len(numbers)
    return ended


def _pages(broker: Broker, queued_only: bool) -> Iterator[list[OpenEntry]]:
    taken = broker.fetched_entries() if queued_only else frozenset()
    page: list[OpenEntry] = []
    # The last first: what runs makes room when it ends, in which what is still queued must not start.
    for entry in reversed(list(broker.open_entries())):
        # An item of a chunk that waits for its retry belongs to the chunk, which may run.
        if entry.entry not in taken and not (queued_only and "." in entry.n):
            page.append(entry)
        if len(page) >= _TOGETHER:
            yield page
            page = []
    if page:
        yield page


def purge(broker: Broker, seal: Seal) -> tuple[int, int]:
    """Cancel all calls, and delete all that the server keeps of the queue. How many calls and keys there were.

    Workers and notebooks that are there go on, and register anew.
    """
    ended = cancel_calls(broker, seal)
    return ended, broker.delete_all()
