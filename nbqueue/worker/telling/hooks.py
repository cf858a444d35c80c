"""Change a library a little when a task imports it, without importing it ourselves.

A worker must start in milliseconds, so it cannot load what only some tasks use. `when_imported` waits for them.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["when_imported"]

Hook = Callable[[ModuleType], object]


def when_imported(name: str, hook: Hook) -> None:
    """Call ``hook(module)`` right after the module `name` has been imported; now, if it has been already.

    What the hook raises is raised by the import. A second hook for the same name takes the first one's place.
    """
    if name in sys.modules:
        hook(sys.modules[name])
        return
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    _finder.hooks[name] = hook


class _Finder:
    """Lets the others find a module, and calls its hook when it has been executed."""

    def __init__(self) -> None:
        self.hooks: dict[str, Hook] = {}
        self._looking: set[str] = set()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        hook = self.hooks.get(name)
        if hook is None or name in self._looking:
            return None
        self._looking.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._looking.discard(name)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader, hook)  # type: ignore[assignment]
        return spec


class _Loader:
    """Another loader, and a hook after it."""

    def __init__(self, loader: Any, hook: Hook) -> None:
        self._loader = loader
        self._hook = hook

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._hook(module)


_finder = _Finder()
