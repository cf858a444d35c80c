"""Shift-Tab in JupyterLab: a name's signature first, then its docstring, with an example that can be copied."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

SETUP = """
from nbqueue import *
queue = TaskQueue(workers=1)

@queue.task(retries=2)
def simulate(seed, steps=1_000):
    "Simulate a few steps."
    return seed

future = simulate(1)
batch = simulate.map(range(3))
batch.results()
"""

# What stands in the cell → what is read of it.
NAMES = {
    "TaskQueue": ["memory_limit", "Worker processes that the first call starts", ">>> queue = TaskQueue()"],
    "queue.task": ["retries", "How often a call that raised", ">>> @queue.task"],
    "queue.map": ["iterables", "Call any function with the first items", ">>> queue.map(len"],
    "simulate": ["seed, steps=1000", "Simulate a few steps."],
    "simulate.map": ["iterables", "Results that are still arriving", ">>> scale.map"],
    "future.result": ["timeout", "Interrupting the wait cancels the call", ">>> queue.submit(sorted"],
    "batch.results": ["return_exceptions", "All values, in order", ">>> batch.results"],
    "gather": ["futures", "Results of several futures", ">>> gather("],
    "WorkerDied": ["exitcode", "The process that ran the task died"],
}


@pytest.mark.soak
def test_shift_tab_tells_how_a_name_is_used(lab):
    lab.open("tab.ipynb", SETUP, *NAMES)
    lab.run(0)
    expect(lab.cell().locator(".jp-InputPrompt")).to_have_text("[1]:", timeout=60_000)
    for number, words in enumerate(NAMES.values(), start=1):
        lab.cell(number).locator(".jp-InputArea-editor").click()
        lab.page.keyboard.press("End")
        lab.page.keyboard.press("Shift+Tab")
        tooltip = lab.page.locator(".jp-Tooltip")
        for word in words:
            expect(tooltip).to_contain_text(word, timeout=30_000)
        assert "\x1b" not in tooltip.inner_text()
        lab.page.keyboard.press("Escape")
        expect(tooltip).to_have_count(0)
