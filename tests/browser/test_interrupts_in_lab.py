"""■ and several cells in a browser: each cell keeps its own card, and what was interrupted says what became of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.apart

SETUP = """
import asyncio, time
from pathlib import Path
from nbqueue import TaskQueue
queue = TaskQueue(workers=2)

@queue.task(chunksize=1)
def simulate(seed):
    time.sleep(0.05)
    return seed

@queue.task
def gated(name):
    while not Path(name).exists():
        time.sleep(0.01)
    return name
queue.run(2)
"""


def test_the_stop_button_in_cells_that_await(lab):
    lab.open(
        "awaiting.ipynb",
        SETUP,
        "batch = simulate.map(range(10_000))\nvalues = await batch",
        "calls = [gated('never') for _ in range(4)]\nprint('called')\nvalues = await asyncio.gather(*calls)",
        "print(simulate(1).result(), queue.status().queued)",
    )
    lab.run(0)
    expect(lab.cell(0).locator(".jp-InputPrompt")).to_have_text("[1]:", timeout=30_000)
    lab.run(1)
    lab.cell(1).locator(".nbqueue-bar-done").wait_for(state="attached", timeout=30_000)
    stop = lab.page.locator('[data-command="notebook:interrupt-kernel"]').first
    stop.click()
    error = lab.cell(1).locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").last
    expect(error).to_contain_text("KeyboardInterrupt: `simulate` was cancelled", timeout=20_000)
    expect(error).to_contain_text("values = await batch")
    expect(error).not_to_contain_text("asyncio/")
    expect(lab.cell(1).locator(".nbqueue-card").first).to_contain_text("cancelled", timeout=20_000)

    # What is sent before the interrupted cell has ended is dropped by the kernel.
    expect(lab.cell(1).locator(".jp-InputPrompt")).to_have_text("[2]:")
    lab.run(2)
    expect(lab.cell(2).locator(".jp-OutputArea-output", has_text="called")).to_be_visible(timeout=30_000)
    stop.click()
    error = lab.cell(2).locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").last
    expect(error).to_contain_text("KeyboardInterrupt: 4 calls were cancelled.", timeout=20_000)
    expect(lab.cell(2).locator(".jp-InputPrompt")).to_have_text("[3]:")
    lab.run(3)
    expect(lab.cell(3).locator(".jp-OutputArea-output").last).to_have_text("1 0", timeout=20_000)


def test_detached_work_goes_on_below_its_interrupted_cell(lab):
    lab.open(
        "detached.ipynb",
        SETUP,
        "batch = gated.options(on_interrupt='detach').map(['open-detached'] * 3)\nbatch.results()",
        "Path('open-detached').touch()\nbatch.results()",
    )
    lab.run(0)
    expect(lab.cell(0).locator(".jp-InputPrompt")).to_have_text("[1]:", timeout=30_000)
    lab.run(1)
    card = lab.cell(1).locator(".nbqueue-card").first
    expect(card).to_contain_text("2 running", timeout=30_000)
    lab.page.locator('[data-command="notebook:interrupt-kernel"]').first.click()
    error = lab.cell(1).locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").last
    expect(error).to_contain_text("`gated` goes on, 0 of 3 items had ended. Ask for its results()", timeout=20_000)
    expect(lab.cell(1).locator(".jp-InputPrompt")).to_have_text("[2]:")
    expect(card).to_contain_text("2 running")
    lab.run(2)
    expect(lab.cell(2).locator(".jp-OutputArea-executeResult")).to_contain_text("open-detached", timeout=20_000)
    expect(card).to_contain_text("3/3 done", timeout=20_000)
    Path(lab.folder, "open-detached").unlink()


def test_two_cells_at_once_have_a_card_each(lab):
    lab.open(
        "two.ipynb",
        SETUP,
        "first = gated.options(name='first').map(['open-first'] * 2)",
        "second = simulate.options(name='second').map(range(20))\nprint(len(second.results(timeout=60)))",
    )
    lab.run(0)
    expect(lab.cell(0).locator(".jp-InputPrompt")).to_have_text("[1]:", timeout=30_000)
    lab.run(1)
    expect(lab.cell(1).locator(".nbqueue-card").first).to_contain_text("first", timeout=30_000)
    expect(lab.cell(1).locator(".nbqueue-card").first).to_contain_text("2 running", timeout=30_000)
    lab.run(2)
    expect(lab.cell(2).locator(".nbqueue-card").first).to_contain_text("second", timeout=30_000)
    expect(lab.cell(1).locator(".nbqueue-card").first).to_contain_text("0/2 done")
    (lab.folder / "open-first").touch()
    expect(lab.cell(1).locator(".nbqueue-card").first).to_contain_text("2/2 done", timeout=20_000)
    expect(lab.cell(2).locator(".nbqueue-card").first).to_contain_text("20/20 done", timeout=20_000)
    expect(lab.cell(1).locator(".nbqueue-card")).to_have_count(1)
    expect(lab.cell(2).locator(".nbqueue-card")).to_have_count(1)
    (lab.folder / "open-first").unlink()


def test_a_saved_notebook_is_read_alike_trusted_and_downloaded(lab):
    lab.open("kept.ipynb", SETUP, "batch = simulate.options(name='kept').map(range(8))\nbatch.results()")
    lab.run_all()
    expect(lab.cell(1).locator(".nbqueue-card").first).to_contain_text("8/8 done", timeout=30_000)
    expect(lab.cell(1).locator(".jp-OutputArea-executeResult")).to_be_visible(timeout=20_000)
    saved = lab.save("kept.ipynb")
    lab.page.reload()
    lab.open("kept.ipynb")
    # Trusted, since it was run here.
    expect(lab.cell(1).locator(".nbqueue-card").first).to_contain_text("8/8 done", timeout=30_000)
    expect(lab.cell(1)).not_to_contain_text("model not found")
    lab.write("kept-elsewhere.ipynb", "# from elsewhere", outputs=saved["cells"][1]["outputs"])
    lab.open("kept-elsewhere.ipynb")
    expect(lab.cell().locator(".nbqueue-card").first).to_contain_text("8/8 done", timeout=30_000)
    expect(lab.cell()).not_to_contain_text("model not found")
