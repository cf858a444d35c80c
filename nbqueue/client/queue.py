"""`TaskQueue`: the handle that notebooks hold.

Handles are light. What they stand for, the connection, the pool and the open calls of one queue on one
server, is a `_Core`, kept once per process: a cell ``queue = TaskQueue()`` that is run again joins what is
there, and an old handle that hides in ``Out[]`` holds nothing.
"""

from __future__ import annotations

import inspect
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, cast, overload

from nbqueue import context
from nbqueue.client.batch import Batch, Recipe
from nbqueue.client.future import TaskFuture
from nbqueue.client.launch import LocalLauncher, local_launcher
from nbqueue.client.listener import Link
from nbqueue.client.setting import SettingWatch
from nbqueue.client.task import Options, Task, length_of, require_iterable, zip_arguments
from nbqueue.codec.functions import digest, dump_arguments, dump_function
from nbqueue.codec.messages import CallBody, dump_call
from nbqueue.codec.seal import Seal, fingerprint, new_secret, user_secret
from nbqueue.codec.values import LARGEST_BYTES
from nbqueue.errors import BadOption, NbqueueError, NotSendable, PoolError, UnsupportedKernel
from nbqueue.stream.connect import Address, Wire, check_server
from nbqueue.stream.keys import Keys
from nbqueue.stream.records import RunningTask, WorkerState
from nbqueue.stream.server import find_executable

__all__ = ["QueueStatus", "TaskQueue"]

P = ParamSpec("P")
R = TypeVar("R")

FLUSH_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """A look at a queue. Counts come from the stream, what runs from the workers' slot boards.

    `queued` calls wait for a worker; `delayed` ones wait for their next attempt; `running` items run now.
    `done`, `failed`, `cancelled` and `retried` count since the queue was made (or was empty for a week).
    A call of a map is a chunk of several items: `queued` counts chunks, the others items.
    """

    queue: str
    server: str
    queued: int
    delayed: int
    done: int
    failed: int
    cancelled: int
    retried: int
    workers: tuple[WorkerState, ...]

    @property
    def running(self) -> tuple[RunningTask, ...]:
        return tuple(worker.task for worker in self.workers if worker.task is not None)

    def __repr__(self) -> str:
        counts = [f"{self.queued} queued", f"{len(self.running)} running", f"{self.done} done"]
        for name in ("failed", "delayed", "retried", "cancelled"):
            if getattr(self, name):
                counts.append(f"{getattr(self, name)} {name}")
        lines = [f"queue {self.queue!r} on {self.server}", "  " + " · ".join(counts)]
        if not self.workers:
            lines.append("  no workers")
        for worker in self.workers:
            what = worker.state
            if worker.task is not None:
                task = worker.task
                again = f", attempt {task.attempt}" if task.attempt > 1 else ""
                waits = ", waiting for a task of its own" if worker.state == "waiting" else ""
                what = f"{task.name} for {task.seconds:.1f} s{again}{waits}"
            lines.append(f"  worker {worker.slot} (pid {worker.pid}): {what}")
        return "\n".join(lines)


class _Core:
    """One queue on one server, as this process sees it."""

    def __init__(self, queue: str, address: Address | None, secret: bytes, executable: str | None) -> None:
        self.queue = queue
        self.secret = secret
        self.keys = Keys.of(queue, fingerprint(secret))
        self.prefix = self.keys.prefix
        self.id = f"{self.prefix} {address or 'private'}"
        self.private = executable is not None
        self._fixed = address
        self._executable = executable
        self.link = Link(queue, self.address, self.keys, Seal(secret, self.prefix))
        self.watch = SettingWatch()
        self.workers: int | None = None
        self._lock = threading.Lock()
        self._started = False  # or never to be started without run()
        self._running = False

    @property
    def launcher(self) -> LocalLauncher:
        return local_launcher()

    def address(self) -> Address:
        if self._executable is None:
            assert self._fixed is not None
            return self._fixed
        return self.launcher.serve(self._executable)

    def check_process(self) -> None:
        self.link.check_process()

    def start_workers(self) -> None:
        """On a private server the first call starts the pool; it does not wait for it."""
        if self._started or not self.private:
            return
        with self._lock:
            first = not self._started
            self._started = True
        if not first:
            return
        self.link.starting = True
        threading.Thread(target=self._start_quietly, name="nbqueue-start", daemon=True).start()

    def _start_quietly(self) -> None:
        try:
            self.run(self.workers)
        except NbqueueError as error:
            self._started = False
            self.link.failure = error
            sys.stderr.write(f"nbqueue: {error}\n")
        finally:
            self.link.starting = False

    def resize(self, workers: int) -> None:
        """What a new handle asks for. A private pool that runs follows; others follow `run` only."""
        changed, self.workers = workers != self.workers, workers
        if changed and self._running and self.private:
            self.run(workers)

    def run(self, workers: int | None) -> int:
        self.check_process()
        self._started = True
        number = self.launcher.start(self, workers)
        self._running = True
        self.link.expected_workers = self.link.workers = number
        return number

    def shutdown(self) -> None:
        self.check_process()
        # From now on nothing starts by itself: run() does.
        self._started = True
        if self.link.open_calls and not self.link.flush(FLUSH_TIMEOUT_S):
            raise PoolError("What was submitted could not be handed to the server; the workers go on.")
        self.launcher.stop(self)
        self._running = False
        self.link.workers = 0

    def blobs(self, fn: Callable[..., Any], name: str) -> tuple[str, str, dict[str, bytes]]:
        """Digests of the function and the setting, and both sealed, made from what they are now."""
        code = dump_function(fn, name)
        if len(code) > LARGEST_BYTES:
            raise NotSendable(
                f"`{name}` could not be sent: with what it captures it is {len(code) / 1e6:.0f} MB; the limit is "
                f"{LARGEST_BYTES / 1e6:.0f} MB. Pass large data as arguments, or load them in the task."
            )
        function = digest(code)
        setting, text = self.watch.current()
        link = self.link
        return (
            function,
            setting,
            {function: link.seal_blob(function, code), setting: link.seal_blob(setting, text)},
        )

    def submit_call(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: Options
    ) -> TaskFuture[Any]:
        self.check_process()
        name = options.name
        function, setting, blobs = self.blobs(fn, name)
        arguments = dump_arguments(args, kwargs, name, fn)
        if len(arguments) > LARGEST_BYTES:
            raise NotSendable(
                f"`{name}` could not be sent: its arguments are {len(arguments) / 1e6:.0f} MB when pickled; the limit "
                f"is {LARGEST_BYTES / 1e6:.0f} MB. Load the data in the task, or send it in parts."
            )
        body = CallBody(name, function, setting, options.timeout, options.retries, frames=(arguments,))
        future: TaskFuture[Any] = TaskFuture(name, self.link)
        future._call = self.link.submit(dump_call(body), (function, setting), blobs, future)
        self.start_workers()
        return future

    def submit_items(
        self,
        fn: Callable[..., Any],
        items: Iterable[tuple[Any, ...]],
        total: int | None,
        kwargs: dict[str, Any],
        options: Options,
    ) -> Batch[Any]:
        self.check_process()
        self.start_workers()
        recipe = Recipe(fn, options, kwargs, lambda: self.blobs(fn, options.name))
        show = options.progress is not False and not context.in_task()
        return Batch(self.link, recipe, items, total, show)


_cores: dict[tuple[int, str, str], _Core] = {}
_cores_lock = threading.Lock()
_private_secret = new_secret()


def _core_of(queue: str, address: Address | None, secret: bytes, executable: str | None) -> _Core:
    # By pid: a forked child starts with none.
    key = (os.getpid(), str(address or "private"), Keys.of(queue, fingerprint(secret)).prefix)
    with _cores_lock:
        core = _cores.get(key)
        if core is None:
            core = _cores[key] = _Core(queue, address, secret, executable)
        return core


class TaskQueue:
    """A queue of calls and the worker processes that run them.

    Parameters
    ----------
    client : None, str or redis.Redis
        None starts a private Redis server that only this process uses, with one worker per core, started by
        the first call. A URL (``redis://``, ``rediss://``, ``unix://``) or a ``redis.Redis`` uses that server;
        then `run`, or ``nbqueue worker URL`` anywhere, starts workers.
    stream_key : str
        The queue's name. Queues of different names do not see each other.
    workers : int, optional
        Worker processes that the first call starts, or `run` if it is given no number. By default as many as
        the cores that this process may use (affinity, cgroup quota, ``CPU_LIMIT``).
    retries, timeout, progress
        Defaults for all tasks of this handle, see `task`.
    insecure : bool
        Allow a server on another host without TLS and password.

    Raises
    ------
    BadOption, ServerNotFound, ServerUnreachable, ServerRefused, ServerTooOld, ServerUnsafe, UnsupportedKernel

    Examples
    --------
    >>> queue = TaskQueue()
    >>> @queue.task
    ... def square(x):
    ...     return x * x
    >>> square(3).result()
    9
    >>> square.map(range(4)).results()
    [0, 1, 4, 9]
    """

    def __init__(
        self,
        client: Any = None,
        stream_key: str = "tasks",
        *,
        workers: int | None = None,
        retries: int = 0,
        timeout: float | None = None,
        progress: bool | None = None,
        insecure: bool = False,
    ) -> None:
        self._options = Options(retries=retries, timeout=timeout, progress=progress)
        _check_workers(workers)
        _check_kernel(self._options)
        self.stream_key = stream_key
        if client is None:
            Keys.of(stream_key, "")
            core = _core_of(stream_key, None, _private_secret, find_executable())
        else:
            address = Address.from_url(client) if isinstance(client, str) else Address.from_client(client)
            address.require_safe(insecure=insecure)
            secret = user_secret()
            Keys.of(stream_key, "")
            _check_reachable(address)
            core = _core_of(stream_key, address, secret, None)
        if workers is not None:
            core.resize(workers)
        self._core: _Core | None = core
        self._server = str(core._fixed or "private")

    def __repr__(self) -> str:
        return f"<TaskQueue {self.stream_key!r} on {self._server}>"

    # Tasks

    @overload
    def task(self, fn: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self,
        fn: None = None,
        /,
        *,
        name: str = ...,
        retries: int = ...,
        timeout: float | None = ...,
        chunksize: int | None = ...,
        progress: bool | None = ...,
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...
    def task(self, fn: Any = None, /, **options: Any) -> Any:
        """Make calls of a function run in worker processes: ``@queue.task`` or ``@queue.task(retries=3)``.

        The function is pickled at each call, with the globals, helpers and classes of the notebook that it
        reaches, as they are then.

        Parameters
        ----------
        name : str
            Shown in progress bars and messages; the function's own by default.
        retries : int
            How often a call that raised an exception is run again, with growing pauses.
        timeout : float
            Seconds that one call, or one item of a map, may run before it is stopped.
        chunksize : int
            Items of a map that travel together; measured by default.
        progress : bool
            False: no progress bar for maps.
        """
        if fn is None:
            # Wrong options are refused where they are written.
            self._options.with_(**options)
            return lambda fn: self.task(fn) if not options else self._task(fn, options)
        return self._task(fn, options)

    def _task(self, fn: Callable[..., Any], options: dict[str, Any]) -> Task[..., Any]:
        if isinstance(fn, Task):
            return fn.options(**options)
        return Task(fn, self, self._named(fn, options))

    def _named(self, fn: Callable[..., Any], changes: dict[str, Any]) -> Options:
        if not callable(fn):
            raise BadOption(f"A task must be a function, not {type(fn).__name__}.")
        if inspect.iscoroutinefunction(fn):
            raise BadOption(
                f"`{fn.__name__}` is an async function; tasks are plain functions. Call asyncio.run inside one."
            )
        name = changes.get("name") or getattr(fn, "__name__", None) or type(fn).__name__
        return self._options.with_(**{**changes, "name": name})

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[R]:
        """Call any function in a worker, as ``Executor.submit`` does.

        Raises
        ------
        NotSendable
            If the function or an argument cannot be pickled; the message names it.
        """
        if isinstance(fn, Task):
            return cast("TaskFuture[R]", fn.submit(*args, **kwargs))
        return cast("TaskFuture[R]", self.submit_call(fn, args, dict(kwargs), self._named(fn, {})))

    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        retries: int | None = None,
        chunksize: int | None = None,
        progress: bool | None = None,
        name: str | None = None,
    ) -> Batch[R]:
        """Call any function with the first items of all `iterables`, then the second, …

        The options are those of `task`; the result is a `Batch`.
        """
        given = {
            "timeout": timeout, "retries": retries, "chunksize": chunksize, "progress": progress, "name": name,
        }  # fmt: skip
        changes = {option: value for option, value in given.items() if value is not None}
        if isinstance(fn, Task):
            return cast("Batch[R]", fn.options(**changes).map(*iterables))
        items, total = zip_arguments(iterables), length_of(iterables)
        return cast("Batch[R]", self.submit_items(fn, items, total, {}, self._named(fn, changes)))

    def starmap(self, fn: Callable[..., R], arguments: Iterable[Iterable[Any]], **options: Any) -> Batch[R]:
        """Call any function with ``*a`` for each `a` of `arguments`. The options are those of `task`."""
        task = fn.options(**options) if isinstance(fn, Task) else Task(fn, self, self._named(fn, options))
        return cast("Batch[R]", task.starmap(require_iterable(arguments, "starmap")))

    # What tasks are handed

    def submit_call(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: Options
    ) -> TaskFuture[Any]:
        return self._here().submit_call(fn, args, kwargs, options)

    def submit_items(
        self,
        fn: Callable[..., Any],
        items: Iterable[tuple[Any, ...]],
        total: int | None,
        kwargs: dict[str, Any],
        options: Options,
    ) -> Batch[Any]:
        return self._here().submit_items(fn, items, total, kwargs, options)

    # Workers

    def run(self, nworkers: int | None = None) -> None:
        """Start worker processes on this machine, or change their number.

        Parameters
        ----------
        nworkers : int, optional
            By default what ``TaskQueue(workers=)`` was given, else as many as cores may be used.
        """
        _check_workers(nworkers, "nworkers")
        core = self._here()
        core.run(nworkers or core.workers)

    def shutdown(self) -> None:
        """Stop the workers that this process started; `run` starts them again.

        What was sent is handed to the server, idle workers fetch once more, running calls finish; the rest
        stays queued. Results stay readable. Does nothing if no workers run.
        """
        self._here().shutdown()

    def cancel(self) -> None:
        """Cancel every call that this process has open on the queue, queued and running alike."""
        for sink in self._here().link.sinks():
            if isinstance(sink, TaskFuture | Batch):
                sink.cancel()

    def status(self) -> QueueStatus:
        """What is queued, running (by whom, for how long), done and failed, in all clients together."""
        core = self._here()
        counts = core.link.counts()
        workers = tuple(worker for host in counts.hosts for worker in host.workers)
        return QueueStatus(
            queue=self.stream_key,
            server=self._server,
            queued=counts.queued,
            delayed=counts.delayed,
            done=counts.done,
            failed=counts.failed,
            cancelled=counts.cancelled,
            retried=counts.retried,
            workers=workers,
        )

    def __enter__(self) -> TaskQueue:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for everything that was sent, then stops the workers; after an exception, cancels it."""
        core = self._here()
        if kind is not None:
            self.cancel()
        else:
            try:
                core.link.drain()
            except KeyboardInterrupt:
                self.cancel()
                raise
        self.shutdown()

    # A queue travels as names; where it arrives it stands for the queue that the task came from.
    def __reduce__(self) -> tuple[Any, ...]:
        server = self._server if self._core is None else str(self._core.address())
        return _arrived, (self.stream_key, server, self._options)

    def _here(self) -> _Core:
        if self._core is not None:
            return self._core
        task = context.current()
        if task is not None:
            address = Address.from_dict(task.address)
            if str(address) != self._server:
                raise NbqueueError(f"A task can use queues on its own server only, and {self!r} is elsewhere.")
            return _core_of(self.stream_key, address, task.secret, None)
        with _cores_lock:
            for (pid, _, _), core in _cores.items():
                if pid == os.getpid() and core.queue == self.stream_key and str(core.address()) == self._server:
                    return core
        raise NbqueueError(f"{self!r} was made in another process; make a TaskQueue here.")


def _arrived(stream_key: str, server: str, options: Options) -> TaskQueue:
    queue = TaskQueue.__new__(TaskQueue)
    queue.stream_key, queue._server, queue._options, queue._core = stream_key, server, options, None
    return queue


def _check_workers(workers: object, name: str = "workers") -> None:
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise BadOption(f"{name}={workers!r}: give a whole number, 1 or more, or None for one per core.")


_checked: set[tuple[int, str]] = set()


def _check_reachable(address: Address) -> None:
    """Connect once, so that a wrong address, password or server is refused where it was given."""
    key = (os.getpid(), repr(address))
    wire = Wire(address, timeout_s=10.0)
    wire.connect()
    try:
        if key not in _checked:
            for text in check_server(wire):
                warnings.warn(text, RuntimeWarning, stacklevel=4)
            _checked.add(key)
    finally:
        wire.close()


def _check_kernel(options: Options) -> None:
    """ipykernel 7.0 loses what threads send: progress bars would stand still, without a word."""
    ipykernel = sys.modules.get("ipykernel")
    if ipykernel is None or "ipykernel.kernelapp" not in sys.modules:
        return
    if options.progress is False or os.environ.get("NBQUEUE_PROGRESS", "").lower() in ("0", "false", "off", "no"):
        return
    if tuple(getattr(ipykernel, "version_info", ()))[:2] == (7, 0):
        raise UnsupportedKernel(
            "ipykernel 7.0 loses what background threads send to the notebook, so progress bars would stand still. "
            "Install another one: pip install 'ipykernel!=7.0.*' and restart the kernel; or go without bars: "
            "TaskQueue(progress=False)."
        )
