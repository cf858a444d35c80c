"""A sealed message is opened for what it was signed for, and for nothing else."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from nbqueue.codec.seal import Seal, fingerprint, new_secret, user_secret
from nbqueue.errors import BadMessage, BadOption, NbqueueError

SECRET = bytes(range(32))
SCOPE = "nbq:{tasks:0a1b2c3d}:"


def test_a_message_is_opened_by_the_holders_of_the_secret() -> None:
    sealed = Seal(SECRET, SCOPE).close("call", "c:1", b"body")
    assert Seal(SECRET, SCOPE).open("call", "c:1", sealed) == b"body"


@pytest.mark.parametrize(
    ("seal", "kind", "id"),
    [
        (Seal(SECRET[::-1], SCOPE), "call", "c:1"),
        (Seal(SECRET, "nbq:{other:0a1b2c3d}:"), "call", "c:1"),
        (Seal(SECRET, SCOPE), "reply", "c:1"),
        (Seal(SECRET, SCOPE), "call", "c:2"),
        (Seal(SECRET, SCOPE), "call", "d:1"),
    ],
    ids=["secret", "queue", "kind", "call", "client"],
)
def test_a_message_with_another(seal: Seal, kind: str, id: str) -> None:
    sealed = seal.close(kind, id, b"body")
    with pytest.raises(BadMessage, match="wrong signature"):
        Seal(SECRET, SCOPE).open("call", "c:1", sealed)


def test_a_message_of_which_any_byte_was_changed_is_refused() -> None:
    seal = Seal(SECRET, SCOPE)
    sealed = seal.close("call", "c:1", b"body")
    for at in range(len(sealed)):
        for changed in (sealed[:at], sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]):
            with pytest.raises(BadMessage):
                seal.open("call", "c:1", changed)


@pytest.mark.parametrize(
    ("kind", "id", "body"),
    [("call", "c:1\0b", b"ody"), ("call", "c:", b"1body"), ("cal", "lc:1", b"body"), ("callc:", "1", b"body")],
)
def test_bytes_cannot_be_moved_between_id_and_body(kind: str, id: str, body: bytes) -> None:
    """The signature covers where each of them ends."""
    seal = Seal(SECRET, SCOPE)
    macs = {seal.close(*parts)[1:33] for parts in (("call", "c:1", b"body"), ("call", "c:1", b"b\0ody"))}
    assert seal.close(kind, id, body)[1:33] not in macs


def test_a_seal_shows_nothing_of_its_secret() -> None:
    seal = Seal(SECRET, SCOPE)
    assert repr(seal) == str(seal) == "Seal(…)"
    with pytest.raises(BadMessage) as caught:
        seal.open("call", "c:1", b"\x01" + bytes(40))
    assert SECRET.hex() not in str(caught.value)
    assert fingerprint(SECRET) not in SECRET.hex()


# The user's secret


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("NBQUEUE_SECRET", raising=False)
    return tmp_path / "nbqueue"


def test_the_secret_is_made_once_for_its_owner_alone(home: Path) -> None:
    before = os.umask(0)
    try:
        made = user_secret()
    finally:
        os.umask(before)
    assert user_secret() == made
    assert len(made) == 32
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()} == {"secret": 0o600}


def test_a_secret_that_others_could_read_is_closed_to_them(home: Path) -> None:
    made = user_secret()
    (home / "secret").chmod(0o644)
    assert user_secret() == made
    assert stat.S_IMODE((home / "secret").stat().st_mode) == 0o600


def test_the_variable_comes_before_the_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBQUEUE_SECRET", SECRET.hex().upper())
    assert user_secret() == SECRET
    assert not home.exists()


@pytest.mark.parametrize("given", ["", "secret", "ab" * 31, "ab" * 33, "xy" * 32])
def test_what_is_no_secret_is_refused_and_not_repeated(
    given: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBQUEUE_SECRET", given)
    with pytest.raises(BadOption, match="NBQUEUE_SECRET must hold 64 hex digits") as caught:
        user_secret()
    assert not given or given not in str(caught.value).replace("NBQUEUE_SECRET", "")


def test_where_no_file_can_be_made_the_message_says_what_to_set(home: Path) -> None:
    home.write_text("in the way")
    with pytest.raises(NbqueueError, match="Set NBQUEUE_SECRET"):
        user_secret()


def test_a_fingerprint_tells_secrets_apart() -> None:
    prints = {fingerprint(new_secret()) for _ in range(100)}
    assert len(prints) == 100
    assert all(len(text) == 8 and int(text, 16) >= 0 for text in prints)
