"""scikit-learn on a queue: the same numbers as in one process, and as on joblib's own processes."""

from __future__ import annotations

import os
import secrets
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from joblib import parallel_config

import nbqueue.interop.joblib  # noqa: F401 - registers the backend


@pytest.fixture(scope="module")
def queue(session_home: Any, leaving_nothing: Any) -> Iterator[Any]:
    """One for all tests: a worker takes seconds to load scikit-learn."""
    from nbqueue import TaskQueue

    with leaving_nothing():
        yield TaskQueue(stream_key=f"t{secrets.token_hex(4)}", workers=2)


@pytest.fixture(autouse=True)
def nothing_left(queue: Any, wait_until: Callable[..., Any]) -> Iterator[None]:
    """After every test nothing is open; at the module's end nothing else is left either."""
    yield

    def idle() -> bool:
        status = queue.status()
        return not status.running and not status.queued

    wait_until(idle)


@pytest.fixture(scope="module")
def data() -> Any:
    from sklearn.datasets import make_classification

    return make_classification(300, 8, random_state=0)


def test_searches_scores_and_forests_are_what_they_are_in_one_process(queue: Any, data: Any):
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_val_score

    def work() -> list[Any]:
        search = GridSearchCV(LogisticRegression(), {"C": [0.01, 1.0, 100.0]}, cv=3).fit(*data)
        forest = RandomForestClassifier(12, random_state=0).fit(*data)
        return [
            search.best_params_,
            search.cv_results_["mean_test_score"].tolist(),
            cross_val_score(LogisticRegression(), *data, cv=4).tolist(),
            forest.predict_proba(data[0]).tolist(),
            forest.feature_importances_.tolist(),
        ]

    with parallel_config(backend="nbqueue", queue=queue, n_jobs=2):
        found = work()
    done = queue.status().done
    assert found == work()
    assert done > 20, "it was not done on the queue"


# The whole of it, beside joblib's own processes: long


def search(data: Any) -> Any:
    """200 fits."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    grid = {"C": np.logspace(-2, 2, 10).tolist(), "gamma": [0.01, 0.03, 0.1, 0.3]}
    return GridSearchCV(SVC(), grid, cv=5).fit(*data)


@pytest.fixture(scope="module")
def more_data() -> Any:
    from sklearn.datasets import make_classification

    return make_classification(900, 20, random_state=0)


@pytest.fixture
def loky() -> Iterator[Any]:
    import gc

    import psutil
    from joblib.externals.loky import get_reusable_executor

    before = {child.pid for child in psutil.Process().children()}
    yield get_reusable_executor
    get_reusable_executor().shutdown(wait=True, kill_workers=True)
    gc.collect()
    # Its tracker of resources is still there.
    for child in psutil.Process().children():
        if child.pid not in before and "loky" in " ".join(child.cmdline()):
            child.kill()
            child.wait()


@pytest.mark.soak
def test_a_search_of_200_fits_is_loky_s_in_its_result_and_not_slower(queue: Any, loky: Any, more_data: Any):
    took: dict[str, list[float]] = {"nbqueue": [], "loky": []}
    found = {}

    def run(backend: str) -> None:
        options = {"queue": queue} if backend == "nbqueue" else {}
        with parallel_config(backend=backend, n_jobs=2, **options):
            begun = time.perf_counter()
            found[backend] = search(more_data)
            took[backend].append(time.perf_counter() - begun)

    for backend in took:
        run(backend)
        took[backend].clear()
    # Other programs disturb single runs: the more runs, the less.
    for _ in range(4):
        for order in (("nbqueue", "loky"), ("loky", "nbqueue")) * 2:
            for backend in order:
                run(backend)
        ratio = statistics.median(took["nbqueue"]) / statistics.median(took["loky"])
        print(f"{len(took['loky'])} searches each, nbqueue / loky: {ratio:.3f}")
        if ratio <= 1.05:
            break
    ours, theirs = found["nbqueue"], found["loky"]
    assert ours.best_params_ == theirs.best_params_
    assert ours.best_score_ == theirs.best_score_
    assert (ours.cv_results_["mean_test_score"] == theirs.cv_results_["mean_test_score"]).all()
    assert ratio <= 1.05


@pytest.mark.soak
def test_a_search_survives_the_killing_of_a_worker_which_ends_loky_s(queue: Any, loky: Any, more_data: Any):
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    with parallel_config(backend="loky", n_jobs=2):
        whole = search(more_data)

    def kill_when(pid: Callable[[], int | None], killed: list[int]) -> threading.Thread:
        def look() -> None:
            while (found := pid()) is None:
                time.sleep(0.01)
            os.kill(found, signal.SIGKILL)
            killed.append(found)

        thread = threading.Thread(target=look)
        thread.start()
        return thread

    before, killed = queue.status().done, []

    def ours() -> int | None:
        status = queue.status()
        busy = [worker.pid for worker in status.workers if worker.task is not None]
        return busy[0] if status.done > before + 5 and busy else None

    thread = kill_when(ours, killed)
    with parallel_config(backend="nbqueue", queue=queue, n_jobs=2):
        search_on_queue = search(more_data)
    thread.join()
    assert killed
    assert (search_on_queue.cv_results_["mean_test_score"] == whole.cv_results_["mean_test_score"]).all()
    assert search_on_queue.best_params_ == whole.best_params_

    begun = time.monotonic()
    thread = kill_when(lambda: next(iter(loky()._processes)) if time.monotonic() > begun + 0.5 else None, killed)
    with parallel_config(backend="loky", n_jobs=2), pytest.raises(TerminatedWorkerError):
        search(more_data)
    thread.join()
