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

from nbqueue.stream import broker as broker_module
from nbqueue.stream.broker import Broker, script
from nbqueue.stream.connect import Wire
from nbqueue.stream.keys import Keys
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


# Lines that several mutants are about, or that are long.
CHARGE = "if entry == running and item >= done then"
SWEEP = "(owner == host or redis.call('HEXISTS', P .. 'hb', owner) == 0)"
FENCE = "if redis.call('HEXISTS', P .. 'hb', host) == 0 then return {'FENCED'} end"
FORGOT = "if ARGV[4] ~= '' and redis.call('GET', P .. 'e') ~= ARGV[4] then return {'FORGOT'} end"
GIVE_BACK = "for consumer in pairs(dead) do take_back(consumer, '', -1, 0, '') end"
COUNTER = "redis.call('HGET', P .. 'hb', ARGV[1]) ~= ARGV[2]"
OLD_WORD = "(current ~= entry and (failed > 0 or retry))"
NEW_EPOCH = "redis.call('HSETNX', key, 'epoch', fresh) == 1"
RECORD_DIES = "redis.call('EXPIRE', P .. 'c:' .. client, IDLE_S)"
REPLIES_DIE = "redis.call('EXPIRE', P .. 'r:' .. client, IDLE_S)"
BLOB_LIVES = "redis.call('PERSIST', P .. 'f:' .. digest)"
MOVE = "stand(e.c, e.n, add(0, e), done)\n              moved"
LOOP = "  for stream = 0, 1 do\n    local key = P .. 's:' .. stream\n"
GO = "    redis.call('XGROUP', 'DELCONSUMER', key, GROUP, consumer)\n"

MUTANTS = [
    mutant("submit does not compare the mark", "submit", "if tonumber(n) > mark then", "if true then"),
    mutant("submit does not compare the epoch", "submit", "if record[1] ~= epoch then", "if not record[1] then"),
    mutant("submit takes calls without their blobs", "submit", "if #missing > 1 then return missing end"),
    mutant(
        "submit leaves an idle stream without a lifetime",
        "submit",
        "lifetimes()",
        "redis.call('PERSIST', NORMAL)",
    ),
    mutant("finish counts a report twice", "finish", "or upto <= done or", "or"),
    mutant("finish leaves a gap", "finish", "first > done or"),
    mutant(
        "finish takes an old failure",
        "finish",
        OLD_WORD,
        "(current ~= entry and retry)",
    ),
    mutant(
        "finish takes an old retry",
        "finish",
        OLD_WORD,
        "(current ~= entry and failed > 0)",
    ),
    mutant("finish refuses an old success", "finish", "(failed > 0 or retry))", "true)"),
    mutant(
        "finish leaves the new attempt behind",
        "finish",
        "if current ~= entry then drop(client, n, current) end",
    ),
    mutant("finish tells stale to a repetition", "finish", "(current == entry and upto <= done)", "false"),
    mutant("finish does not hold blobs for a retry", "finish", "hold(digests)"),
    mutant("finish cannot pass the memory limit", "finish", "pass_memory_limit()"),
    mutant("finish forgets that a retry waits", "finish", "stand(client, name, 'z/' .. attempt, 0)"),
    mutant("drop does not acknowledge", "_common", "redis.call('XACK', key_of(entry), GROUP, id_of(entry))"),
    mutant("drop does not delete", "_common", "redis.call('XDEL', key_of(entry), id_of(entry))"),
    mutant("drop leaves the delayed retry", "_common", "redis.call('ZREM', P .. 'z', member)\n    "),
    mutant("blobs are not let go", "_common", "  let_go(digests)\n"),
    mutant("blobs in use keep their lifetime", "_common", BLOB_LIVES),
    mutant("a closed client lives for ever", "_common", RECORD_DIES),
    mutant("replies live for ever", "_common", REPLIES_DIE),
    mutant("an open client may die", "submit", "redis.call('PERSIST', key)"),
    mutant("take-back always charges", "_common", CHARGE, "if item >= done or running == '' then"),
    mutant("take-back never charges", "_common", CHARGE, "if false then"),
    mutant("take-back charges what was reported", "_common", CHARGE, "if entry == running then"),
    mutant(
        "take-back sums crashes over items",
        "_common",
        "if charged == item and crashes >= 0 then",
        "if crashes >= 0 then",
    ),
    mutant("take-back forgets what was done", "_common", MOVE, MOVE.replace("done", "0")),
    mutant(
        "take-back loses track of the new entry",
        "_common",
        MOVE,
        MOVE.replace("stand(e.c, e.n, add(0, e), done)", "add(0, e)"),
    ),
    mutant("the consumer goes before its entries", "_common", LOOP, LOOP + GO),
    mutant("the consumer stays", "_common", GO + "  end\n  return", "  end\n  return"),
    mutant("beat is not fenced", "beat", FENCE),
    mutant("beat does not notice a new memory", "beat", FORGOT),
    mutant("beat does not sweep unregistered hosts", "beat", SWEEP, "owner == host"),
    mutant("beat does not sweep its own dead", "beat", SWEEP, "redis.call('HEXISTS', P .. 'hb', owner) == 0"),
    mutant("beat sweeps the living of others", "beat", SWEEP, "true"),
    mutant("beat promotes before time", "beat", "'-inf', now, 'LIMIT'", "'-inf', '+inf', 'LIMIT'"),
    mutant("beat promotes without saying so", "beat", "stand(e.c, e.n, add(0, e), 0)", "add(0, e)"),
    mutant("cancel does not drop", "cancel", "    drop(client, n, current)\n"),
    mutant("cancel does not close", "cancel", "    close(client, n, digests)\n"),
    mutant("reap does not compare the counter", "reap", COUNTER, "redis.call('HEXISTS', P .. 'hb', ARGV[1]) == 0"),
    mutant("leave keeps what it holds", "leave", GIVE_BACK),
    mutant("leave keeps its name", "leave", "redis.call('HDEL', P .. name, ARGV[1])"),
    mutant(
        "hello gives a new epoch each time",
        "hello",
        NEW_EPOCH,
        "redis.call('HSET', key, 'epoch', fresh) >= 0",
    ),
    mutant("hello cannot pass the memory limit", "hello", "pass_memory_limit()"),
    mutant("register cannot pass the memory limit", "register", "pass_memory_limit()"),
    mutant(
        "announce speaks for old attempts",
        "announce",
        "if current ~= ARGV[3] then return 0 end",
        "if not current then return 0 end",
    ),
]


def turns_red(server: PrivateServer, **changes: Any) -> bool:
    machine = machine_on(server, **changes)
    try:
        seed(1)(run_state_machine_as_test)(machine, settings=PROFILE)
    except HypothesisException:
        raise
    except Exception:  # noqa: BLE001 - red is red: actors stumble over nonsense in many ways
        return True
    return False


def with_scripts_that_compile(server: PrivateServer) -> None:
    broker = Broker(Wire(server.address, timeout_s=5), Keys.of("mutant", "0"))
    broker.connect()
    broker.wire.close()


def plant(monkeypatch: pytest.MonkeyPatch, mutant: Mutant) -> None:
    found = []

    @cache
    def mutated(name: str) -> bytes:
        text = script(name).decode()
        own = text.index("\n", text.rindex("return moved, ended\nend"))
        common, rest = text[:own], text[own:]
        if mutant.script == "_common" and mutant.old in common:
            found.append(name)
            common = common.replace(mutant.old, mutant.new)
        elif mutant.script == name and mutant.old in rest:
            found.append(name)
            rest = rest.replace(mutant.old, mutant.new)
        return (common + rest).encode()

    @cache
    def sha(name: str) -> str:
        return hashlib.sha1(mutated(name), usedforsecurity=False).hexdigest()

    for name in broker_module._SCRIPTS:
        mutated(name)
    assert found, f"the line that {mutant.name!r} is about is gone: {mutant.old}"
    monkeypatch.setattr(broker_module, "script", mutated)
    monkeypatch.setattr(broker_module, "_sha", sha)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_model_notices_when(mutant: Mutant, one_server: PrivateServer, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, mutant)
    with_scripts_that_compile(one_server)
    assert turns_red(one_server)


def test_the_model_notices_when_a_worker_does_not_read_its_own_pending_entries_first(
    one_server: PrivateServer,
) -> None:
    assert turns_red(one_server, reads_own_pending=False)
