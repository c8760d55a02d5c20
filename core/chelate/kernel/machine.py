"""The state machine of one dispatch: events in, changed records and effects out.

It is pure: no I/O, no clock (time comes with the call), no logging. Every pair of status and
event is decided in :data:`~chelate.kernel.transitions.TABLE`. Indexes (pending counts, ready
queues) are kept, never rescanned, so an event costs the same in a graph of ten nodes and of a
hundred thousand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from chelate.errors import MachineError
from chelate.graph import Graph
from chelate.kernel import events as ev
from chelate.kernel.ledger import Ledger
from chelate.kernel.resuming import unresolved
from chelate.kernel.retries import verdict
from chelate.kernel.transitions import BUG, LATE, TABLE
from chelate.model import FINAL, NodeRecord, NodeStatus, Reason, Status

__all__ = ["Machine"]

S = NodeStatus
_UNSENT = frozenset({S.WAITING, S.READY, S.BACKOFF})


class Machine(Ledger):
    """The nodes of one dispatch and what may happen to them.

    ``records`` are live: the caller stores those named by :meth:`drain` and must not change
    them. ``lane_of`` maps a policy index to the name of the lane that runs it. ``token`` is
    random, so that no key is ever made twice, whoever takes the dispatch over.
    """

    def __init__(self, dispatch_id: str, graph: Graph, lane_of: list[str], token: str) -> None:
        super().__init__(graph)
        self.dispatch_id = dispatch_id
        self.ready: dict[str, deque[int]] = {}
        self.offered: list[int] | None = None  # nodes that became ready for the first time
        self._lane_of = lane_of
        self._children: dict[int, list[int]] = {}
        self._pending: dict[int, int] = {}
        self._unsent: set[int] = set()
        self._resumed: set[int] = set()  # looked up because an earlier kernel stopped
        self._now = 0.0
        self._token = token
        for node_id, parents in graph.dependencies().items():
            self._pending[node_id] = len(parents)
            for parent in parents:
                self._children.setdefault(parent, []).append(node_id)

    # -- entry points -------------------------------------------------------------------------

    def start(self) -> None:
        """Offer every node whose inputs are all there."""
        for node_id, count in self._pending.items():
            if not count and self.records[node_id].status is S.WAITING:
                self._offer(node_id)

    def resume(self, records: Iterable[NodeRecord], now: float) -> None:
        """Take over stored records after a restart and ask for whatever is unresolved."""
        self._now = now
        for record in records:
            if record.node_id not in self.records:
                continue  # the node that built this graph
            self.counts[self.records[record.node_id].status] -= 1
            self.counts[record.status] += 1
            self.records[record.node_id] = record
        for record in list(self.records.values()):
            if record.status is S.COMPLETED:
                for child in self._children.get(record.node_id, ()):
                    self._pending[child] -= 1
        for record in list(self.records.values()):
            self._resume_one(record)
        self.start()
        self._cancel_asked_meanwhile()

    def _cancel_asked_meanwhile(self) -> None:
        """Act on cancels that were recorded while no kernel owned the dispatch."""
        asked = [
            record
            for record in self.records.values()
            if record.cancel_requested
            and record.status not in FINAL
            and record.status is not S.CANCELLING
        ]
        for record in asked:
            record.cancel_requested = False
        self._cancel(ev.Cancel(tuple(record.node_id for record in asked)))

    def _resume_one(self, record: NodeRecord) -> None:
        node_id, status = record.node_id, record.status
        if status is S.READY:
            self._move(record, S.WAITING, store=False)
        elif status in FINAL:
            if status is not S.COMPLETED:
                self._propagate(node_id, record)
        else:
            effects = unresolved(record, self.policy(node_id), self._now)
            self._effects += effects
            if any(type(effect) is ev.LookUp for effect in effects):
                self._resumed.add(node_id)

    def handle(self, events: Iterable[ev.Event], now: float) -> None:
        """Apply events in order. ``now`` is seconds since the epoch, for display only."""
        self._now = now
        for event in events:
            if isinstance(event, ev.Cancel):
                self._cancel(event)
                continue
            record = self.records.get(event.node)
            if record is None and event.node < 0:
                continue  # news of the node that built this graph
            if record is None:
                raise MachineError(f"{type(event).__name__} for node {event.node}, unknown.")
            attempt = getattr(event, "attempt", record.attempt)
            if attempt != record.attempt:
                continue
            entry = TABLE[record.status, type(event)]
            if entry == LATE:
                continue
            if entry == BUG:
                raise MachineError(
                    f"Impossible: {event} while node {event.node} of dispatch "
                    f"{self.dispatch_id} is {record.status}."
                )
            getattr(self, entry)(record, event)

    def take(self, lane: str, limit: int, now: float | None = None) -> list[int]:
        """Move up to ``limit`` ready nodes of a lane to SUBMITTING; their Run effects follow."""
        self._now = self._now if now is None else now
        queue = self.ready.get(lane)
        taken: list[int] = []
        while queue and len(taken) < limit:
            node_id = queue.popleft()
            record = self.records[node_id]
            if record.status is not S.READY:
                continue
            record.attempt += 1
            record.key = f"{self.dispatch_id}:{node_id}:{record.attempt}:{self._token}"
            self._begin(record)
            taken.append(node_id)
        return taken

    def _begin(self, record: NodeRecord) -> None:
        record.executor = self._lane_of[self.nodes[record.node_id].policy]
        record.handle = None
        record.started_at = self._now
        record.ended_at = None
        record.due = None
        self._resumed.discard(record.node_id)
        record.reason = record.error = record.exception = None
        record.stdout = record.stderr = record.usage = None
        self._unsent.add(record.node_id)
        self._move(record, S.SUBMITTING)
        self._effects.append(ev.Run(record.node_id))

    def sent(self, node_id: int) -> bool:
        """The intent is committed; whether the attempt may still be handed to its lane."""
        if node_id in self._unsent:
            self._unsent.discard(node_id)
            return self.records[node_id].status is S.SUBMITTING
        return False

    # -- moves --------------------------------------------------------------------------------

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

    # -- cancelling ---------------------------------------------------------------------------

    def _cancel(self, event: ev.Cancel) -> None:
        if event.nodes is None:
            self.cancel_requested = True
            targets: Iterable[int] = list(self.records)
        else:
            targets = [node_id for node_id in event.nodes if node_id in self.records]
        for node_id in targets:
            record = self.records[node_id]
            status = record.status
            if status in FINAL or record.cancel_requested:
                continue
            record.cancel_requested = True
            if status in _UNSENT or node_id in self._unsent or status is S.UNCERTAIN:
                record.error = None
                self._finish(record, S.CANCELLED, Reason.CANCELLED_BY_USER)
            else:
                self._stop(record, Reason.CANCELLED_BY_USER)
                self._propagate(node_id, record)

    def _stop(self, record: NodeRecord, reason: Reason) -> None:
        if record.status is S.EXPANDED:
            assert record.child_id is not None
            self._effects.append(ev.CancelChild(record.node_id, record.child_id))
        elif record.handle is not None and record.status is not S.CANCELLING:
            self._effects.append(ev.CancelJob(record.node_id))
        record.reason = reason.value
        self._move(record, S.CANCELLING)

    # -- handlers, named in TABLE -------------------------------------------------------------

    def _on_accepted(self, record: NodeRecord, event: ev.Accepted) -> None:
        record.handle = event.handle
        if record.status is S.CANCELLING:
            self._effects.append(ev.CancelJob(record.node_id))
            self._dirty[record.node_id] = None
        else:
            self._move(record, S.SUBMITTED)

    def _on_refused(self, record: NodeRecord, event: ev.Refused) -> None:
        if record.status is S.CANCELLING and record.cancel_requested:
            self._finish(record, S.CANCELLED, Reason.CANCELLED_BY_USER)
        else:
            record.error = event.message
            self._finish(record, S.FAILED, event.reason)

    def _on_deferred(self, record: NodeRecord, event: ev.Deferred) -> None:
        if record.status is S.CANCELLING:
            self._finish(record, S.CANCELLED, Reason.CANCELLED_BY_USER)
        else:
            record.attempt -= 1  # it never left, so its number is free again
            self._offer(record.node_id)

    def _on_unsure(self, record: NodeRecord, event: ev.Unsure) -> None:
        record.error = event.message
        self._dirty[record.node_id] = None
        self._effects.append(ev.LookUp(record.node_id))

    def _on_not_found(self, record: NodeRecord, event: ev.NotFound) -> None:
        if record.status is S.CANCELLING:
            self._finish(record, S.CANCELLED, Reason.CANCELLED_BY_USER)
        elif event.resend:
            self._begin(record)
        else:
            stopped = record.node_id in self._resumed
            message = record.error or "The kernel stopped before the job was known."
            self._retry(record, Reason.LOST, message, counted=not stopped)

    def _on_unanswerable(self, record: NodeRecord, event: ev.Unanswerable) -> None:
        record.error = event.message
        if record.status is S.CANCELLING:
            self._finish(record, S.CANCELLED, Reason.CANCELLED_BY_USER)
        else:
            self._move(record, S.UNCERTAIN)

    def _on_started(self, record: NodeRecord, event: ev.Started) -> None:
        if record.status is S.RUNNING:
            return
        record.started_at = event.at
        timeout = self.policy(record.node_id).timeout
        if timeout is not None:
            record.due = self._now + timeout
            timed_out = ev.TimedOut(record.node_id, record.attempt)
            self._effects.append(ev.StartTimer(timed_out, timeout))
        self._move(record, S.RUNNING)

    def _on_ended(self, record: NodeRecord, event: ev.Ended) -> None:
        record.handle = event.handle or record.handle
        record.started_at = event.started_at or record.started_at
        record.ended_at = event.ended_at or self._now
        record.stdout, record.stderr = event.stdout, event.stderr
        record.usage = event.usage
        if record.status is S.CANCELLING and record.cancel_requested:
            record.error = None
            self._finish(record, S.CANCELLED, Reason.CANCELLED_BY_USER)
        elif event.ok:
            record.output, record.error = event.output, None
            self._finish(record, S.COMPLETED, None)
        elif record.status is S.CANCELLING:
            self._retry(record, Reason.TIMEOUT, self._too_long(record), True)
        else:
            record.exception = event.exception
            reason = event.reason or Reason.UNKNOWN
            self._retry(record, reason, event.error or "", True)

    def _on_gone(self, record: NodeRecord, event: ev.Gone) -> None:
        if record.status is S.CANCELLING:
            if record.cancel_requested:
                self._finish(record, S.CANCELLED, Reason.CANCELLED_BY_USER)
                return
            self._retry(record, Reason.TIMEOUT, self._too_long(record), True)
        else:
            self._retry(record, event.reason, event.message, event.counted)

    def _too_long(self, record: NodeRecord) -> str:
        limit = self.policy(record.node_id).timeout
        return f"The task ran longer than its time limit of {limit:g} s."

    def _on_timed_out(self, record: NodeRecord, event: ev.TimedOut) -> None:
        self._stop(record, Reason.TIMEOUT)

    def _on_due(self, record: NodeRecord, event: ev.Due) -> None:
        self._offer(record.node_id)

    def _on_built(self, record: NodeRecord, event: ev.Built) -> None:
        record.child_id = event.child_id
        record.started_at = event.started_at or record.started_at
        record.stdout, record.stderr = event.stdout, event.stderr
        if record.status is S.CANCELLING and record.cancel_requested:
            self._effects.append(ev.CancelChild(record.node_id, event.child_id))
            self._dirty[record.node_id] = None
        else:
            self._move(record, S.EXPANDED)

    def _on_child_ended(self, record: NodeRecord, event: ev.ChildEnded) -> None:
        if event.child_id != record.child_id:
            return
        record.ended_at = self._now
        if record.status is S.CANCELLING or event.status is Status.CANCELLED:
            self._finish(record, S.CANCELLED, Reason.CANCELLED_BY_USER)
        elif event.status is Status.COMPLETED:
            record.output = event.output
            self._finish(record, S.COMPLETED, None)
        else:
            record.error = event.error
            self._finish(record, S.FAILED, Reason.UPSTREAM)

    def _on_reused(self, record: NodeRecord, event: ev.Reused) -> None:
        record.output, record.reused_from = event.output, event.origin
        record.child_id = event.child_id
        record.started_at = record.ended_at = self._now
        self._finish(record, S.COMPLETED, None)

    # -- retrying -----------------------------------------------------------------------------

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
        delay = verdict(record, retry, reason, counted)
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
