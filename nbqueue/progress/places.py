"""Where a cell's tasks print: one place for each time that a cell is run, made at its first submit.

Output from another thread, or after the cell, would land below whichever cell runs then; only a display that was
made in its own cell can be changed from anywhere. So it is made in advance, and stays invisible until there is
something to show. One thread draws what has changed, at most five times a second; so does the end of each cell, so
that what is executed without a person (nbclient, papermill) holds all of it.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from functools import cache
from typing import Any

from .page import Page
from .rendered import Rendered

__all__ = ["here", "shown_here"]

TICK_S = 0.2
LONGEST_TURN_S = 2.0
# A page with figures is as large as they are: it is sent less often.
BYTES_PER_S = 2_000_000

_OFF = {"0", "false", "off", "no"}


class Place:
    """One page and its display. `parent` is the request that runs its cell."""

    def __init__(self, parent: dict[str, Any]) -> None:
        from .widget import OutputView

        self.cell = _cell(parent)
        # Front ends that tell which cell it is (JupyterLab, Notebook 7) take displays of one that has ended;
        # whoever executes a notebook without a person drops them.
        self.rendered = Rendered(late="cellId" in parent.get("metadata", {}))
        self.page = Page(self._changed, self.rendered)
        self._drawn = 0
        self._next_at = 0.0
        self._lock = threading.Lock()
        self._view = OutputView(_bundle(self.page), parent)

    def draw(self, *, now: bool = False) -> bool:
        """Show what is new, unless that was done a moment ago. True if there is more to do later."""
        with self._lock:
            version = self.page.version
            if version == self._drawn:
                return False
            if time.monotonic() < self._next_at and not now:
                return True
            bundle = _bundle(self.page)
            self._next_at = time.monotonic() + sum(map(len, bundle.values())) / BYTES_PER_S
            self._drawn = version
            self._view.update(bundle)
            for id, data, again in self.rendered.take():
                self._view.render(id, data, again=again)
        return False

    def _changed(self) -> None:
        _drawer.add(self)


def _bundle(page: Page) -> dict[str, str]:
    text = page.plain()
    return {"text/plain": f"nbqueue output:\n{text}" if text else "", "text/html": page.html()}


class _Drawer:
    """Places that have something new, and the thread that draws them."""

    def __init__(self) -> None:
        self.current: Place | None = None
        self.hooked: object = None
        self.running = True  # a cell
        self.making = threading.Lock()  # held while a place is made: one for all threads of a cell
        self._lock = threading.Lock()  # guards what waits, and the thread
        self._turn = threading.Lock()  # held while drawing: a cell must not end before what the thread has begun
        self._waiting: dict[int, Place] = {}
        self._thread: threading.Thread | None = None

    def add(self, place: Place) -> None:
        if id(place) in self._waiting:
            return
        with self._lock:
            self._waiting[id(place)] = place
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="nbqueue-output", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            self.draw()
            time.sleep(TICK_S)
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return

    def draw(self, *, now: bool = False) -> None:
        if not self._turn.acquire(timeout=LONGEST_TURN_S):
            return
        try:
            self._draw(now=now)
        finally:
            self._turn.release()

    def _draw(self, *, now: bool) -> None:
        with self._lock:
            # Before they are drawn: what comes meanwhile puts them back.
            places, self._waiting = list(self._waiting.values()), {}
        for place in places:
            try:
                if place.draw(now=now):
                    self.add(place)
            except Exception as error:  # noqa: BLE001 - a display that fails must not stop the others
                print(f"nbqueue: what a task printed cannot be shown ({error!r})", file=sys.stderr)

    def at_start(self, *_: object) -> None:
        """A cell begins."""
        self.running = True

    def at_end(self, *_: object) -> None:
        """A cell, or Python, ends."""
        self.running = False
        if self.current is not None:
            self.current.rendered.end()
        self.draw(now=True)


_drawer = _Drawer()
atexit.register(_drawer.at_end)


def _forget() -> None:
    """In a forked child: the displays are the parent's."""
    _drawer.__init__()  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _shell() -> Any:
    # Through sys.modules: where nobody has imported IPython, this is no kernel.
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = None if get_ipython is None else get_ipython()
    return None if getattr(shell, "kernel", None) is None else shell


def _cell(parent: dict[str, Any]) -> object:
    """Another one each time that a cell is run."""
    return parent.get("header", {}).get("msg_id")


@cache
def shown_here() -> bool:
    """True in a notebook's kernel, where what tasks print is shown below the cell that called them.

    Not with ``NBQUEUE_PROGRESS=0``: then it goes to the kernel's stdout and stderr, as it does in a script. Decided
    once, since the workers are told.
    """
    return _shell() is not None and os.environ.get("NBQUEUE_PROGRESS", "").strip().lower() not in _OFF


def here() -> Page | None:
    """The page of the cell that is running; None where this is no notebook.

    For a thread too: which cell has started it cannot be told. Between two cells, the page that was made last.
    """
    if not shown_here():
        return None
    with _drawer.making:
        return _here(_shell())


def _here(shell: Any) -> Page | None:
    place = _drawer.current
    parent = shell.kernel.get_parent("shell")
    no_cell = not _drawer.running or parent.get("header", {}).get("msg_type") != "execute_request"
    if place is not None and no_cell and threading.current_thread() is not threading.main_thread():
        # A display made now would land nowhere.
        return place.page
    if place is None or place.cell != _cell(parent):
        if _drawer.hooked is not shell:
            shell.events.register("pre_run_cell", _drawer.at_start)
            shell.events.register("post_run_cell", _drawer.at_end)
            _drawer.hooked = shell
        try:
            place = _drawer.current = Place(parent)
        except Exception as error:  # noqa: BLE001 - the work goes on without it, and each future has its output
            print(f"nbqueue: there is no place for what tasks print ({error!r})", file=sys.stderr)
            return None
    return place.page
