"""What a failed task looks like: the line that raised, a note, a table of all failures."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.apart

SETUP = """from nbqueue import TaskQueue
queue = TaskQueue(workers=2, progress=False)

@queue.task
def simulate(seed, steps=1_000):
    limit = steps * 2
    if seed % 40 == 39:
        raise ValueError(f"seed {seed} diverged after {limit} steps")
    return 1 / (seed - 50)

batch = simulate.map(range(120), steps=500)
batch.wait()"""
CELLS = (SETUP, "simulate(39).result()", "batch.results()", "batch.failed", "batch.failed[1].replay()")


LONG = """from nbqueue import TaskQueue
queue = TaskQueue(workers=2, progress=False)

@queue.task
def bad(k, text):
    if k % 2:
        raise ValueError("y" * 300)
    raise KeyError("/home/someone/a/path/that/is/very/long/" * 8, text)

batch = bad.map(range(4), ["z" * 100] * 4)
batch.wait()
batch.failed"""


def _width(of):
    return of.evaluate("each => each.getBoundingClientRect().width")


def test_a_message_of_one_long_word_widened_the_table_of_failures_beyond_its_cell(lab):
    lab.open("long.ipynb", LONG)
    lab.run_all()
    table = lab.cell().locator(".nbqueue-failures table")
    expect(table).to_contain_text("yyyy", timeout=30_000)
    outputs = lab.save("long.ipynb")["cells"][0]["outputs"]

    def check():
        expect(table.locator("tbody tr")).to_have_count(2)
        assert _width(table) <= _width(lab.cell().locator(".nbqueue-failures"))
        for box in table.locator("td div").all():
            assert box.evaluate("each => each.clientWidth >= 100 && each.scrollWidth <= each.clientWidth")

    check()
    # Text that this server has never run, so that it does not trust the outputs.
    lab.write("long-downloaded.ipynb", "# from elsewhere", outputs=outputs)
    lab.open("long-downloaded.ipynb")
    check()


def test_errors_are_shown_with_their_line_a_note_and_as_a_table(lab):
    lab.open("errors.ipynb", *CELLS)
    lab.run_all()
    error = lab.cell(1).locator(".jp-OutputArea-output").last
    expect(error).to_contain_text("ValueError: seed 39 diverged after 2000 steps", timeout=30_000)
    expect(error).to_contain_text('----> 8         raise ValueError(f"seed {seed} diverged after {limit} steps")')
    expect(error).to_contain_text("task simulate with seed=39 · worker ")
    expect(error).not_to_contain_text("nbqueue/")
    # Run-all stops at an error: the others one by one.
    for number in (2, 3, 4):
        lab.wait_until_idle()
        lab.cell(number).click()
        lab.command("notebook:run-cell")
        expect(lab.cell(number).locator(".jp-OutputArea-output").last).to_be_visible(timeout=20_000)
    expect(lab.cell(2)).to_contain_text("4 of 120 items failed: ValueError ×3, ZeroDivisionError ×1")
    table = lab.cell(3).locator(".nbqueue-failures")
    expect(table).to_contain_text("4 of 120 items failed")
    rows = table.locator("tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("3 ×")
    expect(rows.first).to_contain_text("Cell In[1], line 8, in simulate")
    expect(rows.first).to_contain_text("[39], [79], [119]")
    expect(rows.first).to_contain_text("seed=39, steps=500")
    expect(lab.cell(4)).to_contain_text("----> 9     return 1 / (seed - 50)")

    outputs = lab.save("errors.ipynb")["cells"][3]["outputs"]
    # Text that this server has never run, so that it does not trust the outputs.
    lab.write("errors-downloaded.ipynb", "# from elsewhere", outputs=outputs)
    lab.open("errors-downloaded.ipynb")
    stays = lab.cell().locator(".nbqueue-failures")
    expect(stays).to_contain_text("seed=39, steps=500")
    assert stays.locator("td").first.evaluate("cell => getComputedStyle(cell).paddingRight") == "10px"
