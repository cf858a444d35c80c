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
        self._seen: tuple[str, list[str], object, str] | None = None
        self._blob = ("", b"")

    def current(self, shelf: str = "") -> tuple[str, bytes]:
        """Digest and bytes of the present `Setting`, for whoever wants large results on the shelf of that path."""
        # The mapping below os.environ: comparing it costs 2 µs, comparing os.environ itself 30.
        environ = getattr(os.environ, "_data", None) or dict(os.environ)
        try:
            cwd = os.getcwd()
        except FileNotFoundError:
            cwd = ""
        with self._lock:
            if self._seen is None or self._seen != (cwd, sys.path, environ, shelf):
                self._seen = (cwd, list(sys.path), dict(environ), shelf)
                data = self._make(cwd, shelf).to_bytes()
                self._blob = (digest(data), data)
            return self._blob

    def _make(self, cwd: str, shelf: str) -> Setting:
        now = {name: value for name, value in os.environ.items() if name not in _OURS}
        changed: list[tuple[str, str | None]] = [
            (name, value) for name, value in sorted(now.items()) if self._baseline.get(name) != value
        ]
        changed += [(name, None) for name in sorted(self._baseline) if name not in now and name not in _OURS]
        path = [os.path.join(cwd, entry) if entry else cwd for entry in sys.path if isinstance(entry, str)]
        return Setting(cwd, tuple(path), tuple(changed), shown_here(), shelf)
