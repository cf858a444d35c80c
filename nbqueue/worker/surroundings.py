"""What a worker process makes of its surroundings: a kernel's cwd, import path and environment; no keyboard.

A task may change all of these; `Surroundings.restore` puts them back before the next one runs. Once is enough: the
worker does it while the server works, and nobody waits for it.
"""

from __future__ import annotations

import errno
import fcntl
import importlib
import io
import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn, TextIO

from nbqueue.errors import InputNotAvailable
from nbqueue.stream.records import Setting
from nbqueue.worker.descriptors import out_of_the_way, size_of
from nbqueue.worker.telling.prints import Prints, Stream

__all__ = ["NoKeyboard", "Surroundings"]


# What a task may have set; asking for one handler costs 60 ns.
_SIGNALS = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGALRM, signal.SIGVTALRM),
    *(signal.SIGPROF, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD, signal.SIGPIPE),
)


# The module's own functions make an enum of what they return, which costs 4 µs each.
_getsignal, _sigmask = signal._signal.getsignal, signal._signal.pthread_sigmask  # type: ignore[attr-defined]

# Marks on the two tapes, by which their descriptors are known for a small part of what `os.fstat` takes: which signal
# they would send if somebody asked them to (nobody does, and these two do nothing). Only Linux has such marks.
_MARKS = {1: signal.SIGURG, 2: signal.SIGWINCH}
_GETSIG, _SETSIG = getattr(fcntl, "F_GETSIG", None), getattr(fcntl, "F_SETSIG", None)

# A worker's own: the main one and the courier.
_THREADS = 2


class NoKeyboard(io.TextIOBase):
    """A worker's stdin: empty, and clear about it."""

    encoding = "utf-8"

    def readable(self) -> bool:
        return True

    def _refuse(self) -> NoReturn:
        raise InputNotAvailable(
            "input() was called in a task, but workers have no keyboard. Ask in the notebook and pass the answer "
            "as an argument."
        )

    def read(self, size: int | None = -1) -> str:
        self._refuse()

    def readline(self, size: int | None = -1) -> str:  # type: ignore[override]
        self._refuse()


class Surroundings:
    """Applies one kernel's `Setting` after another, always from the same start.

    Attributes
    ----------
    clean : bool
        All is as it should be, and there is no thread that could change it but a worker's own. To be unset by whoever
        is about to run a task's code.
    spoiled : bool
        By a task, beyond what can be put right: another process is to take this one's place.
    shows : bool
        The kernel can show displays and figures.
    shelf : str
        The kernel's directory in shared memory; empty where it has none.
    tapes : tuple of int
        Descriptors to read what was printed from.
    """

    def __init__(self) -> None:
        self.clean = False
        self.spoiled = False
        self.shows = False
        self.shelf = ""
        self.tapes = (-1, -1)
        self._path = list(sys.path)
        self._wanted_path = self._path
        self._output: dict[str, TextIO] = {}
        self._keyboard = NoKeyboard()
        self._descriptors: dict[int, tuple[int, int]] = {}  # 1 and 2 → where they are kept, and the file's inode
        self._prints = Prints()
        self._signals: list[Any] = []  # handlers, as `_SIGNALS` names them; empty until they are remembered
        self._recursion_limit = sys.getrecursionlimit()
        self._umask = os.umask(0)
        os.umask(self._umask)
        self._environ = dict(os.environ)
        self._cwd = os.getcwd()
        self._setting: Setting | None = None
        self._wanted: dict[str, str] = self._environ
        self._wanted_data: object = None

    def apply(self, setting: Setting) -> None:
        """Make this process look like the kernel that made `setting`; what this host lacks is left out."""
        if setting is not self._setting:
            self._setting, self.clean = setting, False
            self.shows, self.shelf = setting.shows, setting.shelf
            own = [entry for entry in self._path if entry not in setting.path]
            self._wanted_path = [*setting.path, *own]
            wanted = dict(self._environ)
            for name, value in setting.environ:
                if value is None:
                    wanted.pop(name, None)
                else:
                    wanted[name] = value
            self._wanted, self._wanted_data = wanted, None
            if os.path.isdir(setting.cwd):
                self._cwd = setting.cwd
        if not self.clean:
            self.restore()

    def own_output(self, prints: Prints | None = None) -> None:
        """Give this process a stdin, stdout and stderr that a task may close or replace without harm to the next one.

        They note in `prints` that something was written.
        """
        self._prints = prints or self._prints
        if not self._descriptors:
            for fd in (1, 2):
                kept = out_of_the_way(fd)
                self._descriptors[fd] = kept, os.fstat(kept).st_ino
                self._mark(kept, fd)
            self.tapes = self._descriptors[1][0], self._descriptors[2][0]
        for name, fd in (("stdout", 1), ("stderr", 2)):
            self._output[name] = stream = Stream(fd, self._prints)
            setattr(sys, name, stream)
        sys.stdin = self._keyboard

    def flush_output(self) -> None:
        """Have written what was printed and waits in a buffer, whatever the task has put in its place."""
        for stream in (getattr(sys, "stdout", None), getattr(sys, "stderr", None), *self._output.values()):
            try:
                stream.flush()  # type: ignore[union-attr]
            except Exception:  # noqa: BLE001, S112 - the task closed or replaced it; there is nothing left to flush
                continue

    def flush_own(self) -> None:
        """The same, while a task runs: in its own objects nobody else may meddle."""
        for stream in self._output.values():
            try:
                stream.flush()
            except Exception:  # noqa: BLE001, S112 - as above
                continue

    def is_silent(self, ends: tuple[int, int]) -> bool:
        """Whether stdout and stderr are still of this length, as far as a glance can tell: where a task has replaced or
        closed something, False."""
        own = self._output
        try:
            if sys.stdout is not own["stdout"] or sys.stderr is not own["stderr"]:
                return False
            sys.stdout.flush()
            sys.stderr.flush()
            # Costs a quarter of `os.fstat`.
            out, err = self.tapes
            return os.lseek(out, 0, os.SEEK_END) == ends[0] and os.lseek(err, 0, os.SEEK_END) == ends[1]
        except Exception:  # noqa: BLE001 - whatever was done to them: there is more to look at
            return False

    @staticmethod
    def _mark(kept: int, fd: int) -> None:
        if _SETSIG is not None:
            try:
                fcntl.fcntl(kept, _SETSIG, _MARKS[fd])
            except OSError:
                # Then it has none, and `os.fstat` is asked.
                pass

    @staticmethod
    def _is_marked(fd: int, kept: int = -1) -> bool:
        """Whether stdout or stderr, or what is kept of it, is what it was at first. False: it may be all the same."""
        try:
            return _GETSIG is not None and fcntl.fcntl(fd if kept < 0 else kept, _GETSIG) == _MARKS[fd]
        except OSError:
            return False

    def restore_output(self) -> tuple[int, int]:
        """Have stdout and stderr write where they did at first. Returns how many bytes they have had.

        Raises OSError where a task has closed them and what is kept of them, too.
        """
        ends = self._restore_descriptor(1), self._restore_descriptor(2)
        if min(ends) < 0:
            raise OSError(errno.EBADF, "a task has closed this process's output")
        return ends

    def remember_signals(self) -> None:
        """From now on, `restore` puts back the signal handlers that are set now."""
        # As `disarm` sees them: the plain function tells SIG_DFL as an int, the other as an enum.
        self._signals = list(map(_getsignal, _SIGNALS))

    def disarm(self) -> None:
        """Put back signal handlers, and stop the clock that a task may have set: it would strike while its worker waits
        for the server."""
        if not self._signals:
            return
        if list(map(_getsignal, _SIGNALS)) != self._signals:
            for signum, handler in zip(_SIGNALS, self._signals, strict=True):
                if _getsignal(signum) is not handler:
                    signal.signal(signum, handler)
        _stop(signal.ITIMER_REAL)

    def _stop_clocks(self) -> None:
        # These clocks go only while this process uses the processor.
        _stop(signal.ITIMER_VIRTUAL)
        _stop(signal.ITIMER_PROF)
        if _sigmask(signal.SIG_BLOCK, ()):
            signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _restore_descriptor(self, fd: int) -> int:
        """Have stdout or stderr write where it did at first. Returns how many bytes it has had; -1: it is lost."""
        kept, inode = self._descriptors[fd]
        if self._is_marked(fd) and self._is_marked(fd, kept):
            return os.lseek(kept, 0, os.SEEK_END)
        size = size_of(kept, inode)
        if size >= 0:
            if size_of(fd, inode) < 0:
                os.dup2(kept, fd)
            return size
        # A successor would print nowhere. What this task has printed can still be read from here, unless it has closed
        # all that it could.
        self.spoiled = True
        self._descriptors[fd] = fd, inode
        self.tapes = self._descriptors[1][0], self._descriptors[2][0]
        size = size_of(fd, inode)
        if size < 0:
            # No connection that is made until the end shall have this number, and be printed to.
            os.dup2(os.open(os.devnull, os.O_RDWR), fd)
        return size

    def restore(self) -> None:
        """Undo what a task did to the working directory, the import path, the environment, its output, signal
        handlers and timers, the umask and the recursion limit."""
        self.disarm()
        self.tidy()

    def tidy(self) -> None:
        """What `disarm` leaves of it. Then all is `clean`, unless there are threads that a task has left."""
        if self._signals:
            self._stop_clocks()
        for fd in self._descriptors:
            if not self._is_marked(fd):
                self._restore_descriptor(fd)
        if sys.getrecursionlimit() != self._recursion_limit:
            sys.setrecursionlimit(self._recursion_limit)
        os.umask(self._umask)
        if self._output and (
            getattr(sys, "stdout", None) is not self._output["stdout"]
            or getattr(sys, "stderr", None) is not self._output["stderr"]
            or sys.stdout.closed
            or sys.stderr.closed
        ):
            self.own_output()
        if self._output and getattr(sys, "stdin", None) is not self._keyboard:
            sys.stdin = self._keyboard
        if sys.path != self._wanted_path:
            sys.path = list(self._wanted_path)
            importlib.invalidate_caches()
        try:
            moved = os.getcwd() != self._cwd
        except FileNotFoundError:
            # The task deleted the directory that it was in.
            moved = True
        if moved and os.path.isdir(self._cwd):
            os.chdir(self._cwd)
        # What lies below os.environ: comparing it costs 0.1 µs, comparing os.environ itself 30.
        if getattr(os.environ, "_data", None) != self._wanted_data:
            for name in set(os.environ) - set(self._wanted):
                del os.environ[name]
            os.environ.update(self._wanted)
            self._wanted_data = dict(getattr(os.environ, "_data", {}))
            # Whether or not it has changed: a task may have taken note of what it had set.
            time.tzset()
        self.clean = threading.active_count() <= _THREADS


def _stop(timer: int) -> None:
    if signal.getitimer(timer)[0]:
        signal.setitimer(timer, 0)
