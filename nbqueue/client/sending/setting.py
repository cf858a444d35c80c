"""What of this kernel's surroundings its tasks shall run in: cwd, import path, environment.

Asked at every call, so it must be cheap while nothing has changed.
"""

from __future__ import annotations

import os
import sys
import threading

from nbqueue.codec.functions import digest
from nbqueue.progress.places import shown_here
from nbqueue.stream.records import Setting

__all__ = ["SettingWatch"]

# What opens the queue itself must not lie in Redis, where settings are signed and can be read.
_OURS = ("NBQUEUE_SECRET", "NBQUEUE_URL")


class SettingWatch:
    """Notices changes since `baseline`, the environment that the workers were born with."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._baseline = dict(os.environ)
        # What was seen last, and digest and bytes of the setting that was made of it.
        self._seen: tuple[str, list[str], object, str, tuple[str, bytes]] = ("", [], None, "", ("", b""))

    def current(self, shelf: str = "") -> tuple[str, bytes]:
        """Digest and bytes of the present `Setting`, for whoever wants large results on the shelf of that path."""
        # The mapping below os.environ: comparing it costs 2 µs, comparing os.environ itself 30.
        environ = getattr(os.environ, "_data", None) or dict(os.environ)
        try:
            cwd = os.getcwd()
        except FileNotFoundError:
            cwd = ""
        seen = self._seen
        if seen[2] == environ and seen[0] == cwd and seen[1] == sys.path and seen[3] == shelf:
            return seen[4]
        with self._lock:
            path, environ = list(sys.path), dict(environ)
            data = self._make(cwd, shelf).to_bytes()
            made = digest(data), data
            self._seen = cwd, path, environ, shelf, made
            return made

    def _make(self, cwd: str, shelf: str) -> Setting:
        now = {name: value for name, value in os.environ.items() if name not in _OURS}
        changed: list[tuple[str, str | None]] = [
            (name, value) for name, value in sorted(now.items()) if self._baseline.get(name) != value
        ]
        changed += [(name, None) for name in sorted(self._baseline) if name not in now and name not in _OURS]
        path = [os.path.join(cwd, entry) if entry else cwd for entry in sys.path if isinstance(entry, str)]
        return Setting(cwd, tuple(path), tuple(changed), shown_here(), shelf)
