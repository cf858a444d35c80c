"""Sign and check: nothing that comes from Redis is unpickled before its signature was found right.

Whoever can write to a Redis could otherwise run code in every worker and, since results are pickles, in
every kernel. A message is ``version (1 byte) | HMAC-SHA256 (32 bytes) | body``; the signature covers the
version, the queue, the kind of message and the id that it answers for, so that a message of one queue or
call is not accepted for another.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path
from typing import TypeVar

from nbqueue.errors import BadMessage, BadOption, NbqueueError

__all__ = ["HEAD_BYTES", "Seal", "body_of", "fingerprint", "new_secret", "user_secret"]

_VERSION = b"\x01"
_MAC = 32
HEAD_BYTES = len(_VERSION) + _MAC

_Bytes = TypeVar("_Bytes", bytes, memoryview)


class Seal:
    """Signs and checks the messages of one queue.

    >>> seal = Seal(b"k" * 32, "nbq:{tasks:1a2b}:")
    >>> seal.open("call", "c1:7", seal.close("call", "c1:7", b"body"))
    b'body'
    """

    __slots__ = ("_inner", "_outer", "_scope")

    def __init__(self, secret: bytes, scope: str) -> None:
        # RFC 2104, with the two hashes of the key made once: hmac.digest makes them anew for each message,
        # which takes more time than a short message itself.
        block = hashlib.sha256(secret).digest() if len(secret) > 64 else secret
        block = block.ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))
        self._scope = _VERSION + scope.encode() + b"\0"

    def __repr__(self) -> str:
        return "Seal(…)"

    def close(self, kind: str, id: str, body: bytes) -> bytes:
        """The sealed message."""
        return b"".join((_VERSION, self._mac(kind, id, body), body))

    def open(self, kind: str, id: str, message: _Bytes) -> _Bytes:
        """The body of a message; of a memoryview, a view.

        Raises
        ------
        BadMessage
            If it was signed with another secret, or for another queue, kind or id, or not at all.
        """
        body = message[HEAD_BYTES:]
        if message[:1] != _VERSION or not hmac.compare_digest(message[1:HEAD_BYTES], self._mac(kind, id, body)):
            raise BadMessage(f"A {kind} message for {id} has a wrong signature. It was not unpickled.")
        return body

    def _mac(self, kind: str, id: str, body: bytes | memoryview) -> bytes:
        inner = self._inner.copy()
        # With their lengths: no other kind, id and body may give the same bytes.
        inner.update(self._scope + f"{len(kind)} {len(id)} {kind}{id}".encode())
        inner.update(body)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()


def body_of(message: bytes) -> bytes:
    """The body of a message that this process has closed itself; nothing is checked."""
    return message[HEAD_BYTES:]


def new_secret() -> bytes:
    return secrets.token_bytes(32)


def fingerprint(secret: bytes) -> str:
    """Eight hex digits that tell secrets apart and give none away."""
    return hashlib.sha256(b"nbqueue fingerprint\0" + secret).hexdigest()[:8]


def user_secret() -> bytes:
    """This user's secret for servers that others may share: ``NBQUEUE_SECRET`` (64 hex digits), else a file.

    The file is ``$XDG_CONFIG_HOME/nbqueue/secret`` (by default below ``~/.config``), readable by its owner
    alone, and made at the first use. Copy it to the other hosts of a queue.

    Raises
    ------
    BadOption
        If ``NBQUEUE_SECRET`` or the file holds anything else.
    NbqueueError
        If the file can be neither read nor made.
    """
    given = os.environ.get("NBQUEUE_SECRET")
    if given is not None:
        return _parse(given, "NBQUEUE_SECRET")
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    path = Path(base, "nbqueue", "secret")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            # Written under another name and linked, so that nobody reads half of it.
            draft = path.with_name(f"secret.{os.getpid()}.{secrets.token_hex(4)}")
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(fd, "w") as file:
                file.write(new_secret().hex() + "\n")
            try:
                os.link(draft, path)
            finally:
                draft.unlink()
        except FileExistsError:
            pass
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        return _parse(path.read_text(), str(path))
    except OSError as error:
        raise NbqueueError(
            f"The signing secret {path} cannot be read or made ({error.strerror}). Set NBQUEUE_SECRET to 64 hex "
            "digits, the same on every host."
        ) from error


def _parse(text: str, where: str) -> bytes:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text.strip()):
        raise BadOption(f"{where} must hold 64 hex digits (32 bytes).")
    return bytes.fromhex(text.strip())
