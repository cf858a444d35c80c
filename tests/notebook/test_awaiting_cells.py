"""Cells that await: what else runs in the kernel's event loop goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

SETUP = """
import asyncio, time
from pathlib import Path
from nbqueue import TaskQueue
queue = TaskQueue(workers=2)

@queue.task(chunksize=1, progress=False)
def held(i):
    while not Path(f"open{i}").exists(): time.sleep(0.01)
    return i

async def open_slowly():
    # Of an earlier cell: it runs only while the cell that waits lets it.
    for i in (2, 0, 1, 3):
        await asyncio.sleep(0.05)
        Path(f"open{i}").touch()

def begin():
    for path in Path().glob("open*"): path.unlink()
    return asyncio.create_task(open_slowly())
"""
WAYS = {
    "async for value in held.map(range(4)): print(value)": "0 1 2 3",
    "async for done in held.map([0, 1, 2, 3]).as_completed(): print(await done)": None,
    "print(*await asyncio.gather(*[held(i) for i in range(4)]))": "0 1 2 3",
    "print(*await held.map(range(4)))": "0 1 2 3",
    "for done in asyncio.as_completed([held(i) for i in range(4)]): print(await done)": None,
}


def test_a_cell_that_awaits_keeps_the_kernel_responsive(start_kernel: Callable[..., Any], tmp_path: Path) -> None:
    kernel = start_kernel(NBQUEUE_PROGRESS="0")
    kernel.run(SETUP)
    for way, wanted in WAYS.items():
        kernel.run("opener = begin()")
        messages = kernel.run(way, timeout=30)
        errors = [message["content"]["evalue"] for message in messages if message["msg_type"] == "error"]
        assert not errors, f"{way}: {errors}"
        shown = "".join(m["content"]["text"] for m in messages if m["msg_type"] == "stream").split()
        assert sorted(shown) == ["0", "1", "2", "3"], way
        assert wanted is None or " ".join(shown) == wanted, way
