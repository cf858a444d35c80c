"""Is what this worker has imported still what lies on the disk?

A module is imported once in a process, so an edited one stays old. Only *local* modules are looked at: those of
site-packages, of Python and of nbqueue itself are not. `loop` asks after each fetch, before it begins a call; where
a module has changed, or is not the one that the call's notebook would import, the worker gives back what it has
fetched and leaves, and a fresh one imports what is there now.

Always true here: what is remembered of a file was read before its code was, so that a change in between is seen
later and never missed; a file that was touched and holds what it held is not a change; a fresh worker has imported
nothing, so it runs one call at least before it may leave, whatever that call does to its own modules.
"""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import cache_from_source
from typing import Any

import nbqueue

__all__ = ["LocalModules", "is_local"]

# Some file systems tell times in steps of two seconds: what was changed twice in one looks unchanged.
GRAIN_NS = 2_000_000_000
# How often to ask what is now found in the place of a file that is gone.
GONE_NS = 250_000_000

_INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))
_OURS = tuple(
    {
        os.path.join(os.path.realpath(path) if real else path, "")
        for path in (sysconfig.get_path("stdlib"), os.path.dirname(os.__file__), nbqueue.__path__[0])
        for real in (False, True)
    }
)

Stamp = tuple[int, int, int, int]


def is_local(path: str) -> bool:
    """Whether a module's file is somebody's own, rather than installed, of Python, or of nbqueue."""
    return not path.startswith(_OURS) and not any(part in path for part in _INSTALLED)


@dataclass(slots=True)
class _File:
    """A module's file as it was when its code was about to be read; without `content` for what is not source."""

    path: str
    stamp: Stamp
    content: bytes
    settled: bool  # so old that a change from now on changes the stamp, too
    read_ns: int
    looked_ns: int = 0  # when it was looked for last, after it was gone


def _stamp(st: os.stat_result) -> Stamp:
    # The time of the inode's change, too: it cannot be set back.
    return st.st_mtime_ns, st.st_ctime_ns, st.st_size, st.st_ino


def _read(path: str) -> _File:
    now = time.time_ns()
    with open(path, "rb") as file:
        st = os.fstat(file.fileno())
        content = blake2b(file.read()).digest()
    return _File(path, _stamp(st), content, now - max(st.st_mtime_ns, st.st_ctime_ns) > GRAIN_NS, now)


class LocalModules:
    """The local modules that this process imports from `watch` on."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        self._before: set[str] = set()
        self._counts = (0, 0)
        self._missed = False
        self._fitting: Sequence[str] = ()
        self._fitted = 0
        self._caches: dict[str, bool] = {}  # bytecode that is not to be read → whether it may be replaced

    def watch(self) -> None:
        """Take note of every import from now on. What has been imported before is never looked at."""
        self._before = set(sys.modules)
        self._counts = len(sys.modules), 0
        path_stats, get_data, set_data = (
            SourceFileLoader.path_stats,
            SourceFileLoader.get_data,
            SourceFileLoader.set_data,
        )

        # The loader itself, since finders that were installed for editable packages make their own.
        def noting_path_stats(loader: SourceFileLoader, path: str) -> Any:
            if is_local(path):
                self._note(loader.name, path)
            return path_stats(loader, path)

        def distrusting_get_data(loader: SourceFileLoader, path: str) -> bytes:
            if path in self._caches:
                raise OSError(f"{path} may be older than its source")
            return get_data(loader, path)

        def hesitating_set_data(loader: SourceFileLoader, path: str, data: bytes, **options: Any) -> None:
            if self._caches.get(path, True):
                set_data(loader, path, data, **options)

        SourceFileLoader.path_stats = noting_path_stats  # type: ignore[method-assign, assignment]
        SourceFileLoader.get_data = distrusting_get_data  # type: ignore[method-assign, assignment]
        SourceFileLoader.set_data = hesitating_set_data  # type: ignore[method-assign, assignment]
        # The last one to be asked: then nobody has found the module.
        sys.meta_path.append(self)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Finds nothing, and remembers that it was asked: the module may be written before it is asked for again."""
        self._missed = True
        return None

    def changed(self) -> str:
        """The name of an imported local module whose file has changed since, or ``""``.

        Costs one ``os.stat`` for each local module.
        """
        if self._missed:
            self._missed = False
            importlib.invalidate_caches()
        if not self._files and len(sys.modules) == self._counts[0]:
            return ""
        if (len(sys.modules), len(self._files)) != self._counts:
            self._take_stock()
        for name, file in list(self._files.items()):
            try:
                now = _stamp(os.stat(file.path))
            except OSError:
                if self._taken_over(name, file):
                    return name
                continue
            if (now != file.stamp or not file.settled) and self._differs(name, file):
                return name
        return ""

    def fits(self, path: Sequence[str]) -> bool:
        """Whether a kernel with this import path means the same modules, as far as it would find them at all.

        Two notebooks that share workers may have a ``helpers.py`` each.
        """
        if path is self._fitting and len(self._files) == self._fitted:
            return True
        roots = {name.partition(".")[0] for name in list(self._files)}
        if not all(self._is_the_one(name, path) for name in roots):
            return False
        self._fitting, self._fitted = path, len(self._files)
        return True

    @staticmethod
    def _is_the_one(name: str, path: Sequence[str]) -> bool:
        ours = getattr(sys.modules.get(name), "__dict__", {}).get("__file__")
        try:
            spec = PathFinder.find_spec(name, path)
            theirs = None if spec is None else spec.origin
            return not isinstance(ours, str) or theirs is None or theirs == ours or os.path.samefile(ours, theirs)
        except (ImportError, OSError, ValueError):
            # It is gone, or their path is out of order: `changed` looks after the one, their import tells of the other.
            return True

    def _note(self, name: str, path: str) -> None:
        try:
            file = self._files[name] = _read(os.path.abspath(path))
            cache = cache_from_source(path)
        except (OSError, NotImplementedError):
            # Not to be read: the import itself will tell. Or this Python keeps no bytecode.
            return
        # Bytecode knows its source by size and whole seconds: two edits in one second, and it is that of the first.
        self._caches.pop(cache, None)
        if not file.settled:
            self._caches[cache] = False
        elif _older(cache, max(file.stamp[:2]) + GRAIN_NS):
            self._caches[cache] = True

    def _take_stock(self) -> None:
        """Find new modules that are not source, and forget the files of modules that are no longer there."""
        for name in [name for name in self._files if name not in sys.modules]:
            del self._files[name]
        for name, module in list(sys.modules.items()):
            if name in self._before:
                continue
            self._before.add(name)
            path = getattr(module, "__dict__", {}).get("__file__")
            if name in self._files or not isinstance(path, str) or path.endswith(".py") or not is_local(path):
                continue
            try:
                self._files[name] = _File(path, _stamp(os.stat(path)), b"", True, 0)
            except OSError:
                # In an archive, or made up.
                continue
        self._counts = len(sys.modules), len(self._files)

    def _differs(self, name: str, file: _File) -> bool:
        if not file.content:
            return True
        try:
            now = _read(file.path)
        except OSError:
            # It is being replaced; next time there is more to see.
            return False
        if now.content != file.content:
            return True
        now.settled = now.settled or now.read_ns - file.read_ns > GRAIN_NS
        if not now.settled:
            now.read_ns = file.read_ns
        if self._files.get(name) is file:
            self._files[name] = now
        return False

    def _taken_over(self, name: str, file: _File) -> bool:
        """Whether another file would be imported in the place of one that is gone.

        An editor may be about to write it anew; and what a task has written, imported and deleted is gone for good.
        """
        now = time.time_ns()
        if now - file.looked_ns < GONE_NS:
            return False
        file.looked_ns = now
        importlib.invalidate_caches()
        parent = name.rpartition(".")[0]
        try:
            spec = PathFinder.find_spec(name, sys.modules[parent].__path__ if parent else None)
        except (AttributeError, ImportError, KeyError, OSError, ValueError):
            return False
        return spec is not None and spec.origin != file.path


def _older(path: str, than_ns: int) -> bool:
    try:
        return os.stat(path).st_mtime_ns < than_ns
    except OSError:
        return False
