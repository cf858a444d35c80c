"""However a task ends, it ends visibly, alone, and the worker takes the next one."""

from __future__ import annotations

import builtins
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from nbqueue import RemoteError, TaskError, WorkerDied
from nbqueue.errors import InputNotAvailable, NbqueueError, ResultNotSendable


@pytest.fixture(autouse=True)
def next_task_is_fine(queue: Any) -> Iterator[None]:
    yield
    assert queue.submit(abs, -2).result(timeout=20) == 2


def test_sys_exit_in_a_task_ends_neither_the_worker_nor_the_notebook(queue: Any) -> None:
    with pytest.raises(RemoteError, match=r"sys\.exit\(7\)") as caught:
        queue.submit(sys.exit, 7).result(timeout=20)
    assert caught.value.type_name.endswith("SystemExit")


def test_a_task_that_raises_keyboard_interrupt_fails_alone(queue: Any) -> None:
    """It must not look as if the cell itself had been interrupted."""

    @queue.task
    def stop(i: int) -> int:
        if i == 2:
            raise KeyboardInterrupt
        return i

    results = stop.map(range(5)).results(return_exceptions=True, timeout=20)
    failed = results.pop(2)
    assert isinstance(failed, RemoteError)
    assert "KeyboardInterrupt" in str(failed)
    assert results == [0, 1, 3, 4]


def test_a_result_that_cannot_be_pickled_is_named(queue: Any) -> None:
    @queue.task
    def lock(i: int) -> Any:
        return threading.Lock() if i == 1 else i

    results = lock.map(range(3)).results(return_exceptions=True, timeout=20)
    assert isinstance(results[1], ResultNotSendable)
    assert "`lock` ran to its end" in str(results[1])
    assert "_thread.lock" in str(results[1])
    assert "Return plain data" in str(results[1])
    assert (results[0], results[2]) == (0, 2)


def test_a_coroutine_or_a_future_that_is_returned_is_named_with_what_to_do(queue: Any) -> None:
    """It was told to "return plain data", behind two full stops where the error had one of its own."""

    async def nap(x: int) -> int:
        return x

    @queue.task
    def forgot(x: int) -> Any:
        return nap(x)

    @queue.task
    def handed_on(x: int) -> Any:
        return queue.submit(abs, x)

    with pytest.raises(ResultNotSendable, match=r"`forgot` .* a coroutine.*`async def` .*asyncio\.run\(nap\(…"):
        forgot(1).result(timeout=20)
    with pytest.raises(ResultNotSendable, match=r"`handed_on` ran .*Use its result\(\)\. Return plain data"):
        handed_on(1).result(timeout=20)


def test_a_result_that_cannot_be_unpickled_costs_only_itself(queue: Any) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return int, ("not a number",)

    @queue.task
    def make(i: int) -> Any:
        return Trap() if i == 1 else i

    batch = make.map(range(4))
    results = batch.results(return_exceptions=True, timeout=20)
    assert isinstance(results[1], RemoteError)
    assert "cannot be unpickled" in str(results[1])
    assert results[0::2] == [0, 2]
    assert batch[3] == 3


def test_an_argument_that_cannot_be_unpickled_costs_only_its_item(queue: Any) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return int, ("not a number",)

    results = queue.map(type, [1, Trap(), 2]).results(return_exceptions=True, timeout=20)
    assert isinstance(results[1], ValueError)
    assert results[0::2] == [int, int]


def test_an_exception_whose_constructor_takes_two_arguments_arrives_as_itself(queue: Any) -> None:
    class Odd(Exception):
        def __init__(self, code: int, text: str) -> None:
            super().__init__(f"{code}: {text}")
            self.code = code

    def fail() -> None:
        raise Odd(7, "so odd")

    error = queue.submit(fail).exception(timeout=20)
    assert isinstance(error, Odd)
    assert (error.code, str(error)) == (7, "7: so odd")


def test_an_exception_that_holds_something_unpicklable_still_tells_its_story(queue: Any) -> None:
    class Holder(Exception):
        pass

    def fail() -> None:
        error = Holder("holds a lock")
        error.lock = threading.Lock()  # type: ignore[attr-defined]
        raise error

    error = queue.submit(fail).exception(timeout=20)
    assert error is not None
    assert "holds a lock" in str(error)
    assert isinstance(error, Holder | RemoteError)


def test_input_in_a_task_says_that_there_is_no_keyboard(queue: Any) -> None:
    with pytest.raises(InputNotAvailable, match="no keyboard.*pass the answer as an argument"):
        queue.submit(builtins.input, "name? ").result(timeout=20)
    with pytest.raises(EOFError):
        queue.submit(lambda: sys.stdin.readline()).result(timeout=20)


def test_a_task_that_recurses_without_end_fails_alone(queue: Any) -> None:
    def deeper(n: int) -> int:
        return deeper(n + 1)

    with pytest.raises(RecursionError):
        queue.submit(deeper, 0).result(timeout=20)


def test_a_task_that_closes_stdout_or_replaces_it_harms_nobody(queue: Any) -> None:
    def close() -> str:
        sys.stdout.close()
        sys.stderr = None  # type: ignore[assignment]
        return "closed"

    futures = [queue.submit(close) for _ in range(2)]
    assert [future.result(timeout=20) for future in futures] == ["closed", "closed"]
    assert queue.map(lambda i: print("", end="") or i, range(10)).results(timeout=20) == list(range(10))


def test_a_task_may_leave_a_thread_behind(queue: Any) -> None:
    def leave() -> None:
        threading.Thread(target=threading.Event().wait, daemon=False).start()

    assert queue.submit(leave).result(timeout=20) is None


def test_every_way_to_end_without_an_exception_of_its_own_is_a_task_error() -> None:
    from nbqueue import errors

    for name in ("WorkerDied", "TaskTimeout", "ResultNotSendable", "BadMessage", "RemoteError"):
        assert issubclass(getattr(errors, name), TaskError)


def test_an_error_of_ours_that_a_task_raises_is_one_like_any_other(queue: Any, tmp_path: Any) -> None:
    """It was pickled plainly, which killed the worker; was never retried, and lost its traceback and cause."""

    class Mine(NbqueueError):
        pass

    @queue.task(retries=2)
    def fail(kind: str) -> None:
        with (tmp_path / kind).open("a") as file:
            file.write("x")
        try:
            1 / 0  # noqa: B018
        except ZeroDivisionError as error:
            if kind == "mine":
                raise Mine("of a cell") from error
            raise TaskError(threading.Lock() if kind == "lock" else "plain") from error

    for kind in ("mine", "plain", "lock"):
        error = fail(kind).exception(timeout=20)
        assert error is not None
        assert not isinstance(error, WorkerDied)
        assert (tmp_path / kind).read_text() == "xxx"
        if kind != "lock":
            assert isinstance(error.__cause__, ZeroDivisionError)
            assert "fail" in "".join(traceback.format_tb(error.__traceback__))


def test_a_nested_calls_time_limit_can_be_retried_by_its_caller(queue: Any, tmp_path: Any) -> None:
    @queue.task(timeout=0.3)
    def slow() -> str:
        if not (tmp_path / "tried").exists():
            (tmp_path / "tried").touch()
            time.sleep(60)
        return "quick"

    outer = queue.task(retries=1)(lambda: slow.submit().result())
    assert outer().result(timeout=30) == "quick"


@pytest.mark.parametrize("spoil", ["flush", "no stdout", "no path"])
def test_what_a_task_spoils_costs_neither_it_nor_its_neighbours(queue: Any, spoil: str) -> None:
    """The clean-up after a call failed, the worker left, and the last item of the chunk was charged with it."""

    class BadFlush:
        def write(self, text: str) -> None: ...

        def flush(self) -> None:
            raise RuntimeError("flush")

    def work(i: int) -> int:
        if i == 3 and spoil == "flush":
            sys.stdout = BadFlush()  # type: ignore[assignment]
        elif i == 3 and spoil == "no stdout":
            del sys.stdout
        elif i == 3:
            sys.path = None  # type: ignore[assignment]
        return i

    assert queue.task(chunksize=10)(work).map(range(10)).results(timeout=20) == list(range(10))
    assert queue.submit(work, 3).result(timeout=20) == 3


def test_an_exception_whose_text_ends_the_program_ends_only_its_task(queue: Any) -> None:
    class Rude(Exception):
        def __str__(self) -> str:
            sys.exit(3)

    def fail() -> None:
        raise Rude

    error = queue.submit(fail).exception(timeout=20)
    assert isinstance(error, RemoteError | Rude)
    assert not isinstance(error, WorkerDied)


@pytest.mark.parametrize("what", ["names", "all", "exit"])
def test_an_exception_whose_class_does_not_tell_its_name_cost_its_worker_twice(queue: Any, what: str) -> None:
    def work(x: int) -> int:
        class Mute(type):
            def __getattribute__(cls, name: str) -> Any:
                if what != "names" or name in ("__name__", "__qualname__", "__module__"):
                    raise SystemExit(3) if what == "exit" else RuntimeError(name)
                return type.__getattribute__(cls, name)

        class Unnamed(Exception, metaclass=Mute):
            pass

        if x == 2:
            raise Unnamed("two")
        return x

    # Its name is asked for, too, where only some exceptions are worth a retry.
    task = queue.task(work, chunksize=5, retries=1, retry_on=(OSError,))
    results = task.map(range(5)).results(return_exceptions=True, timeout=20)
    error = results.pop(2)
    assert results == [0, 1, 3, 4]
    assert isinstance(error, RemoteError)
    assert not isinstance(error, WorkerDied)
    assert "Unnamed" in str(error)
    if what == "names":
        assert str(error).endswith("Unnamed: two")
        assert "in work" in error.traceback_text


def test_a_result_that_ends_the_program_when_it_is_unpickled_is_an_error(queue: Any) -> None:
    class Rude:
        def __reduce__(self) -> Any:
            return sys.exit, (3,)

    with pytest.raises(RemoteError, match="SystemExit"):
        queue.submit(Rude).result(timeout=20)
