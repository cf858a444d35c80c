"""The face in a notebook: magics, interrupts and panel. Visited only by the front door, and only where IPython runs.

Nothing is loaded here before it is used: the front door calls `install` at ``import nbqueue``.
"""

from __future__ import annotations

from typing import Any

__all__ = ["install", "load_ipython_extension"]


def install(shell: Any) -> None:
    """Have a shell show queues as live panels, and its ■ reach whatever a cell waits for. Once for each shell."""
    if getattr(shell, "_nbqueue", None) is None:
        from nbqueue.notebook.interrupt import Watcher

        shell._nbqueue = Watcher(shell)
        # By name: the queue itself knows nothing of notebooks, and is not loaded yet.
        formatter = shell.display_formatter.ipython_display_formatter
        formatter.for_type_by_name("nbqueue.client.queue", "TaskQueue", _show)


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext nbqueue``."""
    from nbqueue.notebook.magics import Magics

    shell.register_magics(Magics)


def _show(queue: Any) -> None:
    from nbqueue.notebook.panel import show

    show(queue)
