"""What workers print reaches the notebook whole, in time, and without anybody waiting for anybody."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from nbqueue.worker.telling import output
from nbqueue.worker.telling.output import Outlet, Tape, last_lines


@pytest.fixture
def tape() -> Iterator[Tape]:
    tape = Tape()
    yield tape
    tape.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Its ends to read and to write, with room for 64 KiB."""
    ends = os.pipe()
    os.set_blocking(ends[0], False)
    yield ends
    for fd in ends:
        os.close(fd)


def arrived(pipe: tuple[int, int]) -> bytes:
    try:
        return os.read(pipe[0], 1_000_000)
    except BlockingIOError:
        return b""


def test_whole_lines_are_passed_on_at_once_and_a_part_of_one_when_it_stands_still(
    tape: Tape, pipe: tuple[int, int]
) -> None:
    outlet = Outlet(pipe[1])
    os.write(tape.fd, b"one\ntwo\nthr")
    tape.pass_on(outlet)
    assert arrived(pipe) == b"one\ntwo\n"
    os.write(tape.fd, b"ee")
    tape.pass_on(outlet)
    assert arrived(pipe) == b"", "it is growing"
    tape.pass_on(outlet)
    assert arrived(pipe) == b"three"
    os.write(tape.fd, b"!")
    tape.pass_on(outlet, ended=True)
    assert arrived(pipe) == b"!"


def test_two_writers_append_to_one_tape(tape: Tape) -> None:
    other = os.dup(tape.fd)
    again = os.open(f"/dev/fd/{tape.fd}", os.O_WRONLY | os.O_APPEND)
    for fd in (tape.fd, other, again, tape.fd):
        os.write(fd, b"%d\n" % fd)
    os.close(other)
    os.close(again)
    assert tape.read(0).splitlines() == [str(fd) for fd in (tape.fd, other, again, tape.fd)]


def test_a_reader_that_reads_nothing_holds_nobody_up_and_misses_nothing(tape: Tape, pipe: tuple[int, int]) -> None:
    outlet = Outlet(pipe[1])
    lines = b"".join(b"line %d\n" % i for i in range(100_000))
    os.write(tape.fd, lines)
    for _ in range(5):
        tape.pass_on(outlet)
    assert outlet.behind
    got = bytearray()
    for _ in range(1000):
        got += arrived(pipe)
        outlet.flush()
        tape.pass_on(outlet)
    assert got == lines


def test_the_end_of_what_a_worker_printed_was_lost_when_it_ended_before_all_was_read(
    tape: Tape, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    outlet = Outlet(pipe[1])
    lines = b"".join(b"line %d\n" % i for i in range(100_000))
    os.write(tape.fd, lines)
    tape.pass_on(outlet, ended=True)
    got = bytearray()
    while outlet.behind:
        got += arrived(pipe)
        outlet.flush()
    assert got + arrived(pipe) == lines
    # But not without end, and a line says so.
    monkeypatch.setattr(output, "MOST_BEHIND_BYTES", 1_000_000)
    for _ in range(2):
        os.write(tape.fd, b"x" * 800_000)
        tape.pass_on(outlet, ended=True)
    got = bytearray()
    while outlet.behind:
        got += arrived(pipe)
        outlet.flush()
    got += arrived(pipe)
    assert 1_000_000 < got.count(b"x") < 1_600_000
    assert b"\nnbqueue: a task prints faster than can be shown; " in got


def test_of_far_too_much_the_middle_is_left_out_and_a_line_says_so(
    tape: Tape, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "MOST_BEHIND_BYTES", 100_000)
    outlet = Outlet(pipe[1])
    os.write(tape.fd, b"x" * 149_999 + b"\n")
    got = bytearray()
    tape.pass_on(outlet)
    for _ in range(10):
        got += arrived(pipe)
        outlet.flush()
    assert len(got) < 70_000
    assert got.endswith(b"xxx\n")
    assert b"84464 bytes are left out" in got
    assert output.KEPT_BYTES == 150_000 - 84_464


def test_memory_of_what_was_passed_on_is_given_back(tape: Tape) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    outlet = Outlet(nowhere)
    for _ in range(40):
        os.write(tape.fd, b"y" * 99_999 + b"\n")
        tape.pass_on(outlet)
        tape.free(1_000_000, tape.passed)
    os.close(nowhere)
    stat = os.fstat(tape.fd)
    assert stat.st_size == 4_000_000
    if output._fallocate is None:
        pytest.skip("this system cannot give back a part of a file")
    assert stat.st_blocks * 512 < 1_500_000
    assert tape.read(0) == ("y" * 99_999 + "\n")[-output.KEPT_BYTES :]
    (_, head), (_, tail) = output.pieces(tape.fd, 1_000_000, 4_000_000)
    assert head == (b"y" * 99_999 + b"\n")[: output.HEAD_BYTES] + b"y" * (output.HEAD_BYTES - 100_000)
    assert b"\0" not in tail, "of what an item prints, the two ends are kept"
    tape.free(4_000_000, tape.passed)
    os.write(tape.fd, b"z" * 1_000_000)
    tape.free(4_000_000, tape.size)
    assert os.fstat(tape.fd).st_blocks * 512 < 2_200_000, "and not for ever"


def test_where_nobody_reads_any_more_output_is_dropped(tape: Tape) -> None:
    r, w = os.pipe()
    outlet = Outlet(w)
    os.close(r)
    os.write(tape.fd, b"to nobody\n")
    tape.pass_on(outlet)
    os.close(w)
    assert not outlet.behind


def test_last_lines_are_of_both_streams_and_few() -> None:
    assert last_lines("", "") == ""
    assert last_lines("a\n\nb\n", "c\n") == "a\nb\nc"
    assert last_lines("\n".join(map(str, range(50))), "").splitlines() == [str(i) for i in range(40, 50)]


def test_last_lines_of_a_crash_say_where_in_the_task_it_was() -> None:
    report = (
        "mine\nFatal Python error: Segmentation fault\n\nCurrent thread 0x1 (most recent call first):\n"
        '  File "/lib/ctypes.py", line 5 in string_at\n  File "/tmp/cell.py", line 2 in touch\n'
        '  File "/x/nbqueue/worker/loop.py", line 9 in _run_item\n\nExtension modules: none (total: 0)\n'
    )
    assert last_lines("", report).splitlines() == [
        "mine",
        "Fatal Python error: Segmentation fault",
        '  File "/lib/ctypes.py", line 5 in string_at',
        '  File "/tmp/cell.py", line 2 in touch',
    ]
