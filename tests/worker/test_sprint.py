"""Short items run together, and yet each is one of its own: its result, its output, its failure, its worker's death."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nbqueue
from nbqueue import WorkerDied
from nbqueue.client.results.arriving import Arriving
from nbqueue.codec.columns import Columns
from nbqueue.worker.sprint import NOTHING, Sprint, next_length

ITEMS = range(3_000)


def short_items(queue: Any, fn: Callable[[int], Any], **options: Any) -> Any:
    """All items in one chunk, so that after the first few they run together."""
    return queue.map(fn, ITEMS, chunksize=len(ITEMS), **options)


# The loop itself


def run(sprint: Sprint, function: Callable[..., Any]) -> None:
    sprint.run(function, {})


# Three items of one argument, and of two, in each form in which a call may bring them.
ONE = [[(1,), (2,), (3,)], Columns(([1, 2, 3],)), Columns((range(1, 4),))]
TWO = [[(1, 4), (2, 5), (3, 6)], Columns(([1, 2, 3], range(4, 7)))]


@pytest.mark.parametrize("arguments", [*ONE, *TWO])
def test_each_item_is_named_before_its_code_runs(arguments: Any) -> None:
    name = [0]
    seen: list[int] = []
    run(Sprint(5, arguments, name), lambda *_: seen.append(name[0]))
    assert seen == [5, 6, 7]


@pytest.mark.parametrize("arguments", ONE)
def test_an_argument_and_keywords_arrive(arguments: Any) -> None:
    sprint = Sprint(0, arguments, [0])
    sprint.run(lambda x, by: x * by, {"by": 10})
    assert (sprint.results, sprint.kinds, sprint.item) == ([10, 20, 30], {int}, 3)


@pytest.mark.parametrize("arguments", TWO)
def test_several_arguments_and_keywords_arrive(arguments: Any) -> None:
    sprint = Sprint(0, arguments, [0])
    sprint.run(lambda x, y, by: (x + y) * by, {"by": 0.5})
    assert (sprint.results, sprint.kinds) == ([2.5, 3.5, 4.5], {float})


def test_results_of_several_types_are_told_of() -> None:
    sprint = Sprint(0, Columns(([1, "a", 2, None],)), [0])
    run(sprint, lambda x: x)
    assert (sprint.results, sprint.kinds) == ([1, "a", 2, None], {int, str, type(None)})


@pytest.mark.parametrize("arguments", [[(x,) for x in range(9)], Columns((range(9),))])
def test_an_item_that_leaves_is_the_last(arguments: Any) -> None:
    sprint = Sprint(10, arguments, [0])
    left: list[int] = []
    run(sprint, lambda x: left.append(sprint.leave()) if x >= 3 else x)
    assert (sprint.results, left, sprint.odd) == ([0, 1, 2, None], [13], NOTHING)


def test_a_result_that_may_change_later_ends_it() -> None:
    shared: list[int] = []
    sprint = Sprint(0, [(1,), (2,), (3,)], [0])
    run(sprint, lambda x: shared if x == 2 else x)
    assert (sprint.results, sprint.odd) == ([1], shared)


def test_what_an_item_raises_comes_out_with_its_number() -> None:
    sprint = Sprint(7, [(1,), (0,), (2,)], [0])
    with pytest.raises(ZeroDivisionError):
        run(sprint, lambda x: 1 / x)
    assert (sprint.item, sprint.results) == (8, [1.0])


def test_lengths_follow_the_pace_and_never_reach_zero() -> None:
    assert next_length(8, 0.0) == 64
    assert next_length(1000, 0.004) == 500
    assert next_length(2, 10.0) == 2


# In a worker


def test_results_and_errors_are_in_their_places(queue: Any) -> None:
    def reciprocal(x: int) -> float:
        return 1 / (x % 700)

    batch = short_items(queue, reciprocal)
    results = batch.results(return_exceptions=True)
    wrong = [x for x in ITEMS if x % 700 == 0]
    assert [x for x in ITEMS if isinstance(results[x], ZeroDivisionError)] == wrong
    assert [results[x] for x in ITEMS if x % 700] == [1 / (x % 700) for x in ITEMS if x % 700]
    assert [future.seconds is not None for future in batch.futures].count(True) == len(ITEMS)


def test_a_list_that_each_item_returns_and_changes_is_sent_as_it_was(queue: Any) -> None:
    def count(x: int, seen: list[int] = []) -> Any:  # noqa: B006 - one list for all, on purpose
        if x < 2_000:
            return x
        seen.append(x)
        return seen

    results = short_items(queue, count).results()
    assert [len(result) for result in results[2_000:]] == list(range(1, 1_001))


def test_long_results_among_short_ones_arrive(queue: Any) -> None:
    def grow(x: int) -> Any:
        return {0: "x" * 150_000, 1: 1 << 900_000, 2: b"y" * 150_000}.get(x % 1_000, x)

    results = short_items(queue, grow).results()
    assert results[2_000:2_004] == ["x" * 150_000, 1 << 900_000, b"y" * 150_000, 2_003]


def test_keywords_reach_every_item(queue: Any) -> None:
    @queue.task
    def add(x: int, y: int, to: Any) -> Any:
        if isinstance(to, list):
            to.append(x + y)
            return sum(to)
        return x + y + to

    assert add.options(chunksize=3_000).map(ITEMS, ITEMS, to=1).results() == [2 * x + 1 for x in ITEMS]
    assert add.options(chunksize=3_000).map(ITEMS, ITEMS, to=[1]).results() == [2 * x + 1 for x in ITEMS]


def test_what_some_print_is_theirs(queue: Any) -> None:
    def talk(x: int) -> int:
        if x % 500 == 250:
            print("at", x)
        return x

    batch = short_items(queue, talk)
    assert batch.results() == list(ITEMS)
    printed = {x: future.stdout for x, future in enumerate(batch.futures) if future.stdout}
    assert printed == {x: f"at {x}\n" for x in ITEMS if x % 500 == 250}


def test_what_some_show_is_theirs(queue: Any) -> None:
    def show(x: int) -> int:
        if x == 1_234:
            display(x)  # type: ignore[name-defined]  # noqa: F821 - as in a notebook
        return x

    batch = short_items(queue, show)
    batch.results()
    # Not to a notebook, so it is printed.
    assert {x: future.stdout for x, future in enumerate(batch.futures) if future.stdout} == {1_234: "1234\n"}


def test_news_name_the_item_that_told_them(
    queue: Any, wait_until: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tell(x: int, go: str) -> int:
        if x == 2_222:
            nbqueue.report(1, 2)
            while not os.path.exists(go):
                time.sleep(0.01)
        return x

    heard: list[tuple[str, int]] = []
    on_event = Arriving.on_event

    def listen(batch: Any, call: Any, item: int, event: Any) -> None:
        heard.append((event["kind"], call.base + item))
        on_event(batch, call, item, event)

    monkeypatch.setattr(Arriving, "on_event", listen)
    batch = queue.task(tell).options(chunksize=3_000).map(ITEMS, go=str(tmp_path / "go"))
    wait_until(lambda: ("lane", 2_222) in heard)
    (tmp_path / "go").touch()
    assert batch.results() == list(ITEMS)
    assert {item for kind, item in heard if kind == "lane"} == {2_222}


def test_what_is_finished_arrives_while_a_later_item_takes_its_time(
    queue: Any, wait_until: Callable[..., Any], tmp_path: Path
) -> None:
    def wait(x: int, go: str) -> int:
        while x == 2_500 and not os.path.exists(go):
            time.sleep(0.01)
        return x

    batch = queue.task(wait).options(chunksize=3_000).map(ITEMS, go=str(tmp_path / "go"))
    wait_until(lambda: batch.futures[2_499].done())
    assert not batch.futures[2_500].done()
    (tmp_path / "go").touch()
    assert batch.results() == list(ITEMS)


def test_only_the_item_that_kills_its_worker_is_charged(queue: Any, tmp_path: Path) -> None:
    def die(x: int, folder: str) -> int:
        if x in (17, 2_345):
            with open(f"{folder}/{x}", "a") as file:
                file.write("x")
            os._exit(3)
        return x

    batch = queue.task(die).options(chunksize=3_000).map(ITEMS, folder=str(tmp_path))
    results = batch.results(return_exceptions=True)
    assert [x for x in ITEMS if isinstance(results[x], WorkerDied)] == [17, 2_345]
    assert all(results[x] == x for x in ITEMS if x not in (17, 2_345))
    assert [(tmp_path / name).read_text() for name in ("17", "2345")] == ["xx", "xx"], "once more, and no more"


def test_a_child_that_comes_back_from_a_fork_runs_nothing_more(queue: Any, tmp_path: Path) -> None:
    def fork(x: int, folder: str) -> int:
        with open(f"{folder}/{os.getpid()}", "a") as file:
            file.write("x")
        if x == 2_000 and os.fork():
            os.wait()
        return x

    queue.run(1)
    batch = queue.task(fork).options(chunksize=3_000).map(ITEMS, folder=str(tmp_path))
    assert batch.results() == list(ITEMS)
    # The child has come as far as the end of its own item.
    assert [len(path.read_text()) for path in tmp_path.iterdir()] == [3_000]


def test_a_cancelled_batch_stops_in_the_midst(queue: Any, wait_until: Callable[..., Any], tmp_path: Path) -> None:
    def note(x: int, folder: str) -> int:
        if x == 2_000:
            open(f"{folder}/here", "w").close()
            while True:
                math.sqrt(x)
        if x > 2_000:
            open(f"{folder}/later", "w").close()
        return x

    batch = queue.task(note).options(chunksize=3_000).map(ITEMS, folder=str(tmp_path))
    wait_until((tmp_path / "here").exists)
    batch.cancel()
    assert queue.submit(abs, -1).result(timeout=20) == 1
    assert not (tmp_path / "later").exists()


def test_threads_of_a_short_item_print_as_one_of_the_items(queue: Any) -> None:
    def start(x: int) -> int:
        if x == 1_500:
            thread = threading.Thread(target=print, args=("from a thread",))
            thread.start()
            thread.join()
        return x

    batch = short_items(queue, start)
    batch.results()
    assert {x: f.stdout for x, f in enumerate(batch.futures) if f.stdout} == {1_500: "from a thread\n"}
