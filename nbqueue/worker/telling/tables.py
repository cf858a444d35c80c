"""pandas in workers: a table has as many columns as in the notebook that sees it.

A worker has no front end, so pandas takes it for a terminal, where a table may be as wide as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import ModuleType

from nbqueue.worker.telling.hooks import when_imported

__all__ = ["install"]

OPTION = "display.max_columns"
# What pandas sets when it is imported: in a terminal, in a kernel.
TERMINAL, KERNEL = 0, 20


def install(shows: Callable[[], bool]) -> None:
    """When a task imports pandas, set its option, if whoever calls is a notebook (`shows`)."""

    def change(pandas: ModuleType) -> None:
        # Another pandas may have no such option: then it is none the worse.
        with contextlib.suppress(Exception):
            if shows() and pandas.get_option(OPTION) == TERMINAL:
                pandas.set_option(OPTION, KERNEL)

    when_imported("pandas", change)
