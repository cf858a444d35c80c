"""What the README shows runs as it stands, and its set-up is two commands."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parents[1] / "README.md"

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


def test_the_commands_that_it_shows_exist() -> None:
    from nbqueue.cli import _parser

    shown = [source for _, source in blocks("console", README.read_text("utf-8"))]
    lines = [line.removeprefix("$ ") for source in shown for line in source.splitlines()]
    assert lines
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "nbqueue"
        _parser().parse_args(arguments)


def test_the_files_that_it_links_to_exist() -> None:
    for target in re.findall(r"\]\((?!https:)([^)#]+)\)", README.read_text("utf-8")):
        assert (README.parent / target).exists(), target
