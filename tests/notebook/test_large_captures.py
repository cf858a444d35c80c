"""What a notebook shows when a large object rides along with every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def test_a_large_capture_is_told_of_below_the_cell_that_called(start_kernel: Callable[..., Any]) -> None:
    kernel = start_kernel(NBQUEUE_PROGRESS="0")
    kernel.run("from nbqueue import TaskQueue\nqueue = TaskQueue(workers=1)\ndata = bytes(12_000_000)")
    define = "@queue.task\ndef size():\n    return len(data)"
    kernel.run(define)
    for cell, told in (("size().result()", 1), ("size().result()", 0), (define + "\nsize().result()", 0)):
        texts = [m["content"]["text"] for m in kernel.run(cell) if m["msg_type"] == "stream"]
        assert len(texts) == told, texts
        if told:
            assert "RuntimeWarning: `size` takes 12 MB along with every call" in texts[0]
            # The line of the cell, not one of ours.
            assert "ipykernel" in texts[0].split(":")[0]
            assert "size().result()" in texts[0]
