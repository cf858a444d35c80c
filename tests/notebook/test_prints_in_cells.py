"""What tasks print in a real kernel: below the cell that called them, whole, tagged, and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.apart

START = """
import ctypes, os, sys, time, warnings
from nbqueue import TaskQueue
queue = TaskQueue(workers=2)
"""
Message = dict[str, Any]


class Cells:
    """A kernel whose messages are kept: what is displayed under which id, by whom, and what came as a stream."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.messages: list[Message] = []
        self.run(START)

    def run(self, code: str) -> list[Message]:
        messages: list[Message] = self.kernel.run(code)
        self.messages += messages
        errors = [message["content"] for message in messages if message["msg_type"] == "error"]
        assert not errors, "\n".join(errors[0]["traceback"])
        return messages

    def until(self, predicate: Callable[[], object]) -> None:
        """Take further messages until the predicate holds."""
        while not predicate():
            self.messages.append(self.kernel.until(lambda message: True))

    def texts(self, messages: list[Message] | None = None) -> dict[str, str]:
        """The last plain text of each place, in the order in which they were made."""
        found = {}
        for message in self.messages if messages is None else messages:
            content = message["content"]
            data = content.get("data", {})
            if data.get("text/html", "").startswith("<!--nbqueue-output-->"):
                found[content["transient"]["display_id"]] = data["text/plain"].removeprefix("nbqueue output:").strip()
        return found

    @property
    def last(self) -> str:
        return list(self.texts().values())[-1]

    def streams(self) -> str:
        return "".join(m["content"]["text"] for m in self.messages if m["msg_type"] == "stream")


@pytest.fixture
def cells(start_kernel: Callable[..., Any]) -> Cells:
    return Cells(start_kernel())


def test_a_print_lands_below_its_own_cell_also_when_that_has_ended(cells: Cells) -> None:
    first = cells.run(
        """
        @queue.task
        def late(path):
            print("begun", flush=True)
            while not os.path.exists(path):
                time.sleep(0.01)
            print("ended")
        future = late("go")
        """
    )
    place, = cells.texts(first)
    assert cells.texts(first)[place] == "", "made in advance"
    second = cells.run("open('go', 'w').close(); print('mine')")
    cells.until(lambda: "ended" in cells.last)
    assert cells.texts() == {place: "late │ begun\nlate │ ended"}
    assert "ended" not in "".join(m["content"].get("text", "") for m in second if m["msg_type"] == "stream")
    assert cells.streams() == "mine\n"


def test_what_is_printed_is_complete_when_the_cell_that_waited_ends(cells: Cells) -> None:
    messages = cells.run(
        """
        @queue.task
        def say(i):
            print("item", i)
        say.map(range(20)).results()
        """
    )
    text, = cells.texts(messages).values()
    assert sorted(text.splitlines()) == sorted(f"{f'say[{i}]':<7} │ item {i}" for i in range(20))


def test_two_thousand_calls_make_one_place(cells: Cells) -> None:
    messages = cells.run(
        """
        from nbqueue import gather
        @queue.task
        def say(i):
            print("item", i)
        futures = [say(i) for i in range(2000)]
        gather(futures)
        """
    )
    made = [m for m in messages if m["msg_type"] == "display_data"]
    assert len(made) == 1
    assert len(messages) < 60, "five updates a second at most"
    text, = cells.texts(messages).values()
    assert text.startswith("… 1,800 earlier lines")
    assert len(text.splitlines()) == 201
    cells.run(r"assert all(f.stdout == f'item {i}\n' for i, f in enumerate(futures))")


def test_each_run_of_a_cell_has_a_place_of_its_own_and_a_cell_that_calls_nothing_none(cells: Cells) -> None:
    cells.run("say = queue.task(lambda: print('x')); say().result()")
    for _ in range(2):
        cells.run("say().result()")
    assert not cells.texts(cells.run("1 + 1"))
    assert list(cells.texts().values()) == ["<lambda> │ x"] * 3


def test_what_compiled_code_and_programs_print_is_seen_while_the_task_holds_the_interpreter(cells: Cells) -> None:
    cells.run(
        r"""
        @queue.task
        def compiled(path):
            libc = ctypes.PyDLL(None)      # holds the GIL
            libc.printf(b"from C\n")
            libc.fflush(None)
            os.system("echo from a program; echo troubled >&2")
            while libc.access(path.encode(), 0):
                libc.usleep(10_000)
        future = compiled("go")
        """
    )
    cells.until(lambda: "from a program" in cells.last and "compiled ! troubled" in cells.last)
    assert "compiled │ from C\ncompiled │ from a program" in cells.last
    cells.run("open('go', 'w').close(); future.result()")
    cells.run(r"assert future.stdout == 'from C\nfrom a program\n', future.stdout")


def test_a_crash_loses_nothing_of_what_was_printed(cells: Cells) -> None:
    cells.run(
        r"""
        @queue.task
        def crash():
            print("before the end")
            os.kill(os.getpid(), 11)
        future = crash()
        error = future.exception()
        assert type(error).__name__ == "WorkerDied"
        assert future.stdout == "before the end\n" * 2, future.stdout
        """
    )
    assert cells.last.count("before the end") == 2, "it was started twice"


def test_what_belongs_to_no_call_goes_to_the_kernel_s_stdout(cells: Cells) -> None:
    cells.run(
        """
        @queue.task
        def leave_a_thread(path):
            import threading
            def on():
                while not os.path.exists(path):
                    time.sleep(0.01)
                print("nobody's", flush=True)
            threading.Thread(target=on).start()
        leave_a_thread("go").result()
        """
    )
    cells.run("open('go', 'w').close()")
    cells.until(lambda: "nobody's" in cells.streams())
    assert "nobody's" not in cells.last


def test_stderr_colours_and_bars_are_as_they_would_be(cells: Cells) -> None:
    messages = cells.run(
        r"""
        @queue.task
        def loud():
            print("\x1b[31mred\x1b[0m <b>")
            for i in range(3):
                print(f"\r{i}/2", end="", flush=True)
            sys.stderr.write("trouble\n")
        loud().result()
        """
    )
    assert cells.last == "loud │ red <b>\nloud │ 2/2\nloud ! trouble"
    html = [m["content"]["data"]["text/html"] for m in messages if "data" in m["content"]][-1]
    assert 'style="color:#e53935">red</span> &lt;b&gt;' in html
    assert re.search(r'<span class="nbqueue-stderr"[^>]*>trouble</span>', html)


def test_with_views_turned_off_prints_are_plain(start_kernel: Callable[..., Any]) -> None:
    cells = Cells(start_kernel(NBQUEUE_PROGRESS="0"))
    cells.run("queue.submit(print, 'plain').result()")
    cells.until(lambda: "plain\n" in cells.streams())
    assert not cells.texts()


def test_a_batch_without_a_card_still_shows_what_it_prints(cells: Cells) -> None:
    cells.run("queue.map(print, 'ab', progress=False).results()")
    assert sorted(cells.last.splitlines()) == ["print[0] │ a", "print[1] │ b"]


def test_what_a_task_s_own_calls_print_is_seen_too(cells: Cells) -> None:
    cells.run(
        """
        @queue.task
        def inner(i):
            print("inside", i)
        @queue.task
        def outer():
            inner.map([7]).results()
            inner.submit(8).result()
            print("outside")
        outer().result()
        """
    )
    wanted = ["outer │ inner │ inside 8", "outer │ inner[0] │ inside 7", "outer │ outside"]
    assert sorted(cells.last.splitlines()) == wanted
    assert "inside" not in cells.streams()


def test_a_cell_that_runs_in_the_background_prints_below_itself(cells: Cells) -> None:
    cells.run("%load_ext nbqueue")
    first = cells.run("%%background -n later\nprint('far away')\nanswer = 42\nanswer")
    cells.run("later.result()")
    place = next(iter(cells.texts(first)))
    cells.until(lambda: "far away" in cells.texts()[place])
    assert "far away" not in cells.streams()


def test_a_notebook_that_nobody_watches_is_saved_with_what_its_tasks_printed(tmp_path: Path) -> None:
    """nbclient drops streams that are not the running cell's: only displays with an id come home late."""
    import nbclient
    import nbformat

    cells = [
        START + "def late():\n    time.sleep(0.5)\n    print('came late')\nfuture = queue.submit(late)",
        "future.result(); print('mine')",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    nbclient.NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (place,), second = (cell.outputs for cell in notebook.cells)
    assert place["data"]["text/plain"] == "nbqueue output:\nlate │ came late"
    # In one piece or two: whoever displays flushes what is being printed.
    assert "".join(output["text"] for output in second) == "mine\n"


def test_calls_of_threads_are_shown_below_the_cell_that_runs(cells: Cells) -> None:
    """They appeared below the cell that had made a call before."""
    cells.run("@queue.task\ndef say(x):\n    print('said', x)\nsay('before').result()")
    messages = cells.run(
        """
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda x: say(x).result(), range(8)))
        """
    )
    (place,) = [m for m in messages if m["msg_type"] == "display_data"]
    cells.until(lambda: all(f"said {x}" in cells.last for x in range(8)))
    first, second = cells.texts().values()
    assert first.count("said") == 1
    assert second.count("said") == 8
    assert list(cells.texts())[1] == place["content"]["transient"]["display_id"]


def test_a_thread_that_calls_between_two_cells_writes_on_the_last_page(cells: Cells, tmp_path: Path) -> None:
    cells.run("@queue.task\ndef say(x):\n    print('said', x)\nsay('before').result()")
    cells.run(
        """
        import threading
        def later():
            while not os.path.exists("between"): time.sleep(0.01)
            say("later").result()
        threading.Thread(target=later).start()
        """
    )
    (tmp_path / "between").touch()
    cells.until(lambda: "said later" in cells.last)
    assert len(cells.texts()) == 1


def test_coroutines_that_run_beside_each_other_print_as_themselves(cells: Cells) -> None:
    cells.run(
        """
        import asyncio
        queue.run(1)
        turns = []
        @queue.task
        async def talk(i):
            for turn in range(2):
                print("turn", turn)
                turns.append(i)
                while turns.count(1 - i) <= turn: await asyncio.sleep(0.01)
        talk.map(range(2)).results()
        """
    )
    assert sorted(cells.last.splitlines()) == [f"talk[{i}] │ turn {turn}" for i in range(2) for turn in range(2)]
    assert cells.streams() == ""
