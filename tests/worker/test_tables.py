"""pandas in a worker: set as in a notebook where one calls, and left alone elsewhere."""

from __future__ import annotations

import sys
import types

import pytest

from nbqueue.worker.telling import tables


class Pandas(types.ModuleType):
    """What we know of it."""

    def __init__(self, columns: int) -> None:
        super().__init__("pandas")
        self.columns = columns

    def get_option(self, name: str) -> int:
        assert name == "display.max_columns"
        return self.columns

    def set_option(self, name: str, value: int) -> None:
        assert name == "display.max_columns"
        self.columns = value


@pytest.mark.parametrize(("columns", "shows", "then"), [(0, True, 20), (0, False, 0), (7, True, 7)])
def test_a_table_is_cut_as_in_the_notebook_that_sees_it(
    monkeypatch: pytest.MonkeyPatch, columns: int, shows: bool, then: int
) -> None:
    pandas = Pandas(columns)
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    tables.install(lambda: shows)
    assert pandas.columns == then


def test_a_pandas_without_that_option_is_imported_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", types.ModuleType("pandas"))
    tables.install(lambda: True)
