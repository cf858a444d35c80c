"""What a batch tells when somebody looks back: a table, a picture, three numbers."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nbqueue.client.results.account import facts as facts_module
from nbqueue.client.results.account.facts import Facts
from nbqueue.client.results.account.frame import frame_of
from nbqueue.client.results.account.picture import draw
from nbqueue.client.results.items import Line
from nbqueue.codec.messages import EXCEPTION, RETRYING, VALUE
from nbqueue.errors import NbqueueError, NotInstalled

COLUMNS = ["state", "attempts", "worker", "queued", "started", "finished", "duration_s", "error"]


def test_the_table_has_a_row_an_item_with_arguments_outcome_and_times(queue: Any) -> None:
    @queue.task(retries=1, chunksize=3)
    def work(seed: int, what: Any, *more: Any, steps: int = 1) -> int:
        if seed == 2:
            raise ValueError(f"no {seed}")
        if seed == 3:
            time.sleep(60)
        if seed == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return seed

    before = pd.Timestamp.now("UTC")
    batch = work.options(timeout=1).map(range(6), ["a", [1, 2], None, 0.5, b"", "b"], range(6), steps=9)
    batch.wait(30)
    frame = batch.to_frame()
    after = pd.Timestamp.now("UTC")

    assert list(frame.columns) == ["seed", "what", "more[0]", "steps", *COLUMNS]
    assert list(frame.index) == list(range(6))
    assert frame.index.name == "item"
    assert list(frame.seed) == list(frame["more[0]"]) == list(range(6))
    assert list(frame.what) == ["a", "[1, 2]", None, 0.5, b"", "b"]
    assert set(frame.steps) == {9}
    assert list(frame.state) == ["done", "done", "failed", "timeout", "died", "done"]
    assert frame.error[2] == "ValueError: no 2"
    assert frame.error[3].startswith("TaskTimeout: ")
    assert frame.error[4].startswith("WorkerDied: ")
    assert frame.error[[0, 1, 5]].isna().all()
    assert frame.attempts[2] == 2
    assert frame.worker[0] == batch.futures[0].worker
    ran = frame.loc[[0, 1, 2, 3, 5]]
    assert (before <= ran.queued).all()
    # The worker's clock is another one, read at another moment.
    slack = pd.Timedelta(milliseconds=50)
    assert (ran.queued <= ran.started + slack).all()
    assert (ran.started <= ran.finished).all()
    assert (ran.finished <= after + slack).all()
    assert frame.duration_s[3] > 0.9
    assert ((ran.finished - ran.started).dt.total_seconds() - ran.duration_s).abs().max() < 0.00001
    assert batch.serial_time >= ran.duration_s.sum() * 0.999
    assert batch.speedup == pytest.approx(batch.serial_time / batch.wall_time)


def test_what_is_open_and_what_was_cancelled_have_rows_too(queue: Any, tmp_path: Path, wait_until: Any) -> None:
    @queue.task(chunksize=1)
    def held(i: int) -> int:
        while not (tmp_path / str(i)).exists():
            time.sleep(0.005)
        return i

    batch = held.map(range(100))
    assert (batch.serial_time, batch.wall_time, batch.speedup) == (None, None, None)
    (tmp_path / "0").touch()
    wait_until(lambda: batch.futures[0].done() and batch.progress.running == 2)
    frame = batch.to_frame()
    assert len(frame) == 100
    assert list(frame.state[:1]) == ["done"]
    assert sorted(frame.state.value_counts().items()) == [("done", 1), ("queued", 97), ("running", 2)]
    assert frame.queued[:3].notna().all()
    assert frame[["started", "finished", "duration_s"]][1:].isna().all(axis=None)
    assert frame.i[2] == 2
    assert frame.i.dtype == "Int64"  # nothing is known yet of those that were not drawn
    assert pd.isna(frame.i[99])
    assert batch.wall_time > 0
    batch.cancel()
    assert sorted(batch.to_frame().state.value_counts().items()) == [("cancelled", 99), ("done", 1)]


def test_items_that_ran_together_share_their_time(queue: Any) -> None:
    batch = queue.map(abs, range(-2_000, 0), chunksize=1_000)
    batch.wait(30)
    frame = batch.to_frame()
    assert list(frame[frame.columns[0]]) == list(range(-2_000, 0))
    assert frame.duration_s.sum() == pytest.approx(batch.serial_time)
    assert set(frame.attempts) == {1}
    assert frame.started.is_monotonic_increasing or frame.worker.nunique() > 1


def test_arguments_that_are_not_kept_are_missing(queue: Any, wait_until: Callable[..., Any]) -> None:
    def size(data: bytes, exponent: int) -> int:
        if exponent == 2:
            raise ValueError
        return len(data)

    batch = queue.map(size, [bytes(300_000)] * 2 + [b"1"], range(3), chunksize=1)
    batch.wait(30)
    # What lay in shared memory goes a moment after the last of them has ended.
    wait_until(lambda: list(batch.to_frame().exponent.isna()) == [True, True, False])
    frame = batch.to_frame()
    assert frame.exponent[2] == 2
    assert frame.data[2] == b"1"


def test_small_arguments_outlast_the_queues_history(queue: Any) -> None:
    batch = queue.map(lambda x, y: x, [1, [2], "c"], [0] * 3, chunksize=1)
    batch.wait(30)
    queue._core.link.history._notes.clear()
    frame = batch.to_frame()
    assert list(frame.x) == [1, "[2]", "c"]
    assert list(frame.y) == [0] * 3


def test_no_more_of_the_messages_is_kept_than_is_allowed(queue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbqueue.client.results.items.MESSAGES_BYTES", 1_500)
    batch = queue.map(lambda x: x, range(20), chunksize=1)
    batch.wait(30)
    kept = batch._items._details.messages()
    assert 0 < sum(len(message) for _, _, message in kept) <= 1_500
    queue._core.link.history._notes.clear()
    assert batch.to_frame().x.notna().sum() == len(kept)


def test_a_parameter_that_is_called_like_a_column_keeps_its_own(queue: Any) -> None:
    def work(state: str, worker: int) -> None: ...

    batch = queue.map(work, "ab", [1, 2])
    batch.wait(30)
    frame = batch.to_frame()
    assert list(frame.columns[:2]) == ["state_", "worker_"]
    assert list(frame.state_) == ["a", "b"]
    assert list(frame.state) == ["done"] * 2


def test_rows_are_found_where_items_between_were_forgotten() -> None:
    lines = [Line(0, 5, "h:0:1", 1, 1.0, 100.0, 99.0, b""), Line(5, 2, "h:1:2", 2, 2.0, 200.0, 99.0, b"")]
    facts = Facts("f", [3, 5, 9], ["done", "done", "queued"], [None] * 3, {9: 300.0, 7: 1.0}, lines, {})
    frame = frame_of(facts)
    assert list(frame.index) == [3, 5, 9]
    assert list(frame.started[:2]) == [pd.Timestamp(103, unit="s", tz="UTC"), pd.Timestamp(200, unit="s", tz="UTC")]
    assert list(frame.attempts) == [1, 2, 0]
    assert list(frame.worker[:2]) == ["h:0:1", "h:1:2"]
    assert frame.queued[9] == pd.Timestamp(300, unit="s", tz="UTC")
    assert list(frame_of(Facts("f", [], [], [], {}, [], {})).columns) == COLUMNS


def test_after_a_retry_of_one_item_those_that_ran_beside_it_still_know_their_worker(
    queue: Any, tmp_path: Path
) -> None:
    @queue.task(chunksize=6)
    def once(i: int) -> int:
        if i == 2 and not (tmp_path / "again").exists():
            raise ValueError
        return i

    batch = once.map(range(6))
    batch.wait(30)
    (tmp_path / "again").touch()
    assert batch.retry_failed().results(timeout=20) == list(range(6))
    assert all(future.worker for future in batch.futures)
    frame = batch.to_frame()
    assert set(frame.state) == {"done"}
    assert frame.started[2] == frame.started.max()


def test_the_arguments_of_another_batch_are_not_taken_for_ones_own(queue: Any) -> None:
    first, second = queue.map(abs, [1, 2], name="same"), queue.map(abs, [-3, -4], name="same")
    first.wait(30)
    second.wait(30)
    assert list(first.to_frame().iloc[:, 0]) == [1, 2]
    assert list(second.to_frame().iloc[:, 0]) == [-3, -4]


def test_no_user_code_runs_for_the_table(queue: Any) -> None:
    class Odd:
        def __init__(self) -> None:
            self.number = 1

        def __repr__(self) -> str:
            raise AssertionError

    batch = queue.map(lambda odd: None, [Odd()])
    batch.wait(30)
    assert list(batch.to_frame().odd) == ["Odd(number=1)"]


@pytest.mark.parametrize(("ask", "package"), [("to_frame", "pandas"), ("timeline", "matplotlib")])
def test_without_the_package_the_error_says_what_to_install(
    queue: Any, monkeypatch: pytest.MonkeyPatch, ask: str, package: str
) -> None:
    batch = queue.map(abs, [1])
    batch.wait(30)
    room = {"pandas": "frame", "matplotlib": "picture"}[package]
    monkeypatch.delitem(sys.modules, f"{facts_module.__package__}.{room}")
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(NotInstalled, match=rf"{ask}\(\) needs {package}.*nbqueue\[analysis\]") as caught:
        getattr(batch, ask)()
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, NbqueueError)


def test_a_batch_loads_neither_pandas_nor_matplotlib_before_it_is_asked() -> None:
    code = "import sys; from nbqueue import Batch, TaskQueue; print({'pandas', 'matplotlib', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---- the picture


def bars(figure: Any) -> dict[str, int]:
    """How many there are, by their colour."""
    axes = figure.axes[0]
    return {_hex(each): len(each.get_paths()) for each in axes.collections}


def _hex(collection: Any) -> str:
    from matplotlib.colors import to_hex

    return to_hex(collection.get_facecolor()[0])


DONE, AGAIN, FAILED = "#1e88e5", "#b07d00", "#e53935"


def test_the_picture_has_a_lane_a_worker_and_a_bar_a_piece_and_shows_what_failed() -> None:
    lines = [
        Line(0, 1, "h:0:1", 1, 1.0, 10.0, 9.0, b""),
        Line(1, 4, "h:1:2", 1, 0.5, 10.0, 9.0, bytes([VALUE, VALUE, EXCEPTION, VALUE])),
        Line(5, 1, "h:0:1", 1, 1.0, 11.0, 9.0, bytes([RETRYING])),
        Line(5, 1, "h:0:3", 2, 1.0, 12.0, 9.0, b""),
    ]
    figure = draw(lines, "work")
    assert bars(figure) == {DONE: 4, AGAIN: 1, FAILED: 1}
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["worker 0", "worker 1"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["done", "failed, ran again", "failed"]
    assert axes.get_xlim() == (0, 3.0)
    assert draw(lines[:1], "work").axes[0].get_legend() is None
    assert bars(draw([], "nothing yet")) == {}


def test_a_picture_of_very_many_items_has_few_bars_and_every_failure() -> None:
    rng = random.Random(1)
    lines, free = [], [0.0] * 4
    for i in range(40_000):
        lane = i % 4
        failed = i in (1_234, 30_001)
        lines.append(Line(i, 1, f"h:{lane}:{lane}", 1, 0.01, free[lane], 0.0, bytes([EXCEPTION]) if failed else b""))
        free[lane] += 0.01 + rng.random() * 0.001
    shown = bars(draw(lines, "work"))
    assert shown[DONE] <= 4 * 300
    assert shown[FAILED] == 2


def test_a_real_batch_is_drawn_and_written(queue: Any, tmp_path: Path) -> None:
    batch = queue.map(lambda x: 1 / x, [1, 0, 2, 4], chunksize=1)
    batch.wait(30)
    figure = batch.timeline()
    assert bars(figure)[FAILED] == 1
    assert figure.axes[0].get_title(loc="left").startswith("<lambda>: 4 items · ")
    figure.savefig(tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes()[:4] == figure._repr_png_()[:4] == b"\x89PNG"
