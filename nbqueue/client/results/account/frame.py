"""The facts of a batch as a pandas table. Loaded when it is asked for, and only here pandas is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from nbqueue.client.results.account.facts import NOT_KEPT, Facts

__all__ = ["frame_of"]

_OURS = ("state", "attempts", "worker", "queued", "started", "finished", "duration_s", "error")


def frame_of(facts: Facts) -> Any:
    """One row an item, with its place as the index."""
    number = len(facts.places)
    places = np.asarray(facts.places, dtype=np.int64)
    first = facts.places[0] if number else 0
    # What was forgotten lies before all others, or between them; then rows are found by their places.
    whole = not number or facts.places[-1] - first + 1 == number
    times = {name: np.full(number, np.nan) for name in ("queued", "started", "finished", "duration_s")}
    attempts = np.zeros(number, dtype=np.int64)
    workers = np.full(number, None, dtype=object)
    for place, sent_at in facts.sent_at.items():
        row = place - first if whole else int(np.searchsorted(places, place))
        if 0 <= row < number and places[row] == place:
            times["queued"][row] = sent_at
    for line in facts.lines:
        if whole:
            low, high = max(0, line.start - first), max(0, line.start + line.items - first)
        else:
            low, high = (int(at) for at in np.searchsorted(places, (line.start, line.start + line.items)))
        rows = slice(low, high)
        began = line.started + line.seconds * (places[rows] - line.start)
        times["queued"][rows] = line.sent_at
        times["started"][rows] = began
        times["finished"][rows] = began + line.seconds
        times["duration_s"][rows] = line.seconds
        attempts[rows] = line.attempt
        workers[rows] = line.worker
    ended = np.array([state not in ("queued", "running") for state in facts.states], dtype=bool)
    for name in ("started", "finished", "duration_s"):
        # Of what is to run again, those of the attempt before are no answer.
        times[name][~ended] = np.nan
    columns: dict[str, Any] = {}
    for name, values in facts.arguments.items():
        while name in _OURS or name in columns:
            name += "_"
        columns[name] = _column(values)
    columns |= {"state": facts.states, "attempts": attempts, "worker": workers}
    columns |= {name: _moments(times[name]) for name in ("queued", "started", "finished")}
    columns |= {"duration_s": times["duration_s"], "error": np.array(facts.errors, dtype=object)}
    return pd.DataFrame(columns, index=pd.Index(places, name="item"))


def _column(values: list[Any]) -> Any:
    missing = any(value is NOT_KEPT for value in values)
    kinds = {type(value) for value in values if value is not NOT_KEPT}
    if not missing:
        return values
    if kinds == {int} and all(-(1 << 63) <= value < 1 << 63 for value in values if value is not NOT_KEPT):
        # Whole numbers stay whole beside what is missing.
        return pd.array([pd.NA if value is NOT_KEPT else value for value in values], dtype="Int64")
    return [None if value is NOT_KEPT else value for value in values]


def _moments(seconds: Any) -> Any:
    moments = np.full(len(seconds), "NaT", dtype="datetime64[us]")
    known = ~np.isnan(seconds)
    moments[known] = np.round(seconds[known] * 1e6).astype(np.int64).astype("datetime64[us]")
    return pd.to_datetime(moments, utc=True)
