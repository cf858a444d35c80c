"""A task runs in the surroundings of its notebook: directory, import path, environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def test_the_working_directory_follows(queue: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert queue.submit(os.getcwd).result(timeout=20) == os.getcwd()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.txt").write_text("found")
    assert queue.submit(lambda: Path("data.txt").read_text()).result(timeout=20) == "found"


def test_the_import_path_follows(queue: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> Any:
        import module_beside_a_notebook

        return module_beside_a_notebook.answer

    assert isinstance(queue.submit(work).exception(timeout=20), ImportError)
    (tmp_path / "module_beside_a_notebook.py").write_text("answer = 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert queue.submit(work).result(timeout=20) == 42


def test_the_environment_follows(queue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def look() -> Any:
        return os.environ.get("A_SETTING_OF_A_TEST")

    assert queue.submit(look).result(timeout=20) is None
    monkeypatch.setenv("A_SETTING_OF_A_TEST", "ä")
    assert queue.submit(look).result(timeout=20) == "ä"
    monkeypatch.delenv("A_SETTING_OF_A_TEST")
    assert queue.submit(look).result(timeout=20) is None


def test_what_a_task_changes_is_put_back_before_the_next(queue: Any, tmp_path: Path) -> None:
    queue.run(1)

    def mess() -> None:
        os.chdir(tmp_path)
        os.environ["LEFT_BEHIND"] = "x"
        os.environ.pop("PATH")
        sys.path.insert(0, "/left/behind")

    before = queue.submit(lambda: (os.getcwd(), dict(os.environ), list(sys.path))).result(timeout=20)
    queue.submit(mess).result(timeout=20)
    after = queue.submit(lambda: (os.getcwd(), dict(os.environ), list(sys.path))).result(timeout=20)
    assert after == before


def test_a_task_may_delete_the_directory_it_is_in(queue: Any, tmp_path: Path) -> None:
    queue.run(1)
    folder = tmp_path / "gone"
    folder.mkdir()

    def leave() -> None:
        os.chdir(folder)
        folder.rmdir()

    queue.submit(leave).result(timeout=20)
    assert queue.submit(os.getcwd).result(timeout=20) == os.getcwd()


def test_numeric_libraries_get_as_many_threads_as_there_are_cores_for_each_worker(
    queue: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look() -> list[str | None]:
        return [os.environ.get(name) for name in THREADS]

    given = [name for name in THREADS if name in os.environ]
    if given:
        pytest.skip(f"{given[0]} is set, and what the user has set stays")
    from nbqueue.worker.cores import available_cores

    queue.run(2)
    threads = str(max(1, available_cores() // 2))
    assert queue.submit(look).result(timeout=20) == [threads] * 3


def test_a_task_is_not_the_program_that_runs_it(queue: Any) -> None:
    """__main__ is the notebook's, stdin is empty, and nothing of the worker's own arguments shows."""
    name, kind = queue.submit(lambda: (__import__("__main__").__name__, type(sys.stdin).__name__)).result(timeout=20)
    assert name == "__main__"
    assert kind == "NoKeyboard"


def test_a_worker_is_the_first_to_be_killed_when_memory_runs_out(queue: Any) -> None:
    path = Path("/proc/self/oom_score_adj")
    if not path.exists():
        pytest.skip("only Linux chooses by such a score")
    assert int(queue.submit(path.read_text).result(timeout=20)) > int(path.read_text())
