"""The model test has power: each line that makes the protocol safe is taken away, and the model turns red.

A mutant names a script (``_common`` is part of all), the words that go and the words that come. The words are
looked up in the scripts, so a mutant cannot outlive the line that it is about.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis.errors import HypothesisException
from hypothesis.stateful import run_state_machine_as_test
from protocol_machine import machine_on

from nbqueue.errors import NbqueueError
from nbqueue.stream import broker as broker_module
from nbqueue.stream.broker import script
from nbqueue.stream.connect import CommandError
from nbqueue.stream.server import PrivateServer

# The first failing example is enough; shrinking it would take longer than to find it.
PROFILE = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    verbosity=Verbosity.quiet,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


@dataclass(frozen=True)
class Mutant:
    name: str
    script: str
    old: str
    new: str


def mutant(name: str, script: str, old: str, new: str = "", *, soak: bool = False) -> Any:
    marks = [pytest.mark.soak] if soak else []
    return pytest.param(Mutant(name, script, old, new), id=name.replace(" ", "-"), marks=marks)


MUTANTS = [
    mutant("submit does not compare the mark", "submit", "if tonumber(n) > mark then", "if true then"),
    mutant("submit does not compare the epoch", "submit", "if record[1] ~= epoch then", "if not record[1] then"),
    mutant("submit takes calls without their blobs", "submit", "if #missing > 1 then return missing end"),
    mutant("submit leaves an idle stream without a lifetime", "submit", "lifetimes()", "redis.call('PERSIST', NORMAL)"),
    mutant("finish counts a report twice", "finish", "or upto <= done or", "or"),
    mutant("finish leaves a gap", "finish", "first > done or"),
    mutant(
        "finish takes an old failure",
        "finish",
        "(current ~= entry and (failed > 0 or retry))",
        "(current ~= entry and retry)",
    ),
    mutant(
        "finish takes an old retry",
        "finish",
        "(current ~= entry and (failed > 0 or retry))",
        "(current ~= entry and failed > 0)",
    ),
    mutant("finish refuses an old success", "finish", "(failed > 0 or retry))", "true)"),
    mutant("finish leaves the new attempt behind", "finish", "if current ~= entry then drop(client, n, current) end"),
    mutant("finish tells stale to a repetition", "finish", "(current == entry and upto <= done)", "false"),
    mutant("finish does not hold blobs for a retry", "finish", "hold(digests)"),
    mutant("finish cannot pass the memory limit", "finish", "pass_memory_limit()"),
    mutant("finish forgets that a retry waits", "finish", "stand(client, name, 'z/' .. attempt, 0)"),
    mutant("drop does not acknowledge", "_common", "redis.call('XACK', key_of(entry), GROUP, id_of(entry))"),
    mutant("drop does not delete", "_common", "redis.call('XDEL', key_of(entry), id_of(entry))"),
    mutant("drop leaves the delayed retry", "_common", "redis.call('ZREM', P .. 'z', member)\n    "),
    mutant("blobs are not let go", "_common", "  let_go(digests)\n"),
    mutant("blobs in use keep their lifetime", "_common", "redis.call('PERSIST', P .. 'f:' .. digest)"),
    mutant("a closed client lives for ever", "_common", "redis.call('EXPIRE', P .. 'c:' .. client, IDLE_S)"),
    mutant("replies live for ever", "_common", "redis.call('EXPIRE', P .. 'r:' .. client, IDLE_S)"),
    mutant("an open client may die", "submit", "redis.call('PERSIST', key)"),
    mutant("take-back revives old entries", "_common", "if current ~= entry then\n            drop", "if not current then\n            drop"),
    mutant("take-back always charges", "_common", "if entry == running and item >= done then", "if item >= done or running == '' then"),
    mutant("take-back never charges", "_common", "if entry == running and item >= done then", "if false then"),
    mutant("take-back charges what was reported", "_common", "if entry == running and item >= done then", "if entry == running then"),
    mutant("take-back sums crashes over items", "_common", "if charged == item and crashes >= 0 then", "if crashes >= 0 then"),
    mutant("take-back forgets what was done", "_common", "stand(e.c, e.n, add(0, e), done)\n              moved", "stand(e.c, e.n, add(0, e), 0)\n              moved"),
    mutant("take-back loses track of the new entry", "_common", "stand(e.c, e.n, add(0, e), done)\n              moved", "add(0, e)\n              moved"),
    mutant("the consumer goes before its entries", "_common", "  for stream = 0, 1 do\n    local key = P .. 's:' .. stream\n", "  for stream = 0, 1 do\n    local key = P .. 's:' .. stream\n    redis.call('XGROUP', 'DELCONSUMER', key, GROUP, consumer)\n"),
    mutant("the consumer stays", "_common", "redis.call('XGROUP', 'DELCONSUMER', key, GROUP, consumer)\n  end\n  return", "end\n  return"),
    mutant("beat is not fenced", "beat", "if redis.call('HEXISTS', P .. 'hb', host) == 0 then return {'FENCED'} end"),
    mutant("beat does not notice a new memory", "beat", "if ARGV[4] ~= '' and redis.call('GET', P .. 'e') ~= ARGV[4] then return {'FORGOT'} end"),
    mutant("beat does not sweep unregistered hosts", "beat", "(owner == host or redis.call('HEXISTS', P .. 'hb', owner) == 0)", "owner == host"),
    mutant("beat does not sweep its own dead", "beat", "(owner == host or redis.call('HEXISTS', P .. 'hb', owner) == 0)", "redis.call('HEXISTS', P .. 'hb', owner) == 0"),
    mutant("beat sweeps the living of others", "beat", "(owner == host or redis.call('HEXISTS', P .. 'hb', owner) == 0)", "true"),
    mutant("beat promotes before time", "beat", "'-inf', now, 'LIMIT'", "'-inf', '+inf', 'LIMIT'"),
    mutant("beat promotes without saying so", "beat", "stand(e.c, e.n, add(0, e), 0)", "add(0, e)"),
    mutant("cancel does not drop", "cancel", "    drop(client, n, current)\n"),
    mutant("cancel does not close", "cancel", "    close(client, n, digests)\n"),
    mutant("reap does not compare the counter", "reap", "redis.call('HGET', P .. 'hb', ARGV[1]) ~= ARGV[2]", "redis.call('HEXISTS', P .. 'hb', ARGV[1]) == 0"),
    mutant("leave keeps what it holds", "leave", "for consumer in pairs(dead) do take_back(consumer, '', -1, 0, '') end"),
    mutant("leave keeps its name", "leave", "redis.call('HDEL', P .. name, ARGV[1])"),
    mutant("release takes from others", "release", "id_of(entry), 1, consumer)", "id_of(entry), 1)"),
    mutant("release revives old entries", "release", "if current == entry then", "if current then"),
    mutant("hello gives a new epoch each time", "hello", "redis.call('HSETNX', key, 'epoch', fresh) == 1", "redis.call('HSET', key, 'epoch', fresh) >= 0"),
    mutant("hello cannot pass the memory limit", "hello", "pass_memory_limit()"),
    mutant("register cannot pass the memory limit", "register", "pass_memory_limit()"),
    mutant("announce speaks for old attempts", "announce", "if current ~= ARGV[3] then return 0 end", "if not current then return 0 end"),
]  # fmt: skip


def turns_red(server: PrivateServer, **changes: Any) -> bool:
    machine = machine_on(server, **changes)
    try:
        seed(1)(run_state_machine_as_test)(machine, settings=PROFILE)
    except (AssertionError, CommandError, NbqueueError, KeyError, IndexError):
        return True
    except HypothesisException as error:
        raise AssertionError("the machine itself is broken") from error
    return False


def plant(monkeypatch: pytest.MonkeyPatch, mutant: Mutant) -> None:
    found = []

    @cache
    def mutated(name: str) -> bytes:
        text = script(name).decode()
        if mutant.script in (name, "_common") and mutant.old in text:
            found.append(name)
            text = text.replace(mutant.old, mutant.new)
        return text.encode()

    @cache
    def sha(name: str) -> str:
        return hashlib.sha1(mutated(name), usedforsecurity=False).hexdigest()

    for name in broker_module._SCRIPTS:
        mutated(name)
    assert found, f"the line that {mutant.name!r} is about is gone: {mutant.old}"
    monkeypatch.setattr(broker_module, "script", mutated)
    monkeypatch.setattr(broker_module, "_sha", sha)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_model_notices_when(mutant: Mutant, server: PrivateServer, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, mutant)
    assert turns_red(server)


def test_the_model_notices_when_a_worker_does_not_read_its_own_pending_entries_first(
    server: PrivateServer,
) -> None:
    assert turns_red(server, reads_own_pending=False)
