"""The books of one dispatch: a record per node, a count per status, and what has changed."""

from __future__ import annotations

from collections import Counter

from chelate.graph import Graph, Node
from chelate.kernel import events as ev
from chelate.model import FINAL, NodeRecord, NodeStatus, Status, TaskPolicy

__all__ = ["Ledger"]

S = NodeStatus


class Ledger:
    """Records, counts kept with every move, and the changes and effects not yet fetched."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: dict[int, Node] = {node.id: node for node in graph.tasks()}
        self.records: dict[int, NodeRecord] = {i: NodeRecord(i) for i in self.nodes}
        self.cancel_requested = False
        self.counts: Counter[NodeStatus] = Counter({S.WAITING: len(self.nodes)})
        self._dirty: dict[int, None] = {}
        self._effects: list[ev.Effect] = []

    def _move(self, record: NodeRecord, status: NodeStatus, *, store: bool = True) -> None:
        self.counts[record.status] -= 1
        self.counts[status] += 1
        record.status = status
        if store:
            self._dirty[record.node_id] = None

    def drain(self) -> tuple[list[NodeRecord], list[ev.Effect]]:
        """Records changed since the last drain, and the effects to carry out once stored."""
        changed = [self.records[node_id] for node_id in self._dirty]
        effects = self._effects
        self._dirty = {}
        self._effects = []
        return changed, effects

    def policy(self, node_id: int) -> TaskPolicy:
        """How the node is to be treated."""
        return self.graph.policies[self.nodes[node_id].policy]

    @property
    def open(self) -> int:
        """How many nodes have not ended."""
        return len(self.nodes) - sum(self.counts[status] for status in FINAL)

    @property
    def status(self) -> Status:
        """The dispatch's status as a function of its nodes."""
        if self.open:
            return Status.CANCELLING if self.cancel_requested else Status.RUNNING
        if self.counts[S.FAILED] or self.counts[S.SKIPPED]:
            return Status.FAILED
        if self.counts[S.CANCELLED]:
            return Status.CANCELLED
        return Status.COMPLETED
