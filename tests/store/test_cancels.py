"""A cancel of many tasks: recorded on every row, whether it is there yet or not, and at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chelate.contracts.store import Commit
from chelate.model import DispatchRecord, NodeRecord, NodeStatus
from chelate.store import SQLStore

MANY = 10_000


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SQLStore]:
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    store = SQLStore(url, tmp_path)
    store.open()
    yield store
    store.close()


def test_rows_that_are_there_that_are_not_and_that_have_ended(store: SQLStore) -> None:
    kernel = store.claim_kernel()
    store.add_dispatch(DispatchRecord("one", "w", owner=kernel), {})
    store.add_dispatch(DispatchRecord("two", "w", owner=kernel), {})
    rows = [NodeRecord(1, NodeStatus.RUNNING, 1, "k"), NodeRecord(2, NodeStatus.COMPLETED, 1)]
    store.commit(kernel, Commit(nodes={"one": rows, "two": rows}), 0)
    for _ in range(2):
        store.request_cancel("one", [3, 1, 2, 3])
    found = {row.node_id: row for row in store.nodes("one")}
    assert {i: row.cancel_requested for i, row in found.items()} == {1: True, 2: False, 3: True}
    assert (found[1].status, found[1].key) == (NodeStatus.RUNNING, "k")
    assert found[3] == NodeRecord(3, cancel_requested=True)
    assert not any(row.cancel_requested for row in store.nodes("two"))


@pytest.mark.parametrize(("there", "limit"), [(False, 0.2), (True, 0.5)])
def test_ten_thousand_at_once(store: SQLStore, there: bool, limit: float) -> None:
    kernel = store.claim_kernel()
    times = []
    for number in range(5):
        name = f"dispatch{number}"
        store.add_dispatch(DispatchRecord(name, "w", owner=kernel), {})
        if there:
            rows = [NodeRecord(i, NodeStatus.RUNNING, 1, f"{name}:{i}") for i in range(MANY)]
            store.commit(kernel, Commit(nodes={name: rows}), 10**9)
        started = time.perf_counter()
        store.request_cancel(name, list(range(MANY)))
        times.append(time.perf_counter() - started)
    assert sum(row.cancel_requested for row in store.nodes("dispatch0")) == MANY
    assert min(times) < limit, times
