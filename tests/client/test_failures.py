"""What is told about failures, and running them again here."""

from __future__ import annotations

import concurrent.futures
import gc
import html
import os
import pickle
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nbqueue
from nbqueue import NbqueueError, TaskCancelled, TaskTimeout, WorkerDied
from nbqueue.client.results.failures import Failures, annotate, note_of
from nbqueue.client.results.future import TaskFuture
from nbqueue.client.results.outcome import Outcome
from nbqueue.client.results.replay import Kept
from nbqueue.codec.functions import dump_arguments
from nbqueue.codec.messages import EXCEPTION
from nbqueue.codec.tracebacks import dump_exception

OURS = str(Path(nbqueue.__path__[0]))


def reciprocal(x: float) -> float:
    return 1 / x


def raised(run: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - which one is the caller's business
        run()
    return caught.value


def files(error: BaseException) -> list[str]:
    return [frame.filename for frame in traceback.extract_tb(error.__traceback__)]


# ---- no frames of ours


async def _awaited(what: Any) -> Any:
    return await what


WAYS: dict[str, Callable[[Any, Any], object]] = {
    "result": lambda future, batch: future.result(20),
    "call": lambda future, batch: future(),
    "gather": lambda future, batch: nbqueue.gather([future]),
    "as_completed": lambda future, batch: [f.result() for f in nbqueue.as_completed([future])],
    "results": lambda future, batch: batch.results(),
    "iteration": lambda future, batch: list(batch),
    "index": lambda future, batch: batch[1],
    "slice": lambda future, batch: batch[0:2],
    "batch.as_completed": lambda future, batch: [f.result() for f in batch.as_completed()],
    "future of a batch": lambda future, batch: batch.futures[1].result(),
    "replay": lambda future, batch: future.replay(),
}


@pytest.mark.parametrize("way", WAYS)
def test_no_frame_of_ours_is_in_a_traceback(queue: Any, way: str) -> None:
    future, batch = queue.submit(reciprocal, 0), queue.map(reciprocal, [1, 0])
    future.exception(20)
    batch.wait(20)
    error = raised(lambda: WAYS[way](future, batch))
    assert isinstance(error, ZeroDivisionError)
    assert {file for file in files(error) if file != concurrent.futures._base.__file__} == {__file__}
    assert traceback.extract_tb(error.__traceback__)[-1].line == "return 1 / x"


@pytest.mark.parametrize("what", ["future", "batch"])
def test_no_frame_of_ours_is_in_what_an_await_raises(queue: Any, what: str) -> None:
    import asyncio

    waited_for = queue.submit(reciprocal, 0) if what == "future" else queue.map(reciprocal, [1, 0])
    error = raised(lambda: asyncio.run(_awaited(waited_for)))
    assert isinstance(error, ZeroDivisionError)
    assert not [file for file in files(error) if file.startswith(OURS)]


def test_what_has_no_frames_of_its_own_points_to_where_it_was_asked_for(queue: Any) -> None:
    future = queue.submit(time.sleep, 60)
    late = raised(lambda: future.result(timeout=0.01))
    future.cancel()
    cancelled = raised(lambda: future.result())
    builtin = raised(lambda: queue.submit(abs, "x").result(20))
    out_of_range = raised(lambda: queue.map(abs, [1])[7])
    assert [type(e) for e in (late, cancelled, builtin, out_of_range)] == [
        *(TimeoutError, TaskCancelled, TypeError, IndexError)
    ]
    for error in (late, cancelled, builtin, out_of_range):
        assert set(files(error)) == {__file__}


def test_what_the_input_of_a_batch_raises_has_its_own_frames(queue: Any) -> None:
    def items() -> Any:
        yield 1
        raise LookupError("the input broke")

    batch = queue.map(abs, items())
    error = raised(lambda: batch.results(timeout=20))
    assert set(files(error)) == {__file__}
    assert traceback.extract_tb(error.__traceback__)[-1].name == "items"


def test_an_exception_that_allows_no_assignment_loses_our_frames_too(queue: Any) -> None:
    class Frozen(Exception):
        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError(name)

    def fail() -> None:
        raise Frozen

    error = raised(lambda: queue.submit(fail).result(20))
    assert set(files(error)) == {__file__}


def test_a_fault_of_ours_shows_where_it_is(queue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    future = queue.submit(abs, -1)
    future.exception(20)
    monkeypatch.setattr(future, "_outcome", None)
    assert any(file.startswith(OURS) for file in files(raised(lambda: future.result())))


def with_a_lock(queue: Any) -> list[Callable[[], object]]:
    task, lock = queue.task(reciprocal), threading.Lock()
    return [
        lambda: task(lock),
        lambda: task.map([lock]),
        lambda: queue.submit(reciprocal, lock),
        lambda: queue.map(reciprocal, [lock]),
        lambda: queue.put(lock),
    ]


def test_what_is_refused_is_refused_in_few_lines(queue: Any) -> None:
    refusals: list[Callable[[], object]] = [
        *with_a_lock(queue),
        lambda: queue.map(reciprocal, 3),
        lambda: queue.task(reciprocal).starmap([1]),
        lambda: queue.task(reciprocal).options(retries=-1),
        lambda: queue.task(retries=-1),
        lambda: queue.run(0),
        lambda: nbqueue.TaskQueue("redis://127.0.0.1:1/0"),
    ]
    for refused in refusals:
        error = raised(refused)
        assert isinstance(error, NbqueueError)
        assert set(files(error)) == {__file__}
        for cause in (error.__cause__, error.__context__):
            assert cause is None or cause.__traceback__ is None


def test_of_what_led_to_a_refusal_the_users_own_frames_stay(queue: Any) -> None:
    class Stubborn:
        def __reduce__(self) -> Any:
            raise RuntimeError("not me")

    error = raised(lambda: queue.submit(reciprocal, Stubborn()))
    assert error.__cause__ is not None
    assert not [file for file in files(error.__cause__) if file.startswith(OURS)]
    assert traceback.extract_tb(error.__cause__.__traceback__)[-1].name == "__reduce__"


# ---- notes


def test_the_note_appears_once_however_often_the_error_is_raised(queue: Any) -> None:
    batch = queue.map(reciprocal, [0, 0])
    errors = {id(raised(run)): raised(run) for run in (batch.results, lambda: batch[0], batch.futures[0].result)}
    (error,) = errors.values()
    assert len([note for note in error.__notes__ if note.startswith("task reciprocal[0] with x=0")]) == 1
    assert len([note for note in error.__notes__ if "failed" in note]) == 1


def test_the_note_survives_pickling(queue: Any) -> None:
    error = queue.submit(reciprocal, 0).exception(20)
    assert pickle.loads(pickle.dumps(error)).__notes__ == error.__notes__
    assert error.__notes__[-1].startswith("task reciprocal with x=0")


def test_an_error_of_an_inner_task_has_the_notes_of_both(queue: Any) -> None:
    @queue.task
    def inner(x: int) -> float:
        return 1 / x

    @queue.task
    def outer(y: int) -> float:
        return inner.submit(y - 5).result()

    notes = outer(5).exception(30).__notes__
    assert [note.split(" · ")[0] for note in notes] == ["task inner with x=0", "task outer with y=5"]


def test_the_death_of_a_worker_tells_the_arguments(queue: Any) -> None:
    error = queue.map(lambda status, how: how(status), [3], [os._exit]).futures[0].exception(30)
    assert isinstance(error, WorkerDied)
    assert error.__notes__[0].startswith("task <lambda>[0] with status=3, how=_exit · attempt 2 · worker ")


def test_a_timeout_tells_the_arguments_and_where_it_was(queue: Any) -> None:
    def slow(seconds: float) -> None:
        time.sleep(seconds)

    error = queue.task(timeout=0.1)(slow)(60).exception(20)
    assert isinstance(error, TaskTimeout)
    assert error.timeout_s == 0.1
    assert error.__notes__[0].startswith("task slow with seconds=60 · worker ")
    assert traceback.extract_tb(error.__traceback__)[-1].line == "time.sleep(seconds)"


def test_arguments_that_cannot_be_looked_at_are_left_out() -> None:
    assert note_of("f", Kept(abs, b"no pickle"), "host:3:7", 1) == "task f · worker 3"
    assert note_of("f", None, None, 0) == "task f"
    assert note_of("f", Kept(abs, (1,), attempts=2), None, 3) == "task f with x=1 · attempt 3"


def test_an_exception_that_cannot_take_a_note_is_left_alone() -> None:
    class Closed(Exception):
        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError(name)

    class Odd(Exception):
        __notes__ = 5  # type: ignore[assignment]

    for error in (Closed(), Odd()):
        annotate(error, "a note")
    assert not hasattr(Closed(), "__notes__")


def test_the_summary_is_kept_current(queue: Any, tmp_path: Path) -> None:
    def work(x: int) -> int:
        if x or not (tmp_path / "mended").exists():
            raise [ValueError, KeyError, OSError][x]
        return x

    batch = queue.map(work, [1, 2, 0])
    assert raised(batch.results).__notes__[1:] == [
        "3 of 3 items failed: KeyError ×1, OSError ×1, ValueError ×1; batch.failed lists them"
    ]
    (tmp_path / "mended").touch()
    batch.retry_failed()
    for again in (batch.results, lambda: next(iter(batch))):
        assert raised(again).__notes__[1:] == ["2 of 3 items failed: KeyError ×1, OSError ×1; batch.failed lists them"]


def test_one_failure_alone_needs_no_summary(queue: Any) -> None:
    assert len(raised(queue.map(reciprocal, [1, 0]).results).__notes__) == 1


# ---- the list of failures


def divide(x: int) -> float:
    if x > 5:
        raise ValueError(f"{x} is too large")
    return 1 / x


def test_failures_are_a_list_and_read_as_a_table(queue: Any) -> None:
    batch = queue.map(divide, [1, 0, 6, 7])
    batch.wait(20)
    failed = batch.failed
    assert isinstance(failed, list)
    assert failed == [batch.future(1), batch.future(2), batch.future(3)]
    first = divide.__code__.co_firstlineno
    assert repr(failed).splitlines() == [
        "3 of 4 items failed",
        "2 × ValueError: 6 is too large (and 1 other message)",
        f'    client/test_failures.py, line {first + 2}, in divide: raise ValueError(f"{{x}} is too large")',
        "    items [2], [3], the first with x=6",
        "1 × ZeroDivisionError: division by zero",
        f"    client/test_failures.py, line {first + 3}, in divide: return 1 / x",
        "    items [1], with x=0",
    ]
    page = failed._repr_html_()
    for text in ("3 of 4 items failed", "ValueError", "6 is too large (and 1 other message)", "[2], [3]", "x=6"):
        assert text in page


def test_no_failures_look_like_an_empty_list(queue: Any) -> None:
    failed = queue.map(abs, [1]).failed
    assert failed == []
    assert (repr(failed), failed._repr_html_()) == ("[]", "<i>no failed items</i>")
    assert pickle.loads(pickle.dumps(failed)) == []


def test_the_table_survives_a_sanitiser_and_hostile_texts() -> None:
    page = Failures([_failed("f[0]", "<script>alert(1)</script>", "<b>")], 1)._repr_html_().replace("<wbr>", "")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    for refused in ("<style", "var(", "<svg", "onclick"):
        assert refused not in page


def test_a_long_word_may_be_broken_in_the_page_and_stays_whole_in_the_text() -> None:
    word = "<path>/" * 10
    failed = Failures([_failed("f[0]", word, word)], 1)
    assert word in repr(failed)
    page = failed._repr_html_()
    assert html.escape(word) in page.replace("<wbr>", "")
    assert page.count("<wbr>") > 20


def test_ten_thousand_failures_make_a_short_table() -> None:
    failed = Failures([_failed(f"f[{i}]", f"message {i}", i) for i in range(11_000)], 20_000)
    text, page = repr(failed), failed._repr_html_()
    assert text.startswith("11,000 of 20,000 items failed\n10,000 × ValueError: message 0 (and 200 other messages)\n")
    assert "items [0], [1], [2], [3], [4] and 9,995 more, the first with x=0" in text
    assert text.endswith("only the first 10,000 were looked at")
    assert len(page) < 5_000


def test_failures_of_many_kinds_are_cut_after_the_largest() -> None:
    kinds = [type(f"Error{i}", (Exception,), {}) for i in range(50)]
    failed = Failures([_failed(f"f[{i}]", "m", 0, kinds[i % 50]) for i in range(60)])
    assert repr(failed).endswith("30 more of 30 other kinds")
    assert "2 × test_failures.Error0: m" in repr(failed)


def _failed(name: str, message: str, argument: object, kind: type[Exception] = ValueError) -> TaskFuture[Any]:
    kept = Kept(lambda x: x, dump_arguments((argument,), {}, "f"))
    future: TaskFuture[Any] = TaskFuture(name, None, kept=lambda: kept)
    future._arrive(Outcome(EXCEPTION, dump_exception(kind(message)), False), None)
    return future


# ---- replay


def remember(x: Any, *more: Any, **keywords: Any) -> None:
    raise ValueError(x, more, keywords)


def test_a_call_is_replayed_with_what_it_was_given(queue: Any) -> None:
    future = queue.submit(remember, [1], 2, key="k")
    future.exception(20)
    for _ in range(2):
        assert raised(future.replay).args == ([1], (2,), {"key": "k"})


def test_items_are_replayed_with_what_they_were_given(queue: Any) -> None:
    for batch in (
        queue.task(remember).map([1, [2]], ["a", "b"], key="k"),
        queue.task(remember).starmap([(1, "a"), ([2], "b")], key="k"),
    ):
        batch.wait(20)
        assert raised(batch.futures[0].replay).args == (1, ("a",), {"key": "k"})
        assert raised(batch.failed[1].replay).args == ([2], ("b",), {"key": "k"})


def test_a_retried_item_is_replayed(queue: Any) -> None:
    batch = queue.task(retries=1, chunksize=4)(remember).map(range(4))
    batch.wait(30)
    assert raised(batch.futures[2].replay).args == (2, (), {})


def test_each_replay_gets_fresh_arguments(queue: Any) -> None:
    def spoil(numbers: list[int]) -> None:
        numbers.append(1)
        raise ValueError(len(numbers))

    given: list[int] = []
    future = queue.submit(spoil, given)
    future.exception(20)
    assert [raised(future.replay).args for _ in range(2)] == [(1,), (1,)]
    assert given == []


class Model:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def fit(self, x: int) -> None:
        raise ValueError(self.factor * x)


def test_a_method_is_replayed(queue: Any) -> None:
    future = queue.submit(Model(2).fit, 3)
    future.exception(20)
    assert raised(future.replay).args == (6,)


def test_timeouts_deaths_and_cancelled_calls_are_replayed(queue: Any) -> None:
    here = os.getpid()

    def only_elsewhere(how: str) -> str:
        if os.getpid() != here and how == "slow":
            time.sleep(60)
        if os.getpid() != here:
            os._exit(3)
        return how

    task = queue.task(timeout=0.2)(only_elsewhere)
    late, dead = task("slow"), queue.submit(only_elsewhere, "dead")
    cancelled = queue.submit(only_elsewhere, "slow")
    batch = queue.map(only_elsewhere, ["slow"] * 3)
    cancelled.cancel()
    batch.cancel()
    assert isinstance(late.exception(20), TaskTimeout)
    assert isinstance(dead.exception(20), WorkerDied)
    assert [f.replay() for f in (late, dead, cancelled, batch.futures[2])] == ["slow", "dead", "slow", "slow"]


def test_one_cancelled_item_of_a_running_chunk_is_replayed(queue: Any, tmp_path: Path) -> None:
    def work(x: int) -> int:
        while not (tmp_path / "go").exists():
            time.sleep(0.005)
        return x

    batch = queue.map(work, range(6), chunksize=3)
    batch.futures[4].cancel()
    (tmp_path / "go").touch()
    batch.wait(20)
    assert batch.futures[4].replay() == 4


def test_tasks_called_inside_run_here_too(queue: Any, capfd: pytest.CaptureFixture[str]) -> None:
    pids: list[int] = []

    @queue.task
    def inner(x: int) -> float:
        pids.append(os.getpid())
        return 1 / x

    @queue.task
    def outer(x: int) -> float:
        return inner(x)

    future = outer(0)
    future.exception(20)
    assert isinstance(raised(future.replay), ZeroDivisionError)
    assert pids == [os.getpid()]
    assert not isinstance(inner(1), float), "outside of the replay it is sent again"
    assert capfd.readouterr() == ("", "")


def test_what_a_replayed_task_submits_is_sent(queue: Any) -> None:
    here = os.getpid()

    @queue.task
    def inner() -> int:
        return os.getpid()

    def outer() -> int:
        if os.getpid() != here:
            raise OSError
        return inner.submit().result(20)

    future = queue.submit(outer)
    future.exception(20)
    assert future.replay() != here


def test_a_call_that_succeeded_cannot_be_replayed_and_has_let_go_of_its_arguments(queue: Any) -> None:
    class Big:
        def __call__(self) -> int:
            return 1

    function = Big()
    gone = weakref.ref(function)
    future, batch = queue.submit(function), queue.map(abs, [-1])
    assert (future.result(20), batch.results()) == (1, [1])
    del function
    gc.collect()
    assert gone() is None
    for done in (future, batch.futures[0]):
        with pytest.raises(NbqueueError, match=r"cannot be replayed: arguments are kept only until .* succeeded"):
            done.replay()


def test_what_was_never_sent_cannot_be_replayed(queue: Any) -> None:
    batch = queue.map(lambda x: x, [1, (x for x in ())])
    batch.wait(20)
    with pytest.raises(NbqueueError, match="it was never sent"):
        batch.futures[1].replay()


def test_what_was_put_is_there_at_a_replay(queue: Any) -> None:
    handle = queue.put(list(range(1000)))
    future = queue.submit(lambda numbers: 1 / (len(numbers) - 1000), handle)
    batch = queue.map(lambda numbers, x: numbers[x], [handle], [5000])
    digest = handle.digest
    del handle
    gc.collect()
    assert future.exception(20).__notes__[0].startswith("task <lambda> with numbers=<Put list, ")
    assert digest not in future.exception().__notes__[0]
    assert isinstance(raised(future.replay), ZeroDivisionError)
    assert isinstance(raised(batch.futures[0].result), IndexError)
    assert isinstance(raised(batch.futures[0].replay), IndexError)


class Deadly:
    """Whoever unpickles it dies."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)


def test_looking_at_a_call_that_kills_whoever_unpickles_it_is_safe(queue: Any) -> None:
    error = queue.submit(reciprocal, Deadly()).exception(30)
    assert isinstance(error, WorkerDied)
    assert error.__notes__[0].startswith("task reciprocal with x=<exit> · attempt 2")
    batch = queue.map(reciprocal, [Deadly()])
    batch.wait(30)
    assert "with x=<exit>" in repr(batch.failed)
    assert {task.arguments for task in queue.history()} == {"<exit>"}
