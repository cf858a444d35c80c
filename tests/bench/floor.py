"""What the bench's works cost at the least, in this very environment: where the time goes, step by step.

A call: see `exchange`. An item of a map: what any pool of processes must do for it. Medians, each in a fresh process.
"""

from __future__ import annotations

import gc
import os
import pickle
import socket
import statistics
import subprocess
import sys
import time

from tests.bench.exchange import STEPS, Exchange, Plain, packed, served
from tests.bench.peers.base import chunk_of

__all__ = ["many_calls", "map_items", "one_call"]

clock = time.perf_counter


def square(value: int) -> int:
    return value * value


def one_call(count: int) -> dict[str, float]:
    """One call and back, step by step: medians of `count` of each."""
    found = {"bytes": statistics.median(_bytes_and_back(count))}
    numbers = list(range(count))
    with served() as path:
        found["ping"] = statistics.median(_ping(path, count))
        for step in STEPS:
            with Exchange(path, step) as exchange:
                exchange.one_by_one(numbers[: max(1, count // 10)])
                gc.collect()
                found[step] = statistics.median(exchange.one_by_one(numbers))
    return found


def many_calls(count: int, workers: int) -> dict[str, float]:
    """Separate calls that are all sent before any is waited for: seconds for each."""
    found = {}
    numbers = list(range(count))
    with served() as path:
        for step in STEPS:
            with Exchange(path, step, workers) as exchange:
                exchange.together(numbers[: max(1, count // 10)])
                gc.collect()
                found[step] = exchange.together(numbers) / count
    return found


def map_items(count: int, workers: int) -> dict[str, float]:
    """What a map costs wherever it runs: items and results are pickled and unpickled in chunks such as Pool takes, and
    there is a loop over the function. Seconds for each item: of the client, of all workers together, and of both when
    the cores share them evenly."""
    numbers = list(range(count))
    size = chunk_of(numbers, workers)
    gc.collect()
    began = clock()
    sent = [pickle.dumps(numbers[at : at + size]) for at in range(0, count, size)]
    client = clock() - began
    began = clock()
    results = [pickle.dumps([square(number) for number in pickle.loads(data)]) for data in sent]
    worker = clock() - began
    began = clock()
    found = [value for data in results for value in pickle.loads(data)]
    client += clock() - began
    if found != [square(number) for number in numbers]:
        raise AssertionError("wrong answers")
    cores = min(workers, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    whole = max(client, (client + worker) / cores)
    return {"client": client / count, "worker": worker / count, "whole": whole / count}


def _bytes_and_back(count: int) -> list[float]:
    """To a process that has nothing to do but to send it back."""
    code = "import socket, sys\ns = socket.socket(fileno=int(sys.argv[1]))\nwhile d := s.recv(100): s.sendall(d)"
    ours, theirs = socket.socketpair()
    other = subprocess.Popen([sys.executable, "-c", code, str(theirs.fileno())], pass_fds=[theirs.fileno()])
    theirs.close()
    samples = []
    try:
        for _ in range(count):
            began = clock()
            ours.sendall(b"!")
            if ours.recv(100) != b"!":
                raise ConnectionError("the other process has ended")
            samples.append(clock() - began)
    finally:
        # It ends with that.
        ours.close()
        other.wait()
    return samples


def _ping(path: str, count: int) -> list[float]:
    wire, ping, samples = Plain(path), packed(("PING",)), []
    for _ in range(count):
        began = clock()
        wire.write(ping)
        wire.receive()
        samples.append(clock() - began)
    wire.close()
    return samples
