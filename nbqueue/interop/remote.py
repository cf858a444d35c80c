"""What joblib's batches run as in a worker. Imports nothing of ours, so a worker loads nothing for it but joblib."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["run_batch"]


def run_batch(batch: Callable[[], list[Any]], threads: int | None) -> list[Any]:
    """The calls of one of joblib's batches, one after the other; numeric libraries use so many `threads`."""
    if threads is None:
        return batch()
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=threads):
        return batch()
