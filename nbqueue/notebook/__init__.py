"""The face in a notebook: magics, interrupts and panel. Visited only by the front door, and only where IPython runs.

Nothing is loaded here before it is used: the front door calls `install` at ``import nbqueue``.
"""

from __future__ import annotations

from typing import Any

__all__ = ["install", "load_ipython_extension"]


def install(shell: Any) -> None:
    """Have a shell show queues as panels, and its ■ reach whatever a cell waits for. Once for each shell."""
    if getattr(shell, "_nbqueue", None) is None:
        from nbqueue.notebook.interrupt import Watcher

        shell._nbqueue = Watcher(shell)


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext nbqueue``."""
    from nbqueue.notebook.magics import Magics

    shell.register_magics(Magics)
