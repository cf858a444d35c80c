"""A snapshot as one line of text and as one piece of HTML: what a saved notebook keeps.

Pure functions, also the words and colours of every other view. The HTML lives through a notebook's
sanitiser (literal colours before theme variables, no `<style>`, no svg), and where a site strips all
styles (GitHub), its text still reads as a sentence with all numbers.
"""

from __future__ import annotations

import html as _html
import re
from typing import NamedTuple

from .tally import Lane, Snapshot

__all__ = ["Part", "breakable", "css", "html", "lane_words", "plain", "rate_text", "seconds_text", "words"]


class Part(NamedTuple):
    """One statement about a batch: `kind` chooses its colour, `symbol` goes before its `text`."""

    kind: str
    symbol: str
    text: str


# Each literal is followed by the theme's own colour. The literals keep at least 3:1 on white and on
# #111, since a saved notebook cannot know on what it will be shown.
GREEN = ("#388e3c", "--jp-success-color1")
RED = ("#e53935", "--jp-error-color1")
BLUE = ("#1e88e5", "--jp-brand-color1")
GREY = ("#8a8a8a", "--jp-ui-font-color3")
GREY_TEXT = ("#808080", "--jp-ui-font-color2")
TRACK = ("#8a8a8a40", "--jp-border-color2")

# A path or JSON is one word, and wider than the page. A sanitiser takes away the style by which it would be broken.
_LONG_WORD, _PIECE = re.compile(r"\S{24,}"), 4

_CUT = "overflow:hidden;text-overflow:ellipsis;white-space:nowrap"

# Wide enough to see one per cent; fixed, or the bar would breathe with each digit that the text gains.
BAR_WIDTH_PX = 200
# Names up to this width leave the bars of a card and of its lanes in line.
NAME_WIDTH_PX = 104
# At the right, for a Cancel button; kept free also without one, or the text would jump when that comes and goes.
BUTTON_ROOM_PX = 92

# Where the total is unknown, a segment of this share goes to and fro in this time.
SWEEP_PERCENT = 25.0
SWEEP_S = 3.0

_TEXT_COLOURS = {"failed": RED, "running": BLUE, "cancelled": GREY_TEXT, "time": GREY_TEXT}


def plain(snapshot: Snapshot) -> str:
    """One line: ``nbqueue: simulate 236/240 done · 4 failed · 2 retried · 4.9 s · 49.5/s``."""
    return f"nbqueue: {_one_line(snapshot.label)} " + " · ".join(part.text for part in words(snapshot))


def words(snapshot: Snapshot) -> tuple[Part, ...]:
    """The statements about a batch, in reading order; counts that are zero say nothing."""
    if snapshot.single:
        return _words_of_one(snapshot)
    parts = [Part("done", _verdict(snapshot), _progress(snapshot))]
    if snapshot.failed:
        parts.append(Part("failed", "✗", f"{snapshot.failed:,} failed"))
    if snapshot.cancelled:
        parts.append(Part("cancelled", "⊘", f"{snapshot.cancelled:,} cancelled"))
    if snapshot.finished:
        missing = (snapshot.total or 0) - snapshot.settled
        if missing > 0:
            parts.append(Part("cancelled", "⊘", f"{missing:,} not finished"))
    elif snapshot.running:
        parts.append(Part("running", "▸", f"{snapshot.running:,} running"))
    if snapshot.retried:
        parts.append(Part("retried", "↻", f"{snapshot.retried:,} retried"))
    if snapshot.finished:
        parts.append(Part("time", "", seconds_text(snapshot.elapsed_s, fine=True)))
    elif snapshot.eta_s is None:
        parts.append(Part("time", "", seconds_text(snapshot.elapsed_s)))
    if snapshot.unserved:
        parts.append(Part("unserved", "", "no workers"))
    if snapshot.rate is not None:
        parts.append(Part("time", "", rate_text(snapshot.rate)))
    if snapshot.eta_s is not None:
        parts.append(Part("time", "", f"{seconds_text(snapshot.eta_s)} left"))
    return tuple(parts)


def _words_of_one(snapshot: Snapshot) -> tuple[Part, ...]:
    """What there is to say about a single call: in which state it is, and since when."""
    if snapshot.failed:
        state = Part("failed", "✗", f"failed: {_one_line(snapshot.error)}" if snapshot.error else "failed")
    elif snapshot.cancelled:
        state = Part("cancelled", "⊘", "cancelled")
    elif snapshot.done:
        state = Part("done", "✓", "done")
    elif snapshot.running:
        state = Part("running", "▸", "running")
    else:
        state = Part("done", "", "not finished" if snapshot.finished else "queued")
    parts = [state]
    if snapshot.retried:
        parts.append(Part("retried", "↻", f"attempt {snapshot.retried + 1:,}"))
    if snapshot.finished or snapshot.elapsed_s >= 1:
        parts.append(Part("time", "", seconds_text(snapshot.elapsed_s, fine=snapshot.finished)))
    if snapshot.unserved:
        parts.append(Part("unserved", "", "no workers"))
    return tuple(parts)


def lane_words(lane: Lane) -> str:
    """The numbers of a lane and what its task says: ``40/100 · epoch 3``."""
    numbers = f"{_number(lane.done)}/{_number(lane.total)}" if lane.total is not None else _number(lane.done)
    text = _one_line(lane.text)
    return f"{numbers} · {text}" if text else numbers


def html(snapshot: Snapshot, more: str = "") -> str:
    """The card: name, bar, numbers, lanes; live or settled as the snapshot is. `more` HTML goes with it."""
    label = _html.escape(_one_line(snapshot.label))
    state = "settled" if snapshot.finished else "live"
    return (
        f'<div class="nbqueue-card" data-state="{state}" style="display:flex;flex-wrap:wrap;'
        "align-items:center;column-gap:12px;row-gap:2px;box-sizing:border-box;max-width:1000px;"
        f"padding:3px {BUTTON_ROOM_PX}px 3px 0;"
        "font-size:13px;line-height:20px;font-family:var(--jp-ui-font-family,sans-serif);"
        'font-variant:tabular-nums;font-variant-numeric:tabular-nums">'
        f'<b class="nbqueue-label" title="{label}" style="box-sizing:border-box;min-width:{NAME_WIDTH_PX}px;'
        f'max-width:240px;{_CUT}">{label}</b> '
        f"{_bar(snapshot, label)}"
        # Beside the bar where there is room for half of it, else below.
        f'<span class="nbqueue-text" style="flex:1 1 220px">{_sentence(snapshot)}</span>'
        f"{_lanes(snapshot)}{more}</div><!--/nbqueue-->"
    )


def _lanes(snapshot: Snapshot) -> str:
    """A thin bar for each task that tells how far it is, all in columns of their own."""
    if not snapshot.lanes:
        return ""
    rows = []
    for lane in snapshot.lanes:
        label, text = _html.escape(_one_line(lane.label)), _html.escape(lane_words(lane))
        values = ""
        if lane.total:
            values = f'aria-valuemin="0" aria-valuemax="{lane.total:g}" aria-valuenow="{lane.done:g}" '
        rows.append(
            f'<span class="nbqueue-lane-label" style="{_CUT};max-width:240px;padding-left:12px">{label}</span>'
            f'<div class="nbqueue-lane" role="progressbar" aria-label="{label or "task"}" {values}'
            f'aria-valuetext="{text}" style="display:flex;height:4px;border-radius:2px;overflow:hidden;'
            f'{css("background-color", TRACK)}">{_lane_segment(lane, snapshot.elapsed_s)}</div>'
            f'<span class="nbqueue-lane-text" title="{text}" style="{_CUT}">{text}</span>'
        )
    if snapshot.more_lanes:
        rows.append(f'<span class="nbqueue-lane-more" style="grid-column:2/-1">+ {snapshot.more_lanes:,} more</span>')
    return (
        '<div class="nbqueue-lanes" style="flex:1 1 100%;min-width:0;display:grid;align-items:center;column-gap:12px;'
        f"grid-template-columns:minmax({NAME_WIDTH_PX}px,max-content) minmax(40px,{BAR_WIDTH_PX}px) minmax(110px,1fr);"
        f'font-size:12px;line-height:17px;{css("color", GREY_TEXT)}">{"".join(rows)}</div>'
    )


def _lane_segment(lane: Lane, elapsed_s: float) -> str:
    if lane.total is None:
        return _sweep(elapsed_s)
    return _segment("lane", 100 * min(1.0, max(0.0, lane.done / lane.total)) if lane.total else 100, BLUE)


def _sentence(snapshot: Snapshot) -> str:
    pieces = []
    for part in words(snapshot):
        symbol = f"{part.symbol} " if part.symbol else ""
        if part.kind == "done" and symbol:
            symbol = f'<span style="{css("color", GREEN)}">{symbol}</span>'
        style = css("color", _TEXT_COLOURS[part.kind]) if part.kind in _TEXT_COLOURS else ""
        pieces.append(f'<span class="nbqueue-{part.kind}" style="{style}">{symbol}{breakable(part.text)}</span>')
    # Where a narrow cell breaks the line, a part stays whole, and no line begins with a dot.
    # But for an error's message, which may be long.
    whole = "<span>" if snapshot.error else '<span style="white-space:nowrap">'
    return " ".join([*(f"{whole}{piece} ·</span>" for piece in pieces[:-1]), f"{whole}{pieces[-1]}</span>"])


def _bar(snapshot: Snapshot, label: str) -> str:
    """A track with one segment for each way in which items end. Its `label` is escaped already."""
    total = snapshot.settled if snapshot.total is None and snapshot.finished else snapshot.total
    values = ""
    if total is not None and not (snapshot.single and snapshot.running):
        values = f'aria-valuemin="0" aria-valuemax="{total}" aria-valuenow="{snapshot.settled}" '
    text = _html.escape(", ".join(part.text for part in words(snapshot) if part.kind != "time"))
    return (
        f'<div class="nbqueue-bar" role="progressbar" aria-label="{label}" {values}aria-valuetext="{text}" '
        f'title="{text}" style="display:flex;flex:0 1 {BAR_WIDTH_PX}px;min-width:80px;height:10px;'
        f'border-radius:5px;overflow:hidden;{css("background-color", TRACK)}">'
        f"{_segments(snapshot, total)}</div>"
    )


def _segments(snapshot: Snapshot, total: int | None) -> str:
    if total is None or (snapshot.single and snapshot.running):
        return _sweep(snapshot.elapsed_s)
    running = 0 if snapshot.finished else min(snapshot.running, total - snapshot.settled)
    counts = [
        ("done", snapshot.done, GREEN),
        ("failed", snapshot.failed, RED),
        ("cancelled", snapshot.cancelled, GREY),
        ("running", running, BLUE),
    ]
    # max: a total that turned out too small must not draw beyond the track.
    whole = max(total, snapshot.settled)
    return "".join(_segment(kind, 100 * count / whole, colour) for kind, count, colour in counts if count > 0)


def _sweep(elapsed_s: float) -> str:
    phase = elapsed_s / SWEEP_S % 2
    margin = (100 - SWEEP_PERCENT) * (phase if phase <= 1 else 2 - phase)
    return _segment("running", SWEEP_PERCENT, BLUE, f"margin-left:{margin:.2f}%;border-radius:5px;")


def _segment(kind: str, percent: float, colour: tuple[str, str], style: str = "") -> str:
    # At least two pixels: one failure in a million is still seen.
    return (
        f'<div class="nbqueue-bar-{kind}" style="width:{percent:.2f}%;min-width:2px;height:100%;{style}'
        f'{css("background-color", colour)}"></div>'
    )


def breakable(text: str) -> str:
    """HTML of a text whose long words may go on in the next line."""

    def pieces(word: re.Match[str]) -> str:
        return "\0".join(word[0][i : i + _PIECE] for i in range(0, len(word[0]), _PIECE))

    return _html.escape(_LONG_WORD.sub(pieces, text)).replace("\0", "<wbr>")


def css(name: str, colour: tuple[str, str]) -> str:
    """A rule of a style: the literal, then the theme's own."""
    literal, variable = colour
    # A sanitiser drops the second declaration, and the first one stays.
    return f"{name}:{literal};{name}:var({variable},{literal})"


def _verdict(snapshot: Snapshot) -> str:
    complete = snapshot.total is None or snapshot.done >= snapshot.total
    clean = complete and not snapshot.failed and not snapshot.cancelled
    return "✓" if snapshot.finished and clean else ""


def _progress(snapshot: Snapshot) -> str:
    if snapshot.total is None:
        return f"{snapshot.done:,} done"
    return f"{snapshot.done:,}/{snapshot.total:,} done"


def _one_line(label: str) -> str:
    return " ".join(label.split())


def _number(value: float) -> str:
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.2f}" if abs(value) < 1e6 else f"{value:.3g}"


def seconds_text(seconds: float, *, fine: bool = False) -> str:
    """For reading: a live view counts whole seconds, a settled one may be exact."""
    if fine and seconds < 0.001:
        return "under 1 ms"
    if fine and seconds < 0.1:
        return f"{seconds * 1000:.0f} ms"
    if fine and seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 1:
        return "under 1 s"
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def rate_text(rate: float) -> str:
    if rate >= 100:
        return f"{rate:,.0f}/s"
    # Not at one, near which many rates waver: they would go to and fro between two units.
    if rate >= 1 / 3:
        return f"{rate:.1f}/s" if rate >= 1 else f"{rate:.2f}/s"
    if rate * 60 >= 1 / 3:
        return f"{rate * 60:.1f}/min" if rate * 60 >= 1 else f"{rate * 60:.2f}/min"
    return f"{rate * 3600:.1f}/h"
