"""Whose a printed byte is: the running item's, which its caller hears of, or nobody's, which goes to the outlet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from nbqueue.worker.board import Board, Line, Slot
from nbqueue.worker.telling import output, recorder
from nbqueue.worker.telling.output import Outlet
from nbqueue.worker.telling.recorder import Recorder


class Worker:
    """What a worker does to its tapes and its line of the board; and what its supervisor makes of it."""

    def __init__(self, slot: Slot, *, echo: bool) -> None:
        self.slot = slot
        self.outlet_r, outlet_w = os.pipe()
        os.set_blocking(self.outlet_r, False)
        self._fds = [self.outlet_r, outlet_w]
        self.recorder = Recorder((Outlet(outlet_w), Outlet(outlet_w)), echo=echo)
        self.now = 0.0

    def call(self, n: str, printed: tuple[int, int]) -> None:
        self.slot.call("1/1-0", "00", n, 1, 0, "work", printed)
        self.slot.item(0, 1)

    def end(self) -> None:
        self.slot.printed(self.sizes())
        self.slot.idle()

    def sizes(self) -> tuple[int, int]:
        out, err = (os.fstat(fd).st_size for fd in self.recorder.fds)
        return out, err

    def write(self, data: bytes, stream: int = 1) -> None:
        os.write(self.recorder.fds[stream - 1], data)

    def passed_on(self, **how: Any) -> bytes:
        self.recorder.pass_on(self.slot, **how)
        try:
            return os.read(self.outlet_r, 1_000_000)
        except BlockingIOError:
            return b""

    def line(self) -> Line:
        line = self.slot.read()
        assert line is not None
        return line

    def news(self, **how: Any) -> list[tuple[int, int, str]]:
        self.now += 1.0
        events = self.recorder.news(self.slot, self.line(), self.now, **how)
        return [(event["stream"], event["at"], event["text"]) for event in events]

    def close(self) -> None:
        self.recorder.close()
        for fd in self._fds:
            os.close(fd)


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create(2)
    yield board
    os.close(board.fd)


@pytest.fixture(params=[False])
def worker(board: Board, request: pytest.FixtureRequest) -> Iterator[Worker]:
    worker = Worker(board.slot(0), echo=request.param)
    yield worker
    worker.close()


def test_what_a_call_prints_is_told_and_not_passed_on(worker: Worker) -> None:
    worker.call("1", (0, 0))
    worker.write(b"one\ntw")
    assert worker.news() == [(1, 0, "one\n")]
    worker.write(b"o\n")
    worker.write(b"oh\n", 2)
    assert worker.news() == [(1, 4, "two\n"), (2, 0, "oh\n")]
    assert worker.news() == []
    worker.end()
    assert worker.passed_on() == b""


def test_what_is_printed_while_nothing_runs_is_passed_on_and_no_call_s(worker: Worker) -> None:
    worker.write(b"at start\n")
    assert worker.passed_on() == b"at start\n"
    worker.call("1", worker.slot.passed_on())
    worker.write(b"mine\n")
    assert worker.news() == [(1, 0, "mine\n")]
    worker.end()
    worker.write(b"nobody's\n")
    assert worker.passed_on() == b"nobody's\n"
    assert worker.slot.passed_on() == worker.sizes()


@pytest.mark.parametrize("worker", [True], indirect=True)
def test_where_a_script_looks_on_all_is_passed_on_and_told_too(worker: Worker) -> None:
    worker.call("1", (0, 0))
    worker.write(b"mine\n")
    assert worker.passed_on() == b"mine\n"
    assert worker.news() == [(1, 0, "mine\n")]
    worker.end()
    worker.write(b"nobody's\n")
    assert worker.passed_on() == b"nobody's\n"


def test_a_part_of_a_line_is_told_when_it_stands_still_but_no_part_of_a_character(worker: Worker) -> None:
    worker.call("1", (0, 0))
    worker.write("naïve"[:3].encode()[:3])
    assert worker.news() == [], "it may be growing"
    assert worker.news() == [(1, 0, "na")]
    worker.write("ï".encode()[1:] + b"ve\n")
    assert worker.news() == [(1, 2, "ïve\n")]


def test_a_row_of_dots_that_grows_at_every_look_is_told_all_the_same(worker: Worker) -> None:
    worker.call("1", (0, 0))
    told = ""
    for _ in range(3):
        worker.write(b".")
        told += "".join(text for _, _, text in worker.news())
    assert told in ("..", "...")


@pytest.mark.parametrize("worker", [True], indirect=True)
def test_where_a_script_looks_on_a_row_of_dots_that_grows_is_seen_all_the_same(
    worker: Worker, wait_until: Any
) -> None:
    worker.call("1", (0, 0))
    worker.write(b".")
    assert worker.passed_on() == b"", "it may be growing"

    def seen() -> bytes:
        worker.write(b".")
        return worker.passed_on()

    assert wait_until(seen).startswith(b"..")


def test_what_comes_a_moment_later_waits_for_its_turn(worker: Worker) -> None:
    worker.call("1", (0, 0))
    worker.write(b"one\n")
    assert worker.news()
    worker.write(b"two\n")
    assert not worker.recorder.news(worker.slot, worker.line(), worker.now + recorder.NEWS_S / 2)
    assert worker.news() == [(1, 4, "two\n")]


def test_of_much_at_once_the_end_is_told(worker: Worker) -> None:
    worker.call("1", (0, 0))
    worker.write(b"".join(b"%07d\n" % i for i in range(10_000)))
    ((_, at, text),) = worker.news()
    assert at + len(text) == 80_000
    assert len(text) <= output.EVENT_BYTES
    assert text.startswith("000"), "whole lines"
    assert at % 8 == 0


def test_what_a_call_prints_after_we_looked_who_runs_is_told_as_nobody_else_s(worker: Worker) -> None:
    """The next call's first lines were shown as the last one's."""
    worker.call("1", (0, 0))
    worker.write(b"mine\n")
    line = worker.line()
    worker.end()
    worker.call("2", worker.sizes())
    worker.write(b"other's\n")
    assert worker.recorder.news(worker.slot, line, 1.0) == []
    assert worker.news() == [(1, 0, "other's\n")]


def test_the_last_words_of_a_worker_that_dies_are_told_and_kept(worker: Worker) -> None:
    worker.write(b"of one before\n")
    worker.call("1", worker.sizes())
    worker.write(b"last wor")
    assert worker.news(ended=True) == [(1, 0, "last wor")]
    assert worker.recorder.printed(worker.line()) == ((0, 1, 8, ((0, b"last wor"),)),)
    assert worker.recorder.last_lines(worker.line()) == "last wor"
    assert worker.passed_on(ended=True) == b""
