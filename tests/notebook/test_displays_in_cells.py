"""Figures, displays, warnings and log records of tasks in a real kernel: below the cell that made the call."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.apart

START = """
import logging, os, sys, time, warnings
from nbqueue import TaskQueue, gather
queue = TaskQueue(workers=2)
"""


class Cells:
    """A kernel, and what its places show: `html` and `text` of the last one."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.html = self.text = ""
        self.made = 0
        self.run(START)

    def run(self, code: str) -> None:
        messages = self.kernel.run(code)
        errors = [message["content"] for message in messages if message["msg_type"] == "error"]
        assert not errors, "\n".join(errors[0]["traceback"])
        for message in messages:
            self._see(message)

    def until(self, predicate: Callable[[], object]) -> None:
        while not predicate():
            self._see(self.kernel.until(lambda message: True))

    def _see(self, message: dict[str, Any]) -> None:
        data = message["content"].get("data", {})
        if data.get("text/html", "").startswith("<!--nbqueue-output-->"):
            self.html, self.text = data["text/html"], data["text/plain"]
            self.made += message["msg_type"] == "display_data"

    def images(self) -> list[bytes]:
        return [base64.b64decode(image) for image in re.findall(r'src="data:image/png;base64,([^"]*)"', self.html)]


@pytest.fixture
def cells(start_kernel: Callable[..., Any]) -> Cells:
    return Cells(start_kernel())


def test_a_figure_made_in_a_task_shows_below_its_cell_once(cells: Cells) -> None:
    cells.run(
        """
        @queue.task
        def draw(kind):
            import matplotlib.pyplot as plt
            plt.plot([1, 3, 2])
            if kind == "show":
                plt.show()
            if kind == "display":
                display(plt.gcf())
            return len(plt.get_fignums())
        batch = draw.map(["show", "display", "leave"])
        assert batch.results() == [0, 1, 1]
        """
    )
    assert len(cells.images()) == 3
    assert all(image.startswith(b"\x89PNG") for image in cells.images())
    cells.run("assert [len(f.displays) for f in batch.futures] == [1, 1, 1]")
    cells.run("assert queue.submit(lambda: len(__import__('matplotlib.pyplot').pyplot.get_fignums())).result() == 0")


def test_a_figure_arrives_while_its_task_runs(cells: Cells) -> None:
    cells.run(
        """
        @queue.task
        def draw(path):
            import matplotlib.pyplot as plt
            plt.plot([1, 3, 2])
            plt.show()
            while not os.path.exists(path):
                time.sleep(0.01)
        future = draw("go")
        """
    )
    cells.until(cells.images)
    cells.run("open('go', 'w').close(); future.result(); assert len(future.displays) == 1")
    assert cells.made == 1


def test_display_shows_what_objects_offer_and_updates_by_name(cells: Cells) -> None:
    cells.run(
        """
        class Table:
            def _repr_html_(self):
                return "<table><tr><td>42</td></tr></table>"

        @queue.task
        def show():
            display(Table())
            handle = display("first", display_id=True)
            handle.update("second")

        @queue.task
        def show_as_ipython():
            from IPython.display import HTML, display, Markdown
            display(HTML("<i>italic</i>"), Markdown("*md*"))
        future = show()
        gather([future, show_as_ipython()])
        """
    )
    assert "<td>42</td>" in cells.html
    assert "second" in cells.html
    assert "first" not in cells.html
    assert "<i>italic</i>" in cells.html
    cells.run("assert future.displays[0]['text/html'].startswith('<table>'), future.displays")


def test_display_imported_in_the_notebook_is_the_worker_s_in_the_worker(cells: Cells) -> None:
    cells.run(
        """
        from IPython.display import display as show, HTML
        queue.submit(lambda: show(HTML("<u>under</u>"))).result()
        """
    )
    assert "<u>under</u>" in cells.html


def test_markdown_in_a_task_is_a_display_of_its_cell_and_its_source_where_that_would_be_dropped(
    start_version: Callable[..., Any],
) -> None:
    cells = Cells(start_version())
    seen = []

    def see(message: dict[str, Any]) -> None:
        data = message["content"].get("data", {})
        if "text/markdown" in data:
            seen.append((message["msg_type"], data["text/markdown"], message["parent_header"]["msg_id"]))

    messages = cells.kernel.run(
        """
        @queue.task
        def tell(path=None):
            from IPython.display import Markdown
            handle = display(Markdown("**one**"), display_id=True)
            while path and not os.path.exists(path):
                time.sleep(0.01)
            handle.update(Markdown("**two**"))
            if path:
                display(Markdown("**late**"))
        tell().result()
        """
    )
    for message in messages:
        see(message)
    _, text, parent = seen[-1]
    assert text == "**two**"
    assert parent == messages[0]["parent_header"]["msg_id"]
    assert seen[0][0] == "display_data"
    # Whoever executes a notebook without a person takes displays while their cell runs, and updates always.
    cells.run("future = tell('go')")
    cells.run("open('go', 'w').close(); future.result()")
    cells.until(lambda: "**late**" in cells.html)
    cells.run("assert future.displays[-1]['text/markdown'] == '**late**'")


def test_clear_output_in_a_task_takes_its_displays_away_and_leaves_no_empty_line(cells: Cells) -> None:
    cells.run(
        """
        @queue.task
        def animate():
            from IPython.display import HTML, clear_output, display
            clear_output()
            for i in range(5):
                clear_output(wait=True)
                display(HTML(f"<i>frame {i}</i>"))
            print("said")
        future = animate()
        future.result()
        """
    )
    _, *lines = cells.text.splitlines()
    assert lines == ["animate │ said", "animate │ <IPython.core.display.HTML object>"]
    assert "frame 4" in cells.html
    assert "frame 3" not in cells.html
    cells.run("assert future.stdout == 'said\\n'; assert len(future.displays) == 1, future.displays")


def test_a_wide_table_of_pandas_has_the_columns_that_the_notebook_shows(cells: Cells) -> None:
    pytest.importorskip("pandas")
    cells.run(
        """
        @queue.task
        def show():
            import pandas
            display(pandas.DataFrame([range(30)]))
        show().result()
        import pandas
        assert pandas.get_option("display.max_columns") == 20
        """
    )
    assert cells.html.count("<td>") == 21, "twenty, and the one that says that there are more"


def test_what_is_far_too_large_is_left_out_and_said(cells: Cells) -> None:
    cells.run(
        """
        class Huge:
            def _repr_html_(self):
                return "x" * 2_000_000
            def __repr__(self):
                return "<Huge>"
        queue.submit(lambda: display(Huge())).result()
        """
    )
    assert "<Huge> (text/html of 2,000,000 bytes left out)" in cells.text


def test_an_equal_warning_and_an_equal_log_record_of_many_tasks_are_one_with_a_count(cells: Cells) -> None:
    cells.run(
        """
        @queue.task
        def troubled(i):
            warnings.warn("mind the gap")
            logging.getLogger("app").warning("slow\\nvery")
            logging.getLogger("app").info("never seen")
        batch = troubled.map(range(123))
        batch.results()
        assert all("mind the gap" in f.stderr and "WARNING app: slow" in f.stderr for f in batch.futures)
        """
    )
    lines = cells.text.splitlines()
    assert sum("UserWarning: mind the gap  (×123)" in line for line in lines) == 1
    assert sum("WARNING app: slow" in line and "(×123)" in line for line in lines) == 1
    assert len(lines) < 8


def test_figures_of_a_script_are_nothing_and_displays_are_text(start_script: Callable[..., Any]) -> None:
    script = start_script(
        """
from nbqueue import TaskQueue

def draw():
    import matplotlib.pyplot as plt
    plt.plot([1])
    plt.show()
    display({"a": 1})
    return plt.get_fignums()

with TaskQueue(workers=1) as queue:
    future = queue.submit(draw)
    print(future.result(), future.displays, repr(future.stdout))
"""
    )
    assert "[] [] \"{'a': 1}\\n\"" in script.end().splitlines()
