"""joblib's door: ``with joblib.parallel_config(backend="nbqueue"):``.

::

    joblib.Parallel ── submit ─▶ one call of the queue for each of joblib's batches ── future ends ─┐
         ▲                                                                                          ▼
         └─ next batch, result ◀── courier: a thread for as long as a Parallel call lasts ◀── listener

`import nbqueue.interop.joblib` registers the backend: joblib has no entry points. Always true here: each Parallel
object has a backend of its own, whatever was shared between them; joblib's callbacks, which draw the user's generator
and pickle, run in the courier, so the thread that reads replies never waits for them; what a Parallel call has sent is
cancelled when it is left, by an error, an interrupt or the loss of its generator.
"""

from __future__ import annotations

import queue as queues
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from types import TracebackType
from typing import Any
from weakref import ref

from nbqueue import TaskQueue, context
from nbqueue.client.results.future import TaskFuture
from nbqueue.client.results.waiting import HINT_S, begun, hint
from nbqueue.client.sending.options import is_async
from nbqueue.errors import BadCall, BadOption, NotSendable
from nbqueue.interop.arrays import Arrays
from nbqueue.interop.remote import run_batch
from nbqueue.progress.tally import Lane, Tally
from nbqueue.progress.views import Handle, open_view

try:
    import joblib
    from joblib.parallel import (
        AutoBatchingMixin,
        FallbackToBackend,
        ParallelBackendBase,
        SequentialBackend,
    )
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "nbqueue.interop.joblib is a backend of joblib 1.4 or later, which is not installed here: pip install joblib",
        name=error.name,
    ) from error

__all__ = ["NbqueueBackend"]

# Of Parallel's own keywords: what says how processes are started or where files lie has no meaning here.
_WITHOUT_MEANING = {"temp_folder", "prefer", "require", "verbose", "context", "idle_worker_timeout"}


class NbqueueBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """What runs joblib's calls on a queue. Made by joblib, from ``parallel_config(backend="nbqueue", …)``.

    Parameters
    ----------
    queue : TaskQueue, optional
        Where the calls go; by default the one that ``TaskQueue()`` gives, whose
        workers the first call starts.
    progress : bool, optional
        False: no card. By default the queue's own.

    Notes
    -----
    ``n_jobs=-1`` is as many as the queue has workers. A smaller number bounds how
    many batches of calls are under way at a time; a larger one starts no further
    workers (``TaskQueue(workers=…)`` does).

    Examples
    --------
    >>> import joblib
    >>> import nbqueue.interop.joblib
    >>> with joblib.parallel_config(backend="nbqueue", n_jobs=2):
    ...     joblib.Parallel()(joblib.delayed(abs)(x) for x in (-1, 2, -3))
    [1, 2, 3]
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True

    def __init__(self, queue: TaskQueue | None = None, progress: bool | None = None, **rest: Any) -> None:
        own = {name: rest.pop(name) for name in ("nesting_level", "inner_max_num_threads") if name in rest}
        _refuse(rest)
        super().__init__(**own)
        if queue is not None and not isinstance(queue, TaskQueue):
            raise BadOption(f"queue={queue!r:.80}: give a TaskQueue.")
        self._queue = queue
        self._progress = progress
        self.parallel: Any = None
        self._in_use = False
        self._arrays: Arrays | None = None
        self._most: int | None = None
        self._call: _Call | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._queue, self._progress, self.nesting_level, self.inner_max_num_threads)

    # Before a call

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many calls can run at a time: the queue's workers for -1, one less for -2, …

        Raises
        ------
        ValueError
            For 0.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None or self._only_here:
            return 1
        return n_jobs if n_jobs > 0 else max(1, self._count_workers() + 1 + n_jobs)

    @property
    def _only_here(self) -> bool:
        """Inside a task that was given no queue, there is one core: its worker's."""
        return self._queue is None and context.in_task()

    def _count_workers(self) -> int:
        queue = self._made()
        core = queue._here()
        if core.link.workers:
            return core.link.workers
        if core.private:
            return core.workers or joblib.cpu_count()
        # Elsewhere there may be many, as its hosts say.
        return len(queue.status().workers) or 1

    def _made(self) -> TaskQueue:
        if self._queue is None:
            self._queue = TaskQueue()
        return self._queue

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        max_nbytes: int | None = 1_000_000,
        mmap_mode: str | None = "r",
        **rest: Any,
    ) -> int:
        """Called by a Parallel object before its calls. Returns how many can run at a time.

        Raises
        ------
        BadOption
            For what this backend does not do: ``initializer=``, or a `mmap_mode` in which tasks write into arguments.
        """
        if self._in_use and self.parallel is not parallel:
            # Two Parallel objects would take each other's calls for their own.
            raise FallbackToBackend(_again(*self.__reduce__()[1]))
        jobs = self.effective_n_jobs(n_jobs)
        _refuse({name: value for name, value in rest.items() if name not in _WITHOUT_MEANING})
        if mmap_mode not in (None, "r", "c"):
            raise BadOption(
                f"mmap_mode={mmap_mode!r}: tasks cannot write into the arguments of others. Have them return what they "
                "compute, or give them a numpy.memmap, which lies in a file."
            )
        if self.inner_max_num_threads is not None and find_spec("threadpoolctl") is None:
            raise BadOption("inner_max_num_threads= needs threadpoolctl: pip install threadpoolctl")
        if self._only_here or n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        core = self._made()._here()
        if jobs == 1:
            if core.private:
                raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
            # joblib would do it in this process, and not where the only worker is.
            jobs = 2
        self.parallel, self._in_use = parallel, True
        self._most = jobs if jobs < self._count_workers() else None
        least_bytes = max_nbytes if mmap_mode == "r" else None
        self._arrays = Arrays(core.put, least_bytes, same_host=core.private, unbounded=core.shelf is not None)
        return jobs

    # A call

    def start_call(self) -> None:
        queue = self._made()
        show = (queue._options.progress if self._progress is None else self._progress) is not False
        self._call = _Call(queue, self.parallel, self._arrays, self._most, show and not context.in_task())

    def submit(self, func: Any, callback: Callable[[Any], None] | None = None) -> TaskFuture[Any]:
        """Send one of joblib's batches. What cannot be sent is an error of the future's."""
        call = self._call
        if call is None:
            # It was left meanwhile.
            future: TaskFuture[Any] = TaskFuture("joblib", None)
            future.cancel()
            return future
        return call.submit(func, callback, self.inner_max_num_threads)

    def apply_async(self, func: Any, callback: Callable[[Any], None] | None = None) -> TaskFuture[Any]:
        """What joblib before 1.5 calls `submit`."""
        return self.submit(func, callback)

    def retrieve_result_callback(self, future: TaskFuture[Any]) -> Any:
        call = self._call
        try:
            return future.result()
        except BaseException as error:
            if call is not None and error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                # joblib is going to drop it. The first frame is this one.
                call.tracebacks.append((error, error.__traceback__.tb_next))
            raise

    @contextmanager
    def retrieval_context(self) -> Iterator[None]:
        """Around a loop over results, or the whole call. In a task, who waits does not count against the pool."""
        call = self._call
        with context.waiting(), nullcontext() if call is None else begun(call.interruption()):
            yield

    def stop_call(self) -> None:
        if self._call is not None:
            self._call.end()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        call = self._call
        if call is not None:
            error, said = sys.exception(), call.interrupted()
            call.abort()
            call.lend_traceback(error)
            if isinstance(error, KeyboardInterrupt) and not error.args:
                error.args = (said,)

    def terminate(self) -> None:
        self.stop_call()
        self._call = self._arrays = None
        self._in_use = False
        self.reset_batch_stats()


def _again(queue: TaskQueue | None, progress: bool | None, level: int | None, threads: int | None) -> NbqueueBackend:
    return NbqueueBackend(queue, progress, nesting_level=level, inner_max_num_threads=threads)


def _refuse(keywords: Mapping[str, Any]) -> None:
    for name, value in keywords.items():
        if value is not None and value != ():
            raise BadOption(
                f"{name}= is not for Parallel on the backend nbqueue: give it to joblib.parallel_config(...)."
                if name in ("queue", "progress")
                else f"The joblib backend nbqueue has no {name!r}. joblib.parallel_config takes queue= and progress= "
                "for it; other options are the queue's own. What a worker needs before a task, the task itself can do."
            )


class _Call:
    """What belongs to one call of one Parallel object."""

    def __init__(
        self, queue: TaskQueue, parallel: Any, arrays: Arrays | None, most: int | None, show: bool
    ) -> None:
        self.tracebacks: list[tuple[BaseException, TracebackType]] = []
        self._core = queue._here()
        self._parallel = parallel
        self._arrays = arrays
        self._most = most
        self._show = show
        self._options = queue._options
        self._link = self._core.link
        self._lock = threading.Lock()  # guards what is open, held back and counted
        self._open: dict[_Piece, None] = {}
        self._held: deque[tuple[_Piece, Any, int | None]] = deque()
        self._sent = 0
        self._over = False
        self._ended: queues.SimpleQueue[tuple[_Piece, Callable[[Any], None] | None] | None] = queues.SimpleQueue()
        self.tally = Tally("joblib", getattr(parallel, "n_tasks", None), unserved=lambda: self._link.unserved)
        self._view: Handle | None = None
        self._place = 0
        threading.Thread(target=self._carry, name="nbqueue-joblib", daemon=True).start()

    # Any thread

    def submit(self, batch: Any, callback: Callable[[Any], None] | None, threads: int | None) -> _Piece:
        size = len(batch)
        if not self._place:
            self.tally.label = _name_of(batch)
            if self._show:
                self._view = open_view(self.tally, self.abort)
        piece = _Piece(self.tally, self._link, self._place, size)
        self._place += size
        piece.add_done_callback(lambda _: self._ended.put((piece, callback)))
        with self._lock:
            self._open[piece] = None
            held = self._most is not None and self._sent >= self._most
            if held:
                self._held.append((piece, batch, threads))
            else:
                self._sent += 1
        if not held:
            self._send(piece, batch, threads)
        return piece

    def _send(self, piece: _Piece, batch: Any, threads: int | None) -> None:
        if piece.done():
            return
        options = self._options.with_(name=self.tally.label)
        try:
            _refuse_async(batch)
            self._core.submit_call(
                run_batch, (batch, threads), {}, options, make=lambda *_: piece, share=self._arrays
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, joblib raises it to whoever waits
            piece.fail(self._blame(batch, error))

    def _blame(self, batch: Any, error: Exception) -> Exception:
        """The same error, if it can be, as one of the user's function and not of joblib's batch."""
        if isinstance(error, NotSendable):
            try:
                for function, args, kwargs in batch.items:
                    self._core.check_sendable(function, args, kwargs, _named(function))
            except Exception as found:  # noqa: BLE001 - it is given to whoever waits
                return found
        return error

    def abort(self) -> None:
        """End what is open as cancelled."""
        with self._lock:
            self._held.clear()
            # The last first: cancelling what runs makes room, in which what is still queued must not start.
            pieces = list(reversed(self._open))
        for piece in pieces:
            piece.cancel()

    def interruption(self) -> Callable[[], str]:
        """What an interrupt does in the body of a loop over results that somebody still holds."""
        # Noted until the cell has ended: it must not hold results.
        held = ref(self)

        def interrupted() -> str:
            call = held()
            if call is None or not call._open:
                return ""
            said = call.interrupted()
            call.abort()
            return said

        return interrupted

    def interrupted(self) -> str:
        """What a person is told of an interrupt that is about to end this call."""
        so_far = self.tally.snapshot()
        total = "" if so_far.total is None else f" of {so_far.total:,}"
        # Not what the interrupt itself has cancelled already.
        ended = so_far.done + so_far.failed
        return f"`{so_far.label}` was cancelled, {ended:,}{total} calls had ended."

    def lend_traceback(self, error: BaseException | None) -> None:
        """joblib raises a task's error without its traceback: put it where the error is on its way."""
        found = next((tb for other, tb in self.tracebacks if other is error), None)
        if error is None or found is None:
            return
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        if last is None:
            error.__traceback__ = found
        else:
            last.tb_next = found

    def end(self) -> None:
        with self._lock:
            if self._over:
                return
            self._over = True
        self._ended.put(None)
        self._know_total()
        self.tally.finish()
        if self._view is not None and threading.current_thread() is threading.main_thread():
            # Now, so that the settled card belongs to the cell that waited.
            self._view.close()
        self.tracebacks.clear()

    # The courier's thread

    def _carry(self) -> None:
        first = True
        while True:
            try:
                ended = self._ended.get(timeout=HINT_S if first else None)
            except queues.Empty:
                # Nobody waits for a result where we could say so.
                hint(self._link)
                continue
            if ended is None:
                return
            first = False
            piece, callback = ended
            self._settle(piece)
            if callback is not None:
                try:
                    callback(piece)
                except BaseException as error:  # noqa: BLE001 - the user's generator has raised what ends programs
                    self._tell(error, callback)
                self._know_total()

    def _settle(self, piece: _Piece) -> None:
        with self._lock:
            self._open.pop(piece, None)
            self._sent -= 1
            following = self._held.popleft() if self._held and not self._over else None
            if following is not None:
                self._sent += 1
        if following is not None:
            self._send(*following)

    def _know_total(self) -> None:
        """joblib draws its input by and by. How long it is is known at its end."""
        parallel = self._parallel
        if getattr(parallel, "n_tasks", None) is None and parallel._original_iterator is None:
            self.tally.expect(parallel.n_dispatched_tasks)

    def _tell(self, error: BaseException, callback: Any) -> None:
        """Have the error raised where the results are waited for, as joblib does for an Exception."""
        parallel = self._parallel
        if self._over or parallel._aborting:
            return
        tracker = type(callback)(0, 0, parallel)
        # Before joblib 1.5, by hand.
        getattr(parallel, "_register_new_job", parallel._jobs.append)(tracker)
        tracker._register_outcome({"result": error, "status": "Error"})


class _Piece(TaskFuture[Any]):
    """The future of one of joblib's batches, which tells the card of it."""

    def __init__(self, tally: Tally, link: Any, place: int, size: int) -> None:
        upto = f":{place + size}" if size > 1 else ""
        super().__init__(f"{tally.label}[{place}{upto}]", link, kept=lambda: None)
        self._tally = tally
        self._place, self._size = place, size
        self._runs = 0
        self.add_done_callback(lambda _: self._count())

    @property
    def open_items(self) -> int:
        return 0 if self.done() else self._size

    def fail(self, error: Exception) -> None:
        self.on_broken(None, 0, error)  # type: ignore[arg-type]

    def _print_on(self, page: Any) -> None:
        self._page, self._tag = page, self.name

    def _started(self, worker: str, attempt: int) -> None:
        super()._started(worker, attempt)
        if self.done():
            return
        if self._runs:
            self._tally.retry(was_running=1)
            self._tally.begin(self._place, attempt)
        self._tally.start()
        self._runs = 1

    def _told(self, news: Mapping[str, Any]) -> None:
        lane = Lane.from_news(self.name, news)
        self._tally.tell(self._place, news["lane"], lane, news["attempt"])

    def _count(self) -> None:
        self._tally.quiet(self._place, self._place + 1)
        if self.cancelled():
            self._tally.settle(cancelled=self._size, was_running=self._runs)
        elif self._failure() is None:
            self._tally.settle(done=self._size, was_running=self._runs)
        else:
            # Which of them it was is not known here; those after it did not run.
            self._tally.settle(failed=1, cancelled=self._size - 1, was_running=self._runs)


def _refuse_async(batch: Any) -> None:
    function = batch.items[0][0] if getattr(batch, "items", None) else None
    if function is not None and is_async(function):
        name = _named(function)
        raise BadCall(f"`{name}` is an async function, and joblib calls plain ones: use queue.map({name}, …).")


def _name_of(batch: Any) -> str:
    """What the card is called."""
    return _named(batch.items[0][0] if getattr(batch, "items", None) else batch)


def _named(function: Any) -> str:
    return getattr(function, "__name__", None) or type(function).__name__


joblib.register_parallel_backend("nbqueue", NbqueueBackend)
