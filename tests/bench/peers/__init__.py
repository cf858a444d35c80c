"""Each peer and nbqueue behind one set of verbs, each by its own best documented way.

Nobody but the measured process imports these rooms, and a library is imported in `start`, so that a cold start
counts it. The first line of a verb's docstring says which way a peer takes: it is what ``--list`` prints.
"""

from __future__ import annotations

import importlib
from typing import Any

# Name → room, class, the module that must be there.
PEERS = {
    "nbqueue": ("nbqueue", "Nbqueue", "nbqueue"),
    "Pool": ("pools", "Pool", "multiprocessing"),
    "ProcessPoolExecutor": ("executors", "ProcessPool", "concurrent.futures"),
    "loky": ("executors", "Loky", "loky"),
    "joblib": ("joblib", "Joblib", "joblib"),
    "mpire": ("pools", "Mpire", "mpire"),
    "ipyparallel": ("ipyparallel", "Ipyparallel", "ipyparallel"),
    "dask": ("dask", "Dask", "distributed"),
    "ray": ("ray", "Ray", "ray"),
}


def peer_class(name: str) -> Any:
    room, kind, _ = PEERS[name]
    return getattr(importlib.import_module(f"tests.bench.peers.{room}"), kind)
