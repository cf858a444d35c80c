"""``%%background`` and ``%nbqueue``, after ``%load_ext nbqueue``.

A background cell is one call: its names go out with it, and come back between two cells (`post_run_cell`, an idle
event loop) or before the next one (`pre_run_cell`), never while a cell runs, unless that cell asks for the result.
"""

from __future__ import annotations

import ast
import builtins
import html
import re
import threading
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics as _Magics
from IPython.core.magic import cell_magic, line_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring
from IPython.display import display
from IPython.utils.text import DollarFormatter

from nbqueue.client.cells import Cell, CellFuture, Home, as_function, listed
from nbqueue.client.queue import TaskQueue
from nbqueue.client.sending.listener import Link
from nbqueue.errors import BadOption, NotSendable
from nbqueue.notebook.names import awaits, names_of
from nbqueue.progress.static import GREY_TEXT, css

__all__ = ["Magics"]


@magics_class
class Magics(_Magics):
    """What ``%load_ext nbqueue`` adds to a notebook."""

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self.shell: Any
        self._between = _Between(shell)

    @magic_arguments()
    @argument("-n", "--name", help="bind the cell's TaskFuture to this name: NAME.result(), NAME.cancel()")
    @argument("-q", "--queue", help="the notebook's name of the queue; by default TaskQueue(), which is made if needed")
    @argument("-t", "--timeout", type=float, help="seconds that the cell may run")
    @cell_magic
    def background(self, line: str, cell: str) -> None:
        """Run this cell in a worker, while the notebook is free for other cells.

        The names that the cell uses are taken from the notebook as they are now. Those that it binds (assignments,
        imports, functions, classes, loop variables, also ``a[…] = …`` and ``a.b = …``) are put back when it is done:
        at once if no cell runs, else when the one that runs has ended. ``NAME.result()`` waits for it, gives the
        value of the last line, and puts them back.

        - A name that the notebook has bound anew meanwhile is not overwritten; a note says so, and
          ``NAME.names`` has what the cell gave it.
        - Names that begin with an underscore stay in the worker. So does what cannot be pickled; a note names it.
        - An object that is only changed (``a.append(1)``) is changed in the worker. Assign it to have it back.
        - A cell that fails gives nothing back.
        - ``!commands`` work; other magics and ``await`` do not.

        Examples
        --------
        ::

            %%background -n fit
            model = train(data, epochs=100)
            model.score(data)
        """
        given = parse_argstring(self.background, line)
        queue = self._queue(given.queue)
        if given.name and not given.name.isidentifier():
            raise UsageError(f"%%background -n {given.name}: this cannot be a name.")
        shell = self.shell
        # Some versions of IPython have counted on by now.
        number = len(shell.history_manager.input_hist_parsed) - 1
        try:
            prepared = prepare(shell, f"%%background {line}".rstrip() + "\n" + cell, cell, number)
            future = send(queue, prepared, shell.user_ns, given.name or f"cell [{number}]", given.timeout)
        except SyntaxError as error:
            raise UsageError(f"%%background: {_where(error)}") from None
        except (BadOption, NotSendable) as error:
            # Where in our own code it was found helps nobody.
            raise UsageError(f"%%background: {error}") from None
        if given.name:
            shell.user_ns[given.name] = future
        self._between.watch(future, _Report(shell, future, prepared))

    @line_magic
    def nbqueue(self, line: str) -> None:
        """Show the panel of a queue: ``%nbqueue`` or ``%nbqueue VARIABLE``."""
        display(self._queue(line.strip()))

    def _queue(self, name: str | None) -> TaskQueue:
        if not name:
            return TaskQueue()
        queue = self.shell.user_ns.get(name)
        if not isinstance(queue, TaskQueue):
            raise UsageError(f"`{name}` is no TaskQueue of this notebook.")
        return queue


# Out


def prepare(shell: Any, source: str, body: str, number: int) -> Cell:
    """Compile a cell, so that its frames show lines of `source`, the cell as it is seen.

    Raises
    ------
    SyntaxError
    UsageError
        If it holds what no worker can do.
    """
    text = shell.transform_cell(body)
    seen = source if text.count("\n") == body.rstrip("\n").count("\n") + 1 else source.split("\n", 1)[0] + "\n" + text
    filename = shell.compile.cache(seen, number, raw_code=source)
    # One line down: the first one is the magic's.
    tree = ast.parse("\n" + text, filename)
    if (node := awaits(tree)) is not None:
        raise UsageError(
            f"%%background: line {getattr(node, 'lineno', '?')} awaits, and a worker has no event loop. Use "
            "asyncio.run(…), or await in a cell of its own."
        )
    # Before all else, for what is wrong with the whole of it.
    compile(tree, filename, "exec", shell.compile.flags, dont_inherit=True)
    tree = ast.fix_missing_locations(_Commands(shell.user_ns.keys() | names_of(tree).bound).visit(tree))
    flags = shell.compile.flags & ~ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    statements, last = tree.body, None
    quiet = text.rstrip().endswith(";")
    if statements and isinstance(statements[-1], ast.Expr) and not quiet:
        last = ast.Expression(statements[-1].value)
        statements = statements[:-1]
    code = compile(ast.Module(statements, []), filename, "exec", flags, dont_inherit=True)
    value = None if last is None else compile(last, filename, "eval", flags, dont_inherit=True)
    names = names_of(tree)
    hidden = {name for name, what in shell.user_ns_hidden.items() if shell.user_ns.get(name) is what}
    return Cell(code, value, names.used - hidden, names.bound)


def _where(error: SyntaxError) -> str:
    """Message, line and caret of what is no Python."""
    message = f"line {error.lineno}: {error.msg}"
    if not error.text:
        return message
    line = error.text.rstrip("\n")
    return f"{message}\n    {line}\n    {' ' * max(0, (error.offset or 1) - 1)}^"


class _Commands(ast.NodeTransformer):
    """``!command`` becomes a call that a worker can run; ``{name}`` and ``$name`` in it become values there."""

    def __init__(self, known: set[str]) -> None:
        self._known = known | set(dir(builtins))

    def visit_Call(self, node: ast.Call) -> ast.AST:
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Call(func=ast.Name(id="get_ipython")), attr=what),
                args=[ast.Constant(value=str(text)), *_],
            ):
                if what in ("system", "getoutput"):
                    call = ast.parse(f"__import__('nbqueue.codec.cells').codec.cells.{what}(0)", mode="eval").body
                    assert isinstance(call, ast.Call)
                    call.args = [self._filled_in(text)]
                    for part in ast.walk(call):
                        ast.copy_location(part, node)
                    return call
                sign = "%%" if what == "run_cell_magic" else "%"
                raise UsageError(
                    f"%%background: line {node.lineno} uses {sign}{text}, and workers have no magics. Use it in a cell "
                    "of its own."
                )
        return self.generic_visit(node)

    def _filled_in(self, command: str) -> ast.expr:
        """A command as an f-string; as it is where IPython would leave it so, because not all names are known."""
        parts: list[ast.expr] = []
        try:
            for text, field, form, conversion in DollarFormatter().parse(command):
                parts.append(ast.Constant(text))
                if field is not None:
                    value = ast.parse(field.strip(), mode="eval").body
                    if not names_of(ast.Module([ast.Expr(value)], [])).used <= self._known:
                        return ast.Constant(command)
                    spec = ast.JoinedStr([ast.Constant(form)]) if form else None
                    parts.append(ast.FormattedValue(value, ord(conversion) if conversion else -1, spec))
        except (SyntaxError, ValueError):
            return ast.Constant(command)
        return ast.JoinedStr(parts)


def send(queue: TaskQueue, cell: Cell, namespace: dict[str, Any], name: str, timeout: float | None) -> CellFuture:
    """Send a cell on its way.

    Raises
    ------
    NotSendable
        If a name that it uses cannot be pickled; the message says which.
    BadOption
    """
    home = Home(namespace, cell.bound)
    function, arguments = as_function(cell, namespace, name)
    options = queue._options.with_(name=name, retries=0, timeout=timeout)

    def make(name: str, link: Link) -> CellFuture:
        # It can be sent. The card comes now, so that it stands above what the cell prints.
        future = CellFuture(name, link, home)
        future.show_card()
        return future

    try:
        future = queue._here().submit_call(function, arguments, {}, options, make)
    except BaseException:
        home.forget()
        raise
    assert isinstance(future, CellFuture)
    return future


# Back


class _Between:
    """Finds the moments between two cells, in the main thread, at which background cells come home."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._waiting: list[tuple[CellFuture, _Report]] = []
        self._cell_runs = False
        shell.events.register("pre_run_cell", self._before_cell)
        shell.events.register("post_run_cell", self._after_cell)

    def watch(self, future: CellFuture, report: _Report) -> None:
        # A cell runs: the one with the magic.
        self._cell_runs = True
        self._waiting.append((future, report))
        future.add_done_callback(lambda _: self._arrived())

    def _arrived(self) -> None:
        """In the thread of whoever ended it: the listener's, which must not wait."""
        loop = getattr(getattr(self._shell, "kernel", None), "io_loop", None)
        if loop is not None:
            loop.add_callback(self._when_idle)

    def _when_idle(self) -> None:
        # A cell that awaits lets other callbacks run in its middle.
        if not self._cell_runs:
            self._bring_home()

    def _before_cell(self, *_: Any) -> None:
        if _in_main_thread():
            self._bring_home()
            self._cell_runs = True

    def _after_cell(self, *_: Any) -> None:
        if _in_main_thread():
            self._cell_runs = False
            self._bring_home()

    def _bring_home(self) -> None:
        arrived = [pair for pair in self._waiting if pair[0].done()]
        for pair in arrived:
            self._waiting.remove(pair)
            pair[1].settle()


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


class _Report:
    """What is seen below a background cell's card and prints: what comes back, and the last value."""

    def __init__(self, shell: Any, future: CellFuture, cell: Cell) -> None:
        self._shell = shell
        self._future = future
        names = [f"`{name}`" for name in sorted(cell.bound) if not name.startswith("_")]
        back = f"{listed(names)} will be put back when it is done" if names else "it binds no name that comes back"
        self._names = display(_line(f"runs in the background; {back}."), raw=True, display_id=True)
        # A terminal prints each update anew: there, only what is final.
        waits = cell.last is not None and getattr(shell, "kernel", None) is not None
        self._value = display(_empty("…"), raw=True, display_id=True) if waits else None

    def settle(self) -> None:
        """Put the names back and say so; or show what went wrong. In the main thread."""
        future = self._future
        value: Any = None
        if future.cancelled():
            self._names.update(_line("was cancelled; nothing was put back."), raw=True)
        else:
            error = future.exception()
            if error is not None:
                # The first frame is the task's: there is none of a shell before it, which some versions leave out.
                show = self._shell.InteractiveTB.structured_traceback
                lines = show(type(error), error, error.__traceback__, tb_offset=0)
                self._names.update({"text/plain": "\n".join(lines)}, raw=True)
            else:
                value = future.result()
                self._names.update(_line(_told(future)), raw=True)
        if self._value is not None:
            data, metadata = (_empty(), {}) if value is None else self._shell.display_formatter.format(value)
            self._value.update(data, metadata=metadata, raw=True)
        elif value is not None:
            display(value)


def _told(future: CellFuture) -> str:
    names = [f"`{name}`" for name in sorted(future.put_back)]
    said = [f"{listed(names)} {'is' if len(names) == 1 else 'are'} in the notebook now" if names else "done"]
    return ". ".join([*said, *future.notes]) + "."


def _line(text: str) -> dict[str, str]:
    marked = re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))
    style = css("color", GREY_TEXT)
    return {
        "text/plain": f"nbqueue: {text}",
        "text/html": f'<div class="nbqueue-note" style="font-size:13px;{style}">{marked}</div><!--/nbqueue-->',
    }


def _empty(text: str = "") -> dict[str, str]:
    return {"text/plain": text, "text/html": f"<span>{text}</span>"}
