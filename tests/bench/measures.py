"""How each work is measured, in the process that stands for the kernel.

Warm-up, the same for all: but for the cold start, a pool first answers some calls; then the work itself is done once
unmeasured, at a tenth of its count, or, where large data is moved, whole with other data. Garbage is collected before
each measurement, and during it as Python does it by itself. Every answer is compared with what it must be.
"""

from __future__ import annotations

import gc
import json
import math
import os
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.bench.births import importing, many_workers, replaced
from tests.bench.peers import peer_class
from tests.bench.peers.base import CannotDo, Peer

__all__ = ["Bench", "check", "ideal_s", "importing", "main", "many_workers", "replaced"]

clock = time.perf_counter
Metrics = dict[str, float]


class Bench:
    """A peer, the notebook's functions, and what the measured section cost each process."""

    def __init__(self, peer: Peer, notebook: ModuleType, workers: int) -> None:
        self.peer, self.fn, self.workers = peer, notebook, workers
        self.cpu_s: dict[str, float] = {}

    def warm(self) -> None:
        """A pool that answers: the first calls start processes, import and connect."""
        self.peer.start(self.workers)
        for _ in range(3):
            numbers = list(range(4 * self.workers))
            check(self.peer.calls(self.fn.identity, numbers), numbers)
            self.peer.call(self.fn.identity, 0)

    def timed(self, action: Callable[[], Any]) -> tuple[float, Any]:
        meter = _meter()
        gc.collect()
        began = clock()
        value = action()
        took = clock() - began
        for role, seconds in meter.since().items():
            self.cpu_s[role] = self.cpu_s.get(role, 0.0) + seconds
        return took, value


def _meter() -> Any:
    # Not before it is needed: it imports psutil, as some libraries do, and a cold start is to count that.
    from tests.bench.cpu import CpuMeter

    return CpuMeter()


def check(found: Any, wanted: Any) -> None:
    if found != wanted:
        raise AssertionError(f"wrong answer: {str(found)[:80]} instead of {str(wanted)[:80]}")


# The works


def cold(bench: Bench) -> Metrics:
    """From before the library is imported to the first result; Python itself runs already."""
    began = clock()
    bench.peer.start(bench.workers)
    answer = bench.peer.call(bench.fn.square, 3)
    took = clock() - began
    check(answer, 9)
    return {"seconds": took}


def call(bench: Bench, count: int, at_most_s: float) -> Metrics:
    """One at a time; at most `at_most_s` for slow peers, a hundred calls at least."""
    bench.warm()
    peer, fn = bench.peer, bench.fn.identity
    for number in range(count // 10):
        peer.call(fn, number)

    def one_by_one() -> list[float]:
        samples: list[float] = []
        end = clock() + at_most_s
        for number in range(count):
            began = clock()
            answer = peer.call(fn, number)
            samples.append(clock() - began)
            if answer != number:
                check(answer, number)
            if number >= 99 and clock() > end:
                break
        return samples

    samples = sorted(bench.timed(one_by_one)[1])
    return {"median": statistics.median(samples), "p99": samples[math.ceil(0.99 * len(samples)) - 1]}


def calls(bench: Bench, count: int) -> Metrics:
    bench.warm()
    numbers = list(range(count))
    bench.peer.calls(bench.fn.identity, numbers[: count // 10])
    took, found = bench.timed(lambda: bench.peer.calls(bench.fn.identity, numbers))
    check(found, numbers)
    return {"per_task": took / count}


def tiny_map(bench: Bench, count: int, lazy: bool) -> Metrics:
    bench.warm()

    def items(count: int) -> Iterable[int]:
        return (number for number in range(count)) if lazy else list(range(count))

    bench.peer.map(bench.fn.square, items(count // 10))
    took, found = bench.timed(lambda: bench.peer.map(bench.fn.square, items(count)))
    check(found, [number * number for number in range(count)])
    return {"per_item": took / count}


def uneven(bench: Bench, count: int, least_s: float, most_s: float, seed: int) -> Metrics:
    """Lengths are CPU time: fixed work whatever else runs, so what a peer itself takes from the cores costs it."""
    bench.warm()
    draw = random.Random(seed)
    lengths = [least_s * (most_s / least_s) ** draw.random() for _ in range(count)]
    bench.peer.uneven(bench.fn.spin, lengths[: count // 10])
    took, _ = bench.timed(lambda: bench.peer.uneven(bench.fn.spin, lengths))
    return {"efficiency": 100 * ideal_s(lengths, bench.workers) / took}


def ideal_s(lengths: Sequence[float], workers: int) -> float:
    """No schedule is shorter: the work shared out evenly, or the longest task."""
    return max(sum(lengths) / workers, max(lengths))


def _rounds(
    bench: Bench, count: int, rounds: int, action: Callable[[Any], Any], wanted: Callable[[int], Any]
) -> Metrics:
    """Each round with an array of its own, made outside the measurement and full of another number, so that nobody
    can know it already; the first is not counted."""
    bench.warm()
    times = []
    for number in range(rounds + 1):
        array = bench.fn.make_array(count, number)
        took, found = bench.timed(lambda array=array: action(array))
        check(found, wanted(number))
        del array
        if number:
            times.append(took)
        else:
            bench.cpu_s.clear()
    return {"seconds": statistics.median(times)}


def _pages(count: int) -> int:
    return len(range(0, count, 512))


def shared(bench: Bench, count: int, items: int, rounds: int) -> Metrics:
    return _rounds(
        bench,
        count,
        rounds,
        lambda array: bench.peer.shared(bench.fn.touch_shared, array, list(range(items))),
        lambda number: [item + number * _pages(count) for item in range(items)],
    )


def argument(bench: Bench, count: int, rounds: int) -> Metrics:
    return _rounds(
        bench,
        count,
        rounds,
        lambda array: bench.peer.argument(bench.fn.touch, array),
        lambda number: number * _pages(count),
    )


def result(bench: Bench, count: int, rounds: int) -> Metrics:
    """Counts making the array in the worker and reading a byte of each page here."""
    return _rounds(
        bench,
        count,
        rounds,
        lambda _: bench.fn.touch(bench.peer.result(bench.fn.make_array, count)),
        lambda _: _pages(count),
    )


def results(bench: Bench, count: int, size: int) -> Metrics:
    bench.warm()
    bench.peer.map(bench.fn.make_bytes, [size] * (count // 10))
    took, found = bench.timed(lambda: bench.peer.map(bench.fn.make_bytes, [size] * count))
    check((len(found), {len(value) for value in found}), (count, {size}))
    return {"seconds": took}


# nbqueue alone


def _server(bench: Bench) -> Any:
    """A connection of our own to its private server."""
    import redis

    address = bench.peer.queue._here().address()
    return redis.Redis(unix_socket_path=address.path)


def _held(bench: Bench) -> Path:
    """Keeps every worker busy until the file is made, so that what is sent stays queued."""
    gate = Path(os.environ["TMPDIR"], f"gate-{random.getrandbits(48)}")
    held = bench.peer.task(bench.fn.hold)
    bench.holding = [held(str(gate)) for _ in range(bench.workers)]
    while len(bench.peer.queue.status().running) < bench.workers:
        time.sleep(0.01)
    return gate


def _rss() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _peak(*, forget: bool = False) -> int:
    """The most resident memory so far, or since it was last forgotten (where the system can)."""
    try:
        if forget:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _growth(bench: Bench, count: int, send: Callable[[], Any], settled: Callable[[], bool]) -> Metrics:
    server = _server(bench)
    gate = _held(bench)
    gc.collect()
    _peak(forget=True)
    rss, used = _rss(), server.info("memory")["used_memory"]
    began = clock()
    pending = send()
    sending = clock() - began
    while not settled():
        time.sleep(0.01)
    kernel, redis = _rss() - rss, server.info("memory")["used_memory"] - used
    began = clock()
    gate.touch()
    found = pending()
    took = sending + clock() - began
    check(found, list(range(count)))
    peak = _peak() - rss
    return {
        "per_task": took / count,
        "kernel": kernel / count,
        "kernel_peak": max(peak, 0) / count,
        "redis": redis / count,
    }


def growth_calls(bench: Bench, count: int) -> Metrics:
    """All are on the server before the first of them runs."""
    bench.warm()
    task, queue = bench.peer.task(bench.fn.identity), bench.peer.queue
    bench.peer.calls(bench.fn.identity, list(range(100)))

    def send() -> Callable[[], list[Any]]:
        futures = [task(number) for number in range(count)]
        return lambda: [future.result() for future in futures]

    return _growth(bench, count, send, lambda: queue.status().queued >= count)


def growth_map(bench: Bench, count: int) -> Metrics:
    """The map is made, as much as may be in flight is on the server, and the first item has yet to run."""
    bench.warm()
    task, queue = bench.peer.task(bench.fn.identity), bench.peer.queue
    bench.peer.map(bench.fn.identity, range(100))

    def send() -> Callable[[], list[Any]]:
        batch = task.map(range(count))
        return batch.results

    seen: list[int] = []

    def settled() -> bool:
        """Nothing more was sent for a tenth of a second."""
        time.sleep(0.01)
        seen.append(queue.status().queued)
        return len(seen) > 10 and seen[-1] > 0 and len(set(seen[-10:])) == 1

    return _growth(bench, count, send, settled)


def redis_cpu(bench: Bench, calls: int, items: int) -> Metrics:
    bench.warm()
    server = _server(bench)

    def used() -> float:
        info = server.info("cpu")
        return float(info["used_cpu_user"] + info["used_cpu_sys"])

    def cost(action: Callable[[], Any]) -> float:
        before = used()
        action()
        return used() - before

    numbers = list(range(max(calls, items)))
    bench.peer.calls(bench.fn.identity, numbers[: calls // 10])
    bench.peer.map(bench.fn.square, numbers[: items // 10])
    return {
        "per_call": cost(lambda: bench.peer.calls(bench.fn.identity, numbers[:calls])) / calls,
        "per_item": cost(lambda: bench.peer.map(bench.fn.square, numbers[:items])) / items,
    }


def idle(bench: Bench, seconds: float) -> Metrics:
    bench.warm()
    time.sleep(1.0)  # what the warm-up left to be done, a beat at least, is over
    meter = _meter()
    began = clock()
    time.sleep(seconds)
    took = clock() - began
    spent = meter.since()
    shares = {role: 100 * used / took for role, used in spent.items()}
    roles = ("kernel", "supervisor", "workers", "server")
    return {"all": sum(shares.values()), **{role: shares.get(role, 0.0) for role in roles}}


# The floor


def floor_call(_bench: Bench, **sizes: int) -> Metrics:
    # Not before it is needed: it imports what a cold start is to count.
    from tests.bench import floor

    return floor.one_call(**sizes)


def floor_calls(bench: Bench, **sizes: int) -> Metrics:
    from tests.bench import floor

    return floor.many_calls(workers=bench.workers, **sizes)


def floor_map(bench: Bench, **sizes: int) -> Metrics:
    from tests.bench import floor

    return floor.map_items(workers=bench.workers, **sizes)


def main(arguments: list[str], notebook: ModuleType) -> None:
    """Measure one work and write what came out, or why nothing did."""
    name, measure, workers, sizes, out = arguments
    told: dict[str, Any]
    bench = None
    try:
        bench = Bench(peer_class(name)(), notebook, int(workers))
        metrics = globals()[measure](bench, **json.loads(sizes))
        told = {"metrics": metrics, "cpu_s": {role: round(used, 6) for role, used in bench.cpu_s.items()}}
    except CannotDo as error:
        told = {"failed": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever a peer raises is its result
        told = {"failed": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:160]}"}
    # Before the pool is stopped: a peer that hangs at its end has still done the work.
    Path(out).write_text(json.dumps(told), "utf-8")
    if bench is not None:
        bench.peer.stop()
