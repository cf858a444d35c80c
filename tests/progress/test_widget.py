"""The card in a real kernel, seen as the messages that a front end would get."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
WIDGET = "application/vnd.jupyter.widget-view+json"

RUN = """
import time
from nbqueue.progress.tally import Tally
from nbqueue.progress.views import open_view

tally = Tally("simulate", 200)
handle = open_view(tally, cancel=lambda: None)
for number in range(200):
    time.sleep(0.005)
    tally.settle(done=1)
tally.finish()
assert handle.close(10)
"""


def test_the_card_moves_while_the_cell_is_busy_and_is_settled_at_its_end(start_kernel):
    messages = start_kernel().run(RUN)
    assert not _errors(messages)
    button, card = _shown(messages)
    # Both are readable from the first moment on, whatever happens to the kernel.
    assert set(button["data"]) == set(card["data"]) == {"text/html", "text/plain"}
    assert set(button["data"].values()) == {""}
    assert card["data"]["text/plain"].startswith("nbqueue: simulate 0/200 done")

    updates = _updates(messages, card)
    assert len({update["text/html"] for update in updates}) >= 3
    # 10 a second in a run of one to a few seconds: never one for each item.
    assert len(updates) < 100
    assert all(set(update) == {"text/html", "text/plain"} for update in updates)
    assert "200/200 done" in updates[-1]["text/plain"]
    assert 'data-state="settled"' in updates[-1]["text/html"]


def test_the_button_comes_after_a_moment_and_goes_at_the_end_with_every_comm_that_it_opened(start_kernel):
    messages = start_kernel().run(RUN)
    button, _ = _shown(messages)
    with_button, without = _updates(messages, button)
    assert set(with_button) == {WIDGET, "text/html", "text/plain"}
    assert without == {"text/html": "", "text/plain": ""}
    opened = {m["content"]["comm_id"]: m["content"] for m in messages if m["msg_type"] == "comm_open"}
    closed = {m["content"]["comm_id"] for m in messages if m["msg_type"] == "comm_close"}
    assert with_button[WIDGET]["model_id"] in opened
    assert set(opened) == closed


def test_work_that_is_over_at_once_costs_no_widget(start_kernel):
    messages = start_kernel().run(RUN.replace("time.sleep(0.005)", "pass"))
    assert not any(m["msg_type"].startswith("comm") for m in messages)


def test_a_batch_that_outlives_its_cell_is_settled_later(start_kernel):
    kernel = start_kernel()
    code = RUN.replace("tally.finish()\nassert handle.close(10)", "")
    assert _shown(kernel.run(code))
    kernel.client.execute("tally.finish()")
    settled = kernel.until(lambda m: "settled" in m["content"].get("data", {}).get("text/html", ""))
    assert "200/200 done" in settled["content"]["data"]["text/plain"]


def test_without_ipywidgets_the_card_has_no_button(start_kernel):
    messages = start_kernel().run("import sys\nsys.modules['ipywidgets'] = None\n" + RUN)
    assert not _errors(messages)
    button, card = _shown(messages)
    assert not _updates(messages, button)
    assert "200/200 done" in _updates(messages, card)[-1]["text/plain"]
    assert not any(m["msg_type"] in ("comm_open", "stream") for m in messages)


def test_widgets_that_fail_cost_the_button_and_not_the_card(start_kernel):
    broken = "import ipywidgets\nipywidgets.Button = None\n"
    messages = start_kernel().run(broken + RUN)
    assert not _errors(messages)
    _, card = _shown(messages)
    assert "200/200 done" in _updates(messages, card)[-1]["text/plain"]
    told = "".join(m["content"]["text"] for m in messages if m["msg_type"] == "stream")
    assert told.count("ipywidgets failed") == 1


def test_a_card_that_opens_while_another_thread_imports_ipywidgets_is_shown(start_kernel):
    half = "import sys, types\nsys.modules['ipywidgets'] = types.ModuleType('ipywidgets')\n"
    messages = start_kernel().run(half + RUN)
    _, card = _shown(messages)
    assert "200/200 done" in _updates(messages, card)[-1]["text/plain"]
    told = "".join(m["content"]["text"] for m in messages if m["msg_type"] == "stream")
    assert "no progress view could be opened" not in told


def test_inside_an_output_widget_the_card_is_a_widget_since_nothing_is_replaced_there(start_kernel):
    inside = "import ipywidgets\nout = ipywidgets.Output()\nwith out:\n" + "\n".join(
        f"    {line}" for line in RUN.splitlines()
    )
    messages = start_kernel().run(inside)
    assert not _errors(messages)
    (shown,) = _shown(messages)
    assert WIDGET in shown["data"]
    assert not any(m["msg_type"] == "update_display_data" for m in messages)
    states = [m["content"]["data"].get("state", {}) for m in messages if m["msg_type"] == "comm_msg"]
    pictures = [state["value"] for state in states if "nbqueue-card" in str(state.get("value"))]
    assert 3 <= len(pictures) < 100
    assert "200/200 done" in pictures[-1]
    assert 'data-state="settled"' in pictures[-1]


def test_nbqueue_progress_0_shows_nothing(start_kernel):
    messages = start_kernel(NBQUEUE_PROGRESS="0").run(RUN)
    assert not _errors(messages)
    assert {m["msg_type"] for m in messages} <= {"status", "execute_input"}


def test_a_click_calls_cancel_once_and_reports_what_it_raises(start_kernel):
    code = """
from nbqueue.progress.widget import _cancel_button

calls, warned = [], []
def cancel():
    calls.append(1)
    raise ValueError("not now")

button = _cancel_button(cancel, warned.append)
button.click()
print(len(calls), button.disabled, warned)
assert getattr(button.comm, "_reply_subshell_for", None) is None
"""
    messages = start_kernel().run(code)
    assert not _errors(messages)
    told = "".join(m["content"]["text"] for m in messages if m["msg_type"] == "stream")
    assert told == """1 True ["Cancel failed (ValueError('not now'))"]\n"""


@pytest.mark.soak
def test_nbval_accepts_a_notebook_whose_file_holds_the_settled_card(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(RUN + "\nprint('the end')")])
    env = {**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path)}
    NotebookClient(notebook, kernel_name="python3").execute(env=env, cwd=str(tmp_path))
    _, card, end = notebook.cells[0].outputs
    assert "200/200 done" in card["data"]["text/plain"]
    assert end["text"] == "the end\n"
    nbformat.write(notebook, tmp_path / "saved.ipynb")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, "--nbval"]
    command += ["--nbval-current-env", "--nbval-sanitize-with", str(ROOT / "tests/nbval.cfg")]
    checked = subprocess.run([*command, "saved.ipynb"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_a_kernel_that_is_shut_down_with_an_open_view_ends_at_once_and_quietly(start_kernel, capfd):
    kernel = start_kernel()
    kernel.run(RUN.replace("tally.finish()\nassert handle.close(10)", ""))
    kernel.manager.shutdown_kernel()
    assert not kernel.manager.has_kernel
    assert "Traceback" not in capfd.readouterr().err


def _shown(messages):
    return [m["content"] for m in messages if m["msg_type"] == "display_data"]


def _updates(messages, shown):
    """The bundles that took the place of one display, in order."""
    updates = [m["content"] for m in messages if m["msg_type"] == "update_display_data"]
    return [update["data"] for update in updates if update["transient"] == shown["transient"]]


def _errors(messages):
    return [m["content"]["traceback"] for m in messages if m["msg_type"] == "error"]
