"""How the nodes of a dispatch move: offered, sent, stopped, tried again, ended."""

from __future__ import annotations

from collections import deque
from typing import Any

from chelate.graph import Graph
from chelate.kernel import events as ev
from chelate.kernel.states.ledger import Ledger
from chelate.kernel.states.retries import verdict
from chelate.model import NodeRecord, NodeStatus, Reason

__all__ = ["Moves"]

S = NodeStatus


class Moves(Ledger):
    """Moves keep the indexes (pending counts, ready queues) right, whoever asks for them."""

    def __init__(self, dispatch_id: str, graph: Graph, lane_of: list[str], token: str) -> None:
        super().__init__(graph)
        self.dispatch_id = dispatch_id
        self.ready: dict[str, deque[int]] = {}
        self.offered: list[int] | None = None  # nodes that became ready for the first time
        self._lane_of = lane_of
        self._children: dict[int, list[int]] = {}
        self._pending: dict[int, int] = {}
        self._unsent: set[int] = set()
        self._resent: set[int] = set()  # sent before under the same key
        self._resumed: set[int] = set()  # looked up because an earlier kernel stopped
        self._now = 0.0
        self._token = token
        for node_id, parents in graph.dependencies().items():
            self._pending[node_id] = len(parents)
            for parent in parents:
                self._children.setdefault(parent, []).append(node_id)

    def _offer(self, node_id: int) -> None:
        record = self.records[node_id]
        stored = record.status is not S.WAITING
        self._move(record, S.READY, store=stored)
        lane = self._lane_of[self.nodes[node_id].policy]
        self.ready.setdefault(lane, deque()).append(node_id)
        if self.offered is not None and record.attempt == 0:
            self.offered.append(node_id)

    def _finish(self, record: NodeRecord, status: NodeStatus, reason: Reason | None) -> None:
        record.ended_at = record.ended_at or self._now
        record.reason = reason.value if reason else None
        record.due = None
        self._unsent.discard(record.node_id)
        self._move(record, status)
        self._propagate(record.node_id, record)

    def _propagate(self, node_id: int, record: NodeRecord) -> None:
        """Tell what depends on an ended node, by work list: chains may be 10,000 long."""
        if record.status is S.COMPLETED:
            for child in self._children.get(node_id, ()):
                self._pending[child] -= 1
                if not self._pending[child] and self.records[child].status is S.WAITING:
                    self._offer(child)
            return
        cancelled = record.status in (S.CANCELLED, S.CANCELLING)
        blame = f"{self.nodes[node_id].name} ({node_id})"
        stack = list(self._children.get(node_id, ()))
        while stack:
            child = stack.pop()
            waiting = self.records[child]
            if waiting.status is not S.WAITING:
                continue
            waiting.ended_at = waiting.started_at = self._now
            if cancelled:
                waiting.cancel_requested = True
                waiting.reason = Reason.CANCELLED_BY_USER.value
                waiting.error = f"Cancelled, because {blame} was cancelled."
                self._move(waiting, S.CANCELLED)
            else:
                waiting.reason = Reason.UPSTREAM.value
                word = "was skipped" if record.status is S.SKIPPED else "failed"
                waiting.error = f"Skipped, because {blame} {word}."
                self._move(waiting, S.SKIPPED)
            stack.extend(self._children.get(child, ()))

    def _begin(self, record: NodeRecord, *, again: bool = False) -> None:
        """Intend to send the attempt; ``again`` when a request of it may be on its way."""
        record.executor = self._lane_of[self.nodes[record.node_id].policy]
        record.handle = None
        record.started_at = self._now
        record.ended_at = None
        record.due = None
        self._resumed.discard(record.node_id)
        if record.reason is not None or again:
            record.error = None  # of an earlier attempt; why this one waited is still of interest
        record.reason = record.exception = None
        record.stdout = record.stderr = record.usage = None
        (self._resent.add if again else self._resent.discard)(record.node_id)
        self._unsent.add(record.node_id)
        self._move(record, S.SUBMITTING)
        self._effects.append(ev.Run(record.node_id))

    def _stop(self, record: NodeRecord, reason: Reason) -> None:
        if record.status is S.EXPANDED:
            assert record.child_id is not None
            self._effects.append(ev.CancelChild(record.node_id, record.child_id))
        elif record.status is not S.CANCELLING or record.cancel_requested:
            self._effects.append(ev.CancelJob(record.node_id))
        record.reason = reason.value
        self._move(record, S.CANCELLING)

    def _too_long(self, record: NodeRecord) -> str:
        limit = self.policy(record.node_id).timeout
        return f"The task ran longer than its time limit of {limit:g} s."

    def _retry(self, record: NodeRecord, reason: Reason, message: str, counted: bool) -> None:
        """End the attempt; try again if its budget allows, else fail."""
        retry = self.policy(record.node_id).retry
        entry: dict[str, Any] = {
            "attempt": record.attempt,
            "reason": reason.value,
            "message": message[-2000:],
            "started_at": record.started_at,
            "ended_at": record.ended_at or self._now,
        }
        if not counted:
            entry["counted"] = False
        delay = verdict(record, retry, reason, counted, self.nodes[record.node_id].kind)
        record.error = message
        if delay is None:
            self._finish(record, S.FAILED, reason)
            return
        record.attempts = [*record.attempts, entry]
        record.reason = reason.value
        if delay <= 0:
            self._offer(record.node_id)
            return
        record.due = self._now + delay
        self._move(record, S.BACKOFF)
        self._effects.append(ev.StartTimer(ev.Due(record.node_id, record.attempt), delay))
