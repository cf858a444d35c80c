"""Bodies of large objects, and what a worker keeps of them."""

from __future__ import annotations

import gc
import pickle
from typing import Any

import numpy as np
import pytest

from nbqueue.codec import blobs
from nbqueue.codec.blobs import Put, Store, arrived, find, handle_of, size_text, unpack
from nbqueue.codec.functions import digest, dump_put, dumps
from nbqueue.codec.seal import HEAD_BYTES
from nbqueue.errors import NbqueueError


def _put(value: Any) -> Put[Any]:
    body = dump_put(value)
    return Put(digest(body), bytes(HEAD_BYTES) + body, "scope", type(value).__name__)


@pytest.mark.parametrize(
    "value",
    [
        7,
        [],
        b"x" * 1000,
        {"a": np.arange(5), "b": [np.ones((3, 4), dtype="c16"), "text", np.arange(3, dtype="i1")]},
        np.arange(0.0),
        np.arange(24.0).reshape(2, 3, 4).T,
        np.array([{"an": "object"}, None], dtype=object),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_put_comes_back(value: Any) -> None:
    found = _put(value).get()
    assert type(found) is type(value)
    np.testing.assert_equal(found, value)


def test_arrays_are_aligned_views_of_the_message_and_read_only() -> None:
    handle = _put([np.arange(n, dtype="c16") for n in (1, 2, 3, 5)] + [np.arange(3, dtype="i1"), np.arange(3.0)])
    for array in handle.get():
        assert array.flags.aligned
        assert not array.flags.writeable
        assert not array.flags.owndata
    assert not _put(np.arange(100.0)[::3]).get().flags.writeable
    assert all(array.flags.aligned for array in pickle.loads(pickle.dumps(handle)))


def test_a_handle_travels_as_its_digest_only_where_handles_are_asked_for() -> None:
    handle = _put(np.arange(10_000.0))
    handles: list[Put[Any]] = []
    data = dumps({"a": [handle, handle], "b": handle}, None, handles)
    assert len(data) < 300
    assert set(handles) == {handle}
    assert pickle.loads(data)["b"] is handle.get()
    assert len(dumps(handle)) > 80_000


def test_what_a_handle_stood_for_is_known_while_the_handle_lives() -> None:
    handle = _put(np.arange(10_000.0))
    array = handle.get()
    assert handle_of(array) is handle_of(handle) is handle
    assert handle_of(array[:5]) is None
    assert find(handle.digest, "scope") is handle
    assert find(handle.digest, "another") is None
    name, key = handle.digest, id(array)
    del handle
    gc.collect()
    assert handle_of(array) is None
    assert key not in blobs.got
    with pytest.raises(NbqueueError, match="Put it again"):
        arrived(name)


class Frame:
    def __init__(self) -> None:
        self.column = np.arange(10_000.0)


@pytest.mark.parametrize(
    "value", [{"a": list(range(100))}, [np.arange(10_000.0)], Frame()], ids=lambda value: type(value).__name__
)
def test_an_object_that_could_have_been_changed_travels_as_it_is(value: Any) -> None:
    """A table that was got and given one more column arrived without it."""
    assert handle_of(_put(value).get()) is None


def test_an_array_that_was_given_another_shape_travels_as_it_is() -> None:
    handle = _put(np.arange(10_000.0))
    array = handle.get()
    assert handle_of(array) is handle
    array.shape = (100, 100)
    assert handle_of(array) is None
    array.shape = (10_000,)
    assert handle_of(array) is handle
    array.dtype = "i8"
    assert handle_of(array) is None


def test_a_store_keeps_what_is_needed_and_what_was_used_last() -> None:
    fetched: list[str] = []
    puts = {put.digest: put for put in (_put(np.arange(1000.0) + i) for i in range(4))}
    names = list(puts)
    size = puts[names[0]].size_bytes

    def fetch(name: str) -> Put[Any]:
        fetched.append(name)
        return puts[name]

    store = Store(kept_bytes=2 * size)
    assert not store.hold(names[:2], fetch)
    assert not store.hold(names[:1], fetch)
    assert fetched == names[:2]
    # The one that was used least recently goes.
    assert store.hold(names[2:3], fetch)
    assert list(store._handles) == [names[0], names[2]]
    # Whatever one call needs is there together.
    assert not store.hold(names, fetch)
    assert len(store._handles) == 4
    assert store.hold([names[0], names[0]], fetch)
    assert list(store._handles)[-1] == names[0]
    assert len(store._handles) == 2


def test_sizes_are_written_as_people_read_them() -> None:
    assert [size_text(n) for n in (12, 1_250, 80_000_163, 1_500_000_000)] == ["12 bytes", "1.2 kB", "80 MB", "1.5 GB"]


def test_a_body_is_unpickled_in_place() -> None:
    body = dump_put(np.arange(1000.0))
    array = unpack(memoryview(body))
    assert np.shares_memory(array, np.frombuffer(body, dtype="u1"))
