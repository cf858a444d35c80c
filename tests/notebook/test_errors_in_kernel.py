"""What a person reads below a cell whose task has failed, in a real kernel."""

from __future__ import annotations

import queue as queues
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.apart

SETUP = """from nbqueue import TaskQueue
import mine
queue = TaskQueue(workers=1, progress=False)

@queue.task
def simulate(seed, steps=10):
    limit = steps * 2
    if seed == 4:
        return limit / (seed - 4)
    raise ValueError(f"seed {seed} diverged")
"""
MODULE = """
def inner(y):
    # a comment
    return 1 / y

def outer(x):
    return inner(x - 1)
"""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def kernel(start_kernel: Callable[..., Any], tmp_path: Path) -> Any:
    (tmp_path / "mine.py").write_text(MODULE)
    kernel = start_kernel()
    kernel.run(SETUP)
    return kernel


def text_of(messages: list[dict[str, Any]]) -> str:
    """All that the cell wrote and raised, without colours; versions differ in how far they indent."""
    parts = []
    for message in messages:
        content = message["content"]
        if message["msg_type"] == "stream":
            parts.append(content["text"])
        elif message["msg_type"] == "error":
            parts.append("\n".join(content["traceback"]))
    return re.sub(" +", " ", _COLOURS.sub("", "\n".join(parts)))


def debug(kernel: Any, code: str, *answers: str, timeout: float = 60) -> str:
    """Run a cell in which a debugger asks; each of its questions gets the next answer."""
    client, left = kernel.client, list(answers)
    msg_id = client.execute(code, allow_stdin=True)
    messages: list[dict[str, Any]] = []
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            message = client.get_iopub_msg(timeout=0.1)
        except queues.Empty:
            try:
                client.get_stdin_msg(timeout=0.1)
            except queues.Empty:
                continue
            client.input(left.pop(0))
            continue
        if message["parent_header"].get("msg_id") == msg_id:
            messages.append(message)
            if message["content"].get("execution_state") == "idle":
                assert not left, f"the debugger did not ask for {left}"
                return text_of(messages)
    raise AssertionError(f"the cell did not end:\n{text_of(messages)}")


def test_the_line_of_the_cell_is_shown_and_nothing_of_ours(kernel: Any) -> None:
    for mode in ("Context", "Verbose", "Plain"):
        kernel.run(f"%xmode {mode}")
        shown = text_of(kernel.run("simulate(39, steps=5).result()"))
        assert 'raise ValueError(f"seed {seed} diverged")' in shown
        assert "ValueError: seed 39 diverged\ntask simulate with seed=39, steps=5 · worker 0" in shown
        assert "nbqueue/" not in shown
        assert "hidden" not in shown
        if mode != "Plain":
            assert ' 8 if seed == 4:' in shown
            assert '---> 10 raise ValueError(f"seed {seed} diverged")' in shown
            assert "----> 1 simulate(39, steps=5).result()" in shown


def test_the_lines_of_a_module_are_shown(kernel: Any) -> None:
    shown = text_of(kernel.run("queue.submit(mine.outer, 1).result()"))
    assert "----> 7 return inner(x - 1)" in shown
    assert " 3 # a comment\n----> 4 return 1 / y" in shown
    assert "mine.py:4, in inner()" in shown
    assert "nbqueue/" not in shown


WAYS = (
    "batch.results()",
    "for value in batch: pass",
    "batch[1]",
    "await batch",
    "await batch.futures[1]",
    "nbqueue.gather(batch.futures)",
    "for future in batch.as_completed(): future.result()",
)


def test_however_a_batch_is_asked_the_line_is_shown_and_nothing_of_ours(kernel: Any) -> None:
    kernel.run("import nbqueue\nbatch = queue.map(mine.outer, [3, 1, 5])\nbatch.wait()")
    for code in WAYS:
        shown = text_of(kernel.run(code))
        assert f"----> 1 {code}" in shown
        assert "----> 4 return 1 / y" in shown
        assert "ZeroDivisionError: division by zero\ntask outer[1] with x=1 · worker 0" in shown
        assert "nbqueue/" not in shown


@pytest.mark.parametrize(
    ("made", "note"),
    [
        ("queue.map(max, [[1], []])", "task max[1] with [] · worker 0"),
        # A call that does not fit.
        ("queue.starmap(mine.outer, [(3,), (4, 6)])", "task outer[1] with "),
        ("queue.map(next, [iter([1]), iter([])])", "task next[1] with <iter> · worker 0"),
    ],
)
def test_what_no_line_of_the_user_raised_was_shown_with_frames_of_ours(kernel: Any, made: str, note: str) -> None:
    kernel.run(f"import nbqueue\nbatch = {made}\nbatch.wait()")
    for code in (
        *WAYS,
        "batch[1:2]",
        "batch.futures[1].result()",
        "batch.futures[1]()",
        "raise batch.futures[1].exception()",
        "for future in nbqueue.as_completed([batch.futures[1]]): future.result()",
    ):
        shown = text_of(kernel.run(code))
        assert f"----> 1 {code}" in shown
        assert note in shown
        assert "nbqueue/" not in shown


def test_a_wrong_keyword_was_shown_with_frames_of_ours(kernel: Any) -> None:
    shown = text_of(kernel.run("simulate.map([4, 5], nope=3).results()"))
    assert "TypeError: simulate() got an unexpected keyword argument 'nope'\ntask simulate[0] with seed=4" in shown
    assert "nbqueue/" not in shown


def test_an_error_of_the_input_was_shown_with_frames_of_ours_and_of_the_cells_that_had_asked_before(
    kernel: Any,
) -> None:
    shown = text_of(kernel.run("queue.map(abs, map(int, ['x']))"))
    assert "----> 1 queue.map(abs" in shown
    assert "nbqueue/" not in shown
    kernel.run("batch = queue.map(abs, map(int, ['1', 'x']))")
    for code in (
        "batch.results()",
        "for value in batch: pass",
        "batch[1]",
        "for future in batch.as_completed(): pass",
        "await batch",
    ):
        shown = text_of(kernel.run(code))
        assert shown.count("----> ") == 1
        assert f"----> 1 {code}" in shown
        assert "invalid literal for int()" in shown
        assert "nbqueue/" not in shown


def test_a_timeout_of_asyncio_was_shown_with_frames_of_ours(kernel: Any) -> None:
    kernel.run("import asyncio, time\nnap = queue.task(time.sleep)")
    for code in ("await asyncio.wait_for(nap(100), 0.5)", "await asyncio.wait_for(nap.map([100]), 0.5)"):
        shown = text_of(kernel.run(code))
        assert f"----> 1 {code}" in shown
        assert "TimeoutError" in shown
        assert "nbqueue/" not in shown


def test_a_chain_of_exceptions_is_shown_whole(kernel: Any) -> None:
    kernel.run("""
def chained():
    try:
        mine.outer(1)
    except ZeroDivisionError as error:
        raise RuntimeError("gave up") from error
""")
    shown = text_of(kernel.run("queue.submit(chained).result()"))
    assert "----> 4 return 1 / y" in shown
    assert "The above exception was the direct cause of the following exception" in shown
    assert '----> 5 raise RuntimeError("gave up") from error' in shown
    assert "nbqueue/" not in shown


def test_a_recursion_without_end_was_shown_with_hundreds_of_frames(kernel: Any) -> None:
    kernel.run("""
@queue.task
def without_end(): return without_end()
def plain(): return plain()
def deeper(n): return deeper(n - 1) if n else without_end.local()
""")
    # The last calls that there is room for are others each time.
    deep = [(f"queue.submit(deeper, {n}).result()", 6 + n) for n in range(4)]
    for code, most in (("without_end().result()", 6), ("queue.submit(plain).result()", 6), *deep):
        shown = text_of(kernel.run(code))
        assert f"----> 1 {code}" in shown
        assert 2 <= shown.count("Cell In[") <= most
        assert " frames in the middle are not shown)\ntask " in shown
        assert "During handling" not in shown
        assert "nbqueue/" not in shown


def test_a_group_is_shown_with_its_members(kernel: Any) -> None:
    kernel.run("""
def several():
    errors = []
    for x in (1, "a"):
        try:
            mine.outer(x)
        except Exception as error:
            errors.append(error)
    raise ExceptionGroup("several failed", errors)
""")
    shown = text_of(kernel.run("queue.submit(several).result()"))
    assert 'raise ExceptionGroup("several failed", errors)' in shown
    assert " | task several · worker 0" in shown
    assert " return 1 / y" in shown
    assert "TypeError: unsupported operand" in shown
    assert "nbqueue/" not in shown


def test_what_has_no_frames_points_to_the_cell_that_asked(kernel: Any) -> None:
    shown = text_of(kernel.run("import os\nqueue.submit(os._exit, 3).result()"))
    assert "----> 2 queue.submit(os._exit, 3).result()" in shown
    assert "WorkerDied: The worker that ran `_exit` left with exit code 3" in shown
    assert "task _exit with status=3 · attempt 2" in shown
    assert "nbqueue/" not in shown


def test_debug_after_a_replay_lands_in_the_users_frame(kernel: Any) -> None:
    kernel.run("batch = simulate.map(range(6), steps=7)\nbatch.wait()")
    shown = text_of(kernel.run("batch.failed[4].replay()"))
    assert "----> 9 return limit / (seed - 4)" in shown
    assert "nbqueue/" not in shown
    session = debug(kernel, "%debug", "p limit", "up", "p 'the cell'", "q")
    assert "----> 9 return limit / (seed - 4)" in session
    assert "\n14\n" in session
    assert "----> 1 batch.failed[4].replay()" in session


def test_pdb_on_stops_where_a_replay_fails(kernel: Any) -> None:
    kernel.run("future = simulate(4)\nfuture.exception()\n%pdb on")
    assert "\n20\n" in debug(kernel, "future.replay()", "p limit", "q")


def test_failures_are_shown_as_a_table(kernel: Any) -> None:
    kernel.run("batch = simulate.map(range(6))\nbatch.wait()")
    (shown,) = [m["content"]["data"] for m in kernel.run("batch.failed") if m["msg_type"] == "execute_result"]
    for form in ("text/plain", "text/html"):
        for part in ("6 of 6 items failed", "seed 0 diverged", "Cell In[", "line 10, in simulate", "seed=0"):
            assert part in shown[form]
    assert "limit / (seed - 4)" in shown["text/html"]
