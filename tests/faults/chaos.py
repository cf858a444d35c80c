"""Chaos runs: real servers, hosts and kernels, struck by what a plan says, while tasks are sent all the time.

::

    this process: the kernel whose tasks are checked ──┐
    another kernel, killed and started again ──────────┼── redis-server (killed, emptied, its connections cut)
    two hosts, `nbqueue worker`, with short leases ────┘      supervisors, fork templates, workers: killed, frozen

What is counted, and must be 0:

lost
    tasks that have not ended a minute after the last fault.
wrong
    tasks that ended otherwise than they must: another value, another exception, cancelled without being asked.
duplicates
    terminal events too many. On the reply stream: more than one final reply to a call of one item, counted
    over one memory of the server (a server that lost its memory may be told, and answer, again). In the kernel:
    a future whose callbacks ran twice, or a batch that counted an item twice. A chunk's items may be reported
    twice on the stream, by an old attempt and by the new one: which of them the batch takes is its business, so
    those are shown (`repeats`), not forbidden.
leftovers
    what is still on the server when all tasks have ended (entries, pending, open calls, delayed retries, dead
    consumers), then, when the hosts have been told to stop: keys without a lifetime, hosts, processes, files.
broken
    a supervisor or the other kernel that ended by itself, another kernel that stands still when all faults are over,
    anything that printed a traceback; and replies that the count of duplicates has missed.
"""

from __future__ import annotations

import concurrent.futures
import heapq
import itertools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import chaos_tasks as tasks
import psutil
import redis
from chaos_plan import Ending, Fault, Job, Plan, endings, shares

from nbqueue import TaskCancelled, TaskQueue, TaskTimeout, WorkerDied
from nbqueue.client import core as cores
from nbqueue.codec import messages
from nbqueue.codec.messages import ERROR, EXCEPTION, VALUE, call_id
from nbqueue.stream.connect import Address, wait_until_ready
from nbqueue.stream.keys import GROUP
from nbqueue.stream.server import find_executable, tie_to_parent

__all__ = ["Chaos", "Tallied"]

HOSTS, WORKERS = 2, 2
BEAT_S, LEASE_S = 0.3, 1.5
# A task that has not ended so long after the last fault is lost.
LOST_AFTER_S = 60.0
# For servers and processes to come and go on a busy machine.
PATIENCE_S = 30.0
TERMINAL = (VALUE, EXCEPTION, ERROR)
# Of one task after the other.
PRIORITIES = ("normal", "high", "normal", "low")

# A supervisor with its true code and shorter patience.
HOST = f"""
import sys
import nbqueue.worker.pool as pool
pool.BEAT_S, pool.LEASE_S, pool.CRASH_CAP = {BEAT_S}, {LEASE_S}, int(sys.argv[1])
from nbqueue.cli import main
sys.exit(main(["worker", *sys.argv[2:]]))
"""

# Works without end, and checks what comes back, until it is killed.
KERNEL = """
import sys, time
from nbqueue import TaskQueue
from nbqueue.errors import ServerError

def make():
    for _ in range(600):
        try:
            return TaskQueue(sys.argv[1], sys.argv[2]) if sys.argv[1] else TaskQueue(workers=2)
        except ServerError:
            time.sleep(0.05)
    raise SystemExit("no server for half a minute")

queue = make()

@queue.task
def nap(i):
    time.sleep(0.005)
    return i + 1

while True:
    batch, futures = nap.options(chunksize=4).map(range(20)), [nap(i) for i in range(8)]
    assert batch.results() == list(range(1, 21))
    assert [future.result() for future in futures] == list(range(1, 9))
    print("round", flush=True)
    time.sleep(0.1)
"""


@dataclass
class Tallied:
    """What came of one run: a line of the table."""

    name: str
    tasks: int
    made: Counter[str] = field(default_factory=Counter)
    deaths: int = 0  # workers that a fault killed
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    repeats: int = 0
    together: int = 0  # tasks of whose end one message told with that of others
    leftovers: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    resolved_s: float = 0.0  # from the end of the last fault to the end of the last task
    took_s: float = 0.0

    @property
    def problems(self) -> list[str]:
        named = ("lost", "wrong", "duplicates", "leftovers", "broken")
        return [f"{name}: {problem}" for name in named for problem in getattr(self, name)]


class Chaos:
    """One run of a plan, in a directory of its own, which is gone when it is over."""

    def __init__(self, plan: Plan, base: Path) -> None:
        self._plan = plan
        self._tallied = Tallied("", plan.tasks)
        self._home = Path(tempfile.mkdtemp(prefix="c", dir=base))
        for name in ("run", "notes", "server", "hosts"):
            (self._home / name).mkdir(mode=0o700)
        # Every process that comes of this run carries it in its environment, whoever its parent is by then.
        self._token = f"chaos-{secrets.token_hex(8)}"
        self._key = f"t{secrets.token_hex(4)}"
        self._server = _Server(self._home / "server", plan.lasting, self._environ)
        self._hosts: list[_Host] = []
        self._kernel: _Child | None = None
        self._kernels = 0
        self._frozen: list[psutil.Process] = []
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._queue: Any = None
        self._sent: list[tuple[Job, Any]] = []
        self._callbacks: Counter[int] = Counter()

    @property
    def _environ(self) -> dict[str, str]:
        return {**os.environ, "XDG_RUNTIME_DIR": str(self._home / "run"), "NBQUEUE_TEST_RUN": self._token}

    def run(self) -> Tallied:
        began = time.monotonic()
        try:
            self._server.start()
            self._queue = TaskQueue(self._server.url, self._key)
            with _watched(self._queue) as watcher:
                self._hosts = [self._new_host() for _ in range(HOSTS)]
                for host in self._hosts:
                    _wait(lambda host=host: host.ready)
                if shares(self._plan)["kernel"]:
                    self._start_kernel(shared=True)
                self._follow_plan()
                self._wait_for_tasks()
                self._judge(watcher)
            self._look_for_leftovers()
        finally:
            self._end_everything()
        self._tallied.took_s = time.monotonic() - began
        return self._tallied

    # The plan

    def _at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (when, next(self._order), act))

    def _follow_plan(self) -> None:
        start = time.monotonic()
        for job in self._plan.jobs:
            self._at(start + job.at_s, lambda job=job: self._send(job))
        for fault in self._plan.faults:
            self._at(start + fault.at_s, lambda fault=fault: self._strike(fault))
        while self._agenda:
            when, _, act = heapq.heappop(self._agenda)
            # The plan's own pace; nothing is waited for here.
            time.sleep(max(0.0, when - time.monotonic()))
            self._mend()
            act()

    def _mend(self) -> bool:
        """Put new hosts in the places of dead ones, as a machine's owner would. True when all are at work."""
        for place, host in enumerate(self._hosts):
            if host.process.poll() is None or not self._server.up:
                continue
            if not host.struck and (host.ready or not self._server.died_since(host.born)):
                self._tallied.broken.append(f"a supervisor ended with {host.process.returncode}: {host.log()[-2000:]}")
            self._hosts[place] = self._new_host()
        return self._server.up and all(host.ready and host.process.poll() is None for host in self._hosts)

    def _new_host(self) -> _Host:
        arguments = [str(self._plan.cap), self._server.url, "--queue", self._key, "-n", str(WORKERS)]
        return _Host(HOST, arguments, Path(tempfile.mkdtemp(dir=self._home / "hosts")), self._environ)

    # Tasks

    def _send(self, job: Job) -> None:
        handle = self._make(job)
        if isinstance(handle, concurrent.futures.Future):
            handle.add_done_callback(lambda _: self._callbacks.update([job.number]))
        self._sent.append((job, handle))

    def _make(self, job: Job) -> Any:
        queue, kind, number, seconds = self._queue, job.kind, job.number, job.seconds
        note = str(self._home / "notes" / str(number))
        task = partial(queue.task, priority=PRIORITIES[number % len(PRIORITIES)])

        def each(arguments: Callable[[int], tuple[Any, ...]]) -> Any:
            # A list is sent at once, a generator by a thread, as results come back.
            made = map(arguments, range(job.size))
            return list(made) if number % 2 else made

        if kind == "map":
            return task(chunksize=job.chunksize)(tasks.item).starmap(each(lambda i: (number, i, seconds)))
        if kind == "flaky map":
            flaky = task(chunksize=job.chunksize, retries=2)(tasks.flaky)
            return flaky.starmap(each(lambda i: (number, i, seconds, f"{note}.{i}", i % 3)))
        if kind == "async map":
            return task(concurrency=8)(tasks.awaits).starmap(each(lambda i: (number, i, seconds)))
        if kind == "poison map":
            poison = task(chunksize=job.chunksize)(tasks.poison)
            return poison.starmap(each(lambda i: (number, i, "SIGKILL" if i == 1 else "", seconds)))
        if kind == "burst":
            short = queue.task(tasks.short)
            return _Burst([short(number, i) for i in range(job.size)])
        if kind == "refuse":
            return task(tasks.refuse)(number, seconds)
        if kind == "flaky":
            return task(retries=2)(tasks.flaky)(number, 0, seconds, note, 2)
        if kind == "hopeless":
            return task(retries=1)(tasks.refuse)(number, seconds)
        if kind == "overrun":
            return task(timeout=0.3)(tasks.overrun)(number)
        if kind == "nested":
            return task(_nested(queue))(number, seconds)
        if kind in ("SIGKILL", "SIGSEGV", "exit"):
            return task(tasks.poison)(number, 0, kind, seconds)
        if kind == "async":
            return task(tasks.awaits)(number, 0, seconds)
        if kind == "async poison":
            return task(tasks.kills)(seconds)
        future = task(tasks.nap)(number, seconds)
        if kind == "cancelled":
            self._at(time.monotonic() + seconds, future.cancel)
        return future

    def _wait_for_tasks(self) -> None:
        since = time.monotonic()
        handles = [handle for _, handle in self._sent]

        def ended() -> bool:
            self._mend()
            return all(map(_done, handles))

        try:
            _wait(ended, LOST_AFTER_S)
        except TimeoutError:
            # Counted one by one as lost.
            pass
        self._tallied.resolved_s = time.monotonic() - since
        _wait(self._mend)

    def _judge(self, watcher: _Watcher) -> None:
        out = self._tallied
        assert sum(job.size for job, _ in self._sent) == self._plan.tasks
        told = 0
        for job, handle in self._sent:
            expected = endings(job)
            if job.kind == "burst":
                futures = handle.futures
            elif job.kind.endswith("map"):
                futures = [handle.future(i) for i in range(job.size)]
                counted = handle.progress.settled
                if counted > job.size:
                    out.duplicates.append(f"a batch of {job.size} items counted {counted}: {job}")
            else:
                futures = [handle]
                if self._callbacks[job.number] > 1:
                    out.duplicates.append(f"callbacks ran {self._callbacks[job.number]} times: {job}")
            for place, (future, ending) in enumerate(zip(futures, expected, strict=True)):
                if not future.done():
                    out.lost.append(f"item {place} of {job}, seen started {future.attempts} times")
                elif (complaint := _complaint(future, ending)) is not None:
                    out.wrong.append(f"item {place} of {job}: {complaint}")
                else:
                    # One that is cancelled may end without a word of the server's.
                    told += ending.what != "either"
        out.duplicates += watcher.duplicates()
        out.repeats, out.together = watcher.repeats(), watcher.together
        if watcher.told() < told:
            out.broken.append(f"{told} tasks ended by a reply, and {watcher.told()} final replies were seen")

    # Faults

    def _strike(self, fault: Fault, tries: int = 50) -> None:
        if getattr(self, f"_strike_{fault.kind}")(fault):
            self._tallied.made[fault.kind] += 1
        elif tries:
            # Nothing is there to be hit: all dead, or down. It will be back.
            self._at(time.monotonic() + 0.1, lambda: self._strike(fault, tries - 1))
        else:
            self._tallied.made["missed"] += 1

    def _strike_worker(self, fault: Fault) -> int:
        workers = [worker for host in self._hosts for worker in host.workers()]
        killed = 0
        for pick in range(1 + fault.broad):
            if workers:
                killed += _kill(workers.pop((fault.pick + pick) % len(workers)))
        self._tallied.deaths += killed
        return killed

    def _strike_host(self, fault: Fault) -> bool:
        """The supervisor; or the template that forks the workers, which the supervisor replaces."""
        ready = [host for host in self._hosts if host.ready and host.process.poll() is None]
        if not ready:
            return False
        host = ready[fault.pick % len(ready)]
        if fault.broad:
            return sum(map(_kill, host.templates())) > 0
        host.struck = True
        host.process.kill()
        host.process.wait()
        return True

    def _strike_freeze(self, fault: Fault) -> bool:
        """A whole host stands still, as when a lid is closed; its parts wake in any order."""
        ready = [host for host in self._hosts if host.ready and host.process.poll() is None]
        if not ready:
            return False
        family = ready[fault.pick % len(ready)].family()
        family = family[::-1] if fault.broad else family
        self._frozen += family
        for process in family:
            _signal(process, signal.SIGSTOP)
        self._at(time.monotonic() + fault.hold_s, lambda: [_signal(process, signal.SIGCONT) for process in family])
        return True

    def _strike_server(self, fault: Fault) -> bool:
        if not self._server.up:
            return False
        self._server.kill()
        self._at(time.monotonic() + fault.hold_s, self._server.start)
        return True

    def _strike_cut(self, fault: Fault) -> bool:
        """All connections, or one."""
        if not self._server.up:
            return False
        with self._server.client() as client:
            if fault.broad:
                return bool(client.client_kill_filter(_type="normal", skipme=True))
            others = [int(row["id"]) for row in client.client_list() if int(row["id"]) != client.client_id()]
            chosen = others[fault.pick % len(others)] if others else 0
            return bool(chosen and client.client_kill_filter(_id=str(chosen)))

    def _strike_flush(self, fault: Fault) -> bool:
        if not self._server.up:
            return False
        with self._server.client() as client:
            client.flushall()
            if fault.broad:
                client.script_flush()
        return True

    def _strike_kernel(self, fault: Fault) -> bool:
        """Kill the other kernel, and start the next: on the same server, or with a private one."""
        struck = self._kill_kernel()
        self._start_kernel(shared=fault.pick % 3 > 0)
        return struck

    def _start_kernel(self, *, shared: bool) -> None:
        arguments = [self._server.url if shared else "", self._key]
        self._kernels += 1
        folder = self._home / f"kernel{self._kernels}"
        folder.mkdir()
        self._kernel = _Child(KERNEL, arguments, folder, self._environ)

    def _kill_kernel(self) -> bool:
        kernel, self._kernel = self._kernel, None
        if kernel is None:
            return False
        if kernel.process.poll() is not None:
            self._tallied.broken.append(f"the other kernel ended with {kernel.process.returncode}: {kernel.log()}")
        kernel.process.kill()
        kernel.process.wait()
        return True

    # The end

    def _see_the_other_kernel_work(self) -> None:
        kernel = self._kernel
        if kernel is None:
            return
        before = kernel.rounds()
        try:
            # What is under way may have begun before the last fault.
            _wait(lambda: kernel.process.poll() is not None or kernel.rounds() > before + 1)
        except TimeoutError:
            self._tallied.broken.append(f"the other kernel stands still: {kernel.log()[-2000:]}")

    def _look_for_leftovers(self) -> None:
        out = self._tallied
        self._see_the_other_kernel_work()
        self._kill_kernel()
        out.leftovers += _never_gone(self._on_server)
        _forget(self._queue)
        for host in self._hosts:
            host.process.terminate()
        for host in self._hosts:
            try:
                code = host.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                out.broken.append(f"a supervisor did not stop: {host.log()[-2000:]}")
            else:
                if code != 0:
                    out.broken.append(f"a supervisor stopped with {code}: {host.log()[-2000:]}")
        out.leftovers += _never_gone(self._without_lifetime)
        self._server.kill()
        out.leftovers += _never_gone(self._on_machine)
        for log in self._home.glob("**/log"):
            if "Traceback" in (text := log.read_text()):
                out.broken.append(f"a traceback in a log: {text[-3000:]}")

    def _on_server(self) -> list[str]:
        """What should not be there when all tasks have ended; a copy that a lost server left running ends soon."""
        keys = self._queue._core.keys
        left = [f"still running: {task}" for task in self._queue.status().running]
        with self._server.client() as client:
            hosts = set(client.hkeys(keys.beats))
            if len(hosts) != HOSTS:
                left.append(f"{len(hosts)} hosts registered")
            for stream in keys.streams:
                if not client.exists(stream):
                    continue
                if length := client.xlen(stream):
                    left.append(f"{length} entries in {stream}")
                if pending := client.xpending(stream, GROUP)["pending"]:
                    left.append(f"{pending} pending in {stream}")
                names = [row["name"] for row in client.xinfo_consumers(stream, GROUP)]
                left += [f"dead consumer {name!r}" for name in names if name.partition(b":")[0] not in hosts]
            left += [f"open calls {name!r}" for name in client.scan_iter(keys.open_calls("*"), count=1000)]
            left += [f"delayed {name}" for name in (keys.delayed, keys.delayed + "p") if client.exists(name)]
        return left

    def _without_lifetime(self) -> list[str]:
        with self._server.client() as client:
            left = [f"key {key!r}" for key in client.scan_iter(count=1000) if client.ttl(key) == -1]
            return left + [f"host {host!r} still registered" for host in client.hkeys(self._queue._core.keys.beats)]

    def _on_machine(self) -> list[str]:
        left = [f"process {process.pid} {_words(process)}" for process in self._processes()]
        left += [f"file {path}" for path in (self._home / "run").iterdir()]
        # Those of others who live are theirs.
        shared = [path for path in Path("/dev/shm").glob("nbqueue-*") if not psutil.pid_exists(_owner(path))]
        return left + [f"file {path}" for path in shared]

    def _processes(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if _carries(process, self._token)]

    def _end_everything(self) -> None:
        """Whatever happened: nothing of this run stays."""
        for process in self._frozen:
            _signal(process, signal.SIGCONT)
        _forget(self._queue)
        for process in self._processes():
            _kill(process)
        for child in [*self._hosts, *([self._kernel] if self._kernel else [])]:
            child.process.wait()
        self._server.kill()
        shutil.rmtree(self._home)


class _Child:
    """A Python program that writes to a log."""

    def __init__(self, code: str, arguments: list[str], folder: Path, environ: dict[str, str]) -> None:
        self.born = time.monotonic()
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env=environ,
                start_new_session=True,
                preexec_fn=tie_to_parent(),
            )

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def rounds(self) -> int:
        """How often a kernel has had all its results."""
        return self.log().count("round\n")


class _Host(_Child):
    """A supervisor without a kernel, and what it started."""

    struck = False
    _ready = False

    @property
    def ready(self) -> bool:
        """It has said that its workers serve the queue."""
        self._ready = self._ready or "workers serve" in self.log()
        return self._ready

    def family(self) -> list[psutil.Process]:
        try:
            me = psutil.Process(self.process.pid)
            return [me, *me.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def templates(self) -> list[psutil.Process]:
        return [process for process in self.family()[1:] if _parent(process) == self.process.pid]

    def workers(self) -> list[psutil.Process]:
        """The template's children; the supervisor's own where there is no template."""
        family = self.family()[1:]
        return [process for process in family if _parent(process) != self.process.pid] or (
            family if os.environ.get("NBQUEUE_START_METHOD") == "spawn" or sys.platform == "darwin" else []
        )


class _Server:
    """A redis-server on a unix socket; a lasting one writes down what it is told before it answers."""

    def __init__(self, folder: Path, lasting: bool, environ: dict[str, str]) -> None:
        self._folder = folder
        self._environ = environ
        # Not everysec: there, a write waits while another is being synced, and dies with the process.
        self._options = ["--appendonly", "yes", "--appendfsync", "no"] if lasting else []
        self._process: subprocess.Popen[bytes] | None = None
        self._deaths: list[float] = []

    @property
    def path(self) -> str:
        return str(self._folder / "r.sock")

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    @property
    def up(self) -> bool:
        return self._process is not None

    def died_since(self, when: float) -> bool:
        return any(death > when for death in self._deaths)

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=self.path)

    def start(self) -> None:
        Path(self.path).unlink(missing_ok=True)
        with (self._folder / "redis.log").open("ab") as log:
            process = subprocess.Popen(
                [find_executable(), "--port", "0", "--unixsocket", self.path, "--save", "", *self._options],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=self._environ,
                preexec_fn=tie_to_parent(),
            )
        self._process = process
        wait_until_ready(Address(path=self.path), PATIENCE_S, lambda: process.poll() is None)

    def kill(self) -> None:
        """With SIGKILL."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            self._deaths.append(time.monotonic())


class _Burst:
    """Calls that were made at once."""

    def __init__(self, futures: list[Any]) -> None:
        self.futures = futures

    @property
    def done(self) -> bool:
        return all(future.done() for future in self.futures)


class _Watcher:
    """Reads along what the listener of a queue is told, by itself: what the kernel makes of it is not asked."""

    def __init__(self, queue: TaskQueue) -> None:
        self._link = queue._core.link
        self._items: dict[str, int] = {}
        # (memory of the server, call, item) → final replies
        self._final: Counter[tuple[str, str, int]] = Counter()
        self.together = 0  # calls of which one message told with others

    def note_submit(self, opened: Any) -> None:
        self._items[str(opened.call.n)] = opened.call.items

    def note(self, arrived: list[Any]) -> None:
        link = self._link
        for incoming in arrived:
            if incoming.kind == "m":
                told = messages.load_replies(link._seal.open("replies", link.client, incoming.message))
                for n in incoming.n.split(","):
                    assert n in told.names
                    self._final[link._epoch, n, 0] += 1
                    self.together += 1
            if incoming.kind != "r":
                continue
            body = messages.load_reply(link._seal.open("reply", call_id(link.client, incoming.n), incoming.message))
            kinds = body.kinds or bytes([VALUE]) * body.items
            for place, kind in enumerate(kinds, body.first):
                self._final[link._epoch, incoming.n, place] += kind in TERMINAL

    def told(self) -> int:
        """Items whose end was replied, however often."""
        return len({(n, place) for (_, n, place), times in self._seen() if times})

    def _seen(self) -> list[tuple[tuple[str, str, int], int]]:
        # In one go: what an old attempt says may still arrive.
        return list(self._final.items())

    def _several(self) -> Iterator[tuple[str, int, int]]:
        for (_, n, place), times in self._seen():
            if times > 1:
                yield n, place, times

    def duplicates(self) -> list[str]:
        # A retried item of a chunk is a call of its own, "<n>.<item>".
        return [
            f"{times} final replies to call {n}"
            for n, _, times in self._several()
            if "." in n or self._items.get(n, 1) == 1
        ]

    def repeats(self) -> int:
        return sum(times - 1 for n, _, times in self._several() if "." not in n and self._items.get(n, 1) > 1)


@contextmanager
def _watched(queue: TaskQueue) -> Iterator[_Watcher]:
    link, watcher = queue._core.link, _Watcher(queue)
    submit, dispatch = link.submit, link._dispatch

    def watched_submit(*args: Any, **kwargs: Any) -> Any:
        opened = submit(*args, **kwargs)
        watcher.note_submit(opened)
        return opened

    def watched_dispatch(arrived: list[Any]) -> None:
        watcher.note(arrived)
        dispatch(arrived)

    link.submit, link._dispatch = watched_submit, watched_dispatch  # type: ignore[method-assign]
    # However few are open, and whatever a blow has made of their pace.
    together = link._most_together
    link._most_together = lambda light: 8 if light.name == tasks.short.__name__ else 1  # type: ignore[method-assign]
    try:
        yield watcher
    finally:
        link.submit, link._dispatch = submit, dispatch  # type: ignore[method-assign]
        link._most_together = together  # type: ignore[method-assign]


def _nested(queue: TaskQueue) -> Callable[[int, float], int]:
    inner = queue.task(tasks.nap)

    def outer(number: int, seconds: float) -> int:
        return inner.submit(number, seconds).result()

    return outer


def _done(handle: Any) -> bool:
    return handle.done() if isinstance(handle, concurrent.futures.Future) else handle.done


def _complaint(future: Any, ending: Ending) -> str | None:
    """What is wrong with the way a task ended; None if nothing is."""
    try:
        error = future.exception(0)
    except TaskCancelled as cancelled:
        return None if ending.what == "either" else repr(cancelled)
    if error is None:
        value = future.result()
        right = ending.what in ("value", "either") and value == ending.value
        return None if right else f"returned {value!r} instead of {ending}"
    if ending.what == "raises":
        right = isinstance(error, tasks.Refused) and error.args == (ending.value,)
    elif ending.what == "timeout":
        right = isinstance(error, TaskTimeout)
    elif ending.what == "died":
        right = isinstance(error, WorkerDied) and error.signal == ending.value and error.attempts > 1
    else:
        right = False
    return None if right else f"raised {error!r} instead of {ending}"


def _forget(queue: TaskQueue | None) -> None:
    """Close the kernel's connection, as its end would, and let a later test know nothing of it."""
    for key, core in list(cores._cores.items()):
        if queue is not None and core is queue._core:
            core.link.close()
            del cores._cores[key]


def _wait(ready: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError("what was waited for did not happen")
        time.sleep(0.005)


def _never_gone(look: Callable[[], list[str]]) -> list[str]:
    """What is still there after a while."""
    try:
        _wait(lambda: not look())
    except TimeoutError:
        return look()
    return []


def _kill(process: psutil.Process) -> bool:
    """True if it lived."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


def _signal(process: psutil.Process, signum: int) -> None:
    try:
        process.send_signal(signum)
    except psutil.NoSuchProcess:
        # Killed meanwhile, as the plan has it.
        pass


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return None


def _carries(process: psutil.Process, token: str) -> bool:
    try:
        return process.environ().get("NBQUEUE_TEST_RUN") == token
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        # Gone, dead already, or somebody else's.
        return False


def _owner(shared: Path) -> int:
    return int(shared.name.split("-")[2])


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:200]
    except psutil.NoSuchProcess:
        return "(just ended)"
