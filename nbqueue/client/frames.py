"""Tracebacks without frames of ours: what is raised here looks as if it were raised where it was asked for.

Always true here: an exception that is no fault of ours leaves through ``with user_frames_only`` with the frames of
the one who asked and of the task, whoever draws it: IPython in any mode, pytest, a plain terminal, pdb.
"""

from __future__ import annotations

import concurrent.futures
import os
from pathlib import Path
from types import TracebackType

from nbqueue.errors import NbqueueError

__all__ = ["user_frames_only"]

_HOME = f"{Path(__file__).parent.parent}{os.sep}"
# What we raise on purpose. Of anything else that no user's code has raised, the place matters: it is a fault of ours.
_MEANT = (NbqueueError, TimeoutError, IndexError, KeyboardInterrupt, concurrent.futures.CancelledError)


class _UserFramesOnly:
    """A ``with`` block that takes away the frames of this package that lead to its exception.

    An interpreter adds a frame to a traceback when an exception reaches it, and not again when a ``with`` lets it
    pass: so what is taken away here is not put back.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if error is None or tb is None:
            return
        rest: TracebackType | None = tb
        while rest is not None and rest.tb_frame.f_code.co_filename.startswith(_HOME):
            rest = rest.tb_next
        if rest is not None or tb.tb_next is None or isinstance(error, _MEANT):
            # Not by assignment: a class may forbid that.
            error.with_traceback(rest)


user_frames_only = _UserFramesOnly()
