"""Test suites of other projects, run against nbqueue. They are taken from where they are installed, never copied.

A file here is named `joblib_own.py`, not `test_….py`: the plain ``pytest`` leaves it alone, ``.ci/run`` names it. It
has `EXCLUDED`, a table of what does not apply, each with its reason, by the test's name or, where only some of its
parameters do not apply, by its whole name; and perhaps `concerns`, which says of each test whether it is about us.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import supervisor_pid


def pytest_configure(config: pytest.Config) -> None:
    for mark in ("no_cover", "thread_unsafe", "timeout(seconds)"):
        config.addinivalue_line("markers", f"{mark}: of plugins that are not used here")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        module = getattr(item, "module", None)
        excluded: dict[str, str] = getattr(module, "EXCLUDED", {})
        reason = excluded.get(item.name) or excluded.get(item.name.partition("[")[0])
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
    gone = [item for item in items if not getattr(getattr(item, "module", None), "concerns", lambda _: True)(item)]
    if gone:
        config.hook.pytest_deselected(items=gone)
        items[:] = [item for item in items if item not in gone]


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """Tests of others leave what they like."""


@pytest.fixture(scope="session", autouse=True)
def others_ended(session_home: Path) -> Iterator[None]:
    """At the end, before it is looked whether anything is left: end what is not ours."""
    yield
    ours = supervisor_pid()
    children = [child for child in psutil.Process().children() if child.pid != ours]
    for child in children:
        child.kill()
    psutil.wait_procs(children, timeout=5)
