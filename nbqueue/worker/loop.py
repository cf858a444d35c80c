"""A worker process: fetch → run → report, one item at a time; calls of async functions, several (`coroutines`).

::

    main thread   fetch ─▶ open the seal ─▶ function, arguments ─▶ run ─▶ report + next fetch, in one write
                  `carrier`                 `supplies`             here    `carrier`
    courier       while an item runs for long: sends what is finished, gives back what was fetched ahead

Always true here: the slot board names the item before its code (unpickling included) runs; an interrupt raises only
while the item that it is meant for is running. The supervisor is never spoken to directly: the board, a doorbell and
signals do.
"""

from __future__ import annotations

import errno
import os
import pickle
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Protocol

from nbqueue import context
from nbqueue.codec import inputs, messages
from nbqueue.codec.blobs import load_keywords
from nbqueue.codec.functions import PLAIN, all_short, is_long, is_plain
from nbqueue.codec.messages import ERROR, EXCEPTION, SKIPPED, VALUE, CallBody, call_id
from nbqueue.codec.segments import Guest, Shelf
from nbqueue.codec.shelves import visit
from nbqueue.codec.tracebacks import dump_exception
from nbqueue.codec.values import LONG_BYTES, dump_value
from nbqueue.errors import BadMessage, NbqueueError, ResultNotSendable, ServerError, TaskTimeout
from nbqueue.stream.connect import CommandError
from nbqueue.stream.records import Fetched
from nbqueue.worker import attempt, board, carrier
from nbqueue.worker.courier import FLUSH_S, Courier
from nbqueue.worker.modules import LocalModules
from nbqueue.worker.seeded import seeded
from nbqueue.worker.sprint import NOTHING as NO_VALUE
from nbqueue.worker.sprint import SHORT_S, Sprint, next_length
from nbqueue.worker.supplies import WorkerSpec
from nbqueue.worker.surroundings import Surroundings
from nbqueue.worker.telling import displays, lanes, notices, tables
from nbqueue.worker.telling.prints import LOOK_S, NOTHING, Said

if TYPE_CHECKING:
    from nbqueue.worker.coroutines.pump import Pump

__all__ = ["NEWS", "OUTPUT", "Worker"]

# Between attempts to connect. Longer than the client's: there may be hundreds of workers.
LONGEST_PAUSE_S = 0.5
# matplotlib's backend in workers, loaded by the tasks that use it.
FIGURES = "nbqueue.worker.telling.figures"
# Why the supervisor is woken: the server should hear something, or something was printed.
NEWS, OUTPUT = b"!", b"o"


class Waits(Protocol):
    """Told that a task waits for a call of its own, so that another worker is needed meanwhile."""

    def begin_wait(self) -> None: ...
    def end_wait(self) -> None: ...


class Interrupted(KeyboardInterrupt):
    """Raised in a task that is cancelled or has reached its time limit."""


def _is_long(value: object) -> bool:
    return is_long(value, LONG_BYTES)


def _imports(error: BaseException) -> bool:
    """Whether it struck while a module was being imported. Python hides the import itself."""
    here = error.__traceback__
    while here is not None:
        if here.tb_frame.f_code.co_name == "<module>":
            return True
        here = here.tb_next
    return False


def _pickled(value: object, name: str, shelf: Shelf | None) -> tuple[int, Any, bool]:
    """What the task `name` returned, as an outbox takes it."""
    try:
        return VALUE, dump_value(value, name, shelf), False
    except ResultNotSendable as refusal:
        return ERROR, pickle.dumps(refusal), False


class Worker(Courier):
    """One process that runs one item at a time.

    Parameters
    ----------
    spec : WorkerSpec
    slot : board.Slot
        Its line on the board.
    ring : callable
        Wakes the supervisor, with `NEWS` for the server or after `OUTPUT`. False: a task has closed the bell.
    """

    def __init__(self, spec: WorkerSpec, slot: board.Slot, ring: Callable[[bytes], bool]) -> None:
        super().__init__(spec, slot)
        self._bell = ring
        self._outbox.shelf_of = self._shelf
        self._modules = LocalModules()
        self._looked: object = None  # at what this item printed, as `_running_call` names it
        self._why = 0
        self._waits = 0
        self._pid = os.getpid()
        self._pump: Pump | None = None  # there from the first call of an async function on
        self._bundle = b""  # the message of the last bundle, whose calls have these bodies
        self._bodies: dict[str, CallBody] = {}
        self._next_of: Any = None  # the function of the bundle of which a call has just run
        self._task: context.TaskContext | None = None  # and what that found around it

    def run(self) -> int:
        """Work until asked to stop. Returns the exit code."""
        self._pid = os.getpid()
        self._slot.hello(self._pid)
        os.environ.update(self._spec.environ)
        os.environ["MPLBACKEND"] = f"module://{FIGURES}"
        self._surroundings = Surroundings()
        self._surroundings.own_output(self._prints)
        self._prints.attend = self._attend
        os.register_at_fork(after_in_child=self._stop_in_fork)
        displays.install(self._shower, self._prints)
        notices.install(self._prints)
        tables.install(lambda: self._surroundings.shows)
        # What a function defined in a notebook calls __main__ is not this program.
        sys.modules["__main__"] = types.ModuleType("__main__")
        signal.signal(signal.SIGINT, self._on_interrupt)
        self._surroundings.remember_signals()
        self._modules.watch()
        lanes.change_libraries()
        threading.Thread(target=self._courier, name="nbqueue-courier", daemon=True).start()
        pause = 0.02
        while True:
            try:
                with self._io:
                    self._connect()
                    self._read_own()
                pause = 0.02
                while self._fetch(self._tidy):
                    if self._surroundings.spoiled or (self._ahead and self._modules.changed()):
                        self._make_way()
                    while (call := self._next()) is not None:
                        self._run_call(call)
                return 0
            except (ServerError, CommandError) as error:
                # Down, restarting or loading: what is finished waits in the outbox.
                self._broker.wire.close()
                if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.EBADF, errno.ENOTSOCK):
                    # No: a task has closed the connection, and who knows what else.
                    self._surroundings.spoiled = True
                    self._leave_if_spoiled()
                self._tidy()
                if self._slot.stop_asked():
                    return 1
                time.sleep(pause)
                pause = min(LONGEST_PAUSE_S, pause * 2)

    # Run

    def _run_call(self, call: Fetched) -> None:
        began = time.monotonic()
        self._outbox.stale.clear()
        self._why = 0
        if self._next_of is not None and call.payload is self._bundle and call.n in self._bodies:
            self._run_next_of_bundle(call, self._next_of, began)
            return
        self._next_of = None
        try:
            body = self._body_of(call)
            plain = messages.plain_items(body, call.items)
        except BadMessage as error:
            # What its entry claims (whose it is, how many items) is not to be believed either.
            self._refuse(call, error)
            return
        if body.concurrency:
            self._run_several(call, body, plain)
            return
        slot = self._slot
        timeout_ms = board.limit_ms(body.timeout_s)
        printed = self._prints.begin(slot.passed_on())
        now_ns = time.monotonic_ns()
        slot.call(call.entry, call.client, call.n, call.attempt, timeout_ms, body.name, printed, call.first, now_ns)
        if slot.taken_back():
            self._forget_ahead()
            return
        slot.busy()
        if not self._running.is_set():
            self._running.set()
        try:
            self._fetch_blobs(body)
            values = self._fetch_inputs(call, body) if body.inputs else None
        except BadMessage as error:
            self._refuse(call, error)
            return
        if body.setting and not self._modules.fits(self._settings[body.setting].path):
            self._slot.idle()
            with self._lock:
                self._ahead.appendleft(call)
            self._make_way()
            return
        try:
            function = self._prepare(body)
        except BaseException as error:  # noqa: BLE001 - unpickling a function runs its author's code
            if self._why and _imports(error):
                self._make_way()
            if not (isinstance(error, Interrupted) and self._why == board.CANCEL):
                self._all_fail(call, error)
            return
        if call.bundled:
            self._next_of = function
        self._run_items(call, body, function, plain, printed, values)
        self._note_pace(call, body.function, time.monotonic() - began)

    def _run_next_of_bundle(self, call: Fetched, function: Any, began: float) -> None:
        """The call before this one has the same function and setting, and all is as that one found it."""
        slot, body = self._slot, self._bodies[call.n]
        printed = self._prints.begin(slot.passed_on())
        slot.follows(call.n, printed, int(began * 1e9))
        if slot.taken_back():
            self._forget_ahead()
            return
        self._surroundings.clean = False
        self._run_items(call, body, function, None, printed, None, named=True)
        self._note_pace(call, body.function, time.monotonic() - began)

    def _run_items(
        self,
        call: Fetched,
        body: CallBody,
        function: Any,
        plain: Sequence[Any] | None,
        printed: tuple[int, int],
        values: dict[str, Callable[[], Any]] | None,
        *,
        named: bool = False,
    ) -> None:
        """Run what is left of a call. `values` make those that it needs; the board has `named` its first item."""
        if self._outbox.waiting and self._paces.get(body.function, carrier.AHEAD_S) >= carrier.AHEAD_S:
            # It may hold the interpreter, and with it what is finished.
            self._try_flush()
        task = self._task if call.payload is self._bundle else None
        if task is None or task.used:
            task = self._context(body, call, self, self._post, shows=self._surroundings.shows)
            if call.bundled:
                self._task = task
        context.set_current(task)
        if values:
            inputs.hold(values)
        try:
            kwargs = self._kwargs_of_sprints(call, body, plain) if call.items > 1 else None
            item = call.first
            while item < call.items:
                # The last item looks at what all have printed.
                length = min(self._lengths.get(body.function, 0), call.items - 1 - item) if kwargs is not None else 0
                if length > 1 and plain is not None and kwargs is not None and not self._prints.touched:
                    ended = self._run_short(call, body, function, plain, item, length, kwargs)
                else:
                    ended = int(self._run_item(call, body, function, plain, item, named=named))
                if not ended:
                    break
                item += ended
                if task.lanes:
                    task.end_lanes()
                self._left -= ended
                if not self._left or self._surroundings.spoiled or self._slot.leave_asked():
                    self._left = 0
                    break
        finally:
            context.set_current(None)
            if self._news.waiting:
                self._news.take()
            self._clean_up(printed)
            self._running_call = None
            if values:
                inputs.let_go(values)
        self._outbox.close()
        self._leave_if_spoiled()

    def _body_of(self, call: Fetched) -> CallBody:
        """What the call carries. Raises BadMessage."""
        if not call.bundled:
            return messages.load_call(self._seal.open("call", call_id(call.client, call.n), call.payload))
        if call.payload is not self._bundle:
            data = self._seal.open("calls", call.client, call.payload)
            self._bodies = messages.from_each(messages.load_call(data))
            self._bundle, self._task = call.payload, None
        try:
            return self._bodies[call.n]
        except KeyError:
            raise BadMessage(f"A bundle was to hold the call {call.n}, and does not. It was not run.") from None

    def _run_several(self, call: Fetched, body: CallBody, plain: Sequence[Any] | None) -> None:
        if self._pump is None:
            # With it comes asyncio, which few workers need.
            from nbqueue.worker.coroutines.pump import Pump

            self._pump = Pump(self)
        self._pump.run(call, body, plain)

    def _clean_up(self, printed: tuple[int, int]) -> None:
        """Make ready for the next call what cannot wait until this one is reported."""
        if self._looked is not self._running_call:
            self._look()
        self._put_right(self._surroundings.disarm)
        if self._ahead:
            self._tidy()
        if printed != self._prints.start:
            # So that it is seen when the result is, and not at the next look.
            self._ring(OUTPUT)

    def _tidy(self) -> None:
        """Put back what tasks have changed around them, unless that is done. Before other calls, after the report."""
        if not self._surroundings.clean:
            self._put_right(self._surroundings.tidy)

    def _put_right(self, restore: Callable[[], object]) -> None:
        """A worker whose task has spoiled too much for that is replaced."""
        try:
            restore()
        except Exception:  # noqa: BLE001 - a task can leave anything behind; what it returned counts all the same
            self._surroundings.spoiled = True

    def _leave_if_spoiled(self) -> None:
        if self._surroundings.spoiled:
            self._left = 0
        if not self._left:
            # What it still holds goes back when its end is noticed.
            with self._lock:
                self._ahead.clear()

    def _look(self) -> Said:
        """What the item that has just run printed and showed."""
        self._looked = self._running_call
        surroundings = self._surroundings
        try:
            if self._prints.touched:
                if FIGURES in sys.modules:
                    sys.modules[FIGURES].flush(wanted=displays.seen())
                if self._prints.warned:
                    self._forget_warnings()
            surroundings.flush_output()
            ends = surroundings.restore_output()
            if ends == self._prints.start and not self._prints.touched:
                return NOTHING
            said = self._prints.take(surroundings.tapes, ends)
        except Exception:  # noqa: BLE001 - the task has closed or replaced what is not its own: what it printed is lost
            return NOTHING
        self._slot.printed(ends)
        return said

    def _forget_warnings(self) -> None:
        self._prints.warned = False
        notices.forget_warnings()

    def _prepare(self, body: CallBody) -> Any:
        if body.setting:
            self._surroundings.apply(self._settings[body.setting])
        self._surroundings.clean = False
        return self._load(body)

    def _run_item(
        self,
        call: Fetched,
        body: CallBody,
        function: Any,
        plain: Sequence[Any] | None,
        item: int,
        *,
        named: bool = False,
    ) -> bool:
        """Run one item and note how it ended. False when the rest of the call is not wanted."""
        if call.charged == item and call.crashes != 0:
            if call.crashes < 0:
                self._outbox.note(call, item, SKIPPED, b"", False, 0.0)
                # At once: an entry remembers only one item that ended out of turn, and a later one may be next.
                self._try_flush()
                return call.entry not in self._outbox.stale
            # It has killed a worker before: nothing that is finished may depend on its good conduct.
            self._try_flush()
        self._running_call = call, item
        if not named:
            self._slot.item(item, time.monotonic_ns())
        self._item_since = began = time.monotonic()
        self._why = 0
        kind, value, is_one_pickle = VALUE, None, True
        error: BaseException | None = None
        try:
            try:
                self._armed = True
                args, kwargs = messages.item_arguments(body, plain, item)
                if body.rng is not None:
                    kwargs = seeded(kwargs, body.rng, item)
                value = function(*args, **kwargs)
                if type(value) not in PLAIN or is_long(value, LONG_BYTES):
                    kind, value, is_one_pickle = _pickled(value, body.name, self._shelf(call))
                # So that their memory is free when the client hears of it.
                del args, kwargs
            finally:
                self._armed = False
        except BaseException as raised:  # noqa: BLE001 - whatever a task raises is its outcome
            error = raised
        ended = time.monotonic()
        self._still_the_worker()
        seconds = ended - began
        if is_one_pickle and error is None and not self._prints.touched:
            if seconds < SHORT_S:
                self._lengths.setdefault(body.function, 8)
            if call.items == 1 and self._surroundings.is_silent(self._prints.start):
                # Nothing more to look at, as after most single calls.
                self._looked = self._running_call
                if call.bundled:
                    self._outbox.note_bundled(call, value, seconds)
                else:
                    self._outbox.note_whole(call, value, seconds)
                return True
        return self._conclude(call, body, plain, item, kind, value, is_one_pickle, error, seconds, ended)

    def _still_the_worker(self) -> None:
        if os.getpid() != self._pid:
            # The task forked, and this is the child, which came back from it: it must not act as the worker.
            os._exit(0)

    def _kwargs_of_sprints(self, call: Fetched, body: CallBody, plain: Sequence[Any] | None) -> dict[str, Any] | None:
        """The keywords of all items, if these may run in sprints; else None."""
        if plain is None or call.crashes or body.timeout_s or self._left > 0 or body.rng is not None:
            return None
        if not body.common:
            return {}
        try:
            kwargs: dict[str, Any] = self._guarded(lambda: load_keywords(body.common))
        except BaseException:  # noqa: BLE001 - each item will find out, and end with it
            return None
        return kwargs if all(map(is_plain, kwargs.values())) else None

    def _run_short(
        self,
        call: Fetched,
        body: CallBody,
        function: Any,
        plain: Sequence[Any],
        first: int,
        length: int,
        kwargs: dict[str, Any],
    ) -> int:
        """Run up to `length` items that are expected to be short. How many have ended; 0 when no more are wanted."""
        sprint = Sprint(first, plain[first : first + length], self._slot.name)
        self._running_call = call, first
        self._why = 0
        self._slot.item(first, time.monotonic_ns())
        self._item_since = began = time.monotonic()
        self._sprint = sprint
        error: BaseException | None = None
        try:
            try:
                self._armed = True
                sprint.run(function, kwargs)
            finally:
                self._armed = False
        except BaseException as raised:  # noqa: BLE001 - whatever a task raises is its outcome
            error = raised
        ended = time.monotonic()
        self._still_the_worker()
        with sprint.lock:
            self._sprint = None
            results, noted, seconds = sprint.results, sprint.noted, ended - self._item_since
        if len(results) == length:
            self._lengths[body.function] = next_length(length, ended - began)
        else:
            self._lengths.pop(body.function, None)
        kind, value, is_one_pickle = VALUE, sprint.odd, False
        if error is None and value is NO_VALUE and self._prints.touched:
            # The last of them has drawn attention.
            value, is_one_pickle = results.pop(), True
        finished = results[noted:] if noted else results
        if finished:
            self._note_plain(call, body.name, first + noted, finished, sprint.kinds, seconds)
            seconds = 0.0
        item = first + len(results)
        if error is None and value is NO_VALUE:
            if self._outbox.is_due(ended, FLUSH_S):
                self._try_flush()
            return len(results) if call.entry not in self._outbox.stale else 0
        self._running_call = call, item
        if error is None and (not is_one_pickle or _is_long(value)):
            try:
                kind, value, is_one_pickle = self._guarded(lambda: _pickled(value, body.name, self._shelf(call)))
            except BaseException as raised:  # noqa: BLE001 - an interrupt, which is for the item
                error = raised
        wanted = self._conclude(call, body, plain, item, kind, value, is_one_pickle, error, seconds, ended)
        return len(results) + 1 if wanted else 0

    def _note_plain(
        self, call: Fetched, name: str, first: int, values: list[Any], kinds: AbstractSet[type], seconds: float
    ) -> None:
        if all_short(values, kinds, LONG_BYTES):
            self._outbox.note_plain(call, first, values, seconds, kinds)
            return
        shelf = self._shelf(call)
        for item, value in enumerate(values, first):
            kind, data, is_one_pickle = _pickled(value, name, shelf) if _is_long(value) else (VALUE, value, True)
            self._outbox.note(call, item, kind, data, is_one_pickle, seconds / len(values))

    def _conclude(
        self,
        call: Fetched,
        body: CallBody,
        plain: Sequence[Any] | None,
        item: int,
        kind: int,
        value: Any,
        is_one_pickle: bool,
        error: BaseException | None,
        seconds: float,
        ended: float,
    ) -> bool:
        """Note how an item ended. False when the rest of the call is not wanted."""
        look = self._prints.touched or seconds > LOOK_S or item + 1 == call.items or error is not None
        said = self._look() if look else NOTHING
        if isinstance(error, OSError) and self._surroundings.spoiled and item > call.first:
            # One before it may have closed what it needed. Elsewhere it is the first, and what it raises is its own.
            return False
        took_long = seconds > FLUSH_S and call.items > 1
        if took_long:
            # Items of one report share their time: this one has its own.
            self._outbox.close()
        if error is not None:
            self._note_spoiled(error, self._why)
            if self._why == board.CANCEL:
                self._outbox.stale.add(call.entry)
                # Calls are often cancelled together: those that wait here may be meant as well.
                self._return_ahead()
                return False
            self._note_error(call, body, plain, item, error, self._why, seconds, said)
        else:
            self._outbox.note(call, item, kind, value, is_one_pickle, seconds, said)
        if (took_long and item + 1 < call.items) or self._outbox.is_due(ended, FLUSH_S):
            self._try_flush()
        return call.entry not in self._outbox.stale

    def _note_spoiled(self, error: BaseException, why: int) -> None:
        if why and _imports(error):
            # A library that was interrupted while it was loaded may refuse to be loaded again.
            self._surroundings.spoiled = True

    def _note_error(
        self,
        call: Fetched,
        body: CallBody,
        plain: Sequence[Any] | None,
        item: int,
        error: BaseException,
        why: int,
        seconds: float,
        said: Said,
    ) -> None:
        """Note that an item has raised, by itself or since its time was up (`why`)."""
        if why == board.TIMEOUT:
            limit = body.timeout_s or 0.0
            stop = TaskTimeout(f"`{body.name}` ran longer than its timeout of {limit:g} s.", timeout_s=limit)
            # With the way to where it was then.
            stop.__traceback__ = error.__traceback__
            self._outbox.note(call, item, ERROR, dump_exception(stop), False, seconds, said)
            return
        value = dump_exception(error)
        failures = call.attempt - max(0, call.crashes) if call.items == 1 else 1
        delay = attempt.retry_delay(failures, body.retries) if attempt.wanted(error, body.retry_on) else None
        if delay is not None:
            self._retry(call, body, plain, item, value, seconds, delay, said)
        else:
            self._outbox.note(call, item, EXCEPTION, value, False, seconds, said)

    def _packed(self, value: Any, name: str, call: Fetched) -> tuple[int, Any, bool]:
        """A value as an outbox takes it. Pickling runs its author's code."""
        if is_plain(value) and not _is_long(value):
            return VALUE, value, True
        return _pickled(value, name, self._shelf(call))

    def _shelf(self, call: Fetched) -> Guest | None:
        """Where the caller wants its large results."""
        path = self._surroundings.shelf
        if not path:
            return None
        try:
            return Guest(visit(path), call.client, call.n)
        except NbqueueError:
            # It cannot be seen from here: they travel in the reply.
            return None

    def _retry(
        self,
        call: Fetched,
        body: CallBody,
        plain: Sequence[Any] | None,
        item: int,
        error: bytes,
        seconds: float,
        delay_s: float,
        said: Said,
    ) -> None:
        payload = b""
        if call.items > 1 or call.bundled:
            # The item goes on alone, as the call "<n>.<item>", and a call of a bundle as itself.
            id = call_id(call.client, f"{call.n}.{item}" if call.items > 1 else call.n)
            payload = self._seal.close("call", id, messages.dump_call(messages.only_item(body, plain, item)))
        self._outbox.note_retry(call, item, error, seconds, delay_s, payload, said)
        self._try_flush()
        self._ring(NEWS)

    def _all_fail(self, call: Fetched, error: BaseException) -> None:
        if self._why == board.TIMEOUT:
            late = TaskTimeout("Loading the function took longer than the task's timeout.")
            kind, value = ERROR, pickle.dumps(late)
        else:
            kind, value = EXCEPTION, dump_exception(error)
        said = self._look()
        for item in range(call.first, call.items):
            self._outbox.note(call, item, kind, value, False, 0.0, said if item == call.first else NOTHING)
        self._outbox.close()

    # Interrupts and nested calls

    def _on_interrupt(self, _signum: int, _frame: object) -> None:
        why = 0
        if self._pump is not None and self._pump.busy:
            why = self._pump.interrupted()
        elif self._armed:
            why = self._slot.aimed_at_me()
        if why and self._armed:
            self._why = why
            raise Interrupted("cancelled" if why == board.CANCEL else "timed out")

    def _context(
        self,
        body: CallBody,
        call: Fetched,
        waits: Waits,
        post: Callable[[str, object, context.Details | Callable[[], context.Details]], None],
        *,
        shows: bool,
    ) -> context.TaskContext:
        """What code in a task finds around it. `waits` hears when it begins and ends to wait for calls of its own."""
        return context.TaskContext(
            name=body.name,
            attempt=call.attempt,
            queue=self._spec.queue,
            address=self._spec.address,
            secret=self._secret,
            begin_wait=waits.begin_wait,
            end_wait=waits.end_wait,
            post=post,
            shows=shows,
            shares=bool(self._surroundings.shelf),
        )

    def _ring(self, why: bytes) -> None:
        if not self._bell(why):
            self._surroundings.spoiled = True

    def begin_wait(self) -> None:
        self._attend()
        with self._lock:
            self._waits += 1
        # The very call that is waited for may be among them.
        self._return_ahead()
        self._slot.waiting(True)
        self._ring(NEWS)

    def end_wait(self) -> None:
        with self._lock:
            self._waits -= 1
            if self._waits:
                return
        self._slot.waiting(False)
