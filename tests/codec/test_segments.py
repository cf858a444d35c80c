"""Segments: written once, mapped where they are needed, written again only when nobody maps them."""

from __future__ import annotations

import fcntl
import os
import pickle
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbqueue.codec import frames, segments, shelves, written
from nbqueue.codec.frames import SHARED_BYTES, Frame, load_frame
from nbqueue.codec.functions import dump_arguments, dump_frame
from nbqueue.codec.glimpse import glimpse_values
from nbqueue.codec.segments import Directory, Guest, Mapping
from nbqueue.codec.shelves import Own
from nbqueue.errors import NbqueueError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no /dev/shm")
N = 200_000  # floats: 1.6 MB


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Own]:
    own = Own("/dev/shm")
    monkeypatch.setattr(shelves, "_ours", own)
    yield own
    own.remove()
    assert not os.path.exists(own.path)


def _files(own: Own) -> list[str]:
    return [entry for entry in os.listdir(own.path) if entry not in ("lock", "pool")]


def _pool(own: Own) -> list[str]:
    return os.listdir(f"{own.path}/pool")


@pytest.mark.parametrize(
    "value",
    [
        np.arange(N, dtype="f8"),
        np.arange(N, dtype="f8").reshape(400, 500).T,
        np.arange(2 * N, dtype="f8")[::2],
        {"a": [np.arange(N), np.arange(3), np.ones(20_000)], "b": "text"},
        os.urandom(3_000_000),
        bytearray(os.urandom(200_000)),
        {"deep": [{"x": os.urandom(150_000)}] * 2, "y": "ä" * 300_000},
        set(range(100_000)),
        np.array(["an object"] * 100_000, dtype=object),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_large_comes_back_as_it_was(own: Own, value: Any) -> None:
    frame = dump_frame(value, None, own)
    assert type(frame) is Frame
    assert len(frame) < SHARED_BYTES + 1_000
    found = load_frame(frame)
    assert type(found) is type(value)
    np.testing.assert_equal(found, value)
    np.testing.assert_equal(load_frame(bytes(frame)), value)
    assert frame.size_bytes == frames.size_of(frame) > SHARED_BYTES


def test_what_is_small_stays_in_the_message(own: Own) -> None:
    for value in (7, "text", np.arange(1000.0), os.urandom(100_000), [np.ones(10_000)] * 1):
        frame = dump_frame(value, None, own)
        assert type(frame) is bytes
        np.testing.assert_equal(pickle.loads(frame), value)
    assert _files(own) == []


def test_each_reader_may_write_into_its_own(own: Own) -> None:
    frame = dump_frame([np.arange(N), np.arange(20_000)], None, own)
    first, second = load_frame(frame), load_frame(frame)
    for array in first:
        array[:] = -1
    assert second[0][5] == second[1][5] == load_frame(frame)[0][5] == 5
    read_only = np.arange(N)
    read_only.flags.writeable = False
    assert not load_frame(dump_frame(read_only, None, own)).flags.writeable


def test_what_nobody_needs_is_written_again(own: Own) -> None:
    frame = dump_frame(np.arange(N), None, own)
    inode = os.stat(f"{own.path}/{frame.name}").st_ino
    del frame
    again = dump_frame(np.ones(N), None, own)
    assert os.stat(f"{own.path}/{again.name}").st_ino == inode
    assert load_frame(again).sum() == N
    assert _pool(own) == []


def test_what_is_written_again_is_mapped_for_it_and_forgotten_when_it_is_gone(
    own: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(written, "LEAST_BYTES", N)
    monkeypatch.setattr(written, "MOST_FILES", 2)
    descriptors = len(os.listdir("/proc/self/fd"))
    for i in range(4):
        # Of several parts, the first time larger.
        arrays = [np.full(N + (i == 0), i), np.full(30_001, -i, dtype="i1"), bytes(200_000)]
        frame = dump_frame(arrays, None, own)
        found = load_frame(frame)
        assert [part[-1] for part in found] == [i, -i, 0]
        np.testing.assert_equal(found[:2], arrays[:2])
        del frame, found
    assert len(own._written._files) == 1
    frames_ = [dump_frame(np.full(N, i), None, own) for i in range(4)]
    frames_.clear()
    frames_ = [dump_frame(np.full(N, i), None, own) for i in range(4)]
    assert [load_frame(frame)[5] for frame in frames_] == [0, 1, 2, 3]
    assert len(own._written._files) == 2
    for frame in frames_:
        os.unlink(f"{own.path}/{frame.name}")
    frames_.clear()
    own.let_go()
    own._empty_pool()
    own.sweep_results("c1", [].__contains__)
    assert not own._written._files
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_what_is_mapped_is_never_written_again(own: Own) -> None:
    frame = dump_frame(np.arange(N), None, own)
    array = load_frame(bytes(frame))  # as in a worker, that keeps it
    del frame
    for i in range(3):
        dump_frame(np.full(N, i), None, own)
    assert (array == np.arange(N)).all()


def test_what_becomes_another_before_it_is_locked_is_not_read(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled call whose worker is slow would see the argument of the next one."""
    held = [dump_frame(np.arange(N), None, own)]
    data = bytes(held[0])
    lock = fcntl.flock

    def slow(fd: int, how: int) -> None:
        if how & fcntl.LOCK_SH and held:
            held.clear()
            held.append(dump_frame(np.ones(N), None, own))
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    with pytest.raises(NbqueueError, match="No such file"):
        load_frame(data)
    assert load_frame(held[0])[7] == 1


def test_a_forked_child_keeps_what_it_has(own: Own) -> None:
    frame = dump_frame(np.arange(N), None, own)
    array = load_frame(bytes(frame))
    ask_r, ask_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(ask_r, 1)
        os._exit(0 if (array == np.arange(N)).all() else 1)
    # The parent's is gone, the child's is not.
    del array, frame
    for i in range(3):
        dump_frame(np.full(N, i), None, own)
    os.write(ask_w, b"!")
    assert os.waitpid(pid, 0)[1] == 0
    os.close(ask_r)
    os.close(ask_w)


def test_a_result_that_is_still_used_keeps_its_segment(own: Own) -> None:
    data = bytes(dump_frame(np.arange(N), None, Guest(Directory(own.path), "c1", "7")))
    frame = Frame(data)
    frame.segment = own.claim(frame.name)
    array = load_frame(frame)
    del frame
    own.let_go()
    assert len(_files(own)) == 1
    part = array[10:20]
    del array
    own.let_go()
    assert len(_files(own)) == 1
    assert part[0] == 10
    del part
    own.let_go()
    assert _files(own) == []
    assert len(_pool(own)) == 1


def test_results_of_calls_that_are_over_are_swept(own: Own) -> None:
    directory = Directory(own.path)
    kept = [dump_frame(np.arange(N), None, Guest(directory, "c1", n)) for n in ("7", "8", "9.3")]
    others = dump_frame(np.arange(N), None, Guest(directory, "c2", "1"))
    claimed = own.claim(kept[0].name)
    own.sweep_results("c1", {9}.__contains__)
    assert sorted(_files(own)) == sorted([kept[0].name, kept[2].name, others.name])
    del claimed


def test_the_pool_is_bounded(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelves, "POOL_BYTES", 4_000_000)
    held = [dump_frame(np.arange(N), None, own) for _ in range(5)]
    held.clear()
    own.let_go()
    assert len(_pool(own)) == 2
    large = dump_frame(np.arange(5 * N), None, own)
    del large
    own.let_go()
    assert len(_pool(own)) == 2
    assert _files(own) == []


def test_many_results_do_not_use_up_the_descriptors(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "MOST_MAPPED", Mapping.alive + 3)
    before = len(os.listdir("/proc/self/fd"))
    arrays = [load_frame(dump_frame(np.full(N, i), None, own)) for i in range(10)]
    assert len(os.listdir("/proc/self/fd")) <= before + 3
    assert [array[-1] for array in arrays] == list(range(10))


# What may go wrong


def test_a_full_shared_memory_costs_nothing_but_speed(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    written = os.pwritev

    def full(fd: int, pieces: Any, at: int) -> int:
        if at > 500_000:
            raise OSError(28, "No space left on device")
        return written(fd, [piece[:300_000] for piece in pieces], at)

    monkeypatch.setattr(os, "pwritev", full)
    frame = dump_frame(np.arange(N), None, own)
    assert type(frame) is bytes
    assert (pickle.loads(frame) == np.arange(N)).all()
    assert _files(own) == []
    assert (load_frame(dump_frame(np.arange(40_000), None, own)) == np.arange(40_000)).all()


def test_the_pool_makes_room(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    dump_frame(np.arange(N), None, own)
    own.let_go()
    assert len(_pool(own)) == 1
    written = os.pwritev

    def full(fd: int, pieces: Any, at: int) -> int:
        if _pool(own):
            raise OSError(28, "No space left on device")
        return written(fd, pieces, at)

    monkeypatch.setattr(os, "pwritev", full)
    frame = dump_frame(np.arange(5 * N), None, own)
    assert type(frame) is Frame
    assert _pool(own) == []


def test_missing_and_short_segments_are_told_of(own: Own) -> None:
    frame = dump_frame(np.arange(N), None, own)
    os.truncate(f"{own.path}/{frame.name}", 1_000_000)
    with pytest.raises(NbqueueError, match=r"shared memory \(1,600,000 bytes, a-.*has 1,000,000 bytes only"):
        load_frame(frame)
    os.unlink(f"{own.path}/{frame.name}")
    with pytest.raises(NbqueueError, match="No such file"):
        load_frame(frame)
    own.remove()
    with pytest.raises(NbqueueError, match="cannot be"):
        load_frame(bytes(frame))


def test_only_names_of_ours_are_opened(own: Own, tmp_path: Path) -> None:
    directory = Directory(own.path)
    (tmp_path / "secret").write_bytes(bytes(100))
    os.symlink(tmp_path / "secret", f"{own.path}/a-00000000")
    for name in ("../secret", "pool/1-1", "lock", "a-../../x", "/etc/passwd", "a-00000000"):
        with pytest.raises(NbqueueError):
            directory.read(name, (10,), writable=True, segment=None)
    os.unlink(f"{own.path}/a-00000000")


def test_a_directory_that_others_can_enter_is_refused(own: Own, tmp_path: Path) -> None:
    assert stat.S_IMODE(os.stat(own.path).st_mode) == 0o700
    os.chmod(own.path, 0o750)
    with pytest.raises(NbqueueError, match="others may"):
        Directory(own.path)
    os.chmod(own.path, 0o700)
    with pytest.raises(NbqueueError, match="not a name"):
        Directory(str(tmp_path))
    link = tmp_path / os.path.basename(own.path)
    link.symlink_to(own.path)
    with pytest.raises(NbqueueError):
        Directory(str(link))


def test_directories_of_the_dead_are_swept_though_their_children_live(
    own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Elsewhere, others sweep, too.
    monkeypatch.setenv("NBQUEUE_SHARED_MEMORY", str(tmp_path))
    ask_r, ask_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        shelves._ours = None
        shelves.ours()
        if os.fork() == 0:
            os.close(ask_w)
            os.read(ask_r, 1)
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(ask_r)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(f"nbqueue-{os.getuid()}-{pid}-")
    assert shelves.sweep(pid)
    assert not left.exists()
    os.close(ask_w)
    assert os.path.exists(own.path)
    assert not shelves.sweep(os.getpid())


def test_arguments_are_described_without_their_data(own: Own) -> None:
    frame = dump_arguments((np.zeros((1000, 500)), 7), {"x": os.urandom(200_000)}, "f", None, None, own)
    assert type(frame) is Frame
    data = bytes(frame)
    args, kwargs = glimpse_values(data)
    assert args[0].shape == (1000, 500)
    assert args[1] == 7
    assert len(kwargs["x"]) == 200_000
    array = dump_arguments((np.zeros((1000, 500)), 7), {}, "f", None, None, own)
    data = bytes(array)
    del frame, array
    own.let_go()
    # Its data are gone by now.
    assert glimpse_values(data)[0][0].shape == (1000, 500)
