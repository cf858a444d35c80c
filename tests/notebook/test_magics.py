"""`%%background` in a real kernel, seen as the messages that a front end would get."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.apart

ROOT = Path(__file__).resolve().parents[2]
LOAD = "%load_ext nbqueue\nfrom nbqueue import TaskQueue\nqueue = TaskQueue(workers=2)"
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class Notebook:
    """A kernel with `%load_ext nbqueue`; what is displayed is found by its display id."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.seen: list[dict[str, Any]] = []
        self.run(LOAD)

    def run(self, code: str) -> list[dict[str, Any]]:
        messages = self.kernel.run(code)
        self.seen += messages
        return messages

    def printed(self, code: str) -> str:
        """What a cell that must not fail prints."""
        messages = self.run(code)
        assert not [m["content"] for m in messages if m["msg_type"] == "error"]
        return "".join(m["content"]["text"] for m in messages if m["msg_type"] == "stream")

    def refused(self, code: str) -> str:
        messages = self.run(code)
        assert not [m for m in messages if m["msg_type"] == "display_data"], "nothing is shown of what is not sent"
        return "".join(m["content"].get("text", "") for m in messages)

    def until(self, text: str) -> str:
        """Wait, with no cell running, for an update that holds `text`."""

        def holds(message: dict[str, Any]) -> bool:
            return message["msg_type"] == "update_display_data" and text in plain(message)

        for message in self.seen:
            if holds(message):
                return plain(message)
        return plain(self.kernel.until(holds, timeout=30))


def plain(message: dict[str, Any]) -> str:
    return ANSI.sub("", message["content"]["data"].get("text/plain", ""))


@pytest.fixture
def notebook(start_kernel: Any) -> Notebook:
    return Notebook(start_kernel())


def gate(tmp_path: Any) -> str:
    """Code that waits for a file, which the test makes."""
    return f"import os, time\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)"


def test_names_go_out_and_come_back_while_other_cells_run(notebook: Notebook, tmp_path: Any) -> None:
    notebook.run("scale = 10\ndef grow(x): return scale * x")
    notebook.run(f"%%background -n made\n{gate(tmp_path)}\nvalues = [grow(x) for x in range(3)]\nsum(values)")
    assert notebook.printed("print(1 + 1, made.done(), 'values' in globals())") == "2 False False\n"
    (tmp_path / "go").touch()
    assert notebook.until("in the notebook now") == "nbqueue: `os`, `time` and `values` are in the notebook now."
    assert notebook.printed("print(values, made.result(), os.sep)") == "[0, 10, 20] 30 /\n"
    # The value of its last line is shown below it.
    assert notebook.until("30") == "30"


def test_names_do_not_appear_in_the_middle_of_a_running_cell(notebook: Notebook, tmp_path: Any) -> None:
    """Not even one that awaits, which lets others run meanwhile."""
    notebook.run("x = 1")
    notebook.run(f"%%background -n later\n{gate(tmp_path)}\nx = 2")
    code = f"""
import asyncio, concurrent.futures
open({str(tmp_path / 'go')!r}, "w").close()
concurrent.futures.wait([later])
for _ in range(20):
    await asyncio.sleep(0.01)
print(x)"""
    assert notebook.printed(code) == "1\n"
    assert notebook.printed("print(x)") == "2\n"


def test_a_cell_that_asks_for_the_result_has_the_names(notebook: Notebook) -> None:
    notebook.run("%%background -n made\nfound = [1, 2]\nlen(found)")
    assert notebook.printed("print(made.result(), found)") == "2 [1, 2]\n"


def test_what_the_notebook_has_said_since_is_not_overwritten(notebook: Notebook, tmp_path: Any) -> None:
    notebook.run("x = 0")
    notebook.run(f"%%background -n made\n{gate(tmp_path)}\nx = 1\ny = 1")
    notebook.run("x = 5")
    (tmp_path / "go").touch()
    assert "`x` was bound anew here meanwhile and keeps its value" in notebook.until("in the notebook now")
    assert notebook.printed("print(x, y, made.names['x'])") == "5 1 1\n"


def test_of_two_background_cells_the_later_one_wins(notebook: Notebook, tmp_path: Any) -> None:
    """Whichever ends first."""
    for first, second in (("go", "gone"), ("gone2", "go2")):
        code = (
            "%%background -n {name}\nimport os, time\n"
            "while not os.path.exists({path!r}): time.sleep(0.01)\nx = {value}"
        )
        notebook.run(code.format(name="one", path=str(tmp_path / first), value=1))
        notebook.run(code.format(name="two", path=str(tmp_path / second), value=2))
        for name, path in sorted([("one", first), ("two", second)], key=lambda pair: len(pair[1])):
            (tmp_path / path).touch()
            notebook.printed(f"{name}.result()")
        assert notebook.printed("print(x)") == "2\n"
        notebook.run("x = 0")


def test_functions_and_classes_of_the_cell_belong_to_the_notebook(notebook: Notebook) -> None:
    notebook.run("k = 1")
    notebook.run(
        "%%background -n made\ndef f(): return k + _more\n_more = 10\n"
        "class Box:\n    def get(self): return f()\nboxes = [Box()]"
    )
    told = notebook.printed(
        "made.result()\nk = 2\nprint(f(), boxes[0].get(), type(boxes[0]) is Box, f.__globals__ is globals())"
    )
    assert told == "12 12 True True\n"
    assert notebook.printed("f = lambda: 7\nprint(Box().get())") == "7\n"


def test_parts_that_are_assigned_come_back_and_deleted_names_go(notebook: Notebook) -> None:
    notebook.run("table = {'a': 1}\nold = 1\nkept = []")
    notebook.run("%%background -n made\ntable['b'] = 2\ndel old\nkept.append(1)")
    assert notebook.printed("made.result()\nprint(table, 'old' in globals(), kept)") == "{'a': 1, 'b': 2} False []\n"


def test_the_same_cell_starts_anew_each_time(notebook: Notebook) -> None:
    """A worker keeps the functions that it knows; once, with what the cell had left in their globals."""
    notebook.run("queue.run(1)\nitems = []")
    for _ in range(2):
        notebook.run("%%background -n made\nitems.append(1)\nlen(items)")
        assert notebook.printed("print(made.result())") == "1\n"


def test_a_failing_cell_shows_its_lines_and_gives_nothing(notebook: Notebook) -> None:
    notebook.run("%%background -n bad\nfirst = 1\nsecond = first / 0")
    shown = notebook.until("Traceback")
    assert "Cell In[2], line 3" in shown
    assert re.search(r"-+> 3 second = first / 0", shown)
    assert "nbqueue" not in shown
    told = notebook.printed("print('first' in globals(), type(bad.exception()).__name__)")
    assert told == "False ZeroDivisionError\n"


def test_a_function_that_came_back_shows_its_source_when_it_fails(notebook: Notebook) -> None:
    notebook.run("%%background -n made\ndef fail():\n    return 1 / 0  # here")
    notebook.printed("made.result()")
    (error,) = [m["content"]["traceback"] for m in notebook.run("fail()") if m["msg_type"] == "error"]
    assert "return 1 / 0  # here" in ANSI.sub("", "\n".join(error))


def test_a_cell_that_failed_shows_its_line_and_is_run_again_by_hand(notebook: Notebook) -> None:
    notebook.run("%%background -n bad\nzero = 0\n1 / zero")
    for code, said in (("bad.result()", "----> 3 1 / zero"), ("bad.replay()", "run it again without its first line")):
        (error,) = [m["content"]["traceback"] for m in notebook.run(code) if m["msg_type"] == "error"]
        shown = ANSI.sub("", "\n".join(error))
        assert said in shown
        assert "nbqueue/" not in shown


def test_a_name_that_cannot_be_sent_is_named(notebook: Notebook) -> None:
    notebook.run("import threading\nlock = threading.Lock()")
    said = notebook.refused("%%background\nwith lock:\n    pass")
    assert "UsageError: %%background: `cell [3]` could not be sent: its global `lock` (_thread.lock)" in said
    # One that is bound before it is used is not sent.
    assert notebook.printed("%%background -n fine\nlock = 1\nlock + 1") == ""
    assert notebook.printed("print(fine.result())") == "2\n"


def test_what_cannot_come_back_is_named_and_the_rest_comes(notebook: Notebook) -> None:
    notebook.run("%%background -n made\nimport threading\nlock = threading.Lock()\nx = y = [1]\nlock")
    note = notebook.until("not brought back")
    assert "`lock` (lock) and the last value (lock)" in note
    assert notebook.printed("print(made.result(), x is y, 'lock' in globals())") == "None True False\n"


def test_what_no_worker_can_do_is_refused_in_a_line(notebook: Notebook) -> None:
    for cell, said in (
        ("x = 1\n%time x", "line 3 uses %time, and workers have no magics"),
        ("%%time\nx", "line 2 uses %%time"),
        ("x = [await y for y in z]", "line 2 awaits"),
        ("if x", "line 2: expected ':'\n    if x\n"),
        ("return 1", "line 2: 'return' outside function"),
    ):
        assert said in notebook.refused(f"%%background\n{cell}")


def test_options_are_checked(notebook: Notebook) -> None:
    assert "cannot be a name" in notebook.refused("%%background -n a-b\n1")
    assert "`nothing` is no TaskQueue" in notebook.refused("%%background -q nothing\n1")
    notebook.run("%%background -n quick\n1")
    told = notebook.printed("quick.result()\nprint(queue.history()[-1].name, queue.history()[-1].arguments)")
    assert told == "quick %%background\n"
    notebook.run("%%background -n slow -t 0.2 -q queue\nimport time\ntime.sleep(60)")
    assert notebook.printed("print(type(slow.exception()).__name__, queue.history()[-1].name)") == "TaskTimeout slow\n"


def test_a_background_cell_can_be_cancelled_by_its_name(notebook: Notebook) -> None:
    notebook.run("%%background -n long\nimport time\ntime.sleep(60)\nx = 1")
    notebook.run("long.cancel()")
    assert notebook.until("was cancelled") == "nbqueue: was cancelled; nothing was put back."
    assert notebook.printed("print(long.cancelled(), 'x' in globals())") == "True False\n"


def test_shell_commands_work_with_values_of_the_notebook_and_the_cell(notebook: Notebook) -> None:
    notebook.run("word = 'one'")
    notebook.run("%%background -n made\nother = 'two'\nlines = !echo {word.upper()} $other; echo 3\n!exit 1\nlines")
    assert notebook.printed("print(made.result())") == "['ONE two', '3']\n"
    # As in any cell: with a name that is none, the shell gets it all as it is.
    notebook.run("%%background -n made\nlines = !echo {word} {unknown}\nlines")
    assert notebook.printed("print(made.result())") == "['{word} {unknown}']\n"


def test_figures_that_come_back_are_not_shown_below_the_next_cell(notebook: Notebook) -> None:
    notebook.run("%matplotlib inline\nimport matplotlib.pyplot as plt")
    notebook.run("%%background -n made\nimport matplotlib.pyplot as plt\nfig, ax = plt.subplots()")
    messages = notebook.run("made.result()\nprint(type(fig).__name__)")
    assert not [m for m in messages if m["msg_type"] == "display_data"]


def test_in_a_terminal_names_come_back_before_the_next_cell(tmp_path: Path) -> None:
    code = """
import concurrent.futures
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
run = lambda cell: shell.run_cell(cell).raise_error()
run("%load_ext nbqueue")
run("%%background -n made\\nx = 6 * 7\\nx")
concurrent.futures.wait([shell.user_ns["made"]])
assert "x" not in shell.user_ns
run("assert x == 42")
run("queue = made = nbqueue = None")
run("from nbqueue import TaskQueue; TaskQueue()")
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "nbqueue: runs in the background; `x` will be put back when it is done."
    assert lines[1:3] == ["nbqueue: `x` is in the notebook now.", "42"]
    assert any(line.startswith("queue 'tasks' on private") for line in lines)
