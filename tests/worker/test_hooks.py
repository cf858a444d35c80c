"""A hook is called when a module is imported, once, and the module is as it would be without."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbqueue.worker.telling import hooks

NAME = "imported_by_a_test_of_hooks"


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / f"{NAME}.py").write_text("value = 1\ndef f():\n    return value\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield NAME
    sys.modules.pop(NAME, None)
    hooks._finder.hooks.pop(NAME, None)


def test_it_is_called_with_the_executed_module(library):
    hooks.when_imported(library, lambda module: setattr(module, "value", module.value + 1))
    assert library not in sys.modules
    module = importlib.import_module(library)
    assert module.f() == 2
    assert importlib.import_module(library).f() == 2
    assert "return value" in inspect.getsource(module.f)


def test_it_is_called_at_once_where_the_module_is_there(library):
    module = importlib.import_module(library)
    hooks.when_imported(library, lambda module: setattr(module, "value", 5))
    assert module.f() == 5


def test_what_it_raises_is_raised_by_the_import(library):
    def hook(module):
        raise ValueError("no")

    hooks.when_imported(library, hook)
    with pytest.raises(ValueError, match="no"):
        importlib.import_module(library)


def test_a_module_that_does_not_exist_is_still_missing():
    hooks.when_imported("no_such_module_of_ours", lambda module: None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module_of_ours")
    del hooks._finder.hooks["no_such_module_of_ours"]
