"""Each line of each script is needed: whatever is changed in it, the model turns red; or it is told here why not.

`lua_mutants` makes the mutants, some 1,200. An exemption names a script, a line of it, the words that change, what
they become, and why no promise is broken. One that no longer fits a line fails, and so does one that the model
notices after all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from lua_mutants import Change, changes
from mutants import compiles, planted, source_of, turns_red

from nbqueue.errors import ServerError
from nbqueue.stream import broker as broker_module
from nbqueue.stream.connect import CommandError, Wire
from nbqueue.stream.server import PrivateServer

NAMES = ("_common", *broker_module._SCRIPTS)
# A mutant that is not noticed within so many sequences is not noticed.
ENOUGH = 600
# An exempt one is looked at for a while, one about strangers at a glance: those are for other tests to notice.
A_WHILE = 60
A_GLANCE = 8
# A script that never ends, because of its mutation, is given up after this.
ENDLESS_S = 1.5


@dataclass(frozen=True)
class Exempt:
    script: str
    line: str  # the whole line, stripped
    old: str
    new: str
    why: str
    nth: int = 1  # of several changes of these words in the line

    def fits(self, script: str, change: Change, nth: int) -> bool:
        mine = self.script, self.line, self.old, self.new, self.nth
        return mine == (script, change.text, change.old, change.new, nth)


PAGE = "local pending = redis.call('XPENDING', key, GROUP, '-', '+', 200, consumer)"
CHARGE = "if item and item >= done and not (charged == item and crashes < 0) then"
NO_CHARGE = "crashes are 0 only where no item is charged"
FORBIDDEN = "if made.err and not string.find(made.err, 'BUSYGROUP') then return made end"
ACL = "only for a user who may not: test_broker has one"
STALE = "out[#out + 1] = (current == entry and upto <= done) and 'OK' or 'STALE'"
PARKED = "local parked = retry and current == entry and read(entry)"
NOW = "now = now or redis.call('TIME')"
STALE_OR_OK = STALE.removeprefix("out[#out + 1] = ")

TAMPERED = "only where a stranger has deleted the content of an open call: it can be cancelled all the same"
HELD = "local ok, rows = pcall(redis.call, 'XPENDING', key_of(current), GROUP, id_of(current), id_of(current), 1)"
INBOX = (
    "redis.call('XADD', inbox, 'MAXLEN', '~', 1000, '*', 'op', 'cancel', 'entry', current, 'consumer', consumer)"
)
POKE = "redis.call('XADD', inbox, 'MAXLEN', '~', 1000, '*', 'op', 'beat')"
FORGOT = "if ARGV[4] ~= '' and redis.call('GET', P .. 'e') ~= ARGV[4] then return {'FORGOT'} end"
DUE = "for _, member in ipairs(redis.call('ZRANGEBYSCORE', P .. 'z', '-inf', now, 'LIMIT', 0, 500)) do"
ANSWER = "local out = {'OK', next_due[2] and math.max(0, next_due[2] - now) or -1}"
PASS = "pass_memory_limit()", "pass_memory_limit()", ""
PUT = "if how == 'put' or redis.call('XLEN', key) > 0 then"
SAVES = "it saves a command"
HELD_BY = "local rows = redis.call('XPENDING', key_of(entry), GROUP, id_of(entry), id_of(entry), 1, consumer)"
NEXT_DUE = "local next_due = redis.call('ZRANGEBYSCORE', P .. 'z', '-inf', '(+inf', 'WITHSCORES', 'LIMIT', 0, 1)"
SOME = "if some_wait == nil then some_wait = redis.call('EXISTS', P .. 'z') == 1 end"
PASS_ON = "if upto < total or is_bundled(current) then pass_memory_limit() end"
APART = "if #names > 0 then count('bundled', 1 - #names) end"
LENGTH = "if f[8] == '0' and (#f[4] > 1000 or not string.match(f[4], '^%d[%d,]*$')) then return nil end"
ANY_EPOCH = "redis.call('GET', P .. 'e') ~= ARGV[4]"

EXEMPT = [
    Exempt("_common", PAGE, "200", "401", "only how many are looked at in one turn of the loop"),
    Exempt("_common", "elseif now == by then", "now == by", "true", SAVES),
    Exempt("_common", PUT, PUT.removeprefix("if ").removesuffix(" then"), "redis.call('XLEN', key) > 0", SAVES),
    Exempt("_common", CHARGE, "0", "1", NO_CHARGE),
    Exempt("_common", CHARGE, "<", "<=", NO_CHARGE),
    Exempt("beat", FORGOT, f"ARGV[4] ~= '' and {ANY_EPOCH}", ANY_EPOCH, "no supervisor beats without an epoch"),
    Exempt("beat", FORGOT, "4", "9", "no supervisor beats without an epoch"),
    Exempt("beat", DUE, "500", "1001", "only how many go with one beat: the next one comes at once"),
    Exempt("beat", ANSWER, "1", "3", "any number below 0 says that there is none"),
    Exempt("reap", "return 1", "1", "3", "any number but 0 says yes"),
    Exempt("announce", "return 1", "1", "3", "any number but 0 says yes"),
    Exempt("beat", ANSWER, "0", "1", "a millisecond later", nth=1),
    Exempt("beat", NEXT_DUE, "1", "3", "of several the first is taken"),
    Exempt("_common", SOME, "some_wait == nil", "true", "it saves a command"),
    Exempt("_common", "if do_some_wait() then", "do_some_wait()", "true", "it saves a command"),
    Exempt("values", "if do_some_wait() then", "do_some_wait()", "true", "it saves a command"),
    Exempt("finish", PASS_ON, "upto < total or is_bundled(current)", "true", SAVES),
    Exempt("finish", PASS_ON, "<", "<=", SAVES),
    Exempt("_common", APART, "0", "1", "a call that is alone in its bundle is not counted"),
    Exempt("_common", LENGTH, "1000", "2001", "only how long what others wrote may be"),
    Exempt("_common", LENGTH, ">", ">=", "only how long what others wrote may be"),
    Exempt("leave", *PASS, "its HDEL opens the gate as well, unless streams are missing"),
    Exempt("release", HELD_BY, "1", "3", "there is one entry of that id at most"),
    Exempt("release", *PASS, "an entry's XACK opens the gate as well, unless streams are missing"),
    Exempt("refuse", *PASS, "an entry's XACK opens the gate as well, unless streams are missing"),
    Exempt("reclaim", *PASS, "an entry's XACK opens the gate as well, unless streams are missing"),
    Exempt("prepare", FORBIDDEN, "made.err and not string.find(made.err, 'BUSYGROUP')", "false", ACL),
    Exempt("prepare", FORBIDDEN, "return made", "", ACL),
    Exempt(
        *("finish", STALE, "current == entry and upto <= done", "current == entry"),
        "whoever holds the current entry reports without a gap; what is said to others is in test_broker",
    ),
    Exempt("finish", STALE, STALE_OR_OK, STALE_OR_OK.removesuffix(" or 'STALE'"), "no answer says that it is stale"),
    Exempt("finish", PARKED, "retry and current == entry", "current == entry", SAVES),
    Exempt("finish", NOW, "now or redis.call('TIME')", "redis.call('TIME')", SAVES),
    Exempt("cancel", "local digests = ''", "''", "nil", TAMPERED),
    Exempt("cancel", "if e then digests = e.d end", "e", "true", TAMPERED),
    Exempt("beat", "if e then", "e", "true", "only where a stranger has deleted what was parked: test_refusals"),
    Exempt("cancel", INBOX, "1000", "2001", "only how long the inbox of a host gets that does not read it"),
    Exempt("poke", POKE, "1000", "2001", "only how long the inbox of a host gets that does not read it"),
    Exempt("cancel", HELD, "1", "3", "there is one entry of that id at most"),
]


# Lines about what nobody writes who keeps to the protocol. Most of it the model's actors do not write: test_refusals
# is asked as well.
STRANGERS = {
    ("_common", "if #f ~= 12 or not string.match(f[8], '^%d+$') or not string.match(f[10], STATE) then return nil end"),
    ("_common", LENGTH),
    ("_common", "local there = e and #standing_in(e, bundle) or 0"),
    ("_common", "if e and e.i == '0' then"),
    ("_common", "local _, v = pcall(cmsgpack.unpack, parked)"),
    ("_common", "if type(v) ~= 'table' then return nil end"),
    ("_common", "for at = 1, 7 do"),
    ("_common", "if type(v[at]) ~= 'string' then return nil end"),
    ("_common", "if not string.match(v[7], '^[012]$') then return nil end"),
    ("_common", "for _, n in ipairs(redis.call('HVALS', P .. 'hw')) do sum = sum + (tonumber(n) or 0) end"),
    ("_common", "local function host_of(consumer) return string.match(consumer, '^[^:]*') end"),
    ("_common", "if entry and string.sub(entry, 1, 1) == 'w' then"),
    ("_common", "elseif e then"),
    ("_common", "ended[#ended + 1] = {name, e and e.d or ''}"),
    ("beat", "ready()"),
    ("finish", PARKED),
    ("finish", "if not read(entry) then remove(entry) end"),
    ("values", "if not read(entry) then remove(entry) end"),
    ("refuse", "local stands = standing(client, n) == entry"),
    ("refuse", "if stands then"),
    ("release", "if current == entry then"),
}


@dataclass
class Tally:
    lines: int = 0
    mutants: int = 0
    red: int = 0
    exempt: int = 0
    green: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[dict[str, Tally]]:
    """Shown when all is done."""
    rows: dict[str, Tally] = {}
    yield rows
    reporter: Any = request.config.pluginmanager.get_plugin("terminalreporter")
    sums = [sum(getattr(row, name) for row in rows.values()) for name in ("lines", "mutants", "red", "exempt")]
    reporter.write_line("")
    reporter.write_line(f"{'script':10} {'lines':>6} {'mutants':>8} {'red':>6} {'exempt':>7} {'green':>6}")
    for name, row in rows.items():
        numbers = f"{row.lines:6} {row.mutants:8} {row.red:6} {row.exempt:7} {len(row.green):6}"
        reporter.write_line(f"{name:10} {numbers}")
    green = sum(len(row.green) for row in rows.values())
    reporter.write_line(f"{'all':10} {sums[0]:6} {sums[1]:8} {sums[2]:6} {sums[3]:7} {green:6}")


@pytest.mark.soak
def test_scripts_that_nobody_has_changed_are_not_noticed(one_server: PrivateServer, tmp_path: Path) -> None:
    """Or all the others would pass, whatever is wrong here."""
    assert not refusals_turn_red(tmp_path, "_common", source_of("_common"))
    with planted({}):
        assert not turns_red(one_server, ENOUGH, timeout_s=ENDLESS_S)


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_no_line_can_be_changed_unnoticed(
    name: str, one_server: PrivateServer, table: dict[str, Tally], tmp_path: Path
) -> None:
    source = source_of(name)
    row = table[name] = Tally()
    found = changes(source)
    row.lines = len({change.line for change in found})
    unused = {e for e in EXEMPT if e.script == name}
    wrong = []
    seen: Counter[tuple[int, str, str]] = Counter()
    for change in found:
        row.mutants += 1
        seen[change.line, change.old, change.new] += 1
        nth = seen[change.line, change.old, change.new]
        exemption = next((e for e in EXEMPT if e.fits(name, change, nth)), None)
        unused.discard(exemption)
        strange = exemption is None and (name, change.text) in STRANGERS
        enough = A_WHILE if exemption else A_GLANCE if strange else ENOUGH
        with planted({name: change.applied(source)}):
            revive(one_server)
            compiles(one_server)
            red = turns_red(one_server, enough, timeout_s=ENDLESS_S)
        if strange and not red:
            red = refusals_turn_red(tmp_path, name, change.applied(source))
        if exemption is None:
            row.red += red
            if not red:
                row.green.append(f"{name} {change}")
        else:
            row.exempt += 1
            if red:
                wrong.append(f"is noticed: {exemption}")
    wrong += [f"fits no line: {e}" for e in unused]
    assert not wrong
    assert not row.green, "the model does not notice:\n" + "\n".join(row.green)


def refusals_turn_red(folder: Path, name: str, mutated: str) -> bool:
    """Whether the tests of what strangers write notice a mutant, planted in a copy of the package."""
    package = Path(broker_module.__file__).parents[1]
    shutil.copytree(package, folder / "nbqueue", dirs_exist_ok=True)
    (folder / "nbqueue" / "stream" / "scripts" / f"{name}.lua").write_text(mutated)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-o", "addopts="]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", str(Path(__file__).with_name("test_refusals.py")), *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    return ran.returncode == 1


def revive(server: PrivateServer) -> None:
    """A new server where a mutant keeps the old one busy for ever."""
    wire = Wire(server.address, timeout_s=ENDLESS_S)
    try:
        wire.connect()
        wire.call("CONFIG", "SET", "maxmemory", "0")
        wire.call("FLUSHALL")
    except (CommandError, ServerError):
        server.kill()
        server.start()
    finally:
        wire.close()
