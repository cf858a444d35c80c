"""Each notebook in JupyterLab, from top to bottom, as a reader runs it: long, so asked for with ``-m soak``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))

# All prompts have numbers, and the kernel has nothing more to say.
RAN_TO_THE_END = """() => {
    const prompts = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputPrompt')];
    const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
    return prompts.every(prompt => /[0-9]/.test(prompt.innerText)) && kernel.status === 'idle';
}"""


@pytest.mark.soak
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_without_an_error_and_ends_with_a_picture(lab: Any, path: Path) -> None:
    shutil.copy(path, lab.folder / path.name)
    lab.open(path.name)
    lab.command("notebook:clear-all-cell-outputs")
    lab.run_all()
    lab.page.wait_for_function(RAN_TO_THE_END, timeout=180_000)
    cells = [cell for cell in lab.save(path.name)["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        errors = [output["ename"] for output in cell["outputs"] if output["output_type"] == "error"]
        assert not errors or "raises-exception" in cell["metadata"].get("tags", []), errors
        assert not [output for output in cell["outputs"] if output.get("name") == "stderr"]
    last = [cell for cell in cells if cell["outputs"]][-1]
    assert any("image/png" in output.get("data", {}) for output in last["outputs"])
