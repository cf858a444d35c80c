"""A whole cell as a call: run in a worker, and what it gives back.

`client.cells` sends a function whose globals are the names that the cell uses; its body is `run_cell`. Always true
here: a cell's functions, and those that it was sent, share one namespace, as they do in a notebook, and on their way
home they get the notebook's own.
"""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nbqueue.codec import functions

__all__ = ["CellResult", "getoutput", "run_cell", "system"]

_MISSING = object()


@dataclass(frozen=True, slots=True)
class CellResult:
    """What a cell gave: pickled names and last value, names that it deleted, and what cannot be pickled."""

    data: bytes
    deleted: tuple[str, ...]
    left: tuple[str, ...]

    def load(self, namespace: dict[str, Any]) -> tuple[dict[str, Any], Any, dict[str, Any]]:
        """Names, last value, and what else its functions use; their globals are `namespace`, which stays as it is."""
        (names, last), used = functions.loads_at_home(self.data, namespace)
        return names, last, {name: used[name] for name in used if name not in names}


def run_cell(
    code: types.CodeType, last: types.CodeType | None, bound: Iterable[str], namespace: dict[str, Any]
) -> CellResult:
    """Run a cell in its namespace, which is empty afterwards: a worker remembers the functions that it ran."""
    before = dict(namespace)
    try:
        exec(code, namespace)
        value = None if last is None else eval(last, namespace)
        changed = {
            name: now
            for name, now in namespace.items()
            if not name.startswith("_") and (name in bound or before.get(name, _MISSING) is not now)
        }
        deleted = tuple(name for name in before if name not in namespace and not name.startswith("_"))
        data, left = _dump(changed, value)
        return CellResult(data, deleted, left)
    finally:
        namespace.clear()


def _dump(names: dict[str, Any], value: Any) -> tuple[bytes, tuple[str, ...]]:
    """Together, so that two names of one object stay so. What cannot be pickled stays behind, and is named."""
    try:
        return functions.dumps((names, value)), ()
    except Exception:  # noqa: BLE001, S110 - runs users' __reduce__
        pass
    left = [f"`{name}` ({type(names[name]).__name__})" for name in names if not _travels(names[name])]
    kept = {name: names[name] for name in names if _travels(names[name])}
    if not _travels(value):
        left.append(f"the last value ({type(value).__name__})")
        value = None
    return functions.dumps((kept, value)), tuple(left)


def _travels(value: object) -> bool:
    try:
        functions.dumps(value)
    except Exception:  # noqa: BLE001 - as above
        return False
    return True


# What `!command` becomes in a worker.


def system(command: str) -> None:
    """Run a shell command; what it prints is the task's output."""
    sys.stdout.flush()
    sys.stderr.flush()
    subprocess.run(command, shell=True, stdin=subprocess.DEVNULL, check=False)


def getoutput(command: str) -> list[str]:
    """What a shell command prints, line by line."""
    done = subprocess.run(
        command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return done.stdout.decode(errors="replace").splitlines()
