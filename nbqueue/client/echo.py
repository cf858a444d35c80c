"""What tasks print in a script on a terminal, on its way to it.

::

    workers ─▶ supervisor ─▶ its stdout and stderr: pipes ─▶ Echo (a thread) ─▶ the terminal, above the bars

Two processes that write to one terminal tear each other's lines apart. So, where bars may be drawn, whatever the
supervisor writes to the terminal comes by way of this process, which knows where the bars are. A stream that goes
to a file or to a pipe, and both in a notebook, stay the supervisor's own: nothing comes by here.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading

from nbqueue.progress.terminal import pass_on
from nbqueue.progress.views import draws_on_terminal

__all__ = ["Echo", "way_out"]

PIECE_BYTES = 65_536
# At the end of Python. The pipes end with the supervisor, unless something that it started holds them open.
LAST_WORDS_S = 2.0


def way_out(fd: int) -> int | None:
    """What the supervisor gets as descriptor `fd`, 1 or 2, in the words of `subprocess`: a pipe, our own or none."""
    if (sys.__stdout__ if fd == 1 else sys.__stderr__) is None:
        # Python was started without it. What has that number now is some file.
        return subprocess.DEVNULL
    try:
        return subprocess.PIPE if draws_on_terminal() and _is_that_terminal(fd) else None
    except OSError:
        # Closed.
        return None


def _is_that_terminal(fd: int) -> bool:
    return os.isatty(fd) and os.fstat(fd).st_rdev == os.fstat(2).st_rdev


class Echo:
    """Passes on what one supervisor writes, until it has ended."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        pipes = {1: process.stdout, 2: process.stderr}
        self._files = {file.fileno(): (fd, file) for fd, file in pipes.items() if file is not None}
        self._thread = threading.Thread(target=self._run, name="nbqueue-echo", daemon=True)
        if self._files:
            self._thread.start()

    def end(self) -> None:
        """The supervisor has ended: wait until all that it wrote has been passed on."""
        if self._thread.is_alive():
            self._thread.join(LAST_WORDS_S)

    def _run(self) -> None:
        poller = select.poll()
        for pipe in self._files:
            poller.register(pipe, select.POLLIN)
        while self._files:
            for pipe, _ in poller.poll():
                fd, file = self._files[pipe]
                data = os.read(pipe, PIECE_BYTES)
                if data:
                    pass_on(fd, data)
                else:
                    poller.unregister(pipe)
                    file.close()
                    del self._files[pipe]
