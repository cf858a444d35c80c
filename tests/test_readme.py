"""What the README shows runs as it stands, its set-up is two commands, and its links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
CONTRIBUTING = ROOT / ".github" / "CONTRIBUTING.md"

# Blocks that no test here runs, by how they begin, and why.
NOT_RUN = {
    "python3 -m venv .venv && .venv/bin/pip install . &&": "a set-up command: .ci/run runs it, as a reader would",
    "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' &&": "a set-up command, which runs these tests",
    ".venv/bin/pip install -e '.[bench]' &&": "takes an hour; test_bench.py runs it with --quick",
    "%%background -n fit": "a cell: notebook/test_magics.py runs such in a kernel",
    "your notebook's process": "a drawing",
    "NBQUEUE_URL=": "an environment; this and what follows of clusters is looked at by test_recipes.py",
    "#!/bin/bash\n#SBATCH": "needs Slurm",
    "kubectl create secret": "needs Kubernetes",
}

# Runs the blocks one after the other, as cells: in one namespace, `await` allowed.
RUNNER = '''
import ast, asyncio, inspect, json, sys
names = {"__name__": "__main__"}
loop = asyncio.new_event_loop()
for line, source in json.load(open(sys.argv[1])):
    code = compile("\\n" * line + source, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)
    if inspect.iscoroutine(result):
        loop.run_until_complete(result)
print("ran to the end")
'''


def blocks(language: str, text: str) -> list[tuple[int, str]]:
    """The code blocks of one language, each with the number of lines before it."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


def section(title: str) -> str:
    match = re.search(rf"^## {title}\n(.*?)(?=^## )", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert match is not None, f"no section {title!r}"
    return match[1]


def test_the_set_up_is_two_commands_each_in_a_block_of_its_own() -> None:
    commands = [source for _, source in blocks("bash", section("Set-up"))]
    assert commands == [
        "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/nbqueue demo\n",
        "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest\n",
    ]


def test_the_python_blocks_run_in_order_in_a_fresh_process(tmp_path: Path, redis_server: Any) -> None:
    shown = README.read_text("utf-8")
    # The reader has a server at the usual place; here it is at another.
    text = shown.replace("redis.Redis()", f"redis.Redis(unix_socket_path={redis_server.path!r})")
    (tmp_path / "blocks.json").write_text(json.dumps(blocks("python", text)))
    (tmp_path / "runner.py").write_text(RUNNER)
    ran = subprocess.run(
        [sys.executable, "runner.py", "blocks.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.endswith("ran to the end\n")
    # The text that the README prints beside the call.
    assert "537501" in ran.stdout
    assert "537501" in shown


def test_every_block_is_run_or_says_why_not() -> None:
    text = README.read_text("utf-8")
    fences = re.findall(r"^```(\w*)$", text, re.MULTILINE)
    # The last two are test_recipes' own.
    known = {"python", "console", "bash", "text", "yaml", "py"}
    assert set(fences[::2]) <= known, "a block of a kind that no test knows"
    assert set(fences[1::2]) == {""}
    others = [source for language in ("bash", "text") for _, source in blocks(language, text)]
    reasons = {start: [source for source in others if source.startswith(start)] for start in NOT_RUN}
    assert [source for source in others if not any(map(source.startswith, NOT_RUN))] == []
    assert [start for start, found in reasons.items() if len(found) != 1] == []


def console_lines() -> list[list[str]]:
    shown = [source for _, source in blocks("console", README.read_text("utf-8"))]
    return [shlex.split(line.removeprefix("$ ")) for source in shown for line in source.splitlines()]


def test_the_commands_that_it_shows_exist() -> None:
    from nbqueue.cli import _parser

    lines = console_lines()
    assert lines
    for program, *arguments in lines:
        assert program == "nbqueue"
        _parser().parse_args(arguments)


def test_the_commands_for_a_server_run_in_their_order(redis_server: Any, tmp_path: Path) -> None:
    """As they stand, but for the address, and with the question of `purge` answered."""
    env = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path), "COLUMNS": "100"}

    def start(arguments: list[str]) -> subprocess.Popen[str]:
        here = [redis_server.url if "://" in argument else argument for argument in arguments]
        command = [sys.executable, "-m", "nbqueue.cli", *here, *(["--yes"] if here[0] == "purge" else [])]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    serving: list[subprocess.Popen[str]] = []
    try:
        for _, *arguments in console_lines():
            program = start(arguments)
            if arguments[0] == "worker":
                serving.append(program)
                assert program.stdout is not None
                assert program.stdout.readline().startswith("nbqueue: 4 workers serve the queue")
                continue
            out, errors = program.communicate(timeout=30)
            assert program.returncode == 0, errors
            assert out
    finally:
        for program in serving:
            program.terminate()
            assert program.wait(20) == 0
            program.communicate()


def anchor_of(title: str) -> str:
    """What a heading is called in links, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [README, CONTRIBUTING], ids=lambda page: page.name)
def test_the_files_and_sections_that_it_links_to_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\((?!https:)([^)#]+)\)|src(?:set)?=\"([^\"]+)\"", text):
        assert (page.parent / "".join(target)).exists(), target
    titles = {anchor_of(title) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= titles
    used = set(re.findall(r"\]\[([a-z][\w-]*)\]", text))
    assert used == set(re.findall(r"^\[([\w-]+)\]: ", text, re.MULTILINE))


def test_the_long_section_begins_with_links_to_all_of_its_parts() -> None:
    text = section("In detail")
    titles = re.findall(r"^### (.+)$", text, re.MULTILINE)
    assert re.findall(r"\[(.+?)\]\(#", text.partition("\n### ")[0]) == titles


@pytest.mark.parametrize("page", [README, CONTRIBUTING], ids=lambda page: page.name)
def test_what_its_commands_name_is_there(page: Path) -> None:
    commands = re.findall(r"(?:\.venv/bin/|\.ci/)[^`\n]+", page.read_text("utf-8"))
    assert commands
    for command in commands:
        for path in re.findall(r"(?<![\w./-])(?:tests|notebooks|\.ci)(?:/[\w.-]+)*", command):
            assert (ROOT / path).exists(), command
        for module in re.findall(r"python -m (tests[\w.]+)", command):
            path = ROOT / module.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), command


def test_a_newcomer_meets_the_picture_the_set_up_and_the_recipes_first() -> None:
    text = README.read_text("utf-8")
    order = ["```python", ".github/pictures/", "## Set-up", "## Five recipes", "## Beside other libraries"]
    places = [text.index(start) for start in order]
    assert places == sorted(places)
    assert text[: places[1]].count("\n") < 30
    recipes = text[places[3] : places[4]]
    assert re.findall(r"^\*\*(\d)\. ", recipes, re.MULTILINE) == list("12345")


def test_the_table_of_libraries_is_what_the_program_makes() -> None:
    from tests.bench.pains import CASES, NO, PARTLY, PEERS, YES

    shown = [line.strip("|").split("|") for line in section("Beside other libraries").splitlines() if line[:1] == "|"]
    head, _, *rows = [[cell.strip() for cell in line] for line in shown]
    assert [cell.partition("<br>")[0] for cell in head[1:]] == list(PEERS)
    assert [row[0] for row in rows] == [case.__doc__ for case in CASES]
    assert {sign for row in rows for sign in row[1:]} <= {YES, PARTLY, NO}
    assert {row[1] for row in rows} == {YES}, "notebook/test_pains.py sees that it does"


def test_the_program_that_makes_it_runs() -> None:
    command = [sys.executable, "-m", "tests.bench.pains", "--peer", "nbqueue", "--case", "edited_helper"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert made.returncode == 0, made.stderr
    assert made.stdout.endswith("| a helper that is edited is used by the next call | ● |\n")


def test_the_account_that_publishes_is_named_in_two_files_only() -> None:
    """And there as OWNER, so that one command puts it in (CONTRIBUTING, To release)."""
    tracked = subprocess.run(["git", "grep", "-lwI", "OWNER"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode not in (0, 1):
        pytest.skip("no repository here")
    here = Path(__file__).relative_to(ROOT).as_posix()
    assert set(tracked.stdout.split()) <= {"README.md", "pyproject.toml", ".github/CONTRIBUTING.md", here}
