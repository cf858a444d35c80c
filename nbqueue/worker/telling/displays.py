"""``display`` and figures in a task: on their way below the cell that made the call.

Neither IPython nor matplotlib is loaded here: ``display`` asks objects as IPython does (``_repr_html_``,
``_repr_png_``, ``_repr_mimebundle_``, …), and where a task imports IPython's own, this one takes its place. Figures
of pyplot are published by ``plt.show()`` and at the end of their item (`figures`), each state of them once.
Where the caller is no notebook, what is displayed is printed as text, and figures are nothing.
"""

from __future__ import annotations

import base64
import builtins
import hashlib
import io
import json
import secrets
import sys
import traceback
import weakref
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from nbqueue.worker.telling.hooks import when_imported
from nbqueue.worker.telling.prints import Prints

__all__ = ["Display", "display", "install", "publish_figures", "seen", "touch"]

# One message may have no more than 1 MB on some servers.
MOST_BYTES = 700_000
LONGEST_TEXT = 20_000

_METHODS = {
    "text/html": "_repr_html_",
    "text/markdown": "_repr_markdown_",
    "text/latex": "_repr_latex_",
    "image/svg+xml": "_repr_svg_",
    "image/png": "_repr_png_",
    "image/jpeg": "_repr_jpeg_",
    "application/json": "_repr_json_",
}

_show: Callable[[], Callable[[str, dict[str, Any]], None] | None] = lambda: None  # noqa: E731 - until `install`
_prints = Prints()
_clear_first = False  # what is displayed next takes the place of all before
_published: weakref.WeakKeyDictionary[Any, bytes] = weakref.WeakKeyDictionary()


def install(show: Callable[[], Callable[[str, dict[str, Any]], None] | None], prints: Prints) -> None:
    """Make ``display`` known to tasks, as a notebook does.

    `show` gives what takes an id and data, or None while nobody can see them.
    """
    global _show, _prints
    _show, _prints = show, prints
    builtins.display = display  # type: ignore[attr-defined]
    when_imported("IPython.core.display_functions", _replace)


def seen() -> bool:
    """Whether the caller can show more than text."""
    return _show() is not None


def touch() -> None:
    """Something was made that is to be looked at when the item has ended."""
    _prints.touch()


class Display:
    """What ``display(…, display_id=True)`` returns: its `update` replaces what was displayed."""

    def __init__(self, display_id: str) -> None:
        self.display_id = display_id

    def display(self, obj: Any, **kwargs: Any) -> None:
        display(obj, display_id=self.display_id, **kwargs)

    update = display


def display(
    *objects: Any,
    include: Any = None,
    exclude: Any = None,
    metadata: Any = None,
    transient: Any = None,
    display_id: Any = None,
    raw: bool = False,
    clear: bool = False,
    **_: Any,
) -> Display | None:
    """Show objects below the cell that made the call, as IPython's ``display`` does.

    Parameters
    ----------
    *objects : object
        Figures, tables, whatever a notebook can show; with `raw`, dicts from mime type to data.
    display_id : str or bool, optional
        A name, by which a later display replaces this one; True makes one.

    Returns
    -------
    Display or None
        With `display_id`, what can be updated.
    """
    handle = None
    if display_id is not None and display_id is not False:
        handle = Display(secrets.token_hex(8) if display_id is True else str(display_id))
    for obj in objects:
        if not raw and callable(own := getattr(obj, "_ipython_display_", None)) and not isinstance(obj, type):
            own()
            continue
        data = dict(obj) if raw else _formatted(obj)
        if include is not None or exclude is not None:
            data = {m: v for m, v in data.items() if (include is None or m in include) and m not in (exclude or ())}
        if data:
            _publish(data, handle.display_id if handle else secrets.token_hex(8))
    return handle


def publish_figures(figures: list[Any]) -> None:
    """Show what pyplot has open, except what looks as it did when it was shown before."""
    for figure in figures:
        try:
            png = _png(figure)
        except Exception:  # noqa: BLE001 - drawing runs the task's own formatters, and its result counts all the same
            sys.stderr.write(f"nbqueue: a figure could not be drawn.\n{traceback.format_exc()}")
            continue
        if _published.get(figure) != _digest(png):
            _note(figure, png)
            _publish({"image/png": png, "text/plain": repr(figure)}, secrets.token_hex(8))


def _publish(data: Mapping[str, Any], id: str) -> None:
    if _clear_first:
        _clear_output()
    sent = _fit({mime: value for mime, given in data.items() if (value := _sendable(given)) is not None})
    show = _show()
    if show is None:
        print(sent.get("text/plain", "<display>"))
    else:
        show(id, sent)


def _formatted(obj: Any) -> dict[str, Any]:
    """An object in all the forms that it has."""
    data: dict[str, Any] = {"text/plain": _text(obj)}
    if isinstance(obj, type):
        # Its methods are its objects'.
        return data
    if type(obj).__module__.startswith("matplotlib.") and hasattr(obj, "savefig"):
        png = _png(obj)
        _note(obj, png)
        return {**data, "image/png": png}
    bundle = _asked(obj, "_repr_mimebundle_")
    bundle = bundle[0] if isinstance(bundle, tuple) else bundle
    if isinstance(bundle, Mapping):
        data.update(bundle)
    for mime, method in _METHODS.items():
        if mime not in data and (value := _asked(obj, method)) is not None:
            data[mime] = value[0] if isinstance(value, tuple) else value
    return data


def _asked(obj: Any, method: str) -> Any:
    asked = getattr(obj, method, None)
    if not callable(asked):
        return None
    try:
        return asked()
    except Exception:  # noqa: BLE001 - as in a notebook: a form that it does not have, or cannot make now
        return None


def _text(obj: Any) -> str:
    try:
        return repr(obj)
    except Exception as error:  # noqa: BLE001 - its own code
        return f"<{type(obj).__name__}: {type(error).__name__} in its repr>"


def _sendable(value: Any) -> Any:
    """What JSON can hold, or None."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return None


def _size(value: Any) -> int:
    return len(value.encode("utf-8", "replace") if isinstance(value, str) else json.dumps(value))


def _fit(data: dict[str, Any]) -> dict[str, Any]:
    """The same without its largest forms, where that is too much for one message."""
    text = data.get("text/plain")
    if isinstance(text, str) and len(text) > LONGEST_TEXT:
        data["text/plain"] = text[:LONGEST_TEXT] + "…"
    sizes = {mime: _size(value) for mime, value in data.items() if mime != "text/plain"}
    while sum(sizes.values()) > MOST_BYTES:
        largest = max(sizes, key=lambda mime: sizes[mime])
        data["text/plain"] = f"{data.get('text/plain', '')} ({largest} of {sizes.pop(largest):,} bytes left out)"
        del data[largest]
    return data


# Figures


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", bbox_inches="tight")
    return out.getvalue()


def _digest(png: bytes) -> bytes:
    return hashlib.blake2b(png, digest_size=16).digest()


def _note(figure: Any, png: bytes) -> None:
    try:
        _published[figure] = _digest(png)
    except TypeError:
        # Cannot be referred to weakly: it may be shown twice.
        pass


# IPython's own


def _replace(module: ModuleType) -> None:
    """In a worker there is no front end that IPython could talk to."""
    module.display = display  # type: ignore[attr-defined]
    module.publish_display_data = _publish_display_data  # type: ignore[attr-defined]
    module.update_display = _update_display  # type: ignore[attr-defined]
    module.DisplayHandle = Display  # type: ignore[attr-defined]
    module.clear_output = _clear_output  # type: ignore[attr-defined]


def _clear_output(wait: bool = False) -> None:
    """Take away what the running item has displayed; with `wait`, when it displays something again."""
    global _clear_first
    _clear_first = wait
    show = _show()
    if show is not None and not wait:
        for id in _prints.ids():
            show(id, {})


def _publish_display_data(data: Mapping[str, Any], metadata: Any = None, *_: Any, **kwargs: Any) -> None:
    id = (kwargs.get("transient") or {}).get("display_id")
    _publish(data, id or secrets.token_hex(8))


def _update_display(obj: Any, *, display_id: str, **kwargs: Any) -> None:
    display(obj, display_id=display_id, **kwargs)
