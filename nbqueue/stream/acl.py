"""The least rights on a shared server that a queue's notebooks and workers need, as a line for its administrator.

A user with these rights reaches the keys of one queue, whose names hold the fingerprint of the secret, and can
call nothing but what `broker` and its scripts call: a server checks a script's commands and keys, too, against
the rights of the user who runs it. A test runs a whole job under exactly this line, and compares it with what
the server was asked to do.
"""

from __future__ import annotations

import hashlib
import re

from nbqueue.errors import BadOption
from nbqueue.stream.keys import Keys

__all__ = ["COMMANDS", "PASSWORD_HERE", "rights", "setuser"]

COMMANDS = (
    # The steps, and who asks for them. CLIENT UNBLOCK ends the read of a worker that is to stop.
    *("client|id", "client|unblock", "eval", "evalsha", "script|load"),
    # One look at version and eviction policy; and a database other than 0, if the URL names one.
    *("info", "select"),
    # Calls and replies.
    *("xack", "xadd", "xdel", "xgroup|create", "xgroup|delconsumer", "xinfo|consumers", "xlen", "xpending"),
    *("xrange", "xread", "xreadgroup", "xtrim"),
    # What is open, what waits for a retry, who works.
    *("exists", "expire", "get", "hdel", "hexists", "hget", "hgetall", "hincrby", "hmget", "hset", "hsetnx"),
    *("hvals", "persist", "setnx", "time", "zadd", "zcard", "zrange", "zrangebyscore", "zrem"),
)
# Two words: the server refuses the line until they are replaced.
PASSWORD_HERE = ">THE PASSWORD"

# Redis allows more; these need no quotes at any prompt.
_USER = re.compile(r"[A-Za-z0-9_.@:+-]{1,100}")


def rights(keys: Keys) -> str:
    """The rights to one queue's keys and to the commands that it needs, and to nothing else."""
    allowed = " ".join("+" + name for name in COMMANDS)
    return f"resetchannels resetkeys ~{_pattern(keys.prefix)}* -@all {allowed}"


def setuser(user: str, keys: Keys, password: str | None = None) -> str:
    """``ACL SETUSER …`` for redis-cli, Redis 6.2 or later and Valkey.

    Parameters
    ----------
    user : str
        What it had before, rights and passwords, is taken from it.
    password : str, optional
        Only its SHA-256 appears. Without one the line has a place for it, and is refused until it is filled.

    Raises
    ------
    BadOption
        If the user cannot be named so, or is the one that all others are who log in as nobody.
    """
    if not _USER.fullmatch(user):
        raise BadOption(f"{user!r}: a user's name is 1 to 100 letters, digits and _ . @ : + -")
    if user == "default":
        raise BadOption("'default' is whoever gives no name; choose a name, so that nobody else loses rights.")
    if password == "":
        raise BadOption("An empty password protects nothing.")
    proof = PASSWORD_HERE if password is None else "#" + hashlib.sha256(password.encode()).hexdigest()
    return f"ACL SETUSER {user} reset on {proof} {rights(keys)}"


def _pattern(prefix: str) -> str:
    """A pattern for keys that begin so. What redis-cli would take for a quote becomes "any character"."""
    return re.sub(r"[\"']", "?", re.sub(r"([*?\[\]\\])", r"\\\1", prefix))
