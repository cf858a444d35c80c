"""The panel: a queue and its workers at a glance, live below the cell that shows it.

::

    `queue`, last line of a cell ─▶ Panel: a display that is replaced ◀─ pictures ─ one thread for all panels
                                      │                                               ▲
                                      └─ buttons: Stop all, Restart workers ─▶ a thread ┘

Always true here: a cell waits for the first picture only, and not for long; the server is asked by the panels' own
thread, at most twice a second, while something happens; a panel of a queue at rest costs next to nothing, and after a
while it settles to a static picture, as it does when its cell runs again, when there are many, and when the kernel
ends.
The picture is no widget: whenever the notebook is saved, and whatever becomes of the kernel, it shows the last one.
"""

from __future__ import annotations

import atexit
import html
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.display import display

from nbqueue.client.core import Core
from nbqueue.client.queue import TaskQueue
from nbqueue.client.status import QueueStatus, picture
from nbqueue.errors import NbqueueError
from nbqueue.progress import comms

__all__ = ["Panel", "show"]

TICK_S = 0.5
# How often a queue at rest is looked at, for what others do to it.
REST_S = 5.0
# A server that is away is not asked twice a second.
AWAY_S = 2.0
# A panel at which nothing has happened for so long is probably not looked at.
LIVE_S = 600.0
# The rate looks back this far.
RATE_S = 5.0
MOST_LIVE = 8
# A cell waits no longer for the first picture; the next one is drawn when it is there.
FIRST_S = 2.0

STOP_TOOLTIP = (
    "Cancel every call that this notebook has open on the queue, queued and running alike. To stop a cell that is "
    "waiting, use ■ (interrupt)."
)
RESTART_TOOLTIP = "Replace each worker by a fresh process as soon as it is idle. Running calls finish."

# JupyterLab and Notebook 7: the buttons' display comes after the picture's. Without their kernel they do nothing, and
# without their model there is a line of text that helps nobody: then they are not there.
_AFTER = ".jp-OutputArea-child:has(.nbqueue-panel)+.jp-OutputArea-child"
_STYLE = (
    f"<style>{_AFTER}:has(.jupyter-widgets-disconnected),{_AFTER}>.jupyter-widgets:not(:has(*)){{display:none}}</style>"
)
_NOTHING: dict[str, Any] = {"text/plain": "", "text/html": ""}


def show(queue: TaskQueue) -> None:
    """Show a live panel below the running cell.

    Raises
    ------
    NotImplementedError
        Where there is none to be had; then IPython shows what the queue says of itself.
    """
    shell = get_ipython()
    silent = os.environ.get("NBQUEUE_PROGRESS", "").strip().lower() in ("0", "false", "off", "no")
    if silent or getattr(shell, "kernel", None) is None:
        raise NotImplementedError
    # Displays made in another thread land in whichever cell runs.
    if threading.current_thread() is not threading.main_thread():
        raise NotImplementedError
    panel = Panel(queue, _cell_id(shell))
    _panels.add(panel, shell)
    panel.appear()


def _cell_id(shell: Any) -> str | None:
    """Which cell runs, where the front end says so."""
    found = (shell.get_parent() or {}).get("metadata", {}).get("cellId")
    return found if isinstance(found, str) else None


class Panel:
    """One panel in one cell; `look` is for the thread that asks, `appear` for the cell."""

    def __init__(self, queue: TaskQueue, cell_id: str | None) -> None:
        self.cell_id = cell_id
        self.looked = threading.Event()
        self._queue = queue
        self._core = queue._here()
        self._status: QueueStatus | None = None
        self._trouble = ""
        self._ended: deque[tuple[float, int]] = deque()
        self._look_at = 0.0
        self._sent = -1
        self._changed_at = time.monotonic()
        self._signature: object = None
        self._acting = 0
        self._lock = threading.Lock()  # held while drawing, so that nothing is drawn after the last picture
        self._settled = False
        self._shown = ""
        self._handle: Any = None
        self._beside: Any = None  # the display of the buttons
        self._widgets: tuple[Any, ...] = ()

    # Asking (the panels' thread)

    def look(self, now: float, asked: dict[Core, QueueStatus | NbqueueError]) -> None:
        """Ask the server, if it is time to, and no other panel of the queue has just `asked`."""
        link = self._core.link
        sent = link.submitted
        if now < self._look_at and (sent == self._sent or self._trouble):
            return
        self._sent = sent
        if self._core not in asked:
            try:
                asked[self._core] = self._queue.status()
            except NbqueueError as error:
                asked[self._core] = error
        answer = asked[self._core]
        if isinstance(answer, QueueStatus):
            self._take(answer, now)
        else:
            self._trouble = str(answer)
        self.looked.set()
        busy = self._busy or link.open_calls or self._acting
        self._look_at = time.monotonic() + (AWAY_S if self._trouble else TICK_S if busy else REST_S)

    def _take(self, status: QueueStatus, now: float) -> None:
        self._status, self._trouble = status, ""
        ended = status.done + status.failed
        if self._ended and ended < self._ended[-1][1]:
            # The server has lost its data.
            self._ended.clear()
        self._ended.append((now, ended))
        while len(self._ended) > 2 and self._ended[1][0] < now - RATE_S:
            self._ended.popleft()
        workers = [(worker.pid, worker.state, worker.task is None) for worker in status.workers]
        signature = (status.queued, status.delayed, ended, status.cancelled, status.retried, workers)
        if signature != self._signature or self._busy:
            self._signature = signature
            self._changed_at = now

    @property
    def _busy(self) -> bool:
        status = self._status
        return status is not None and bool(status.queued or status.running or status.delayed)

    @property
    def _rate(self) -> float | None:
        if not self._busy:
            return None
        (before, some), (after, more) = self._ended[0], self._ended[-1]
        return (more - some) / (after - before) if after > before else None

    def tired(self, now: float) -> bool:
        """Whether nothing has happened for a long time."""
        return now - self._changed_at > LIVE_S and not self._core.link.open_calls

    # Drawing

    def appear(self) -> None:
        """Display it below the running cell. In the main thread."""
        self.looked.wait(FIRST_S)
        with self._lock:
            bundle = self._bundle("live")
            self._shown = bundle["text/html"]
            self._handle = display(bundle, raw=True, display_id=True)
            try:
                model = {"version_major": 2, "version_minor": 0, "model_id": self._make_buttons().model_id}
            except Exception:  # noqa: BLE001 - without working ipywidgets it has no buttons, and lives all the same
                comms.close(*self._widgets)
                self._widgets = ()
            else:
                # Whoever does not trust the notebook shows the text, which is empty.
                beside = {**_NOTHING, "application/vnd.jupyter.widget-view+json": model}
                self._beside = display(beside, raw=True, display_id=True)

    def draw(self) -> None:
        """Show what is known now, if it looks different."""
        with self._lock:
            if self._handle is None or self._settled:
                return
            bundle = self._bundle("live")
            if bundle["text/html"] != self._shown:
                self._shown = bundle["text/html"]
                self._handle.update(bundle, raw=True)

    def settle(self) -> None:
        """Leave the last picture, without buttons. A second call changes nothing."""
        with self._lock:
            if self._handle is None or self._settled:
                return
            self._settled = True
            try:
                self._handle.update(self._bundle("settled"), raw=True)
                if self._beside is not None:
                    self._beside.update(_NOTHING, raw=True)
            finally:
                comms.close(*self._widgets)
                self._widgets = ()

    def _bundle(self, state: str) -> dict[str, Any]:
        if self._status is None:
            text = f"nbqueue: {self._trouble or f'asking the server of the queue {self._queue.stream_key!r} …'}"
            page = f'<div class="nbqueue-panel">{html.escape(text)}</div><!--/nbqueue-->'
            return {"text/plain": text, "text/html": page}
        notes = []
        if not self._status.workers and not self._trouble:
            notes.append("The first call starts them." if self._core.starts_by_itself else "queue.run() starts some.")
        if self._trouble:
            notes.append(f"Not up to date: {self._trouble}")
        if state == "settled":
            notes.append(f"As of {datetime.now():%H:%M:%S}. Show the queue again for a live panel.")
        page = picture(self._status, self._rate, notes, state) + (_STYLE if state == "live" else "")
        return {"text/plain": "\n".join([repr(self._status), *(f"  {note}" for note in notes)]), "text/html": page}

    # Buttons

    def _make_buttons(self) -> Any:
        import ipywidgets

        stop = self._button(ipywidgets, "Stop all", "Stopping…", STOP_TOOLTIP, self._queue.cancel)
        restart = self._button(
            ipywidgets, "Restart workers", "Restarting…", RESTART_TOOLTIP, self._queue.restart_workers
        )
        row = ipywidgets.HBox([stop, restart], layout={"margin": "0"})
        row.add_class("nbqueue-buttons")
        self._widgets = (row, stop, restart)
        return row

    def _button(self, ipywidgets: Any, text: str, meanwhile: str, tooltip: str, job: Callable[[], object]) -> Any:
        button = ipywidgets.Button(description=text, tooltip=tooltip, layout={"width": "132px", "height": "24px"})
        button.style.font_size = "12px"
        button.add_class("nbqueue-" + text.split()[0].lower())

        def run() -> None:
            try:
                job()
            except NbqueueError as error:
                self._trouble = str(error)
            finally:
                self._acting -= 1
                self._look_at = 0.0
                with self._lock:
                    if not self._settled:
                        button.description, button.disabled = text, False

        def clicked(_: Any) -> None:
            # In whichever thread the kernel gives it, and that must not wait: workers may take their time.
            button.disabled, button.description = True, meanwhile
            self._acting += 1
            threading.Thread(target=run, name="nbqueue-panel-button", daemon=True).start()

        button.on_click(clicked)
        comms.free_route(button)
        return button


class _Panels:
    """All live panels, and the one thread that keeps them so; it ends with the last of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._panels: list[Panel] = []
        self._thread: threading.Thread | None = None
        self._watching = False

    def forget(self) -> None:
        """In a forked child: the panels are the parent's, its lock may be held, its thread is not here."""
        self.__init__()  # type: ignore[misc]

    def add(self, panel: Panel, shell: Any) -> None:
        if not self._watching:
            self._watching = True
            shell.events.register("pre_run_cell", self._before_cell)
        with self._lock:
            surplus = self._panels[: max(0, len(self._panels) + 1 - MOST_LIVE)]
            self._panels.append(panel)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="nbqueue-panel", daemon=True)
                self._thread.start()
        self._settle(surplus)

    def _before_cell(self, info: Any = None) -> None:
        """What a cell showed is gone when it runs again."""
        cell_id = getattr(info, "cell_id", None)
        if cell_id is not None:
            self._settle([panel for panel in self._panels if panel.cell_id == cell_id])

    def _settle(self, panels: list[Panel]) -> None:
        for panel in panels:
            panel.settle()
        with self._lock:
            self._panels = [panel for panel in self._panels if panel not in panels]

    def _run(self) -> None:
        while True:
            with self._lock:
                panels = list(self._panels)
                if not panels:
                    self._thread = None
                    return
            now = time.monotonic()
            asked: dict[Core, QueueStatus | NbqueueError] = {}
            for panel in panels:
                try:
                    panel.look(now, asked)
                    panel.draw()
                except Exception as error:  # noqa: BLE001 - one that cannot be drawn must not stop the others
                    sys.stderr.write(f"nbqueue: a panel failed and stands still from here ({error!r})\n")
                    with self._lock:
                        self._panels.remove(panel)
            self._settle([panel for panel in panels if panel.tired(now)])
            time.sleep(TICK_S)

    def settle_all(self) -> None:
        """At the end of the process: nobody could draw them any more."""
        self._settle(list(self._panels))


_panels = _Panels()
atexit.register(_panels.settle_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_panels.forget)
