"""What tasks print and draw, as a person sees it: in its own cell, also late, saved and opened elsewhere."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.apart

CALL = """
import os, sys, time
from nbqueue import TaskQueue
queue = TaskQueue(workers=2)

@queue.task
def draw(path):
    import matplotlib.pyplot as plt
    print("begun <b>")
    print("trouble", file=sys.stderr)
    while not os.path.exists(path):
        time.sleep(0.01)
    plt.plot([1, 3, 2])
    for i in range(300):
        print("late", i)

future = draw("go")
"""
SILENT = "queue.submit(abs, -3).result()"
GO = "open('go', 'w').close(); future.result(); print('mine')"


def test_late_output_and_a_figure_land_in_their_own_cell_and_stay_when_saved(lab):
    lab.open("output.ipynb", CALL, SILENT, GO)
    lab.run_all()
    lab.cell(2).locator(".jp-OutputArea-output", has_text="mine").wait_for(timeout=30_000)
    output = lab.cell(0).locator(".nbqueue-output")
    output.locator("img").wait_for(timeout=10_000)
    assert output.count() == 1
    text = output.inner_text()
    assert "draw │ late 299" in text
    assert "earlier lines" in text
    assert lab.cell(2).locator(".nbqueue-output").count() == 0
    assert "late" not in lab.cell(2).inner_text()

    # The last line is in sight, the others above it.
    assert output.locator("pre").evaluate(
        """pre => { const a = pre.getBoundingClientRect(), b = pre.parentNode.getBoundingClientRect();
                    return a.height > b.height && Math.abs(a.bottom - b.bottom) < 4 }"""
    )

    # A cell whose tasks print nothing looks as one that calls none.
    heights = lab.cell(1).evaluate(
        "cell => [...cell.querySelectorAll('.jp-OutputArea-child')].map(e => e.getBoundingClientRect().height)"
    )
    assert len(heights) == 2
    assert heights[0] == 0

    outputs = lab.save("output.ipynb")["cells"][0]["outputs"]
    lab.write("downloaded.ipynb", "# from elsewhere", outputs=outputs)
    lab.open("downloaded.ipynb")
    assert "draw │ late 299" in lab.cell().locator(".nbqueue-output").inner_text()
    assert lab.cell().locator(".nbqueue-output img").evaluate("image => image.naturalWidth") > 100


MARKDOWN = """
import os, time
from nbqueue import TaskQueue
queue = TaskQueue(workers=2)

@queue.task
def tell(path):
    from IPython.display import JSON, Latex, Markdown, display
    display(Markdown("**bold** at first"))
    handle = display(Markdown("*one*"), display_id=True)
    while not os.path.exists(path):
        time.sleep(0.01)
    handle.update(Markdown("## two"))
    display(Markdown("**late** and $x^2$"), Latex("$$\\\\int y$$"), JSON({"answer": [42]}))

future = tell("go")
"""


def test_markdown_that_a_task_displays_is_rendered_in_its_own_cell_also_late_and_saved(lab):
    lab.open("markdown.ipynb", MARKDOWN, SILENT, GO)
    lab.run(0)
    lab.cell(0).locator("strong", has_text="bold").wait_for(timeout=30_000)
    lab.run(1)
    lab.run(2)
    lab.cell(2).locator(".jp-OutputArea-output", has_text="mine").wait_for(timeout=30_000)

    def look() -> None:
        cell = lab.cell(0)
        cell.locator("strong", has_text="late").wait_for(timeout=10_000)
        cell.locator("h2", has_text="two").wait_for(timeout=10_000)
        assert cell.locator("em").count() == 0
        assert cell.locator("strong").all_inner_texts() == ["bold", "late"]
        assert "Markdown object" not in cell.inner_text()

    look()
    lab.cell(0).locator("mjx-container").nth(1).wait_for(timeout=20_000)
    assert lab.cell(2).locator(".jp-RenderedMarkdown").count() == 0

    outputs = lab.save("markdown.ipynb")["cells"][0]["outputs"]
    assert any("application/json" in output["data"] for output in outputs)
    lab.write("elsewhere.ipynb", "# from elsewhere", outputs=outputs)
    lab.open("elsewhere.ipynb")
    look()
