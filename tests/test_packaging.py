"""What is published: wheel, sdist, metadata, and the workflow that tests them elsewhere."""

from __future__ import annotations

import email.message
import email.parser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import nbqueue

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = ROOT / ".github" / "workflows" / "tests.yml"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, made by the build backend that is installed here."""
    folder = tmp_path_factory.mktemp("published")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="module")
def wheel(published: Path) -> zipfile.ZipFile:
    path, = published.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    name, = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return email.parser.Parser().parsestr(wheel.read(name).decode("utf-8"))


def tracked() -> set[str]:
    """The files of this repository, also those that are not committed yet."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip("no repository here")
    return {name for name in found.stdout.splitlines() if (ROOT / name).exists()}


def test_the_wheel_holds_the_package_whole_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    packaged = {name for name in names if ".dist-info/" not in name}
    assert packaged == {name for name in tracked() if name.startswith("nbqueue/")}
    assert "nbqueue/py.typed" in packaged
    assert any(name.endswith(".lua") for name in packaged)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_sdist_holds_all_that_a_clone_does(published: Path) -> None:
    path, = published.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert names == tracked() | {"PKG-INFO"}


def test_its_metadata_say_what_it_is(metadata: email.message.Message) -> None:
    assert metadata["Name"] == "nbqueue"
    assert metadata["Version"] == nbqueue.__version__ == PROJECT["version"]
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["Requires-Python"] == f">={PYTHONS[0]}"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).startswith("# nbqueue\n")
    addresses = dict(entry.split(", ") for entry in metadata.get_all("Project-URL", []))
    assert addresses.keys() == {"Homepage", "Documentation", "Changes", "Issues", "Source"}
    accounts = {address.removeprefix("https://github.com/").partition("/nbqueue")[0] for address in addresses.values()}
    assert len(accounts) == 1
    assert f"/gh/{accounts.pop()}/nbqueue/" in (ROOT / "README.md").read_text("utf-8")


def test_its_classifiers_promise_these_pythons(metadata: email.message.Message) -> None:
    classifiers = metadata.get_all("Classifier", [])
    versions = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", each) for each in classifiers]
    assert [match[1] for match in versions if match] == PYTHONS
    assert "Typing :: Typed" in classifiers
    assert not any("Windows" in each for each in classifiers)


# The workflow, which cannot be run here


@pytest.fixture(scope="module")
def workflow() -> dict[Any, Any]:
    yaml = pytest.importorskip("yaml")
    return dict(yaml.safe_load(WORKFLOW.read_text("utf-8")))


def test_the_workflow_says_that_nobody_has_run_it(workflow: dict[Any, Any]) -> None:
    assert WORKFLOW.read_text("utf-8").startswith("# Never run where the project was made")
    assert all(job["runs-on"] and job["steps"] for job in workflow["jobs"].values())


def test_the_workflow_tries_what_is_promised(workflow: dict[Any, Any]) -> None:
    tried = workflow["jobs"]["tests"]["strategy"]["matrix"]["include"]
    assert sorted({each["python"] for each in tried}) == PYTHONS
    assert {each["os"].split("-")[0] for each in tried} == {"ubuntu", "macos"}
    servers = {re.sub(r"^.*/(\w+) (\d+(?:\.\d+)?).*$", r"\1 \2", each["server"]) for each in tried}
    assert {"redis 6.2", "redis 7.2", "redis 8.0", "valkey 8.1"} <= servers


def test_each_command_of_the_workflow_exists(workflow: dict[Any, Any]) -> None:
    """What it installs, the programs that come with that, and the files that they are given."""
    from nbqueue.cli import _parser

    extras = PROJECT["optional-dependencies"]
    installed = {re.split(r"[\s>=<\[;]", each)[0] for each in extras["test"]} | {"pip"}
    seen = set()
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            for command in step.get("run", "").splitlines():
                words = command.replace("'", "").split()
                if step.get("name") == "Build the server":
                    continue
                if words[:2] == ["python", "-m"]:
                    words = words[2:]
                assert words[0] in installed | set(PROJECT["scripts"]), command
                seen.add(words[0])
                if words[0] == "nbqueue":
                    _parser().parse_args(words[1:])
                for extra in re.findall(r"\.\[(\w+)\]", command):
                    assert extra in extras
                for path in re.findall(r"(?:^|[ =])((?:tests|notebooks)[\w./-]*)", command):
                    assert (ROOT / path).exists(), command
    assert {"pip", "pytest", "nbqueue", "ruff", "mypy", "build"} <= seen


# The long run: as somebody who has only the wheel


@pytest.mark.soak
def test_the_wheel_alone_runs_the_demo_in_a_fresh_environment(tmp_path: Path) -> None:
    ours = ("PYTEST", "PYTHON", "NBQUEUE")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}

    def run(*command: str | Path) -> str:
        ran = subprocess.run(
            list(map(str, command)), cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=600, check=False
        )
        assert ran.returncode == 0, f"{command}:\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout

    # The sdist first, and the wheel from that: what is published.
    run(sys.executable, "-m", "build", "--outdir", tmp_path / "published", ROOT)
    wheel, = (tmp_path / "published").glob("*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "env")
    bin = tmp_path / "env" / "bin"
    run(bin / "pip", "install", "--quiet", wheel)
    shutil.rmtree(tmp_path / "published")
    where = run(bin / "python", "-c", "import nbqueue; print(nbqueue.__version__, nbqueue.__file__)").strip()
    assert where.startswith(f"{nbqueue.__version__} {tmp_path / 'env'}/")
    assert "with the same results" in run(bin / "nbqueue", "demo", "--quick")
    code = "from nbqueue import TaskQueue\nwith TaskQueue() as queue: print(queue.map(abs, [-1, 2]).results())"
    assert run(bin / "python", "-c", code) == "[1, 2]\n"
