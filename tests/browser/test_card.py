"""The card as a person sees it: it moves while the cell runs, can be cancelled, and stays when saved."""

from __future__ import annotations

import re
import time

from playwright.sync_api import expect

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
