"""What a saved notebook keeps: the line and the card."""

from __future__ import annotations

import re
from configparser import RawConfigParser
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nbqueue.progress.static import html, plain
from nbqueue.progress.tally import Lane, Snapshot

LIVE = Snapshot(
    label="simulate",
    total=240,
    done=141,
    failed=4,
    cancelled=0,
    running=4,
    retried=2,
    elapsed_s=2.9,
    rate=49.5,
    eta_s=1.92,
    finished=False,
)
SETTLED = replace(LIVE, done=236, running=0, elapsed_s=4.85, eta_s=None, finished=True)


class Card(HTMLParser):
    """Text, tags and attributes of a card; fails on a tag that is not closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.text = ""
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(source)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def one(self, name):
        (found,) = [attrs for _, attrs in self.elements if attrs.get("class") == name]
        return found


def test_the_line_of_a_settled_batch():
    assert plain(SETTLED) == "nbqueue: simulate 236/240 done · 4 failed · 2 retried · 4.8 s · 49.5/s"


def test_the_line_of_a_live_batch():
    assert plain(LIVE) == (
        "nbqueue: simulate 141/240 done · 4 failed · 4 running · 2 retried · 49.5/s · 2 s left"
    )


def test_counts_that_are_zero_say_nothing():
    assert plain(replace(SETTLED, done=240, failed=0, retried=0)) == (
        "nbqueue: simulate 240/240 done · 4.8 s · 49.5/s"
    )


def test_a_batch_of_unknown_size_counts_up():
    line = plain(replace(LIVE, total=None, eta_s=None, failed=0, retried=0))
    assert line == "nbqueue: simulate 141 done · 4 running · 3 s · 49.5/s"


def test_what_never_ran_is_named_when_all_is_over():
    assert "95 not finished" in plain(replace(SETTLED, done=141))


def test_the_line_is_one_line_whatever_the_label():
    assert "\n" not in plain(replace(LIVE, label="a\nb"))


@pytest.mark.parametrize(
    ("elapsed_s", "text"),
    [(0.032, "32 ms"), (4.85, "4.8 s"), (59.96, "1 min 00 s"), (125, "2 min 05 s"), (3_900, "1 h 05 min")],
)
def test_durations_read_as_people_say_them(elapsed_s, text):
    assert f" {text} " in plain(replace(SETTLED, elapsed_s=elapsed_s))


@pytest.mark.parametrize(
    ("rate", "text"), [(12_345.6, "12,346/s"), (49.52, "49.5/s"), (0.05, "3.0/min"), (0.005, "18.0/h")]
)
def test_rates_choose_a_unit_that_gives_a_readable_number(rate, text):
    assert plain(replace(SETTLED, rate=rate)).endswith(f" {text}")


@pytest.mark.parametrize("near", [1, 1 / 60])
def test_rates_near_one_a_second_or_a_minute_went_to_and_fro_between_units(near):
    units = {plain(replace(SETTLED, rate=near * wave)).rsplit("/", 1)[1] for wave in (0.6, 0.9, 0.99, 1, 1.01, 1.5)}
    assert len(units) == 1


def test_a_batch_without_workers_says_so():
    assert plain(replace(LIVE, running=0, retried=0, rate=None, eta_s=None, unserved=True)) == (
        "nbqueue: simulate 141/240 done · 4 failed · 3 s · no workers"
    )


@pytest.mark.parametrize("snapshot", [LIVE, SETTLED])
def test_the_card_reads_as_a_sentence_when_all_markup_is_stripped(snapshot):
    text = Card(html(snapshot)).text
    assert re.sub(r"[✓✗▸↻⊘] ", "", text) == plain(snapshot).removeprefix("nbqueue: ")


def test_failure_is_told_by_symbol_and_word_not_by_colour_only():
    assert "✗ 4 failed" in Card(html(SETTLED)).text
    assert "✓" not in Card(html(SETTLED)).text
    assert "✓ 240/240 done" in Card(html(replace(SETTLED, done=240, failed=0))).text


def test_the_label_is_escaped():
    card = html(replace(LIVE, label='<script>"&'))
    assert "<script>" not in card
    assert '<script>"&' in Card(card).text


def test_a_screen_reader_gets_the_bar_as_numbers():
    bar = Card(html(LIVE)).one("nbqueue-bar")
    assert (bar["role"], bar["aria-label"]) == ("progressbar", "simulate")
    assert (bar["aria-valuemin"], bar["aria-valuenow"], bar["aria-valuemax"]) == ("0", "145", "240")
    assert bar["aria-valuetext"] == "141/240 done, 4 failed, 4 running, 2 retried"


def test_an_unknown_total_gives_no_value_to_a_screen_reader():
    assert "aria-valuenow" not in Card(html(replace(LIVE, total=None))).one("nbqueue-bar")


def test_segments_have_the_widths_of_their_counts():
    card = Card(html(LIVE))
    widths = {
        attrs["class"]: float(re.search(r"width:([\d.]+)%", attrs["style"])[1])
        for _, attrs in card.elements
        if (attrs.get("class") or "").startswith("nbqueue-bar-")
    }
    assert widths == pytest.approx(
        {"nbqueue-bar-done": 58.75, "nbqueue-bar-failed": 1.67, "nbqueue-bar-running": 1.67}, abs=0.01
    )


def test_a_bar_without_a_total_sweeps_as_time_goes_by():
    starts = {
        re.search(r"margin-left:([\d.]+)%", html(replace(LIVE, total=None, elapsed_s=elapsed_s)))[1]
        for elapsed_s in (0.0, 1.0, 2.0, 3.0)
    }
    assert starts == {"0.00", "25.00", "50.00", "75.00"}


def test_segments_never_exceed_the_track_when_running_is_overcounted():
    card = html(replace(LIVE, done=236, running=50))
    assert "nbqueue-bar-running" not in card


TOLD = replace(
    LIVE,
    lanes=(Lane("simulate[3]", "epoch <7>", 40, 100), Lane("", "", 1_234.5, None), Lane("simulate[4]", "", 2, 1)),
    more_lanes=3,
)


def test_lanes_tell_the_task_its_numbers_and_what_it_says():
    card = Card(html(TOLD))
    assert "simulate[3]40/100 · epoch <7>1,234.50simulate[4]2/1+ 3 more" in card.text
    lanes = [attrs for _, attrs in card.elements if attrs.get("class") == "nbqueue-lane"]
    assert [lane.get("aria-valuenow") for lane in lanes] == ["40", None, "2"]
    assert [lane["role"] for lane in lanes] == ["progressbar"] * 3
    bars = [attrs["style"] for _, attrs in card.elements if attrs.get("class") == "nbqueue-bar-lane"]
    assert [style.split(";")[0] for style in bars] == ["width:40.00%", "width:100.00%"]


ONE = replace(LIVE, total=1, done=0, failed=0, running=0, retried=0, rate=None, eta_s=None, single=True, elapsed_s=3)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "queued · 3 s"),
        ({"running": 1}, "running · 3 s"),
        ({"running": 1, "retried": 1, "elapsed_s": 0.2}, "running · attempt 2"),
        ({"done": 1, "finished": True}, "done · 3.0 s"),
        ({"failed": 1, "finished": True, "error": "ValueError: <no\nway>"}, "failed: ValueError: <no way> · 3.0 s"),
        ({"cancelled": 1, "finished": True}, "cancelled · 3.0 s"),
    ],
)
def test_the_card_of_one_call_tells_its_state_and_since_when(changes, text):
    snapshot = replace(ONE, **changes)
    assert plain(snapshot) == f"nbqueue: simulate {text}"
    assert re.sub(r"[✓✗▸↻⊘] ", "", Card(html(snapshot)).text) == f"simulate {text}"


def test_an_error_of_one_long_word_ran_out_of_a_card_that_is_not_trusted():
    word = "<y>/" * 30
    source = html(replace(ONE, failed=1, finished=True, error=f"ValueError: {word}"))
    _, _, text = source.partition('class="nbqueue-text"')
    assert text.count("<wbr>") == 29
    assert word in Card(source.replace("<wbr>", "")).text


def test_the_bar_of_one_running_call_does_not_look_full():
    assert "margin-left" in html(replace(ONE, running=1))


def test_every_colour_has_a_literal_for_where_variables_are_stripped():
    for name, _ in re.findall(r"(color|background-color):(var\([^)]*\))", html(LIVE)):
        assert re.search(rf"{name}:#[0-9a-f]+;{name}:var\(", html(LIVE))
    for tag in ("<style", "<svg", "<script"):
        assert tag not in html(LIVE)


def test_nbval_sees_no_difference_between_a_live_and_a_settled_card():
    config = RawConfigParser()
    config.read(Path(__file__).parents[1] / "nbval.cfg")

    def sanitise(text: str) -> str:
        for section in config.sections():
            text = re.sub(config[section]["regex"], config[section]["replace"], text)
        return text

    assert sanitise(plain(LIVE)) == sanitise(plain(SETTLED)) == "NBQUEUE-PROGRESS"
    assert sanitise(html(LIVE)) == sanitise(html(SETTLED)) == "NBQUEUE-PROGRESS"
    assert sanitise("<Figure size 640x480 with 1 Axes>") == sanitise("<Figure size 1200x300 with 2 Axes>")
