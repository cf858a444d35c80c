"""What handles stand for: one queue on one server, with its connection, its pool and its open calls.

Kept once per process, so that a cell ``queue = TaskQueue()`` that is run again joins what is there.
"""

from __future__ import annotations

import atexit
import os
import secrets
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

from nbqueue import context
from nbqueue.client.blocks import Blocks
from nbqueue.client.launch import LocalLauncher, local_launcher
from nbqueue.client.relay import page
from nbqueue.client.results.batch import Batch
from nbqueue.client.results.frames import users_level
from nbqueue.client.results.future import TaskFuture
from nbqueue.client.results.inputs import Inputs
from nbqueue.client.results.waiting import Interrupted, because
from nbqueue.client.sending.listener import Link
from nbqueue.client.sending.options import Options
from nbqueue.client.sending.recipe import Made, Recipe
from nbqueue.client.sending.seeds import check_given, check_items, seed_for
from nbqueue.client.sending.setting import SettingWatch
from nbqueue.codec import shelves
from nbqueue.codec.blobs import Put, Share, Sharing, find, pack
from nbqueue.codec.captured import LARGE_BYTES, Captures
from nbqueue.codec.frames import held_by, refer
from nbqueue.codec.functions import Large, digest, dump_arguments, dump_function, dump_function_apart, dump_put
from nbqueue.codec.inputs import FutureMet
from nbqueue.codec.messages import CallBody, dump_call
from nbqueue.codec.parts import type_name
from nbqueue.codec.seal import Seal, fingerprint, new_secret
from nbqueue.codec.segments import Shelf
from nbqueue.errors import NbqueueError, NotSendable, PoolError
from nbqueue.stream.connect import Address
from nbqueue.stream.keys import Keys
from nbqueue.stream.records import WorkerLimits

__all__ = ["Core", "core_of", "find_core", "private_core"]

FLUSH_TIMEOUT_S = 30.0
CANCEL_TIMEOUT_S = 2.0
MADE_KEPT = 64
# Arguments of a call that may travel in a bundle.
LIGHT_BYTES = 1_000


def _tell_what_is_lost() -> None:
    """At the end of Python: what is still open on its private server dies with it, and that must not be silent."""
    for core in _cores.values():
        calls = core.link.open_items if core.private and os.getpid() == core.pid else 0
        if calls:
            what = "1 call is" if calls == 1 else f"{calls:,} calls are"
            sys.stderr.write(
                f"nbqueue: Python ends while {what} still open on the queue {core.queue!r}; nobody gets the results. "
                "Wait for them first: ask for a result(), or use `with TaskQueue() as queue:`.\n"
            )


class Core:
    """One queue on one server, as this process sees it."""

    def __init__(self, queue: str, address: Address | None, secret: bytes, executable: str | None) -> None:
        self.pid = os.getpid()
        self.queue = queue
        self.secret = secret
        self.keys = Keys.of(queue, fingerprint(secret))
        self.prefix = self.keys.prefix
        self.id = f"{self.prefix} {address or 'private'}"
        self.private = executable is not None
        self.fixed = address
        self._executable = executable
        self.link = Link(queue, self.address, self.keys, Seal(secret, self.prefix))
        self.link.private = self.private
        # On a server of others, workers may be elsewhere.
        self.shares = self.private and bool(shelves.base())
        self.watch = SettingWatch()
        self._captures = Captures()
        # Those with large captures, as they were sent last: their content's digest, and where they lie.
        self._functions: WeakKeyDictionary[Callable[..., Any], tuple[str, Put[Any]]] = WeakKeyDictionary()
        self.workers: int | None = None
        self.limits = WorkerLimits()
        self.blocks = Blocks()
        self._made: dict[str, tuple[bytes, bytes, Made]] = {}  # last of each name, of these bytes
        self._lights: dict[str, tuple[Made, Options, CallBody]] = {}  # last of each name, made with these
        self._lock = threading.Lock()
        self._started = False  # or never to be started without run()
        self._running = False
        self._lost = False  # its workers could not be kept
        self._starter: threading.Thread | None = None

    @property
    def launcher(self) -> LocalLauncher:
        return local_launcher()

    def address(self) -> Address:
        if self._executable is None:
            assert self.fixed is not None
            return self.fixed
        try:
            address = self.launcher.serve(self._executable)
        except NbqueueError:
            self.link.lost = self.launcher.failure
            raise
        self.link.lost = None
        return address

    @property
    def in_use(self) -> bool:
        """True while workers run that this process has started, or are about to."""
        return self._running or self.link.starting

    @property
    def starts_by_itself(self) -> bool:
        """True where the next call starts workers."""
        return self.private and not self._started

    @property
    def shelf(self) -> Shelf | None:
        """Where large data may be put; None where they travel in messages."""
        return shelves.ours() if self.shares else None

    def check_process(self) -> None:
        self.link.check_process()

    def _check(self) -> None:
        """Raises ForkedQueue in a fork; PoolError where workers can no longer be kept."""
        self.link.check_process()
        if self.private:
            self.launcher.check_kept()

    def start_workers(self) -> None:
        """On a private server the first call starts the pool; it does not wait for it."""
        if self._started or not self.private:
            return
        with self._lock:
            first = not self._started
            self._started = True
            if first:
                self.link.starting = True
                self._starter = threading.Thread(target=self._start_quietly, name="nbqueue-start", daemon=True)
                self._starter.start()

    def _let_start(self) -> None:
        """Wait for a start that is under way: what is asked for now must come after it."""
        with self._lock:
            starter = self._starter
        if starter is not None and starter is not threading.current_thread():
            starter.join()
            self._starter = None

    def _start_quietly(self) -> None:
        try:
            self._run(self.workers)
        except NbqueueError as error:
            self._started = False
            self.link.failure = error
            # What is the end of all pools has been told.
            if not self.launcher.closing and self.launcher.failure is None:
                sys.stderr.write(f"nbqueue: {error}\n")
        finally:
            self.link.starting = False

    def revive(self) -> None:
        """A handle is made or a block begins: its first call starts workers as the very first did, after a shutdown,
        and where they could no longer be kept."""
        if self.private:
            self._begin_anew()
        with self._lock:
            if self.private and not self._running and not self.link.starting:
                self._started = False

    def lost(self) -> None:
        """The local workers cannot be kept. On a server of others, calls wait for others' workers; a private one is
        lost with them, see `address`. Where it is begun anew, the next call starts workers."""
        self._running = self.link.served_here = self._started = False
        self._lost = True

    def _begin_anew(self) -> None:
        if self.launcher.failure is not None:
            self.launcher.begin_anew()
            # Of what is called from now on.
            self.link.lost = None

    def change(self, workers: int | None, limits: WorkerLimits) -> None:
        """What a new handle asks for, as far as it does. A private pool that runs follows; others follow `run` only."""
        before = self.workers, self.limits
        self.workers = workers or self.workers
        self.limits = WorkerLimits(
            limits.memory_bytes or self.limits.memory_bytes, limits.tasks or self.limits.tasks
        )
        if (self.workers, self.limits) != before and self._running and self.private:
            self.run(self.workers)

    def run(self, workers: int | None) -> int:
        """Start workers because a user says so, whatever failed before."""
        self.check_process()
        self._begin_anew()
        return self._run(workers)

    def _run(self, workers: int | None) -> int:
        self._started = True
        self._let_start()
        # What was cancelled must not be started by workers that come now.
        self.link.settle_cancels(CANCEL_TIMEOUT_S)
        number = self.launcher.start(self, workers)
        self._running = self.link.served_here = True
        self._lost = False
        self.link.expected_workers = self.link.workers = number
        return number

    def shutdown(self, interrupted: Interrupted = lambda: "the workers end when their calls do.") -> None:
        self.check_process()
        # From now on nothing starts by itself: run() does.
        self._started = True
        self._let_start()
        if not self.link.flush(FLUSH_TIMEOUT_S):
            raise PoolError(
                f"What was submitted could not be handed to the server; the workers go on.{because(self.link)}"
            )
        try:
            self.launcher.stop(self, interrupted)
        finally:
            self._running = self.link.served_here = self._lost = False
            self.link.workers = 0

    def restart(self) -> None:
        self.check_process()
        self._let_start()
        if self._running:
            self.launcher.renew(self)
        elif self._lost:
            self.launcher.check_kept()

    def make(self, fn: Callable[..., Any], name: str) -> Made:
        """The function and the setting, from what they are now."""
        return self._make(fn, name, self.shelf)

    def _make(self, fn: Callable[..., Any], name: str, shelf: Shelf | None) -> Made:
        handles: list[Put[Any]] = []
        code = dump_function(fn, name, handles) if shelf is None else dump_function_apart(fn, name, handles)
        size = code.size_bytes if isinstance(code, Large) else len(code)
        if size > LARGE_BYTES and (heavy := self._captures.look(fn, name, size)):
            warnings.warn(heavy, RuntimeWarning, stacklevel=users_level())
        setting, text = self.watch.current("" if shelf is None else shelf.path)
        made = self._made.get(name)
        if made is not None and made[0] == code and made[1] is text and not handles:
            return made[2]
        link = self.link
        if isinstance(code, Large):
            handle = self._shared_function(fn, code, shelf)
            if handle is not None:
                blobs = {handle.digest: handle.message, setting: link.seal_blob(setting, text)}
                return Made(handle.digest, setting, blobs, {each.digest: each for each in (handle, *handles)})
            # There is no room for it.
            code = dump_function(fn, name, handles)
        function = digest(code)
        blobs = {function: link.seal_blob(function, code), setting: link.seal_blob(setting, text)}
        if handles:
            return Made(function, setting, blobs, {handle.digest: handle for handle in handles})
        made = code, text, Made(function, setting, blobs, {})
        if len(self._made) >= MADE_KEPT:
            self._made.clear()
        self._made[name] = made
        return made[2]

    def _shared_function(self, fn: Callable[..., Any], code: Large, shelf: Shelf | None) -> Put[Any] | None:
        """A function with large captures, as if it were put; written again only when what it captures has changed."""
        content = code.digest()
        try:
            before = self._functions.get(fn)
        except TypeError:
            # It cannot be a key.
            before = None
        if before is not None and before[0] == content:
            return before[1]
        frame = None if shelf is None else refer(shelf, code.stream, code.buffers)
        if frame is None:
            return None
        handle = self._put(frame, "function")
        try:
            self._functions[fn] = content, handle
        except TypeError:
            # It cannot be a key, and travels anew with each call.
            pass
        return handle

    def put(self, value: Any) -> Put[Any]:
        """A handle for `value` as it is now; it is sent with the first call that needs it."""
        self._check()
        if isinstance(value, Put):
            return value
        return self._put(dump_put(value, self.shelf), type_name(value))

    def _keep(self, keywords: bytes) -> Put[Any]:
        """A handle for a batch's large keywords."""
        return self._put(keywords if held_by(keywords) else pack(keywords, []), "dict")

    def _put(self, body: bytes, what: str) -> Put[Any]:
        held = held_by(body)
        name = secrets.token_hex(12) if held else digest(body)
        if held and self.private:
            # Whoever kills this process now needs somebody to clean up after it: the supervisor.
            self.address()
        handle = None if held else find(name, self.prefix)
        if handle is None:
            handle = Put(name, self.link.seal_put(name, body), self.prefix, what, *held)
            self.link.follow(handle)
        return handle

    def submit_call(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: Options,
        make: Callable[[str, Link], TaskFuture[Any]] = TaskFuture,
        share: Share | None = None,
    ) -> TaskFuture[Any]:
        self._check()
        name = options.name
        rng = None
        if options.rng is not None and (seed := seed_for(options)) is not None:
            check_given(fn, options, args, kwargs)
            rng = options.rng, seed, 0
        shelf = self.shelf
        made = self._make(fn, name, shelf)
        function, setting, blobs, puts = made
        handles: list[Put[Any]] = [] if share is None else Sharing(share)
        inputs: Inputs | None = None
        try:
            arguments = dump_arguments(args, kwargs, name, fn, handles, shelf)
        except FutureMet:
            inputs = Inputs(self.link, share, shelf)
        if inputs is not None:
            handles = Sharing(inputs)
            arguments = dump_arguments(args, kwargs, name, fn, handles, shelf)
        if handles:
            puts = puts | {handle.digest: handle for handle in handles}
        held, stream = held_by(arguments), options.stream
        is_light = len(arguments) <= LIGHT_BYTES and make is TaskFuture and inputs is None
        is_light = is_light and not (held or puts or rng or options.concurrency)
        light = self._light(made, options) if is_light else None
        future = make(name, self.link)
        here = page()
        if here is not None:
            future._print_on(here)
        if options.detached:
            future._detached = True
        if rng is not None:
            future.seed = rng[1]
        sent = (function, setting), blobs, future
        try:
            if light is not None:
                future._sent(self.link.submit(bytes(arguments), *sent, stream=stream, light=light), fn)
            else:
                body = self._body(made, options)._replace(
                    frames=(bytes(arguments),),
                    puts=tuple(puts),
                    rng=rng,
                    inputs=() if inputs is None else inputs.names,
                )
                if inputs is None:
                    future._sent(self.link.submit(dump_call(body), *sent, puts=puts, held=held, stream=stream), fn)
                else:
                    inputs.send(dump_call(body), *sent, fn, puts, held, stream)
            if not self._started:
                self.start_workers()
        except BaseException as error:
            # An interrupt, say. The call may be on its way, and nobody will ever have its future.
            self.link.abandon(future)
            if not isinstance(error, Exception):
                # Nor is it sent later.
                future.cancel()
            raise
        return future

    @staticmethod
    def _body(made: Made, options: Options) -> CallBody:
        """What a call carries beside its arguments."""
        return CallBody(
            *(options.name, made.function, made.setting, options.timeout, options.retries),
            retry_on=options.retry_on_names,
            concurrency=options.concurrency or 0,
        )

    def _light(self, made: Made, options: Options) -> CallBody:
        """The same for light calls: one object for all that may travel together."""
        before = self._lights.get(options.name)
        if before is not None and before[0] is made and (before[1] is options or before[1] == options):
            return before[2]
        if len(self._lights) >= MADE_KEPT:
            self._lights.clear()
        body = self._body(made, options)
        self._lights[options.name] = made, options, body
        return body

    def check_sendable(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], name: str
    ) -> None:
        """Raises NotSendable, which says what of these cannot be pickled: for those who send several in one call."""
        self.make(fn, name)
        try:
            dump_arguments(args, kwargs, name, fn)
        except FutureMet as error:
            raise NotSendable(f"`{name}` could not be sent: {error}") from None

    def submit_items(
        self,
        fn: Callable[..., Any],
        items: Iterable[tuple[Any, ...]],
        total: int | None,
        kwargs: dict[str, Any],
        options: Options,
    ) -> Batch[Any]:
        self._check()
        items = check_items(fn, options, items, kwargs)
        self.start_workers()
        recipe = Recipe(fn, options, kwargs, lambda fn: self.make(fn, options.name), self.shelf, self._keep)
        show = options.progress is not False and not context.in_task()
        return Batch(self.link, recipe, items, total, show, page)


_cores: dict[tuple[int, str, str], Core] = {}
atexit.register(_tell_what_is_lost)
_cores_lock = threading.Lock()
_private_secret = new_secret()


def private_core(queue: str, executable: str) -> Core:
    """The core of a queue on this process's private server."""
    return core_of(queue, None, _private_secret, executable)


def core_of(
    queue: str, address: Address | None, secret: bytes, executable: str | None = None, shares: bool | None = None
) -> Core:
    """The one core of this process for a queue on a server; with `shares`, its workers share this one's memory."""
    # By pid: a forked child starts with none.
    key = (os.getpid(), str(address or "private"), Keys.of(queue, fingerprint(secret)).prefix)
    with _cores_lock:
        core = _cores.get(key)
        if core is None:
            core = _cores[key] = Core(queue, address, secret, executable)
        if shares is not None:
            core.shares = shares
        return core


def find_core(queue: str, server: str) -> Core | None:
    """The core of a queue that this process has made before, by what its handle is sent as."""
    with _cores_lock:
        cores = list(_cores.items())
    for (pid, _, _), core in cores:
        if pid == os.getpid() and core.queue == queue and str(core.address()) == server:
            return core
    return None
