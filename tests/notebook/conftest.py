"""Kernels of two versions: the one that is installed, and the last one before kernels had subshells.

The old one is left out of ordinary runs: ``pytest tests/notebook -m soak`` asks for it, as .ci/run does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALLED, OLD = version("ipykernel"), "6.31.0"


@pytest.fixture(scope="session")
def old_ipykernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has only the old ipykernel; what that needs is installed anyway."""
    folder = tmp_path_factory.mktemp("ipykernel")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), f"ipykernel=={OLD}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = f"ipykernel {OLD} could not be installed: {done.stderr.strip().splitlines()[-1:]}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(params=[INSTALLED, pytest.param(OLD, marks=pytest.mark.soak)])
def start_version(request: pytest.FixtureRequest, start_kernel: Callable[..., Any]) -> Callable[..., Any]:
    """`start_kernel`, for each of the versions in turn."""

    def start(**environment: str) -> Any:
        if request.param == OLD:
            folder = request.getfixturevalue("old_ipykernel")
            environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT)])
        kernel = start_kernel(**environment)
        shown = kernel.run("import ipykernel; print(ipykernel.__version__)")
        assert request.param in [m["content"]["text"].strip() for m in shown if m["msg_type"] == "stream"]
        return kernel

    return start
