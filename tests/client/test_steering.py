"""Whoever waits may talk to the server himself; nobody else's results may come later, or not at all, because of it."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nbqueue.client.sending import helm
from nbqueue.stream.connect import Wire


def held(go: str) -> str:
    while not os.path.exists(go):
        time.sleep(0.01)
    return go


def steered(queue: Any, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Each turn at the helm that a thread has taken: whether it could."""
    turns: list[bool] = []
    steer = type(queue._core.link).steer

    def noting(link: Any, *args: Any) -> bool:
        turns.append(steer(link, *args))
        return turns[-1]

    monkeypatch.setattr(type(queue._core.link), "steer", noting)
    return turns


def keep_listener_away(queue: Any, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., Any]) -> None:
    """Else it looks in from time to time: where the machine is busy, between any two calls."""
    link = queue._core.link
    queue.submit(abs, -1).result(timeout=20)
    parked: list[bool] = []

    def park(_link: Any) -> bool:
        time.sleep(0.005)
        parked.append(True)
        return True

    monkeypatch.setattr(type(link), "_park", park)
    # Which is the listener's to say.
    monkeypatch.setattr(helm, "HELLO_S", 1000.0)
    # It may be waiting in this moment, and sleeps through what is read by somebody else; until it wakes, whoever
    # steers asks for more in its stead.
    wait_until(lambda: queue.submit(abs, -1).result(timeout=20) == 1 and parked)
    # What it asked for last.
    queue.submit(abs, -1).result(timeout=20)


def test_a_thread_that_waits_takes_the_helm(
    queue: Any, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., Any]
) -> None:
    keep_listener_away(queue, monkeypatch, wait_until)
    turns = steered(queue, monkeypatch)
    assert [queue.submit(abs, -i).result(timeout=20) for i in range(50)] == list(range(50))
    assert turns == [True] * 50


@pytest.mark.parametrize("action", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_thread_that_no_interrupt_reaches_takes_the_helm_as_well(
    queue: Any, action: signal.Handlers, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., Any]
) -> None:
    """What a script started in the background is: each of its calls went by two more changes of threads."""
    keep_listener_away(queue, monkeypatch, wait_until)
    turns = steered(queue, monkeypatch)
    before = signal.signal(signal.SIGINT, action)
    try:
        assert [queue.submit(abs, -i).result(timeout=20) for i in range(50)] == list(range(50))
    finally:
        signal.signal(signal.SIGINT, before)
    assert turns == [True] * 50


def test_a_lone_call_and_the_question_for_its_reply_leave_in_one_write(
    queue: Any, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., Any]
) -> None:
    keep_listener_away(queue, monkeypatch, wait_until)
    writes: list[int] = []
    send = Wire.send

    def counting(wire: Wire, *commands: Any) -> None:
        writes.append(len(commands))
        send(wire, *commands)

    monkeypatch.setattr(Wire, "send", counting)
    assert [queue.submit(abs, -i).result(timeout=20) for i in range(100)] == list(range(100))
    assert writes == [2] * 100


def test_only_who_got_his_last_result_at_once_waits_awake(
    queue: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    link = queue._core.link
    # Alone on one core nobody does.
    wait_until(lambda: queue.submit(abs, -1).result(timeout=20) == 1 and link._brief == helm._SPINS)
    threading.Timer(0.1, (tmp_path / "go").touch).start()
    assert queue.submit(held, str(tmp_path / "go")).result(timeout=20)
    assert not link._brief


def test_a_reply_that_comes_in_one_piece_with_the_answer_to_its_call_is_seen(
    queue: Any, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., Any]
) -> None:
    """It is in the reader by then, so that no poll tells of it."""
    link = queue._core.link
    keep_listener_away(queue, monkeypatch, wait_until)
    together: list[bool] = []
    settle = type(link)._settle

    def late(link: Any) -> None:
        asked = link._asked
        if asked is not None and asked.wire is link._replies.wire:
            other = Wire(asked.wire.address, timeout_s=20)
            other.connect()
            newest = (link._keys.replies(link.client), "+", "-", "COUNT", "1")
            before = link._cursor
            wait_until(lambda: (rows := other.call("XREVRANGE", *newest)) and rows[0][0] != before)
            other.close()
            settle(link)
            together.append(link._here)
        else:
            settle(link)

    monkeypatch.setattr(type(link), "_settle", late)
    assert [queue.submit(abs, -i).result(timeout=20) for i in range(20)] == list(range(20))
    assert True in together


def test_many_threads_that_wait_all_get_their_results(queue: Any) -> None:
    def work(first: int) -> None:
        results[first] = [queue.submit(abs, -i).result(timeout=60) for i in range(first, first + 100)]

    results: dict[int, list[int]] = {}
    threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 400, 100)]
    for thread in threads:
        thread.start()
    assert list(queue.map(abs, range(-500, 0))) == list(range(500, 0, -1))
    for thread in threads:
        thread.join(60)
    assert results == {first: list(range(first, first + 100)) for first in range(0, 400, 100)}


def test_what_nobody_waits_for_arrives_while_another_is_waited_for(
    queue: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    queue.run(2)
    long = queue.submit(held, str(tmp_path / "go"))
    ended: list[int] = []

    def end(future: Any) -> None:
        ended.append(future.result())
        if len(ended) == 20:
            (tmp_path / "go").touch()

    def submit() -> None:
        for i in range(20):
            queue.submit(abs, -i).add_done_callback(end)

    thread = threading.Thread(target=submit)
    thread.start()
    # It ends only when all the others have, and been heard of.
    assert long.result(timeout=60) == str(tmp_path / "go")
    thread.join()
    assert sorted(ended) == list(range(20))


def test_what_nobody_waits_for_arrives_after_somebody_has_waited(queue: Any) -> None:
    for i in range(20):
        assert queue.submit(abs, -i).result(timeout=20) == i
        heard = threading.Event()
        queue.submit(abs, -i).add_done_callback(lambda _, heard=heard: heard.set())
        assert heard.wait(20), i


def test_others_waits_go_on_when_the_one_at_the_helm_leaves(queue: Any, tmp_path: Path) -> None:
    queue.run(2)
    long = queue.submit(held, str(tmp_path / "go"))
    got: list[str] = []
    thread = threading.Thread(target=lambda: got.append(long.result(timeout=60)))
    thread.start()
    with pytest.raises(TimeoutError):
        queue.submit(held, str(tmp_path / "later")).result(timeout=0.2)
    (tmp_path / "go").touch()
    thread.join(60)
    assert got == [str(tmp_path / "go")]
    (tmp_path / "later").touch()


def test_a_callback_that_ends_its_thread_does_not_end_the_waiting(
    queue: Any, capfd: pytest.CaptureFixture[str], wait_until: Callable[..., Any]
) -> None:
    def leave(_: object) -> None:
        raise SystemExit(3)

    queue.submit(abs, -1).result(timeout=20)
    future = queue.submit(abs, -2)
    future.add_done_callback(leave)
    assert queue.submit(abs, -3).result(timeout=20) == 3
    assert queue.submit(abs, -4).result(timeout=20) == 4
    said: list[str] = []
    # Whoever has the helm then tells of it.
    wait_until(lambda: said.append(capfd.readouterr().err) or "SystemExit" in "".join(said))


def test_a_connection_that_breaks_under_the_one_at_the_helm_is_made_again(
    queue: Any, tmp_path: Path, wait_until: Callable[..., Any]
) -> None:
    queue.submit(abs, -1).result(timeout=20)
    link = queue._core.link

    def cut(number: int) -> None:
        def shut() -> bool:
            connection = (link._steps, link._replies)[number % 2].wire._connection
            # None: the last one has just been given up, and another is about to come.
            sock = None if connection is None else connection._sock
            if sock is None:
                return False
            sock.shutdown(socket.SHUT_RDWR)
            return True

        wait_until(shut)
        (tmp_path / str(number)).touch()

    for number in range(6):
        future = queue.submit(held, str(tmp_path / str(number)))
        thread = threading.Timer(0.05, cut, [number])
        thread.start()
        assert future.result(timeout=60) == str(tmp_path / str(number))
        thread.join()
