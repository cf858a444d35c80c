"""Terminal codes in what tasks print: colours and bold become html, all else disappears. Pure functions."""

from __future__ import annotations

import html as _html
import re

__all__ = ["coloured", "without_codes"]

_CODES = re.compile(
    r"\x1b\[([0-9;]*)[^A-Za-z]*([A-Za-z])"  # colours, and what moves the cursor
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b.?"  # titles, links, and the rest
    r"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
)
# At least 3:1 on white and on #111.
_COLOURS = ("#808080", "#e53935", "#388e3c", "#b07d00", "#1e88e5", "#ab47bc", "#00909c", "#808080")


def without_codes(text: str) -> str:
    return _CODES.sub("", text)


def coloured(text: str) -> str:
    """Escaped html; of terminal codes, the usual colours and bold stay."""
    out: list[str] = []
    open_span = False
    colour, bold = "", False
    at = 0
    for match in _CODES.finditer(text):
        out.append(_html.escape(text[at : match.start()], quote=False))
        at = match.end()
        if match[2] != "m":
            continue
        colour, bold = _style(match[1], colour, bold)
        if open_span:
            out.append("</span>")
        style = ";".join(filter(None, (f"color:{colour}" if colour else "", "font-weight:bold" if bold else "")))
        open_span = bool(style)
        if style:
            out.append(f'<span style="{style}">')
    out.append(_html.escape(text[at:], quote=False))
    return "".join(out) + ("</span>" if open_span else "")


def _style(codes: str, colour: str, bold: bool) -> tuple[str, bool]:
    numbers = [int(code) if code else 0 for code in codes.split(";")]
    while numbers:
        code = numbers.pop(0)
        if code == 0:
            colour, bold = "", False
        elif code in (1, 22):
            bold = code == 1
        elif 30 <= code <= 37 or 90 <= code <= 97:
            colour = _COLOURS[code % 10]
        elif code == 39:
            colour = ""
        elif code in (38, 48):
            # Of 256, or of all: the first sixteen only.
            kind = numbers.pop(0) if numbers else 0
            index = numbers[0] if kind == 5 and numbers else -1
            del numbers[: 1 if kind == 5 else 3]
            if code == 38:
                colour = _COLOURS[index % 8] if 0 <= index < 16 else ""
    return colour, bold
