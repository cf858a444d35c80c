"""A script on a terminal: what its tasks print and the bars share one screen."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from screen import read_all, screen_of

pytestmark = pytest.mark.apart

SCRIPT = """
import sys, time
from nbqueue import TaskQueue, track

queue = TaskQueue(workers=2)

@queue.task
def work(x):
    print("begins", x)
    for step in track(range(6), text="steps"):
        time.sleep(0.25)
        print("trouble", x, step, file=sys.stderr)
    print("did", x)
    return x

batch = work.map(range(4))
batch.results()
for future in batch.futures:
    assert future.stdout.splitlines() == [f"begins {future.result()}", f"did {future.result()}"]
"""


def test_what_tasks_print_was_lost_below_the_live_bar(tmp_path):
    screen = screen_of(_on_terminal(tmp_path, SCRIPT)[0])
    for x in range(4):
        wanted = [f"begins {x}", *(f"trouble {x} {step}" for step in range(6)), f"did {x}"]
        out = [line for line in screen if line in (f"begins {x}", f"did {x}")]
        assert out == [f"begins {x}", f"did {x}"]
        assert sorted(line for line in screen if line in wanted) == sorted(wanted), "each once, on a line of its own"
        assert [line for line in screen if line.startswith(f"trouble {x}")] == wanted[1:-1]
    bars = [line for line in screen if "━" in line]
    assert len(bars) == 1, "no stale copies"
    assert "✓ 4/4 done" in bars[0]
    assert len(screen) == 4 * 8 + 1


@pytest.mark.parametrize("progress", ["1", "0"])
def test_a_pipe_gets_what_tasks_print_untouched_while_the_bar_is_on_the_terminal(tmp_path, progress):
    seen, out = _on_terminal(tmp_path, SCRIPT, stdout=subprocess.PIPE, NBQUEUE_PROGRESS=progress)
    assert sorted(out.decode().splitlines()) == sorted(f"{word} {x}" for x in range(4) for word in ("begins", "did"))
    screen = screen_of(seen)
    assert not any("did" in line for line in screen)
    assert sum(line.startswith("trouble") for line in screen) == 24
    assert sum("━" in line for line in screen) == int(progress)


def test_a_line_that_does_not_end_waits_for_the_bar_to_go(tmp_path):
    script = """
    import time
    from nbqueue import TaskQueue

    queue = TaskQueue(workers=1)

    @queue.task
    def work(x):
        for _ in range(4):
            print(".", end="", flush=True)
            time.sleep(0.4)

    for _ in range(2):
        work.map(range(1)).results()
        time.sleep(0.3)
    """
    screen = screen_of(_on_terminal(tmp_path, textwrap.dedent(script))[0])
    assert [line for line in screen if set(line) == {"."}] == ["....", "...."]
    assert sum("━" in line for line in screen) == 2


def test_what_was_printed_last_is_seen_though_the_script_ends_at_once(tmp_path):
    script = """
    from nbqueue import TaskQueue

    with TaskQueue(workers=1) as queue:
        queue.submit(print, "x\\n" * 200_000 + " the end")
    """
    seen, _ = _on_terminal(tmp_path, textwrap.dedent(script))
    assert seen.count("x") == 200_000
    assert "the end" in seen


def _on_terminal(folder: Path, script: str, stdout: int | None = None, **environ: str) -> tuple[str, bytes]:
    """What a script writes to its terminal, and to its stdout where that is a pipe."""
    file = folder / "script.py"
    file.write_text(script)
    screen, terminal = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "PYTHONIOENCODING": "utf-8", **environ}
    out = terminal if stdout is None else stdout
    child = subprocess.Popen([sys.executable, str(file)], stdin=terminal, stdout=out, stderr=terminal, env=env)
    os.close(terminal)
    seen = read_all(screen)
    piped = b"" if child.stdout is None else child.communicate()[0]
    assert child.wait(timeout=10) == 0, seen.decode()
    return seen.decode(), piped
