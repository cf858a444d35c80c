"""Large data while workers die and calls are cancelled: nobody ever sees another's, and nothing is left."""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbqueue.client.sending import helm
from nbqueue.codec import shelves
from nbqueue.errors import TaskCancelled, WorkerDied

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no /dev/shm")
SIZES = (20_000, 130_000, 200_000)  # floats: read, and mapped


def _turn(x: Any, i: int, folder: str) -> Any:
    """Change the argument in place and give it back; some kill their worker, once or for good."""
    before = x.copy()
    fate = i % 10
    if fate in (3, 7):
        note = Path(folder, str(i))
        if fate == 7 or not note.exists():
            note.touch()
            x[:] = -1
            os.kill(os.getpid(), signal.SIGKILL)
    x += 1
    if not (before == i).all():
        raise ValueError(f"{i} has found {set(before)}")
    return x


@pytest.mark.apart
def test_everybody_finds_his_own_data_whoever_dies_or_is_cancelled(
    queue: Any, tmp_path: Path, wait_until: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helm, "HELLO_S", 0.1)
    before = _left()
    chance = random.Random(7)
    (tmp_path / "m").mkdir()
    calls = [queue.submit(_turn, np.full(SIZES[i % 3], i), i, str(tmp_path)) for i in range(30)]
    batch = queue.map(_turn, [np.full(SIZES[i % 3], i) for i in range(20)], range(20), [str(tmp_path / "m")] * 20)
    assert _left() - before, "nothing lies in shared memory, so nothing is tested"
    cancelled = chance.sample(calls, 6)
    for future in cancelled:
        future.cancel()
    found = []
    for i, future in [*enumerate(calls), *enumerate(batch.futures)]:
        try:
            array = future.result(timeout=60)
        except TaskCancelled:
            assert future in cancelled
            continue
        except WorkerDied:
            assert i % 10 == 7
            continue
        assert (array == i + 1).all(), i
        if i % 4 == 0:
            # Some are kept, and what comes later is not written over them.
            found.append((array, i))
    assert all((array == i + 1).all() for array, i in found)
    del calls, cancelled, batch, future, array, found
    wait_until(lambda: gc.collect() >= 0 and _left() <= before)


def _left() -> set[str]:
    own = shelves.existing()
    if own is None:
        return set()
    own.let_go()
    return {name for name in os.listdir(own.path) if name not in ("lock", "pool")}
