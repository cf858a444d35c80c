"""Every key of a queue: its type, who writes it, when it dies.

All keys of one queue share one prefix with one hash tag, so they live on one slot of a Redis Cluster,
and one ACL pattern (``~nbq:{...}:*``) covers them. The prefix holds the fingerprint of the signing secret,
so two users of one Redis who chose the same queue name cannot fail each other's calls.

=============  ======  ==========================================  =======================================
key            type    what                                        dies
=============  ======  ==========================================  =======================================
``s:0``        stream  calls that go first: of high priority,      7 days after it was last empty and seen
                       retried, given back
``s:1``        stream  calls in order of submission                7 days after it was last empty and seen
``s:2``        stream  calls of low priority, also when retried    7 days after it was last empty and seen
                       or given back
``o:<client>`` hash    open call → ``entry|items done``            with its last open call
``c:<client>`` hash    ``epoch`` and ``mark`` (highest call taken) 7 days after its last open call
``r:<client>`` stream  replies and events, trimmed by the client   with ``c:<client>``
``f:<digest>`` hash    a blob: ``b`` bytes, ``refs`` open calls;   1 hour after its last open call; a value
                       of a value (see `value_name`), a field for  after 5 minutes
                       each call that waits for it, too
``z``, ``zp``  zset,   what lies in no stream: due time; content.  with the last of it
               hash    Delayed retries, and calls that wait for
                       what others give, which are never due
``hb``         hash    host → heartbeat counter                    7 days after the last beat
``e``          string  epoch of the server's memory of this queue  7 days after the last beat
``hw``         hash    host → number of its workers                7 days after the last beat
``pool``       hash    host → its PoolState as JSON                7 days after the last beat
``h:<host>``   stream  inbox of a host's supervisor                1 minute after the last message
``n``          hash    counters: done, failed, cancelled,          7 days after the last change, when no
                       retried, refused; bundled: calls that lie   calls lie together
                       in an entry with others, but for one each
=============  ======  ==========================================  =======================================

Nothing that an open call needs has a lifetime, nor what its client has not read yet: a laptop may sleep for a month. A
stream is seen by the step that puts something there or takes it away, by each beat of a host and each hello of a
client.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nbqueue.errors import BadOption

__all__ = ["FIRST", "GROUP", "LOW", "NORMAL", "STREAMS", "Keys", "value_name"]

GROUP = "w"
# Names of the streams in entries, in the order in which workers read them.
STREAMS = FIRST, NORMAL, LOW = "0", "1", "2"
_NAME = re.compile(r"[^\s{}]{1,200}\Z")


def value_name(client: str, n: str | int) -> str:
    """What the value of a call is called, as a blob, where other calls need it. No digest is such a word."""
    return f"v{client}.{n}"


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of one queue's keys.

    >>> keys = Keys.of("tasks", "1a2b3c4d")
    >>> keys.prefix, keys.replies("c1")
    ('nbq:{tasks:1a2b3c4d}:', 'nbq:{tasks:1a2b3c4d}:r:c1')
    """

    prefix: str

    @classmethod
    def of(cls, name: str, fingerprint: str) -> Keys:
        """Keys of the queue `name` for the holders of the secret with this `fingerprint`.

        Raises
        ------
        BadOption
            If the name is empty, longer than 200 characters or holds white space or braces.
        """
        if not isinstance(name, str) or not _NAME.match(name):
            raise BadOption(
                f"stream_key={name!r}: a queue's name is 1 to 200 characters without spaces or braces."
            )
        return cls(f"nbq:{{{name}:{fingerprint}}}:")

    @property
    def first(self) -> str:
        return self.prefix + "s:0"

    @property
    def normal(self) -> str:
        return self.prefix + "s:1"

    @property
    def low(self) -> str:
        return self.prefix + "s:2"

    @property
    def streams(self) -> tuple[str, str, str]:
        """All that calls lie in, in the order in which workers read them."""
        return self.first, self.normal, self.low

    def replies(self, client: str) -> str:
        return f"{self.prefix}r:{client}"

    def open_calls(self, client: str) -> str:
        return f"{self.prefix}o:{client}"

    def client(self, client: str) -> str:
        return f"{self.prefix}c:{client}"

    def blob(self, digest: str) -> str:
        return f"{self.prefix}f:{digest}"

    def inbox(self, host: str) -> str:
        return f"{self.prefix}h:{host}"

    @property
    def pool(self) -> str:
        return self.prefix + "pool"

    @property
    def beats(self) -> str:
        return self.prefix + "hb"

    @property
    def counts(self) -> str:
        return self.prefix + "n"

    @property
    def delayed(self) -> str:
        return self.prefix + "z"
