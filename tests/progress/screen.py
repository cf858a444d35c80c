"""What a reader of a terminal sees of what was written to it."""

from __future__ import annotations

import os
import re

__all__ = ["read_all", "screen_of"]


def read_all(screen: int) -> bytes:
    """What was written to a pseudo-terminal, until nobody has it open any more. Closes this end of it."""
    seen = b""
    while True:
        try:
            chunk = os.read(screen, 65536)
        except OSError:  # the terminal is closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(screen)
    return seen


def screen_of(written: str) -> list[str]:
    """Its lines, with those that have left the top: replayed on a screen that knows the codes rich uses here."""
    rows, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", written):
        if token == "\n":
            row, column = row + 1, 0
            if row == len(rows):
                rows.append("")
        elif token == "\r":
            column = 0
        elif token.startswith("\x1b"):
            if token.endswith("A"):
                row -= int(token[2:-1] or 1)
            elif token.endswith("K"):
                rows[row] = ""
        else:
            rows[row] = rows[row][:column].ljust(column) + token + rows[row][column + len(token) :]
            column += len(token)
    return [line.rstrip() for line in rows if line.strip()]
