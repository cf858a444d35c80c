"""What a `Batch` tells of itself when somebody looks back: a table, a picture, and three numbers.

Always true here: nothing is computed, and no package loaded, before it is asked for.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from typing import Any

from nbqueue.client.results.account.facts import facts_of
from nbqueue.client.results.arriving import Arriving
from nbqueue.client.results.frames import user_frames_only
from nbqueue.errors import NotInstalled
from nbqueue.progress.static import seconds_text
from nbqueue.progress.tally import Snapshot

__all__ = ["LookingBack"]


class LookingBack(ABC):
    """Of what a `Batch` can do, that which only reads."""

    _items: Arriving

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def progress(self) -> Snapshot: ...

    def to_frame(self) -> Any:
        """All items as a pandas DataFrame, one row each, as they are now.

        The arguments come first, a column for each parameter of the function. Numbers,
        strings, bytes and None are there as they are, others as a short text. They are
        kept of items that failed or are open; of others where they took no more than 1
        kB an item, up to 32 MB of one batch, and larger ones (up to 200 kB) of the
        queue's last replies (16 MB). What is not kept is missing. A parameter that is
        called like one of the following has an underscore after its name.

        Returns
        -------
        pandas.DataFrame
            The index is the item's place in the batch. ``state``: done, failed,
            timeout, died (its worker did), cancelled, running or queued. ``attempts``:
            how often it was started, as far as is known. ``worker``:
            ``host:slot:serial`` of the one that ended it. ``queued``, ``started``,
            ``finished``: UTC, aware (``frame.started.dt.tz_convert("Europe/Paris")``
            for local ones), by this host's clock and the worker's. ``duration_s``:
            seconds of its last attempt. ``error``: type and message. Short items run
            and are told of together: they share their time evenly, so for them these
            are no measurements of single items. Nothing is known of when a worker that
            died had begun.

        Raises
        ------
        NotInstalled
            Without pandas.

        Examples
        --------
        >>> batch = queue.map(int, ["1", "x", "3"])
        >>> batch.wait()
        True
        >>> frame = batch.to_frame()
        >>> list(frame.state)
        ['done', 'failed', 'done']
        >>> list(frame[frame.state == "failed"].index)
        [1]

        How busy each worker was: ``frame.groupby("worker").duration_s.agg(["count",
        "sum"])``.
        """
        with user_frames_only:
            frame_of = _loaded("frame", "to_frame()", "pandas").frame_of
            return frame_of(facts_of(self._items))

    def timeline(self) -> Any:
        """A picture of who ran what when: a lane for each worker, a bar for each piece of work that has ended.

        Items that ran together are one bar; what failed is red. A worker that was
        replaced goes on in its lane.

        Returns
        -------
        matplotlib.figure.Figure
            Shown as the last line of a cell, readable on light and dark pages;
            ``.savefig("run.png")`` writes it.

        Raises
        ------
        NotInstalled
            Without matplotlib.

        Examples
        --------
        >>> batch = queue.map(abs, range(-10, 0))
        >>> batch.wait()
        True
        >>> batch.timeline()
        <Timeline size ... with 1 Axes>
        """
        with user_frames_only:
            draw = _loaded("picture", "timeline()", "matplotlib").draw
            return draw(self._items.lines(), self._in_words())

    def _in_words(self) -> str:
        words = [f"{self.name}: {self.progress.settled:,} items"]
        if self.speedup is not None:
            work, wall = seconds_text(self.serial_time or 0.0, fine=True), seconds_text(self.wall_time or 0, fine=True)
            words.append(f"{work} of work in {wall}, {self.speedup:.1f}×")
        return " · ".join(words)

    @property
    def serial_time(self) -> float | None:
        """Seconds that workers have spent in the items, one after the other; None before the first has ended.

        All attempts count that have ended, and what a worker that died had begun does
        not.

        Examples
        --------
        >>> import time
        >>> batch = queue.map(time.sleep, [0.02] * 4)
        >>> batch.wait()
        True
        >>> 0.07 <= batch.serial_time
        True
        """
        return self._items.seconds

    @property
    def wall_time(self) -> float | None:
        """Seconds from the call of `map` to the end of the last item, or until now; None before the first has ended.

        Examples
        --------
        >>> import time
        >>> batch = queue.map(time.sleep, [0.02] * 4)
        >>> batch.wait()
        True
        >>> 0.01 <= batch.wall_time
        True
        """
        progress = self.progress
        return progress.elapsed_s if progress.settled else None

    @property
    def speedup(self) -> float | None:
        """``serial_time / wall_time``: by how much it was faster than one such worker; None before the first has ended.

        A loop in the notebook may be faster than one of several workers that share a
        memory bus, so it says how busy the workers were rather than what they saved.

        Examples
        --------
        >>> batch = queue.map(abs, range(-10, 0))
        >>> batch.wait()
        True
        >>> batch.speedup == batch.serial_time / batch.wall_time
        True
        """
        serial, wall = self.serial_time, self.wall_time
        return serial / wall if serial is not None and wall else None


def _loaded(room: str, what: str, package: str) -> Any:
    """What makes something of the facts, and needs a package that need not be there."""
    try:
        return importlib.import_module(f"nbqueue.client.results.account.{room}")
    except ImportError as error:
        raise NotInstalled(
            f"{what} needs {package}, which cannot be imported here ({error}). Install it: pip install "
            "'nbqueue[analysis]', or the package alone."
        ) from error
