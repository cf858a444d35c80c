"""joblib on a queue in a real kernel: one card for a Parallel call, prints, errors, and ■."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

SETUP = """
import joblib, time
from pathlib import Path
import nbqueue.interop.joblib
from joblib import Parallel, delayed
from nbqueue import TaskQueue
queue = TaskQueue(workers=2)
config = joblib.parallel_config(backend="nbqueue", queue=queue, n_jobs=2)

def work(x):
    print("at", x)
    return 1 / (5 - x)

def sleep(x):
    Path("started").touch()
    time.sleep(60)
"""
QUIET = """
with joblib.parallel_config(backend="nbqueue", queue=queue, n_jobs=2, progress=False):
    Parallel()(delayed(abs)(x) for x in range(5))
"""
HELD = """
def first_only(x):
    if x:
        time.sleep(60)
    return x

Path("started").unlink()
threading.Thread(target=press).start()
results = Parallel(batch_size=1, return_as="generator")(delayed(first_only)(x) for x in range(9))
for value in results:
    Path("started").touch()
    time.sleep(60)
"""
IDLE = """
print(Parallel()(delayed(abs)(-x) for x in range(3)))
# What was cancelled in the other worker has its grace.
until = time.monotonic() + 20
while (running := queue.status().running) and time.monotonic() < until:
    time.sleep(0.02)
print(running)
"""
PRESS = """
import os, signal, threading

def press():
    while not Path("started").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=press).start()
"""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def of_kind(messages: list[dict[str, Any]], kind: str) -> list[Any]:
    return [message["content"] for message in messages if message["msg_type"] == kind]


def texts(messages: list[dict[str, Any]]) -> list[str]:
    """Of displays, first and later, as they would be saved."""
    return [
        content["data"].get("text/plain", "")
        for kind in ("display_data", "update_display_data")
        for content in of_kind(messages, kind)
    ]


def test_a_parallel_call_has_one_card_with_its_functions_name_and_its_prints(start_kernel: Callable[..., Any]):
    kernel = start_kernel()
    kernel.run(SETUP)
    messages = kernel.run("results = Parallel()(delayed(work)(x) for x in range(5)); print(len(results))")
    assert "5\n" in [content["text"] for content in of_kind(messages, "stream")]
    shown = texts(messages)
    assert any(text.startswith("nbqueue: work 5/5 done") for text in shown)
    cards = {
        content["transient"]["display_id"]
        for content in of_kind(messages, "display_data")
        if content["data"].get("text/plain", "").startswith("nbqueue: work")
    }
    assert len(cards) == 1
    assert any(re.search(r"work\[3\]\s*│ at 3", text) for text in shown)
    assert not [text for text in texts(kernel.run(QUIET)) if text.startswith("nbqueue: abs")]

    # An error is the task's own, shown with its line.
    (error,) = of_kind(kernel.run("Parallel(batch_size=1)(delayed(work)(x) for x in range(9))"), "error")
    shown_error = COLOURS.sub("", "\n".join(error["traceback"]))
    assert error["ename"] == "ZeroDivisionError"
    assert re.search(r"-+> \d+     return 1 / \(5 - x\)", shown_error)
    assert "task work[5]" in shown_error
    assert "/nbqueue/" not in shown_error

    # ■ cancels what was sent, and leaves the pool usable.
    kernel.run(PRESS)
    (error,) = of_kind(kernel.run("Parallel()(delayed(sleep)(x) for x in range(9))"), "error")
    assert error["ename"] == "KeyboardInterrupt"
    assert re.fullmatch(r"`sleep` was cancelled, 0( of 9)? calls had ended\.", error["evalue"])
    messages = kernel.run(IDLE)
    assert "[0, 1, 2]\n()\n" in "".join(content["text"] for content in of_kind(messages, "stream"))

    # Also in the body of a loop over results that the cell still holds: the rest once ran on.
    messages = kernel.run(HELD)
    assert [content["ename"] for content in of_kind(messages, "error")] == ["KeyboardInterrupt"]
    said = "".join(content["text"] for content in of_kind(messages, "stream"))
    assert re.search(r"nbqueue: `first_only` was cancelled, 1( of 9)? calls had ended\.\n", said)
    messages = kernel.run(IDLE)
    assert "[0, 1, 2]\n()\n" in "".join(content["text"] for content in of_kind(messages, "stream"))
    messages = kernel.run("next(results)")
    assert [content["ename"] for content in of_kind(messages, "error")] == ["TaskCancelled"]
