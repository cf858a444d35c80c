"""A module beside a notebook is what its file says now, with autoreload and without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("setup", ["pass", "%load_ext autoreload\n%autoreload 2"], ids=["plain", "autoreload"])
def test_an_edited_module_is_used_by_the_next_call(
    start_kernel: Callable[..., Any], tmp_path: Path, setup: str
) -> None:
    def shown(code: str) -> str:
        messages = kernel.run(code)
        assert not [m for m in messages if m["msg_type"] == "error"], messages
        return "".join(m["content"]["text"] for m in messages if m["msg_type"] == "stream")

    helpers = tmp_path / "beside_the_notebook.py"
    helpers.write_text("def word(): return 'old'\n")
    kernel = start_kernel(NBQUEUE_PROGRESS="0")
    shown(setup)
    shown("from nbqueue import TaskQueue\nimport beside_the_notebook\nqueue = TaskQueue(workers=2)")
    shown("@queue.task\ndef work(x): return beside_the_notebook.word()")
    assert "{'old'}" in shown("print(set(work.map(range(4)).results()))")
    helpers.write_text("def word(): return 'edited'\n")
    assert "{'edited'}" in shown("print(set(work.map(range(4)).results()))")
