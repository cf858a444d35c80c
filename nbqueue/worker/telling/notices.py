"""Warnings and log records in a task: on its stderr, in a form by which equal ones of many tasks are counted.

A notebook's handlers are not in its workers. What nobody handles is written by logging's handler of last resort,
with its level and its logger's name. A warning is shown once for each item that causes it, and not once for each
worker, or an item's stderr would depend on which worker it ran in.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any, TextIO

from nbqueue.worker.telling.prints import Prints

__all__ = ["forget_warnings", "install"]


class _Form(logging.Formatter):
    """One line, and what belongs to it indented: so its end is seen."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", "\n    ")


class _Nobody(Warning):
    """Never raised. A filter for it, set again, makes Python forget which warnings it has shown."""


def install(prints: Prints) -> None:
    """Set handlers for this process; a task may set its own."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Form())

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        prints.warned = True
        out: Any = file or sys.stderr
        if out is not None:
            out.write(warnings.formatwarning(message, category, filename, lineno, line))

    warnings.showwarning = show


def forget_warnings() -> None:
    """What this item has warned of is news when the next one does."""
    warnings.simplefilter("default", _Nobody, append=True)
