"""What tasks print, by both its ways, becomes each item's text and one page of tagged lines."""

from __future__ import annotations

import random

import pytest

from nbqueue.progress import prints
from nbqueue.progress.page import BEGIN, END, ERR, OUT, Page, Tag
from nbqueue.progress.prints import Prints, Transcript


def lines(page: Page) -> list[str]:
    return page.plain().splitlines()


def tag(text: str) -> Tag:
    return Tag(text, text, text.partition("[")[0])


def told(at: int, text: str, stream: int = OUT, attempt: int = 1) -> dict[str, object]:
    size = len(text.encode())
    return {"kind": "output", "stream": stream, "at": at, "size": size, "text": text, "attempt": attempt}


@pytest.fixture
def page() -> Page:
    return Page()


@pytest.fixture
def batch(page: Page) -> Prints:
    return Prints(page, "work", lambda item: f"work[{item}]")


# Both ways


def test_what_comes_live_and_with_the_reply_is_shown_once(batch: Prints, page: Page) -> None:
    batch.hear(0, told(0, "one\ntw"))
    assert lines(page) == ["work[0] │ one", "work[0] │ tw"]
    batch.arrive(0, 1, [(0, OUT, 14, ((0, b"one\ntwo\nthree\n"),))], [])
    assert lines(page) == ["work[0] │ one", "work[0] │ two", "work[0] │ three"]
    transcript = batch.of(0)
    assert transcript is not None
    assert transcript.text(OUT) == "one\ntwo\nthree\n"


def test_however_the_pieces_come_the_text_is_whole_and_shown_once() -> None:
    data = "".join(f"línea {i}\n" for i in range(200)).encode()
    chance = random.Random(4)
    for _ in range(50):
        transcript = Transcript()
        shown = b""
        at = 0
        while at < len(data) and chance.random() > 0.05:
            size = chance.randint(1, 300)
            back = chance.randint(0, min(at, 50))  # told twice
            lost, new = transcript.add(1, OUT, at - back, data[at - back : at + size])
            assert lost == 0
            shown += new
            at += size
        lost, new = transcript.complete(1, OUT, len(data), ((0, data),))
        assert lost == 0
        assert shown + new == data
        assert transcript.text(OUT) == data.decode()


def test_attempts_follow_each_other(batch: Prints) -> None:
    batch.hear(3, told(0, "first\n"))
    batch.arrive(3, 2, [(0, OUT, 7, ((0, b"second\n"),))], [])
    transcript = batch.of(3)
    assert transcript is not None
    assert transcript.text(OUT) == "first\nsecond\n"


def test_what_was_left_out_is_said(batch: Prints, page: Page) -> None:
    batch.arrive(0, 1, [(0, OUT, 1_000, ((0, b"a\n"), (996, b"\nz\n")))], [])
    transcript = batch.of(0)
    assert transcript is not None
    assert transcript.text(OUT) == "a\n\n… 994 bytes are left out …\n\nz\n\n… 1 bytes are left out …\n"
    assert lines(page)[0] == "work[0] │ … 995 bytes are left out …"


def test_what_a_task_prints_too_fast_to_be_shown_is_not_counted_as_if_it_were_all(batch: Prints, page: Page) -> None:
    batch.hear(0, told(0, "one\n"))
    batch.hear(0, told(1_000_000, "later\n"))
    assert lines(page) == ["work[0] │ one", "work[0] │ … 999,996 bytes are left out …", "work[0] │ later"]
    end = b"".join(b"%d\n" % i for i in range(300))
    size = 2_000_000 + len(end)
    batch.arrive(0, 1, [(0, OUT, size, ((0, b"one\n"), (2_000_000, end)))], [])
    assert lines(page)[0].startswith("… 104 earlier lines, and 1,999,990 bytes that came too fast to be shown; ")


def test_a_transcript_is_bounded_and_keeps_its_two_ends() -> None:
    transcript = Transcript()
    for i in range(1_000):
        transcript.add(1, OUT, i * 1_000, b"%03d" % i + b"x" * 997)
    assert transcript.size <= prints._Stream.MOST + prints.EACH_BYTES
    text = transcript.text(OUT)
    assert text.startswith("000xxx")
    assert "999xxx" in text
    assert "are left out" in text


def test_a_batch_s_first_items_give_way_when_it_prints_without_end(
    batch: Prints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prints, "MOST_KEPT", 10_000)
    for item in range(100):
        batch.arrive(item, 1, [(0, OUT, 50, ((0, b"x" * 50),))], [])
    assert batch.of(0) is None
    assert batch.of(99) is not None


@pytest.mark.parametrize(
    "event",
    [
        {"kind": "output"},
        told(-1, "x"),
        {**told(0, "x"), "size": 1 << 60},
        {**told(0, "x"), "at": "0"},
        {**told(0, "x"), "text": b"x"},
        {**told(0, "x"), "stream": 7},
        {**told(0, "x"), "attempt": None},
        {"kind": "display", "id": "a", "n": 1},
        {"kind": "display", "id": 7, "n": 1, "data": {"text/plain": "x"}},
        {"kind": "display", "id": "a", "n": 1, "data": "x"},
    ],
)
def test_news_that_make_no_sense_are_ignored(batch: Prints, page: Page, event: dict[str, object]) -> None:
    batch.hear(0, event)
    assert page.empty


@pytest.mark.parametrize(
    "printed", [[()], [(0, 1, 5)], [("a", 1, 5, ())], [(0, 1, 5, ((0, "text"),))], [(0, 1, None, ((0, b"x"),))], [7]]
)
def test_a_reply_s_output_that_makes_no_sense_harms_nobody(batch: Prints, printed: list[object]) -> None:
    batch.arrive(0, 1, printed, [7])
    batch.arrive(1, 1, [(0, OUT, 3, ((0, b"ok\n"),))], [])
    assert batch.of(1).text(OUT) == "ok\n"  # type: ignore[union-attr]


# The page


def test_lines_of_two_tasks_are_never_torn(page: Page) -> None:
    page.add(tag("a"), OUT, "one ")
    page.add(tag("b"), OUT, "two\n")
    page.add(tag("a"), OUT, "line\n")
    assert lines(page) == ["a │ one line", "b │ two"]


def test_a_part_of_a_line_at_the_end_of_a_task_is_a_line(batch: Prints, page: Page) -> None:
    batch.arrive(0, 1, [(0, OUT, 3, ((0, b"one"),))], [])
    page.add(tag("work[0]"), OUT, "next\n")
    assert lines(page) == ["work[0] │ one", "work[0] │ next"]


def test_the_last_lines_are_shown_and_more_when_asked_for(page: Page) -> None:
    page.add(tag("t"), OUT, "".join(f"{i}\n" for i in range(300)))
    first, second, *_ = lines(page)
    assert first.startswith("… 100 earlier lines; each future's .stdout and .stderr have its own")
    assert second == "t │ 100"
    assert len(page.plain(lines=1_000).splitlines()) == 300


def test_a_bar_that_is_drawn_over_and_over_is_one_line(page: Page) -> None:
    for i in range(5):
        page.add(tag("t"), ERR, f"\r{i}/4")
        assert lines(page) == [f"t ! {i}/4"]
    page.add(tag("t"), ERR, "\r\nover\r\n")
    assert lines(page) == ["t ! 4/4", "t ! over"]


def test_terminal_codes_become_colours_and_never_markup(page: Page) -> None:
    codes = "\x1b[1;31mbad\x1b[0m & \x1b[2K<script>\x1b]0;title\x07\x1b[38;5;2mgreen\x1b[48;2;1;2;3m\n"
    page.add(tag("t<"), OUT, codes)
    assert lines(page) == ["t< │ bad & <script>green"]
    html = page.html()
    assert '<span style="color:#e53935;font-weight:bold">bad</span> &amp; &lt;script&gt;' in html
    assert '<span style="color:#388e3c">green</span>' in html
    assert "t&lt;" in html


def test_a_line_without_end_is_bounded(page: Page) -> None:
    page.add(tag("t"), OUT, "x" * 1_000_000)
    assert len(page.plain()) < 3_000


def test_an_empty_page_draws_nothing(page: Page) -> None:
    assert page.plain() == ""
    assert page.html() == BEGIN + END


def test_an_equal_warning_of_many_tasks_is_counted(page: Page) -> None:
    warning = "/tmp/cell.py:3: UserWarning: mind the gap\n  warnings.warn('mind the gap')\n"
    for i in range(123):
        batch = Prints(page, "work", lambda item: f"work[{item}]")
        batch.arrive(i, 1, [(0, ERR, len(warning), ((0, warning.encode()),))], [])
    assert lines(page) == [
        "work ! /tmp/cell.py:3: UserWarning: mind the gap  (×123)",
        "work !   warnings.warn('mind the gap')",
    ]


def test_a_warning_that_comes_again_and_again_stays_in_sight(page: Page) -> None:
    for i in range(500):
        page.add(tag(f"t[{i}]"), ERR, f"/tmp/cell.py:3: UserWarning: mind the gap\nline {i}\n")
    assert lines(page)[-2:] == ["t[499] ! line 499", "t      ! /tmp/cell.py:3: UserWarning: mind the gap  (×500)"]


def test_two_calls_of_one_name_have_lines_of_their_own(page: Page) -> None:
    names = [page.name("work"), page.name("work")]
    first, second = Prints(page, "work", lambda _: names[0]), Prints(page, "work", lambda _: names[1])
    first.hear(0, told(0, "one "))
    second.hear(0, told(0, "two\n"))
    first.hear(0, told(4, "line\n"))
    assert lines(page) == ["work   │ one line", "work#2 │ two"]


def test_equal_log_records_are_counted_and_others_are_not(page: Page) -> None:
    for i in range(3):
        page.add(tag(f"t[{i}]"), ERR, "WARNING app: slow\nplain text\n")
        page.add(tag(f"t[{i}]"), ERR, f"ERROR app: broken {i}\n    Traceback\n")
        page.end(tag(f"t[{i}]"), ERR)
    text = lines(page)
    assert text[-1].endswith("! WARNING app: slow  (×3)")
    assert sum("plain text" in line for line in text) == 3
    assert sum("broken" in line for line in text) == 3
    assert sum("Traceback" in line for line in text) == 3


def test_a_figure_is_an_image_below_the_lines(batch: Prints, page: Page) -> None:
    event = {"id": "a", "n": 1, "data": {"text/plain": "<Figure>", "image/png": "aGk="}, "bytes": 4}
    batch.hear(1, {"kind": "display", **event})
    batch.arrive(1, 1, [], [(0, event)])
    assert lines(page) == ["work[1] │ <Figure>"]
    assert page.html().count('src="data:image/png;base64,aGk="') == 1
    batch.hear(1, {"kind": "display", **event, "n": 2, "data": {"text/plain": "x", "text/html": "<i>x</i>"}})
    assert "<i>x</i>" in page.html()
    assert "image/png" not in page.html(), "it was replaced"
    assert [shown["n"] for shown in batch.of(1).displays] == [2]  # type: ignore[union-attr]


def test_a_place_of_an_image_holds_no_markup(batch: Prints, page: Page) -> None:
    data = {"text/plain": '"><script>', "image/png": '"><script>'}
    batch.hear(0, {"kind": "display", "id": "a", "n": 1, "data": data})
    assert "<script>" not in page.html()


def test_displays_are_bounded(batch: Prints, page: Page) -> None:
    for i in range(60):
        batch.hear(i, {"kind": "display", "id": str(i), "n": 1, "data": {"text/html": "x" * 1_000_000}})
    assert len(page.html()) < 5_000_000
    assert "earlier displays are left out" in page.html()
