"""The facts of a batch as a picture: one lane a worker, one bar a piece of work. Only here matplotlib is loaded.

Always true here: it is read on white and on black, since a notebook's page may be either and its background shows
through; a picture of a million items has no more bars than one of a few thousand.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from nbqueue.client.results.items import Line
from nbqueue.codec.messages import ERROR, EXCEPTION, RETRYING, SKIPPED

__all__ = ["Timeline", "draw"]

# At least 3:1 on white and on #111, as the cards have them.
_TEXT, _LINES = "#808080", "#80808050"
_COLOURS = {"done": "#1e88e5", "failed, ran again": "#b07d00", "failed": "#e53935"}
_KINDS = {EXCEPTION: "failed", ERROR: "failed", RETRYING: "failed, ran again"}
# Of the width: what is narrower than a pixel, a gap between bars, the least of a failure that is to be seen.
_PIXEL, _GAP, _SEEN = 1 / 1_600, 1 / 500, 1 / 250
# A lane with more bars than that is drawn as coarsely as it is seen.
_MANY = 300
_WIDTH_IN, _LANE_IN, _REST_IN, _MOST_IN = 9.0, 0.3, 1.15, 12.0


class Timeline(Figure):
    """A figure that a notebook shows, whether or not pyplot is in use."""

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format="png", dpi=110, bbox_inches="tight")
        return out.getvalue()


def draw(lines: Iterable[Line], title: str) -> Timeline:
    """Bars of all pieces of work that have ended."""
    done: dict[tuple[str, int], dict[str, list[tuple[float, float]]]] = {}  # by lane and kind
    zero, last = math.inf, -math.inf
    for line in lines:
        of_lane = done.setdefault(_lane(line.worker), {})
        zero, last = min(zero, line.started), max(last, line.started + line.items * line.seconds)
        for start, end, kind in _pieces(line):
            of_lane.setdefault(kind, []).append((start, end))
    lanes = sorted(done)
    span = last - zero if last > zero else 1.0
    height = min(_MOST_IN, _REST_IN + _LANE_IN * max(2, len(lanes)))
    figure = Timeline(figsize=(_WIDTH_IN, height), facecolor="none", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor="none")
    seen = []
    # What failed comes last, and lies above the rest.
    for number, (kind, colour) in enumerate(_COLOURS.items()):
        least = _SEEN * span if number else 0.0
        bars = [bar for at, lane in enumerate(lanes) for bar in _bars(done[lane].get(kind, []), zero, at, span, least)]
        if bars:
            seen.append(kind)
            axes.add_collection(PolyCollection(bars, facecolors=colour, edgecolors="none", zorder=2 + number))
    axes.set_xlim(0, span)
    axes.set_ylim(max(1, len(lanes)) - 0.5, -0.5)
    _label(axes, lanes, title)
    if seen and seen != ["done"]:
        axes.legend(
            handles=[Patch(color=_COLOURS[kind], label=kind) for kind in seen],
            loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(seen), frameon=False, labelcolor=_TEXT,
            borderaxespad=0.2, handlelength=1.0, fontsize=9,
        )  # fmt: skip
    return figure


def _label(axes: Any, lanes: list[tuple[str, int]], title: str) -> None:
    hosts = sorted({host for host, _ in lanes})
    names = [f"worker {slot}" if len(hosts) < 2 else f"host {hosts.index(host) + 1} · {slot}" for host, slot in lanes]
    # As many names as have room.
    step = max(1, len(lanes) * 2 // 75)
    axes.set_yticks(range(0, len(lanes), step), names[::step])
    axes.xaxis.set_major_locator(MaxNLocator(8))
    axes.set_xlabel("seconds since the first began", color=_TEXT, fontsize=9)
    axes.set_title(title, loc="left", color=_TEXT, fontsize=10)
    axes.tick_params(colors=_TEXT, labelcolor=_TEXT, labelsize=9, length=0)
    axes.grid(axis="x", color=_LINES, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_LINES)


def _lane(worker: str) -> tuple[str, int]:
    """``host:slot:serial`` without the serial: one that was replaced goes on in its lane."""
    host, _, rest = worker.partition(":")
    slot = rest.partition(":")[0]
    return host, int(slot) if slot.isdigit() else 0


def _pieces(line: Line) -> Iterator[tuple[float, float, str]]:
    """Start, end and kind of each run of items that ended alike."""
    if not line.kinds:
        yield line.started, line.started + line.items * line.seconds, "done"
        return
    first = 0
    for i in range(1, line.items + 1):
        if i < line.items and line.kinds[i] == line.kinds[first]:
            continue
        if line.kinds[first] != SKIPPED:
            start = line.started + first * line.seconds
            end = line.started + i * line.seconds
            yield start, end, _KINDS.get(line.kinds[first], "done")
        first = i


def _bars(spans: list[tuple[float, float]], zero: float, lane: int, span: float, least: float) -> list[Any]:
    """Rectangles for what one worker did: apart where there is room for that, run together where there is none."""
    if not spans:
        return []
    starts, ends = np.array(sorted(spans)).T - zero
    if len(starts) > _MANY:
        ends = np.maximum.accumulate(ends)
        apart = np.flatnonzero(starts[1:] - ends[:-1] > _PIXEL * span) + 1
        starts, ends = starts[np.r_[0, apart]], ends[np.r_[apart - 1, len(ends) - 1]]
    ends = ends - np.minimum((ends - starts) * 0.2, _GAP * span)
    ends = np.maximum(ends, starts + max(least, _PIXEL * span))
    low, high = lane - 0.38, lane + 0.38
    return [((a, low), (b, low), (b, high), (a, high)) for a, b in zip(starts, ends, strict=True)]
