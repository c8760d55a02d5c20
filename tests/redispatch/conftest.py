from __future__ import annotations

import sqlite3

import pytest

import chelate as ct
from chelate import embedding


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A kernel of its own for the tests of a module."""
    folder = tmp_path_factory.mktemp("home")
    before = dict(embedding._overrides)
    ct.configure(home=folder, progress="off", executors={"local": {"workers": 2}})
    yield folder
    embedding.shutdown()
    embedding._overrides.clear()
    embedding._overrides.update(before)


def rows_of(home, dispatch_id: str) -> list[tuple[object, ...]]:
    """Everything that a store holds about one dispatch."""
    base = sqlite3.connect(home / "chelate.db")
    try:
        rows = base.execute("SELECT * FROM dispatches WHERE dispatch_id = ?", (dispatch_id,))
        nodes = base.execute("SELECT * FROM nodes WHERE dispatch_id = ?", (dispatch_id,))
        return [*rows.fetchall(), *sorted(nodes.fetchall(), key=repr)]
    finally:
        base.close()


@pytest.fixture
def untouched(home):
    """``untouched(dispatch_id)`` notes a dispatch's rows; at the end they must be the same."""
    noted: list[tuple[str, list[tuple[object, ...]]]] = []

    def note(dispatch_id: str) -> str:
        noted.append((dispatch_id, rows_of(home, dispatch_id)))
        return dispatch_id

    yield note
    for dispatch_id, rows in noted:
        assert rows_of(home, dispatch_id) == rows
