"""What notebook libraries do when a notebook is lived in: ``python -m tests.bench.pains``.

Helpers are edited, workers die, cells are interrupted. Each case is a few cells, the same for every library, run in a
real kernel of its own; a library is what `PEERS` says, under five names. Printed is the README's table: ● it works,
◐ in part, ○ it does not, with what was seen on stderr. Nothing is measured, but let little else run: waits are bounded.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import platform
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from typing import Any

from tests.bench.cpu import marked
from tests.bench.runner import end_all, environment_of

# Library → distributions whose versions head its column, and a cell: `task` makes of a function what sends a call,
# `get` and `get_all` wait for what that gives, `cancel` ends it. Each in the library's own words.
PEERS = {
    "nbqueue": (
        ["nbqueue"],
        """
from nbqueue import TaskQueue, gather
queue = TaskQueue(workers=2)
task = queue.task
def get(sent): return sent.result(timeout=40)
def get_all(sent): return gather(sent)
def cancel(sent): sent.cancel()
""",
    ),
    "concurrent.futures": (
        ["python"],
        """
from concurrent.futures import ProcessPoolExecutor
pool = ProcessPoolExecutor(2)
def task(fn): return lambda *args: pool.submit(fn, *args)
def get(sent): return sent.result(timeout=40)
def get_all(sent): return [each.result() for each in sent]
def cancel(sent): sent.cancel()
""",
    ),
    "joblib (loky)": (
        ["joblib", "loky"],
        """
from loky import get_reusable_executor
def task(fn): return lambda *args: get_reusable_executor(2).submit(fn, *args)
def get(sent): return sent.result(timeout=40)
def get_all(sent): return [each.result() for each in sent]
def cancel(sent): sent.cancel()
""",
    ),
    "ipyparallel": (
        ["ipyparallel"],
        """
import logging
import ipyparallel
client = ipyparallel.Cluster(n=2, log_level=logging.ERROR).start_and_connect_sync(activate=False)
view = client.load_balanced_view()
def task(fn): return lambda *args: view.apply_async(fn, *args)
def get(sent): return sent.get(timeout=40)
def get_all(sent): return [each.get() for each in sent]
def cancel(sent): sent.abort()
""",
    ),
    "dask.distributed": (
        ["distributed"],
        """
from distributed import Client, LocalCluster
client = Client(LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50))
def task(fn): return lambda *args: client.submit(fn, *args, pure=False)
def get(sent): return sent.result(timeout=40)
def get_all(sent): return client.gather(sent)
def cancel(sent): sent.cancel()
""",
    ),
    "ray": (
        ["ray"],
        """
import os, ray
ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", _temp_dir=os.environ["TMPDIR"] + "/ray")
def task(fn): return ray.remote(fn).remote
def get(sent): return ray.get(sent, timeout=40)
def get_all(sent): return ray.get(sent)
def cancel(sent): ray.cancel(sent)
""",
    ),
}

# Older than all workers, and no compiled functions, which ray does not take. Two calls of `pair` meet only if there are
# two free workers.
OLDEST = """
def negate(x): return -x
def pair(i):
    import os, time
    open(f"here-{i}", "w").close()
    until = time.monotonic() + 20
    while not os.path.exists(f"here-{1 - i}"):
        if time.monotonic() > until: return False
        time.sleep(0.02)
    return True
"""
MEET = "print('met', [get(each) for each in [task(pair)(0), task(pair)(1)]])"
YES, PARTLY, NO = "●", "◐", "○"
WORKS = "print('sum', get(task(negate)(-3)))"
COUNT = """
came = 0
for each in sent:
    try: get(each)
    except BaseException as error: print(type(error).__name__)
    else: came += 1
print("came", came)
"""


class Hangs(Exception):
    """A cell did not end."""


class Notebook:
    """One kernel that belongs to one case of one library."""

    def __init__(self, start: str) -> None:
        from jupyter_client.manager import KernelManager

        # Short: sockets lie below it, and their paths may have a hundred characters.
        self.home = Path(tempfile.mkdtemp(prefix="nbp", dir="/tmp"))
        self.mark = secrets.token_hex(8)
        self.folder = self.home / "here"
        self.folder.mkdir()
        # Not TCP: a port that is found free may be taken before the kernel binds it.
        self.manager = KernelManager(kernel_name="python3", transport="ipc", ip=str(self.home / "k"))
        env = environment_of(self.home, self.mark)
        self.manager.start_kernel(env=env, cwd=str(self.folder), stderr=subprocess.DEVNULL)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        self.cells: dict[str, str] = {}  # what was printed in each, by its id, or shown in a place that it made
        self._places: dict[str, str] = {}
        self._heard = ""
        self.run(f"{start}\nimport os, sys, time\nsys.path.insert(0, os.getcwd())\n{OLDEST}", limit_s=90)

    def send(self, code: str) -> str:
        cell = str(self.client.execute(code))
        self.cells[cell] = ""
        return cell

    def hear(self, until: Callable[[dict[str, Any]], bool], limit_s: float) -> None:
        """Take messages up to the one that is waited for. Raises Hangs if it does not come."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=max(0.05, deadline - time.monotonic()))
            except Empty:
                raise Hangs from None
            self._note(message)
            if until(message):
                return

    def _note(self, message: dict[str, Any]) -> None:
        content, cell = message["content"], message["parent_header"].get("msg_id", "")
        place = content.get("transient", {}).get("display_id", "")
        if message["msg_type"] == "display_data":
            self._places[place] = cell
        text = content.get("text") or str(content.get("data", {}).get("text/plain", ""))
        if message["msg_type"] == "error":
            text = f"{content['ename']}: {content['evalue']}"
        self._heard += text
        cell = self._places.get(place, cell)
        self.cells[cell] = self.cells.get(cell, "") + text

    def end(self, cell: str, limit_s: float = 60) -> None:
        def is_over(message: dict[str, Any]) -> bool:
            return (message["parent_header"].get("msg_id"), message["content"].get("execution_state")) == (cell, "idle")

        self.hear(is_over, limit_s)

    def run(self, code: str, limit_s: float = 60) -> str:
        """What came while it ran, below whichever cell: with ipyparallel, all prints land in the first one."""
        self._heard = ""
        self.end(self.send(code), limit_s)
        return self._heard

    def listen(self, seconds: float) -> None:
        try:
            self.hear(lambda _: False, seconds)
        except Hangs:
            pass

    def exists(self, name: str, limit_s: float = 30) -> bool:
        deadline = time.monotonic() + limit_s
        while not (self.folder / name).exists():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        end_all(self.mark, patience_s=0.0)
        shutil.rmtree(self.home, ignore_errors=True)


# Cases: what was seen, in a word, and how good that is


def functions(notebook: Notebook) -> tuple[str, str]:
    """functions of a cell, with the helpers, globals and imports that they use, also newer than the workers"""
    notebook.run(
        "import math as m\nFACTOR = 10\ndef helper(x): return m.sqrt(x) * FACTOR\ndef function(x): return helper(x) + 1"
    )
    first = notebook.run("print('is', get(task(function)(4)))")
    notebook.run("MORE = 20\ndef newer(x): return helper(x) + MORE")
    second = notebook.run("print('is', get(task(newer)(4)))")
    good = ("is 21.0" in first) + ("is 40.0" in second)
    return (NO, PARTLY, YES)[good], f"{first!r:.80} {second!r:.80}"


def edited_helper(notebook: Notebook) -> tuple[str, str]:
    """a helper that is edited is used by the next call"""
    notebook.run("def helper(): return 'old'\ndef function(): return helper()\nsend = task(function)")
    before = notebook.run("print(get(send()))")
    if "old" not in before:
        # It needs its functions before its workers, or not at all.
        before = notebook.run("def function(): return 'old'\nsend = task(function)\nprint(get(send()))")
        after = notebook.run("def function(): return 'new'\nsend = task(function)\nprint(get(send()))")
        return (PARTLY if "new" in after else NO), f"{before!r:.60} {after!r:.60}"
    after = notebook.run("def helper(): return 'new'\nprint(get(send()))")
    return (YES if "new" in after else NO), f"{after!r:.80}"


def edited_module(notebook: Notebook) -> tuple[str, str]:
    """a module beside the notebook that is edited, too"""
    module = notebook.folder / "beside.py"
    module.write_text("def value():\n    return 'old'\n")
    notebook.run(
        "import beside\ndef function():\n    import time\n    time.sleep(0.3)\n    return beside.value()\n"
        "send = task(function)"
    )
    # So many that each worker has imported it.
    calls = "print({get(each) for each in [send() for _ in range(8)]})"
    before = notebook.run(calls, limit_s=120)
    module.write_text("def value():\n    return 'a new one'\n")
    after = notebook.run(calls, limit_s=120)
    return (YES if "{'old'}" in before and "{'a new one'}" in after else NO), f"{before!r:.60} {after!r:.60}"


def killed_worker(notebook: Notebook) -> tuple[str, str]:
    """a killed worker costs its own call, not the others, and is replaced"""
    notebook.run(
        "def function(i):\n    import os, signal, time\n    time.sleep(0.3)\n"
        "    if i == 2: os.kill(os.getpid(), signal.SIGKILL)\n    return i\nsend = task(function)"
    )
    notebook.run("sent = [send(i) for i in range(6)]")
    came = _number(notebook.run(COUNT, limit_s=180))
    whole = "met [True, True]" in notebook.run(MEET, limit_s=90)
    return (NO, PARTLY, YES)[(came == 5) + whole], f"{came} of 5, then whole: {whole}"


def odd_exception(notebook: Notebook) -> tuple[str, str]:
    """an exception that cannot be unpickled costs its own call"""
    notebook.run(
        "class Odd(Exception):\n    def __init__(self, what, where): super().__init__(what + where)\n"
        "def function(i):\n    import time\n    time.sleep(0.2)\n    if i == 1: raise Odd('hole', 'bucket')\n"
        "    return i\nsend = task(function)"
    )
    notebook.run("sent = [send(i) for i in range(4)]")
    came = _number(notebook.run(COUNT, limit_s=120))
    works = "sum 3" in notebook.run(WORKS)
    return (NO, PARTLY, YES)[(came == 3) + works], f"{came} of 3, then {works}"


def interrupt(notebook: Notebook) -> tuple[str, str]:
    """an interrupted cell stops its work, and the pool is there for the next"""
    notebook.run(
        "def function(i):\n    import time\n    open(f'began-{i}', 'w').close()\n"
        "    for _ in range(40): time.sleep(0.1)\n    open(f'ended-{i}', 'w').close()\nsend = task(function)"
    )
    cell = notebook.send("get_all([send(i) for i in range(6)])")
    if not notebook.exists("began-1"):
        return NO, "it never began"
    time.sleep(0.5)
    notebook.manager.interrupt_kernel()
    try:
        notebook.end(cell, 20)
        usable = "sum 3" in notebook.run(WORKS, limit_s=30)
    except Hangs:
        usable = False
    time.sleep(5)
    ended, began = (len(list(notebook.folder.glob(f"{what}-*"))) for what in ("ended", "began"))
    stopped = ended == 0 and began == 2
    return (YES if stopped and usable else PARTLY if stopped or usable else NO), (
        f"{ended} ended, {began} begun, usable: {usable}"
    )


def cancelled(notebook: Notebook) -> tuple[str, str]:
    """a call that runs can be cancelled"""
    notebook.run(
        "def long():\n    import time\n    open('began', 'w').close()\n    for _ in range(600): time.sleep(0.1)\n"
        "sent = task(long)()"
    )
    if not notebook.exists("began"):
        return NO, "it never began"
    notebook.run("cancel(sent)", limit_s=30)
    # Of two workers one was busy.
    said = notebook.run(MEET, limit_s=90)
    return (YES if "met [True, True]" in said else NO), f"{said!r:.80}"


def prints(notebook: Notebook) -> tuple[str, str]:
    """what a call prints appears below its own cell, also when that has ended"""
    notebook.run(
        "def function():\n    import os, time\n    print('hello', flush=True)\n"
        "    while not os.path.exists('go'): time.sleep(0.02)\n    print('goodbye', flush=True)\nsend = task(function)"
    )
    # The workers belong to an earlier cell.
    notebook.run(WORKS)
    own = notebook.send("sent = send()")
    notebook.end(own)
    notebook.listen(1.5)
    later = notebook.send("open('go', 'w').close(); get(sent); time.sleep(0.5)")
    notebook.end(later)
    notebook.listen(1.5)
    good = ("hello" in notebook.cells[own]) + ("goodbye" in notebook.cells[own])
    elsewhere = [text for cell, text in notebook.cells.items() if cell != own and re.search("hello|goodbye", text)]
    return (YES if good == 2 else PARTLY if good else NO), f"{good} of 2, elsewhere {len(elsewhere)}"


def nothing_left(notebook: Notebook) -> tuple[str, str]:
    """a kernel that is killed leaves no process behind"""
    notebook.run("def function():\n    import time\n    time.sleep(1)\nsend = task(function)\nsent = send()")
    notebook.manager.signal_kernel(9)
    time.sleep(8)
    left = len(marked(notebook.mark))
    return (YES if not left else NO), f"{left} left"


CASES = [
    functions, edited_helper, edited_module, killed_worker, odd_exception, interrupt, cancelled, prints, nothing_left,
]  # fmt: skip


def _number(said: str) -> int:
    match = re.search(r"came (\d+)", said)
    return int(match[1]) if match else -1


def seen(peer: str, case: Callable[[Notebook], tuple[str, str]]) -> tuple[str, str]:
    """How good, and what was seen."""
    notebook = Notebook(PEERS[peer][1])
    try:
        return case(notebook)
    except Hangs:
        return NO, "hung"
    finally:
        notebook.close()


def version_of(peer: str) -> str:
    """Of its distributions; empty if they are not installed."""
    try:
        names = PEERS[peer][0]
        return ", ".join(platform.python_version() if n == "python" else importlib.metadata.version(n) for n in names)
    except importlib.metadata.PackageNotFoundError:
        return ""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pains", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peer", nargs="+", choices=list(PEERS), default=list(PEERS), metavar="NAME")
    parser.add_argument("--case", nargs="+", choices=[case.__name__ for case in CASES], metavar="NAME")
    given = parser.parse_args(arguments)
    cases = [case for case in CASES if given.case is None or case.__name__ in given.case]
    table: dict[tuple[str, str], str] = {}
    peers = [peer for peer in given.peer if version_of(peer)]
    for peer in peers:
        for case in cases:
            table[peer, case.__name__], what = seen(peer, case)
            print(f"{peer:20} {case.__name__:16} {table[peer, case.__name__]} {what}", file=sys.stderr, flush=True)
    heads = " | ".join(f"{peer}<br>{version_of(peer)}" for peer in peers)
    print(f"{datetime.date.today()}, {platform.system()}, Python {platform.python_version()}, two workers each\n")
    print(f"| in a notebook | {heads} |\n|---|{':-:|' * len(peers)}")
    for case in cases:
        signs = " | ".join(table[peer, case.__name__] for peer in peers)
        print(f"| {case.__doc__} | {signs} |")


if __name__ == "__main__":
    main()
