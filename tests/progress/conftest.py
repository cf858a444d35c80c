"""What the progress tests share: waiting for facts, and a kernel that can be asked to run cells."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """``wait_until(predicate, timeout=10)`` returns when the predicate holds and fails when it never does."""

    def wait(predicate: Callable[[], object], timeout: float = 10) -> None:
        deadline = time.monotonic() + timeout
        while not predicate():
            assert time.monotonic() < deadline, "what was waited for did not happen"
            time.sleep(0.005)

    return wait


class Kernel:
    """A real ipykernel; `run` gives every message that it published for a cell."""

    def __init__(self, manager: Any, client: Any) -> None:
        self.manager = manager
        self.client = client

    def run(self, code: str, timeout: float = 60) -> list[dict[str, Any]]:
        """All messages up to the end of the cell, in order."""
        msg_id = self.client.execute(code)
        messages = []
        deadline = time.monotonic() + timeout
        while True:
            message = self.client.get_iopub_msg(timeout=max(0.1, deadline - time.monotonic()))
            messages.append(message)
            if message["parent_header"].get("msg_id") != msg_id or message["msg_type"] != "status":
                continue
            if message["content"]["execution_state"] == "idle":
                return messages

    def until(self, predicate: Callable[[dict[str, Any]], bool], timeout: float = 10) -> dict[str, Any]:
        """The next message for which the predicate holds."""
        deadline = time.monotonic() + timeout
        while True:
            message = self.client.get_iopub_msg(timeout=max(0.1, deadline - time.monotonic()))
            if predicate(message):
                return message


@pytest.fixture
def start_kernel(tmp_path: Path) -> Iterator[Callable[..., Kernel]]:
    """``start_kernel(**environment)``: a kernel that imports this nbqueue; shut down after the test."""
    from jupyter_client.manager import KernelManager

    managers = []

    def start(**environment: str) -> Kernel:
        manager = KernelManager(kernel_name="python3")
        env = {**os.environ, "IPYTHONDIR": str(tmp_path), "PYTHONPATH": str(ROOT), **environment}
        manager.start_kernel(env=env, cwd=str(tmp_path))
        client = manager.client()
        client.start_channels()
        managers.append((manager, client))
        client.wait_for_ready(timeout=60)
        return Kernel(manager, client)

    yield start
    for manager, client in managers:
        client.stop_channels()
        if manager.has_kernel:
            manager.shutdown_kernel(now=True)
