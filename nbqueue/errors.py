"""Every exception that nbqueue raises.

The ground floor of all floors: imports nothing of ours. All of these survive a pickle round trip.

::

    NbqueueError
    ├── BadOption (ValueError)          an option that cannot be meant: workers=0, timeout=-1
    ├── BadCall (TypeError)             a map over what cannot be iterated over, batch["a"], gather([1, 2])
    ├── NotSendable (TypeError)         a function or an argument that cannot be pickled
    ├── ServerError (ConnectionError)
    │   ├── ServerNotFound              no redis-server or valkey-server on this machine
    │   ├── ServerUnreachable           nothing answers at this address
    │   ├── ServerRefused               wrong password or database, or a user who may not
    │   ├── ServerTooOld                older than Redis 6.2
    │   └── ServerUnsafe                evicts keys, or would be talked to in the clear
    ├── PoolError                       the process pool could not be started or kept
    ├── ForkedQueue                     a forked child used its parent's queue
    ├── UnsupportedKernel               an ipykernel with a known fault
    ├── NotInstalled (ImportError)      what was asked for needs a further package
    ├── TaskError                       how a task ended, other than with its own exception
    │   ├── WorkerDied                  its process was killed, crashed or left
    │   ├── TaskTimeout                 it ran longer than its own limit
    │   ├── ResultNotSendable           what it returned cannot be pickled
    │   ├── InputFailed                 it did not run, since a call whose value it needs has failed
    │   ├── BadMessage                  a message whose signature is wrong
    │   └── RemoteError                 its exception could not be rebuilt here
    ├── InputNotAvailable (EOFError)    a task called input()
    └── TaskCancelled (concurrent.futures.CancelledError)
"""

from __future__ import annotations

import concurrent.futures
from typing import Any

__all__ = [
    "BadCall",
    "BadMessage",
    "BadOption",
    "ForkedQueue",
    "InputFailed",
    "InputNotAvailable",
    "NbqueueError",
    "NotInstalled",
    "NotSendable",
    "PoolError",
    "RemoteError",
    "ResultNotSendable",
    "ServerError",
    "ServerNotFound",
    "ServerRefused",
    "ServerTooOld",
    "ServerUnreachable",
    "ServerUnsafe",
    "TaskCancelled",
    "TaskError",
    "TaskTimeout",
    "UnsupportedKernel",
    "WorkerDied",
]


class NbqueueError(Exception):
    """Base of everything that nbqueue raises on its own account.

    Examples
    --------
    >>> from nbqueue import NbqueueError
    >>> try:
    ...     TaskQueue(workers=0)
    ... except NbqueueError as error:
    ...     print(error)
    workers=0: give a whole number, 1 or more, or None for one per core.
    """


class BadOption(NbqueueError, ValueError):
    """An option whose value cannot be meant; the message names the option and what it may be.

    Examples
    --------
    >>> queue.map(abs, [-1], timeout=-5)
    Traceback (most recent call last):
    nbqueue.errors.BadOption: timeout=-5: give seconds greater than 0, or None for no limit.
    """


class NotInstalled(NbqueueError, ImportError):
    """What was asked for needs a package that is not there; the message says how to get it.

    Examples
    --------
    >>> try:
    ...     frame = queue.map(abs, [-1]).to_frame()
    ... except nbqueue.errors.NotInstalled as error:
    ...     print(error)                     # to_frame() needs pandas, …
    """


class BadCall(NbqueueError, TypeError):
    """Arguments of ours that cannot be meant; the message says what they are.

    A map over what is not iterable, an option among keywords, `gather` of what are
    no futures.

    Examples
    --------
    >>> queue.map(abs, 3)
    Traceback (most recent call last):
    nbqueue.errors.BadCall: map needs something to iterate over, not int (3).
    """


class NotSendable(NbqueueError, TypeError):
    """A function or one of its arguments cannot be pickled; raised where the call is made.

    Examples
    --------
    >>> import threading
    >>> queue.submit(print, threading.Lock())
    Traceback (most recent call last):
    nbqueue.errors.NotSendable: `print` could not be sent: argument ...
    """


class ServerError(NbqueueError, ConnectionError):
    """Base of everything that is wrong with the Redis server.

    Examples
    --------
    >>> from nbqueue import ServerError
    >>> try:
    ...     TaskQueue("unix:///nowhere/redis.sock")
    ... except ServerError as error:
    ...     print(type(error).__name__)
    ServerUnreachable
    """


class ServerNotFound(ServerError):
    """No redis-server or valkey-server (6.2 or later) was found to start."""


class ServerUnreachable(ServerError):
    """Nothing that speaks Redis answers at the given address.

    Examples
    --------
    >>> TaskQueue("unix:///nowhere/redis.sock")
    Traceback (most recent call last):
    nbqueue.errors.ServerUnreachable: No Redis server answers at ...
    """


class ServerRefused(ServerError):
    """The server answers, but refuses this user: a wrong password or database, a missing permission."""


class ServerTooOld(ServerError):
    """The server is older than Redis 6.2, the oldest with all stream commands that are needed."""


class ServerUnsafe(ServerError):
    """The server may delete our keys (eviction), or would be spoken to unencrypted from afar.

    Examples
    --------
    >>> TaskQueue("redis://example.net")
    Traceback (most recent call last):
    nbqueue.errors.ServerUnsafe: ...
    """


class PoolError(NbqueueError):
    """The pool of worker processes could not be started or kept alive."""


class ForkedQueue(NbqueueError):
    """A forked child of the process that made a queue tried to use it."""


class UnsupportedKernel(NbqueueError):
    """The running ipykernel has a fault that nbqueue cannot work around."""


class TaskError(NbqueueError):
    """How a task ended, where that was not by an exception of its own.

    Examples
    --------
    >>> import os
    >>> from nbqueue import TaskError
    >>> isinstance(queue.submit(os._exit, 3).exception(), TaskError)
    True
    """


class WorkerDied(TaskError):
    """The process that ran the task died, and the task had no further attempt left.

    Attributes
    ----------
    signal : int or None
        Number of the signal that ended the process, None where it left by itself.
    exitcode : int or None
        Exit code where the process left by itself (``os._exit(3)`` gives 3).
    attempts : int
        How often the task was started.
    peak_rss_bytes : int or None
        The largest resident memory that the last process had, in bytes.
    last_output : str
        The last lines that the call printed, and of a crash in compiled code where
        in the task it was.

    Examples
    --------
    >>> import os
    >>> error = queue.submit(os._exit, 3).exception()
    >>> type(error)
    <class 'nbqueue.errors.WorkerDied'>
    >>> error.exitcode, error.attempts
    (3, 2)
    """

    def __init__(
        self,
        message: str,
        *,
        signal: int | None = None,
        exitcode: int | None = None,
        attempts: int = 1,
        peak_rss_bytes: int | None = None,
        last_output: str = "",
    ) -> None:
        super().__init__(message)
        self.signal = signal
        self.exitcode = exitcode
        self.attempts = attempts
        self.peak_rss_bytes = peak_rss_bytes
        self.last_output = last_output

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.args[0], self.__dict__.copy()))


class TaskTimeout(TaskError):
    """The task ran longer than its own ``timeout=``; not the TimeoutError of waiting for it.

    Its traceback leads to the line that ran when time was up, unless the worker
    had to be killed.

    Attributes
    ----------
    timeout_s : float or None
        The limit in seconds.

    Examples
    --------
    >>> import time
    >>> batch = queue.map(time.sleep, [0, 60], timeout=0.2)
    >>> batch.results(return_exceptions=True)
    [None, TaskTimeout(...)]
    """

    def __init__(self, message: str, *, timeout_s: float | None = None) -> None:
        super().__init__(message)
        self.timeout_s = timeout_s

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.args[0], self.__dict__.copy()))


class ResultNotSendable(TaskError):
    """The task ran to its end, but what it returned cannot be pickled.

    Examples
    --------
    >>> import threading
    >>> type(queue.submit(threading.Lock).exception())
    <class 'nbqueue.errors.ResultNotSendable'>
    """


class InputFailed(TaskError):
    """The task did not run: a future among its arguments has failed, or one among that one's.

    Its ``__cause__`` is the exception of the call that failed first.

    Attributes
    ----------
    input : str
        Name of the task that failed first.

    Examples
    --------
    >>> def ratio(x, y):
    ...     return x / y
    >>> try:
    ...     queue.submit(abs, queue.submit(ratio, 1, 0)).result()
    ... except nbqueue.InputFailed as error:
    ...     print(error.input, "failed with", repr(error.__cause__))
    ratio failed with ZeroDivisionError('division by zero')
    """

    def __init__(self, message: str, *, input: str = "") -> None:
        super().__init__(message)
        self.input = input

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.args[0], self.__dict__.copy()))


class BadMessage(TaskError):
    """A message came with a wrong signature or shape. It was not unpickled."""


class RemoteError(TaskError):
    """The task, or the input of a map, raised an exception that could not be rebuilt here, or would end the kernel.

    Attributes
    ----------
    type_name : str
        Qualified name of the original exception's type.
    traceback_text : str
        The original traceback, as text.

    Examples
    --------
    >>> import sys
    >>> error = queue.submit(sys.exit, 7).exception()    # no task ends a kernel
    >>> type(error).__name__, error.type_name
    ('RemoteError', 'SystemExit')
    """

    def __init__(self, message: str, *, type_name: str = "", traceback_text: str = "") -> None:
        super().__init__(message)
        self.type_name = type_name
        self.traceback_text = traceback_text

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.args[0], self.__dict__.copy()))


class InputNotAvailable(NbqueueError, EOFError):
    """A task asked for keyboard input; workers have none.

    Examples
    --------
    >>> type(queue.submit(input).exception())
    <class 'nbqueue.errors.InputNotAvailable'>
    """


class TaskCancelled(NbqueueError, concurrent.futures.CancelledError):
    """The task was cancelled. A ``concurrent.futures.CancelledError``, not asyncio's.

    Examples
    --------
    >>> import time
    >>> future = queue.submit(time.sleep, 60)
    >>> future.cancel()
    True
    >>> future.result()
    Traceback (most recent call last):
    nbqueue.errors.TaskCancelled: `sleep` was cancelled.
    """


def _rebuild(cls: type[NbqueueError], message: str, state: dict[str, Any]) -> NbqueueError:
    error = cls(message)
    error.__dict__.update(state)
    return error
