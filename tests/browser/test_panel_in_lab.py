"""The panel and a background cell in a browser: what is seen while another cell keeps the kernel busy."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.apart

SETUP = """
import time
from nbqueue import TaskQueue
queue = TaskQueue(workers=2)
%load_ext nbqueue
"""


def test_the_panel_follows_a_cell_that_waits_and_its_button_stops_all(lab):
    wait = "batch = queue.map(time.sleep, [0.2] * 2_000, name='nap')\nbatch.wait()\nprint('over')"
    lab.open("panel.ipynb", SETUP, "queue", wait)
    lab.run_all()
    panel = lab.cell(1).locator(".nbqueue-panel")
    expect(panel).to_contain_text("▸ nap", timeout=30_000)
    expect(panel).to_contain_text(re.compile(r"✓ [1-9]\d* done"), timeout=30_000)
    expect(panel).to_contain_text("MB")
    assert lab.cell(2).locator(".jp-InputPrompt").inner_text() == "[*]:"
    lab.cell(1).locator("button.nbqueue-stop").click()
    expect(lab.cell(2).locator(".jp-OutputArea-output").last).to_have_text("over", timeout=30_000)
    expect(panel).to_contain_text("cancelled", timeout=30_000)
    expect(panel).to_contain_text("0 running", timeout=30_000)


def test_the_panel_restarts_workers(lab):
    lab.open("restart.ipynb", SETUP, "queue.submit(abs, -1).result()\nqueue")
    lab.run_all()
    cell = lab.cell(1)
    rows = cell.locator(".nbqueue-panel tbody tr td:first-child")
    expect(rows).to_have_count(2, timeout=30_000)
    before = {rows.nth(i).get_attribute("title") for i in range(2)}
    cell.locator("button.nbqueue-restart").click()
    for process in before:
        expect(cell.locator(f".nbqueue-panel td[title='{process}']")).to_have_count(0, timeout=30_000)
    expect(rows).to_have_count(2, timeout=30_000)


def test_a_background_cell_prints_and_gives_its_names_back_while_others_run(lab):
    background = """%%background -n fit
import time
for epoch in range(3):
    print("epoch", epoch)
    time.sleep(0.5)
score = epoch * 10
score"""
    busy = "time.sleep(5)\nprint('score' in globals())"
    lab.open("background.ipynb", SETUP, background, busy, "print(score, fit.result())")
    lab.run_all()
    cell = lab.cell(1)
    expect(cell).to_contain_text("epoch 2", timeout=30_000)
    assert lab.cell(2).locator(".jp-InputPrompt").inner_text() == "[*]:"
    # It has come home before the next cell began, and not in the middle of the one that ran.
    expect(lab.cell(2).locator(".jp-OutputArea-output").last).to_have_text("False", timeout=30_000)
    expect(lab.cell(3).locator(".jp-OutputArea-output").last).to_have_text("20 20", timeout=30_000)
    expect(cell).to_contain_text("epoch, score and time are in the notebook now")
    expect(cell.locator(".jp-OutputArea-output").last).to_have_text("20")


def test_a_saved_panel_has_its_numbers_as_text_and_html(lab):
    lab.open("saved-panel.ipynb", SETUP, "queue.submit(abs, -1).result()\nqueue")
    lab.run_all()
    expect(lab.cell(1).locator(".nbqueue-panel")).to_contain_text("1 done", timeout=30_000)
    outputs = lab.save("saved-panel.ipynb")["cells"][1]["outputs"]
    # Its buttons are an output of their own, which is empty without a kernel.
    picture, = [output["data"] for output in outputs if "nbqueue-panel" in "".join(output["data"]["text/html"])]
    assert "1 done" in "".join(picture["text/html"])
    assert "1 done" in "".join(picture["text/plain"])
    assert not any("nbqueue-panel" in str(output) for output in outputs if output["data"] is not picture)
