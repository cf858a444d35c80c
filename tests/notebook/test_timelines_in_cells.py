"""`batch.timeline()` in a cell is one picture, whatever pyplot has set up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SETUP = """
from nbqueue import TaskQueue
queue = TaskQueue(workers=2)
batch = queue.map(abs, range(10), progress=False, chunksize=1)
batch.wait()
"""


def pictures(messages: list[dict[str, Any]]) -> list[str]:
    assert not [m["content"]["evalue"] for m in messages if m["msg_type"] == "error"]
    shown = [m["content"]["data"] for m in messages if m["msg_type"] in ("execute_result", "display_data")]
    return [data.get("image/png", "")[:8] for data in shown]


def test_a_timeline_is_shown_once_with_and_without_pyplot(start_kernel: Callable[..., Any]) -> None:
    kernel = start_kernel(NBQUEUE_PROGRESS="0")
    kernel.run(SETUP)
    assert pictures(kernel.run("batch.timeline()")) == ["iVBORw0K"]
    kernel.run("%matplotlib inline\nimport matplotlib.pyplot")
    assert pictures(kernel.run("batch.timeline()")) == ["iVBORw0K"]
    assert pictures(kernel.run("picture = batch.timeline()")) == []
