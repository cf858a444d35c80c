"""An interrupt while a call is being made: nobody will ever have its future, so it does not run on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from nbqueue.client.results.future import TaskFuture
from nbqueue.client.sending.listener import Link


def _interrupted_behind(monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> None:
    """An interrupt strikes at the end of a method."""
    method = getattr(kind, name)

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        method(self, *args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(kind, name, interrupted)


def _is_idle(queue: Any) -> bool:
    status = queue.status()
    return not (status.running or status.queued or status.delayed)


@pytest.mark.parametrize(("kind", "name"), [(Link, "_send_here"), (Link, "submit"), (TaskFuture, "_sent")])
def test_a_call_does_not_run_on(
    queue: Any, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., Any], kind: type, name: str
) -> None:
    queue.submit(abs, -1).result(timeout=20)
    with monkeypatch.context() as patch:
        _interrupted_behind(patch, kind, name)
        with pytest.raises(KeyboardInterrupt):
            queue.submit(time.sleep, 60)
    assert queue._core.link.open_calls == 0
    wait_until(lambda: _is_idle(queue))
    assert queue.submit(abs, -2).result(timeout=20) == 2


@pytest.mark.parametrize("name", ["_send_here", "submit", "begin_input"])
@pytest.mark.parametrize("given", [list, iter])
def test_items_of_a_map_do_not_run_on(
    queue: Any,
    monkeypatch: pytest.MonkeyPatch,
    wait_until: Callable[..., Any],
    name: str,
    given: Callable[[Any], Any],
) -> None:
    queue.submit(abs, -1).result(timeout=20)
    with monkeypatch.context() as patch:
        _interrupted_behind(patch, Link, name)
        with pytest.raises(KeyboardInterrupt):
            queue.task(time.sleep).options(chunksize=1).map(given([60] * 100))
    assert queue._core.link.open_calls == 0
    wait_until(lambda: _is_idle(queue))
    assert not queue._core.link._inputs
    assert queue.map(abs, [-2, 3]).results(timeout=20) == [2, 3]


def test_a_call_that_waits_for_another_does_not_run_either(
    queue: Any, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., Any]
) -> None:
    first = queue.submit(time.sleep, 60)
    with monkeypatch.context() as patch:
        _interrupted_behind(patch, TaskFuture, "_sent")
        with pytest.raises(KeyboardInterrupt):
            queue.submit(str, first)
    # The other one is somebody's.
    assert queue._core.link.open_calls == 1
    assert not first.done()
    first.cancel()
    wait_until(lambda: _is_idle(queue))
