"""The benchmark runs, and tells the truth about what it measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.bench import chart, cpu, goals, measures, report, runner, works
from tests.bench.peers import PEERS

ROOT = Path(__file__).resolve().parents[1]


def _run(work: str, peer: str, repetition: int = 0, **said: Any) -> runner.Run:
    metrics = said.pop("metrics", {})
    return runner.Run(work, peer, repetition, metrics, **said)


def _document(runs: list[runner.Run]) -> dict[str, Any]:
    return {
        "date": "2030-01-02",
        "machine": {"cores": 2, "system": "Linux", "python": "3.12", "load": 0.1},
        "versions": {"nbqueue": "1.0", "loky": None},
        "workers": 2,
        "quick": False,
        "interrupted": False,
        "runs": [run.to_dict() for run in runs],
    }


def test_two_peers_are_measured_side_by_side_and_told_as_table_and_json(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--quick", "--repeat", "1", "--workers", "1", "--work", "calls",
         "--peer", "Pool", "nbqueue", "--json", str(tmp_path / "out.json")],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    document = json.loads((tmp_path / "out.json").read_text("utf-8"))
    told = [(run["peer"], run["failed"], run["left"]) for run in document["runs"]]
    assert told == [("nbqueue", "", 0), ("Pool", "", 0)]
    assert all(run["metrics"]["per_task"] > 0 for run in document["runs"])
    assert {"kernel", "workers", "server"} <= set(document["runs"][0]["cpu_s"])
    assert document["quick"]
    assert document["versions"]["redis"]
    assert "| nbqueue " in done.stdout
    assert "≤ 1 × Pool" in done.stdout


def test_a_daemon_that_a_library_leaves_is_ended_and_counted(tmp_path: Path, wait_until: Any) -> None:
    """Its parent is gone, and it has a session of its own; only the mark tells whose it is."""
    code = (
        "import subprocess, sys; "
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True, "
        "stdout=subprocess.DEVNULL); "
        "print(p.pid)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, cpu.MARK: "test-of-a-daemon"},
        stdout=subprocess.PIPE,
        check=True,
        timeout=30,
    )
    pid = int(done.stdout)
    assert [process.pid for process in cpu.marked("test-of-a-daemon")] == [pid]
    assert runner.end_all("test-of-a-daemon", patience_s=0.0) == 1
    wait_until(lambda: not psutil.pid_exists(pid) or not cpu.lives(psutil.Process(pid)))


def test_an_interrupt_tells_what_was_measured_so_far() -> None:
    command = [sys.executable, "-m", "tests.bench", "--quick", "--repeat", "500", "--work", "cold", "--peer", "Pool"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as bench:
        assert bench.stderr is not None
        assert bench.stderr.readline().startswith("cold, Pool: ")
        bench.send_signal(signal.SIGINT)
        told, _ = bench.communicate(timeout=60)
    assert bench.returncode == 130
    assert "Interrupted: not all was measured" in told
    assert "| cold start to first result |" in told


def test_a_process_that_takes_too_long_is_ended_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "START_S", 0.0)
    monkeypatch.setattr(runner, "NOTEBOOK", tmp_path / "notebook.py")
    runner.NOTEBOOK.write_text("import time; time.sleep(60)", "utf-8")
    (cold,) = works.chosen(["cold"])
    run = runner.run_one(cold, "Pool", 0, quick=True, workers=1, limit_s=0.5)
    assert (run.failed, run.metrics) == ("not done within 0.5 s", {})


def test_a_process_that_dies_leaves_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "NOTEBOOK", tmp_path / "notebook.py")
    runner.NOTEBOOK.write_text("import os; print('about to go', flush=True); os.kill(os.getpid(), 9)", "utf-8")
    (cold,) = works.chosen(["cold"])
    run = runner.run_one(cold, "Pool", 0, quick=True, workers=1, limit_s=30.0)
    assert run.failed == "ended with signal SIGKILL: about to go"


def test_a_machine_that_was_busy_before_is_told() -> None:
    busy = _document([_run("cold", "Pool", metrics={"seconds": 1.0})])
    assert "not quiet" not in report.markdown(busy)
    busy["machine"]["load"] = 3.0
    assert "not quiet when this began (load 3)" in report.markdown(busy)


def test_a_median_is_of_the_repetitions_that_succeeded() -> None:
    runs = [_run("calls", "Pool", n, metrics={"per_task": value}) for n, value in enumerate((3.0, 1.0, 2.0))]
    runs.append(_run("calls", "Pool", 3, failed="broken"))
    assert goals.medians(runs) == {("calls", "per_task"): {"Pool": 2.0}}


def test_a_ratio_below_one_means_ahead_whichever_way_the_numbers_run() -> None:
    assert goals.ratio(1.0, 2.0) == 0.5
    assert goals.ratio(98.0, 49.0, more_is_better=True) == 0.5
    assert goals.ratio(1.0, 0.0) == float("inf")


@pytest.mark.parametrize(
    ("row", "ok", "found"),
    [
        ({"nbqueue": 0.9, "loky": 1.0, "ProcessPoolExecutor": 2.0, "Pool": 0.1}, True, "0.90 × loky"),
        ({"nbqueue": 1.5, "loky": 1.0}, False, "1.50 × loky"),
        ({"nbqueue": 1.5, "Pool": 1.0}, None, "nothing to compare with: ProcessPoolExecutor, loky"),
        ({"loky": 1.5}, None, "not measured"),
    ],
)
def test_a_goal_is_met_missed_or_cannot_be_judged(row: dict[str, float], ok: bool | None, found: str) -> None:
    goal = goals.against("call", "median", ("ProcessPoolExecutor", "loky"), 1.0)
    assert goal.judge({("call", "median"): row}) == goals.Verdict(ok, found)


def test_the_goals_of_one_number_and_of_two_of_ours_are_judged() -> None:
    table = {
        ("uneven", "efficiency"): {"nbqueue": 97.5, "Pool": 98.0},
        ("call", "median"): {"nbqueue": 1.0},
        ("call", "p99"): {"nbqueue": 2.5},
        ("idle", "all"): {"nbqueue": 0.7},
    }
    told = {goal.text: goal.judge(table) for goal in goals.GOALS}
    assert told["200 uneven tasks: ≥ 97 % of the ideal"] == goals.Verdict(True, "97.5 %")
    assert told["200 uneven tasks, of the ideal: best of all"].ok is False
    assert told["one call and back: p99 ≤ 3 × median"] == goals.Verdict(True, "2.50 ×")
    assert told["nothing to do, all processes: < 0.5 % of a core"] == goals.Verdict(False, "0.70 %")
    assert told["Redis CPU for a separate call: ≤ 25 µs"] == goals.Verdict(None, "not measured")


def test_what_failed_stays_in_the_table_with_its_reason() -> None:
    runs = [
        _run("result", "nbqueue", metrics={"seconds": 0.2}),
        _run("result", "Pool", metrics={"seconds": 0.1}),
        _run("result", "mpire", failed="not done within 120 s"),
        _run("result", "ray", failed="not installed", left=2),
    ]
    told = report.markdown(_document(runs))
    assert "| ✗ [1] | ✗ [2] |" in told
    assert "- [1] mpire: not done within 120 s" in told
    assert "- [2] ray: not installed" in told
    assert "- ray left 2 processes that had to be ended" in told
    assert "**100 ms**" in told  # the best
    assert "2.00" in told


def test_a_work_that_failed_once_says_so_beside_its_median() -> None:
    runs = [_run("cold", "nbqueue", metrics={"seconds": 1.0}), _run("cold", "nbqueue", 1, failed="boom")]
    assert "- nbqueue, cold: 1 of 2 repetitions failed: boom" in report.markdown(_document(runs))


def test_the_ceiling_of_a_server_follows_from_its_cpu_time() -> None:
    runs = [_run("redis", "nbqueue", metrics={"per_call": 25e-6, "per_item": 0.1e-6})]
    told = report.markdown(_document(runs))
    assert "40,000 a second" in told
    assert "10,000,000 a second" in told


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(1.5, "s", "1.5 s"), (2.34e-3, "s", "2.34 ms"), (451e-6, "s", "451 µs"), (2.8e-7, "s", "280 ns"),
     (1234.0, "B", "1.23 kB"), (12.0, "B", "12 B"), (97.31, "%", "97.3 %"), (0.123, "%", "0.12 %")],
)  # fmt: skip
def test_numbers_read_as_a_person_would_write_them(value: float, unit: str, text: str) -> None:
    assert report.number(value, unit) == text


def test_peers_take_turns_and_another_one_begins_each_repetition() -> None:
    (cold,) = works.chosen(["cold"])
    (idle,) = works.chosen(["idle"])
    turns = [(number, work.name, peer) for number, work, peer in runner.order([cold, idle], ["nbqueue", "Pool"], 2)]
    assert turns == [
        (0, "cold", "nbqueue"), (0, "cold", "Pool"), (0, "idle", "nbqueue"),
        (1, "cold", "Pool"), (1, "cold", "nbqueue"), (1, "idle", "nbqueue"),
    ]  # fmt: skip


def test_the_ideal_is_an_even_share_or_the_longest_task() -> None:
    assert measures.ideal_s([1.0, 1.0, 2.0], 2) == 2.0
    assert measures.ideal_s([1.0, 1.0, 1.0], 2) == 1.5


def test_every_work_has_its_measure_and_every_peer_a_way() -> None:
    names = [work.name for work in works.WORKS]
    assert len(set(names)) == len(names)
    assert all(callable(getattr(measures, work.measure)) for work in works.WORKS)
    told = report.table_of_works()
    assert all(name in told for name in [*names, *PEERS])
    assert "  \n" not in told  # a way without words


def test_a_wrong_name_of_a_work_is_refused() -> None:
    with pytest.raises(KeyError):
        works.chosen(["cold", "warm*"])


def test_the_chart_compares_what_both_have_done_and_is_drawn_for_light_and_dark_pages(tmp_path: Path) -> None:
    runs = [
        _run("cold", "nbqueue", metrics={"seconds": 0.5}),
        _run("cold", "loky", metrics={"seconds": 1.0}),
        _run("uneven", "nbqueue", metrics={"efficiency": 98.0}),
        _run("uneven", "ray", metrics={"efficiency": 49.0}),
        _run("result", "ray", metrics={"seconds": 0.1}),
        _run("idle", "nbqueue", metrics={"all": 0.1}),
    ]
    rows = chart.relative(_document(runs))
    assert [others for _, others in rows] == [{"loky": 2.0}, {"ray": 2.0}]
    paths = chart.draw(_document(runs), tmp_path)
    assert [path.name for path in paths] == ["speed.png", "speed-dark.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert chart.draw(_document(runs[4:]), tmp_path) == []


def test_growth_is_told_as_one_row_for_each_number_of_tasks() -> None:
    metrics = {"per_task": 5e-5, "kernel": 900.0, "kernel_peak": 1_000.0, "redis": 300.0}
    runs = [_run("growth-calls-1k", "nbqueue", metrics=metrics), _run("growth-calls-1M", "nbqueue", metrics=metrics)]
    told = report.markdown(_document(runs))
    assert "| 1,000 separate calls " in told
    assert "| 1,000,000 separate calls " in told
    assert "| 1.00 × | ok " in told


def test_the_time_of_growing_is_told_as_a_ratio_to_the_fewest_tasks() -> None:
    cost = {"kernel": 900.0, "kernel_peak": 1_000.0, "redis": 300.0}
    times = {"calls-1k": 4e-5, "calls-1M": 6e-5, "map-1k": 4e-6, "map-1M": 2e-6}
    runs = [_run(f"growth-{what}", "nbqueue", metrics={"per_task": time, **cost}) for what, time in times.items()]
    rows = [line.split("|") for line in report.markdown(_document(runs)).splitlines() if line.startswith("| 1,000")]
    assert [row[3].strip() for row in rows] == ["1.00 ×", "1.50 ×", "1.00 ×", "0.50 ×"]


def test_where_the_time_goes_is_told_beside_what_libraries_take_in_the_same_run() -> None:
    steps = {"bytes": 3e-5, "ping": 4e-5, "streams": 1e-4, "scripts": 2e-4, "sealed": 3e-4}
    runs = [
        _run("floor-call", "nbqueue", metrics=steps),
        _run("floor-map", "nbqueue", metrics={"client": 1e-7, "worker": 3e-7, "whole": 2e-7}),
        _run("call", "nbqueue", metrics={"median": 4e-4, "p99": 1e-3}),
        _run("call", "Pool", metrics={"median": 1e-4, "p99": 1e-3}),
    ]
    told = report.markdown(_document(runs))
    lines = told[told.index("| where the time goes") :].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == ["a byte to another process and back", "30 µs", "", ""]
    assert ["both, shared evenly by the cores", "", "", "200 ns"] in cells
    assert cells[-2:] == [["**nbqueue**", "400 µs", "", ""], ["**Pool**", "100 µs", "", ""]]
    assert "floor of" not in told, "its lines are told once"
    assert "where the time goes" not in report.markdown(_document(runs[2:]))


def test_the_cpu_time_of_looking_for_processes_is_not_counted_as_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    used, looks = [1.0], []

    def look(_mark: str) -> list[Any]:
        used[0] += 5.0
        looks.append(used[0])
        return []

    monkeypatch.setattr(cpu, "marked", look)
    monkeypatch.setattr(cpu, "cpu_s", lambda _process: used[0])
    meter = cpu.CpuMeter()
    used[0] += 0.25
    assert meter.since() == {"kernel": 0.25}
    assert len(looks) == 2
