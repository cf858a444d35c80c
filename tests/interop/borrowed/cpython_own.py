"""CPython's own tests of executors, run against ``queue.executor()``: submit, map, wait, as_completed, shutdown.

They are those that come with this Python or with Debian's package libpython3.X-testsuite; nothing here but how the
executor is made, and the table of those that are left out, each with its reason.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import sys
import sysconfig
import tempfile
import unittest
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nbqueue import TaskQueue

INSIDE = "looks into a ProcessPoolExecutor: its processes, its threads, its start method"
THREADS = "its functions share locks and lists with the test, as only threads can"

# Everything else of the classes that are borrowed below is run.
EXCLUDED = {
    "test_max_workers_negative": "an executor starts no workers, so it takes no max_workers",
    "test_max_workers_too_large": "of Windows only",
    "test_killed_child": "expects that a worker's death breaks the pool; here it costs the one task",
    "test_traceback": "expects the traceback as text in __cause__; here the exception itself has it",
    "test_ressources_gced_in_workers": "its task talks to a multiprocessing.Manager, which lets in its own only",
    "test_saturation": INSIDE,
    "test_idle_process_reuse_one": INSIDE,
    "test_idle_process_reuse_multiple": INSIDE,
    "test_max_tasks_per_child": INSIDE,
    "test_max_tasks_per_child_defaults_to_spawn_context": INSIDE,
    "test_max_tasks_early_shutdown": "max_tasks_per_worker= is the queue's",
    "test_processes_terminate": INSIDE,
    "test_context_manager_shutdown": INSIDE,
    "test_del_shutdown": INSIDE,
    "test_shutdown_no_wait": INSIDE,
    "test_shutdown_gh_132969_case_1": INSIDE,
    "test_shutdown_gh_132969_case_2": INSIDE,
    "test_force_shutdown_workers": INSIDE,
}
# Whole classes of the suite.
NOT_BORROWED = {
    "ThreadPoolExecutorTest": THREADS,
    "ThreadPoolShutdownTest": THREADS,
    "ThreadPoolWaitTests": THREADS,
    "InitializerMixin": "queues have no initializer",
    "FailingInitializerMixin": "queues have no initializer",
    "ExecutorDeadlockTest": "expects that what crashes at (un)pickling breaks the pool; here it costs the one task",
    "FutureTests": "makes futures by hand, and of the standard library's class",
}


def _suites() -> Path | None:
    """The folder called ``test`` that holds the suites for this version of Python."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for folder in (Path(sysconfig.get_path("stdlib")), Path(f"/usr/lib/python{version}")):
        if list((folder / "test").glob("test_concurrent_futures*")):
            return folder / "test"
    return None


FOUND = _suites()
if FOUND is None:
    package = f"libpython{sys.version_info.major}.{sys.version_info.minor}-testsuite"
    reason = f"CPython's own tests are not on this machine: apt-get install {package}"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason, allow_module_level=True)

# Alone in a folder, so that nothing else of another Python's library is found, by workers and scripts either.
ALONE = tempfile.TemporaryDirectory(prefix="nbqt-")
(Path(ALONE.name) / "test").symlink_to(FOUND)
sys.path.insert(0, ALONE.name)
IN_ONE_FILE = (FOUND / "test_concurrent_futures.py").exists()


def _module(name: str) -> ModuleType:
    """A part of the suite, which is one file up to Python 3.12.0, and a folder of several since."""
    whole = "test.test_concurrent_futures"
    return importlib.import_module(whole if IN_ONE_FILE else f"{whole}.{name}")


util, executor, shutdown, wait = map(_module, ("util", "executor", "test_shutdown", "test_wait"))
completed, processes = map(_module, ("test_as_completed", "test_process_pool"))

# Before a script of the suite: the class that it takes from the standard library by name.
IN_SCRIPTS = """
import concurrent.futures
from nbqueue import TaskQueue
concurrent.futures.QueueExecutor = lambda n=3, max_workers=None: TaskQueue(workers=max_workers or n).executor()
"""


def _run_script(*args: str) -> Any:
    from test.support.script_helper import assert_python_ok

    flag, code = args
    path = os.pathsep.join([ALONE.name, *filter(None, [os.environ.get("PYTHONPATH")])])
    return assert_python_ok(flag, IN_SCRIPTS + code, PYTHONPATH=path)


class QueueExecutor:
    """What the suite calls its `executor_type`: makes a queue with so many workers, and its executor."""

    def __new__(cls, max_workers: int = 5, mp_context: Any = None) -> Any:  # type: ignore[misc]
        queue = TaskQueue(stream_key=f"borrowed{os.getpid()}", workers=max_workers)
        # A pool of the standard library is there when the first call is made.
        queue.submit(int).result(timeout=60)
        return queue.executor()


class QueueMixin(util.ExecutorMixin):  # type: ignore[misc, name-defined]
    executor_type = QueueExecutor

    def get_context(self) -> Any:
        return multiprocessing.get_context("spawn")

    @pytest.fixture(autouse=True)
    def _scripts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutdown, "assert_python_ok", _run_script)


@pytest.fixture(autouse=True, scope="module")
def suites() -> Iterator[None]:
    # The suite collects garbage dozens of times, which need not be all that pytest has loaded.
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    ALONE.cleanup()
    sys.path.remove(ALONE.name)


def borrow(suite: type, also: type | None = None) -> type[unittest.TestCase]:
    """The tests of a class, on our executors. Those that it has inherited from `also` are borrowed elsewhere."""
    elsewhere = dict.fromkeys(name for name in vars(also or object) if name.startswith("test"))
    # Not on the suite's own base, which waits until there are as few threads as before. A queue keeps its own.
    return type(suite.__name__, (suite, QueueMixin, unittest.TestCase), {"__module__": __name__, **elsewhere})


TestExecutor = borrow(executor.ExecutorTest)
TestExecutorOfProcesses = borrow(processes.ProcessPoolExecutorTest, also=executor.ExecutorTest)
TestShutdown = borrow(shutdown.ExecutorShutdownTest)
TestShutdownOfProcesses = borrow(shutdown.ProcessPoolShutdownTest, also=shutdown.ExecutorShutdownTest)
TestWait = borrow(wait.WaitTests)
TestAsCompleted = borrow(completed.AsCompletedTests)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="names of tests change between versions")
def test_the_tables_name_what_there_is() -> None:
    borrowed = [test for name, test in globals().items() if name.startswith("Test")]
    newer = {"test_shutdown_gh_132969_case_1", "test_shutdown_gh_132969_case_2", "test_force_shutdown_workers"}
    assert {name for name in EXCLUDED if not any(hasattr(test, name) for test in borrowed)} == newer
    assert all(hasattr(executor, name) for name in NOT_BORROWED)
