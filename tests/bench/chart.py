"""The picture for the README: how many times longer or shorter each library takes than nbqueue, work by work.

One row a work, one mark a library, a logarithmic axis; the line at 1 is nbqueue. Drawn twice, for light pages and for
dark ones. Colours are told apart with any kind of sight, and each library has a shape of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.goals import OURS, medians, ratio
from tests.bench.peers import PEERS
from tests.bench.runner import Run
from tests.bench.works import WORKS

__all__ = ["draw", "relative"]

# Okabe and Ito's colours, and a shape each.
LOOKS = {
    "Pool": ("#E69F00", "o"),
    "ProcessPoolExecutor": ("#56B4E9", "s"),
    "loky": ("#009E73", "^"),
    "joblib": ("#D55E00", "v"),
    "mpire": ("#CC79A7", "D"),
    "ipyparallel": ("#0072B2", "P"),
    "dask": ("#B8A800", "X"),
    "ray": ("#999999", "*"),
}
# Name → page, ink, lines.
PAGES = {"speed": ("#ffffff", "#1f2328", "#d1d9e0"), "speed-dark": ("#0d1117", "#f0f6fc", "#3d444d")}


def relative(document: Mapping[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Title of each work → library → its time by ours (above 1: nbqueue is ahead). Works without ours are left out."""
    table = medians(Run(**run) for run in document["runs"])
    rows = []
    for work in WORKS:
        for metric in work.metrics:
            row = table.get((work.name, metric.key), {})
            if work.alone or OURS not in row:
                continue
            others = {
                peer: 1 / found
                for peer in PEERS
                if peer in row
                and peer != OURS
                # Nothing to divide by, or nothing to draw on a logarithmic axis.
                and 0 < (found := ratio(row[OURS], row[peer], more_is_better=metric.more_is_better)) < float("inf")
            }
            if others:
                rows.append((metric.title, others))
    return rows


def draw(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write both pictures; returns their paths. Nothing is drawn where nothing can be compared."""
    rows = relative(document)
    if not rows:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    return [_picture(rows, document, folder / f"{name}.png", *colours) for name, colours in PAGES.items()]


def _picture(
    rows: Sequence[tuple[str, dict[str, float]]],
    document: Mapping[str, Any],
    path: Path,
    page: str,
    ink: str,
    lines: str,
) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(8.6, 1.5 + 0.4 * len(rows)), dpi=200, facecolor=page, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor=page)
    axes.set_xscale("log")
    axes.axvline(1.0, color=ink, linewidth=2, zorder=1)
    for peer, (colour, shape) in LOOKS.items():
        points = [(others[peer], place) for place, (_, others) in enumerate(rows) if peer in others]
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, s=52, marker=shape, color=colour, edgecolors=page, linewidths=0.6, label=peer, zorder=3)
    axes.set_yticks(range(len(rows)), [title for title, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g} ×"))
    axes.tick_params(colors=ink, which="both")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=lines, linewidth=0.7)
    axes.grid(axis="y", color=lines, linewidth=0.4)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, labelcolor=ink)
    repeats = 1 + max(run["repetition"] for run in document["runs"])
    cores = document["machine"]["cores"]
    figure.supxlabel(
        "how many times as long as nbqueue others take: right of the line it is ahead\n"
        f"{document['date']}, {cores} cores, median of {repeats}",
        color=ink,
        fontsize=9,
    )
    figure.savefig(path, facecolor=page)
    return path
