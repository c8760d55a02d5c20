"""What every result store must do, as tests that an author of a store runs on their own::

    class TestMyStore(StoreConformance):
        @pytest.fixture
        def make_store(self, tmp_path):
            return lambda: MyStore("mine://…", tmp_path)

``make_store()`` must give a new, unopened store object on the same medium at each call within one
test, and the medium must be empty at the beginning of each test. Every store made through
``self.opened(make_store)`` is closed at the end.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from chelate.contracts.store import CancelRequest, Commit, DispatchFilter
from chelate.digest import digest_bytes
from chelate.errors import DispatchNotFoundError, OwnershipLostError
from chelate.model import NodeRecord, NodeStatus, Status, ValueRef
from chelate.testing.store_values import StoreFactory, StoreValues

__all__ = ["StoreConformance", "StoreFactory"]


class StoreConformance(StoreValues):
    """Subclass it, and provide a fixture ``make_store``."""

    # -- dispatches -----------------------------------------------------------------------------

    def test_a_dispatch_comes_back_as_it_was(self, make_store: StoreFactory) -> None:
        record = self.record(
            name="größe ✓",
            status=Status.RUNNING,
            parent_id="p",
            parent_node=3,
            depth=2,
            graph="a" * 64,
            lattice="b" * 64,
            inputs="c" * 64,
            result=ValueRef("d" * 64, 2**40, "f" * 64),
            error="it broke",
            created_at=1700000000.123456,
            started_at=1.5,
            ended_at=2.5,
            owner="nobody",
            epoch=7,
            cancel_requested=True,
            held=True,
            redispatched_from="r",
            options={"reuse": True, "nested": {"list": [1, None, "x"]}},
            counts={"WAITING": 3},
        )
        with self.opened(make_store) as store:
            assert store.add_dispatch(record, {})
            assert store.dispatch(record.dispatch_id) == record
        with self.opened(make_store) as again:
            assert again.dispatch(record.dispatch_id) == record

    def test_the_same_id_twice_is_one_dispatch(self, make_store: StoreFactory) -> None:
        with self.opened(make_store) as store:
            record = self.record(name="first")
            assert store.add_dispatch(record, {}) is True
            assert store.add_dispatch(self.record(dispatch_id=record.dispatch_id), {}) is False
            assert store.dispatch(record.dispatch_id).name == "first"

    def test_an_unknown_dispatch_is_named(self, make_store: StoreFactory) -> None:
        with self.opened(make_store) as store:
            for call in (
                store.dispatch,
                store.release_hold,
                lambda i: store.request_cancel(i, None),
            ):
                with pytest.raises(DispatchNotFoundError, match="e0c0"):
                    call("e0c0")

    def test_text_that_is_no_text_is_kept_readable(self, make_store: StoreFactory) -> None:
        with self.opened(make_store) as store:
            kernel = store.claim_kernel()
            dispatch_id = self.added(store, owner=kernel, name="a\0b", error="\udcff bad")
            node = NodeRecord(
                1, NodeStatus.FAILED, error="nul \0 and \udc80 end", usage={"k": "\0"}
            )
            assert store.commit(kernel, Commit(nodes={dispatch_id: [node]}), 0) == []
            (read,) = store.nodes(dispatch_id)
            assert (read.error or "").startswith("nul ")
            assert (read.error or "").endswith(" end")
            assert read.usage == {"k": "\0"}

    def test_filters_select_newest_first(self, make_store: StoreFactory) -> None:
        with self.opened(make_store) as store:
            ids = [self.added(store, name=f"n{at % 2}", created_at=float(at)) for at in range(6)]
            child = self.added(store, root_id=ids[0], parent_id=ids[0], created_at=9.0)
            done = self.added(store, status=Status.COMPLETED, created_at=0.5)

            def found(**wish: Any) -> list[str]:
                return [item.dispatch_id for item in store.dispatches(DispatchFilter(**wish))]

            assert found() == [*reversed(ids[1:]), done, ids[0]]
            assert found(limit=2, offset=1) == [ids[4], ids[3]]
            assert found(name="n1") == [ids[5], ids[3], ids[1]]
            assert found(since=4.0) == [ids[5], ids[4]]
            assert found(status=(Status.COMPLETED, Status.FAILED)) == [done]
            assert found(parent_id=ids[0]) == [child]
            assert found(root_id=ids[0]) == [child, ids[0]]
            assert found(roots_only=False)[0] == child
            assert found(status=(Status.NEW_OBJ,)) == [*reversed(ids[1:]), ids[0]]
            store.request_cancel(ids[3], None)
            assert found(status=(Status.CANCELLING,)) == [ids[3]]
            assert ids[3] not in found(status=(Status.NEW_OBJ, Status.COMPLETED))
            assert found(status=(Status.NEW_OBJ, Status.CANCELLING)) == [*reversed(ids[1:]), ids[0]]

    # -- commits --------------------------------------------------------------------------------

    def test_a_node_comes_back_as_it_was(self, make_store: StoreFactory) -> None:
        node = NodeRecord(
            node_id=5,
            status=NodeStatus.FAILED,
            attempt=2,
            key="d:5:2:abc",
            executor="local",
            handle={"v": 1, "data": {"path": "/x", "list": [1, 2]}},
            started_at=1.25,
            ended_at=2.5,
            output=ValueRef("a" * 64, 12, None),
            error="Traceback …",
            exception="b" * 64,
            reason="OOM",
            stdout="c" * 64,
            stderr="d" * 64,
            reused_from=("other", 4),
            child_id="child",
            cancel_requested=True,
            cancel_tries=3,
            due=99.5,
            attempts=[{"attempt": 1, "reason": "LOST", "message": "gone"}],
            usage={"cpu_s": 1.5},
        )
        with self.opened(make_store) as store:
            kernel = store.claim_kernel()
            dispatch_id = self.added(store, owner=kernel)
            rows = [node, NodeRecord(2)]
            assert store.commit(kernel, Commit(nodes={dispatch_id: rows}), 0) == []
            assert store.nodes(dispatch_id) == [NodeRecord(2), node]
            assert store.nodes(dispatch_id, [5, 77]) == [node]
            assert store.nodes(dispatch_id, []) == []

    def test_many_nodes_change_in_one_commit(self, make_store: StoreFactory) -> None:
        with self.opened(make_store) as store:
            kernel = store.claim_kernel()
            dispatch_id = self.added(store, owner=kernel)
            for status in (NodeStatus.SUBMITTING, NodeStatus.RUNNING, NodeStatus.COMPLETED):
                rows = [NodeRecord(at, status, error=str(at) * (at % 7 == 0)) for at in range(1207)]
                assert store.commit(kernel, Commit(nodes={dispatch_id: rows}), 0) == []
                assert store.nodes(dispatch_id) == rows
            assert store.nodes(dispatch_id, range(100, 900)) == rows[100:900]

    def test_an_ended_node_never_changes(self, make_store: StoreFactory) -> None:
        with self.opened(make_store) as store:
            kernel = store.claim_kernel()
            dispatch_id = self.added(store, owner=kernel)
            ends = (
                NodeStatus.COMPLETED,
                NodeStatus.FAILED,
                NodeStatus.CANCELLED,
                NodeStatus.SKIPPED,
            )
            rows = [NodeRecord(at, status, 1) for at, status in enumerate(ends)]
            store.commit(kernel, Commit(nodes={dispatch_id: rows}), 0)
            later = [NodeRecord(at, NodeStatus.RUNNING, 2) for at in range(len(ends))]
            store.commit(kernel, Commit(nodes={dispatch_id: later}), 0)
            store.request_cancel(dispatch_id, range(len(ends)))
            assert store.nodes(dispatch_id) == rows

    def test_one_turn_is_written_whole(self, make_store: StoreFactory) -> None:
        with self.opened(make_store) as store:
            kernel = store.claim_kernel()
            dispatch_id = self.added(store, owner=kernel)
            child = self.record(owner=kernel, parent_id=dispatch_id, parent_node=1)
            data = b"a small value"
            record = store.dispatch(dispatch_id)
            record.status, record.counts = Status.RUNNING, {"EXPANDED": 1}
            turn = Commit(
                blobs={digest_bytes(data): data},
                nodes={
                    dispatch_id: [NodeRecord(1, NodeStatus.EXPANDED, child_id=child.dispatch_id)],
                    child.dispatch_id: [NodeRecord(0, NodeStatus.READY)],
                },
                dispatches=[record],
                created=[child],
            )
            assert store.commit(kernel, turn, 0) == []
            assert store.commit(kernel, turn, 0) == [], "the same turn again is the same"
            assert store.dispatch(dispatch_id) == record
            assert store.dispatch(child.dispatch_id) == child
            assert store.nodes(child.dispatch_id) == turn.nodes[child.dispatch_id]
            assert store.read(digest_bytes(data)) == data

    def test_what_others_asked_for_is_not_overwritten(self, make_store: StoreFactory) -> None:
        with self.opened(make_store) as store:
            kernel = store.claim_kernel()
            dispatch_id = self.added(store, owner=kernel, epoch=3)
            seq = store.request_cancel(dispatch_id, None)
            store.request_cancel(dispatch_id, [1])
            stale = self.record(dispatch_id=dispatch_id, owner="other", epoch=0)
            stale.status = Status.CANCELLING
            rows = {dispatch_id: [NodeRecord(1, NodeStatus.RUNNING)]}
            assert store.commit(kernel, Commit(nodes=rows, dispatches=[stale]), seq + 1) == []
            read = store.dispatch(dispatch_id)
            assert (read.owner, read.epoch, read.cancel_requested) == (kernel, 3, True)
            assert read.status is Status.CANCELLING
            assert store.nodes(dispatch_id)[0].cancel_requested

    # -- ownership ------------------------------------------------------------------------------

    def test_an_unowned_dispatch_is_adopted_once(self, make_store: StoreFactory) -> None:
        with self.opened(make_store) as store, self.opened(make_store) as other:
            first, second = store.claim_kernel(), other.claim_kernel()
            ids = [self.added(store, created_at=float(at)) for at in range(3)]
            self.added(store, held=True)
            self.added(store, status=Status.COMPLETED)
            assert store.orphans() == other.orphans() == ids
            assert store.adopt(first, ids[:2]) == ids[:2]
            assert other.adopt(second, ids) == ids[2:]
            assert store.orphans() == other.orphans() == []
            record = store.dispatch(ids[0])
            assert (record.owner, record.epoch) == (first, 1)

    def test_the_dispatches_of_a_closed_kernel_are_taken_over(
        self, make_store: StoreFactory
    ) -> None:
        with self.opened(make_store) as store:
            kernel = store.claim_kernel()
            with self.opened(make_store) as gone:
                old = gone.claim_kernel()
                dispatch_id = self.added(gone, owner=old)
                assert store.orphans() == []
                assert store.adopt(kernel, [dispatch_id]) == []
            assert store.orphans() == [dispatch_id]
            assert store.adopt(kernel, [dispatch_id]) == [dispatch_id]
            assert store.dispatch(dispatch_id).epoch == 1

            rows = {dispatch_id: [NodeRecord(1, NodeStatus.COMPLETED)]}
            for owner in (old, "0" * 32):
                with pytest.raises(OwnershipLostError) as caught:
                    store.commit(owner, Commit(nodes=rows), 0)
                assert caught.value.args[1] == [dispatch_id]
            assert store.nodes(dispatch_id) == []

    def test_a_turn_that_was_read_in_another_epoch_is_refused(
        self, make_store: StoreFactory
    ) -> None:
        """A kernel owns the dispatch again, and remembers nothing of what another did meanwhile."""
        with self.opened(make_store) as store:
            kernel = store.claim_kernel()
            with self.opened(make_store) as gone:
                dispatch_id = self.added(gone, owner=gone.claim_kernel())
            assert store.adopt(kernel, [dispatch_id]) == [dispatch_id]
            rows = {dispatch_id: [NodeRecord(1, NodeStatus.COMPLETED)]}
            for epoch in (0, 2):
                with pytest.raises(OwnershipLostError) as caught:
                    store.commit(kernel, Commit(nodes=rows, epochs={dispatch_id: epoch}), 0)
                assert caught.value.args[1] == [dispatch_id]
            assert store.nodes(dispatch_id) == []
            store.commit(kernel, Commit(nodes=rows, epochs={dispatch_id: 1, "0" * 32: 5}), 0)
            assert len(store.nodes(dispatch_id)) == 1

    def test_a_row_of_another_owner_stops_the_whole_turn(self, make_store: StoreFactory) -> None:
        with self.opened(make_store) as store, self.opened(make_store) as other:
            kernel = store.claim_kernel()
            mine = self.added(store, owner=kernel)
            theirs = self.added(store, owner=other.claim_kernel())
            nobodys = self.added(store)
            data = b"not to be written"
            turn = Commit(
                blobs={digest_bytes(data): data},
                nodes={name: [NodeRecord(1)] for name in (mine, theirs, nobodys)},
            )
            with pytest.raises(OwnershipLostError) as caught:
                store.commit(kernel, turn, 0)
            assert sorted(caught.value.args[1]) == sorted([theirs, nobodys])
            assert store.nodes(mine) == store.nodes(theirs) == []
            assert store.missing_blobs([digest_bytes(data)]) == {digest_bytes(data)}

    def test_two_kernels_in_one_process_are_two(self, make_store: StoreFactory) -> None:
        with self.opened(make_store) as store:
            first, second = store.claim_kernel(), store.claim_kernel()
            dispatch_id = self.added(store, owner=first)
            assert store.orphans() == []
            assert store.adopt(second, [dispatch_id]) == []
            assert store.commit(first, Commit(nodes={dispatch_id: [NodeRecord(0)]}), 0) == []

    def test_a_held_dispatch_waits_for_its_release(self, make_store: StoreFactory) -> None:
        with self.opened(make_store) as store:
            dispatch_id = self.added(store, held=True)
            assert store.orphans() == []
            assert store.release_hold(dispatch_id) is True
            assert store.release_hold(dispatch_id) is False
            assert store.orphans() == [dispatch_id]

    # -- cancels --------------------------------------------------------------------------------

    def test_an_unseen_cancel_stops_the_turn(self, make_store: StoreFactory) -> None:
        with self.opened(make_store) as store, self.opened(make_store) as other:
            kernel = store.claim_kernel()
            dispatch_id, bystander = self.added(store, owner=kernel), self.added(store)
            whole = other.request_cancel(dispatch_id, None)
            some = other.request_cancel(dispatch_id, [3, 1])
            assert other.request_cancel(bystander, None) > some > whole > 0
            asked = [
                CancelRequest(whole, dispatch_id, None),
                CancelRequest(some, dispatch_id, (3, 1)),
            ]
            turn = Commit(nodes={dispatch_id: [NodeRecord(1, NodeStatus.SUBMITTING, key="k")]})
            assert store.commit(kernel, turn, 0) == asked
            assert store.nodes(dispatch_id, [1])[0].key is None, "nothing was written"
            assert store.commit(kernel, turn, whole) == asked[1:]
            assert store.cancel_requests(kernel, 0) == asked
            assert store.cancel_requests(kernel, some) == []
            assert store.commit(kernel, turn, some) == []
            assert [node.cancel_requested for node in store.nodes(dispatch_id)] == [True, True]

    def test_an_ended_dispatch_is_not_cancelled(self, make_store: StoreFactory) -> None:
        with self.opened(make_store) as store:
            kernel = store.claim_kernel()
            dispatch_id = self.added(store, owner=kernel, status=Status.COMPLETED)
            assert store.request_cancel(dispatch_id, None) == 0
            assert store.request_cancel(dispatch_id, [1]) == 0
            assert not store.dispatch(dispatch_id).cancel_requested
            assert store.cancel_requests(kernel, 0) == []

    def test_sequence_numbers_appear_in_order(self, make_store: StoreFactory) -> None:
        with self.opened(make_store) as store, self.opened(make_store) as reader:
            kernel = store.claim_kernel()
            ids = [self.added(store, owner=kernel) for _ in range(3)]

            def ask(dispatch_id: str) -> None:
                with self.opened(make_store) as mine:
                    for _ in range(15):
                        mine.request_cancel(dispatch_id, [1])

            seen: list[int] = []
            with ThreadPoolExecutor() as pool:
                askers = [pool.submit(ask, dispatch_id) for dispatch_id in ids]
                ended = False
                while not ended:
                    ended = all(asker.done() for asker in askers)
                    last = seen[-1] if seen else 0
                    seen.extend(item.seq for item in reader.cancel_requests(kernel, last))
                for asker in askers:
                    asker.result()
            assert len(seen) == 45, "a lower number appeared after a higher one"
