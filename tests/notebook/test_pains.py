"""The pains that people report of every tool of this kind, each in a real kernel, driven as a front end drives it.

Numbered as in the study they come from: 12 (results gone with the kernel), 13 (memory growth) and 14 (big arrays) are
tested elsewhere or come later. Of 15, seeds for each task come later, too; here it is that workers share no state.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.apart

Message = dict[str, Any]
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
START = """
import os, sys, time
from nbqueue import TaskQueue, TaskCancelled, WorkerDied
queue = TaskQueue(workers=2)
"""


class Notebook:
    """A kernel, and what its cells have shown so far."""

    def __init__(self, kernel: Any, folder: Path, wait_until: Callable[..., Any]) -> None:
        self.kernel = kernel
        self.folder = folder
        self.wait_until = wait_until
        self.messages: list[Message] = []
        self.run(START)

    def run(self, code: str, timeout: float = 60) -> str:
        """What the cell prints; then its value or its error, as text."""
        messages = self.kernel.run(code, timeout)
        self.messages += messages
        said = ""
        for message in messages:
            content = message["content"]
            if message["msg_type"] == "stream":
                said += content["text"]
            elif message["msg_type"] == "execute_result":
                said += content["data"]["text/plain"]
            elif message["msg_type"] == "error":
                said += ESCAPES.sub("", "\n".join(content["traceback"]))
        return said

    def send(self, code: str) -> str:
        """Start a cell; its id."""
        return str(self.kernel.client.execute(code))

    def until(self, predicate: Callable[[Message], bool], timeout: float = 20) -> Message:
        """The next message for which the predicate holds."""

        def keep(message: Message) -> bool:
            self.messages.append(message)
            return predicate(message)

        message: Message = self.kernel.until(keep, timeout)
        return message

    def until_idle(self, cell: str, timeout: float = 60) -> None:
        self.until(
            lambda m: (m["parent_header"].get("msg_id"), m["content"].get("execution_state")) == (cell, "idle"), timeout
        )

    def exists(self, name: str) -> None:
        self.wait_until((self.folder / name).exists, timeout=30)

    def pictures(self, kind: str) -> dict[str, list[Message]]:
        """All that was displayed under each display id, if its text or its HTML begins so."""
        found: dict[str, list[Message]] = {}
        for message in self.messages:
            content = message["content"]
            id = content.get("transient", {}).get("display_id", "")
            if any(str(data).startswith(kind) for data in content.get("data", {}).values()):
                found.setdefault(id, []).append(message)
        return found


@pytest.fixture
def notebook(start_version: Callable[..., Any], tmp_path: Path, wait_until: Callable[..., Any]) -> Notebook:
    return Notebook(start_version(), tmp_path, wait_until)


def test_pain_01_functions_of_a_cell_run_elsewhere(notebook: Notebook) -> None:
    notebook.run("queue.submit(abs, -1).result()")  # the workers are older than all that follows
    notebook.run(
        """
        import math as m
        from dataclasses import dataclass
        FACTOR = 10
        @dataclass
        class Point:
            x: float
            def scaled(self): return Point(self.x * FACTOR)
        def helper(x): return Point(m.sqrt(x)).scaled()
        def make(offset):
            return lambda x: helper(x).x + offset
        @queue.task
        def task(x): return make(1)(x), helper(x)
        """
    )
    assert notebook.run("task(4).result()") == "(21.0, Point(x=20.0))"
    assert notebook.run("type(task(4).result()[1]) is Point") == "True"
    assert notebook.run("queue.map(make(0.5), [1, 4]).results()") == "[10.5, 20.5]"
    assert notebook.run("queue.map(lambda x, y: x * y + FACTOR, [1, 2], [3, 4]).results()") == "[13, 18]"


def test_pain_02_no_code_is_stale(notebook: Notebook) -> None:
    notebook.run("def helper(x): return 'old'\nSETTING = 1\n@queue.task\ndef task(x): return helper(x), SETTING")
    assert notebook.run("task(0).result(), task.map([0]).results()") == "(('old', 1), [('old', 1)])"
    notebook.run("def helper(x): return 'new'")
    notebook.run("SETTING = 2")
    assert notebook.run("task(0).result(), task.map([0]).results()") == "(('new', 2), [('new', 2)])"
    notebook.run("@queue.task\ndef task(x): return 'another'")
    assert notebook.run("task(0).result()") == "'another'"


def test_pain_03_an_edited_module_is_used_by_the_next_call(notebook: Notebook) -> None:
    module = notebook.folder / "beside.py"
    module.write_text("def value():\n    return 'as written first'\n")
    notebook.run("sys.path.insert(0, os.getcwd())\nimport beside\n@queue.task\ndef task(i): return beside.value()")
    assert notebook.run("set(task.map(range(4)).results())") == "{'as written first'}"
    module.write_text("def value():\n    return 'as edited afterwards'\n")
    assert notebook.run("set(task.map(range(4)).results())") == "{'as edited afterwards'}"


def test_pain_04_prints_land_below_their_own_cell(notebook: Notebook) -> None:
    notebook.run(
        """
        @queue.task
        def task(i):
            print("hello", i, flush=True)
            while not os.path.exists("go"): time.sleep(0.01)
            os.write(1, b"goodbye\\n")
        future = task(7)
        """
    )
    place, = notebook.pictures("<!--nbqueue-output-->")
    notebook.run("print('another cell'); open('go', 'w').close()")
    notebook.until(lambda m: "goodbye" in m["content"].get("data", {}).get("text/plain", ""))
    places = notebook.pictures("<!--nbqueue-output-->")
    assert list(places) == [place]
    assert places[place][-1]["msg_type"] == "update_display_data"
    printed = [m["content"]["text"] for m in notebook.messages if m["msg_type"] == "stream"]
    assert not re.search("hello|goodbye", "".join(printed)), "as a stream it lands in whichever cell runs"
    assert notebook.run("future.result(); print(future.stdout)") == "hello 7\ngoodbye\n\n"


def test_pain_05_an_interrupt_stops_the_work_and_leaves_the_pool_whole(notebook: Notebook) -> None:
    notebook.run("@queue.task\ndef task(i):\n    open(f'began-{i}', 'w').close()\n    time.sleep(600)")
    notebook.run("queue.run(2)\nwhile [w.pid > 0 for w in queue.status().workers] != [True, True]: time.sleep(0.01)")
    pids = notebook.run("[w.pid for w in queue.status().workers]")
    cell = notebook.send("task.map(range(6)).results()")
    notebook.exists("began-1")
    notebook.kernel.manager.interrupt_kernel()
    error = notebook.until(lambda m: m["msg_type"] == "error")["content"]
    assert error["ename"] == "KeyboardInterrupt"
    assert error["evalue"] == "`task` was cancelled, 0 of 6 items had ended."
    notebook.until_idle(cell)
    assert notebook.run("queue.map(abs, range(-3, 0)).results()") == "[3, 2, 1]"
    assert notebook.run("[w.pid for w in queue.status().workers]") == pids, "no worker was lost"
    assert not (notebook.folder / "began-2").exists(), "what was queued never starts"


def test_pain_06_a_running_task_can_be_cancelled(notebook: Notebook) -> None:
    notebook.run(
        """
        import re
        def in_python(i):
            open("python", "w").close()
            time.sleep(60)
        def in_c(i):
            open("c", "w").close()
            re.match("(a+)+$", "a" * 50 + "b")
        def patient(i):
            while not os.path.exists("go"): time.sleep(0.01)
            return "not disturbed"
        other = queue.submit(patient, 0)
        """
    )
    for name in ("python", "c"):
        notebook.run(f"future = queue.submit(in_{name}, 0)")
        notebook.exists(name)
        # The pool has two workers, one of them is busy: the next call ends only if the cancelled one has made room.
        assert notebook.run("future.cancel(), queue.submit(abs, -3).result(timeout=20)") == "(True, 3)"
    assert notebook.run("open('go', 'w').close(); other.result(timeout=20)") == "'not disturbed'"


def test_pain_07_one_death_costs_one_item(notebook: Notebook) -> None:
    notebook.run("def task(i):\n    if i == 3: os.kill(os.getpid(), 9)\n    return i")
    notebook.run("values = queue.map(task, range(40)).results(return_exceptions=True)")
    assert notebook.run("type(values.pop(3)).__name__") == "'WorkerDied'"
    assert notebook.run("values == [i for i in range(40) if i != 3]") == "True"
    assert notebook.run("queue.map(abs, range(-3, 0)).results()") == "[3, 2, 1]"


def test_pain_08_a_death_says_why(notebook: Notebook) -> None:
    notebook.run(
        """
        @queue.task
        def simulate(seed, steps):
            print("step", steps, flush=True)
            os.kill(os.getpid(), 9)
        """
    )
    shown = notebook.run("simulate(seed=42, steps=7).result()")
    for fact in ("WorkerDied", "simulate", "SIGKILL", "seed=42", "steps=7", " MB", "step 7"):
        assert fact in shown, shown
    assert "nbqueue/" not in shown, shown
    code = "try:\n    simulate(1, 2).result()\nexcept WorkerDied as error:\n    death = error"
    notebook.run(code)
    assert notebook.run("death.signal, death.attempts, death.last_output") == "(9, 2, 'step 2')"
    assert notebook.run("death.peak_rss_bytes > 1_000_000") == "True"


def test_pain_09_one_exception_discards_nothing(notebook: Notebook) -> None:
    notebook.run(
        """
        class Odd(Exception):
            def __init__(self, a, b):     # will not unpickle
                super().__init__(a)
        def task(i):
            if i == 2 and not os.path.exists("mended"): raise Odd("cannot", "travel")
            if i == 5 and not os.path.exists("mended"): raise ValueError("five")
            return i
        batch = queue.map(task, range(8))
        """
    )
    shown = notebook.run("batch.results()")
    assert "Odd" in shown
    assert re.search(r"-> \d+ +if i == 2 and not .* raise Odd", shown), shown
    assert notebook.run("[future.name for future in batch.failed]") == "['task[2]', 'task[5]']"
    kept = "[value for value in batch.results(return_exceptions=True) if not isinstance(value, Exception)]"
    assert notebook.run(kept) == "[0, 1, 3, 4, 6, 7]"
    assert notebook.run("open('mended', 'w').close(); batch.retry_failed().results()") == str(list(range(8)))


def test_pain_10_one_bar_follows_what_has_ended_and_what_is_inside_of_tasks(notebook: Notebook) -> None:
    cell = notebook.send(
        """
from nbqueue import track
def task(i):
    for _ in track(range(30)): time.sleep(0.1)
    return i
batch = queue.map(task, range(4), chunksize=1)
batch.results()
"""
    )
    began = time.monotonic()
    notebook.until_idle(cell)
    seconds = time.monotonic() - began
    card, = notebook.pictures("nbqueue: task").values()
    assert card[0]["msg_type"] == "display_data"
    assert card[0]["parent_header"]["msg_id"] == cell
    texts = [message["content"]["data"]["text/plain"] for message in card]
    assert "4/4 done" in texts[-1]
    assert len({re.search(r"\d+/4 done", text)[0] for text in texts}) > 1, "it moved"
    inside = "\n".join(message["content"]["data"]["text/html"] for message in card)
    assert re.search(r"\b[1-9]\d?/30\b", inside), "how far each of those is that run"
    assert len(texts) <= 10 * seconds + 5


def test_pain_10_ten_thousand_fast_tasks_do_not_flood_the_front_end(notebook: Notebook) -> None:
    notebook.messages.clear()
    began = time.monotonic()
    notebook.run("queue.map(abs, range(10_000), chunksize=1).results()[-1]")
    seconds = time.monotonic() - began
    card, = notebook.pictures("nbqueue: abs").values()
    assert "10,000/10,000 done" in card[-1]["content"]["data"]["text/plain"]
    assert len(notebook.messages) < 20 * seconds + 40


def test_pain_11_a_card_is_plain_html_in_any_front_end_and_can_be_displayed_again(notebook: Notebook) -> None:
    # Without ipywidgets, as some front ends are.
    notebook.run("sys.modules['ipywidgets'] = None")
    notebook.run("def task(i):\n    while not os.path.exists('go'): time.sleep(0.01)")
    notebook.run("batch = queue.map(task, range(4))")
    notebook.messages.clear()
    again = notebook.send("batch")
    notebook.until_idle(again)
    assert {m["parent_header"]["msg_id"] for m in notebook.messages if m["msg_type"] == "display_data"} == {again}
    notebook.run("open('go', 'w').close(); batch.wait()")
    card, = notebook.pictures("nbqueue: task").values()
    for message in card:
        assert set(message["content"]["data"]) == {"text/html", "text/plain"}
    assert "4/4 done" in card[-1]["content"]["data"]["text/plain"]


def test_pain_15_workers_share_cores_and_no_random_numbers(notebook: Notebook) -> None:
    notebook.run(
        """
        import numpy
        @queue.task(chunksize=1)
        def task(i):
            import random
            time.sleep(0.01)
            threads = os.environ["OMP_NUM_THREADS"], os.environ["OPENBLAS_NUM_THREADS"]
            return *threads, random.random(), numpy.random.rand()
        results = task.map(range(20)).results()
        """
    )
    assert notebook.run("int(results[0][0]) * 2 <= max(2, len(os.sched_getaffinity(0)))") == "True"
    assert notebook.run("{result[:2] for result in results} == {results[0][:2]}") == "True"
    assert notebook.run("len({r[2] for r in results}), len({r[3] for r in results})") == "(20, 20)"
