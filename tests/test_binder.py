"""Binder builds from `binder/` as it is, and its machine (one core, 2 GB) is enough for every notebook."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))

MEMORY_BYTES = 2 * 1024**3


@pytest.fixture(scope="module")
def steps() -> str:
    """The Dockerfile that repo2docker makes of this repository; no Docker is needed for that."""
    app = pytest.importorskip("repo2docker.app").Repo2Docker()
    before = Path.cwd()
    # It looks where it stands.
    os.chdir(ROOT)
    try:
        for kind in app.buildpacks:
            pack = kind(base_image=app.base_image)
            pack.platform = "linux/amd64"
            if pack.detect():
                assert kind.__name__ == "PythonBuildPack"
                return str(pack.render({"NB_UID": "1000", "NB_USER": "jovyan"}))
    finally:
        os.chdir(before)
    pytest.fail("no build pack feels responsible")


def test_server_then_repository_then_packages_then_proof(steps: str) -> None:
    in_order = [
        "apt-get install --yes --no-install-recommends redis-server",
        "COPY --chown=1000:1000 src/ ${REPO_DIR}/",
        'pip install --no-cache-dir -r "binder/requirements.txt"',
        "RUN ./binder/postBuild",
    ]
    places = [steps.find(step) for step in in_order]
    assert -1 not in places
    assert places == sorted(places)


def test_python_is_the_one_that_is_asked_for(steps: str) -> None:
    asked = (ROOT / "binder" / "runtime.txt").read_text().strip().removeprefix("python-")
    assert f"environment.py-{asked}-" in re.sub("-2e|-2d", lambda c: {"-2e": ".", "-2d": "-"}[c[0]], steps)


def test_only_one_folder_is_for_binder() -> None:
    # repo2docker refuses to choose.
    assert not (ROOT / ".binder").exists()


def test_each_badge_opens_a_notebook_that_is_there() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| \[.+?\]\(notebooks/(\S+?)\).*\[open-(\d+)\] \|$", readme, re.MULTILINE)
    address = r"https://mybinder\.org/v2/gh/\w+/nbqueue/main\?urlpath=(\S+)"
    links = dict(re.findall(rf"^\[open-(\d+)\]: {address}$", readme, re.MULTILINE))
    assert [name for name, _ in rows] == NOTEBOOKS
    assert {name: unquote(links[number]) for name, number in rows} == {n: f"lab/tree/notebooks/{n}" for n in NOTEBOOKS}


# The long run: what the Dockerfile says, done by hand, on a machine as small as Binder's


@pytest.fixture
def small_machine(wait_until: Callable[..., Any]) -> Iterator[Callable[[], None]]:
    """What makes a child live on one core with 2 GB: in a memory cgroup where we may make one (both versions), which
    bounds all its processes together; elsewhere by RLIMIT_DATA, which bounds each alone."""
    group = None
    for folder, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max"), ("unified", "memory.max")):
        path = Path("/sys/fs/cgroup", folder, f"nbqueue-{os.getpid()}")
        try:
            path.mkdir()
        except OSError:
            continue
        try:
            (path / limit).write_text(str(MEMORY_BYTES))
        except OSError:
            path.rmdir()
            continue
        group = path
        break
    core = {min(os.sched_getaffinity(0))}

    def enter() -> None:
        os.sched_setaffinity(0, core)
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))
        else:
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))

    yield enter
    if group is not None:
        # Only an empty one can go.
        wait_until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def asked_python() -> str:
    """An interpreter of the version that runtime.txt names, or else this one."""
    named = shutil.which((ROOT / "binder" / "runtime.txt").read_text().strip().replace("-", ""))
    works = named and subprocess.run([named, "--version"], capture_output=True, check=False).returncode == 0
    return named if named and works else sys.executable


@pytest.mark.soak
@pytest.mark.parametrize("shared_memory", ["", "0"], ids=["shared memory", "none, as in a container of 64 MB"])
def test_every_notebook_runs_in_a_fresh_environment_on_one_core_with_2_gb(
    tmp_path_factory: pytest.TempPathFactory, small_machine: Callable[[], None], shared_memory: str
) -> None:
    home = fresh_environment(tmp_path_factory)
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON", "NBQUEUE"))},
        "PATH": f"{home / 'env' / 'bin'}:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(home / "env"),
        "JUPYTER_PLATFORM_DIRS": "1",
        "JUPYTER_DATA_DIR": str(home / "jupyter"),
        "IPYTHONDIR": str(home / "ipython"),
        "CPU_LIMIT": "1.0",
        **({"NBQUEUE_SHARED_MEMORY": shared_memory} if shared_memory else {}),
    }

    def run(*command: str) -> str:
        ran = subprocess.run(
            command,
            cwd=home / "notebooks",
            env=environ,
            preexec_fn=small_machine,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert ran.returncode == 0, f"{' '.join(command)}:\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout

    run("bash", str(ROOT / "binder" / "postBuild"))
    for name in NOTEBOOKS:
        run("jupyter", "execute", name)


COUNT_WORKERS = """
import nbqueue
queue = nbqueue.TaskQueue()
queue.submit(int).result()
print(len(queue.status().workers))
"""


@pytest.mark.parametrize("limit", ["1.0", "1000"])
def test_cpu_limit_bounds_the_workers_and_adds_none(start_script: Callable[..., Any], limit: str) -> None:
    script = start_script(COUNT_WORKERS, env={"CPU_LIMIT": limit})
    assert int(script.end()) == min(int(float(limit)), len(os.sched_getaffinity(0)))


_environments: dict[str, Path] = {}


def fresh_environment(factory: pytest.TempPathFactory) -> Path:
    """A folder with ``env``, made by what the Dockerfile does, and a copy of the notebooks. Made once."""
    if "home" not in _environments:
        home = factory.mktemp("binder")
        # Not where the notebooks run: a directory of that name there would be imported instead of what is installed.
        shutil.copytree(ROOT / "notebooks", home / "notebooks")
        subprocess.run([asked_python(), "-m", "venv", str(home / "env")], check=True)
        pip = [str(home / "env" / "bin" / "pip"), "install", "--quiet", "-r", "binder/requirements.txt"]
        subprocess.run(pip, cwd=ROOT, check=True)
        _environments["home"] = home
    return _environments["home"]
