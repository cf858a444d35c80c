"""The card in a notebook cell: one HTML widget and a Cancel button, then static HTML for good.

`views` opens it in the main thread, while the cell that submits is running. Settling replaces the widget
by its static picture, so that a saved notebook shows the result with no kernel and no widget state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import static
from .tally import Snapshot

__all__ = ["DisplayView", "OutputView", "WidgetView", "open_notebook_view"]

CANCEL_TOOLTIP = "Cancel what is still open. To stop a cell that is waiting, use ■ (interrupt)."


def open_notebook_view(
    snapshot: Snapshot, cancel: Callable[[], None] | None, warn: Callable[[str], None]
) -> WidgetView | DisplayView:
    """Display the card below the running cell; without a working ipywidgets, plain HTML that is replaced."""
    try:
        return WidgetView(snapshot, cancel, warn)
    except Exception as error:  # noqa: BLE001 whatever is wrong with the widgets, HTML still works
        if not isinstance(error, ImportError):
            warn(f"ipywidgets failed, so the progress card has no Cancel button ({error!r})")
        return DisplayView(snapshot)


class DisplayView:
    """A display that is replaced by each newer one; needs IPython only."""

    def __init__(self, snapshot: Snapshot) -> None:
        from IPython.display import display

        self._handle = display(_bundle(snapshot), raw=True, display_id=True)

    def update(self, snapshot: Snapshot) -> None:
        self._handle.update(_bundle(snapshot), raw=True)

    def settle(self, snapshot: Snapshot) -> None:
        self._handle.update(_bundle(snapshot), raw=True)


class OutputView:
    """One display for all that the tasks of a cell print. Make it while the cell runs, in the main thread."""

    def __init__(self, bundle: dict[str, str]) -> None:
        from IPython.display import display

        self._handle = display(bundle, raw=True, display_id=True)

    def update(self, bundle: dict[str, str]) -> None:
        self._handle.update(bundle, raw=True)


class WidgetView:
    """One HTML widget and, where there is something to call, a Cancel button."""

    def __init__(
        self, snapshot: Snapshot, cancel: Callable[[], None] | None, warn: Callable[[str], None]
    ) -> None:
        import ipywidgets
        from IPython.display import display

        # The card takes the room, so that the button stands still while the text changes its length.
        self._html = ipywidgets.HTML(static.html(snapshot), layout={"flex": "1 1 auto", "margin": "0"})
        self._button: Any = None
        if cancel is not None:
            self._button = _cancel_button(ipywidgets, cancel, warn)
        children = [self._html] if self._button is None else [self._html, self._button]
        self._box = ipywidgets.HBox(
            children, layout={"align_items": "center", "max_width": "1000px", "overflow": "hidden"}
        )
        self._box.add_class("nbqueue-view")
        # The HTML and the text are for whoever opens the notebook before the card is settled.
        bundle = _bundle(snapshot)
        bundle["application/vnd.jupyter.widget-view+json"] = {
            "version_major": 2,
            "version_minor": 0,
            "model_id": self._box.model_id,
        }
        self._handle = display(bundle, raw=True, display_id=True)

    def update(self, snapshot: Snapshot) -> None:
        # Traitlets sends nothing where the value has not changed.
        self._html.value = static.html(snapshot)

    def settle(self, snapshot: Snapshot) -> None:
        try:
            self._handle.update(_bundle(snapshot), raw=True)
        finally:
            for widget in (self._box, self._button, self._html):
                if widget is not None:
                    # Each has comms of its own, which would stay open as long as the kernel.
                    for part in (widget, widget.layout, getattr(widget, "style", None)):
                        if part is not None:
                            part.close()


def _cancel_button(ipywidgets: Any, cancel: Callable[[], None], warn: Callable[[str], None]) -> Any:
    button = ipywidgets.Button(
        description="Cancel", icon="", tooltip=CANCEL_TOOLTIP, layout={"width": "auto", "flex": "0 0 auto"}
    )
    button.add_class("nbqueue-cancel")

    def clicked(_: Any) -> None:
        # Runs in whichever thread the kernel gives it; what is printed here is lost.
        button.disabled = True
        button.description = "Cancelling…"
        try:
            cancel()
        except Exception as error:  # noqa: BLE001 the click has no caller to raise to
            warn(f"Cancel failed ({error!r})")

    button.on_click(clicked)
    # ipykernel 7.4 sends a click to the (sub)shell that last published on the button's comm: the main
    # one, which is busy with the cell. Without a route, the click goes where the front end sent it.
    comm: Any = button.comm
    if getattr(comm, "_reply_subshell_for", None) is not None:
        comm._reply_subshell_for = None
    return button


def _bundle(snapshot: Snapshot) -> dict[str, Any]:
    return {"text/plain": static.plain(snapshot), "text/html": static.html(snapshot)}
