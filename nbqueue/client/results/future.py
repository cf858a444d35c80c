"""What a call returns at once: a `TaskFuture`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, RUNNING
from typing import Any, Generic, Literal, TypeVar, cast, overload

from nbqueue import context
from nbqueue.client.results.card import CallCard
from nbqueue.client.results.failures import not_an_end, note_of
from nbqueue.client.results.frames import hand_out, user_frames_only
from nbqueue.client.results.late import DONE, LateFuture
from nbqueue.client.results.outcome import Outcome, PlainOutcome, Unmet, first_outcome
from nbqueue.client.results.replay import Kept, replay
from nbqueue.client.results.waiting import Interrupted, because, tick, wait_until
from nbqueue.client.sending.listener import Link, OpenCall
from nbqueue.codec.inputs import FutureMet
from nbqueue.codec.messages import ERROR, RETRYING, VALUE, ReplyBody
from nbqueue.errors import InputFailed, NbqueueError, TaskCancelled
from nbqueue.progress.page import ERR, OUT, Page
from nbqueue.progress.prints import Prints, Transcript

__all__ = ["TaskFuture", "call_soon"]

R = TypeVar("R")

# Of what a card says about an error; the traceback says the rest.
LONGEST_FAILURE = 160


class TaskFuture(LateFuture[R], Generic[R]):
    """The result of one call that runs in a worker process. A real ``concurrent.futures.Future``.

    Calling it waits for the result, as does ``result()``; awaiting it works in
    cells. Interrupting any of these cancels the call, unless its task has the
    option ``on_interrupt="detach"``.

    As an argument of another call, also within lists, tuples, dicts and the like,
    it stands for its value: that call waits on the server, not here, and is given
    what this one returns. If this one fails, that one does not run and ends with
    `InputFailed`; if this one is cancelled, so is that one. A value that you have
    looked at is sent as it is when the call is made. A call that needs an open
    item of a batch is sent only when that has ended, by this process.

    Attributes
    ----------
    name : str
        The task's name.
    attempts : int
        How often the call was started, as far as is known here.
    worker : str or None
        The worker that ran it, ``host:slot:serial``.
    seconds : float or None
        How long its last attempt ran.
    seed : int or None
        Of its random numbers, where its task has the option ``rng``.
    stdout, stderr : str
        What it has printed, from Python and from compiled code, the programs that
        it started included. Of more than 256 kB on one stream, the first and the
        last 128 kB. While it runs, what has arrived so far.
    displays : list of dict
        What it has displayed: figures and what it gave to ``display``, as dicts
        from mime type to data.

    Examples
    --------
    >>> future = queue.submit(pow, 2, 10)
    >>> future.result()
    1024
    >>> future
    <TaskFuture pow done>
    >>> future.attempts, future.seconds < 10
    (1, True)
    """

    many = False
    in_history = ""

    # As all begin, which costs nothing here.
    attempts = 0
    worker: str | None = None
    seconds: float | None = None
    seed: int | None = None
    _call: OpenCall | None = None  # until it has succeeded, and what it calls
    _fn: Callable[..., Any] | None = None
    _detached = False  # an interrupt of those who wait for it leaves it alone
    _outcome: Outcome | None = None
    _page: Page | None = None  # of the cell that called
    _prints: Prints | None = None
    _started_at = 0.0
    _card: CallCard | None = None

    def __init__(
        self,
        name: str,
        link: Link | None,
        on_cancel: Callable[[], None] | None = None,
        transcript: Callable[[], Transcript | None] | None = None,
        kept: Callable[[], Kept | None] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self._link = link
        self._on_cancel = on_cancel
        self._kept_elsewhere = kept
        self._tag = name
        self._transcript_elsewhere = transcript
        self._made_at = time.monotonic()

    def _ipython_display_(self) -> None:
        """A card of this one call. Raises NotImplementedError where only the repr can be shown."""
        self._shown().display()

    def _failure(self) -> str | None:
        """How it failed, in a line; None if it did not."""
        outcome = self._outcome
        if outcome is None or outcome.kind == VALUE:
            return None
        gist = outcome.gist()
        return f"{gist.type_name}: {gist.text}".removesuffix(": ")[:LONGEST_FAILURE]

    def _unserved(self) -> bool:
        return self._link is not None and self._link.unserved

    def _shown(self) -> CallCard:
        if self._card is None:
            self._card = CallCard(self)
        return self._card

    def __repr__(self) -> str:
        state = "cancelled" if self.cancelled() else self._state.lower()
        if self._state == FINISHED and self._outcome is not None:
            state = "done" if self._outcome.kind == VALUE else "failed"
        return f"<TaskFuture {self.name} {state}>"

    # Asking

    @property
    def stdout(self) -> str:
        """What it has printed to stdout; while it runs, what has arrived so far.

        Examples
        --------
        >>> future = queue.submit(print, "got", 3)
        >>> future.result()
        >>> future.stdout
        'got 3\\n'
        """
        transcript = self._transcript()
        return "" if transcript is None else transcript.text(OUT)

    @property
    def stderr(self) -> str:
        """What it has printed to stderr; while it runs, what has arrived so far.

        Examples
        --------
        >>> def warn():
        ...     import sys
        ...     print("careful", file=sys.stderr)
        >>> future = queue.submit(warn)
        >>> future.result()
        >>> future.stderr
        'careful\\n'
        """
        transcript = self._transcript()
        return "" if transcript is None else transcript.text(ERR)

    @property
    def displays(self) -> list[dict[str, Any]]:
        """What it has displayed, as dicts from mime type to data: text as str, pictures in base64.

        Only tasks that a notebook has called display anything.

        Examples
        --------
        >>> queue.submit(abs, -3).displays
        []
        """
        transcript = self._transcript()
        return [] if transcript is None else [dict(event["data"]) for event in transcript.displays]

    def result(self, timeout: float | None = None) -> R:
        """The task's value; waits for it. Interrupting the wait cancels the call, see `on_interrupt`.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait.

        Raises
        ------
        TimeoutError
            If it has not ended within `timeout` seconds.
        TaskCancelled
            If it was cancelled.
        Exception
            Whatever the task raised, with a traceback into its own code.
        WorkerDied, TaskTimeout, ResultNotSendable, RemoteError
            See `nbqueue.errors`.

        Examples
        --------
        >>> queue.submit(sorted, [3, 1, 2]).result()
        [1, 2, 3]
        """
        value: R
        with user_frames_only:
            self._wait(timeout)
            value, error = self._ending()
            if error is not None:
                try:
                    hand_out(error)
                finally:
                    # Break the circle frame → exception → traceback → frame.
                    del error
        return value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The exception with which the task ended, None if it returned. Waits for it.

        Raises
        ------
        TimeoutError
            If it has not ended within `timeout` seconds.
        TaskCancelled
            If it was cancelled.

        Examples
        --------
        >>> queue.submit(int, "x").exception()
        ValueError("invalid literal for int() with base 10: 'x'")
        """
        with user_frames_only:
            self._wait(timeout)
            return self._ending()[1]

    def _ending(self) -> tuple[Any, BaseException | None]:
        """Value and exception, once it has ended. Raises TaskCancelled."""
        if self._state != FINISHED:
            raise TaskCancelled(f"`{self.name}` was cancelled.")
        return self._decoded()

    @overload
    def __call__(self, block: Literal[True] = True, timeout: None = None) -> R: ...
    @overload
    def __call__(self, block: bool = True, timeout: float | None = None) -> R | None: ...
    def __call__(self, block: bool = True, timeout: float | None = None) -> R | None:
        """The result as in the article that this grew from: waits if `block`, else None if not ready yet.

        Parameters
        ----------
        block : bool
        timeout : float, optional
            Seconds to wait; then None.

        Raises
        ------
        Exception
            As `result`, but for TimeoutError.

        Examples
        --------
        >>> future = queue.submit(abs, -3)
        >>> future()
        3
        """
        with user_frames_only:
            if not self.done():
                if not block:
                    return None
                try:
                    self._wait(timeout)
                except TimeoutError:
                    return None
            return self.result()

    def __await__(self) -> Generator[Any, None, R]:
        return self._awaited().__await__()

    async def _awaited(self) -> R:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        self.add_done_callback(lambda _: call_soon(loop, done.set))
        with user_frames_only:
            await tick(done, self._interrupted, self._link, self._call.call.n if self._call is not None else 0)
            try:
                with user_frames_only:
                    return self.result()
            except StopIteration as error:
                # Out of a coroutine none may come.
                hand_out(not_an_end(self.name, error))

    def replay(self) -> R:
        """Run the same call here, in the kernel, so that a debugger can look at it.

        The function as it is now is called with fresh arguments; what it raises has
        its real frames, so that ``%debug`` in the next cell, or ``%pdb on`` before,
        lands where it failed. The call itself keeps its outcome. `retries` and
        `timeout` play no part; a bare call of another task inside runs here, too.

        Works for calls that failed, timed out, were cancelled, whose worker died, or
        that have not ended. Arguments are kept only until a call has succeeded.

        Raises
        ------
        NbqueueError
            If the call has succeeded, or was never sent.
        Exception
            Whatever the function raises.

        Examples
        --------
        >>> future = queue.submit(int, "x")
        >>> type(future.exception())
        <class 'ValueError'>
        >>> future.replay()                  # and then, in a cell of its own: %debug
        Traceback (most recent call last):
        ValueError: invalid literal for int() with base 10: 'x'
        """
        with user_frames_only:
            return cast(R, replay(self.name, self._kept()))

    def cancel(self) -> bool:
        """End the call as cancelled, also when it is running: its worker is interrupted, after a grace killed.

        An item of a map that travels with others in a chunk is not interrupted when it
        runs: it counts as cancelled at once, but those behind it wait for its end.

        Returns
        -------
        bool
            False if it has ended before.

        Examples
        --------
        >>> import time
        >>> future = queue.submit(time.sleep, 60)
        >>> future.cancel(), future.cancelled()
        (True, True)
        """
        with self._condition:
            if self._state in DONE:
                return self._state != FINISHED
            self._state = CANCELLED_AND_NOTIFIED
            for waiter in self._waiters:
                waiter.add_cancelled(self)
            self._condition.notify_all()
        if self._on_cancel is not None:
            self._on_cancel()
        elif self._link is not None and self._call is not None:
            self._link.cancel([self._call])
            self._call = self._call.apart()
        self._invoke_callbacks()  # type: ignore[attr-defined]
        return True

    def _get_snapshot(self) -> tuple[bool, bool, Any, BaseException | None]:
        """Done, cancelled, value, exception: how asyncio of Python 3.14 and later copies a future."""
        if not self.done():
            return False, False, None, None
        return (True, True, None, None) if self.cancelled() else (True, False, *self._decoded())

    def _decoded(self) -> tuple[Any, BaseException | None]:
        assert self._outcome is not None
        return self._outcome.get(lambda: note_of(self.name, self._kept(), self.worker, self.attempts))

    def __reduce_ex__(self, _protocol: Any) -> Any:
        raise FutureMet("a future may only be, or lie in, an argument of a single call. Use its result().")

    def _cancel_inputs(self, call: OpenCall | None) -> None:
        """What only this call needed, and what only that needed: nobody waits for it any more."""
        link, calls = self._link, [] if call is None else [call]
        while calls and link is not None:
            for source in link.needless(calls.pop()):
                future = cast("TaskFuture[Any]", source.sink)
                if not future._detached:
                    future.cancel()
                    calls.append(source)

    def _interrupted(self) -> str:
        """Whoever waited was interrupted. Says what has become of the call."""
        # Inside a task nobody is left who could ask again.
        if self._detached and not context.in_task() and not self.done():
            return f"`{self.name}` goes on: ask for its result() later, or cancel() it."
        call = self._call
        if not self.cancel():
            return f"`{self.name}` has ended."
        self._cancel_inputs(call)
        return f"`{self.name}` was cancelled."

    def _wait(self, timeout: float | None, interrupted: Interrupted | None = None) -> None:
        if self._state in DONE:
            return
        if self._link is not None:
            self._link.check_process()
        interrupted = interrupted or self._interrupted
        if not wait_until(
            self._condition, lambda: self._state in DONE, timeout, self._link, interrupted, atomic=True
        ):
            raise TimeoutError(f"`{self.name}` has not ended within {timeout:g} s; it goes on.{because(self._link)}")

    def _kept(self) -> Kept | None:
        """What the call is made of; None once it has succeeded."""
        if self._kept_elsewhere is not None:
            return self._kept_elsewhere()
        call, fn = self._call, self._fn
        return None if call is None or fn is None else Kept.of(fn, call)

    # Arriving

    def _print_on(self, page: Page) -> None:
        """Have what it prints shown there, too. Before it is sent."""
        self._page = page
        self._tag = page.name(self.name)

    def _transcript(self) -> Transcript | None:
        if self._transcript_elsewhere is not None:
            return self._transcript_elsewhere()
        return None if self._prints is None else self._prints.of(0)

    def _printing(self) -> Prints:
        if self._prints is None:
            tag = self._tag
            self._prints = Prints(self._page, self.name, lambda _: tag)
        return self._prints

    def _sent(self, call: OpenCall, fn: Callable[..., Any]) -> None:
        self._call, self._fn = call, fn
        # The reply may have been faster; one that comes from here on finds them.
        outcome = self._outcome
        if outcome is None:
            return
        if outcome.kind == VALUE:
            self._call = self._fn = None
        else:
            self._call = call.apart()

    def _arrive(self, outcome: Outcome, body: ReplyBody | None) -> None:
        if body is not None:
            self.attempts, self.worker = max(self.attempts, body.attempt), body.worker
            self.seconds = body.seconds / body.items
        self._end(outcome)

    def _end(self, outcome: Outcome) -> None:
        if not (self._end_unwatched(outcome) or self._end_watched(outcome)):
            return
        if outcome.kind == VALUE:
            self._call = self._fn = None
        elif self._call is not None:
            self._call = self._call.apart()
        if self._own_callbacks:
            self._invoke_callbacks()  # type: ignore[attr-defined]

    def _end_watched(self, outcome: Outcome) -> bool:
        """End, and tell whoever waits. False if it had ended."""
        with self._condition:
            if self._state in DONE and self._outcome is not outcome:
                return False
            self._outcome = outcome
            self._state = FINISHED
            for waiter in self._waiters:
                if outcome.kind == VALUE:
                    waiter.add_result(self)
                else:
                    waiter.add_exception(self)
            self._condition.notify_all()
        return True

    def on_reply(self, call: OpenCall, item: int, body: ReplyBody) -> bool:
        kind = body.kinds[0] if body.kinds else VALUE
        if body.printed or body.shown:
            self._printing().arrive(0, body.attempt, body.printed, body.shown)
        if kind == RETRYING:
            self.attempts = max(self.attempts, body.attempt + 1)
            return False
        self._arrive(first_outcome(kind, body), body)
        return True

    def on_value(self, value: Any, worker: str, attempt: int, seconds: float) -> None:
        self.attempts, self.worker, self.seconds = max(self.attempts, attempt), worker, seconds
        self._end(PlainOutcome(value))

    def on_event(self, call: OpenCall, item: int, event: Mapping[str, Any]) -> None:
        if event["kind"] == "started":
            self._started(event["worker"], event["attempt"])
        elif event["kind"] in ("output", "display"):
            self._printing().hear(0, event)
        elif event["kind"] == "lane":
            self._told(event)
        elif event["kind"] == "cancelled":
            # By somebody else: `nbqueue cancel`.
            self.cancel()

    def _told(self, news: Mapping[str, Any]) -> None:
        self._shown().tell(news)

    def _started(self, worker: str, attempt: int) -> None:
        self.attempts, self.worker = max(self.attempts, attempt), worker
        self._started_at = time.monotonic()
        if self._card is not None:
            self._card.begin(attempt)
        with self._condition:
            if self._state not in DONE:
                self._state = RUNNING

    def on_broken(self, call: OpenCall, item: int, error: NbqueueError) -> bool:
        self._arrive(Outcome(ERROR, error, True), None)
        return True

    def on_lost(self, error: NbqueueError) -> None:
        """It waits for items of a batch, and ends with them."""

    def on_unmet(self, source: Any, note: Callable[[NbqueueError | None], None]) -> None:
        if source.cancelled():
            note(None)
            self.cancel()
            return
        outcome = source._outcome
        first, why = (outcome.first, outcome.why) if isinstance(outcome, Unmet) else (source, source._failure() or "")
        how = "failed" if first is source else f"did not run, because `{first.name}` failed"
        error = InputFailed(f"`{self.name}` did not run: its input `{source.name}` {how} ({why}).", input=first.name)
        note(error)
        self._arrive(Unmet(error, first, why), None)

    def _more(self) -> bool:
        """It is to be sent later, as the link knows while that is so."""
        return True

    @property
    def open_items(self) -> int:
        return 0 if self.done() else 1

    def first_open(self, call: OpenCall) -> int:
        return 0

    def unanswered(self, call: OpenCall) -> Sequence[int]:
        return (0,) if self._outcome is None else ()


def call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        # The loop that waited is closed.
        pass
