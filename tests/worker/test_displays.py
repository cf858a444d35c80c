"""`display` in a worker, without IPython: what objects offer, bounded, and text where nobody can see more."""

from __future__ import annotations

import base64
import builtins
from collections.abc import Iterator
from typing import Any

import pytest

from nbqueue.worker.telling import displays
from nbqueue.worker.telling.displays import display
from nbqueue.worker.telling.prints import MOST_LEAVING_BYTES, MOST_SHOWN, MOST_SHOWN_BYTES, NOTHING, Prints


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What was displayed, as id and data."""
    shown: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(displays, "_show", lambda: lambda id, data: shown.append((id, data)))
    yield shown
    assert not hasattr(builtins, "display"), "only workers have one"


class Rich:
    def __repr__(self) -> str:
        return "<Rich>"

    def _repr_html_(self) -> str:
        return "<b>rich</b>"

    def _repr_png_(self) -> bytes:
        return b"\x89PNG"

    def _repr_latex_(self) -> str:
        raise RuntimeError("not today")

    def _repr_svg_(self) -> None:
        return None


def test_an_object_is_asked_for_all_its_forms(shown: list[Any]) -> None:
    assert display(Rich()) is None
    ((_, data),) = shown
    assert data == {
        "text/plain": "<Rich>",
        "text/html": "<b>rich</b>",
        "image/png": base64.b64encode(b"\x89PNG").decode(),
    }


def test_a_class_is_not_asked_for_what_its_objects_have(shown: list[Any]) -> None:
    display(Rich)
    assert list(shown[0][1]) == ["text/plain"]


def test_a_bundle_may_be_given_and_chosen_from(shown: list[Any]) -> None:
    display({"text/plain": "a", "text/html": "b", "application/json": {"c": [1]}, "x/y": {1, 2}}, raw=True)
    display(Rich(), include=["text/html"])
    display(Rich(), exclude=["text/html", "image/png"])
    assert [data for _, data in shown] == [
        {"text/plain": "a", "text/html": "b", "application/json": {"c": [1]}},
        {"text/html": "<b>rich</b>"},
        {"text/plain": "<Rich>"},
    ]


def test_a_display_with_a_name_is_updated(shown: list[Any]) -> None:
    handle = display("one", display_id=True)
    assert handle is not None
    handle.update("two")
    display("three", display_id="mine")
    assert [data["text/plain"] for _, data in shown] == ["'one'", "'two'", "'three'"]
    assert [id for id, _ in shown] == [handle.display_id, handle.display_id, "mine"]


def test_what_is_cleared_is_displayed_again_as_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    prints = Prints()
    monkeypatch.setattr(displays, "_prints", prints)
    monkeypatch.setattr(displays, "_show", lambda: lambda id, data: prints.show(0, id, data))

    def shown() -> dict[str, bool]:
        return {event["id"]: bool(event["data"]) for event in prints.leaving()}

    display("one", display_id="a")
    displays._clear_output()
    assert shown() == {"a": False}
    display("two", display_id="b")
    displays._clear_output(wait=True)
    assert shown() == {"a": False, "b": True}, "until there is something else to see"
    display("three", display_id="c")
    assert shown() == {"a": False, "b": False, "c": True}
    display("four", display_id="d")
    assert shown() == {"a": False, "b": False, "c": True, "d": True}


def test_an_object_that_displays_itself_does(shown: list[Any]) -> None:
    class Own:
        def _ipython_display_(self) -> None:
            display("by myself")

    display(Own())
    assert [data["text/plain"] for _, data in shown] == ["'by myself'"]


def test_the_largest_forms_are_left_out_until_it_fits_one_message(shown: list[Any]) -> None:
    display({"text/plain": "t" * 50_000, "text/html": "x" * 600_000, "image/png": "y" * 600_001}, raw=True)
    ((_, data),) = shown
    assert set(data) == {"text/plain", "text/html"}
    assert data["text/plain"].endswith("… (image/png of 600,001 bytes left out)")
    assert len(data["text/plain"]) < 21_000


def test_where_nobody_sees_more_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    display(Rich(), {"a": 1})
    assert capsys.readouterr().out == "<Rich>\n{'a': 1}\n"


def test_an_object_whose_repr_fails_is_named(shown: list[Any]) -> None:
    class Broken:
        def __repr__(self) -> str:
            raise ValueError

    display(Broken())
    assert shown[0][1]["text/plain"] == "<Broken: ValueError in its repr>"


# On their way


def test_what_has_left_does_not_go_with_the_reply() -> None:
    prints = Prints()
    prints.show(3, "a", {"text/plain": "one"})
    prints.show(3, "b", {"text/plain": "two"})
    prints.show(3, "a", {"text/plain": "one again"})
    first, second = prints.leaving()
    assert (first["id"], second["id"], second["n"]) == ("b", "a", 3)
    prints.left(first)
    assert prints.touched
    said = prints.take((0, 0), (0, 0))
    assert [event["data"]["text/plain"] for event in said.shown] == ["one again"]
    assert not prints.touched
    assert prints.take((0, 0), (0, 0)) is NOTHING


def test_one_that_was_replaced_while_it_left_goes_again() -> None:
    prints = Prints()
    prints.show(0, "a", {"text/plain": "one"})
    (leaving,) = prints.leaving()
    prints.show(0, "a", {"text/plain": "two"})
    prints.left(leaving)
    assert [event["data"]["text/plain"] for event in prints.leaving()] == ["two"]


def test_what_waits_is_bounded() -> None:
    prints = Prints()
    for i in range(200):
        prints.show(0, str(i), {"text/html": "x" * 500_000})
    assert len(prints.leaving()) == MOST_LEAVING_BYTES // 500_000
    shown = prints.take((0, 0), (0, 0)).shown
    assert len(shown) == MOST_SHOWN_BYTES // 500_000
    assert shown[-1]["id"] == "199"
    for i in range(200):
        prints.show(0, str(i), {"text/plain": "x"})
    assert len(prints.take((0, 0), (0, 0)).shown) == MOST_SHOWN
