"""The panel in a real kernel, seen as the messages that a front end would get; and what it costs and leaves."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.apart

ROOT = Path(__file__).resolve().parents[2]

WIDGET = "application/vnd.jupyter.widget-view+json"
SETUP = """
import threading, time
from nbqueue import TaskQueue
queue = TaskQueue(workers=2)
queue.submit(abs, -1).result()
"""
HELD = """
import os
def held(path):
    while not os.path.exists(path):
        time.sleep(0.01)
"""


def displayed(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [m["content"] for m in messages if m["msg_type"] == "display_data"]


def errors(messages: list[dict[str, Any]]) -> list[Any]:
    return [m["content"]["traceback"] for m in messages if m["msg_type"] == "error"]


def printed(messages: list[dict[str, Any]]) -> str:
    assert not errors(messages)
    return "".join(m["content"]["text"] for m in messages if m["msg_type"] == "stream")


def page_of(message: dict[str, Any]) -> str:
    """The HTML that a message shows."""
    return str(message["content"].get("data", {}).get("text/html", ""))


@pytest.fixture
def kernel(start_kernel: Any) -> Any:
    kernel = start_kernel()
    assert not errors(kernel.run(SETUP + HELD))
    return kernel


def test_a_queue_shows_what_runs_where_and_for_how_long_and_follows_it(kernel: Any, tmp_path: Any) -> None:
    go = str(tmp_path / "go")
    messages = kernel.run(f"futures = [queue.submit(held, {go!r}) for _ in range(3)]\nqueue")
    assert not errors(messages)
    shown, buttons = displayed(messages)[-2:]
    assert set(shown["data"]) == {"text/html", "text/plain"}
    assert shown["data"]["text/plain"].startswith("queue 'tasks' on private")
    assert set(buttons["data"]) == {WIDGET, "text/html", "text/plain"}
    assert buttons["data"]["text/plain"] == buttons["data"]["text/html"] == ""
    live = page_of(kernel.until(lambda m: "▸ 2 running" in page_of(m) and "▸ held" in page_of(m), timeout=20))
    assert "1 queued" in live
    assert " MB</td>" in live
    assert "Redis holds" in live
    (tmp_path / "go").touch()
    kernel.until(lambda m: "✓ 4 done" in page_of(m) and "0 running" in page_of(m), timeout=20)


def test_what_it_sends_stays_below_two_messages_a_second(kernel: Any) -> None:
    kernel.run("queue")
    began = time.monotonic()
    messages = kernel.run("queue.map(lambda x: time.sleep(0.01), range(300), progress=False).wait()")
    took = time.monotonic() - began
    pages = [page for page in map(page_of, messages) if "nbqueue-panel" in page]
    assert pages
    assert len(pages) <= 2 * took + 2


def test_a_panel_at_rest_sends_nothing_and_asks_little(kernel: Any) -> None:
    kernel.run("queue")
    code = """
asked = []
status = TaskQueue.status
TaskQueue.status = lambda self: asked.append(1) or status(self)
time.sleep(3)
print(len(asked) <= 2)
"""
    messages = kernel.run(code)
    assert printed(messages) == "True\n"
    assert not [m for m in messages if "nbqueue-panel" in page_of(m)]


def test_after_a_while_of_nothing_it_settles_and_leaves_neither_thread_nor_comm(kernel: Any) -> None:
    code = "import nbqueue.notebook.panel as panels\npanels.LIVE_S = 0.5\nqueue"
    messages = kernel.run(code)
    shown = displayed(messages)[-2]
    opened = {m["content"]["comm_id"] for m in messages if m["msg_type"] == "comm_open"}
    closed = {m["content"]["comm_id"] for m in messages if m["msg_type"] == "comm_close"}
    settled = None
    while settled is None or closed != opened:
        message = kernel.until(lambda m: m["msg_type"] in ("update_display_data", "comm_close"), timeout=20)
        if message["msg_type"] == "comm_close":
            closed.add(message["content"]["comm_id"])
        elif page_of(message):
            settled = message["content"]
    assert settled["transient"]["display_id"] == shown["transient"]["display_id"]
    assert set(settled["data"]) == {"text/html", "text/plain"}
    assert 'data-state="settled"' in settled["data"]["text/html"]
    assert "Show the queue again for a live panel" in settled["data"]["text/plain"]
    code = """
deadline = time.monotonic() + 10
while any(t.name == "nbqueue-panel" for t in threading.enumerate()) and time.monotonic() < deadline:
    time.sleep(0.05)
print([t.name for t in threading.enumerate() if "panel" in t.name])
"""
    assert printed(kernel.run(code)) == "[]\n"


def test_many_panels_share_one_thread_and_the_oldest_settle(kernel: Any) -> None:
    code = """
from IPython.display import display
for _ in range(12):
    display(queue)
import nbqueue.notebook.panel as panels
print(len(panels._panels._panels), sum(t.name == "nbqueue-panel" for t in threading.enumerate()))
"""
    messages = kernel.run(code)
    assert printed(messages) == "8 1\n"
    settled = [m for m in messages if m["msg_type"] == "update_display_data"]
    assert len([m for m in settled if "settled" in page_of(m)]) == 4


def test_the_panel_of_a_cell_that_runs_again_is_settled(kernel: Any) -> None:
    code = """
import nbqueue.notebook.panel as panels
from types import SimpleNamespace
panel = panels.Panel(queue, "cell-1")
panels._panels.add(panel, get_ipython())
panel.appear()
get_ipython().events.trigger("pre_run_cell", SimpleNamespace(cell_id="cell-2"))
before = panel._settled
get_ipython().events.trigger("pre_run_cell", SimpleNamespace(cell_id="cell-1"))
print(before, panel._settled, panels._panels._panels)
"""
    assert printed(kernel.run(code)) == "False True []\n"


def test_the_buttons_stop_all_and_restart_workers_without_waiting(kernel: Any, tmp_path: Any) -> None:
    code = """
import nbqueue.notebook.panel as panels
from IPython.display import display
display(queue)
panel = panels._panels._panels[-1]
row, stop, restart = panel._widgets
futures = [queue.submit(time.sleep, 60) for _ in range(5)]
before = {worker.pid for worker in queue.status().workers}
stop.click()
def wait(ready):
    deadline = time.monotonic() + 20
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.01)
    return ready()
print(wait(lambda: all(f.cancelled() for f in futures)))
restart.click()
print(restart.disabled or not before & {worker.pid for worker in queue.status().workers})
print(wait(lambda: not restart.disabled), restart.description)
print(before & {worker.pid for worker in queue.status().workers})
assert getattr(stop.comm, "_reply_subshell_for", None) is None
"""
    assert printed(kernel.run(code)) == "True\nTrue\nTrue Restart workers\nset()\n"


def test_it_survives_a_server_that_is_away(start_kernel: Any, redis_server: Any) -> None:
    kernel = start_kernel()
    code = f"from nbqueue import TaskQueue\nqueue = TaskQueue({redis_server.url!r})\nqueue"
    messages = kernel.run(code)
    assert "queue.run() starts some" in displayed(messages)[-2]["data"]["text/plain"]
    redis_server.stop()
    kernel.run("import nbqueue.notebook.panel as panels\npanels.REST_S = panels.AWAY_S = 0.2\n"
               "panels._panels._panels[0]._look_at = 0")  # fmt: skip
    kernel.until(lambda m: "Not up to date: No Redis server answers" in page_of(m), timeout=20)
    redis_server.start()
    kernel.until(lambda m: "nbqueue-panel" in page_of(m) and "Not up to date" not in page_of(m), timeout=20)


def test_without_ipywidgets_it_is_plain_html_that_moves(kernel: Any) -> None:
    messages = kernel.run("import sys\nsys.modules['ipywidgets'] = None\nqueue")
    assert not errors(messages)
    shown = displayed(messages)[-1]
    assert set(shown["data"]) == {"text/html", "text/plain"}
    messages = kernel.run("queue.map(time.sleep, [0.3] * 8, progress=False).wait()")
    moved = [m for m in messages if m["msg_type"] == "update_display_data" and "running" in page_of(m)]
    assert moved
    assert moved[0]["content"]["transient"]["display_id"] == shown["transient"]["display_id"]


def test_nbqueue_progress_0_and_other_threads_show_it_as_it_is_now(start_kernel: Any) -> None:
    kernel = start_kernel(NBQUEUE_PROGRESS="0")
    messages = kernel.run(SETUP + "queue")
    (result,) = [m["content"]["data"] for m in messages if m["msg_type"] == "execute_result"]
    assert set(result) == {"text/html", "text/plain"}
    assert "1 done" in result["text/plain"]
    assert not [m for m in messages if m["msg_type"] == "comm_open"]


def test_the_line_magic_shows_the_panel(kernel: Any) -> None:
    messages = kernel.run("%load_ext nbqueue\n%nbqueue queue")
    assert WIDGET in displayed(messages)[-1]["data"]
    assert WIDGET in displayed(kernel.run("%nbqueue"))[-1]["data"]
    assert "`nothing` is no TaskQueue" in "".join(
        m["content"].get("text", "") for m in kernel.run("%nbqueue nothing") if m["msg_type"] == "stream"
    )


def test_a_kernel_that_is_shut_down_with_an_open_panel_settles_it_and_ends_quietly(
    kernel: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = displayed(kernel.run("queue"))[-2]
    kernel.client.shutdown()
    settled = kernel.until(lambda m: m["msg_type"] == "update_display_data", timeout=20)
    assert settled["content"]["transient"]["display_id"] == shown["transient"]["display_id"]
    assert 'data-state="settled"' in page_of(settled)
    kernel.manager.shutdown_kernel()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.soak
def test_nbval_accepts_a_notebook_whose_file_holds_another_moment(tmp_path: Path) -> None:
    cells = ["%load_ext nbqueue", "queue", "%%background -n made\nx = 1", "print(made.result())", "queue.history()"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in [SETUP, *cells]])
    env = {**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path)}
    NotebookClient(notebook, kernel_name="python3").execute(env=env, cwd=str(tmp_path))
    nbformat.write(notebook, tmp_path / "saved.ipynb")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, "--nbval"]
    command += ["--nbval-current-env", "--nbval-sanitize-with", str(ROOT / "tests/nbval.cfg")]
    checked = subprocess.run([*command, "saved.ipynb"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_a_status_shows_as_html(kernel: Any) -> None:
    (result,) = [m["content"]["data"] for m in kernel.run("queue.status()") if m["msg_type"] == "execute_result"]
    assert "<b>tasks</b>" in result["text/html"]
    assert "✓ 1 done" in result["text/html"]
