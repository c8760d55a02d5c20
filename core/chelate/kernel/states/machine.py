"""The state machine of one dispatch: events in, changed records and effects out.

It is pure: no I/O, no clock (time comes with the call), no logging. Every pair of status and
event is decided in :data:`~chelate.kernel.states.transitions.TABLE`. Indexes (pending counts, ready
queues) are kept, never rescanned, so an event costs the same in a graph of ten nodes and of a
hundred thousand.
"""

from __future__ import annotations

from collections.abc import Iterable

from chelate.errors import MachineError
from chelate.kernel import events as ev
from chelate.kernel.states.moves import Moves
from chelate.kernel.states.resuming import unresolved
from chelate.kernel.states.transitions import BUG, LATE, TABLE
from chelate.model import FINAL, NodeRecord, NodeStatus, Reason, Status

__all__ = ["Machine"]

S = NodeStatus
_UNSENT = frozenset({S.WAITING, S.READY, S.BACKOFF})


class Machine(Moves):
    """The nodes of one dispatch and what may happen to them.

    ``records`` are live: the caller stores those named by :meth:`drain` and must not change
    them. ``lane_of`` maps a policy index to the name of the lane that runs it. ``token`` is
    random, so that no key is ever made twice, whoever takes the dispatch over.
    """

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
        elif record.handle is None and status in (S.SUBMITTED, S.RUNNING):
            self._move(record, S.SUBMITTING)  # news without a handle: it has to be found again
            self._effects.append(ev.LookUp(node_id))
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

    def sent(self, node_id: int) -> bool:
        """The intent is committed; whether the attempt may still be handed to its lane."""
        if node_id in self._unsent:
            self._unsent.discard(node_id)
            return self.records[node_id].status is S.SUBMITTING
        return False

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
            fresh = node_id in self._unsent and node_id not in self._resent
            if status in _UNSENT or fresh or status is S.UNCERTAIN:
                record.error = None
                self._finish(record, S.CANCELLED, Reason.CANCELLED_BY_USER)
            else:
                if node_id in self._unsent:  # sent before and not again: is it there?
                    self._effects.append(ev.LookUp(node_id))
                self._stop(record, Reason.CANCELLED_BY_USER)
                self._propagate(node_id, record)

    # -- handlers, named in TABLE -------------------------------------------------------------

    def _on_accepted(self, record: NodeRecord, event: ev.Accepted) -> None:
        record.handle, record.error = event.handle, None
        if record.status is S.CANCELLING:
            self._effects.append(ev.CancelJob(record.node_id))
            self._dirty[record.node_id] = None
        else:
            self._move(record, S.SUBMITTED)

    def _on_refused(self, record: NodeRecord, event: ev.Refused) -> None:
        asked = record.status is S.CANCELLING and record.cancel_requested
        if asked or event.reason is Reason.CANCELLED_BY_USER:
            self._cancelled(record)
        else:
            record.error = event.message
            self._finish(record, S.FAILED, event.reason)

    def _on_deferred(self, record: NodeRecord, event: ev.Deferred) -> None:
        if record.node_id in self._resent:
            # This request did not arrive, but an earlier one may.
            if record.status is S.CANCELLING:
                self._effects += [ev.LookUp(record.node_id), ev.CancelJob(record.node_id)]
            else:
                self._begin(record, again=True)
        elif record.status is S.CANCELLING:
            self._cancelled(record)
        else:
            record.attempt -= 1  # it never left, so its number is free again
            record.error = event.message
            self._offer(record.node_id)

    def _on_unsure(self, record: NodeRecord, event: ev.Unsure) -> None:
        record.error = event.message
        self._dirty[record.node_id] = None
        self._effects.append(ev.LookUp(record.node_id))

    def _on_not_found(self, record: NodeRecord, event: ev.NotFound) -> None:
        if record.status is S.CANCELLING:
            if event.certain:
                self._cancelled(record)
            else:
                self._effects.append(ev.CancelJob(record.node_id))
        elif event.resend:
            self._begin(record, again=True)
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
        record.started_at, record.error = event.at, None
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
        stopping = record.status is S.CANCELLING
        if event.ok and not (stopping and record.cancel_requested):
            record.output, record.error = event.output, None
            self._finish(record, S.COMPLETED, None)
        elif stopping:
            self._stopped(record)
        elif event.reason is Reason.CANCELLED_BY_USER:
            self._cancelled(record)
        else:
            record.exception = event.exception
            reason = event.reason or Reason.UNKNOWN
            self._retry(record, reason, event.error or "", True)

    def _on_gone(self, record: NodeRecord, event: ev.Gone) -> None:
        if record.status is S.CANCELLING:
            self._stopped(record)
        elif event.reason is Reason.CANCELLED_BY_USER:
            self._cancelled(record)
        else:
            self._retry(record, event.reason, event.message, event.counted)

    def _on_forbidden(self, record: NodeRecord, event: ev.Forbidden) -> None:
        self._stopped(record)

    def _stopped(self, record: NodeRecord) -> None:
        """Whoever asked for it to stop, it has."""
        if record.cancel_requested:
            self._cancelled(record)
        else:
            self._retry(record, Reason.TIMEOUT, self._too_long(record), True)

    def _cancelled(self, record: NodeRecord) -> None:
        record.error = None
        self._finish(record, S.CANCELLED, Reason.CANCELLED_BY_USER)

    def _on_stuck(self, record: NodeRecord, event: ev.Stuck) -> None:
        known = (record.error, record.cancel_tries)
        record.error = event.message or None
        record.cancel_tries = max(record.cancel_tries, event.tries)
        if known != (record.error, record.cancel_tries):
            self._dirty[record.node_id] = None

    def _on_timed_out(self, record: NodeRecord, event: ev.TimedOut) -> None:
        self._stop(record, Reason.TIMEOUT)

    def _on_due(self, record: NodeRecord, event: ev.Due) -> None:
        self._offer(record.node_id)

    def _on_built(self, record: NodeRecord, event: ev.Built) -> None:
        record.child_id, record.error = event.child_id, None
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
        record.child_id, record.error = event.child_id, None
        record.started_at = record.ended_at = self._now
        self._finish(record, S.COMPLETED, None)
