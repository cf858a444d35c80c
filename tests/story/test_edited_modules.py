"""An edited local module is used by the next call, whether the kernel has loaded it again or not."""

from __future__ import annotations

import importlib
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nbqueue import TaskQueue


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module's name that no other test uses; what lies under it in `tmp_path` can be imported."""
    name = f"helpers_{secrets.token_hex(4)}"
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == name]:
        del sys.modules[loaded]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    def write(path: str, source: str) -> Path:
        file = tmp_path / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(source)
        return file

    return write


Write = Callable[[str, str], Path]


def test_an_edited_local_module(queue: Any, name: str, write: Write) -> None:
    """A worker went on with the one that it had loaded before."""
    write(f"{name}.py", "def answer(): return 'old'\n")
    helpers = importlib.import_module(name)

    @queue.task
    def work() -> Any:
        return helpers.answer()

    assert [work().result(timeout=20) for _ in range(4)] == ["old"] * 4
    write(f"{name}.py", "def answer(): return 'edited'\n")
    assert [work().result(timeout=20) for _ in range(4)] == ["edited"] * 4
    assert helpers.answer() == "old"


def test_one_that_is_imported_inside_the_task(queue: Any, name: str, write: Write) -> None:
    def work() -> Any:
        return importlib.import_module(name).answer()

    for answer in ("one", "two", "six"):
        write(f"{name}.py", f"def answer(): return {answer!r}\n")
        assert [queue.submit(work).result(timeout=20) for _ in range(3)] == [answer] * 3


def test_a_submodule_that_another_local_module_uses(queue: Any, name: str, write: Write) -> None:
    write(f"{name}/__init__.py", "from .outer import ask\n")
    write(f"{name}/outer.py", "from . import inner\ndef ask(): return inner.value\n")
    write(f"{name}/inner.py", "value = 1\n")
    ask = importlib.import_module(name).ask
    assert queue.submit(ask).result(timeout=20) == 1
    write(f"{name}/inner.py", "value = 2\n")
    assert queue.map(lambda _: ask(), range(20)).results(timeout=20) == [2] * 20


def test_a_function_and_a_class_of_the_module_itself(queue: Any, name: str, write: Write) -> None:
    source = """
class Point:
    def __init__(self, x): self.x = x
    def shown(self): return {word!r}, self.x
def make(x): return Point(x + {step})
"""
    write(f"{name}.py", source.format(word="old", step=1))
    helpers = importlib.import_module(name)
    assert queue.submit(helpers.make, 1).result(timeout=20).shown() == ("old", 2)
    write(f"{name}.py", source.format(word="new", step=10))
    # Made by the new function; the kernel still has the old class.
    point = queue.submit(helpers.make, 1).result(timeout=20)
    assert type(point) is helpers.Point
    assert point.shown() == ("old", 11)
    assert queue.submit(lambda p: p.shown(), point).result(timeout=20) == ("new", 11)
    importlib.reload(helpers)
    assert queue.submit(helpers.make, 2).result(timeout=20).shown() == ("new", 12)


def test_two_edits_in_one_second_of_the_same_size(
    queue: Any, name: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytecode that the kernel had written for the first was taken for that of the second."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    now = int(time.time())
    file = write(f"{name}.py", "value = 'first'\n")
    os.utime(file, (now, now))
    helpers = importlib.import_module(name)
    assert Path(helpers.__cached__).exists()
    assert queue.submit(lambda: helpers.value).result(timeout=20) == "first"
    file.write_text("value = 'later'\n")
    os.utime(file, (now, now))
    assert [queue.submit(lambda: helpers.value).result(timeout=20) for _ in range(3)] == ["later"] * 3


def test_later_chunks_of_a_map_use_the_new_one(queue: Any, name: str, write: Write) -> None:
    write(f"{name}.py", "value = 'old'\n")
    helpers = importlib.import_module(name)
    batch: Any = None

    def items() -> Iterator[int]:
        yield from range(4)
        while batch is None or batch.progress.done < 4:
            time.sleep(0.005)
        write(f"{name}.py", "value = 'new'\n")
        yield from range(4)

    batch = queue.map(lambda _: helpers.value, items(), chunksize=2)
    assert batch.results(timeout=30) == ["old"] * 4 + ["new"] * 4


def test_a_call_that_runs_meanwhile_is_left_in_peace(
    queue: Any, name: str, write: Write, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    write(f"{name}.py", "value = 'old'\n")
    helpers = importlib.import_module(name)
    started, go = tmp_path / "started", tmp_path / "go"

    def long() -> tuple[str, int]:
        started.touch()
        while not go.exists():
            time.sleep(0.005)
        return helpers.value, os.getpid()

    future = queue.submit(long)
    wait_until(started.exists, timeout=20)
    write(f"{name}.py", "value = 'new'\n")
    others = [queue.submit(lambda: (helpers.value, os.getpid())) for _ in range(4)]
    answers = [other.result(timeout=20) for other in others]
    go.touch()
    value, pid = future.result(timeout=20)
    assert value == "old"
    assert {answer[0] for answer in answers} == {"new"}
    assert pid not in {answer[1] for answer in answers}
    # Going back to be run by another worker is no attempt.
    assert [f.attempts for f in (future, *others)] == [1] * 5
    assert queue.status().failed == 0


def test_notebooks_in_two_directories_that_share_workers_have_a_module_each(
    new_key: str, name: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second got the first one's module, which the worker had loaded under that name."""
    queue = TaskQueue(stream_key=new_key, workers=1)
    path = [entry for entry in sys.path if entry != str(tmp_path)]
    for folder in ("one", "two"):
        write(f"{folder}/{name}.py", f"value = {folder!r}\n")
    (tmp_path / "none").mkdir()

    def work(importing: bool = True) -> Any:
        return importlib.import_module(name).value if importing else None, os.getpid()

    pids = []
    for folder in ("one", "two", "one"):
        monkeypatch.setattr(sys, "path", [str(tmp_path / folder), *path])
        value, pid = queue.submit(work).result(timeout=20)
        assert value == folder
        assert queue.submit(work).result(timeout=20) == (folder, pid)
        pids.append(pid)
    assert len(set(pids)) == 3
    # One that has no such module has no reason for another worker.
    monkeypatch.setattr(sys, "path", [str(tmp_path / "none"), *path])
    assert queue.submit(work, False).result(timeout=20) == (None, pids[-1])
    assert queue.status().failed == 0


def test_a_module_that_is_written_after_its_import_has_failed(new_key: str, name: str, write: Write) -> None:
    queue = TaskQueue(stream_key=new_key, workers=1)

    def work() -> Any:
        return importlib.import_module(name).value, os.getpid()

    with pytest.raises(ModuleNotFoundError):
        queue.submit(work).result(timeout=20)
    write(f"{name}.py", "value = 1\n")
    assert queue.submit(work).result(timeout=20)[0] == 1
    write(f"{name}.py", "value = = 1\n")
    with pytest.raises(SyntaxError):
        queue.submit(work).result(timeout=20)
    write(f"{name}.py", "value = 12\n")
    assert queue.submit(work).result(timeout=20)[0] == 12


def test_a_module_that_is_only_touched_costs_no_worker(new_key: str, name: str, write: Write) -> None:
    queue = TaskQueue(stream_key=new_key, workers=1)

    def work() -> Any:
        return importlib.import_module(name).value, os.getpid()

    file = write(f"{name}.py", "value = 1\n")
    before = queue.submit(work).result(timeout=20)
    os.utime(file, (1, 1))
    file.write_text("value = 1\n")
    assert queue.submit(work).result(timeout=20) == before
    os.utime(file, (time.time() + 10_000, time.time() + 10_000))
    assert queue.submit(work).result(timeout=20) == before


def test_a_module_that_each_call_writes_anew_ends_no_call(queue: Any, name: str, tmp_path: Path) -> None:
    """Every worker finds it changed, after one call at the earliest."""

    def work(i: int) -> Any:
        (tmp_path / f"{name}.py").write_text(f"value = {i}\n")
        module = importlib.reload(importlib.import_module(name))
        return type(module.value)

    queue.run(1)
    assert queue.map(work, range(12), chunksize=1).results(timeout=60) == [int] * 12


def test_a_module_that_becomes_a_package(new_key: str, name: str, write: Write) -> None:
    queue = TaskQueue(stream_key=new_key, workers=1)

    def work() -> Any:
        return importlib.import_module(name).value

    file = write(f"{name}.py", "value = 'file'\n")
    assert queue.submit(work).result(timeout=20) == "file"
    file.unlink()
    # Nothing is in its place: an editor may be writing it anew just now.
    assert queue.submit(work).result(timeout=20) == "file"
    time.sleep(0.3)  # so long it is not looked for again
    write(f"{name}/__init__.py", "value = 'package'\n")
    assert queue.submit(work).result(timeout=20) == "package"


SCRIPT = """
import os, sys
from nbqueue import TaskQueue
import local_helpers

queue = TaskQueue(workers=2)
path = local_helpers.__file__
pid = queue.submit(os.getpid).result(timeout=30)
for word in ("one", "two", "six"):
    with open(path, "w") as file:
        file.write(f"def word(): return {word!r}\\n")
    answers = {queue.submit(local_helpers.word).result(timeout=30) for _ in range(4)}
    print(word, answers == {word}, flush=True)
queue.shutdown()
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_with_either_start_method(start_script: Callable[..., Any], tmp_path: Path, method: str) -> None:
    (tmp_path / "local_helpers.py").write_text("def word(): return 'none'\n")
    paths = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    script = start_script(SCRIPT, env={"NBQUEUE_START_METHOD": method, "PYTHONPATH": paths})
    assert script.end().splitlines() == ["one True", "two True", "six True"]
