"""Kinds and values by place, of which the beginning may be forgotten."""

from __future__ import annotations

import pytest

from nbqueue.client.results.ledger import CANCELLED, FORGOTTEN, OPEN, Ledger
from nbqueue.client.results.outcome import Outcome
from nbqueue.codec.messages import EXCEPTION, VALUE


@pytest.fixture
def ledger() -> Ledger:
    """Ten places; the first six have ended."""
    ledger = Ledger()
    ledger.extend(10)
    assert ledger.fill(0, list("abcdef"))
    return ledger


def test_places_that_are_taken_are_not_filled_again(ledger: Ledger):
    assert not ledger.fill(5, ["x", "y"])
    assert (ledger.value(5), ledger.kind(6)) == ("f", OPEN)


def test_a_run_ends_where_a_value_is_missing_failed_or_not_decoded(ledger: Ledger):
    assert ledger.run(1, 100) == list("bcdef")
    assert ledger.run(1, 2) == list("bc")
    ledger.set(3, VALUE, Outcome(VALUE, b"", False))
    assert ledger.run(1, 100) == list("bc")
    ledger.set(2, EXCEPTION, None)
    assert ledger.run(1, 100) == ["b"]
    assert ledger.run(6, 100) == ledger.run(50, 100) == []


def test_all_values_are_given_where_none_needs_a_look(ledger: Ledger):
    assert ledger.all_values() is None, "four are open"
    assert ledger.fill(6, list("ghij"))
    assert ledger.all_values() == list("abcdefghij")
    ledger.set(3, VALUE, Outcome(VALUE, b"", False))
    assert ledger.all_values() is None
    ledger.set(3, VALUE, "d")
    assert (ledger.all_values() or [value for _, _, value in ledger.items()]) == list("abcdefghij")


@pytest.mark.parametrize("kind", [OPEN, CANCELLED, FORGOTTEN, EXCEPTION])
def test_all_values_are_not_given_where_one_is_none(ledger: Ledger, kind: int):
    assert ledger.fill(6, list("ghij"))
    ledger.set(9, kind, None)
    assert ledger.all_values() is None


def test_what_lies_before_a_place_is_forgotten_and_places_stay(ledger: Ledger):
    ledger.drop_before(4)
    assert (len(ledger), ledger.first, ledger.value(4)) == (10, 4, "e")
    assert (ledger.kind(3), ledger.value(3)) == (FORGOTTEN, None)
    assert ledger.run(3, 5) == []
    assert [place for place, _, _ in ledger.items()] == list(range(4, 10))
    assert ledger.places((OPEN,)) == ledger.places((OPEN,), 0, 10) == [6, 7, 8, 9]
    assert (ledger.first_open(0, 10), ledger.any_open(0, 6), ledger.any_open(0, 7)) == (6, False, True)
    assert not ledger.fill(2, ["x"]), "a second reply of what was forgotten"


def test_what_is_open_is_never_forgotten(ledger: Ledger):
    ledger.drop_before(9)
    assert ledger.first == 6
    ledger.drop([6, 7])
    assert ledger.kind(6) == OPEN


def test_single_places_are_forgotten_and_the_beginning_goes_when_it_can(ledger: Ledger):
    ledger.drop([1, 2])
    assert (ledger.first, ledger.kind(1), ledger.kind(0)) == (0, FORGOTTEN, VALUE)
    ledger.drop([0])
    assert (ledger.first, ledger.value(3)) == (3, "d")


def test_what_does_not_exist_yet_is_open(ledger: Ledger):
    assert ledger.kind(99) == OPEN
    ledger.extend(2, CANCELLED)
    assert ledger.kind(11) == CANCELLED
