"""Pictures of what a person sees, for the README: ``python -m tests.browser.pictures FOLDER``.

Each is a cell of a real JupyterLab, cut out of its page, in light, dark and narrow.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import expect

from tests.browser.conftest import Lab, pages, run_lab

SETUP = """
import time
from nbqueue import TaskQueue, track
queue = TaskQueue(workers=4)

@queue.task
def simulate(seed):
    time.sleep(0.2)
    if seed % 30 == 29:
        raise ValueError(f"seed {seed} diverged")

@queue.task
def train(seed):
    from tqdm import tqdm
    for epoch in track(range(60), text="epochs"):
        for batch in tqdm(range(20), desc="batches", leave=False):
            time.sleep(0.02)

%load_ext nbqueue
queue.run()
"""

FIT = """%%background -n fit
import time
for epoch in track(range(40), text="epochs"):
    if epoch % 5 == 0:
        print("epoch", epoch, "loss", round(1 / (epoch + 1), 2))
    time.sleep(0.1)
loss = round(1 / (epoch + 1), 3)
loss"""

# What the cell is called, its source, what its output shows when the picture is taken.
CELLS = [
    ("live", "simulate.map(range(240)).results()", "3 failed"),
    ("lanes", "train.map(range(12)).results()", "batches"),
    ("settled", "values = simulate.map(range(60)).results(return_exceptions=True)", "58/60 done · ✗ 2 failed · 3"),
    ("call", "train(1)", "batches"),
    ("background", FIT, "epoch 15"),
    ("panel", "queue", "▸ fit"),
    ("back", "print(fit.result(), loss)", "0.025 0.025"),
    ("history", "queue.history(8)", "%%background"),
]


def take(lab: Lab, folder: Path, suffix: str, theme: str) -> None:
    lab.open(f"pictures{suffix}.ipynb", SETUP, *(source for _, source, _ in CELLS))
    lab.use_theme(theme)
    lab.command("application:toggle-left-area")
    # What belongs to the front end would only distract.
    lab.page.add_style_tag(content=".jp-cell-toolbar, .jp-Collapser { visibility: hidden }")
    lab.run(0)
    expect(lab.cell().locator(".jp-InputPrompt")).to_have_text("[1]:", timeout=60_000)
    for number, (name, _, shown) in enumerate(CELLS, start=1):
        lab.run(number)
        expect(lab.cell(number).locator(".jp-OutputArea")).to_contain_text(shown, timeout=60_000)
        lab.page.wait_for_timeout(700)  # the button has come
        lab.cell(number).screenshot(path=folder / f"{name}{suffix}.png")
        print(folder / f"{name}{suffix}.png")
        if name in ("live", "lanes"):
            lab.command("notebook:interrupt-kernel")
            expect(lab.cell(number).locator(".jp-OutputArea")).to_contain_text("KeyboardInterrupt", timeout=30_000)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    looks: list[tuple[str, str, Any]] = [
        ("", "JupyterLab Light", {"width": 860, "height": 900}),
        ("-dark", "JupyterLab Dark", {"width": 860, "height": 900}),
        ("-narrow", "JupyterLab Light", {"width": 560, "height": 900}),
    ]
    with tempfile.TemporaryDirectory() as home:
        for suffix, theme, size in looks:
            place = Path(home, f"look{suffix}")
            place.mkdir()
            with run_lab(place) as server, pages(server, place / "profile", viewport=size) as open_page:
                take(open_page(), folder, suffix, theme)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
