"""The card in a notebook cell: HTML that is displayed anew with each newer state, and a Cancel button.

`views` opens it in the main thread, while the cell that submits is running. The card is no widget: whatever is
saved, whenever that is, shows the last state that there was, with no kernel and no widget state. Only the button
is one. It has a display of its own, empty until the work has gone on for a moment and empty again at the end; if
the kernel dies in between, the card's style hides what a front end says about a widget that it cannot find.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from . import comms, static
from .static import BUTTON_ROOM_PX
from .tally import Snapshot

__all__ = ["NotebookView", "OutputView", "WidgetView", "open_notebook_view", "show_settled"]

CANCEL_TOOLTIP = "Cancel what is still open. To stop a cell that is waiting, use ■ (interrupt)."

# Nobody cancels what is over sooner.
BUTTON_AFTER_S = 0.5

# JupyterLab and Notebook 7: the button's display is the one before the card's, and stands beside it, where it
# does not move when the text changes its length. Without its kernel it does nothing, without its model it is a line
# of text that helps nobody: then it is not there.
_PLACE = ".jp-OutputArea-child:has(+ .jp-OutputArea-child .nbqueue-card[data-state=live]:not(.nbqueue-panel))"
_BESIDE = (
    f"{_PLACE}:has(.nbqueue-cancel){{position:absolute;width:auto;z-index:1;"
    f"left:min(100% - {BUTTON_ROOM_PX}px,var(--jp-cell-prompt-width,64px) + {1000 - BUTTON_ROOM_PX}px)}}"
    f"{_PLACE}:has(.nbqueue-cancel)>.jp-OutputPrompt{{display:none}}"
    f"{_PLACE}:has(.jupyter-widgets-disconnected),{_PLACE}>.jupyter-widgets:not(:has(*)){{display:none}}"
    ".nbqueue-cancel{line-height:20px!important;padding:0 4px!important}"
)
_STYLE = f"<style>{_BESIDE}</style>"


def open_notebook_view(
    snapshot: Snapshot, cancel: Callable[[], None] | None, warn: Callable[[str], None]
) -> NotebookView | WidgetView:
    """Display the card below the running cell, or in the `ipywidgets.Output` that takes what it displays."""
    if _in_output_widget():
        return WidgetView(snapshot, cancel, warn)
    return NotebookView(snapshot, cancel, warn)


class NotebookView:
    """A display that is replaced by each newer one and, where there is something to call, a Cancel button.

    Without a working ipywidgets there is no button. Shown in several cells it has one display id all the same.
    """

    def __init__(self, snapshot: Snapshot, cancel: Callable[[], None] | None, warn: Callable[[str], None]) -> None:
        from IPython.display import display

        self._cancel = None if cancel is None else _Cancel(cancel, warn)
        self._handle = display(_bundle(snapshot), raw=True, display_id=True)

    def show_again(self, snapshot: Snapshot) -> None:
        """Below the cell that runs now; later updates reach every place."""
        if self._cancel is not None:
            self._cancel.show_again()
        self._handle.display(_bundle(snapshot), raw=True)

    def update(self, snapshot: Snapshot) -> None:
        if self._cancel is not None:
            self._cancel.offer()
        self._handle.update(_bundle(snapshot), raw=True)

    def settle(self, snapshot: Snapshot) -> None:
        # The button first: beside a card that is settled it would have no place.
        try:
            if self._cancel is not None:
                self._cancel.close()
        finally:
            self._handle.update(_bundle(snapshot), raw=True)


class WidgetView:
    """The card as a widget, for an `ipywidgets.Output`: front ends replace no display there, and save none."""

    def __init__(self, snapshot: Snapshot, cancel: Callable[[], None] | None, warn: Callable[[str], None]) -> None:
        import ipywidgets
        from IPython.display import display

        self._html = ipywidgets.HTML(static.html(snapshot), layout={"flex": "1 1 auto"})
        self._button = None if cancel is None else _cancel_button(cancel, warn)
        self._box = ipywidgets.HBox([self._html] if self._button is None else [self._html, self._button])
        display(self._box)

    def update(self, snapshot: Snapshot) -> None:
        self._html.value = static.html(snapshot)

    def settle(self, snapshot: Snapshot) -> None:
        self._html.value = static.html(snapshot)
        self._box.children = [self._html]
        if self._button is not None:
            _close(self._button)


def _in_output_widget() -> bool:
    """Whether the cell that runs is inside ``with output:``, as the functions of `interact` are."""
    ipywidgets = sys.modules.get("ipywidgets")
    # The thread that draws may be importing it for a first button: then nobody has made an Output yet.
    output = getattr(ipywidgets, "Output", None)
    if ipywidgets is None or output is None:
        return False
    instances = getattr(ipywidgets.widgets.widget, "_instances", {})
    return any(isinstance(widget, output) and widget.msg_id for widget in list(instances.values()))


def show_settled(snapshot: Snapshot) -> None:
    """Display a card that will not change any more."""
    from IPython.display import display

    display(_bundle(snapshot), raw=True)


class OutputView:
    """One display for all that the tasks of a cell print. Make it while the cell runs, in the main thread.

    `parent` is the request that runs the cell: by it, a front end knows where a display belongs.
    """

    def __init__(self, bundle: dict[str, str], parent: dict[str, Any]) -> None:
        from IPython.display import display

        self._parent = parent
        self._handle = display(bundle, raw=True, display_id=True)

    def update(self, bundle: dict[str, str]) -> None:
        self._handle.update(bundle, raw=True)

    def render(self, id: str, data: Mapping[str, Any], *, again: bool) -> None:
        """A display of its own below the same cell, or, `again`, in the place of the one that had this id."""
        from IPython import get_ipython

        # Not `display`: in another thread, or when the cell has ended, that lands below whichever cell runs.
        publisher = get_ipython().display_pub
        content = {"data": dict(data), "metadata": {}, "transient": {"display_id": id}}
        kind = "update_display_data" if again else "display_data"
        publisher.session.send(publisher.pub_socket, kind, content, parent=self._parent, ident=publisher.topic)


class _Cancel:
    """A place for a Cancel button, which comes when it is offered for the first time after a moment."""

    def __init__(self, cancel: Callable[[], None], warn: Callable[[str], None]) -> None:
        from IPython.display import display

        self._call = cancel
        self._warn = warn
        self._offer_at = time.monotonic() + BUTTON_AFTER_S
        self._button: Any = None
        self._handle = display(self._bundle(), raw=True, display_id=True)

    def show_again(self) -> None:
        self._handle.display(self._bundle(), raw=True)

    def offer(self) -> None:
        if self._button is not None or time.monotonic() < self._offer_at:
            return
        self._offer_at = float("inf")
        try:
            self._button = _cancel_button(self._call, self._warn)
        except Exception as error:  # noqa: BLE001 whatever is wrong with the widgets, the card still works
            if not isinstance(error, ImportError):
                self._warn(f"ipywidgets failed, so the progress card has no Cancel button ({error!r})")
            return
        self._handle.update(self._bundle(), raw=True)

    def close(self) -> None:
        if self._button is None:
            return
        button, self._button = self._button, None
        self._handle.update(self._bundle(), raw=True)
        comms.close(button)

    def _bundle(self) -> dict[str, Any]:
        # Whoever does not trust the notebook shows the text, which is empty.
        bundle: dict[str, Any] = {"text/plain": "", "text/html": ""}
        if self._button is not None:
            model = {"version_major": 2, "version_minor": 0, "model_id": self._button.model_id}
            bundle["application/vnd.jupyter.widget-view+json"] = model
        return bundle


def _cancel_button(cancel: Callable[[], None], warn: Callable[[str], None]) -> Any:
    import ipywidgets

    layout = {"width": f"{BUTTON_ROOM_PX - 8}px", "height": "22px"}
    button = ipywidgets.Button(description="Cancel", tooltip=CANCEL_TOOLTIP, layout=layout)
    button.add_class("nbqueue-cancel")
    button.style.font_size = "12px"

    def clicked(_: Any) -> None:
        # Runs in whichever thread the kernel gives it; what is printed here is lost.
        button.disabled = True
        button.description = "Cancelling…"
        try:
            cancel()
        except Exception as error:  # noqa: BLE001 the click has no caller to raise to
            warn(f"Cancel failed ({error!r})")

    button.on_click(clicked)
    comms.free_route(button)
    return button


def _close(button: Any) -> None:
    for part in (button, button.layout, button.style):
        # Each has a comm of its own, which would stay open as long as the kernel.
        part.close()


def _bundle(snapshot: Snapshot) -> dict[str, Any]:
    more = "" if snapshot.finished else _STYLE
    return {"text/plain": static.plain(snapshot), "text/html": static.html(snapshot, more)}
