"""Other libraries' progress bars, shown in the notebook: a `tqdm` that a task makes is a lane of its card.

Always true here: the bar keeps its own numbers and everything else that `tqdm` does. It only draws nowhere, and starts
no thread. A bar that writes to a file of its own goes on to write there.
"""

from __future__ import annotations

import inspect
import sys
import threading
import weakref
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from nbqueue import context
from nbqueue.worker.telling.hooks import when_imported

__all__ = ["change_libraries"]


def change_libraries() -> None:
    """From now on in this process; what is not imported yet is changed when it is."""
    when_imported("tqdm.std", _guarded(_change_tqdm))
    when_imported("tqdm.notebook", _guarded(_change_notebook))


def _guarded(change: Any) -> Any:
    def hook(module: ModuleType) -> None:
        try:
            change(module)
        except Exception as error:  # noqa: BLE001 - an unknown version must stay importable
            sys.stderr.write(f"nbqueue: bars of {module.__name__} are not shown in the notebook ({error!r})\n")

    return hook


class _Nowhere:
    """The file of a bar that draws nowhere; a terminal, as far as the bar can tell."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def _change_tqdm(std: ModuleType) -> None:
    tqdm: Any = std.tqdm
    init, iterate, update, close = tqdm.__init__, tqdm.__iter__, tqdm.update, tqdm.close
    display, clear = tqdm.display, tqdm.clear
    signature = inspect.signature(init)
    tqdm.monitor_interval = 0
    # Its own is shared between processes, for which Python 3.14 starts one more, and a worker prints for itself alone.
    tqdm.set_lock(threading.RLock())

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("display", None)  # known to the notebook's kind of bar
        bound = signature.bind_partial(self, *args, **kwargs)
        terminals = (None, sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
        if bound.arguments.get("file") in terminals and not bound.arguments.get("disable"):
            # Weakly: a bar that is dropped closes itself.
            bar = weakref.ref(self)
            self._nbqueue_lane = context.open_lane(read=lambda: _read(bar()))
            if self._nbqueue_lane is not None:
                bound.arguments["file"] = _Nowhere()
        init(*bound.args, **bound.kwargs)

    def __iter__(self: Any) -> Iterator[Any]:
        lane = _lane(self)
        if lane is None or self.disable:
            yield from iterate(self)
            return
        try:
            for item in self.iterable:
                yield item
                self.n += 1
                if not lane.posted:
                    lane.post()
        finally:
            self.close()

    def update_(self: Any, n: float | None = 1) -> Any:
        shown = update(self, n)
        _post(self)
        return shown

    def display_(self: Any, *args: Any, **kwargs: Any) -> Any:
        return True if _post(self) else display(self, *args, **kwargs)

    def clear_(self: Any, *args: Any, **kwargs: Any) -> None:
        if _lane(self) is None:
            clear(self, *args, **kwargs)

    def close_(self: Any) -> None:
        if not getattr(self, "disable", True):
            leave = abs(self.pos) == 0 if self.leave is None else self.leave
            _end(self, stay=bool(leave))
        close(self)

    tqdm.__init__, tqdm.__iter__, tqdm.update, tqdm.close = __init__, __iter__, update_, close_
    tqdm.display, tqdm.clear = display_, clear_


def _change_notebook(notebook: ModuleType) -> None:
    """Its bars are widgets of this process, which no notebook sees."""
    std: Any = sys.modules["tqdm.std"]
    names: Any = notebook
    names.tqdm = names.tqdm_notebook = std.tqdm
    names.trange = names.tnrange = std.trange


def _lane(bar: Any) -> context.Lane | None:
    lane: context.Lane | None = bar.__dict__.get("_nbqueue_lane")
    return lane


def _post(bar: Any) -> bool:
    """True where the bar is a lane, which will show what it holds now."""
    lane = _lane(bar)
    if lane is None:
        return False
    if not lane.posted and not lane.ended:
        lane.post()
    return True


def _end(bar: Any, *, stay: bool) -> None:
    lane = _lane(bar)
    if lane is not None:
        lane.end(stay=stay)


def _read(bar: Any) -> tuple[float, float | None, str]:
    if bar is None:
        raise ReferenceError("the bar is gone")
    description = str(bar.desc or "").removesuffix(": ")
    return bar.n, bar.total, ", ".join(filter(None, (description, str(bar.postfix or ""))))
