"""Telling from inside a task: cheap to say, sent seldom, and the last word is not lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nbqueue import context, report, track
from nbqueue.context import TaskContext
from nbqueue.worker.telling.news import News


class Posts:
    """A running task's way out, where nothing leaves before `take`."""

    def __init__(self) -> None:
        self.news = News()
        self.count = 0

    def post(self, kind: str, key: object, details: Any) -> None:
        assert kind == "lane"
        self.count += 1
        self.news.post(details, key)

    def take(self) -> list[dict[str, Any]]:
        return self.news.take()


@pytest.fixture
def posts() -> Iterator[Posts]:
    posts = Posts()
    task = TaskContext("simulate", 1, "tasks", {}, b"", lambda: None, lambda: None, posts.post)
    context.set_current(task)
    yield posts
    context.set_current(None)


def _lane(number: int, done: float, total: float | None, text: str = "") -> dict[str, Any]:
    return {"lane": number, "done": done, "total": total, "text": text}


def test_outside_of_tasks_nothing_is_told():
    report(1, 2, "three")
    assert list(track(range(3))) == [0, 1, 2]


def test_however_often_a_task_reports_one_event_waits_and_has_the_last_word(posts):
    for done in range(1000):
        report(done, 1000, "training")
    assert posts.count == 1
    assert posts.take() == [_lane(0, 999, 1000, "training")]
    assert posts.take() == []
    report(1000, 1000)
    assert posts.take() == [_lane(0, 1000, 1000)]


def test_a_text_of_none_was_shown_as_a_word(posts):
    list(track(range(1), text=None))
    assert posts.take() == [_lane(1, 1, 1)]
    report(1, 2, None)
    assert posts.take() == [_lane(0, 1, 2)]


def test_track_gives_each_item_and_counts_those_that_are_done(posts):
    seen = []
    for item in track("abc", text="letters"):
        seen.append(item)
        assert posts.take()[-1:] in ([], [_lane(1, len(seen) - 1, 3, "letters")])
    assert seen == ["a", "b", "c"]
    assert posts.take() == [_lane(1, 3, 3, "letters")]


def test_a_generator_has_the_total_that_it_is_given_or_none(posts):
    list(track(x for x in "ab"))
    assert posts.take() == [_lane(1, 2, None)]
    list(track((x for x in "ab"), total=5))
    assert posts.take() == [_lane(1, 2, 5)]


def test_nested_loops_have_places_of_their_own_which_the_next_loop_takes(posts):
    for _ in track(range(2), text="outer"):
        for _ in track(range(3), text="inner"):
            pass
    assert posts.take() == [_lane(2, 3, 3, "inner"), _lane(1, 2, 2, "outer")]


def test_a_loop_that_is_left_early_leaves_no_bar(posts):
    for item in track(range(10)):
        if item == 3:
            break
    assert posts.take() == [{"lane": 1, "gone": True}]


def test_the_bars_of_an_item_do_not_reach_into_the_next(posts):
    abandoned = track(range(3))
    next(abandoned)
    report(1, 2)
    posts.take()
    context.current().end_lanes()
    abandoned.close()
    assert posts.take() == []
    list(track(range(1)))
    assert posts.take() == [_lane(1, 1, 1)]


def test_numbers_of_other_libraries_are_numbers(posts):
    numpy = pytest.importorskip("numpy")
    report(numpy.int64(3), numpy.float32(4))
    assert posts.take() == [_lane(0, 3, 4)]


def test_what_is_no_number_is_refused_where_it_is_said(posts):
    with pytest.raises(TypeError, match="report needs numbers, not 'half'"):
        report("half")
    with pytest.raises(TypeError, match=r"not \[\] \(list\)"):
        report(1, [])


def test_a_bar_that_cannot_be_read_is_gone_and_stops_nothing(posts):
    def read() -> Any:
        raise RuntimeError("its library is broken")

    lane = context.open_lane(read=read)
    lane.post()
    report(1)
    assert posts.take() == [{"lane": 1, "gone": True}, _lane(0, 1, None)]
