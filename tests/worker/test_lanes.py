"""`tqdm` in a task: unchanged for the task, a lane for the notebook, nothing on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tqdm", reason="tqdm is not installed")


def _held(go: Path) -> None:
    import time

    while not go.exists():
        time.sleep(0.005)


@pytest.fixture
def go(tmp_path: Path) -> Path:
    return tmp_path / "go"


def _says(batch: Any) -> list[tuple[str, float, float | None]]:
    return [(lane.text, lane.done, lane.total) for lane in batch.progress.lanes]


@pytest.mark.parametrize("module", ["tqdm", "tqdm.auto", "tqdm.notebook", "tqdm.autonotebook"])
def test_a_bar_of_any_of_its_modules_is_a_lane(queue, go, wait_until, module):
    def work(_: int) -> list[int]:
        import importlib

        seen = []
        for number in importlib.import_module(module).tqdm(range(5), desc="steps"):
            seen.append(number)
            if number == 3:
                _held(go)
        return seen

    batch = queue.map(work, [0])
    wait_until(lambda: _says(batch) == [("steps", 3, 5)])
    go.touch()
    assert batch.results(timeout=20) == [[0, 1, 2, 3, 4]]
    assert _says(batch) == []


def test_nested_bars_moved_by_hand_are_lanes_with_their_postfix(queue, go, wait_until):
    def work(_: int) -> None:
        from tqdm import tqdm, trange

        for _epoch in trange(2, desc="epoch"):
            with tqdm(total=10, leave=False) as bar:
                bar.set_postfix(loss=0.5)
                bar.update(4)
                bar.update(3)
                _held(go)

    batch = queue.map(work, [0])
    wait_until(lambda: _says(batch) == [("epoch", 0, 2), ("loss=0.5", 7, 10)])
    go.touch()
    batch.results(timeout=20)


def test_for_the_task_a_bar_is_what_it_always_was(queue, tmp_path):
    def work() -> dict[str, Any]:
        import io
        import threading

        from tqdm import tqdm

        seen: dict[str, Any] = {"n": []}
        bar = tqdm([3, 4, 5])
        for _ in bar:
            seen["n"].append(bar.n)
        seen["end"], seen["total"], seen["length"], seen["text"] = bar.n, bar.total, len(bar), str(bar)[:5]
        own = io.StringIO()
        list(tqdm(range(3), file=own, mininterval=0))
        seen["own"] = "3/3" in own.getvalue()
        seen["disabled"] = list(tqdm(range(3), disable=True))
        seen["unknown"] = None
        try:
            tqdm(range(3), no_such_argument=1)
        except KeyError as error:
            seen["unknown"] = type(error).__name__
        seen["threads"] = [thread.name for thread in threading.enumerate() if "nbqueue" not in thread.name]
        return seen

    seen = queue.submit(work).result(timeout=20)
    assert seen.pop("text") == "100%|"
    assert seen == {
        "n": [0, 1, 2],
        "end": 3,
        "total": 3,
        "length": 3,
        "own": True,
        "disabled": [0, 1, 2],
        "unknown": "TqdmKeyError",
        "threads": ["MainThread"],
    }


SCRIPT = """
from nbqueue import TaskQueue

def work(number):
    from tqdm import tqdm
    for step in tqdm(range(2), desc="steps"):
        tqdm.write(f"line {step}")

with TaskQueue(workers=1) as queue:
    queue.map(work, [0]).results()
print("END")
"""


def test_it_draws_nothing_and_its_write_prints_a_line(start_script):
    script = start_script(SCRIPT)
    script.end()
    assert sorted(script.out) == ["END", "line 0", "line 1"]
    assert script.err == []
