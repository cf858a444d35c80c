"""Displays that only a front end can draw: which they are, and where each goes."""

from __future__ import annotations

from nbqueue.progress import rendered
from nbqueue.progress.page import OUT, Page, Tag
from nbqueue.progress.rendered import Rendered

MARKDOWN = {"text/plain": "<Markdown object>", "text/markdown": "**bold**"}
TAG = Tag("t", "t", "t")


def test_only_what_a_page_cannot_draw_is_the_front_end_s() -> None:
    displays = Rendered(late=True)
    assert not displays.show(1, {"text/plain": "x"})
    assert not displays.show(1, {"text/plain": "x", "text/html": "<b>x</b>", "application/json": {}})
    assert not displays.show(1, {"text/plain": "x", "image/png": "", "text/latex": "$x$"})
    assert not displays.show(1, {"text/plain": "x", "application/vnd.jupyter.widget-view+json": {}})
    assert displays.show(1, MARKDOWN)
    assert displays.show(2, {"text/plain": "x", "application/vnd.vegalite.v5+json": {}})
    assert [(data, again) for _, data, again in displays.take()] == [
        (MARKDOWN, False),
        ({"text/plain": "x", "application/vnd.vegalite.v5+json": {}}, False),
    ]


def test_what_is_displayed_again_replaces_the_first_and_what_is_cleared_leaves_its_place() -> None:
    displays = Rendered(late=True)
    displays.show(1, MARKDOWN)
    ((id, _, again),) = displays.take()
    assert not again
    displays.show(1, {"text/plain": "plain now"})
    assert displays.take() == [(id, {"text/plain": "plain now"}, True)]
    displays.show(1, {})
    assert displays.take() == [(id, {"text/plain": ""}, True)]
    displays.show(2, MARKDOWN)
    assert displays.take() == [(id, MARKDOWN, True)]


def test_a_display_that_would_be_dropped_is_shown_as_its_source() -> None:
    for late, text in ((False, "t │ **bold**"), (True, "")):
        displays = Rendered(late=late)
        page = Page(rendered=displays)
        page.show(TAG, "early", MARKDOWN)
        assert page.plain() == ""
        displays.end()
        page.show(TAG, "late", MARKDOWN)
        assert page.plain() == text
        page.show(TAG, "early", {**MARKDOWN, "text/markdown": "an update is never dropped"})
        assert page.plain() == text


def test_a_task_that_displays_without_end_has_a_bounded_number_and_then_its_sources() -> None:
    page = Page(rendered=(displays := Rendered(late=True)))
    for i in range(rendered.MOST + 1):
        page.show(TAG, str(i), MARKDOWN)
    assert len(displays.take()) == rendered.MOST
    assert page.plain() == "t │ **bold**"


def test_an_object_s_name_is_not_all_that_is_shown_of_it() -> None:
    page = Page()
    page.show(TAG, "1", MARKDOWN)
    page.show(TAG, "2", {"text/plain": "<Latex>", "text/latex": "$x$"})
    page.show(TAG, "3", {"text/plain": "<JSON>", "application/json": {"é": [1]}})
    page.show(TAG, "4", {"text/plain": "x**2", "text/latex": "$x^2$"})
    assert page.plain().splitlines() == ["t │ **bold**", "t │ $x$", 't │ {"é": [1]}', "t │ x**2"]
    page.add(TAG, OUT, "said\n")
    assert "**bold**" in page.html()
