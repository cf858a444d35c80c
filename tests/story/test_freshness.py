"""What runs is what the notebook says now: edit and re-run a cell, and the next call uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Cell = Callable[..., dict[str, Any]]


@pytest.fixture
def task(queue: Any, cell: Cell) -> Any:
    """A task that reaches a helper, a class and a global, each in a cell of its own."""
    cell("factor = 10")
    cell("def helper(x): return x + 1")
    cell("""
        class Box:
            def __init__(self, x): self.x = x
            def open(self): return self.x * factor
    """)
    task = cell(
        """
        @queue.task
        def work(x): return Box(helper(x)).open()
        """,
        queue=queue,
    )["work"]
    assert task(1).result(timeout=20) == 20
    return task


def test_a_redefined_function(task: Any, cell: Cell) -> None:
    redefined = cell("""
        @queue.task
        def work(x): return -x
    """)["work"]
    assert redefined(1).result(timeout=20) == -1


def test_a_redefined_helper(task: Any, cell: Cell) -> None:
    cell("def helper(x): return x + 2")
    assert task(1).result(timeout=20) == 30


def test_a_changed_global(task: Any, cell: Cell) -> None:
    cell("factor = 100")
    assert task(1).result(timeout=20) == 200


def test_a_redefined_class(task: Any, cell: Cell) -> None:
    cell("""
        class Box:
            def __init__(self, x): self.x = x
            def open(self): return 'new', self.x
    """)
    assert task(1).result(timeout=20) == ("new", 2)


def test_a_method_that_was_replaced_on_the_class(task: Any, cell: Cell) -> None:
    cell("Box.open = lambda self: 'patched'")
    assert task(1).result(timeout=20) == "patched"


def test_a_container_that_was_changed_in_place(queue: Any, cell: Cell) -> None:
    task = cell(
        """
        table = {"a": 1}
        @queue.task
        def look(key): return table.get(key)
        """,
        queue=queue,
    )["look"]
    assert task("b").result(timeout=20) is None
    cell("table['b'] = 2")
    assert task("b").result(timeout=20) == 2


def test_a_changed_closure_variable(queue: Any) -> None:
    value = 1

    @queue.task
    def look() -> int:
        return value

    assert look().result(timeout=20) == 1
    value = 2
    assert look().result(timeout=20) == 2


def test_a_changed_default_and_a_changed_attribute(queue: Any, cell: Cell) -> None:
    namespace = cell("def work(x=1): return x, work.note\nwork.note = 'a'")
    assert queue.submit(namespace["work"]).result(timeout=20) == (1, "a")
    namespace["work"].__defaults__ = (2,)
    cell("work.note = 'b'")
    assert queue.submit(namespace["work"]).result(timeout=20) == (2, "b")


def test_calls_that_were_sent_before_keep_what_they_were_sent_with(queue: Any, cell: Cell) -> None:
    queue.run(1)
    queue.shutdown()
    task = cell("factor = 1\n@queue.task\ndef work(x): return x * factor", queue=queue)["work"]
    before = [task(i) for i in range(5)]
    cell("factor = 100")
    after = [task(i) for i in range(5)]
    queue.run(2)
    assert [f.result(timeout=20) for f in before] == [0, 1, 2, 3, 4]
    assert [f.result(timeout=20) for f in after] == [0, 100, 200, 300, 400]


def test_what_a_task_changes_in_its_globals_is_not_what_the_notebook_says(queue: Any, cell: Cell) -> None:
    task = cell(
        """
        count = 0
        @queue.task
        def bump():
            global count
            count += 1
            return count
        """,
        queue=queue,
    )["bump"]
    task().result(timeout=20)
    assert cell("")["count"] == 0


def test_instances_of_a_cells_class_come_back_as_that_class(queue: Any, cell: Cell) -> None:
    namespace = cell(
        """
        class Point:
            def __init__(self, x): self.x = x
            def describe(self): return word + str(self.x)
        word = 'old '
        @queue.task
        def make(x): return Point(x)
        """,
        queue=queue,
    )
    point = namespace["make"](3).result(timeout=20)
    assert type(point) is namespace["Point"]
    cell("word = 'new '")
    assert point.describe() == "new 3"


KERNEL = """
import tempfile
from jupyter_client.manager import KernelManager

# Not TCP: a port that is found free may be taken before the kernel binds it.
sockets = tempfile.TemporaryDirectory(prefix="nbqk")
manager = KernelManager(kernel_name="python3", transport="ipc", ip=sockets.name + "/k")
manager.start_kernel()
client = manager.client()
client.start_channels()
client.wait_for_ready(timeout=60)

def run(code):
    shown = []
    def hook(message):
        content = message["content"]
        shown.append(content.get("text") or content.get("data", {}).get("text/plain", ""))
        shown.extend(content.get("traceback", ()))
    client.execute_interactive(code, timeout=60, output_hook=hook)
    return "".join(shown)

try:
    run("from nbqueue import TaskQueue\\nqueue = TaskQueue(workers=1, progress=False)")
    run("def helper(x): return x + 1")
    run("@queue.task\\ndef work(x): return helper(x)")
    print("before", run("work.map(range(3)).results()"), flush=True)
    run("def helper(x): return 'fresh'")
    print("after", run("work(1).result()"), flush=True)
    print("error", "ZeroDivisionError" in run("queue.submit(lambda: 1 / 0).result()"), flush=True)
finally:
    client.stop_channels()
    manager.shutdown_kernel()
"""


def test_a_notebook_kernel_uses_what_the_last_cell_said(start_script: Callable[..., Any]) -> None:
    """The same through a real ipykernel."""
    pytest.importorskip("jupyter_client")
    script = start_script(KERNEL)
    assert script.line("before") == "[1, 2, 3]"
    assert script.line("after") == "'fresh'"
    assert script.line("error") == "True"
    script.end()
