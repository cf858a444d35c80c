"""The whole road in a browser: a cell's calls, the card that follows them, the buttons that stop them."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.apart

SETUP = """
import time
from nbqueue import TaskQueue
queue = TaskQueue(workers=2)

@queue.task
def simulate(seed):
    time.sleep(0.05)
    if seed % 40 == 39:
        raise ValueError(f"seed {seed} diverged")
    return seed
simulate.local(1)
"""


def test_results_move_the_card_while_the_cell_waits_for_them(lab):
    lab.open("road.ipynb", SETUP, "batch = simulate.map(range(120))\nlen(batch.results(return_exceptions=True))")
    lab.run_all()
    cell = lab.cell(1)
    bar = cell.locator(".nbqueue-bar-done")
    bar.wait_for(state="attached", timeout=30_000)
    seen: set[str] = set()
    while len(seen) < 3:
        # One look at both: the bar's element is replaced with every update.
        width, prompt = cell.evaluate(
            "c => [c.querySelector('.nbqueue-bar-done')?.style.width, c.querySelector('.jp-InputPrompt').innerText]"
        )
        assert prompt == "[*]:", f"the cell ended after the bar was seen at {seen} only"
        seen |= {width} - {None}
    expect(cell.locator(".nbqueue-card")).to_contain_text("117/120 done", timeout=30_000)
    expect(cell.locator(".nbqueue-card")).to_contain_text("3 failed")
    expect(cell.locator(".jp-OutputArea-output").last).to_have_text("120")


def test_the_cancel_button_ends_a_batch_in_a_waiting_cell(lab):
    wait = "batch = simulate.map(range(10_000))\nbatch.wait()\nprint(batch.progress.cancelled > 0)"
    lab.open("cancel-batch.ipynb", SETUP, wait)
    lab.run_all()
    cell = lab.cell(1)
    button = cell.locator("button.nbqueue-cancel")
    button.wait_for(state="visible", timeout=30_000)
    # The front end asks for a way past the busy cell when the button is shown, and a click that comes before the
    # answer waits for the cell. Nobody clicks that fast.
    expect(cell.locator(".nbqueue-card")).to_contain_text(re.compile(r"[1-9]\d\d/10,000"), timeout=30_000)
    button.click()
    expect(cell.locator(".jp-OutputArea-output").last).to_have_text("True", timeout=20_000)
    expect(cell.locator(".nbqueue-card")).to_contain_text("cancelled")


def test_the_stop_button_cancels_what_the_cell_waits_for_and_the_next_cell_works(lab):
    lab.open(
        "stop.ipynb",
        SETUP,
        "batch = simulate.map(range(10_000))\nbatch.results()",
        "print(simulate(1).result(), queue.status().queued)",
    )
    lab.run_all()
    lab.cell(1).locator(".nbqueue-bar-done").wait_for(state="attached", timeout=30_000)
    lab.page.locator('[data-command="notebook:interrupt-kernel"]').first.click()
    expect(lab.cell(1).locator(".jp-OutputArea-output").last).to_contain_text("KeyboardInterrupt", timeout=20_000)
    expect(lab.cell(1).locator(".nbqueue-card")).to_contain_text("cancelled", timeout=20_000)
    lab.cell(2).click()
    lab.command("notebook:run-cell")
    expect(lab.cell(2).locator(".jp-OutputArea-output").last).to_have_text("1 0", timeout=20_000)


def test_a_failed_task_shows_the_line_of_the_cell_that_raised(lab):
    lab.open("error.ipynb", SETUP, "simulate(39).result()")
    lab.run_all()
    error = lab.cell(1).locator(".jp-OutputArea-output").last
    expect(error).to_contain_text("ValueError: seed 39 diverged", timeout=30_000)
    expect(error).to_contain_text('raise ValueError(f"seed {seed} diverged")')
