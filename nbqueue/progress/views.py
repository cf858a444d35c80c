"""Which view a batch gets, and the one thread that keeps all views up to date.

`client.results.batch` opens a view on its tally and forgets about it. The ticker pulls a snapshot from each open
tally at most ten times a second, passes on those that would look different, and sends the last state
exactly once. A view that fails is reported once and never disturbs the work.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from . import static
from .tally import Snapshot, Source

__all__ = ["Handle", "View", "draws_on_terminal", "open_view", "show_again"]

# Ten pictures a second look smooth; a browser that is sent thousands of messages loses the last ones.
TICK_S = 0.1

_OFF = {"0", "false", "off", "no"}


class View(Protocol):
    """Draws snapshots. Called by one thread at a time, not always the same; may raise."""

    def update(self, snapshot: Snapshot) -> None:
        """Draw a moment of work that goes on."""

    def settle(self, snapshot: Snapshot) -> None:
        """Draw the last state, which stays, and give up whatever the view holds. Called once."""


class Handle:
    """One open view of one tally, or of none where nothing is to be shown.

    In a notebook the view may be shown in several cells; `cells` are the executions that have shown it.
    """

    def __init__(self, tally: Source, view: View | None) -> None:
        self.cells: set[str] = set()
        self._tally = tally
        self._view = view
        self._pid = os.getpid()
        self._lock = threading.Lock()  # held while drawing, so that nothing is drawn after the last state
        self._settled = threading.Event()
        self._shown: object = None
        self._broken = False
        if view is None:
            self._settled.set()

    @property
    def settled(self) -> bool:
        """True once the last state has been sent, or where there is no view."""
        return self._settled.is_set()

    def close(self, timeout: float = 1.0) -> bool:
        """Make sure that the last state has been sent.

        A finished tally is settled at once, by the calling thread. For one that is not finished yet this
        waits up to `timeout` seconds and then settles the view for good with what there is. A second
        call, from any thread, changes nothing; in a forked child it does nothing.

        Returns
        -------
        bool
            True where the last state is out; False where a drawing thread held the view for too long.
        """
        if self._pid != os.getpid():
            return False
        deadline = time.monotonic() + max(0.0, timeout)
        if not self._tally.snapshot().finished:
            self._settled.wait(max(0.0, timeout))
        return self._settle(max(0.05, deadline - time.monotonic()))

    def show_again(self) -> bool:
        """Show the view in the running cell as well. False where there is none any more."""
        with self._lock:
            if self._view is None:
                return False
            show = getattr(self._view, "show_again", None)
            if show is not None:
                show(self._tally.snapshot())
            return True

    def _tick(self) -> bool:
        """Draw what is new; True as long as there will be more."""
        snapshot = self._tally.snapshot()
        if snapshot.finished:
            self._settle()
        elif not self._settled.is_set():
            self._update(snapshot)
        return not self._settled.is_set()

    def _update(self, snapshot: Snapshot) -> None:
        shown = static.plain(snapshot), snapshot.lanes, snapshot.more_lanes
        if self._broken or shown == self._shown:
            return
        with self._lock:
            if self._view is None or self._settled.is_set():
                return
            self._shown = shown
            try:
                self._view.update(snapshot)
            except Exception as error:  # noqa: BLE001 a view that cannot draw must not stop the work
                self._report(error)

    def _settle(self, timeout: float = -1) -> bool:
        if not self._lock.acquire(timeout=timeout):
            return False
        try:
            if self._view is not None and not self._settled.is_set():
                snapshot = self._tally.snapshot()
                if not snapshot.finished:
                    snapshot = replace(snapshot, finished=True, running=0, eta_s=None, unserved=False)
                try:
                    self._view.settle(snapshot)
                except Exception as error:  # noqa: BLE001 as above
                    self._report(error)
                self._view = None
            self._settled.set()
        finally:
            self._lock.release()
        return True

    def _report(self, error: Exception) -> None:
        if not self._broken:
            self._broken = True
            _warn(f"the progress view failed and stands still from here; the work goes on ({error!r})")


def open_view(tally: Source, cancel: Callable[[], None] | None = None) -> Handle:
    """Show a tally where this process can show one, until it is finished.

    A widget in a notebook, a line on a terminal, nothing elsewhere. ``NBQUEUE_PROGRESS=0`` turns views
    off. Views are opened by the main thread only; called in another one, this shows nothing.

    Parameters
    ----------
    tally : Tally
        What to show.
    cancel : callable, optional
        What a Cancel button calls. It runs in some thread and must not block.

    Returns
    -------
    Handle
        Close it at the end of a blocking wait, so that the last state belongs to the cell.
    """
    handle = Handle(tally, _view(tally, cancel))
    handle.cells.add(_running_cell())
    if not handle.settled:
        try:
            _ticker.add(handle)
        except RuntimeError as error:
            # No further thread may be started. The handle's close still sends the last state.
            _warn(f"the progress view stands still; the work goes on ({error!r})")
    return handle


def show_again(handle: Handle | None, tally: Source, cancel: Callable[[], None] | None = None) -> Handle:
    """Display a tally in the notebook cell that runs, in which it may have been displayed already.

    What is still open is live there too, and still one view: it costs no more messages. What is finished is
    shown as it will stay.

    Parameters
    ----------
    handle : Handle or None
        Its view, if it has one.

    Returns
    -------
    Handle
        Its view from now on.

    Raises
    ------
    NotImplementedError
        Where this is no notebook, or views are turned off. IPython then shows the repr.
    """
    if not _may_show() or not _in_kernel():
        raise NotImplementedError
    cell = _running_cell()
    if handle is not None and cell in handle.cells:
        return handle
    if handle is None or not handle.show_again():
        snapshot = tally.snapshot()
        if not snapshot.finished:
            return open_view(tally, cancel)
        from .widget import show_settled

        show_settled(snapshot)
        handle = Handle(tally, None)
    handle.cells.add(cell)
    return handle


def draws_on_terminal() -> bool:
    """Whether views of this process are lines on the terminal that its stderr is."""
    return not _off() and not _in_kernel() and sys.stderr is not None and sys.stderr.isatty()


def _off() -> bool:
    return os.environ.get("NBQUEUE_PROGRESS", "").strip().lower() in _OFF


def _may_show() -> bool:
    # Displays made in another thread land in whichever cell runs.
    return not _off() and threading.current_thread() is threading.main_thread()


def _view(tally: Source, cancel: Callable[[], None] | None) -> View | None:
    if not _may_show():
        return None
    try:
        if _in_kernel():
            from .widget import open_notebook_view

            return open_notebook_view(tally.snapshot(), cancel, _warn)
        if draws_on_terminal():
            from .terminal import TerminalView

            return TerminalView(tally.snapshot())
    except Exception as error:  # noqa: BLE001 as above
        _warn(f"no progress view could be opened; the work goes on ({error!r})")
    return None


def _in_kernel() -> bool:
    return _kernel() is not None


def _kernel() -> Any:
    # Through sys.modules: where nobody has imported IPython, this is no kernel.
    ipython = sys.modules.get("IPython")
    get_ipython = getattr(ipython, "get_ipython", None)
    shell = get_ipython() if get_ipython is not None else None
    return getattr(shell, "kernel", None)


def _running_cell() -> str:
    """Which execution of which cell this is, "" outside of notebooks."""
    kernel = _kernel()
    if kernel is None:
        return ""
    parent = kernel.get_parent() if hasattr(kernel, "get_parent") else {}
    return str(parent.get("header", {}).get("msg_id", ""))


def _warn(message: str) -> None:
    try:
        warnings.warn(f"nbqueue: {message}", RuntimeWarning, stacklevel=3)
    except RuntimeWarning:
        # Warnings have been made errors; the ticker must outlive that, and the text still be read.
        print(f"nbqueue: {message}", file=sys.stderr)


class _Ticker:
    """The one thread that draws. It ends by itself when no view is open, and starts again with the next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handles: list[Handle] = []
        self._thread: threading.Thread | None = None

    def forget(self) -> None:
        """In a forked child: the views are the parent's, its lock may be held, its thread is not here."""
        self._lock = threading.Lock()
        self._handles = []
        self._thread = None

    def add(self, handle: Handle) -> None:
        with self._lock:
            self._handles.append(handle)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="nbqueue-progress", daemon=True)
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        while True:
            time.sleep(TICK_S)
            with self._lock:
                handles = list(self._handles)
            over = [handle for handle in handles if not handle._tick()]
            with self._lock:
                self._handles = [handle for handle in self._handles if handle not in over]
                if not self._handles:
                    self._thread = None
                    return

    def settle_all(self) -> None:
        """At the end of the process: a daemon thread would be cut off before the last state."""
        with self._lock:
            handles = list(self._handles)
        for handle in handles:
            handle.close(timeout=0)


_ticker = _Ticker()
atexit.register(_ticker.settle_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ticker.forget)
