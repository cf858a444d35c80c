"""The card as a person sees it: it moves while the cell runs, can be cancelled, and stays when saved."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.apart

CELL = """
import time
from nbqueue.progress.tally import Tally
from nbqueue.progress.views import open_view

stop = []
tally = Tally("simulate", 200)
handle = open_view(tally, cancel=lambda: stop.append(True))
for number in range(200):
    time.sleep({pause})
    if stop:
        tally.settle(cancelled=200 - number)
        break
    tally.settle(done=1) if number % 50 else tally.settle(failed=1)
tally.finish()
assert handle.close(10)
"OVER"
"""


def test_the_bar_moves_while_the_cell_runs_and_its_last_state_is_saved(lab):
    lab.open("moves.ipynb", CELL.format(pause=0.02))
    lab.run_all()
    bar = lab.cell().locator(".nbqueue-bar-done")
    bar.wait_for(state="attached", timeout=30_000)
    widths = _widths_while_busy(lab, 3)
    assert widths == sorted(widths, key=lambda width: float(width.rstrip("%")))
    _wait_for_end(lab)

    card = lab.cell().locator(".nbqueue-card")
    assert card.count() == 1
    assert card.get_attribute("data-state") == "settled"
    assert "196/200 done · ✗ 4 failed" in card.inner_text()
    assert lab.cell().locator(".nbqueue-cancel").count() == 0

    outputs = lab.save("moves.ipynb")["cells"][0]["outputs"]
    button, card, _ = outputs
    assert set(button["data"]) == {"text/html", "text/plain"}
    assert "".join(button["data"]["text/html"]) == ""
    assert set(card["data"]) == {"text/html", "text/plain"}
    assert 'data-state="settled"' in "".join(card["data"]["text/html"])
    assert "".join(card["data"]["text/plain"]).startswith("nbqueue: simulate 196/200 done · 4 failed")


def test_the_cancel_button_reaches_a_cell_that_is_busy(lab):
    lab.open("cancel.ipynb", CELL.format(pause=0.1))
    lab.run_all()
    lab.cell().locator(".nbqueue-bar-done").wait_for(state="attached", timeout=30_000)
    button = lab.cell().locator("button.nbqueue-cancel")
    button.wait_for(state="visible", timeout=30_000)
    # The front end asks for a way past the busy cell when the button is shown, and a click that comes before the
    # answer waits for the cell. Nobody clicks that fast.
    expect(lab.cell().locator(".nbqueue-card")).to_contain_text(re.compile(r"[1-9]\d/200"), timeout=30_000)
    assert _prompt(lab) == "[*]:"
    button.click()
    _wait_for_end(lab)
    assert "cancelled" in lab.cell().locator(".nbqueue-card").inner_text()


def test_a_downloaded_notebook_shows_the_card_without_a_kernel_run(lab):
    lab.open("mine.ipynb", CELL.format(pause=0.001))
    lab.run_all()
    _wait_for_end(lab)
    outputs = lab.save("mine.ipynb")["cells"][0]["outputs"]
    # Text that this server has never run, so that it does not trust the outputs.
    lab.write("downloaded.ipynb", "# from elsewhere", outputs=outputs)
    lab.open("downloaded.ipynb")
    card = lab.cell().locator(".nbqueue-card")
    assert "196/200 done · ✗ 4 failed" in card.inner_text()
    track = lab.cell().locator(".nbqueue-bar").bounding_box()
    done = lab.cell().locator(".nbqueue-bar-done").bounding_box()
    assert done["width"] / track["width"] > 0.95
    assert done["height"] > 5


QUEUE = """
import os, time
from nbqueue import TaskQueue, track
queue = TaskQueue(workers=2)

@queue.task
def train(seed):
    for epoch in track(range(1000), text="epochs"):
        time.sleep(0.02)

@queue.task
def slow(number):
    time.sleep(0.2)

@queue.task
def tiny(number):
    return number
slow.local(0)
"""


def test_a_card_shows_how_far_running_tasks_are_also_where_it_is_displayed_again(lab):
    cells = ["batch = train.map(range(2))", "other = slow.map(range(1000))", "batch", "batch.cancel()"]
    lab.open("lanes.ipynb", QUEUE, *cells)
    for number in range(4):
        lab.run(number)
    first, second, again = (lab.cell(number).locator(".nbqueue-card") for number in (1, 2, 3))
    expect(first.locator(".nbqueue-lane")).to_have_count(2, timeout=30_000)
    expect(first).to_contain_text(re.compile(r"train\[0\].*\d/1,000 · epochs.*train\[1\]"))
    # Each in its own cell, both alive, while no cell runs.
    expect(second).to_contain_text("slow")
    expect(again.locator(".nbqueue-lane")).to_have_count(2)
    for card in (first, again):
        before = card.inner_text()
        expect(card).not_to_have_text(before, use_inner_text=True)
    for number in (1, 3):
        expect(lab.cell(number).locator("button.nbqueue-cancel")).to_be_visible()
    lab.run(4)
    for card in (first, again):
        expect(card).to_contain_text("2 cancelled", timeout=30_000)
        expect(card.locator(".nbqueue-lane")).to_have_count(0)
    for number in (1, 3):
        expect(lab.cell(number).locator("button.nbqueue-cancel")).to_have_count(0)
    expect(second).to_have_attribute("data-state", "live")


RELOADED = """
import time
from nbqueue import TaskQueue

queue = TaskQueue(workers=2)
batch = queue.map(lambda number: time.sleep(0.1), range(2000), chunksize=1)
"""


def test_after_a_reload_of_the_page_a_card_is_live_where_it_is_shown_again(lab):
    """The one that is restored from the file stands still: no update reaches it. Its button works all the same."""
    lab.open("reloaded.ipynb", RELOADED, "batch")
    lab.run(0)
    lab.cell().locator(".nbqueue-cancel").wait_for(timeout=30_000)
    lab.save("reloaded.ipynb")
    lab.page.reload()
    lab.page.locator(".jp-Notebook .jp-CodeCell").first.click(timeout=60_000)
    old = lab.cell().locator(".nbqueue-cancel")
    old.wait_for(timeout=30_000)

    lab.run(1)
    text = lab.cell(1).locator(".nbqueue-text")
    text.wait_for(timeout=30_000)
    seen = text.inner_text()
    expect(text).not_to_have_text(seen, timeout=30_000)
    expect(lab.cell(1).locator(".nbqueue-cancel")).to_be_visible()
    old.click()
    expect(lab.cell(1).locator(".nbqueue-card")).to_have_attribute("data-state", "settled", timeout=30_000)
    expect(text).to_contain_text("cancelled")


def test_ten_thousand_fast_tasks_neither_flood_the_page_nor_lose_the_last_state(lab):
    lab.open("flood.ipynb", QUEUE, "tiny.options(chunksize=1).map(range(10_000)).wait()\nprint('the', 'end')")
    lab.run_all()
    expect(lab.cell(1)).to_contain_text("the end", timeout=60_000)
    expect(lab.cell(1).locator(".nbqueue-card")).to_contain_text("✓ 10,000/10,000 done")
    assert "rate exceeded" not in lab.page.content()


def test_the_card_of_a_killed_kernel_shows_its_last_state_trusted_or_not(lab):
    lab.open("killed.ipynb", QUEUE, "batch = slow.map(range(1000))\nbatch.wait()", "print('pid', os.getpid())")
    lab.run(0)
    lab.run(2)
    expect(lab.cell(2)).to_contain_text(re.compile(r"pid \d+"), timeout=30_000)
    pid = int(re.search(r"pid (\d+)", lab.cell(2).locator(".jp-OutputArea").inner_text())[1])
    lab.run(1)
    lab.cell(1).locator("button.nbqueue-cancel").wait_for(timeout=30_000)
    expect(lab.cell(1).locator(".nbqueue-card")).to_contain_text(re.compile(r"[1-9]\d*/1,000 done"))
    saved = lab.save("killed.ipynb")
    os.kill(pid, signal.SIGKILL)
    outputs = saved["cells"][1]["outputs"]
    assert "application/vnd.jupyter.widget-view+json" in outputs[0]["data"], "a button was saved"
    done = re.search(r"\S+/1,000 done", "".join(outputs[1]["data"]["text/plain"]))[0]

    lab.open("killed.ipynb")
    lab.page.locator(".jp-OutputArea-output.jupyter-widgets").wait_for(state="attached", timeout=30_000)
    card = lab.cell(1).locator(".nbqueue-card")
    expect(card).to_contain_text(done)
    assert card.get_attribute("data-state") == "live"
    # What Lab says of the button is in the page, and not to be seen.
    expect(lab.page.get_by_text("model not found")).to_be_hidden(timeout=30_000)

    lab.write("stranger.ipynb", "# from elsewhere", outputs=outputs)
    lab.open("stranger.ipynb")
    expect(lab.cell().locator(".nbqueue-card")).to_contain_text(done)
    assert "model" not in lab.cell().inner_text()
    assert ".jp-" not in lab.cell().inner_text()


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_all_of_a_card_can_be_read_in_both_themes(lab, theme):
    lab.open(f"{theme}.ipynb", CELL.format(pause=0.001))
    lab.use_theme(theme)
    lab.run_all()
    _wait_for_end(lab)
    contrasts = lab.cell().evaluate(CONTRASTS)
    assert {"nbqueue-label", "nbqueue-done", "nbqueue-failed", "nbqueue-time"} <= set(contrasts)
    assert min(contrasts.values()) > 3, contrasts
    lab.use_theme("JupyterLab Light")


# Of each text of the card against the page behind it, by the formula of WCAG.
CONTRASTS = """cell => {
    const rgba = text => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a] };
    const over = ([r, g, b, a], back) => [r, g, b].map((value, i) => value * a + back[i] * (1 - a));
    const light = rgb => rgb.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    let page = cell;
    while (rgba(getComputedStyle(page).backgroundColor)[3] < 1) page = page.parentElement;
    const back = rgba(getComputedStyle(page).backgroundColor);
    const found = {};
    for (const part of cell.querySelectorAll('.nbqueue-label, .nbqueue-text > span > span')) {
        const [a, b] = [light(over(rgba(getComputedStyle(part).color), back)), light(back.slice(0, 3))];
        found[part.className] = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }
    return found;
}"""


def _widths_while_busy(lab, wanted: int) -> list[str]:
    """Distinct widths of the bar in the order seen, each read together with a busy prompt."""
    widths: list[str] = []
    deadline = time.monotonic() + 20
    while len(widths) < wanted:
        assert time.monotonic() < deadline, f"the bar did not move: {widths}"
        # One read: between two, the cell could end or the widget draw anew.
        width, prompt = lab.cell().evaluate(
            """cell => [cell.querySelector('.nbqueue-bar-done')?.style.width,
                        cell.querySelector('.jp-InputPrompt').innerText]"""
        )
        if width and prompt == "[*]:" and width not in widths:
            widths.append(width)
    return widths


def _prompt(lab) -> str:
    return lab.cell().locator(".jp-InputPrompt").inner_text()


def _wait_for_end(lab) -> None:
    lab.cell().locator(".jp-OutputArea-executeResult", has_text="OVER").wait_for(timeout=30_000)
