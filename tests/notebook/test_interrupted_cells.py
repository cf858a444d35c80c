"""■ in a real kernel: what the cell waits for is cancelled, one short KeyboardInterrupt shown, the next cell works."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SETUP = """
import asyncio, os, sys, threading, time
from pathlib import Path
import nbqueue
from nbqueue import TaskQueue
queue = TaskQueue(workers=2)
calls = []

@queue.task
def work(i):
    (Path("started") / str(i)).touch()
    time.sleep(60)

def wait_for(number, calls_made):
    # Until as many run, and then for the moment in which the cell waits for them.
    calls[:] = calls_made
    while len(list(Path("started").iterdir())) < number:
        time.sleep(0.01)
    main = threading.main_thread().ident
    def tell():
        names = set()
        while not names & {"wait_until", "select"}:
            time.sleep(0.01)
            frame, names = sys._current_frames()[main], set()
            while frame is not None:
                names.add(frame.f_code.co_name)
                frame = frame.f_back
        Path("waiting").touch()
    threading.Thread(target=tell).start()

def one():
    future = work(0)
    wait_for(1, [future])
    return future

def many():
    futures = [work(i) for i in range(6)]
    wait_for(2, futures)
    return futures

def batch():
    batch = work.map(range(6))
    wait_for(2, batch.futures)
    return batch
"""
NEXT = """
print(queue.submit(abs, -3).result(timeout=20), [call for call in calls if not call.cancelled()])
deadline = time.monotonic() + 10
while queue.status().running and time.monotonic() < deadline:
    time.sleep(0.01)
print(len(queue.status().running), "running,", len(list(Path("started").iterdir())), "started")
"""
BLOCKING = [
    "one().result()",
    "one()()",
    "one().exception(timeout=50)",
    "nbqueue.gather(many())",
    "nbqueue.wait(many())",
    "for future in nbqueue.as_completed(many()): pass",
    "batch().results()",
    "batch().wait()",
    "for value in batch(): pass",
    "batch()[3]",
    "for future in batch().as_completed(): pass",
]
AWAITING = [
    "await one()",
    "await batch()",
    "await asyncio.gather(*many())",
    "for next in asyncio.as_completed(many()): await next",
    "await asyncio.wait([asyncio.ensure_future(call) for call in many()])",
    "await asyncio.wrap_future(one())",
    "await asyncio.sleep(0); one().result()",
    "await asyncio.sleep(0); list(batch())",
    "await asyncio.gather(asyncio.to_thread(print), asyncio.create_task(blocks()))",
]
TEXT = re.compile(r"\x1b\[[0-9;]*m")


class Cells:
    """A kernel whose cells are interrupted, in its own folder."""

    def __init__(self, kernel: Any, folder: Path, wait_until: Callable[..., Any]) -> None:
        self.kernel = kernel
        self.folder = folder
        self.wait_until = wait_until
        (folder / "started").mkdir()
        kernel.run(SETUP)

    def press(self, code: str, presses: int = 1) -> tuple[str, float]:
        """What the cell shows when it has been interrupted, and how long after that it ended."""
        for path in [*(self.folder / "started").iterdir(), self.folder / "waiting"]:
            path.unlink(missing_ok=True)
        message = self.kernel.client.execute(code)
        self.wait_until((self.folder / "waiting").exists, timeout=30)
        began = time.monotonic()
        for _ in range(presses):
            self.kernel.manager.interrupt_kernel()
        shown = []
        while True:
            found = self.kernel.client.get_iopub_msg(timeout=30)
            if found["parent_header"].get("msg_id") != message:
                continue
            if found["msg_type"] == "error":
                shown.append(TEXT.sub("", "\n".join(found["content"]["traceback"])))
            if found["msg_type"] == "stream":
                shown.append(found["content"]["text"])
            if found["msg_type"] == "status" and found["content"]["execution_state"] == "idle":
                return "\n".join(shown), time.monotonic() - began

    def text(self, code: str) -> str:
        """What the cell prints, or its error."""
        shown = []
        for found in self.kernel.run(code):
            if found["msg_type"] == "stream":
                shown.append(found["content"]["text"])
            if found["msg_type"] == "error":
                shown.append(TEXT.sub("", "\n".join(found["content"]["traceback"])))
        return "".join(shown)


@pytest.fixture
def cells(start_kernel: Callable[..., Any], tmp_path: Path, wait_until: Callable[..., Any]) -> Cells:
    return Cells(start_kernel(NBQUEUE_PROGRESS="0"), tmp_path, wait_until)


def check(cells: Cells, way: str) -> None:
    shown, _ = cells.press(way)
    lines = [line for line in shown.splitlines() if line.strip()]
    # What was wrapped by asyncio itself cannot say more.
    said = "" if "wrap_future" in way else r".* cancelled(, 0 of 6 items had ended)?\."
    assert re.fullmatch(rf"KeyboardInterrupt: {said}", lines[-1]), shown
    assert lines[1].startswith("KeyboardInterrupt "), shown
    assert not re.search(r"nbqueue/|asyncio/|hidden", shown), f"frames of ours:\n{shown}"
    assert len(lines) <= 12, shown
    after = cells.text(NEXT).splitlines()
    assert after[0] == "3 []", f"{way}: not cancelled: {after}"
    # One may be caught between its start and its cancellation; what was queued never starts.
    assert after[1] in ("0 running, 1 started", "0 running, 2 started"), f"{way}: {after}"


def test_an_interrupt_of_a_blocking_cell_cancels_what_it_waited_for(cells: Cells) -> None:
    for way in BLOCKING:
        check(cells, way)


def test_an_interrupt_of_an_awaiting_cell_cancels_what_it_waited_for(cells: Cells) -> None:
    cells.text("async def blocks():\n    return one().result()")
    for way in AWAITING:
        check(cells, way)
