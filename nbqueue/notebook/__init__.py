"""The face in a notebook: magics and panel. Visited only by the front door, and only where IPython runs.

Nothing is loaded here before it is used: the front door calls `install` at ``import nbqueue``.
"""

from __future__ import annotations

from typing import Any

__all__ = ["install", "load_ipython_extension"]


def install(shell: Any) -> None:
    """Have a shell show queues as panels. Costs nothing until one is shown."""


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext nbqueue``."""
    from nbqueue.notebook.magics import Magics

    shell.register_magics(Magics)
