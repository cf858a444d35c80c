"""What a task prints: live on your own stdout, and whole in its future."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

from nbqueue import WorkerDied


def talk(x: int) -> int:
    print("got", x)
    print("trouble with", x, file=sys.stderr)
    return x


def test_a_future_has_what_its_task_printed(queue: Any) -> None:
    future = queue.submit(talk, 3)
    assert future.result() == 3
    assert (future.stdout, future.stderr) == ("got 3\n", "trouble with 3\n")


def test_items_of_a_map_are_told_apart(queue: Any) -> None:
    batch = queue.map(talk, range(500))
    batch.results()
    assert [future.stdout for future in batch.futures] == [f"got {x}\n" for x in range(500)]
    assert batch.futures[7].stderr == "trouble with 7\n"


def test_a_task_that_prints_nothing_has_nothing(queue: Any) -> None:
    future = queue.submit(pow, 2, 3)
    future.result()
    assert (future.stdout, future.stderr, future.displays) == ("", "", [])


def test_programs_compiled_code_and_parts_of_lines_count(queue: Any) -> None:
    def speak() -> None:
        libc = ctypes.CDLL(None)
        libc.printf(b"compiled\n")
        libc.fflush(None)
        os.system("echo a program; echo its trouble >&2")
        print("a part", end="")

    future = queue.submit(speak)
    future.result()
    assert (future.stdout, future.stderr) == ("compiled\na program\na part", "its trouble\n")


def test_what_has_arrived_is_there_while_the_task_runs(queue: Any, tmp_path: Any, wait_until: Any) -> None:
    gate = tmp_path / "gate"

    def slow() -> None:
        import time

        print("row of dots: ", end="")
        while not gate.exists():
            time.sleep(0.01)
            print(".", end="")
        print(" over")

    future = queue.submit(slow)
    wait_until(lambda: future.stdout.startswith("row of dots: ."))
    gate.touch()
    future.result()
    assert future.stdout.endswith(". over\n")


def test_a_crash_loses_nothing(queue: Any) -> None:
    def crash() -> None:
        print("the last words")
        os.kill(os.getpid(), 9)

    future = queue.submit(crash)
    assert isinstance(future.exception(), WorkerDied)
    assert future.stdout == "the last words\n" * 2, "it was started twice"


def test_each_attempt_s_output_is_kept(queue: Any) -> None:
    @queue.task(retries=1)
    def fail() -> None:
        print("trying")
        raise ValueError

    future = fail()
    assert isinstance(future.exception(), ValueError)
    assert future.stdout == "trying\n" * 2


def test_of_far_too_much_the_two_ends_are_kept(queue: Any) -> None:
    def much() -> None:
        for i in range(200_000):
            print("line", i)

    future = queue.submit(much)
    future.result()
    assert future.stdout.startswith("line 0\nline 1\n")
    assert future.stdout.endswith("line 199999\n")
    assert "bytes are left out" in future.stdout
    assert len(future.stdout) < 263_000


def test_a_worker_elsewhere_sends_what_its_tasks_print(
    redis_server: Any, start_host: Any, new_key: str, wait_until: Any
) -> None:
    from nbqueue import TaskQueue

    host = start_host(redis_server.url, new_key, workers=1)
    future = TaskQueue(redis_server.url, new_key).submit(talk, 5)
    assert future.result(timeout=30) == 5
    assert future.stdout == "got 5\n"
    # And shows it there.
    assert host.line("got ") == "5"
