"""Every step × {before it is sent, its reply lost, after its reply} × {worker, pool, client}: a process is killed
exactly there, or only its connection is cut there, and every promise holds.

`crash_points.TABLE` says which steps each of the three takes. After each crash: every future of the client that
lives has its right value; every item has ended once; the streams and their pending lists are empty; no key lives
for ever; there are consumers of living workers only; no process is left.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import crash_points
import psutil
import pytest
import redis
from crash_points import AFTER, BEFORE, CUT, KILL, LOST, STEPS, TABLE, Nursery, Plan, Stage

from nbqueue import TaskQueue
from nbqueue.client import queue as queue_module
from nbqueue.client.sending import outgoing
from nbqueue.codec.seal import fingerprint, user_secret
from nbqueue.errors import ServerError
from nbqueue.stream import broker
from nbqueue.stream.broker import Broker
from nbqueue.stream.connect import Address, Wire, wait_until_ready
from nbqueue.stream.keys import GROUP, Keys
from nbqueue.stream.records import HostState
from nbqueue.stream.server import find_executable, tie_to_parent
from nbqueue.worker.pool import machine

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="actors are forked from a process that adopts orphans: Linux only"
)

ENDLESS_MS = 60_000
# Beats and leases are short. Blocking reads are endless, so that nobody is saved by the end of one: what a crash
# left undone must be taken up because something notices.
FAST = {
    "worker.pool.BEAT_S": 0.1,
    "worker.pool.LEASE_S": 1.0,
    "worker.pool.ANNOUNCE_S": 0.05,
    "worker.pool.RECONNECT_S": 0.02,
    "worker.pool.LINGER_S": 0.1,
    "worker.pool.BLOCK_MS": ENDLESS_MS,
    "worker.carrier.BLOCK_MS": ENDLESS_MS,
    "worker.supplies.REPLY_TIMEOUT_S": 100.0,
    # However long the last call took, fetch several: only so there is something to give back.
    "worker.carrier.AHEAD_S": 60.0,
    # And however long they take, calls travel together once that is known.
    "client.sending.outgoing.TOGETHER_S": 60.0,
}
NEVER = -1


@dataclass
class Play:
    """One server, one queue, its actors, and the client that outlives them."""

    nursery: Nursery
    url: str
    key: str
    folder: Path
    pids: list[int] = field(default_factory=list)

    def fork(self, what: str, stages: Sequence[Stage] = (), *, armed: bool = False, **more: Any) -> int:
        """A process in which `stages` happen: from its start if `armed`, else from `arm` on."""
        folder = self.folder / f"{what}-{len(self.pids)}"
        folder.mkdir()
        if armed:
            (folder / "armed").touch()
        order = {"what": what, "url": self.url, "key": self.key, "folder": str(folder), "workers": 1}
        order |= {"run": False, "bundles": False}
        order |= {"settings": FAST, "stages": [stage.to_list() for stage in stages], **more}
        self.pids.append(self.nursery.fork(order))
        if stages:
            self.stage_folder = folder
            self.stages = len(stages)
        return self.pids[-1]

    def arm(self) -> None:
        (self.stage_folder / "armed").touch()

    def happened(self) -> bool:
        return (self.stage_folder / f"happened-{self.stages - 1}").exists()

    def end(self) -> None:
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                # It was killed by the test.
                continue

    # What the client does

    @property
    def queue(self) -> TaskQueue:
        return TaskQueue(self.url, self.key)

    @property
    def keys(self) -> Keys:
        return Keys.of(self.key, fingerprint(user_secret()))

    @property
    def redis(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, decode_responses=True)

    def squares(self, number: int = 4) -> list[Any]:
        """Calls of a function that no worker has seen before."""
        fresh = secrets.token_hex(4)

        @self.queue.task
        def square(i: int) -> int:
            assert fresh
            return i * i

        return [square(i) for i in range(number)]

    def gate(self) -> Any:
        """A call that runs until the file ``go`` is there, and says that it runs with the file ``started``."""
        started, go = self.folder / "started", self.folder / "go"

        @self.queue.task
        def wait() -> str:
            started.touch()
            while not go.exists():
                time.sleep(0.005)
            return "went"

        return wait()

    @property
    def started(self) -> bool:
        return (self.folder / "started").exists()

    def go(self) -> None:
        (self.folder / "go").touch()


def _are_squares(futures: list[Any]) -> None:
    assert [future.result(timeout=20) for future in futures] == [i * i for i in range(len(futures))]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def url(session_home: Path) -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="r", dir=session_home))
    path = folder / "r.sock"
    command = [find_executable(), "--port", "0", "--unixsocket", str(path), "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder, preexec_fn=tie_to_parent())
    wait_until_ready(Address(path=str(path)), 10.0)
    yield f"unix://{path}"
    process.kill()
    process.wait()
    shutil.rmtree(folder)


@pytest.fixture
def play(nursery: Nursery, url: str, new_key: str, tmp_path: Path) -> Iterator[Play]:
    play = Play(nursery, url, new_key, tmp_path)
    yield play
    play.end()
    FOLDERS.append(tmp_path)


@pytest.fixture(scope="module")
def healthy(nursery: Nursery, url: str, session_home: Path) -> Iterator[Play]:
    """A queue with a host that nobody kills."""
    folder = Path(tempfile.mkdtemp(prefix="h", dir=session_home))
    play = Play(nursery, url, "healthy", folder)
    play.fork("host")
    deadline = time.monotonic() + 10
    out = folder / "host-0" / "out"
    while not out.exists() or "serves" not in out.read_text():
        assert time.monotonic() < deadline, "the host did not start"
        time.sleep(0.005)
    yield play
    play.end()
    shutil.rmtree(folder)


FOLDERS: list[Path] = []


@pytest.fixture(autouse=True)
def calls_travel_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the client that lives, as well."""
    monkeypatch.setattr(outgoing, "TOGETHER_S", FAST["client.sending.outgoing.TOGETHER_S"])


# The promises


def _broken(play: Play, hosts: int) -> list[str]:
    """Promises that do not hold, or not yet."""
    broken = []
    keys = play.keys
    with play.redis as client:
        names = set(client.scan_iter(keys.prefix + "*", count=1000))
        passing = (keys.open_calls(""), keys.delayed, keys.prefix + "zp")
        broken += [f"{name} lives for ever" for name in names if client.ttl(name) == NEVER]
        broken += [f"{name} is still there" for name in names if name.startswith(passing)]
        registered = client.hkeys(keys.beats)
        if len(registered) != hosts:
            broken.append(f"hosts: {registered}")
        consumers = set()
        for stream in keys.streams:
            if client.xlen(stream):
                broken.append(f"{stream} holds {client.xrange(stream)}")
            if client.xpending(stream, GROUP)["pending"]:
                broken.append(f"{stream}: pending {client.xpending(stream, GROUP)}")
            consumers |= {row["name"] for row in client.xinfo_consumers(stream, GROUP)}
        if len(consumers) > hosts or {consumer.partition(":")[0] for consumer in consumers} - set(registered):
            broken.append(f"consumers: {consumers} of hosts {registered}")
    return broken


def _taken(play: Play) -> int:
    """Calls that the server has taken from all clients: its own marks."""
    with play.redis as client:
        return sum(int(client.hget(key, "mark")) for key in client.scan_iter(f"*{play.key}*:c:*", count=1000))


def _keeps_its_promises(play: Play, hosts: int, items: int, wait_until: Callable[..., Any]) -> None:
    """`items` have been sent in all. Each host has one worker."""
    try:
        wait_until(lambda: not _broken(play, hosts), timeout=10)
    except AssertionError:
        pytest.fail("\n".join(_broken(play, hosts)))
    with play.redis as client:
        counts = {name: int(n) for name, n in client.hgetall(play.keys.counts).items()}
    assert sum(counts.get(name, 0) for name in ("done", "failed", "cancelled")) == items


def _marks(action: str, point: str) -> list[pytest.MarkDecorator]:
    if point == AFTER or (action, point) == (CUT, BEFORE):
        return [pytest.mark.soak]
    # A plain run has the deaths after which the server knows more than anybody else: the reply was lost.
    return [pytest.mark.apart] if (action, point) != (KILL, LOST) else []


def _points(actor: str, *variants: str) -> list[Any]:
    """``actor-step-point-action`` for each row of the table; a variant ``step/name`` is another way to the step.

    After a reply is before the next step, and a cut before a step is one after the last: these are left to the soak.
    The other cuts, and deaths before a step and between two commands of one write, are a part of the step that is run
    apart.
    """
    rows = [*TABLE[actor], *variants]
    return [
        pytest.param(
            row,
            Stage(actor, row.partition("/")[0], point, action),
            id=f"{actor}-{row}-{point}-{action}",
            marks=_marks(action, point),
        )
        for row in rows
        for point in STEPS[row.partition("/")[0]].points
        for action in (KILL, CUT)
    ]


# A worker


def _calls(play: Play, _: Callable[..., Any]) -> int:
    futures = play.squares(6)
    batch = play.queue.map(abs, range(-6, 0), chunksize=3)
    _are_squares(futures)
    assert batch.results(timeout=20) == [6, 5, 4, 3, 2, 1]
    return 12


def _slow(seconds: float) -> Callable[[int], int]:
    def slow(i: int) -> int:
        time.sleep(seconds)
        return i

    return slow


def _long_chunk(play: Play, _: Callable[..., Any]) -> int:
    """What is finished leaves while the chunk goes on."""
    assert play.queue.map(_slow(0.06), range(4), chunksize=4).results(timeout=20) == [0, 1, 2, 3]
    return 4


def _flaky(play: Play, _: Callable[..., Any]) -> int:
    failed = play.folder / "failed"

    @play.queue.task(retries=3, chunksize=3)
    def flaky(i: int) -> int:
        if i == 1 and not failed.exists():
            failed.touch()
            raise ValueError("once")
        return i

    assert flaky.map(range(3)).results(timeout=20) == [0, 1, 2]
    return 3


def _ahead(play: Play, wait_until: Callable[..., Any]) -> int:
    """Short calls that were fetched behind a long one are given back."""
    queue = play.queue
    gate = play.gate()
    wait_until(lambda: play.started)
    # Each item longer than a round of the courier, and than what is finished may wait: the connection that was cut
    # is made again while the chunk runs.
    long = queue.map(_slow(0.15), range(3), chunksize=3)
    futures = play.squares(5)
    assert queue._core is not None
    assert queue._core.link.flush(10)
    play.go()
    assert gate.result(timeout=20) == "went"
    assert long.results(timeout=20) == [0, 1, 2]
    _are_squares(futures)
    return 9


def _nested(play: Play, wait_until: Callable[..., Any]) -> int:
    """A task that waits for another gives back what was fetched behind it."""
    queue = play.queue
    gate = play.gate()
    wait_until(lambda: play.started)

    @queue.task
    def inner(i: int) -> int:
        return i + 1

    @queue.task
    def outer(i: int) -> int:
        return int(inner.submit(i).result(timeout=20)) + 1

    outside = outer(1)
    futures = play.squares(5)
    assert queue._core is not None
    assert queue._core.link.flush(10)
    play.go()
    assert gate.result(timeout=20) == "went"
    assert outside.result(timeout=20) == 3
    _are_squares(futures)
    # When the worker is killed the task sends the inner call anew, and nobody waits for the first one.
    return _taken(play)


def _foreign(play: Play, _: Callable[..., Any]) -> int:
    with play.redis as client:
        client.xadd(play.keys.normal, {"what": "is this"})
    _are_squares(play.squares())
    return 4


def _graph(play: Play, _wait_until: Callable[..., Any]) -> int:
    """Calls that need one other each, and one that needs two."""
    fresh = secrets.token_hex(4)

    @play.queue.task
    def add(*numbers: int) -> int:
        assert fresh
        return sum(numbers)

    chain = add(1)
    for _ in range(4):
        chain = add(chain, 1)
    both = add(add(2), add(3))
    assert (chain.result(timeout=20), both.result(timeout=20)) == (5, 5)
    return 8


# Arguments: of a call whose value is reported alone; those below it are of calls that fail once each.
LONG = -1


def _known(play: Play) -> Any:
    """A function of which its client and worker know how long it takes: it has been called four times."""
    fresh, folder = secrets.token_hex(4), play.folder

    @play.queue.task(retries=3)
    def known(i: int) -> Any:
        assert fresh
        time.sleep(0.0005)
        failed = folder / f"failed{i}"
        if i < LONG and not failed.exists():
            failed.touch()
            raise ValueError("once")
        return i * i if i != LONG else "long" * 1000

    _are_squares([known(i) for i in range(4)])
    return known


def _together(*, fails: bool = False, is_long: bool = False, behind: bool = False) -> Callable[..., int]:
    """Calls that travel together, until the stage has happened. One of them may fail once, or give what is reported
    alone; and `behind` them may be one of which nobody knows whether it holds the interpreter."""

    def work(play: Play, wait_until: Callable[..., Any]) -> int:
        known = _known(play)
        items = 4

        def again() -> bool:
            nonlocal items
            futures = [known(i) for i in range(40)]
            long = [known(LONG)] if is_long else []
            failing = {i: known(i) for i in [LONG - items] if fails}
            others = [known(i) for i in range(4)]
            last = play.squares(1) if behind else []
            _are_squares(futures)
            _are_squares(others)
            _are_squares(last)
            assert {future.result(timeout=20) for future in long} <= {"long" * 1000}
            assert all(future.result(timeout=20) == i * i for i, future in failing.items())
            items += sum(map(len, (futures, long, failing, others, last)))
            return play.happened()

        wait_until(again, timeout=30)
        return items

    return work


def _long_in_a_bundle(play: Play, wait_until: Callable[..., Any]) -> int:
    """Those behind a call that runs for long are given back, though they came in one entry with it."""
    started, go = play.folder / "started", play.folder / "go"

    @play.queue.task
    def step(i: int) -> int:
        if i == 6:
            started.touch()
            while not go.exists():
                time.sleep(0.005)
        return i * i

    _are_squares([step(i) for i in range(4)])
    assert play.queue._core is not None
    link = play.queue._core.link
    # They leave together, or nothing might lie behind the long one when it begins.
    with link._helm:
        futures = [step(i) for i in range(20)]
    with link._lock:
        link._wake()
    wait_until(lambda: play.started)
    wait_until(play.happened)
    play.go()
    _are_squares(futures)
    return 24


WORKER_WORK = {
    "blob/graph": _graph,
    "finish+fetch/graph": _graph,
    "finish": _long_chunk,
    "finish/retry": _flaky,
    "release": _ahead,
    "release/nested": _nested,
    "release/bundle": _long_in_a_bundle,
    "refuse": _foreign,
    "stand/bundle": _together(),
    "own/bundle": _together(),
    "values": _together(behind=True),
    "values+fetch": _together(),
    "finish+values": _together(is_long=True, behind=True),
    "finish+values/retry": _together(fails=True),
    "finish+values+fetch": _together(is_long=True),
}


VARIANTS = ("finish/retry", "release/nested", "blob/graph", "finish+fetch/graph")
VARIANTS += ("finish+values/retry", "release/bundle", "stand/bundle", "own/bundle")


@pytest.mark.parametrize(("row", "stage"), _points("worker", *VARIANTS))
def test_a_worker_dies_or_is_cut_off(row: str, stage: Stage, play: Play, wait_until: Callable[..., Any]) -> None:
    # An own list that holds something is read after a reply was lost.
    before = [Stage("worker", "values+fetch" if "/" in row else "fetch", LOST, CUT)] if "own" in row else []
    play.fork("host", [*before, stage], armed=True)
    items = WORKER_WORK.get(row, _calls)(play, wait_until)
    wait_until(play.happened)
    _are_squares(play.squares())
    _keeps_its_promises(play, 1, items + 4, wait_until)


# A pool: its supervisor


def _dies_once(play: Play) -> Any:
    died = play.folder / "died"

    @play.queue.task
    def die_once() -> str:
        if not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "lived"

    return die_once()


def _leave_a_dead_neighbour(play: Play) -> None:
    """A host of this machine that is dead for sure."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    broker = Broker(Wire(Address(path=play.url.removeprefix("unix://")), timeout_s=5.0), play.keys)
    broker.connect()
    broker.register("gone", 1, HostState("gone", "here", gone.pid, machine=machine()))
    broker.wire.close()


def _strand(play: Play, wait_until: Callable[..., Any]) -> None:
    """A host of another machine holds a call and has stopped to beat."""
    wire = Wire(Address(path=play.url.removeprefix("unix://")), timeout_s=5.0)
    dead = Broker(wire, play.keys)
    dead.connect()
    dead.register("dead", 1, HostState("dead", "elsewhere", 1))
    wait_until(lambda: dead.parse_fetch(wire.call(*dead.fetch_command("dead:0:1", 1, block_ms=None)))[0])
    wire.close()


def _holds(play: Play) -> Any:
    """A call that runs for a while and lets nothing else of its process run."""

    @play.queue.task
    def hold(seconds: float) -> int:
        ctypes.PyDLL(None).usleep(int(seconds * 1e6))
        return 0

    return hold(0.6)


@pytest.mark.parametrize(("row", "stage"), _points("pool"))
def test_a_pool_dies_or_is_cut_off(row: str, stage: Stage, play: Play, wait_until: Callable[..., Any]) -> None:
    futures: list[Any] = play.squares()
    if row == "reap":
        assert play.queue._core is not None
        assert play.queue._core.link.flush(10)
        _strand(play, wait_until)
    if row == "counters":
        _leave_a_dead_neighbour(play)
    held: list[Any] = []
    if row in ("pending", "release"):
        # Its worker, whose first calls are short, fetches them together.
        held = [_holds(play), *play.squares()]
    hasty = FAST | {"worker.pool.LEASE_S": 0.3}
    late = row in ("beat", "inbox", "announce", "leave", "unblock")
    victim = play.fork("host", [stage], armed=not late, settings=hasty)
    others, gate = 0, None
    if row in ("beat", "inbox", "announce"):
        if row == "announce":
            play.arm()
        gate = play.gate()
        # On a busy machine another call may run so long that it is announced.
        wait_until(lambda: play.started or play.happened())
    if row in ("leave", "unblock"):
        _are_squares(futures)
        wait_until(lambda: not _broken(play, 1))
    play.arm()
    if row == "inbox":
        assert gate is not None
        assert gate.cancel()
    elif row == "reclaim":
        futures.append(_dies_once(play))
    elif row in ("leave", "unblock"):
        os.kill(victim, signal.SIGTERM)
    wait_until(play.happened)
    if stage.action == KILL or row in ("leave", "unblock"):
        wait_until(lambda: not psutil.pid_exists(victim))
        play.fork("host", settings=hasty)
    _are_squares(futures[:4])
    if held:
        assert held[0].result(timeout=20) == 0
        _are_squares(held[1:])
        others = len(held)
    if row == "reclaim":
        assert futures[4].result(timeout=20) == "lived"
        others = 1
    if row in ("beat", "announce"):
        assert gate is not None
        play.go()
        assert gate.result(timeout=20) == "went"
    if gate is not None:
        others = 1
    # A pool with one worker: that one is free again.
    _are_squares(play.squares())
    _keeps_its_promises(play, 1, 8 + others, wait_until)


@pytest.mark.parametrize(
    "stage", [Stage("pool", step, point, KILL) for step in ("register", "beat") for point in STEPS[step].points],
    ids=lambda stage: f"{stage.step}-{stage.point}",
)  # fmt: skip
def test_a_host_that_lives_takes_over_when_the_lease_of_a_dead_one_ends(
    stage: Stage, play: Play, wait_until: Callable[..., Any]
) -> None:
    play.fork("host", settings=FAST | {"worker.pool.LEASE_S": 0.3})
    _are_squares(play.squares())
    victim = play.fork("host", [stage], armed=True)
    wait_until(play.happened)
    wait_until(lambda: not psutil.pid_exists(victim))
    _are_squares(play.squares())
    _keeps_its_promises(play, 1, 8, wait_until)


# A client


def _one_reply_for_each_call(play: Play) -> None:
    with redis.Redis.from_url(play.url) as client:
        for key in client.scan_iter(f"*{play.key}*:r:*", count=1000):
            told = [fields for _, fields in client.xrange(key) if fields[b"k"] in (b"r", b"m")]
            calls = [name for fields in told for name in fields[b"n"].split(b",")]
            assert len(calls) == len(set(calls)), f"{key}: {calls}"


CLIENT_POINTS = _points("client", "submit/bundle", "read/bundle", "trim/bundle")
CLIENT_KILLS = [param for param in CLIENT_POINTS if param.values[1].action == KILL]
CLIENT_CUTS = [param for param in CLIENT_POINTS if param.values[1].action == CUT]
# These are made by the thread that asks, and fail there.
ASKED = ("info", "counters", "poke", "counts")


@pytest.mark.parametrize(("row", "stage"), CLIENT_KILLS)
def test_a_client_dies(row: str, stage: Stage, healthy: Play, play: Play, wait_until: Callable[..., Any]) -> None:
    play.key = healthy.key
    bundles = row.endswith("/bundle")
    kernel = play.fork("kernel", [stage], armed=not bundles, bundles=bundles)
    wait_until(play.happened)
    (play.stage_folder / "go").touch()
    wait_until(lambda: not psutil.pid_exists(kernel))
    _are_squares(play.squares())
    _keeps_its_promises(play, 1, _taken(play), wait_until)
    _one_reply_for_each_call(play)


@pytest.mark.parametrize(("row", "stage"), CLIENT_CUTS)
def test_a_client_is_cut_off(
    row: str, stage: Stage, healthy: Play, play: Play, wait_until: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    play.key = healthy.key
    play.stage_folder, play.stages = play.folder, 1
    monkeypatch.setattr(outgoing, "BLOCK_MS", ENDLESS_MS)
    monkeypatch.setattr(queue_module, "_checked", set())
    outcomes: list[str] = []
    crash_points.install(Plan(play.folder, [stage], lambda: "client"), monkeypatch.setattr)
    if row.endswith("/bundle"):
        known = _known(play)
        play.arm()

        def again() -> bool:
            _are_squares([known(i) for i in range(40)])
            return play.happened()

        wait_until(again)
        _keeps_its_promises(play, 1, _taken(play), wait_until)
        return
    play.arm()
    refused = []

    def ask(question: Callable[[], Any]) -> Any:
        try:
            return question()
        except ServerError as error:
            refused.append(error)
            return question()

    ask(lambda: play.queue)
    futures = play.squares()
    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, number=number: outcomes.append(f"square {number}"))
    _are_squares(futures)
    gate = play.gate()
    gate.add_done_callback(lambda _: outcomes.append("gate"))
    wait_until(lambda: play.started)
    assert gate.cancel()
    ask(lambda: play.queue.status())
    futures += play.squares()
    _are_squares(futures[4:])
    _graph(play, wait_until)

    def happens() -> bool:
        # Who has the helm when the last call ends decides whether its reply is deleted at once, or only when the read
        # that is on its way has ended, which is never here: then after another call.
        if row == "trim" and not play.happened():
            _are_squares(play.squares())
        # And a lone call leaves alone where the listener has asked before.
        if row == "submit+read" and not play.happened():
            assert [play.queue.submit(abs, -i).result(20) for i in range(10)] == list(range(10))
        return play.happened()

    wait_until(happens)
    assert len(refused) <= (row in ASKED)
    assert gate.cancelled()
    assert sorted(outcomes) == ["gate", "square 0", "square 1", "square 2", "square 3"]
    _keeps_its_promises(play, 1, _taken(play), wait_until)


@pytest.mark.parametrize("point", STEPS["submit"].points)
@pytest.mark.parametrize("where", ["private", "shared"])
def test_a_client_dies_whose_workers_are_its_own(
    where: str, point: str, play: Play, wait_until: Callable[..., Any], nursery: Nursery
) -> None:
    before = set(psutil.Process(nursery.pid).children(recursive=True))
    more = {"url": None} if where == "private" else {"run": True}
    kernel = play.fork("kernel", [Stage("client", "submit", point, KILL)], armed=True, **more)
    wait_until(play.happened)
    wait_until(lambda: not psutil.pid_exists(kernel))
    wait_until(lambda: set(psutil.Process(nursery.pid).children(recursive=True)) <= before, timeout=5)
    if where == "shared":
        play.fork("host")
        _are_squares(play.squares())
        _keeps_its_promises(play, 1, _taken(play), wait_until)


# The table


def test_every_script_is_in_the_table() -> None:
    assert set(broker._SCRIPTS) <= {step for steps in TABLE.values() for step in steps}
    assert {step for steps in TABLE.values() for step in steps} == set(STEPS)


def test_nobody_took_a_step_that_is_not_in_the_table(healthy: Play) -> None:
    known = {(actor, " ".join(STEPS[step].names)) for actor, steps in TABLE.items() for step in steps}
    seen = {
        (actor, names.strip())
        for folder in [*FOLDERS, healthy.folder]
        for file in folder.rglob("seen")
        for actor, _, names in [line.partition(" ") for line in file.read_text().splitlines()]
    }
    assert seen
    assert seen <= known
