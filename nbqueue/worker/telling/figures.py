"""matplotlib's backend in workers (``MPLBACKEND=module://nbqueue.worker.telling.figures``): no window, no front end.

``plt.show()`` publishes the open figures and closes them, and so does the end of the item that made them.
"""

from __future__ import annotations

from typing import Any

from matplotlib._pylab_helpers import Gcf
from matplotlib.backend_bases import FigureManagerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg

from nbqueue.worker.telling import displays

__all__ = ["FigureCanvas", "FigureManager", "flush", "show"]


class FigureManager(FigureManagerBase):
    """Says that there is a figure to look at when the item has ended."""

    def __init__(self, canvas: Any, num: Any) -> None:
        super().__init__(canvas, num)
        displays.touch()


class FigureCanvas(FigureCanvasAgg):
    manager_class = FigureManager


def show(*_: object, **__: object) -> None:
    """Publish all open figures and close them."""
    flush(wanted=displays.seen())


def flush(*, wanted: bool) -> None:
    """Close all open figures; publish them first where somebody sees them."""
    managers = [manager for manager in Gcf.get_all_fig_managers() if isinstance(manager, FigureManager)]
    if wanted:
        displays.publish_figures([manager.canvas.figure for manager in managers])
    for manager in managers:
        Gcf.destroy(manager)
