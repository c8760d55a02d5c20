"""Edits of what a task reaches in unusual ways are seen, or the task runs and says why."""

from __future__ import annotations

import importlib
import importlib.util
import io
import sqlite3
import sys
from pathlib import Path

import pytest

from chelate.client.fingerprint import compare_manifests, fingerprint_function, same

_SPEC = importlib.util.spec_from_file_location("reach", Path(__file__).with_name("reach.py"))
reach = importlib.util.module_from_spec(_SPEC)
sys.modules["reach"] = reach
_SPEC.loader.exec_module(reach)


@pytest.fixture(autouse=True)
def _forgotten():
    yield
    _forget()


def _forget():
    """Drop the modules of a row, and close what it has opened."""
    opened = getattr(sys.modules.get("sample"), "G", None)
    if isinstance(opened, (io.IOBase, sqlite3.Connection)):
        opened.close()
    for name in list(sys.modules):
        if name.partition(".")[0] in ("sample", "config", "third", "other", "patches"):
            del sys.modules[name]


def taken(folder, row, edited):
    """The fingerprint of the task of a row, its modules loaded anew."""
    modules = row.modules(edited)
    place = folder / f"v{len(list(folder.iterdir()))}"
    for name, text in modules.items():
        path = place / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    _forget()
    sys.path.insert(0, str(place))
    importlib.invalidate_caches()
    try:
        return fingerprint_function(importlib.import_module("sample").task)
    finally:
        sys.path.remove(str(place))


def by_name(rows):
    assert len({row.name for row in rows}) == len(rows)
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.name)


@by_name(reach.ROWS)
def test_edit_is_seen(row, tmp_path):
    before, again, after = (taken(tmp_path, row, edited) for edited in (False, False, True))
    assert compare_manifests(before.manifest, again.manifest) is None
    assert same(before, again)
    assert (before.ast is not None) == row.tree
    assert not same(before, after)
    assert after.ast is None or after.ast != before.ast
    assert after.code != before.code
    assert compare_manifests(before.manifest, after.manifest) is not None


@by_name(reach.COSMETIC)
def test_edit_does_not_count(row, tmp_path):
    before, after = (taken(tmp_path, row, edited) for edited in (False, True))
    assert compare_manifests(before.manifest, after.manifest) is None
    assert same(before, after)
    assert after.ast is not None
    assert after.ast == before.ast


@by_name(reach.RUNS)
def test_what_cannot_be_followed_runs(row, tmp_path):
    before, after = (taken(tmp_path, row, edited) for edited in (False, True))
    assert not same(before, after)
    assert "cannot be compared" in compare_manifests(before.manifest, after.manifest)[1]
