"""Random numbers that are a task's own: the same ones whoever runs it, and how often."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbqueue.codec import seeds
from nbqueue.errors import BadCall, BadOption


def draw(x: Any, *, rng: Any) -> float:
    return float(rng.random())


def expected(seed: int, indices: Any) -> list[float]:
    """As NumPy's guide has it: children of one SeedSequence."""
    children = np.random.SeedSequence(seed).spawn(max(indices) + 1)
    return [float(np.random.Generator(np.random.PCG64(children[i])).random()) for i in indices]


def test_items_draw_what_numpys_spawn_gives_whatever_the_chunks_and_workers(queue: Any) -> None:
    task = queue.task(draw).options(rng="rng", seed=7)
    wanted = expected(7, range(40))
    assert task.map(range(40)).results(timeout=30) == wanted
    assert task.options(chunksize=1).map(range(40)).results(timeout=20) == wanted
    assert task.options(chunksize=40).map([[i] for i in range(40)]).results(timeout=20) == wanted  # framed, not packed
    queue.run(1)
    assert task.map(i for i in range(40)).results(timeout=20) == wanted
    assert task(0).result(timeout=20) == task.local(0) == wanted[0]


def test_without_a_seed_each_batch_and_call_has_its_own_and_tells_it(queue: Any) -> None:
    task = queue.task(rng="rng")(draw)
    first, second, call = task.map(range(3)), task.map(range(3)), task(1)
    assert len({first.seed, second.seed, call.seed}) == 3
    assert first.results(timeout=30) == expected(first.seed, range(3))
    assert task.options(seed=second.seed).map(range(3)).results(timeout=20) == second.results(timeout=20)
    assert call.result(timeout=20) == expected(call.seed, [0])[0]
    assert first.futures[2].seed == first.seed
    assert queue.submit(abs, -1).seed is None
    assert queue.map(abs, [-1]).seed is None


def test_short_items_that_run_in_sprints_have_their_generators(queue: Any) -> None:
    @queue.task(rng="rng", seed=3, chunksize=500)
    def first_bits(i: int, rng: Any) -> int:
        return int(rng.integers(1 << 30))

    values = first_bits.map(range(1_000)).results(timeout=30)
    assert len(set(values)) == 1_000
    assert values == first_bits.options(chunksize=7).map(range(1_000)).results(timeout=30)


def test_a_retry_a_replay_and_retry_failed_draw_the_same_numbers(queue: Any, tmp_path: Path) -> None:
    ready = tmp_path / "ready"

    @queue.task(rng="rng", retries=1, chunksize=4)
    def noting(i: int, rng: Any) -> float:
        value = float(rng.random())
        with open(tmp_path / str(i), "a") as notes:
            notes.write(f"{value!r}\n")
        if not ready.exists() and i % 2:
            raise ValueError(value)
        return value

    batch = noting.map(range(6))
    assert batch.wait(30)
    wanted = expected(batch.seed, range(6))
    for i in (1, 3, 5):
        assert (tmp_path / str(i)).read_text().split() == [repr(wanted[i])] * 2
        with pytest.raises(ValueError, match=repr(wanted[i])):
            batch.futures[i].replay()
    ready.touch()
    assert batch.retry_failed().results(timeout=20) == wanted


def test_a_killed_workers_item_draws_the_same_numbers_again(queue: Any, tmp_path: Path) -> None:
    @queue.task(rng="rng", seed=11, chunksize=5)
    def deadly(i: int, rng: Any) -> float:
        value = float(rng.random())
        if i == 3 and not (tmp_path / "once").exists():
            (tmp_path / "once").write_text(repr(value))
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    assert deadly.map(range(5)).results(timeout=30) == expected(11, range(5))
    assert float((tmp_path / "once").read_text()) == expected(11, [3])[0]


def test_keywords_that_are_put_keep_their_place_beside_the_generator(queue: Any) -> None:
    def with_table(x: Any, table: Any, rng: Any) -> float:
        return float(rng.random()) + len(table)

    task = queue.task(rng="rng", seed=1)(with_table)
    wanted = [value + 300_000 for value in expected(1, range(3))]
    assert task.map([[0], [1], [2]], table=bytes(300_000)).results(timeout=30) == wanted
    assert task.map(range(3), table=bytes(300_000)).results(timeout=20) == wanted


def test_what_a_seeded_task_calls_draws_the_same_numbers_each_time(queue: Any) -> None:
    inner = queue.task(rng="rng")(draw)

    @queue.task(rng="rng", seed=5)
    def outer(x: int, rng: Any) -> tuple[Any, ...]:
        return rng.random(), inner(x), inner(x), inner.submit(x).result(), inner.map(range(2)).results()

    first, again = outer(1).result(timeout=30), outer(1).result(timeout=30)
    assert first == again
    assert len({*first[:4], *first[4]}) == 6


def test_local_calls_may_bring_a_generator(queue: Any) -> None:
    task = queue.task(rng="rng", seed=2)(draw)
    assert task.local(1, rng=random.Random(1)) == random.Random(1).random()
    assert task.local(1) == task.local(1) == expected(2, [0])[0]
    assert queue.task(rng="rng")(draw).local(1) != queue.task(rng="rng")(draw).local(1)


def test_where_there_is_no_numpy_it_is_pythons_own(queue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "numpy.random", None)
    first, again, other = seeds.generator(7, 3), seeds.generator(7, 3), seeds.generator(7, 4)
    assert type(first) is random.Random
    assert first.random() == again.random() != other.random()


def test_a_parameter_that_is_not_there_is_refused_where_it_is_named(queue: Any) -> None:
    with pytest.raises(BadOption, match="`draw` has no such parameter"):
        queue.task(rng="random")(draw)
    with pytest.raises(BadOption, match="`abs` takes it only by its place|`abs` has no such parameter"):
        queue.map(abs, [1], rng="x")
    with pytest.raises(BadOption, match="has no such parameter"):
        queue.task(draw).options(rng="r")


@pytest.mark.parametrize("seed", [-1, 1.5, "1", True])
def test_a_seed_that_cannot_be_meant_is_refused(queue: Any, seed: Any) -> None:
    with pytest.raises(BadOption, match="give a whole number, 0 or more"):
        queue.task(rng="rng", seed=seed)


def test_a_seed_without_a_parameter_for_it_is_refused(queue: Any) -> None:
    with pytest.raises(BadOption, match="name the parameter"):
        queue.task(draw).options(seed=1)
    assert queue.task(draw).options(rng="rng", seed=np.int64(3))._options.seed == 3


def test_a_generator_that_is_given_twice_is_refused(queue: Any) -> None:
    def between(a: int, rng: Any, b: int = 0) -> int:
        return a + b

    task = queue.task(rng="rng")(between)
    for bad in (lambda: task(1, rng=random.Random()), lambda: task(1, 2), lambda: task.map([1], [2])):
        with pytest.raises(BadCall, match="was given 'rng' twice"):
            bad()
    with pytest.raises(BadCall, match="was given 'rng' twice"):
        task.map([1], rng=random.Random())
    assert task.map([1, 2], b=3).results(timeout=30) == [4, 5]


def test_methods_draw_too(queue: Any) -> None:
    class Model:
        @queue.task(rng="rng", seed=4)
        def run(self, x: int, rng: Any) -> float:
            return float(rng.random())

    assert Model().run.map(range(3)).results(timeout=30) == expected(4, range(3))
