"""Cells: source that is run as a notebook runs it, in a namespace that is called ``__main__``."""

from __future__ import annotations

import linecache
import textwrap
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def cell() -> Callable[..., dict[str, Any]]:
    """``cell(source, name=value…)`` runs one more cell of the same notebook and returns its namespace."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    number = 0

    def run(source: str, **given: Any) -> dict[str, Any]:
        nonlocal number
        number += 1
        source = textwrap.dedent(source).strip() + "\n"
        name = f"<cell {number}>"
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        namespace.update(given)
        exec(compile(source, name, "exec"), namespace)
        return namespace

    return run
