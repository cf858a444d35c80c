"""What widgets need of their comms, whoever draws them: a way past a busy cell, and an end."""

from __future__ import annotations

from typing import Any

__all__ = ["close", "free_route"]


def free_route(widget: Any) -> None:
    """Have a widget hear its front end while a cell runs, where the kernel can do that.

    ipykernel 7.4 sends a click to the (sub)shell that last published on the widget's comm: the main one, which is
    busy with the cell. Without a route, the click goes where the front end sent it.
    """
    comm = widget.comm
    if getattr(comm, "_reply_subshell_for", None) is not None:
        comm._reply_subshell_for = None


def close(*widgets: Any) -> None:
    """Close widgets with the layout and style of each, whose comms would stay open as long as the kernel."""
    for widget in widgets:
        if widget is not None:
            for part in (widget, widget.layout, getattr(widget, "style", None)):
                if part is not None:
                    part.close()
