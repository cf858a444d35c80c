"""The cards of batches and calls in a real kernel: displayed again, several at once, and never a flood."""

from __future__ import annotations

import subprocess
import sys
import time

import nbformat
import pytest

SETUP = """
import time
from pathlib import Path
from nbqueue import TaskQueue
queue = TaskQueue(workers=2)

@queue.task
def held(number):
    while not Path("go").exists():
        time.sleep(0.005)
    if number == 13:
        raise ValueError("unlucky")
    return number

@queue.task
def tiny(number):
    return number
"""
# After a moment: so that several pictures are sent meanwhile.
LATER = "\nimport threading\nthreading.Timer({}, Path('go').touch).start()\n"


def test_a_batch_displayed_in_a_later_cell_is_the_same_card_live_in_both(start_kernel):
    kernel = start_kernel()
    kernel.run(SETUP)
    (_, first), (_, last) = _cards(kernel.run("batch = held.map(range(4))")), _cards(kernel.run("batch"))
    assert first["transient"] == last["transient"]
    assert "live" in last["data"]["text/html"]
    messages = kernel.run(LATER.format(1) + "batch.wait()")
    updates = [update for update in _updates(messages) if update["transient"] == first["transient"]]
    assert "4/4 done" in updates[-1]["data"]["text/plain"]
    assert sum("settled" in update["data"]["text/html"] for update in updates) == 1
    # What is over is shown as it stays, with nothing to update and nothing to cancel.
    messages = kernel.run("batch")
    (settled,) = _cards(messages)
    assert "4/4 done" in settled["data"]["text/plain"]
    assert not settled["transient"]
    assert _updates(messages) == []


def test_a_batch_that_is_the_last_line_of_its_own_cell_has_one_card_there(start_kernel):
    kernel = start_kernel()
    kernel.run(SETUP)
    messages = kernel.run("tiny.map(range(4))")
    assert len(_cards(messages)) == 2  # the button's place and the card
    assert not any(m["msg_type"] == "execute_result" for m in messages)
    messages = kernel.run("batch = tiny.map(range(4))\nbatch.wait()\nbatch")
    assert len(_cards(messages)) == 2


def test_batches_of_one_cell_have_a_card_each(start_kernel):
    kernel = start_kernel()
    kernel.run(SETUP)
    messages = kernel.run("a, b = tiny.map(range(4)), tiny.map(range(5))\na.wait(), b.wait()")
    cards = [card for card in _cards(messages) if "nbqueue-card" in card["data"]["text/html"]]
    assert len({card["transient"]["display_id"] for card in cards}) == 2
    last = {update["transient"]["display_id"]: update["data"]["text/plain"] for update in _updates(messages)}
    assert [last[card["transient"]["display_id"]].split(" done")[0] for card in cards] == [
        "nbqueue: tiny 4/4",
        "nbqueue: tiny 5/5",
    ]


def test_a_displayed_call_tells_its_state_and_how_it_failed(start_kernel, tmp_path):
    kernel = start_kernel()
    kernel.run(SETUP)
    _, card = _cards(kernel.run("future = held(13)\nfuture"))
    assert card["data"]["text/plain"].split()[:2] == ["nbqueue:", "held"]
    (tmp_path / "go").touch()
    settled = kernel.until(lambda m: "settled" in m["content"].get("data", {}).get("text/html", ""))
    assert settled["content"]["transient"] == card["transient"]
    assert "held failed: ValueError: unlucky" in settled["content"]["data"]["text/plain"]


def test_a_called_task_as_the_last_line_is_shown_running(start_kernel, tmp_path):
    kernel = start_kernel()
    kernel.run(SETUP)
    kernel.run("future = held(1)\nfuture")
    kernel.until(lambda m: "held running" in m["content"].get("data", {}).get("text/plain", ""))
    (tmp_path / "go").touch()
    kernel.until(lambda m: "held done" in m["content"].get("data", {}).get("text/plain", ""))


@pytest.mark.apart
def test_ten_thousand_fast_tasks_cost_ten_messages_a_second_and_the_last_state_arrives(start_kernel):
    kernel = start_kernel()
    kernel.run(SETUP + "queue.run(2)")
    began = time.monotonic()
    messages = kernel.run("batch = tiny.options(chunksize=1).map(range(10_000))\nbatch.wait()", timeout=120)
    seconds = time.monotonic() - began
    # And a few for the cell itself, its first card and the button.
    assert len(messages) < 10 * seconds + 20
    plain = [update["data"]["text/plain"] for update in _updates(messages)]
    assert any("10,000/10,000 done" in text for text in plain[-2:])


def test_with_progress_off_a_batch_is_its_repr(start_kernel):
    kernel = start_kernel(NBQUEUE_PROGRESS="0")
    kernel.run(SETUP)
    messages = kernel.run("batch = tiny.map(range(4))\nbatch.wait()\nbatch")
    (result,) = [m["content"]["data"] for m in messages if m["msg_type"] == "execute_result"]
    assert result == {"text/plain": "<Batch tiny 4/4 done>"}
    assert _cards(messages) == []


ASK = """
from nbqueue import TaskQueue
from IPython.core.interactiveshell import InteractiveShell
with TaskQueue(workers=1) as queue:
    batch, future = queue.map(abs, [1]), queue.submit(abs, 1)
    batch.wait(), future.result()
    shell = InteractiveShell.instance()
    for value in (batch, future):
        print(shell.display_formatter.format(value)[0])
"""


def test_on_a_terminal_ipython_shows_the_repr(start_script):
    lines = start_script(ASK, env={"NBQUEUE_PROGRESS": "1"}).end().splitlines()
    assert lines == ["{'text/plain': '<Batch abs 1/1 done>'}", "{'text/plain': '<TaskFuture abs done>'}"]


@pytest.mark.apart
def test_nbconvert_executes_a_notebook_and_keeps_the_settled_card(tmp_path):
    cell = SETUP + "len(tiny.map(range(300)).results())"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)]), tmp_path / "a.ipynb")
    command = [sys.executable, "-m", "nbconvert", "--execute", "--to", "html", "a.ipynb"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "a.html").read_text()
    assert page.count('<div class="nbqueue-card" data-state="settled"') == 1
    assert "300/300 done" in page
    assert 'data-state="live"' not in page


def _cards(messages):
    """What was displayed, but for the place of what tasks print: buttons' places and cards in turn."""
    shown = [m["content"] for m in messages if m["msg_type"] == "display_data"]
    return [content for content in shown if "nbqueue-output" not in content["data"]["text/html"]]


def _updates(messages):
    return [m["content"] for m in messages if m["msg_type"] == "update_display_data"]
