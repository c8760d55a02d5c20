"""One turn's decisions: machines decide until nothing moves, and what came of it is gathered."""

from __future__ import annotations

from collections.abc import Collection

from chelate.contracts.store import Commit
from chelate.kernel import events as ev
from chelate.kernel.intake import Intake
from chelate.kernel.lane_table import LaneTable, Orders
from chelate.kernel.live import LiveDispatch
from chelate.model import NodeRecord

__all__ = ["Turn"]


class Turn:
    """What one turn changes, ends, orders and wants done, before anything of it is stored.

    Args:
        lives: the kernel's dispatches by id; ended ones are taken out.
        lanes: where ready nodes go.
        intake: blobs and sub-dispatches that came with the turn's outcomes.
        orders: what the lanes are told once the turn is stored.
    """

    def __init__(
        self, lives: dict[str, LiveDispatch], lanes: LaneTable, intake: Intake, orders: Orders
    ) -> None:
        self._lives = lives
        self._lanes = lanes
        self._intake = intake
        self.orders = orders
        self.changed: dict[str, dict[int, NodeRecord]] = intake.kept
        self.effects: list[tuple[LiveDispatch, ev.Effect]] = []
        self.over: list[LiveDispatch] = []
        self._new = {live.record.dispatch_id for live in intake.created}
        for dispatch_id, rows in intake.kept.items():
            lanes.count(dispatch_id, list(rows.values()))
        for live in intake.created:
            lives[live.record.dispatch_id] = live
            live.begin(live.world.time())
            live.machine.start()

    def commit(self) -> Commit | None:
        """What has to be stored; None when nothing has."""
        lives = [*self._lives.values(), *self.over]
        rows = [live.record for live in lives if live.changed]
        if not (self.changed or rows):
            return None
        return Commit(
            blobs=self._intake.blobs,
            nodes={key: list(records.values()) for key, records in self.changed.items()},
            dispatches=[row for row in rows if row.dispatch_id not in self._new],
            created=[row for row in rows if row.dispatch_id in self._new],
            held=self._intake.held,
            epochs={live.record.dispatch_id: live.record.epoch for live in lives},
        )

    def drop(self, commit: Commit, lost: Collection[str]) -> set[str]:
        """Dispatches turned out to be another kernel's: forget them and their sub-dispatches."""
        gone = {*lost, *(r.dispatch_id for r in commit.created if r.parent_id in lost)}
        for dispatch_id in gone:
            self._lives.pop(dispatch_id, None)
            self._lanes.forget(dispatch_id)
            self.changed.pop(dispatch_id, None)
            commit.nodes.pop(dispatch_id, None)
        self.over = [live for live in self.over if live.record.dispatch_id not in gone]
        self.orders.keep_results(gone)
        commit.dispatches = [r for r in commit.dispatches if r.dispatch_id not in gone]
        commit.created = [r for r in commit.created if r.dispatch_id not in gone]
        return gone

    def settle_down(self) -> None:
        """Let machines decide until nothing moves: take ready nodes, end dispatches."""
        moving = True
        while moving:
            moving = False
            for live in self._lives.values():
                live.decide()
            self._lanes.take(list(self._lives.values()))
            for live in list(self._lives.values()):
                records, orders = live.machine.drain()
                if records:
                    moving = True
                    if live.reuse is not None and live.reuse.audits:
                        for record in records:
                            live.reuse.audited(record)
                    self._lanes.count(live.record.dispatch_id, records)
                    self.changed.setdefault(live.record.dispatch_id, {}).update(
                        {record.node_id: record for record in records}
                    )
                for order in orders:
                    if isinstance(order, ev.CancelChild):
                        self._cancel_child(live, order)
                    else:
                        self.effects.append((live, order))
                if records or live.changed:
                    live.refresh()
                if live.over:
                    moving = True
                    self._end(live)

    def _cancel_child(self, parent: LiveDispatch, order: ev.CancelChild) -> None:
        child = self._lives.get(order.child_id)
        if child is None:
            self.effects.append((parent, order))  # another kernel's: ask it through the store
            return
        child.record.cancel_requested = True
        child.changed = True
        child.machine.handle([ev.Cancel(None)], child.world.time())

    def _end(self, live: LiveDispatch) -> None:
        live.finish(live.world.time())
        self.over.append(live)
        record = live.record
        del self._lives[record.dispatch_id]
        parent = self._lives.get(record.parent_id or "")
        if parent is not None and record.parent_node is not None:
            ended = ev.ChildEnded(
                record.parent_node, record.dispatch_id, record.status, record.result, record.error
            )
            parent.machine.handle([ended], parent.world.time())
