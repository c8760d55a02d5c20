"""The part of the stores' kit that looks at values, facts and watching; and what both parts use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from chelate.contracts.store import Commit, DispatchFilter, ResultStore
from chelate.digest import digest_bytes
from chelate.errors import BlobHeldError, BlobMissingError
from chelate.model import DispatchRecord, NodeRecord, NodeStatus

__all__ = ["StoreFactory", "StoreValues"]

StoreFactory = Callable[[], ResultStore]


class StoreValues:
    """Subclass :class:`~chelate.testing.store_conformance.StoreConformance`, not this."""

    large: int = 3 << 20
    """Size in bytes of a value that the store is likely to treat as a large one."""

    @contextmanager
    def opened(self, make_store: StoreFactory) -> Iterator[ResultStore]:
        """A new store object, open; closed at the end."""
        store = make_store()
        store.open()
        try:
            yield store
        finally:
            store.close()

    def record(self, **changes: Any) -> DispatchRecord:
        """A dispatch with a new id that is its own root."""
        dispatch_id = changes.pop("dispatch_id", None) or str(uuid4())
        fields = {"name": "workflow", "root_id": dispatch_id, "created_at": 1.0, **changes}
        return DispatchRecord(dispatch_id=dispatch_id, **fields)

    def added(self, store: ResultStore, **changes: Any) -> str:
        """The id of a dispatch that was just stored."""
        record = self.record(**changes)
        assert store.add_dispatch(record, {})
        return record.dispatch_id

    # -- watching -------------------------------------------------------------------------------

    def test_the_counter_changes_when_another_writes(self, make_store: StoreFactory) -> None:
        with self.opened(make_store) as store, self.opened(make_store) as other:
            kernel = other.claim_kernel()
            for write in (
                lambda: self.added(other),
                lambda: other.request_cancel(self.added(other), None),
                lambda: other.release_hold(self.added(other, held=True)),
                lambda: other.adopt(kernel, other.orphans()),
            ):
                before = store.change_counter()
                write()
                assert store.change_counter() != before

    # -- blobs ----------------------------------------------------------------------------------

    def test_values_of_any_size_come_back(self, make_store: StoreFactory, tmp_path: Path) -> None:
        sizes = (0, 1, 32 << 10, (32 << 10) + 1, self.large)
        values = {digest_bytes(data): data for data in (bytes([s % 251]) * s for s in sizes)}
        absent = "0" * 64
        with self.opened(make_store) as store:
            assert store.missing_blobs([*values, absent]) == {*values, absent}
            assert store.add_dispatch(self.record(), values)
            kernel = store.claim_kernel()
            assert store.commit(kernel, Commit(blobs=values), 0) == []
        with self.opened(make_store) as store:
            assert store.missing_blobs([*values, absent]) == {absent}
            for digest, data in values.items():
                assert store.read(digest) == data
                assert store.size(digest) == len(data)
                with store.stream(digest) as stream:
                    assert stream.read() == data
                path = store.path(digest)
                assert path is None or path.read_bytes() == data
            few = {digest: data for digest, data in values.items() if len(data) <= 1}
            many = store.read_many([*values, absent])
            assert few.items() <= many.items() <= values.items()
            for call in (store.read, store.size, store.stream):
                with pytest.raises(BlobMissingError, match=absent):
                    call(absent)

    def test_a_value_that_stays_elsewhere_is_no_missing_one(
        self, make_store: StoreFactory, tmp_path: Path
    ) -> None:
        values = {digest_bytes(data): data for data in (b"x" * self.large, b"y" * self.large)}
        came, gone = values
        note = {"executor": "far {}", "size": self.large, "handle": {"key": "k"}}
        with self.opened(make_store) as store:
            if not store.can_hold:
                pytest.skip("cannot hold: this store takes every value itself")
            kernel = store.claim_kernel()
            assert store.commit(kernel, Commit(held=dict.fromkeys(values, note)), 0) == []
        with self.opened(make_store) as store:
            assert store.missing_blobs(values) == set()
            assert store.held([came]) == {came: note}
            assert store.held(None).keys() == values.keys()
            assert store.size(came) == self.large
            assert store.path(came) is None
            for call in (store.read, store.stream):
                with pytest.raises(BlobHeldError, match=came):
                    call(came)
            source = tmp_path / "fetched"
            source.write_bytes(values[came])
            store.put_file(came, source, move=True)  # by whatever way
            assert store.held(None).keys() == {gone}
            store.unhold(came, gone=False)
            store.unhold(gone, gone=True)
            assert store.held(None) == {}
            assert store.missing_blobs(values) == {gone}
            assert store.read(came) == values[came]
            with pytest.raises(BlobMissingError, match="no longer there") as missing:
                store.read(gone)
            assert not isinstance(missing.value, BlobHeldError)

    def test_a_file_is_copied_or_moved(self, make_store: StoreFactory, tmp_path: Path) -> None:
        with self.opened(make_store) as store:
            for move in (False, True):
                data = bytes([65 + move]) * self.large
                source = tmp_path / f"result-{move}"
                source.write_bytes(data)
                store.put_file(digest_bytes(data), source, move=move)
                assert source.exists() is not move
                assert store.read(digest_bytes(data)) == data
                source.write_bytes(data)
                store.put_file(digest_bytes(data), source, move=move)
                assert source.exists() is not move

    # -- facts, threads -------------------------------------------------------------------------

    def test_facts(self, make_store: StoreFactory) -> None:
        with self.opened(make_store) as store:
            assert store.get_fact("absent") is None
            store.set_fact("lane/a", {"x": [1, None]})
            store.set_fact("lane/b%", 0)
            store.set_fact("LANE/c", "other")
            store.set_fact("lane/a", {"x": [2]})
            assert list(store.facts("lane/")) == [("lane/a", {"x": [2]}), ("lane/b%", 0)]
            store.set_fact("lane/a", None)
            store.set_fact("lane/a", None)
            assert store.get_fact("lane/a") is None
            assert list(store.facts("")) == [("LANE/c", "other"), ("lane/b%", 0)]

    def test_facts_are_written_with_what_they_belong_to(self, make_store: StoreFactory) -> None:
        with self.opened(make_store) as store, self.opened(make_store) as other:
            kernel = store.claim_kernel()
            assert store.set_facts({"a": 1, "b": {"x": 2}}, {"a": None})
            assert not other.set_facts({"a": 9, "b": None}, {"a": 1, "b": {"x": 3}})
            assert dict(store.facts("")) == {"a": 1, "b": {"x": 2}}
            record = self.record(owner=kernel)
            assert not store.add_dispatch(record, {}, {"a": 9}, {"b": None})
            assert not store.dispatches(DispatchFilter())
            assert store.add_dispatch(record, {}, {"a": 2}, {"a": 1})
            assert not store.add_dispatch(record, {}, {"a": 3}, {"a": 2})
            held = self.added(store, held=True)
            assert not store.release_hold(held, {"a": 9}, {"a": 1})
            assert store.dispatch(held).held
            assert store.release_hold(held, {"a": 4, "b": None}, {"a": 2})
            assert not store.release_hold(held, {"a": 9})
            assert dict(other.facts("")) == {"a": 4}

    def test_kernels_are_alive_until_they_close(self, make_store: StoreFactory) -> None:
        with self.opened(make_store) as store:
            with self.opened(make_store) as other:
                mine, theirs = store.claim_kernel(), other.claim_kernel()
                assert store.kernels_alive([mine, theirs, "nobody"]) == {mine, theirs}
            assert store.kernels_alive([mine, theirs]) == {mine}

    def test_many_threads_use_one_store(self, make_store: StoreFactory) -> None:
        with self.opened(make_store) as store:
            kernel = store.claim_kernel()

            def work(number: int) -> None:
                dispatch_id = self.added(store, owner=kernel)
                for at in range(10):
                    data = f"{number}-{at}".encode()
                    turn = Commit(
                        blobs={digest_bytes(data): data},
                        nodes={dispatch_id: [NodeRecord(at, NodeStatus.COMPLETED)]},
                    )
                    assert store.commit(kernel, turn, 0) == []
                    assert store.read(digest_bytes(data)) == data
                assert len(store.nodes(dispatch_id)) == 10

            with ThreadPoolExecutor(8) as pool:
                assert list(pool.map(work, range(8))) == [None] * 8
            assert len(store.dispatches(DispatchFilter())) == 8
