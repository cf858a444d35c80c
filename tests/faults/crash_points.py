"""Kill a process, or cut its connection, at one exact step of the protocol. What `test_crash_points` plays with.

::

    pytest ── a line of JSON an order ──▶ nursery: all is imported, no thread, no socket
                                            ├─ fork ─ host     what `nbqueue worker URL` runs
                                            │           └─ fork template ─ workers
                                            └─ fork ─ kernel   a program with a TaskQueue

A fork costs milliseconds where an interpreter costs a third of a second. The actors run the real code; only
`Wire.send` and `Wire.receive` are wrapped, in the actor's process before it forks its own children. A *stage*
names an actor, a step, a point and what is to happen there. Stages come one after the other, each happens once
in the whole family: its token, a file, can be made by one process only.

The points of a step:

- ``before-send``: nothing of it has left.
- ``half-sent``: the first of several commands that leave in one write was executed, the others have not left.
- ``reply-lost``: the server has done it; the actor's code sees nothing of the reply.
- ``after-reply``: the actor's code has taken the reply in, and its next step has not begun.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbqueue.stream import broker
from nbqueue.stream.connect import CommandError, Wire

KILL, CUT = "killed", "cut"
BEFORE, HALF, LOST, AFTER = "before-send", "half-sent", "reply-lost", "after-reply"


def _any(_: Any) -> bool:
    return True


def _rows(answer: Any) -> bool:
    return bool(answer) and not isinstance(answer, Exception) and any(rows for _, rows in answer)


@dataclass(frozen=True)
class Step:
    """Commands that leave in one write; the step has been done when the first `parts` of them have.

    `counts` looks at the last reply: a read that brought nothing loses nothing. Of several VALUES, one is named.
    """

    names: tuple[str, ...]
    parts: int = 0
    counts: Callable[[Any], bool] = _any

    def replies(self, names: tuple[str, ...]) -> int:
        """Of those commands that have left."""
        return self.parts or len(names)

    @property
    def points(self) -> tuple[str, ...]:
        return (BEFORE, LOST, AFTER) if len(self.names) == 1 else (BEFORE, HALF, LOST, AFTER)


def _scripts(*names: str) -> dict[str, Step]:
    return {name: Step((name,)) for name in names}


STEPS: dict[str, Step] = {
    **_scripts(*broker._SCRIPTS),
    "load": Step(("load",) * len(broker._SCRIPTS)),
    # A worker.
    "id": Step(("id",)),
    "own": Step(("own",), counts=_rows),
    "fetch": Step(("fetch",), counts=_rows),
    "finish+fetch": Step(("finish", "fetch"), counts=_rows),
    "finish+values": Step(("finish", "values")),
    "finish+values+fetch": Step(("finish", "values", "fetch"), counts=_rows),
    "values+fetch": Step(("values", "fetch"), counts=_rows),
    "stand": Step(("stand",)),
    "blob": Step(("blob",)),
    # A supervisor.
    "hosts": Step(("hosts",)),
    "inbox": Step(("inbox",), counts=bool),
    "unblock": Step(("unblock",)),
    "pending": Step(("counts",) * 3),
    # A client.
    "info": Step(("info",)),
    "submit+read": Step(("submit", "read"), parts=1),
    "read": Step(("read",), counts=bool),
    "trim": Step(("trim", "read"), parts=1),
    "counters": Step(("counters",)),
    "counts": Step(("counts",) * 9),
}

# Who takes which steps.
TABLE: dict[str, tuple[str, ...]] = {
    "worker": (
        *("load", "prepare", "id", "own", "fetch", "stand", "blob", "finish", "finish+fetch", "release", "refuse"),
        *("values", "values+fetch", "finish+values", "finish+values+fetch"),
    ),
    "pool": (
        *("load", "prepare", "register", "hosts", "beat", "reap", "leave", "reclaim", "announce", "inbox", "unblock"),
        *("counters", "pending", "release"),
    ),
    "client": (
        *("info", "load", "prepare", "hello", "submit", "submit+read", "cancel", "read", "trim"),
        *("counters", "poke", "counts"),
    ),
}


@dataclass(frozen=True)
class Stage:
    """At `point` of `step`, `actor` is killed or its connection is cut."""

    actor: str
    step: str
    point: str
    action: str

    def to_list(self) -> list[str]:
        return [self.actor, self.step, self.point, self.action]


# What a command is called


_SHAS = {broker._sha(name): name for name in broker._SCRIPTS}
_TEXTS = {broker.script(name): name for name in broker._SCRIPTS}
_WORDS = {
    "XLEN": "counts",
    "XPENDING": "counts",
    "ZCARD": "counts",
    "XTRIM": "trim",
    "INFO": "info",
}


def step_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """Of several VALUES one after the other, one: there are as many as there are clients and functions."""
    return tuple(name for i, name in enumerate(names) if i == 0 or (names[i - 1], name) != ("values", "values"))


def name_of(command: Sequence[Any]) -> str:
    """The step that a command belongs to."""
    word = command[0]
    if word == "EVALSHA":
        return _SHAS[command[1]]
    if word == "EVAL":
        return _TEXTS[command[1]]
    if word == "SCRIPT":
        return "load"
    if word == "CLIENT":
        return str(command[1]).lower()
    if word == "XREADGROUP":
        return "own" if command[-1] == "0" else "fetch"
    if word == "XREAD":
        return "inbox" if ":h:" in command[-2] else "read"
    if word == "HGETALL":
        return "counters" if command[1].endswith("hb") else "counts"
    if word == "HGET":
        return "blob"
    if word == "HMGET":
        return "stand"
    if word == "HVALS":
        return "hosts"
    return _WORDS.get(word, str(word))


# In the actor


class Plan:
    """The stages of one family of processes, and which of them have happened, in a directory.

    Nothing happens before the file ``armed`` is there.
    """

    def __init__(self, folder: Path, stages: Sequence[Stage], actor: Callable[[], str]) -> None:
        self._folder = folder
        self._stages = list(stages)
        self._actor = actor
        self._seen: set[str] = set()
        self._after = threading.local()

    def token(self, index: int) -> Path:
        return self._folder / f"happened-{index}"

    def now(self, names: tuple[str, ...], point: str) -> int | None:
        """The stage that is next, if it is this actor's, and these commands at this point are meant."""
        actor = self._actor()
        if not actor or not (self._folder / "armed").exists():
            return None
        for index, stage in enumerate(self._stages):
            if not self.token(index).exists():
                meant = (stage.actor, stage.point) == (actor, point) and STEPS[stage.step].names == step_of(names)
                return index if meant else None
        return None

    def step(self, index: int) -> Step:
        return STEPS[self._stages[index].step]

    def note(self, names: tuple[str, ...]) -> None:
        """Write down what this actor does, for the test of the table."""
        actor = self._actor()
        if set(names) in ({"stand"}, {"blob"}):
            # For as many calls as were fetched, or as many values as one needs.
            names = names[:1]
        word = f"{actor} {' '.join(step_of(names))}\n"
        if actor and word not in self._seen:
            self._seen.add(word)
            with (self._folder / "seen").open("a") as file:
                file.write(word)

    def happen(self, index: int, connection: Any) -> None:
        try:
            os.close(os.open(self.token(index), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            # Another process of the family came first.
            return
        if self._stages[index].action == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if connection._sock is not None:
            connection._sock.shutdown(socket.SHUT_RDWR)

    # After a reply: when the function that made the step has returned, or makes its next one.

    def soon(self, index: int, connection: Any) -> None:
        self._after.due = (index, connection)
        sys.setprofile(self._on_return)

    def _on_return(self, frame: Any, event: str, _: Any) -> None:
        path = frame.f_code.co_filename
        if event == "return" and ("/nbqueue/worker/" in path or "/nbqueue/client/" in path):
            self.due()

    def due(self) -> None:
        due, self._after.due = getattr(self._after, "due", None), None
        if due is not None:
            sys.setprofile(None)
            self.happen(*due)


def install(plan: Plan, replace: Callable[[object, str, Any], None] = setattr) -> None:
    """Wrap this process's wires, and those of the processes that it forks."""
    send, receive, ready, buffered = Wire.send, Wire.receive, Wire.ready, Wire.buffered.fget

    def new_send(wire: Wire, *commands: Sequence[Any]) -> None:
        plan.due()
        connection = wire._connection
        if connection is None:
            send(wire, *commands)
            return
        names = tuple(name_of(command) for command in commands)
        plan.note(names)
        _groups(connection).append([names, 0])
        stage = plan.now(names, BEFORE)
        if stage is not None:
            plan.happen(stage, connection)
        stage = plan.now(names, HALF)
        if stage is None:
            send(wire, *commands)
            return
        send(wire, commands[0])
        assert ready(wire, 5.0)
        plan.happen(stage, connection)

    def new_receive(wire: Wire) -> Any:
        connection = wire._connection
        groups = _groups(connection) if connection is not None else None
        if not groups:
            return receive(wire)
        group = groups[0]
        names: tuple[str, ...] = group[0]
        stage = plan.now(names, LOST) if group[1] == 0 else None
        if stage is not None:
            step = plan.step(stage)
            answers = [_caught(receive, wire) for _ in range(step.replies(names))]
            if step.counts(answers[-1]):
                plan.happen(stage, connection)
                # What was read is forgotten; this one finds the end of the connection.
                return receive(wire)
            connection.kept.extend(answers)
        answer = connection.kept.popleft() if connection.kept else _caught(receive, wire)
        group[1] += 1
        if group[1] == len(names):
            groups.popleft()
        stage = plan.now(names, AFTER)
        if stage is not None:
            step = plan.step(stage)
            if group[1] == step.replies(names) and step.counts(answer):
                plan.soon(stage, connection)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def keeps(wire: Wire) -> bool:
        connection = wire._connection
        return bool(connection is not None and _groups(connection) and connection.kept)

    def new_ready(wire: Wire, timeout_s: float = 0.0) -> bool:
        return keeps(wire) or ready(wire, timeout_s)

    def new_buffered(wire: Wire) -> bool:
        return keeps(wire) or buffered(wire)

    replace(Wire, "send", new_send)
    replace(Wire, "receive", new_receive)
    replace(Wire, "ready", new_ready)
    replace(Wire, "buffered", property(new_buffered))


def _groups(connection: Any) -> deque[Any]:
    """What was sent and not answered yet; it dies with the connection."""
    if not hasattr(connection, "groups"):
        connection.groups, connection.kept = deque(), deque()
    groups: deque[Any] = connection.groups
    return groups


def _caught(receive: Callable[[Wire], Any], wire: Wire) -> Any:
    try:
        return receive(wire)
    except CommandError as error:
        return error


# The nursery


def _host(order: dict[str, Any]) -> int:
    """``nbqueue worker URL``; its workers are actors of their own."""
    from nbqueue import cli
    from nbqueue.worker.loop import Worker
    from nbqueue.worker.supervisor import Supervisor

    me = [""]
    run, serve = Worker.run, Supervisor.run

    def run_worker(worker: Worker) -> int:
        me[0] = "worker"
        return run(worker)

    def run_supervisor(supervisor: Supervisor) -> int:
        me[0] = "pool"
        return serve(supervisor)

    def actor() -> str:
        # Not the thread that tells the terminal when all is ready, nor the client that a task is.
        mine = threading.current_thread().name in ("MainThread", "nbqueue-courier")
        return me[0] if mine else ""

    setattr(Worker, "run", run_worker)  # noqa: B010 - a type checker forbids the plain assignment
    setattr(Supervisor, "run", run_supervisor)  # noqa: B010
    install(Plan(Path(order["folder"]), [Stage(*stage) for stage in order["stages"]], actor))
    return cli.main(["worker", order["url"], "--queue", order["key"], "-n", str(order["workers"])])


def _kernel(order: dict[str, Any]) -> int:
    """A program that takes every step of a client."""
    from nbqueue import TaskQueue

    folder = Path(order["folder"])
    install(Plan(folder, [Stage(*stage) for stage in order["stages"]], lambda: "client"))
    queue = TaskQueue(order["url"] or None, order["key"], workers=1, progress=False)
    if order["run"]:
        queue.run(1)
    started, go = folder / "started", folder / "go"

    @queue.task
    def square(i: int) -> int:
        return i * i

    @queue.task
    def wait() -> None:
        started.touch()
        while not go.exists():
            time.sleep(0.005)

    assert [future.result(20) for future in [square(i) for i in range(4)]] == [0, 1, 4, 9]
    if order["bundles"]:
        # Only now is it known that they may travel together.
        (folder / "armed").touch()
        while True:
            assert [future.result(20) for future in [square(i) for i in range(40)]] == [i * i for i in range(40)]
    # Each leaves with the question for its reply.
    assert [square(i).result(20) for i in range(10)] == [i * i for i in range(10)]
    queue.status()
    # One that needs another, which needs another.
    assert square(square(square(2))).result(20) == 256
    running = wait()
    while not started.exists():
        time.sleep(0.005)
    running.cancel()
    assert [future.result(20) for future in [square(i) for i in range(4)]] == [0, 1, 4, 9]
    time.sleep(60)
    return 0


class _Nursery:
    def __init__(self) -> None:
        from nbqueue.stream.server import tie_to_parent

        for module in ("nbqueue.cli", "nbqueue.client.queue", "nbqueue.worker.supervisor", "nbqueue.worker.spawn"):
            importlib.import_module(module)
        # Whose parent was killed becomes ours, so that nobody gets lost.
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
        self._tie = tie_to_parent()
        signal.signal(signal.SIGCHLD, self._reap)

    @staticmethod
    def _reap(_signum: int, _frame: object) -> None:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            # That was the last.
            pass

    def run(self) -> None:
        print("ready", flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            pid = os.fork()
            if pid == 0:
                self._become(order)
            print(pid, flush=True)

    def _become(self, order: dict[str, Any]) -> None:
        code = 70
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if self._tie is not None:
                self._tie()
            null = os.open(os.devnull, os.O_RDONLY)
            out = os.open(Path(order["folder"], "out"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for fd, number in ((null, 0), (out, 1), (out, 2)):
                os.dup2(fd, number)
            for name, value in order["settings"].items():
                module, _, constant = name.rpartition(".")
                setattr(importlib.import_module(f"nbqueue.{module}"), constant, value)
            code = {"host": _host, "kernel": _kernel}[order["what"]](order)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            raise
        finally:
            sys.stdout.flush()
            os._exit(code)


class Nursery:
    """The nursery, as the test sees it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    @property
    def pid(self) -> int:
        return self._process.pid

    def fork(self, order: dict[str, Any]) -> int:
        """Start an actor; returns its process number."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


if __name__ == "__main__":
    _Nursery().run()
