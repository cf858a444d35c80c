"""What one of several calls prints: told in pieces while it runs, kept from both ends for its reply."""

from __future__ import annotations

import pytest

from nbqueue.worker.coroutines.voice import Voice
from nbqueue.worker.telling import displays
from nbqueue.worker.telling.output import EVENT_BYTES, HEAD_BYTES, TAIL_BYTES
from nbqueue.worker.telling.prints import NOTHING, Prints


def _told(voice: Voice) -> list[tuple[int, int, str]]:
    return [(event["stream"], event["at"], event["text"]) for event in voice.news(1)]


def test_whole_lines_are_told_at_once_and_a_part_when_it_stands_still():
    voice = Voice()
    voice.hear(1, "one\ntw")
    voice.hear(2, "error\n")
    assert _told(voice) == [(1, 0, "one\n"), (2, 0, "error\n")]
    assert _told(voice) == [(1, 4, "tw")]
    assert _told(voice) == []
    voice.hear(1, "o\n")
    assert _told(voice) == [(1, 6, "o\n")]
    assert voice.said().printed == [(1, 8, ((0, b"one\ntwo\n"),)), (2, 6, ((0, b"error\n"),))]


def test_of_much_the_two_ends_are_kept_and_the_last_is_told():
    voice = Voice()
    text = "".join(f"{i:9}\n" for i in range(200_000))
    for at in range(0, len(text), 7_000):
        voice.hear(1, text[at : at + 7_000])
    ((stream, size, (head, tail)),) = voice.said().printed
    assert (stream, size) == (1, len(text))
    assert head == (0, text[:HEAD_BYTES].encode())
    assert tail == (len(text) - TAIL_BYTES, text[-TAIL_BYTES:].encode())
    ((_, at, told),) = _told(voice)
    assert 0 < len(told) <= EVENT_BYTES
    assert text[at:] == told


def test_a_character_is_not_told_by_halves():
    voice = Voice()
    voice.hear(1, "ä" * EVENT_BYTES + "x")
    _told(voice)
    ((_, at, told),) = _told(voice)
    assert set(told) <= {"ä", "x"}
    assert at + len(told.encode()) == 2 * EVENT_BYTES + 1


def test_one_that_clears_its_output_leaves_that_of_others(monkeypatch: pytest.MonkeyPatch):
    prints, speaking = Prints(), [Voice(), Voice()]
    prints.voices = lambda: speaking[0]
    monkeypatch.setattr(displays, "_prints", prints)
    monkeypatch.setattr(displays, "_show", lambda: speaking[0].show)
    displays.display("one", display_id="a")
    speaking.reverse()
    displays.display("two", display_id="b")
    displays._clear_output()
    shown = [{event["id"]: bool(event["data"]) for event in voice.said().shown} for voice in speaking]
    assert shown == [{"b": False}, {"a": True}]


def test_a_call_that_says_nothing_has_said_nothing():
    voice = Voice()
    assert voice.said() is NOTHING
    voice.show("id", {"text/plain": "x"})
    assert [event["id"] for event in voice.said().shown] == ["id"]
