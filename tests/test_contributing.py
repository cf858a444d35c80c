"""What CONTRIBUTING says of a first change and of tests is true of the code as it is now."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / ".github" / "CONTRIBUTING.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(2))
def test_a_step_of_the_first_change_can_be_made(number: int, tmp_path: Path) -> None:
    """Or it has been made. If this fails, the lines around it have changed: mend the step in CONTRIBUTING."""
    diffs = blocks("diff")
    assert len(diffs) == 2
    if shutil.which("git") is None:
        pytest.skip("git is not here")
    # Elsewhere than in a repository: whatever lies in this clone's index plays no part.
    for name in re.findall(r"^\+\+\+ b/(.+)$", diffs[number], re.MULTILINE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)

    def apply(*how: str) -> str:
        command = ["git", "apply", "--check", *how, "-"]
        done = subprocess.run(command, input=diffs[number], cwd=tmp_path, capture_output=True, text=True, check=False)
        return "" if done.returncode == 0 else done.stderr

    assert not (wrong := apply()) or not apply("--reverse"), wrong


def test_the_example_of_a_test_passes(queue: Any, wait_until: Callable[..., Any], tmp_path: Path) -> None:
    source, = blocks("python")
    names: dict[str, Any] = {"__name__": "__main__", "os": os, "signal": signal}
    exec(source, names)
    names["test_a_killed_worker_costs_one_attempt_not_the_result"](queue, wait_until, tmp_path)


def test_the_fixtures_that_it_names_are_there() -> None:
    section = TEXT.split("\n## How a test is written\n")[1].split("\n## ")[0]
    table = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    defined = "".join(
        (ROOT / "tests" / folder / "conftest.py").read_text("utf-8") for folder in (".", "browser")
    )
    names = set(re.findall(r"`(\w+)(?:\(.*?\))?`", table)) - {"sleep"}
    assert len(names) >= 7
    assert [name for name in names if f"def {name}(" not in defined] == []
