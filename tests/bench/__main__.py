"""nbqueue beside its peers: ``python -m tests.bench``.

Every library does the same work in turn, each time in a fresh process, with functions of `__main__` as in a notebook.
Medians, ratios and goals are printed as Markdown; how far it is shows on stderr.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.peers import PEERS
from tests.bench.report import markdown, table_of_works
from tests.bench.runner import Run, order, run_all
from tests.bench.works import WORKS, Work, chosen

LIBRARIES = ("nbqueue", "redis", "loky", "joblib", "mpire", "ipyparallel", "distributed", "ray", "numpy")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measure nbqueue and its peers on the same work, in turn and in fresh processes, and print a "
        "Markdown table of medians, ratios and goals. Install the peers with: pip install -e '.[bench]'",
        epilog="Examples: python -m tests.bench --quick; python -m tests.bench --work calls 'map*' --peer Pool loky; "
        "python -m tests.bench --json all.json --chart .github/pictures; python -m tests.bench --from all.json",
    )
    made.add_argument("--work", nargs="+", default=["*"], metavar="NAME",
                      help="only these works; * stands for anything (see --list)")  # fmt: skip
    made.add_argument("--peer", nargs="+", default=list(PEERS), choices=list(PEERS), metavar="NAME",
                      help=f"only these libraries, nbqueue is one of them: {', '.join(PEERS)}")  # fmt: skip
    made.add_argument("--repeat", type=_positive, default=3, metavar="N", help="processes for each number (default: 3)")
    made.add_argument("--workers", type=_positive, default=_cores(), metavar="N",
                      help="worker processes (default: one for each core that may be used)")  # fmt: skip
    made.add_argument("--limit", type=float, default=None, metavar="S",
                      help="seconds that one process may take beside its start (default: 120, growth 600)")  # fmt: skip
    made.add_argument("--quick", action="store_true", help="small sizes, to see that all works; numbers mean little")
    made.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    made.add_argument("--chart", type=Path, metavar="FOLDER", help="draw speed.png and speed-dark.png there")
    made.add_argument("--from", type=Path, dest="stored", metavar="FILE",
                      help="measure nothing, tell a stored JSON again")  # fmt: skip
    made.add_argument("--list", action="store_true", help="show the works and how each library does them")
    return made


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser().parse_args(arguments)
    if asked.list:
        print(table_of_works())
        return 0
    if asked.stored:
        document = json.loads(asked.stored.read_text("utf-8"))
    else:
        try:
            works = chosen(asked.work)
        except KeyError as error:
            names = ", ".join(work.name for work in WORKS)
            print(f"There is no work named {error}; there are: {names}", file=sys.stderr)
            return 2
        # In the order of the table, nbqueue first.
        peers = [peer for peer in PEERS if peer in asked.peer]
        document = measure(works, peers, asked)
    if asked.json:
        asked.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if asked.chart:
        from tests.bench.chart import draw

        for path in draw(document, asked.chart):
            print(path, file=sys.stderr)
    print(markdown(document), end="")
    return 130 if document["interrupted"] and not asked.stored else 0


def measure(works: Sequence[Work], peers: Sequence[str], asked: argparse.Namespace) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    load = os.getloadavg()[0]
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    total = len(list(order(works, peers, asked.repeat)))
    with Progress(*columns, console=console) as progress:
        line = progress.add_task("", total=total)

        def began(work: Work, peer: str, repetition: int) -> None:
            progress.update(line, description=f"{work.name}, {peer}, {repetition + 1} of {asked.repeat}")

        def ended(run: Run) -> None:
            progress.advance(line)
            # A file or a log has no line that changes: it gets one for each process.
            if not console.is_terminal or (run.failed and not run.repetition):
                told = run.failed or f"{run.took_s:.1f} s"
                progress.console.print(f"{run.work}, {run.peer}: {told}", markup=False, highlight=False)

        runs = run_all(
            works,
            peers,
            repeat=asked.repeat,
            quick=asked.quick,
            workers=asked.workers,
            limit_s=asked.limit,
            began=began,
            ended=ended,
        )
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": {
            "cores": _cores(),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "load": round(load, 1),
        },
        "versions": {**{name: _version(name) for name in LIBRARIES}, "redis-server": _server_version()},
        "workers": asked.workers,
        "quick": asked.quick,
        "interrupted": len(runs) < total,
        "runs": [run.to_dict() for run in runs],
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _server_version() -> str | None:
    from nbqueue.errors import NbqueueError
    from nbqueue.stream.server import find_executable

    try:
        done = subprocess.run([find_executable(), "--version"], capture_output=True, text=True, timeout=10, check=True)
    except (NbqueueError, OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"v=(\S+)", done.stdout)
    return found[1] if found else None


if __name__ == "__main__":
    sys.exit(main())
