"""What dead kernels leave behind goes when the next one starts, and no sooner than it may."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chelate.contracts.store import Commit
from chelate.errors import OwnershipLostError
from chelate.model import DispatchRecord, NodeRecord, NodeStatus, Status
from chelate.store import SQLStore


@pytest.fixture(params=["sqlite", "postgres"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[SQLStore]]:
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    opened = [SQLStore(url, tmp_path) for _ in range(3)]
    for store in opened:
        store.open()
    yield opened
    for store in opened:
        store.close()


def rows(store: SQLStore) -> set[str]:
    def work(link: Any) -> list[str]:
        return list(link.exec_driver_sql("SELECT kernel_id FROM kernels").scalars())

    return set(store._database.read(work))


def test_rows_of_dead_kernels_go_when_they_own_nothing_unfinished(stores: list[SQLStore]) -> None:
    first, second, third = stores
    idle, owner, living = first.claim_kernel(), first.claim_kernel(), second.claim_kernel()
    assert rows(third) == {idle, owner, living}
    first.add_dispatch(DispatchRecord("one", "w", owner=owner), {})
    first.add_dispatch(DispatchRecord("two", "w", status=Status.COMPLETED, owner=idle), {})
    first.close()
    newest = third.claim_kernel()
    assert rows(second) == {owner, living, newest}
    assert third.orphans() == ["one"]
    assert third.adopt(newest, ["one"]) == ["one"]
    fourth = second.claim_kernel()
    assert rows(second) == {living, newest, fourth}
    # Whoever comes back without a row may not write.
    with pytest.raises(OwnershipLostError):
        second.commit(owner, Commit(nodes={"one": [NodeRecord(0, NodeStatus.RUNNING)]}), 0)
    assert second.kernels_alive([idle, owner, living, newest]) == {living, newest}
