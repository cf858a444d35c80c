"""The notebooks as they are stored: what a reader sees who runs nothing. That they run is seen by nbval."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def shown(cell: dict[str, Any]) -> dict[str, str]:
    """All outputs of a cell by their type, errors and prints as text."""
    found: dict[str, str] = {}
    for output in cell["outputs"]:
        bundle = output.get("data", {"text/plain": output.get("text", output.get("traceback", ""))})
        for kind, data in bundle.items():
            found[kind] = found.get(kind, "") + (data if isinstance(data, str) else "".join(data))
    return found


def test_they_are_numbered_and_listed_in_the_readme_in_reading_order() -> None:
    assert [path.name[:3] for path in NOTEBOOKS] == [f"{number:02}-" for number in range(1, len(NOTEBOOKS) + 1)]
    section = (ROOT / "README.md").read_text("utf-8").split("\n## Notebooks\n")[1].split("\n## ")[0]
    assert re.findall(r"\]\(notebooks/(\S+?)\)", section) == [path.name for path in NOTEBOOKS]


@every_notebook
def test_its_outputs_are_those_of_one_run_from_top_to_bottom(path: Path) -> None:
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    document = json.loads(path.read_text("utf-8"))
    assert document["metadata"].keys() == {"kernelspec"}


@every_notebook
def test_its_cards_are_settled(path: Path) -> None:
    html = "".join(shown(cell).get("text/html", "") for cell in code_cells(path))
    assert set(re.findall(r'class="nbqueue-card" data-state="(\w+)"', html)) <= {"settled"}


@every_notebook
def test_it_ends_with_a_picture(path: Path) -> None:
    last = [cell for cell in code_cells(path) if cell["outputs"]][-1]
    assert "image/png" in shown(last)


@every_notebook
def test_it_tells_nothing_of_the_machine_that_it_was_run_on(path: Path) -> None:
    text = "".join(text for cell in code_cells(path) for kind, text in shown(cell).items() if kind != "image/png")
    assert not re.search(r"/(?:root|home|tmp|Users)/|site-packages", text)
