"""The model test has power: each line that makes the protocol safe is taken away, and the model turns red.

A mutant names a script (``_common`` is part of all), the words that go and the words that come. The words are
looked up in the scripts, so a mutant cannot outlive the line that it is about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from mutants import compiles, planted, source_of, turns_red

from nbqueue.stream.server import PrivateServer


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
CHARGE = "if item and item >= done and not (charged == item and crashes < 0) then"
SWEEP = "(owner == host or redis.call('HEXISTS', P .. 'hb', owner) == 0)"
FENCE = "if redis.call('HEXISTS', P .. 'hb', host) == 0 then return {'FENCED'} end"
FORGOT = "if ARGV[4] ~= '' and redis.call('GET', P .. 'e') ~= ARGV[4] then return {'FORGOT'} end"
GIVE_BACK = "for consumer in pairs(dead) do take_back(consumer, {}) end"
COUNTER = "redis.call('HGET', P .. 'hb', ARGV[1]) ~= ARGV[2]"
OLD_WORD = "(current ~= entry and failed > 0)"
NEW_EPOCH = "redis.call('HSETNX', key, 'epoch', fresh) == 1"
RECORD_DIES = "redis.call('EXPIRE', P .. 'c:' .. client, IDLE_S)"
REPLIES_DIE = "redis.call('EXPIRE', P .. 'r:' .. client, IDLE_S)"
DOUBLE = "(refs[digest] or 0) + by"
COUNTED = "(counted[name] or 0) + by"
STREAM_LIVES = "how == 'put' or redis.call('XLEN', key) > 0"
BACK = "string.sub(entry, 1, 1) == '2' and '2' or '0'"
MOVE = "stand(e.c, e.n, add(back(entry), e), done)\n              moved"
LOOP = "  for stream = 0, 2 do\n    local key = P .. 's:' .. stream\n"
GO = "    redis.call('XGROUP', 'DELCONSUMER', key, GROUP, consumer)\n"
LEFT = "left[bundle] = (left[bundle] or 0) + 1"
STANDS = "if places[at] == bundle .. '+' .. name .. '|0' then"
OLD_CALL = "if tonumber(name) > mark then"
CRASHES = "crashes = crashes + 1\n  if"
GIVEN = "local given = charges[bundle .. '+' .. name]"
FROM = "if not from or tonumber(name) >= tonumber(from) then"
GO_TOGETHER = "if #rest > 0 then add_together(back(entry), e, rest) end"

MUTANTS = [
    mutant("submit does not compare the mark", "submit", "if tonumber(n) > mark then", "if true then"),
    mutant("submit does not compare the epoch", "submit", "if record[1] ~= epoch then", "if not record[1] then"),
    mutant("submit takes calls without their blobs", "submit", "if #missing > 1 then return missing end"),
    mutant("submit waits for what has ended", "submit", "if #ended > 1 then return ended end"),
    mutant("submit does not know what comes with it", "submit", "tonumber(need) <= mark and "),
    mutant("submit does not settle", "submit", "settle()"),
    mutant("submit lets a client live for ever that sends again", "submit", "if newest then", "if mark then"),
    mutant("submit puts all calls into one stream", "submit", "add(stream, e)", "add(1, e)"),
    mutant("a low call that comes back goes first", "_common", BACK, "'0'"),
    mutant("a call that comes back does not go first", "_common", BACK, "string.sub(entry, 1, 1)"),
    mutant("a low call that has waited for others goes in order", "_common", "add(e.t, e), done", "add(1, e), done"),
    mutant("a low call that is retried goes first", "finish", "parked.t = back(entry)", "parked.t = '0'"),
    mutant("finish counts a report twice", "finish", "or upto <= done or", "or"),
    mutant("finish leaves a gap", "finish", "first > done or"),
    mutant("finish takes an old failure", "finish", OLD_WORD, "false"),
    mutant("finish takes an old retry", "finish", "or (retry and not parked)"),
    mutant("finish refuses an old success", "finish", OLD_WORD, "current ~= entry"),
    mutant(
        "finish leaves the new attempt behind",
        "finish",
        "if upto >= total then drop(client, n, current)",
        "if upto >= total then drop(client, n, entry)",
    ),
    mutant("finish tells stale to a repetition", "finish", "(current == entry and upto <= done)", "false"),
    mutant("finish does not hold blobs for a retry", "finish", "hold(digests, 1)"),
    mutant("finish gives a failure for a value", "finish", "failed == 0 and reply", "reply", soak=True),
    mutant("finish cannot pass the memory limit", "finish", "pass_memory_limit()"),
    mutant("finish forgets that a retry waits", "finish", "stand(client, name, 'z/' .. attempt, 0)"),
    mutant("drop does not acknowledge", "_common", "redis.call('XACK', key_of(entry), GROUP, id_of(entry))"),
    mutant("drop does not delete", "_common", "redis.call('XDEL', key_of(entry), id_of(entry))"),
    mutant("drop leaves the delayed retry", "_common", "redis.call('ZREM', P .. 'z', member)\n    "),
    mutant("blobs are not let go", "_common", "  hold(digests, -1)\n"),
    mutant("a value is not kept", "_common", "if value and found then redis.call('HSET', key, 'b', value) end"),
    mutant("a value is kept for nobody", "_common", "if value and found then", "if value then"),
    mutant("a call begins before all is there", "_common", "if value and open > 0 then", "if false then"),
    mutant("a call does not begin when all is there", "_common", "if value and open > 0 then", "if value then"),
    mutant("a call outlives what it needs", "_common", "ended[#ended + 1] = {name, e and e.d or ''}", soak=True),
    mutant("a call that waits is due", "_common", "park(e, '+inf')", "park(e, '0')"),
    mutant("blobs in use keep their lifetime", "_common", "elseif now == by then", "elseif false then"),
    mutant("a blob is held once by all calls of a step", "_common", DOUBLE, "by"),
    mutant("of several ends in a step one is counted", "_common", COUNTED, "by"),
    mutant("streams with calls may die", "_common", STREAM_LIVES, "how == 'put'"),
    mutant("emptied streams live for ever", "_common", "  seen[key_of(entry)] = true\n"),
    mutant("a closed client lives for ever", "_common", RECORD_DIES),
    mutant("replies live for ever", "_common", REPLIES_DIE),
    mutant("an open client may die", "submit", "redis.call('PERSIST', key)"),
    mutant("what an open client was told may die", "submit", "redis.call('PERSIST', P .. 'r:' .. client)"),
    mutant("take-back always charges", "_common", "charges[entry] or {}", "charges[entry] or {done, 1, ''}"),
    mutant("take-back charges one for another", "_common", "charges[entry]", "charges[next(charges)]"),
    mutant("take-back charges only one", "reclaim", "for at = 2, #ARGV, 4 do", "for at = 2, #ARGV, #ARGV do"),
    mutant("take-back never charges", "_common", CHARGE, "if false then"),
    mutant("take-back charges what was reported", "_common", CHARGE, "if item then"),
    mutant("take-back charges what has ended", "_common", CHARGE, "if item and item >= done then", soak=True),
    mutant(
        "take-back sums crashes over items",
        "_common",
        "if charged == item then crashes",
        "if crashes >= 0 then crashes",
    ),
    mutant("take-back forgets what was done", "_common", MOVE, MOVE.replace("done", "0")),
    mutant(
        "take-back loses track of the new entry",
        "_common",
        MOVE,
        MOVE.replace("stand(e.c, e.n, add(back(entry), e), done)", "add(back(entry), e)"),
    ),
    mutant("the consumer goes before its entries", "_common", LOOP, LOOP + GO),
    mutant("the consumer stays", "_common", GO + "  end\n  return", "  end\n  return"),
    mutant("beat is not fenced", "beat", FENCE),
    mutant("beat does not notice a new memory", "beat", FORGOT),
    mutant("beat does not sweep unregistered hosts", "beat", SWEEP, "owner == host"),
    mutant("beat does not sweep its own dead", "beat", SWEEP, "redis.call('HEXISTS', P .. 'hb', owner) == 0"),
    mutant("beat sweeps the living of others", "beat", SWEEP, "true"),
    mutant("beat promotes before time", "beat", "'-inf', now, 'LIMIT'", "'-inf', '+inf', 'LIMIT'"),
    mutant("beat promotes without saying so", "beat", "stand(e.c, e.n, add(e.t, e), 0)", "add(e.t, e)"),
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
    # Calls that lie together
    mutant("submit takes a call of a bundle twice", "submit", OLD_CALL, "if true then"),
    mutant(
        "submit takes no bundle of which it has a call", "submit", OLD_CALL, "if tonumber(n:match('%d+')) > mark then"
    ),
    mutant("a bundle holds its blobs once", "submit", "hold(digests, #names)", "hold(digests, 1)"),
    mutant("submit puts all bundles into one stream", "submit", "add_together(stream, {", "add_together('1', {"),
    mutant("calls lie together uncounted", "_common", "  count('bundled', #names - 1)\n"),
    mutant(
        "a bundle goes with the first that leaves it", "_common", "elseif is_bundled(entry) then", "elseif false then"
    ),
    mutant("a bundle goes though some are there", "_common", "if there == 0 then", "if true then"),
    mutant("a bundle stays that all have left", "_common", "if there == 0 then", "if false then"),
    mutant("of several that leave at once one is counted", "_common", LEFT, "left[bundle] = 1"),
    mutant("the last that leaves is counted", "_common", "      number = number - 1\n"),
    mutant("who has left a bundle is taken for there", "_common", STANDS, "if places[at] then"),
    mutant(
        "the number of those that lie together may die", "_common", "redis.call('PERSIST', P .. 'n')", "local _ = 0"
    ),
    mutant("take-back leaves those behind that did not run", "_common", GO_TOGETHER),
    mutant(
        "take-back brings bundles first that are low", "_common", GO_TOGETHER, GO_TOGETHER.replace("back(entry)", "'0'")
    ),
    mutant("take-back charges nobody of a bundle", "_common", GIVEN, "local given = nil"),
    mutant("take-back charges all of a bundle", "_common", GIVEN, "local given = charges[next(charges)]"),
    mutant(
        "take-back charges only one of a bundle",
        "_common",
        "= moved + back_again, ended + over\n    else",
        "= back_again, over\n    else",
    ),
    mutant("a call of a bundle may crash for ever", "_common", CRASHES, "crashes = 1\n  if"),
    mutant(
        "a call of a bundle may not crash at all",
        "_common",
        "if crashes > cap then\n    tell",
        "if true then\n    tell",
    ),
    mutant(
        "a charged call of a bundle is no new attempt",
        "_common",
        "attempt + 1 .. ' ' .. crashes",
        "attempt .. ' ' .. crashes",
    ),
    mutant("take-back counts a bundle twice", "_common", "  if #names > 0 then count('bundled', 1 - #names) end\n"),
    mutant("finish leaves empty bundles", "finish", "settle_bundles()"),
    mutant("values leaves empty bundles", "values", "settle_bundles()"),
    mutant("cancel leaves empty bundles", "cancel", "settle_bundles()"),
    mutant("refuse leaves empty bundles", "refuse", "settle_bundles()"),
    mutant("release leaves empty bundles", "release", "settle_bundles()"),
    mutant(
        "finish of a bundle cannot pass the memory limit",
        "finish",
        "upto < total or is_bundled(current)",
        "upto < total",
    ),
    mutant("a retry takes its whole bundle along", "finish", "parked.n, parked.i, parked.p = n, '1', payload\n"),
    mutant("release gives back what runs", "release", FROM, "if true then"),
    mutant("release gives back one", "release", ">= tonumber(from)", "== tonumber(from)"),
    mutant("release gives bundles back twice", "release", "drop(e.c, name, bundle .. '+' .. name)\n"),
    mutant(
        "a low call that is given back from a bundle goes first",
        "release",
        "add_together(back(entry), e",
        "add_together('0', e",
    ),
    mutant("refuse ends a call of a bundle and leaves it there", "refuse", "if stands then drop(client, n, entry) end"),
    mutant("refuse takes the whole bundle", "refuse", "if is_bundled(entry) then", "if false then", soak=True),
    # Values that are told together
    mutant("values does not drop", "values", "    drop(client, n, current)\n"),
    mutant("values ends one twice", "values", "not ended[n] and "),
    mutant("values drops the old attempt", "values", "drop(client, n, current)", "drop(client, n, entry)"),
    mutant("values does not close", "values", "  redis.call('HDEL', key, unpack(names))\n"),
    mutant("values does not let blobs go", "values", "  hold(digests, -#names)\n"),
    mutant("values lets clients live for ever", "values", "  idle[client] = true\n"),
    mutant("values keeps what others need", "values", "pass_on(client, n, message)", "pass_on(client, n)"),
    mutant("values forgets who waits", "values", "if do_some_wait() then", "if false then"),
    mutant("values tells of all", "values", "table.concat(names, ',')", "table.concat(given, ',')"),
    mutant("values tells nothing", "values", "  tell(client, table.concat(names, ','), 'm', message)\n"),
    mutant("values tells of nobody", "values", "if #names > 0 then", "if true then"),
    mutant("values counts what no longer counts", "values", "count('done', #names)", "count('done', #out)"),
    mutant("values refuses an old success", "values", "if current then", "if current == ARGV[2 + 2 * at] then"),
    mutant(
        "announce speaks for old attempts",
        "announce",
        "if current ~= ARGV[3] then return 0 end",
        "if not current then return 0 end",
    ),
]


# What real clients, workers and supervisors keep to, and the actors as well.
HABITS = [
    "reads_own_pending",
    pytest.param("keeps_reports", marks=pytest.mark.soak),  # these two take ten seconds each
    pytest.param("reports_before_it_fetches", marks=pytest.mark.soak),
    "lists_its_newest",
    "strikes_its_dead",
    "reads_before_it_resends",
    "resends_in_order",
    "cancels_retried_items",
    "repacks_what_it_retries",
]


def plant(mutant: Mutant) -> dict[str, str]:
    """The scripts that a mutant changes."""
    source = source_of(mutant.script)
    assert mutant.old in source, f"the line that {mutant.name!r} is about is gone: {mutant.old}"
    return {mutant.script: source.replace(mutant.old, mutant.new)}


def test_the_model_notices_nothing_where_nothing_is_wrong(one_server: PrivateServer) -> None:
    """Or all the others would pass, whatever is wrong here."""
    with planted({}):
        compiles(one_server)
        assert not turns_red(one_server, 15)


@pytest.mark.apart
@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_model_notices_when(mutant: Mutant, one_server: PrivateServer) -> None:
    with planted(plant(mutant)):
        compiles(one_server)
        assert turns_red(one_server)


@pytest.mark.parametrize("habit", HABITS)
def test_the_model_notices_when_an_actor_no_longer(habit: str, one_server: PrivateServer) -> None:
    assert turns_red(one_server, **{habit: False})
