"""After a task, signal handlers are as they were; where nothing was changed, nothing is set."""

from __future__ import annotations

import signal
import subprocess
import sys

# In a process of its own: signal handlers are nobody's to play with in a test session.
CODE = """
import signal
from nbqueue.worker.surroundings import Surroundings

signal.signal(signal.SIGUSR1, lambda *_: None)
mine = signal.getsignal(signal.SIGUSR1)
surroundings = Surroundings()
surroundings.remember_signals()

set_ = []
really = signal.signal
signal.signal = lambda number, handler: set_.append(number) or really(number, handler)
surroundings.restore()
print(set_)

really(signal.SIGUSR1, signal.SIG_IGN)
really(signal.SIGALRM, lambda *_: None)
surroundings.restore()
print(sorted(map(int, set_)), signal.getsignal(signal.SIGUSR1) is mine, signal.getsignal(signal.SIGALRM))
set_.clear()
surroundings.restore()
print(set_)
"""


def test_a_task_that_changed_no_signal_handler_costs_no_system_call() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=30, check=True)
    untouched, restored, again = done.stdout.splitlines()
    assert untouched == "[]"
    changed = sorted([int(signal.SIGUSR1), int(signal.SIGALRM)])
    assert restored == f"{changed} True {signal.SIG_DFL!s}"
    assert again == "[]"
