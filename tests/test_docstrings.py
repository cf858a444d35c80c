"""What Shift-Tab shows: every public name has a docstring with an example, and each example runs.

They share one queue, as the cells of a notebook do; `queue`, `TaskQueue` and `nbqueue` are there.
"""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

import nbqueue
import nbqueue.errors
import nbqueue.interop.executor
import nbqueue.interop.joblib
from nbqueue import TaskQueue

JOBLIB = "joblib's own word for it: joblib calls it, nobody else"
# Of the tooltip in JupyterLab: longer lines of prose are broken there, each into a long one and a short one.
TOOLTIP = 79
SENDER = "for what sends and receives, in this package alone"
# Public names that need no example, and why.
WITHOUT = {
    "nbqueue.Batch.tally": "for the card; users have `progress`",
    "nbqueue.Put.body": SENDER,
    "nbqueue.Put.fresh": SENDER,
    "nbqueue.Put.is_lost": SENDER,
    "nbqueue.Put.packed": SENDER,
    "nbqueue.Put.pickled": SENDER,
    "nbqueue.TaskFuture.first_open": SENDER,
    "nbqueue.TaskFuture.on_broken": SENDER,
    "nbqueue.TaskFuture.on_event": SENDER,
    "nbqueue.TaskFuture.on_lost": SENDER,
    "nbqueue.TaskFuture.on_reply": SENDER,
    "nbqueue.TaskFuture.on_unmet": SENDER,
    "nbqueue.TaskFuture.on_value": SENDER,
    "nbqueue.TaskFuture.open_items": SENDER,
    "nbqueue.TaskFuture.unanswered": SENDER,
    "nbqueue.TaskQueue.submit_call": SENDER,
    "nbqueue.TaskQueue.submit_items": SENDER,
    "nbqueue.errors.BadMessage": "needs somebody who forges messages",
    "nbqueue.errors.ForkedQueue": "needs a fork",
    "nbqueue.errors.PoolError": "needs a machine that starts no processes",
    "nbqueue.errors.ServerNotFound": "needs a machine without a server",
    "nbqueue.errors.ServerRefused": "needs a server with a password",
    "nbqueue.errors.ServerTooOld": "needs a server of 2020",
    "nbqueue.errors.UnsupportedKernel": "needs that kernel",
    "nbqueue.interop.joblib.NbqueueBackend.abort_everything": JOBLIB,
    "nbqueue.interop.joblib.NbqueueBackend.apply_async": JOBLIB,
    "nbqueue.interop.joblib.NbqueueBackend.configure": JOBLIB,
    "nbqueue.interop.joblib.NbqueueBackend.effective_n_jobs": JOBLIB,
    "nbqueue.interop.joblib.NbqueueBackend.retrieval_context": JOBLIB,
    "nbqueue.interop.joblib.NbqueueBackend.retrieve_result_callback": JOBLIB,
    "nbqueue.interop.joblib.NbqueueBackend.start_call": JOBLIB,
    "nbqueue.interop.joblib.NbqueueBackend.stop_call": JOBLIB,
    "nbqueue.interop.joblib.NbqueueBackend.submit": JOBLIB,
    "nbqueue.interop.joblib.NbqueueBackend.terminate": JOBLIB,
}


def members_of(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties of a class, as far as they are ours and say something of their own."""
    for name in sorted({name for base in kind.__mro__ for name in vars(base) if not name.startswith("_")}):
        member = inspect.getattr_static(kind, name)
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if inspect.isfunction(function) and function.__module__.startswith("nbqueue."):
            yield name, member


def public_names() -> Iterator[tuple[str, Any]]:
    yield "nbqueue", nbqueue
    seen: set[int] = set()
    for module in (nbqueue, nbqueue.errors, nbqueue.interop.executor, nbqueue.interop.joblib):
        for name in module.__all__:
            value = getattr(module, name)
            if id(value) in seen:
                continue
            seen.add(id(value))
            yield f"{module.__name__}.{name}", value
            if isinstance(value, type) and not issubclass(value, Exception):
                for member, found in members_of(value):
                    yield f"{module.__name__}.{name}.{member}", found


PUBLIC = dict(public_names())
EXAMPLES = [name for name, value in PUBLIC.items() if ">>>" in (inspect.getdoc(value) or "")]


@pytest.mark.parametrize("name", PUBLIC)
def test_it_has_an_example_or_a_reason(name: str) -> None:
    if name in WITHOUT:
        assert name not in EXAMPLES, "it has one: take it out of WITHOUT"
        return
    assert inspect.getdoc(PUBLIC[name]), "Shift-Tab shows nothing"
    assert name in EXAMPLES, "its docstring has no example"


def test_only_names_that_are_there_go_without() -> None:
    assert WITHOUT.keys() <= PUBLIC.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_its_docstring_is_of_numpys_style_and_names_each_parameter(name: str) -> None:
    value = PUBLIC[name]
    text = inspect.getdoc(value) or ""
    lines = text.splitlines()
    assert not lines[0].startswith(" ")
    assert len(lines[0]) <= 120
    assert len(lines) == 1 or not lines[1], "its first line is its summary"
    for underline in re.finditer(r"^(.+)\n(-{3,})$", text, re.MULTILINE):
        assert len(underline[1]) == len(underline[2]), underline[1]
    prose = [line for paragraph in text.split("\n\n")[1:] for line in paragraph.partition(">>>")[0].splitlines()]
    names = re.compile(r"\*?\w+(, \*?\w+)+( : .+)?")
    assert [line for line in prose if len(line) > TOOLTIP and not names.fullmatch(line)] == []
    assert "doctest: +SKIP" not in text
    if "Parameters\n---" in text:
        for parameter in inspect.signature(value).parameters.values():
            if parameter.name not in ("self", "rest", "options") and not parameter.name.startswith("_"):
                assert re.search(rf"\b{parameter.name}\b", text), parameter.name


# Examples


@pytest.fixture(autouse=True)
def nothing_left() -> None:
    """All of this module's queues are closed at its end, by `shared`."""


@pytest.fixture(scope="module")
def shared(leaving_nothing: Callable[[], AbstractContextManager[None]]) -> Iterator[TaskQueue]:
    with leaving_nothing():
        yield TaskQueue(workers=2)


@pytest.mark.parametrize("name", EXAMPLES)
def test_its_example_runs(name: str, shared: TaskQueue) -> None:
    # Some examples stop the workers.
    shared.run(2)
    names = {"__name__": "__main__", "queue": shared, "TaskQueue": TaskQueue, "nbqueue": nbqueue}
    text = inspect.getdoc(PUBLIC[name]) or ""
    example = doctest.DocTestParser().get_doctest(text, names, name, None, 0)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    result = runner.run(example, out=said.append)
    assert result.failed == 0, "".join(said)
