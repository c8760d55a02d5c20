"""What to ask for when a stored attempt is taken over after a restart."""

from __future__ import annotations

from chelate.kernel import events as ev
from chelate.model import NodeRecord, NodeStatus, TaskPolicy

__all__ = ["unresolved"]

S = NodeStatus


def unresolved(record: NodeRecord, policy: TaskPolicy, now: float) -> list[ev.Effect]:
    """The effects that find out what became of an attempt. ``now`` is seconds since the epoch.

    Waits are bounded by the policy, whatever the wall clock did while nobody was there.
    """
    node_id, status = record.node_id, record.status
    if status is S.CANCELLING and record.child_id is not None:
        # Its own job ended when the sub-workflow was built.
        return [ev.CancelChild(node_id, record.child_id)]
    if status is S.SUBMITTING:
        return [ev.LookUp(node_id)]
    if status is S.CANCELLING:
        ask: ev.Effect = ev.LookUp(node_id) if record.handle is None else ev.Watch(node_id)
        return [ask, ev.CancelJob(node_id)]
    if status is S.SUBMITTED or status is S.RUNNING:
        effects: list[ev.Effect] = [ev.Watch(node_id)]
        if status is S.RUNNING and record.due is not None:
            left = min(max(0.0, record.due - now), policy.timeout or 0.0)
            effects.append(ev.StartTimer(ev.TimedOut(node_id, record.attempt), left))
        return effects
    if status is S.BACKOFF:
        left = min(max(0.0, (record.due or 0.0) - now), policy.retry.max_delay)
        return [ev.StartTimer(ev.Due(node_id, record.attempt), left)]
    return []
