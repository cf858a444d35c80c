"""Pure decisions: what becomes of an attempt that ended. No clock, no processes, no Redis."""

from __future__ import annotations

import random
import signal
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nbqueue.codec.messages import said_of, type_name
from nbqueue.errors import TaskError, TaskTimeout, WorkerDied

__all__ = ["CRASH_CAP", "SPAWNER_CRASH_CAP", "Exit", "death", "retry_delay", "wanted"]

# A task whose worker died may run once more (BullMQ's maxStalledCount 1; dask allows 3, loky none).
CRASH_CAP = 1

# The spawner's death ends all workers, and nobody can tell whether one of their tasks killed it: they are charged,
# but may survive more.
SPAWNER_CRASH_CAP = 3

_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 60.0


def retry_delay(failures: int, retries: int, *, draw: Callable[[], float] = random.random) -> float | None:
    """Seconds until the next attempt after `failures` exceptions of the task's own, None to give up.

    Exponential backoff with equal jitter: half of 0.1 s · 2^(failures-1), at most 60 s, plus a random share
    of the other half, so that tasks that failed together do not come back together.

    >>> retry_delay(1, 3, draw=lambda: 1.0), retry_delay(3, 3, draw=lambda: 0.0), retry_delay(4, 3)
    (0.1, 0.2, None)
    """
    if failures > retries:
        return None
    delay = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** (failures - 1))
    return float(delay / 2 + draw() * delay / 2)


def _over(used_bytes: int, limit_bytes: int) -> str:
    return f"was killed for using {used_bytes / 1e6:.0f} MB of memory where {limit_bytes / 1e6:.0f} are allowed"


def wanted(error: BaseException, retry_on: Sequence[str]) -> bool:
    """Whether a retry is wanted after `error`; `retry_on` names exception types, or is empty for all.

    >>> wanted(ConnectionResetError(), ["builtins.OSError"]), wanted(ValueError(), ["builtins.OSError"])
    (True, False)
    """
    if not isinstance(error, Exception):
        return False
    return not retry_on or any(type_name(kind) in retry_on for kind in said_of(type(error), "__mro__"))


@dataclass(frozen=True, slots=True)
class Exit:
    """How a worker process ended: by signal or with an exit code."""

    signal: int | None
    code: int | None
    peak_rss_bytes: int | None

    def __str__(self) -> str:
        if self.signal is None:
            return f"left with exit code {self.code}"
        try:
            name = signal.Signals(self.signal).name
        except ValueError:
            name = f"signal {self.signal}"
        hint = " (out of memory?)" if self.signal == signal.SIGKILL else ""
        return f"was ended by {name}{hint}"


def death(
    name: str,
    exit: Exit,
    *,
    attempts: int,
    timeout_s: float | None,
    over: tuple[int, int] | None = None,
    last_output: str = "",
) -> TaskError:
    """The error of a task whose process ended under it.

    With `timeout_s`, we ended it for its time limit; with `over`, for using more bytes of memory than it may.
    """
    if timeout_s is not None:
        return TaskTimeout(
            f"`{name}` ran longer than its timeout of {timeout_s:g} s and did not stop when interrupted; its worker "
            "was killed.",
            timeout_s=timeout_s,
        )
    peak = f" Peak memory: {exit.peak_rss_bytes / 1e6:.0f} MB." if exit.peak_rss_bytes else ""
    times = "once" if attempts == 1 else f"{attempts} times"
    said = "\nIts last output:\n" + textwrap.indent(last_output, "  ") if last_output else ""
    return WorkerDied(
        f"The worker that ran `{name}` {_over(*over) if over else exit}; the task was started {times}.{peak}{said}",
        signal=exit.signal,
        exitcode=exit.code,
        attempts=attempts,
        peak_rss_bytes=exit.peak_rss_bytes,
        last_output=last_output,
    )
