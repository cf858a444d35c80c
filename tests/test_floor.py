"""The floor that the benchmark tells is of calls that were really made, and of workers that really died."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bench import exchange, floor, runner, works


def test_the_bare_exchange_of_each_step_gives_the_values_and_leaves_nothing_on_the_server() -> None:
    with exchange.served() as path:
        for step in exchange.STEPS:
            with exchange.Exchange(path, step) as made:
                # Either raises where an answer is another than the value that was sent.
                assert len(made.one_by_one(["a", 2, None])) == 3
                assert made.together(range(1_200)) > 0
                assert made.left() == {"in the streams": 0, "pending": 0, "open": 0}, step


def test_an_answer_of_the_bare_exchange_that_is_wrong_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange.messages, "value_in", lambda _body: "another")
    wrong = pytest.raises(AssertionError, match="wrong answers")
    with exchange.served() as path, exchange.Exchange(path, exchange.SEALED) as made, wrong:
        made.one_by_one([1])


def test_a_worker_of_the_floor_that_does_not_start_is_told_and_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    started, start = [], exchange._start

    def start_elsewhere(_path: str, step: str, consumer: str) -> Any:
        started.append(start("/no/such.sock", step, consumer))
        return started[-1]

    monkeypatch.setattr(exchange, "_start", start_elsewhere)
    with exchange.served() as path, pytest.raises(RuntimeError, match="did not start"):
        exchange.Exchange(path, exchange.STREAMS_ALONE)
    assert [process.returncode is not None for process in started] == [True]


def test_the_floor_of_a_map_is_of_work_that_was_done() -> None:
    found = floor.map_items(1_000, workers=2)
    assert set(found) == {"client", "worker", "whole"}
    assert min(found.values()) > 0
    # But for the last digit: they were added before they were divided.
    assert found["whole"] >= 0.999 * max(found["client"], (found["client"] + found["worker"]) / 2)


@pytest.mark.parametrize("name", ["replaced", "workers"])
def test_births_of_workers_are_measured(name: str) -> None:
    (work,) = works.chosen([name])
    run = runner.run_one(work, "nbqueue", 0, quick=True, workers=2, limit_s=60.0)
    assert (run.failed, run.left) == ("", 0)
    assert set(run.metrics) == {metric.key for metric in work.metrics}
    assert all(0 < value < 20 for value in run.metrics.values())
