"""The slot board: what each worker is running right now.

A small shared memory with one line of 64-bit words a slot. The worker in a slot writes its line, the
supervisor reads it: who was running when a process died, for how long a task has run, which task a signal
is meant for. The second part of a line goes the other way: the supervisor writes whom its signal is for,
and the worker compares before it raises. So a SIGINT that comes late never hits the next task.

Calls of async functions run several at a time. Each has a *place*: a line of its own, of the same kind, in the part
of the board that belongs to its worker; the worker's own line then says that it runs `SEVERAL` and names none of them.

Each word is written at once; what takes several words is guarded by a sequence number that is odd while the
line is being written.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = [
    *("BUSY", "CANCEL", "IDLE", "OFF", "PLACES", "SEVERAL", "SEVERAL_WAITING", "STARTING", "TIMEOUT", "WAITING"),
    *("Board", "Line", "Slot", "limit_ms", "place_of"),
]

OFF, STARTING, IDLE, BUSY, WAITING, SEVERAL, SEVERAL_WAITING = range(7)
STATE_NAMES = ("off", "starting", "idle", "busy", "waiting", "busy", "waiting")
CANCEL, TIMEOUT = 1, 2
# Calls that one worker can run at a time. Memory that nobody writes to costs nothing.
PLACES = 256

_WORDS = 40
_SEQ, _STATE, _PID, _REDIS_ID, _STREAM, _MS, _ID_SEQ = range(7)
_CLIENT, _N, _SPLIT, _ITEM, _ATTEMPT, _STARTED, _TIMEOUT = range(7, 14)
_NAME, _NAME_WORDS = 14, 8
_STOP, _FOR_STREAM, _FOR_MS, _FOR_SEQ, _FOR_ITEM, _FOR_WHY = range(22, 28)
_PRINTED_OUT, _PRINTED_ERR, _LEAVE, _PASSED_OUT, _PASSED_ERR, _TAKEN, _PLACES_USED, _FOR_N, _HEARD = range(28, 37)
# Beside the number of a stream: the entry is a bundle, in which the call has a place of its own.
_BUNDLED = 16
# From `_STREAM` to the end of the name, in one go.
_CALL = struct.Struct(f"={_NAME - _STREAM}Q{_NAME_WORDS * 8}s")


@dataclass(frozen=True, slots=True)
class Line:
    """One reading of a slot. `started_ns` is of the monotonic clock; `timeout_ms` is 0 without a limit;
    `printed` is how long the worker's stdout and stderr were, in bytes, when the item that runs began to print:
    what comes after belongs to it, or to nobody if the worker is idle."""

    state: int
    pid: int
    redis_id: int
    entry: str
    client: str
    n: str
    item: int
    attempt: int
    started_ns: int
    timeout_ms: int
    name: str
    printed: tuple[int, int] = (0, 0)

    @property
    def running(self) -> bool:
        return self.state in (BUSY, WAITING)


class Board:
    """The shared memory of all slots. `fd` is inherited by workers, which `attach` to it."""

    def __init__(self, fd: int, slots: int) -> None:
        self.fd = fd
        self.slots = slots
        self._map = mmap.mmap(fd, _size_bytes(slots))
        self._words = memoryview(self._map).cast("Q")
        self._bytes = memoryview(self._map)

    @classmethod
    def create(cls, slots: int) -> Board:
        """A board that has no name in any file system, so nothing of it can be left behind."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("nbqueue-board")
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, _size_bytes(slots))
        return cls(fd, slots)

    def slot(self, index: int) -> Slot:
        # Behind the lines of all workers.
        first = self.slots + index * PLACES
        return Slot(*self._line(index), lambda place: Slot(*self._line(first + place)))

    def _line(self, number: int) -> tuple[memoryview[int], memoryview[int]]:
        start = number * _WORDS
        return self._words[start : start + _WORDS], self._bytes[start * 8 : (start + _WORDS) * 8]


def _size_bytes(slots: int) -> int:
    return slots * (1 + PLACES) * _WORDS * 8


class Slot:
    """One line of the board: a worker's, or that of a place, which has none."""

    __slots__ = ("_bytes", "_make_place", "_places", "_words")

    def __init__(
        self, words: memoryview[int], data: memoryview[int], make_place: Callable[[int], Slot] | None = None
    ) -> None:
        self._words = words
        self._bytes = data
        self._make_place = make_place
        self._places: list[Slot] = []

    def place(self, number: int) -> Slot:
        """The line of one of the calls that this worker runs at a time."""
        assert self._make_place is not None
        while len(self._places) <= number:
            self._places.append(self._make_place(len(self._places)))
        return self._places[number]

    # The supervisor's side

    def clear(self) -> None:
        """Make the line ready for a new worker."""
        for number in range(self._words[_PLACES_USED]):
            place = self.place(number)
            place._bytes[:] = bytes(len(place._bytes))
        self._bytes[:] = bytes(len(self._bytes))
        self._words[_STATE] = STARTING

    def runs_several(self) -> bool:
        """Whether calls of async functions run: `beside` has them, and the line itself names none."""
        return self._words[_STATE] in (SEVERAL, SEVERAL_WAITING)

    def beside(self) -> Iterator[tuple[Slot, Line]]:
        """Places in which a call runs, and their lines."""
        for number in range(self._words[_PLACES_USED]):
            place = self.place(number)
            if place.state() != OFF and (line := place.read()) is not None and line.running:
                yield place, line

    def read(self) -> Line | None:
        """The line, or None if it was caught half written (its worker may have died so)."""
        w = self._words
        for _ in range(50):
            before = w[_SEQ]
            words = w.tolist()
            name = bytes(self._bytes[_NAME * 8 : (_NAME + _NAME_WORDS) * 8])
            if not before & 1 and w[_SEQ] == before:
                break
        else:
            return None
        split = words[_SPLIT]
        id = f"{words[_MS]}-{words[_ID_SEQ]}"
        stream = words[_STREAM]
        bundled = stream & _BUNDLED
        return Line(
            state=words[_STATE],
            pid=words[_PID],
            redis_id=words[_REDIS_ID],
            entry=f"{stream - _BUNDLED}*{id}+{words[_N]}" if bundled else f"{stream}/{id}",
            client=f"{words[_CLIENT]:016x}",
            n=f"{words[_N]}.{split - 1}" if split else str(words[_N]),
            item=words[_ITEM],
            attempt=words[_ATTEMPT],
            started_ns=words[_STARTED],
            timeout_ms=words[_TIMEOUT],
            name=name.rstrip(b"\0").decode("utf-8", "ignore"),
            printed=(words[_PRINTED_OUT], words[_PRINTED_ERR]),
        )

    def state(self) -> int:
        return self._words[_STATE]

    def just_began(self, now_ns: int, within_s: float) -> bool:
        """Whether the item that runs is younger than that, and than its time limit. Not exact while it is written."""
        w = self._words
        age_ns = now_ns - w[_STARTED]
        return w[_STATE] == BUSY and age_ns < within_s * 1e9 and not 0 < w[_TIMEOUT] * 1_000_000 <= age_ns

    def changes(self) -> int:
        """How often the line was written, which says whether it was since another look."""
        return self._words[_SEQ]

    def ask_to_stop(self) -> None:
        self._words[_STOP] = 1

    def passed(self, printed: tuple[int, int]) -> None:
        """What was printed up to there while the worker was idle has been taken care of."""
        self._words[_PASSED_OUT], self._words[_PASSED_ERR] = printed

    def ask_to_leave(self) -> None:
        """When the call that it is running is over; another takes its place."""
        self._words[_LEAVE] = 1

    def take_back(self) -> None:
        """Calls that were fetched ahead are given back by us: none of them may begin. Read the line after this."""
        self._words[_TAKEN] = 1

    def aim(self, entry: str, item: int, why: int) -> None:
        """Say whom the SIGINT that follows is for: an item of an entry, or with item -1 whichever runs."""
        w = self._words
        w[_FOR_WHY] = w[_HEARD] = 0
        w[_FOR_STREAM], w[_FOR_MS], w[_FOR_SEQ] = _words_of(entry)
        w[_FOR_N] = int(entry.partition("+")[2] or -1) + 1
        w[_FOR_ITEM] = item + 1
        w[_FOR_WHY] = why

    def has_heard(self) -> bool:
        """Whether the call in this place was told that it is to end. What holds its loop may have kept that from it."""
        return bool(self._words[_HEARD])

    # The worker's side

    def heard(self) -> None:
        """The call in this place is told that it is to end."""
        self._words[_HEARD] = 1

    def hello(self, pid: int) -> None:
        self._words[_PID] = pid

    def connected(self, redis_id: int) -> None:
        self._words[_REDIS_ID] = redis_id

    def stop_asked(self) -> bool:
        return bool(self._words[_STOP])

    def leave_asked(self) -> bool:
        return bool(self._words[_LEAVE])

    def taken_back(self) -> bool:
        """Whether calls that were fetched ahead may have been given back. Ask after having said which one begins."""
        return bool(self._words[_TAKEN])

    def looks_again(self) -> None:
        """The worker forgets what it has fetched ahead, and reads what is still its own."""
        self._words[_TAKEN] = 0

    def idle(self) -> None:
        self._words[_STATE] = IDLE

    def busy(self) -> None:
        """The call that was named runs now."""
        self._words[_STATE] = BUSY

    def waiting(self, on: bool) -> None:
        self._words[_STATE] = WAITING if on else BUSY

    def several(self, used: int, *, waiting: bool = False) -> None:
        """Calls run beside each other, in `used` places at most. With `waiting`, one waits for a call of its own."""
        w = self._words
        w[_SEQ] += 1
        w[_PLACES_USED] = max(w[_PLACES_USED], used)
        w[_STATE] = SEVERAL_WAITING if waiting else SEVERAL
        w[_SEQ] += 1

    def leave_place(self) -> None:
        """The call in this place is over."""
        self._words[_STATE] = OFF

    def call(
        self,
        entry: str,
        client: str,
        n: str,
        attempt: int,
        timeout_ms: int,
        name: str,
        printed: tuple[int, int] = (0, 0),
        item: int = 0,
        started_ns: int = 0,
    ) -> None:
        """A call is about to run, this `item` of it first. It does from `busy` on; `item` names the others."""
        stream, ms, seq = _words_of(entry)
        number, _, split = n.partition(".")
        part = int(split) + 1 if split else 0
        words = (stream, ms, seq, int(client, 16), int(number), part, item, attempt, started_ns, timeout_ms)
        w = self._words
        w[_SEQ] += 1
        _CALL.pack_into(self._bytes, _STREAM * 8, *words, name.encode())
        w[_PRINTED_OUT], w[_PRINTED_ERR] = printed
        w[_SEQ] += 1

    def follows(self, n: str, printed: tuple[int, int], started_ns: int) -> None:
        """The next call of the same bundle is about to run. It does from `busy` on."""
        w = self._words
        w[_SEQ] += 1
        w[_N] = int(n)
        w[_STARTED] = started_ns
        w[_PRINTED_OUT], w[_PRINTED_ERR] = printed
        w[_SEQ] += 1

    def printed(self, printed: tuple[int, int]) -> None:
        """What was printed up to there has been taken care of; what follows belongs to the next item."""
        w = self._words
        w[_SEQ] += 1
        w[_PRINTED_OUT], w[_PRINTED_ERR] = printed
        w[_SEQ] += 1

    def passed_on(self) -> tuple[int, int]:
        """What the supervisor has taken care of while this worker was idle."""
        return self._words[_PASSED_OUT], self._words[_PASSED_ERR]

    def item(self, item: int, started_ns: int) -> None:
        w = self._words
        w[_SEQ] += 1
        w[_ITEM] = item
        w[_STARTED] = started_ns
        w[_STATE] = BUSY
        w[_SEQ] += 1

    @property
    def name(self) -> memoryview[int]:
        """Names an item of the call that has begun, when its number is put here: a tenth of what `item` costs, which
        says more."""
        return self._words[_ITEM : _ITEM + 1]

    def aimed_at_me(self) -> int:
        """Why the signal was sent, if it is for what is running now, else 0."""
        w = self._words
        why = w[_FOR_WHY]
        if not why or (w[_FOR_STREAM], w[_FOR_MS], w[_FOR_SEQ]) != (w[_STREAM], w[_MS], w[_ID_SEQ]):
            return 0
        if w[_FOR_N] not in (0, w[_N] + 1):
            # It is for another call of the bundle.
            return 0
        return why if w[_FOR_ITEM] in (0, w[_ITEM] + 1) else 0


def limit_ms(timeout_s: float | None) -> int:
    """A time limit as a line has it: 0 for none; less than a millisecond is one, and what no life is long enough for is
    that long.

    >>> limit_ms(0.2), limit_ms(None), limit_ms(1e-9), limit_ms(1e30) == 2**53
    (200, 0, 1, True)
    """
    return 0 if timeout_s is None else math.ceil(min(2**53, max(1, timeout_s * 1000)))


def place_of(entry: str) -> tuple[int, int, int]:
    """Stream, time and number of an entry: a worker begins what it has fetched together in this order. The calls of a
    bundle have the same."""
    ms, _, seq = entry[2:].partition("+")[0].partition("-")
    return int(entry[0]), int(ms), int(seq)


def _words_of(entry: str) -> tuple[int, int, int]:
    stream, ms, seq = place_of(entry)
    return stream | _BUNDLED if entry[1] == "*" else stream, ms, seq
