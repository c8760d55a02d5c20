"""Rows that something else than a kernel changed: only their own dispatch does not go on."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from tests.kernel.fakes import Backend, fake
from tests.kernel.graphs import graph_of

from chelate.errors import ChelateError
from chelate.model import NodeStatus, Status


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("nodes SET handle = '{}'", "is none of its attempt"),
        ("nodes SET handle = '[7]'", "is none of its attempt"),
        ("nodes SET handle = 'x'", "cannot be read"),
        ("nodes SET executor = X'FFFE'", "is no text"),
        ("nodes SET executor = ''", "names none"),
        ("nodes SET attempt = 7", "no key of its attempt 7"),
        ("nodes SET attempts = '[7]'", "which are none"),
        ("nodes SET attempts = '[{\"reason\": []}]'", "which is none"),
        ("nodes SET cancel_tries = 'x'", "no number of any"),
        ("nodes SET status = 'COMPLETED'", "COMPLETED and has no output"),
        ("nodes SET status = 'EXPANDED'", "names no sub-dispatch"),
        ("nodes SET reason = 'TIRED'", "which is none"),
        ("nodes SET due = 'x'", "which is no time"),
        ("dispatches SET name = X'FFFE'", "is no text"),
        ("dispatches SET options = '[]'", "cannot be understood"),
        ("dispatches SET graph = NULL", "has no graph"),
        ("dispatches SET counts = 'x'", "cannot be read"),
    ],
)
def test_a_damaged_row_keeps_no_other_dispatch_from_going_on(bench, change, said):
    backend = Backend(finish=lambda key, node: None)
    kernel = bench(fake(backend))
    damaged, well = (kernel.dispatch(graph_of([[], [0]])) for _ in range(2))
    for dispatch_id in (damaged, well):
        kernel.until(lambda d=dispatch_id: kernel.node(d).status is NodeStatus.RUNNING)
    kernel.close()
    with closing(sqlite3.connect(kernel.gateway.settings.home / "chelate.db")) as link, link:
        where = " AND node_id = 0" if change.startswith("nodes") else ""
        assert link.execute(f"UPDATE {change} WHERE dispatch_id = ?{where}", [damaged]).rowcount
    kernel = bench(fake(backend))
    kernel.gateway.engine.poke()
    backend.end()
    assert kernel.wait(well).status is Status.COMPLETED
    with pytest.raises(ChelateError, match=said):
        kernel.wait(damaged)
    assert kernel.run(graph_of([[]])).status is Status.COMPLETED
