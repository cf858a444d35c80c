"""Plant a change in the scripts, and see whether the model turns red."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import resources
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis.errors import Flaky, HypothesisException
from hypothesis.stateful import run_state_machine_as_test
from protocol_machine import machine_on

from nbqueue.errors import ServerError, ServerUnreachable
from nbqueue.stream import broker as broker_module
from nbqueue.stream.connect import CommandError, Wire
from nbqueue.stream.server import PrivateServer

# The first failing example is enough; shrinking it would take longer than to find it.
PROFILE = settings(
    stateful_step_count=40,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    verbosity=Verbosity.quiet,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


def source_of(name: str) -> str:
    return (resources.files("nbqueue.stream") / "scripts" / f"{name}.lua").read_text()


@contextmanager
def planted(texts: Mapping[str, str]) -> Iterator[None]:
    """Meanwhile every broker uses these texts in place of the scripts of that name."""

    @cache
    def mutated(name: str) -> bytes:
        common, step = (texts.get(part) or source_of(part) for part in ("_common", name))
        return broker_module.compose(broker_module.functions_of(common), step).encode()

    @cache
    def sha(name: str) -> str:
        return hashlib.sha1(mutated(name), usedforsecurity=False).hexdigest()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(broker_module, "script", mutated)
        patch.setattr(broker_module, "_sha", sha)
        yield


def compiles(server: PrivateServer) -> None:
    """Raises CommandError for a script that does not."""
    wire = Wire(server.address, timeout_s=5)
    wire.connect()
    try:
        for name in broker_module._SCRIPTS:
            wire.call("SCRIPT", "LOAD", broker_module.script(name))
    finally:
        wire.close()


def turns_red(server: PrivateServer, sequences: int = 400, **changes: Any) -> bool:
    """Whether the model notices, in so many sequences, that the actors or the planted scripts are wrong."""
    for _ in range(3):
        error = _failure(server, sequences, **changes)
        if error is None:
            return False
        # A script that does not end holds the server. One that answers was only slow: a busy machine is no mutant.
        if not _fell_silent(error) or not _answers(server):
            break
    return True


def _failure(server: PrivateServer, sequences: int, **changes: Any) -> Exception | None:
    machine = seed(1)(machine_on(server, **changes))
    try:
        run_state_machine_as_test(machine, settings=settings(PROFILE, max_examples=sequences))
    except Flaky as error:
        # It failed, and did not fail again: red, for example because a script does not always end.
        return error
    except HypothesisException:
        raise
    except Exception as error:  # noqa: BLE001 - red is red: actors stumble over nonsense in many ways
        return error
    return None


def _fell_silent(error: BaseException) -> bool:
    """Whether an answer did not come in time."""
    if isinstance(error, BaseExceptionGroup):
        return any(map(_fell_silent, error.exceptions))
    return isinstance(error, ServerUnreachable | TimeoutError)


def _answers(server: PrivateServer) -> bool:
    wire = Wire(server.address, timeout_s=3)
    try:
        wire.connect()
        # Where the silence began its memory may have been full, on purpose.
        return bool(wire.call("CONFIG", "SET", "maxmemory", "0") == b"OK")
    except (CommandError, ServerError):
        return False
    finally:
        wire.close()
