"""`TaskQueue`: the handle that notebooks hold.

Handles are light: an old one that hides in ``Out[]`` holds nothing. What they stand for is in `core`.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Container, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, Unpack, overload
from weakref import WeakSet

from nbqueue import context
from nbqueue.client.blocks import drain
from nbqueue.client.core import Core, core_of, find_core, private_core
from nbqueue.client.results.arriving import Arriving
from nbqueue.client.results.batch import Batch
from nbqueue.client.results.frames import user_frames_only, users_level
from nbqueue.client.results.future import TaskFuture
from nbqueue.client.results.several import interrupt_sinks
from nbqueue.client.sending.history import TaskHistory
from nbqueue.client.sending.options import Options, TaskOptions, check_limits, check_workers, fitted
from nbqueue.client.sending.seeds import check_rng
from nbqueue.client.status import QueueStatus
from nbqueue.client.task import Task, check_options, length_of, options_only, require_iterable, zip_arguments
from nbqueue.codec import shelves
from nbqueue.codec.blobs import Put
from nbqueue.codec.seal import user_secret
from nbqueue.errors import BadOption, NbqueueError, UnsupportedKernel
from nbqueue.stream.connect import Address, Wire, check_server
from nbqueue.stream.keys import Keys
from nbqueue.stream.server import find_executable

if TYPE_CHECKING:
    from nbqueue.interop.executor import QueueExecutor

__all__ = ["Put", "QueueStatus", "TaskQueue"]

CONNECT_PATIENCE_S = 10.0

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class TaskMaker(Protocol):
    """What ``@queue.task(…)`` is: it keeps the signature of what it decorates."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Task[P, R]: ...


class TaskQueue:
    """A queue of calls and the worker processes that run them.

    Parameters
    ----------
    client : None, str or redis.Redis
        None starts a private Redis server that only this process uses, with one
        worker per core, started by the first call. A URL (``redis://``,
        ``rediss://``, ``unix://``) or a ``redis.Redis`` uses that server; then
        `run`, or ``nbqueue worker URL`` anywhere, starts workers.
    stream_key : str
        The queue's name. Queues of different names do not see each other.
    workers : int, optional
        Worker processes that the first call starts, or `run` if it is given no
        number. By default as many as the cores that this process may use
        (affinity, cgroup quota, ``CPU_LIMIT``).
    memory_limit : int or str, optional
        Memory that one worker may use, in bytes or as ``"2 GB"`` (10^9) or ``"2
        GiB"`` (2^30). A task whose worker uses more is ended as `WorkerDied`; a
        worker that keeps most of it for itself is replaced. What it shares with
        others, as memory-mapped files, does not count.
    max_tasks_per_worker : int, optional
        Items after which a worker is replaced by a fresh one, for tasks that leak.
    retries, timeout, progress, on_interrupt
        Defaults for all tasks of this handle, see `task`.
    insecure : bool
        Allow a server on another host without TLS and password.

    Raises
    ------
    BadOption, ServerNotFound, ServerUnreachable, ServerRefused, ServerTooOld, ServerUnsafe, UnsupportedKernel
        Each message says what to do. All are in `nbqueue.errors`.

    Notes
    -----
    Handles of one name and server are one queue: ``TaskQueue()`` in a cell that is
    run again joins what is there. As a ``with`` block it waits at the end for
    everything that was sent, then stops its workers; those that ran when the block
    began stay. An exception in the block cancels what was sent.

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

    @user_frames_only
    def __init__(
        self,
        client: Any = None,
        stream_key: str = "tasks",
        *,
        workers: int | None = None,
        memory_limit: int | str | None = None,
        max_tasks_per_worker: int | None = None,
        retries: int = 0,
        timeout: float | None = None,
        progress: bool | None = None,
        on_interrupt: str = "cancel",
        insecure: bool = False,
    ) -> None:
        self._options = Options(retries=retries, timeout=timeout, progress=progress, on_interrupt=on_interrupt)
        check_workers(workers)
        limits = check_limits(memory_limit, max_tasks_per_worker)
        _check_kernel(self._options)
        self.stream_key = stream_key
        Keys.of(stream_key, "")
        if client is None:
            _check_shared_memory()
            core = private_core(stream_key, find_executable())
            core.revive()
        else:
            address = Address.from_url(client) if isinstance(client, str) else Address.from_client(client)
            address.require_safe(insecure=insecure)
            secret = user_secret()
            _check_reachable(address)
            core = core_of(stream_key, address, secret)
        core.change(workers, limits)
        self._core: Core | None = core
        self._before: list[WeakSet[Any]] = []  # for each block over this handle: what was open when it began
        self._server = str(core.fixed or "private")

    def __repr__(self) -> str:
        return f"<TaskQueue {self.stream_key!r} on {self._server}>"

    # Tasks

    @overload
    def task(self, fn: Callable[P, Coroutine[Any, Any, R]], /, **options: Unpack[TaskOptions]) -> Task[P, R]: ...
    @overload
    def task(self, fn: Callable[P, R], /, **options: Unpack[TaskOptions]) -> Task[P, R]: ...
    @overload
    def task(self, fn: None = None, /, **options: Unpack[TaskOptions]) -> TaskMaker: ...
    @user_frames_only
    def task(self, fn: Any = None, /, **options: Any) -> Any:
        """Make calls of a function run in worker processes: ``@queue.task`` or ``@queue.task(retries=3)``.

        The function is pickled at each call, with the globals, helpers and classes of
        the notebook that it reaches, as they are then.

        Calls of an async function (``async def``) run in their worker's event loop,
        several at a time: for work that waits, as for servers and disks. What one of
        them computes keeps the others of its worker waiting.

        Parameters
        ----------
        fn : callable
            What is decorated; without it, this gives the decorator.
        name : str
            Shown in progress bars and messages; the function's own by default.
        retries : int
            How often a call that raised an exception is run again, with growing
            pauses.
        retry_on : exception type or tuple of them
            Which exceptions that is for; any by default.
        timeout : float
            Seconds that one call, or one item of a map, may run before it is stopped.
        chunksize : int
            Items of a map that travel together; measured by default. Those of an async
            function travel alone.
        concurrency : int
            Of an async function: how many calls one worker runs at a time, 16 by
            default, 256 at most. A call joins others, also of other tasks, where there
            are fewer than that.
        progress : bool
            False: no progress bar for maps.
        on_interrupt : {"cancel", "detach"}
            What the interrupt of a cell does to a call that the cell waits for: cancel
            it, or let it run on, so that only the waiting ends and the result can be
            asked for later.
        priority : {"high", "normal", "low"}
            Which of the calls that wait a worker takes next: those of high priority
            before all others, those of low priority behind them. Nothing starves:
            where a worker finds calls of two priorities each time, it takes one of the
            lower for six of the higher. What runs is not interrupted.
        rng : str
            The parameter that receives a random generator, made anew for each call and
            each item of a map: a ``numpy.random.Generator``, or a ``random.Random``
            where workers have no NumPy. Do not pass it yourself.
        seed : int
            What these are made from. Item `i` (a single call is item 0) draws from
            ``Generator(PCG64(SeedSequence(seed, spawn_key=(i,))))``, which is what
            NumPy gives the `i`-th child of ``SeedSequence(seed).spawn(n)``, see
            *Parallel random number generation* in NumPy's guide. So the numbers are
            the same whatever the number of workers, the chunks, or attempts. By
            default each call or batch has fresh entropy, which its ``seed`` tells; a
            retry and ``replay()`` draw the same numbers. What a task with `rng` calls
            in its turn draws, unless it has a seed, from one that is made of that
            task's own.

        Raises
        ------
        BadOption
            For an option that does not exist or cannot be meant, and for what is no
            function.

        Examples
        --------
        >>> @queue.task(retries=2, timeout=60)
        ... def halve(x):
        ...     return x / 2
        >>> halve(3).result()
        1.5

        The same numbers, whoever draws them:

        >>> @queue.task(rng="rng", seed=7)
        ... def draw(n, rng):
        ...     return [rng.random() for _ in range(n)]
        >>> once, again = draw.map([2, 2]), draw.map([2, 2])
        >>> once.results() == again.results(), once.seed
        (True, 7)
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
        name = changes.get("name") or getattr(fn, "__name__", None) or type(fn).__name__
        options = fitted(fn, self._options.with_(**{**changes, "name": name}))
        check_rng(fn, options)
        return options

    @overload
    def submit(self, fn: Task[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[R]: ...
    @overload
    def submit(
        self, fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskFuture[R]: ...
    @overload
    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[R]: ...
    @user_frames_only
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture[Any]:
        """Call any function in a worker, as ``Executor.submit`` does.

        Parameters
        ----------
        fn : callable
            A function, or a task, whose options then hold.
        *args, **kwargs
            Its arguments. They are pickled now: what is changed afterwards is not
            seen.

        Returns
        -------
        TaskFuture
            At once; the call is on its way.

        Raises
        ------
        NotSendable
            If the function or an argument cannot be pickled; the message names it.

        Examples
        --------
        >>> future = queue.submit(pow, 2, 10)
        >>> future.result()
        1024
        """
        if isinstance(fn, Task):
            return fn.submit(*args, **kwargs)
        return self.submit_call(fn, args, dict(kwargs), self._named(fn, {}))

    @overload
    def map(self, fn: Task[..., R], *iterables: Iterable[Any], **options: Unpack[TaskOptions]) -> Batch[R]: ...
    @overload
    def map(
        self, fn: Callable[..., Coroutine[Any, Any, R]], *iterables: Iterable[Any], **options: Unpack[TaskOptions]
    ) -> Batch[R]: ...
    @overload
    def map(self, fn: Callable[..., R], *iterables: Iterable[Any], **options: Unpack[TaskOptions]) -> Batch[R]: ...
    @user_frames_only
    @options_only
    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        retries: int | None = None,
        retry_on: type[Exception] | tuple[type[Exception], ...] | None = None,
        chunksize: int | None = None,
        progress: bool | None = None,
        on_interrupt: str | None = None,
        priority: str | None = None,
        name: str | None = None,
        rng: str | None = None,
        seed: int | None = None,
        concurrency: int | None = None,
    ) -> Batch[Any]:
        """Call any function with the first items of all `iterables`, then the second, …

        Parameters
        ----------
        fn : callable
            A function, or a task.
        *iterables : iterable
            One for each parameter; the shortest ends it. A generator is drawn while
            results come back.
        timeout, retries, retry_on, chunksize, progress, on_interrupt, priority, name, rng, seed, concurrency
            As in `task`. Keywords of the function itself go through a task:
            ``queue.task(fn).map(items, power=3)``.

        Returns
        -------
        Batch
            Results that are still arriving, in order.

        Raises
        ------
        BadCall
            If there is nothing to iterate over, an option has the name of a
            parameter of the function, or a keyword is no option.
        BadOption, NotSendable

        Examples
        --------
        >>> queue.map(len, ["any", "function", "will", "do"]).results()
        [3, 8, 4, 2]
        >>> queue.map(pow, [2, 3], [5, 2], timeout=60).results()
        [32, 9]
        """
        given: dict[str, Any] = {
            "timeout": timeout, "retries": retries, "retry_on": retry_on, "chunksize": chunksize,
            "progress": progress, "on_interrupt": on_interrupt, "priority": priority, "name": name,
            "rng": rng, "seed": seed, "concurrency": concurrency,
        }  # fmt: skip
        changes = {option: value for option, value in given.items() if value is not None}
        if isinstance(fn, Task):
            return fn.options(**changes).map(*iterables)
        if changes:
            check_options(fn, changes, len(iterables))
        items, total = zip_arguments(iterables), length_of(iterables)
        return self.submit_items(fn, items, total, {}, self._named(fn, changes))

    @overload
    def starmap(
        self, fn: Task[..., R], arguments: Iterable[Iterable[Any]], **options: Unpack[TaskOptions]
    ) -> Batch[R]: ...
    @overload
    def starmap(
        self,
        fn: Callable[..., Coroutine[Any, Any, R]],
        arguments: Iterable[Iterable[Any]],
        **options: Unpack[TaskOptions],
    ) -> Batch[R]: ...
    @overload
    def starmap(
        self, fn: Callable[..., R], arguments: Iterable[Iterable[Any]], **options: Unpack[TaskOptions]
    ) -> Batch[R]: ...
    @user_frames_only
    def starmap(self, fn: Callable[..., Any], arguments: Iterable[Iterable[Any]], **options: Any) -> Batch[Any]:
        """Call any function with ``*a`` for each `a` of `arguments`. The options are those of `task`.

        Raises
        ------
        BadCall
            If `arguments`, or an item of it, cannot be iterated over.
        BadOption, NotSendable

        Examples
        --------
        >>> queue.starmap(pow, [(2, 5), (3, 2)]).results()
        [32, 9]
        """
        task = fn.options(**options) if isinstance(fn, Task) else Task(fn, self, self._named(fn, options))
        return task.starmap(require_iterable(arguments, "starmap"))

    @user_frames_only
    def put(self, value: T) -> Put[T]:
        """Take an object as it is now, to be sent once however many calls use it.

        Give the handle to calls in the object's place: as an argument, within one, for
        each item of a map or for all, or as a global that a task uses. The task
        receives the object. Each worker is sent it once, and keeps it for the next
        call, so tasks must not change it; arrays in it are read-only.

        Parameters
        ----------
        value : object
            Anything that can be pickled, up to 500 MB; on a private server, as much as
            shared memory has room for.

        Returns
        -------
        Put
            ``.get()`` gives the object here. As long as it or an open call lives, the
            bytes are kept.

        Raises
        ------
        NotSendable
            If it cannot be pickled, or is larger; the message names its size.

        Examples
        --------
        >>> table = queue.put(list(range(1_000)))
        >>> queue.submit(sum, table).result()
        499500
        """
        try:
            return self._here().put(value)
        except KeyboardInterrupt:
            if context.in_task():
                raise
            # A new one: where in our copying it struck helps nobody.
            raise KeyboardInterrupt("nothing was put; the queue and what runs in it go on.") from None

    def executor(self, **options: Unpack[TaskOptions]) -> QueueExecutor:
        """This queue as a `concurrent.futures.Executor`, for whatever takes one.

        Its `shutdown`, or the end of its ``with`` block, waits for its own calls and
        leaves the queue and its workers alone: those are everybody's.

        Parameters
        ----------
        **options
            Of all its calls, as in `task`: ``retries=2``, ``timeout=60``, …

        Raises
        ------
        BadOption

        Examples
        --------
        >>> with queue.executor() as executor:
        ...     list(executor.map(len, ["any", "function"]))
        [3, 8]
        """
        # A door that is opened when somebody comes: nothing here needs what is behind it.
        from nbqueue.interop.executor import QueueExecutor

        with user_frames_only:
            self._options.with_(**options)
            return QueueExecutor(self, self._here(), {**options}, self._named)

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

    @user_frames_only
    def run(self, nworkers: int | None = None) -> None:
        """Start worker processes on this machine, or change their number.

        Of workers that are too many, the idle leave first, and the others as soon as
        the item that they run has ended. What they had fetched is left to the rest.

        Parameters
        ----------
        nworkers : int, optional
            By default what ``TaskQueue(workers=)`` was given, else as many as cores
            may be used.

        Raises
        ------
        BadOption
            For a number below 1 or above 256.
        PoolError
            If they could not be started. A second call tries again.

        Examples
        --------
        >>> queue.run(2)
        >>> len(queue.status().workers)
        2
        """
        check_workers(nworkers, "nworkers")
        core = self._here()
        core.run(nworkers or core.workers)

    @user_frames_only
    def restart_workers(self) -> None:
        """Replace every worker that this process started by a fresh one; returns when the last one is.

        A worker is replaced as soon as it is idle: running calls finish, the others go
        on with the rest. So calls that are made afterwards run in processes that have
        loaded nothing yet. Does nothing if no workers run; workers that others have
        started stay. Interrupting the wait leaves the replacement going on.

        Raises
        ------
        PoolError
            If the workers were lost, since their supervisor kept dying; `run` starts
            others.

        Examples
        --------
        >>> import os
        >>> before = queue.submit(os.getpid).result()
        >>> queue.restart_workers()
        >>> queue.submit(os.getpid).result() == before
        False
        """
        self._here().restart()

    @user_frames_only
    def shutdown(self) -> None:
        """Stop the workers that this process started; `run` starts them again.

        What was sent is handed to the server, idle workers fetch once more, running
        calls finish; the rest stays queued. Results stay readable. Does nothing if no
        workers run. Interrupting it cancels what runs.

        Raises
        ------
        PoolError
            If what was sent could not be handed to the server within 30 s; the workers
            then go on.

        Examples
        --------
        >>> future = queue.submit(abs, -3)
        >>> queue.shutdown()
        >>> future.result()
        3
        """
        self._here().shutdown(self._interrupt_all)

    def cancel(self) -> None:
        """Cancel every call that this process has open on the queue, queued and running alike.

        Whoever waits for one gets `TaskCancelled`. Calls of other processes go on;
        ``nbqueue cancel URL`` ends those.

        Examples
        --------
        >>> import time
        >>> future = queue.submit(time.sleep, 60)
        >>> queue.cancel()
        >>> future.cancelled()
        True
        """
        self._cancel(())

    def _cancel(self, spared: Container[object]) -> None:
        # The last first: cancelling what runs makes room, in which what is still queued must not start.
        for sink in reversed(self._here().link.sinks()):
            if isinstance(sink, TaskFuture | Arriving) and sink not in spared:
                sink.cancel()

    @user_frames_only
    def status(self) -> QueueStatus:
        """What is queued, running (by whom, for how long), done and failed, in all clients together.

        Raises
        ------
        ServerError
            If the server does not answer.

        Examples
        --------
        >>> queue.submit(abs, -3).result()
        3
        >>> status = queue.status()
        >>> status.done > 0, len(status.workers)
        (True, 2)
        """
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
            refused=counts.refused + core.link.refused,
            workers=workers,
            memory_bytes=counts.memory_bytes,
            memory_limit_bytes=counts.memory_limit_bytes,
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """What a notebook shows where no live panel can be: the status as it is now."""
        try:
            status = self.status()
        except NbqueueError as error:
            return {"text/plain": f"{self!r}: {error}"}
        return {"text/plain": repr(status), "text/html": status._repr_html_()}

    def history(self, n: int = 20, *, failed: bool = False) -> TaskHistory:
        """The last `n` tasks of this process that have ended, the newest last; a list that shows as a table.

        Kept in this process, from what came back: it costs the server nothing, knows
        nothing of what other processes sent, and outlives the workers, not the kernel.
        The last 5,000 replies are kept (a reply is a call, or a piece of a map), their
        arguments as far as they are small.

        Parameters
        ----------
        n : int
        failed : bool
            Only those that failed, reached their timeout, or whose worker died.

        Returns
        -------
        sequence of TaskRecord
            ``.name``, ``.arguments``, ``.outcome``, ``.error``, ``.worker``,
            ``.attempts``, ``.seconds``, and ``.queued``, ``.started``, ``.finished``
            in Unix time.

        Raises
        ------
        BadOption
            If `n` is no number, or less than 0.

        Examples
        --------
        >>> queue.submit(len, "abc").result()
        3
        >>> last, = queue.history(1)
        >>> last.name, last.arguments, last.outcome
        ('len', "'abc'", 'done')
        """
        with user_frames_only:
            if not hasattr(n, "__index__") or n < 0:
                raise BadOption(f"history({n!r:.80}): give how many of the last tasks, a whole number, 0 or more.")
            return self._here().link.history.last(n, failed=failed)

    def __enter__(self) -> TaskQueue:
        """On a private server, the first call of the block starts workers if none run, also after a shutdown.

        On any other, `run` does, or ``nbqueue worker URL``: a block starts none.
        """
        core = self._here()
        core.check_process()
        core.revive()
        guest = not core.blocks.enter(core.in_use)
        # What is somebody else's.
        self._before.append(WeakSet(core.link.sinks() if guest else ()))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for everything that was sent on the queue; after an exception, cancels it.

        Then the workers are stopped, unless they ran when the block began, or another
        block over the queue is open. In these cases an exception cancels only what was
        sent since the block began.

        An interrupt of the waiting cancels what it waits for; calls with
        ``on_interrupt="detach"`` go on, and keep the workers.

        Raises
        ------
        PoolError
            If for 30 s no worker has served the queue, and calls are open: nobody has
            started any, or they were shut down in the block. The calls stay queued.
        """
        core = self._here()
        core.check_process()
        before = self._before.pop()
        try:
            if kind is not None:
                self._cancel(before)
            else:
                with user_frames_only:
                    drain(core.link, self._interrupted)
        finally:
            stops = core.blocks.leave()
        if stops:
            self.shutdown()

    def _interrupted(self) -> str:
        """Whoever waited for the whole queue was interrupted. Says what has become of its calls.

        Workers that end with the block are stopped, unless calls that are to go on keep them.
        """
        said = self._interrupt_all()
        core = self._here()
        if core.blocks.stops and not core.link.open_calls:
            core.shutdown()
        return said

    def _interrupt_all(self) -> str:
        sinks = self._here().link.sinks()
        return interrupt_sinks([sink for sink in sinks if isinstance(sink, TaskFuture | Arriving)])

    # A queue travels as names; where it arrives it stands for the queue that the task came from.
    def __reduce__(self) -> tuple[Any, ...]:
        server = self._server if self._core is None else str(self._core.address())
        return _arrived, (self.stream_key, server, self._options)

    def _here(self) -> Core:
        if self._core is not None:
            return self._core
        task = context.current()
        if task is not None and task.address:
            address = Address.from_dict(task.address)
            if str(address) != self._server:
                raise NbqueueError(f"A task can use queues on its own server only, and {self!r} is elsewhere.")
            return core_of(self.stream_key, address, task.secret, shares=task.shares)
        core = find_core(self.stream_key, self._server)
        if core is not None:
            return core
        raise NbqueueError(f"{self!r} was made in another process; make a TaskQueue here.")


def _arrived(stream_key: str, server: str, options: Options) -> TaskQueue:
    queue = TaskQueue.__new__(TaskQueue)
    queue.stream_key, queue._server, queue._options, queue._core = stream_key, server, options, None
    queue._before = []
    return queue


_checked: set[tuple[int, str]] = set()


def _check_reachable(address: Address) -> None:
    """Connect once, so that a wrong address, password or server is refused where it was given."""
    key = (os.getpid(), repr(address))
    wire = Wire(address, timeout_s=CONNECT_PATIENCE_S)
    wire.connect()
    try:
        if key not in _checked:
            for text in check_server(wire):
                warnings.warn(text, RuntimeWarning, stacklevel=users_level())
            _checked.add(key)
    finally:
        wire.close()


def _check_shared_memory() -> None:
    """A place that cannot be used costs only speed, but must not be passed over without a word. Once for each."""
    why = shelves.unusable()
    if why is not None and (os.getpid(), why) not in _checked:
        _checked.add((os.getpid(), why))
        warnings.warn(why, RuntimeWarning, stacklevel=users_level())


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
