"""A real JupyterLab in a real browser, offline.

Without a Chromium these tests are skipped, but never in CI.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import free_port

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = os.environ.get("NBQUEUE_TEST_CHROMIUM", "/usr/bin/chromium")
# No sandbox: CI runs as root in a container. The rest keeps Chromium from looking for the network.
CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Every name resolves to nothing, except this machine.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]

KERNEL_IS_IDLE = """() => {
    const kernel = window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel;
    return !!kernel && kernel.connectionStatus === 'connected' && kernel.status === 'idle';
}"""


class Lab:
    """A running JupyterLab, `folder` its root, with one page of a browser."""

    def __init__(self, url: str, token: str, folder: Path, page: Any) -> None:
        self.url = url
        self.token = token
        self.folder = folder
        self.page = page

    def open(self, name: str, *cells: str) -> None:
        """Write a notebook of these cells (none: take the file as it is) and open it, its kernel ready."""
        if cells:
            self.write(name, *cells)
        self.page.goto(f"{self.url}/lab/tree/{name}?token={self.token}&reset")
        # The click gives the notebook the focus, so that it is the shell's current widget.
        self.page.locator(".jp-Notebook .jp-CodeCell").first.click(timeout=60_000)
        try:
            self.wait_until_idle()
        except Exception as error:
            log = (self.folder.parent / "log").read_text()
            raise AssertionError(f"no kernel within a minute; the end of JupyterLab's log:\n{log[-5000:]}") from error

    def write(self, name: str, *cells: str, outputs: list[dict[str, Any]] | None = None) -> None:
        """Write a notebook that nobody has run and nobody trusts."""
        notebook = {
            "cells": [
                {
                    "cell_type": "code",
                    "id": f"cell-{number}",
                    "execution_count": None,
                    "metadata": {},
                    "outputs": outputs or [],
                    "source": source,
                }
                for number, source in enumerate(cells)
            ],
            "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        (self.folder / name).write_text(json.dumps(notebook))

    def run_all(self) -> None:
        """Start to run all cells; returns at once."""
        # The promise must not be returned: the page would be waited for until the last cell is over.
        self.command("notebook:run-all-cells")
        with contextlib.suppress(Exception):
            self.page.wait_for_function(
                "() => document.querySelector('.jp-InputPrompt').innerText !== '[ ]:'", timeout=5_000
            )
            return
        self.command("notebook:run-all-cells")  # seen once: the first one was swallowed by a new kernel

    def wait_until_idle(self) -> None:
        """Until the kernel has done everything: what it is asked for while it tells of an error, it drops."""
        self.page.wait_for_function(KERNEL_IS_IDLE, timeout=60_000)

    def run(self, number: int) -> None:
        """Start to run one cell; returns at once."""
        self.cell(number).locator(".jp-InputArea-editor").click()
        self.command("notebook:run-cell")

    def command(self, name: str, **arguments: Any) -> None:
        call = "([name, arguments]) => { void window.jupyterapp.commands.execute(name, arguments) }"
        self.page.evaluate(call, [name, arguments])

    def use_theme(self, name: str) -> None:
        """``JupyterLab Light`` or ``JupyterLab Dark``; the server remembers it for the next page."""
        self.command("apputils:change-theme", theme=name)
        self.page.wait_for_function("name => document.body.dataset.jpThemeName === name", arg=name)

    def cell(self, number: int = 0) -> Any:
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(number)

    def save(self, name: str) -> dict[str, Any]:
        """Save the notebook; what is in the file afterwards."""
        self.page.evaluate("async () => { await window.jupyterapp.shell.currentWidget.context.save() }")
        return json.loads((self.folder / name).read_text())


@pytest.fixture(scope="session")
def chromium() -> str:
    if not Path(CHROMIUM).exists():
        reason = f"no browser at {CHROMIUM}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return CHROMIUM


@pytest.fixture(scope="session")
def _server(tmp_path_factory: pytest.TempPathFactory, chromium: str) -> Iterator[tuple[str, str, Path]]:
    with run_lab(tmp_path_factory.mktemp("lab")) as server:
        yield server


@contextlib.contextmanager
def run_lab(home: Path) -> Iterator[tuple[str, str, Path]]:
    """A JupyterLab whose files all lie in `home`: its URL, its token, its notebooks' folder."""
    folder, settings = home / "notebooks", home / "settings"
    folder.mkdir()
    _setting(settings, "apputils-extension/notification", {"fetchNews": "false", "checkForUpdates": False})
    # Cells that are out of sight stay in the page.
    _setting(settings, "notebook-extension/tracker", {"windowingMode": "none"})
    token, port = secrets.token_hex(16), free_port()
    env = {**os.environ, **{f"JUPYTER_{name}": str(home / name.lower()) for name in ("CONFIG_DIR", "DATA_DIR")}}
    # Kernels speak over sockets there, whose paths must be short: see `start_kernel`.
    runtime = tempfile.mkdtemp(prefix="nbqj-", dir="/tmp")
    env["JUPYTER_RUNTIME_DIR"] = runtime
    env |= {"IPYTHONDIR": str(home / "ipython"), "PYTHONPATH": str(ROOT)}
    env.pop("NBQUEUE_PROGRESS", None)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
    command += [f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"]
    command += [f"--ServerApp.root_dir={folder}", f"--LabApp.user_settings_dir={settings}"]
    command += [f"--LabApp.workspaces_dir={home / 'workspaces'}", "--LabApp.expose_app_in_browser=True"]
    command += ["--KernelManager.transport=ipc"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        _until(lambda: _answers(f"{url}/api/status?token={token}"), server, home / "log")
        yield url, token, folder
    finally:
        server.send_signal(signal.SIGTERM)  # ends its kernels too
        server.wait(timeout=30)
        shutil.rmtree(runtime)


@pytest.fixture(scope="module")
def _open_page(
    _server: tuple[str, str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Lab]]:
    # Not longer than for a file: while it runs there is a running event loop in this thread.
    with pages(_server, tmp_path_factory.mktemp("profile")) as open_page:
        yield open_page


@contextlib.contextmanager
def pages(server: tuple[str, str, Path], profile: Path, **options: Any) -> Iterator[Callable[[], Lab]]:
    """Pages of a running JupyterLab in one browser, which has seen nothing before the first.

    They share what the browser has loaded and compiled, which is most of a page's time.
    """
    from playwright.sync_api import sync_playwright

    url, token, folder = server
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            str(profile), executable_path=CHROMIUM, headless=True, args=CHROMIUM_ARGS, **options
        )
        yield lambda: Lab(url, token, folder, browser.new_page())
        browser.close()


@pytest.fixture
def lab(_open_page: Callable[[], Lab], _server: tuple[str, str, Path]) -> Iterator[Lab]:
    """A JupyterLab with a page of its own; its kernels end with it."""
    lab = _open_page()
    yield lab
    lab.page.close()
    _shut_down_kernels(lab.url, lab.token)


def _setting(folder: Path, name: str, value: dict[str, Any]) -> None:
    path = folder / "@jupyterlab" / f"{name}.jupyterlab-settings"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _until(ready: Callable[[], bool], server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        assert server.poll() is None, f"JupyterLab ended:\n{log.read_text()}"
        assert time.monotonic() < deadline, f"JupyterLab did not answer:\n{log.read_text()}"
        time.sleep(0.05)


def _shut_down_kernels(url: str, token: str) -> None:
    def call(path: str, method: str = "GET") -> bytes:
        request = urllib.request.Request(
            f"{url}/api/{path}", method=method, headers={"Authorization": f"token {token}"}
        )
        with urllib.request.urlopen(request, timeout=20) as reply:
            return bytes(reply.read())

    for session in json.loads(call("sessions")):
        call(f"sessions/{session['id']}", "DELETE")
