"""The card in a real kernel, seen as the messages that a front end would get."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
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
    (shown,) = [m["content"] for m in messages if m["msg_type"] == "display_data"]
    assert set(shown["data"]) == {WIDGET, "text/html", "text/plain"}
    assert shown["data"]["text/plain"].startswith("nbqueue: simulate 0/200 done")

    pictures = _pictures(messages)
    assert len(set(pictures)) >= 3
    # 10 a second in a run of one to a few seconds: never one for each item.
    assert len(pictures) < 100

    (settled,) = [m["content"] for m in messages if m["msg_type"] == "update_display_data"]
    assert settled["transient"]["display_id"] == shown["transient"]["display_id"]
    assert set(settled["data"]) == {"text/html", "text/plain"}
    assert "200/200 done" in settled["data"]["text/plain"]
    assert 'data-state="settled"' in settled["data"]["text/html"]


def test_settling_closes_every_comm_that_the_card_opened(start_kernel):
    messages = start_kernel().run(RUN)
    opened = {m["content"]["comm_id"] for m in messages if m["msg_type"] == "comm_open"}
    closed = {m["content"]["comm_id"] for m in messages if m["msg_type"] == "comm_close"}
    assert opened
    assert opened == closed


def test_a_batch_that_outlives_its_cell_is_settled_later(start_kernel):
    kernel = start_kernel()
    code = RUN.replace("tally.finish()\nassert handle.close(10)", "")
    shown = [m for m in kernel.run(code) if m["msg_type"] == "display_data"]
    assert shown
    kernel.client.execute("tally.finish()")
    settled = kernel.until(lambda m: m["msg_type"] == "update_display_data")
    assert "200/200 done" in settled["content"]["data"]["text/plain"]


def test_without_ipywidgets_the_card_is_plain_html_that_moves(start_kernel):
    messages = start_kernel().run("import sys\nsys.modules['ipywidgets'] = None\n" + RUN)
    assert not _errors(messages)
    (shown,) = [m["content"] for m in messages if m["msg_type"] == "display_data"]
    assert set(shown["data"]) == {"text/html", "text/plain"}
    updates = [m["content"]["data"]["text/plain"] for m in messages if m["msg_type"] == "update_display_data"]
    assert 3 <= len(updates) < 100
    assert "200/200 done" in updates[-1]
    assert not any(m["msg_type"] == "comm_open" for m in messages)


def test_widgets_that_fail_cost_the_button_and_not_the_card(start_kernel):
    broken = "import ipywidgets\nipywidgets.HBox = None\n"
    messages = start_kernel().run(broken + RUN)
    assert not _errors(messages)
    updates = [m["content"]["data"]["text/plain"] for m in messages if m["msg_type"] == "update_display_data"]
    assert "200/200 done" in updates[-1]
    told = "".join(m["content"]["text"] for m in messages if m["msg_type"] == "stream")
    assert told.count("ipywidgets failed") == 1


def test_nbqueue_progress_0_shows_nothing(start_kernel):
    messages = start_kernel(NBQUEUE_PROGRESS="0").run(RUN)
    assert not _errors(messages)
    assert {m["msg_type"] for m in messages} <= {"status", "execute_input"}


def test_a_click_calls_cancel_once_and_reports_what_it_raises(start_kernel):
    code = """
from nbqueue.progress.tally import Tally
from nbqueue.progress.widget import WidgetView

calls, warned = [], []
def cancel():
    calls.append(1)
    raise ValueError("not now")

view = WidgetView(Tally("simulate", 1).snapshot(), cancel, warned.append)
view._button.click()
print(len(calls), view._button.disabled, warned)
assert getattr(view._button.comm, "_reply_subshell_for", None) is None
"""
    messages = start_kernel().run(code)
    assert not _errors(messages)
    told = "".join(m["content"]["text"] for m in messages if m["msg_type"] == "stream")
    assert told == """1 True ["Cancel failed (ValueError('not now'))"]\n"""


def test_nbval_accepts_a_notebook_whose_file_holds_the_settled_card(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(RUN + "\nprint('the end')")])
    env = {**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path)}
    NotebookClient(notebook, kernel_name="python3").execute(env=env, cwd=str(tmp_path))
    card, end = notebook.cells[0].outputs
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


def _pictures(messages):
    return [
        m["content"]["data"]["state"]["value"]
        for m in messages
        if m["msg_type"] == "comm_msg" and "value" in m["content"]["data"].get("state", {})
    ]


def _errors(messages):
    return [m["content"]["traceback"] for m in messages if m["msg_type"] == "error"]
