"""Whether a failed attempt is followed by another, and when."""

from __future__ import annotations

from chelate.graph import Kind
from chelate.model import NodeRecord, Reason, Retry

__all__ = ["is_loss", "verdict"]

_NEVER_RETRIED = frozenset(
    {
        Reason.INVALID_SPEC,
        Reason.UNSCHEDULABLE,
        Reason.ENV_MISMATCH,
        Reason.ENV_MISSING,
        Reason.PRERUN,
        Reason.QUOTA,
        Reason.PLUGIN,
        Reason.UNPICKLABLE,
        Reason.DEPTH,
        Reason.AUTH,
        Reason.RESULT_CORRUPT,
    }
)


_BUILDS = frozenset({Kind.SUBLATTICE, Kind.BUILD, Kind.RETURN})


def is_loss(reason: Reason, kind: str) -> bool:
    """Whether an attempt at a node of this kind was lost by the infrastructure.

    Nothing of the user's computes while a graph is built or a result put together, so a process
    that dies there was killed from outside.
    """
    return reason.infrastructure or (reason is Reason.CRASHED and kind in _BUILDS)


def verdict(
    record: NodeRecord, retry: Retry, reason: Reason, counted: bool, kind: str
) -> float | None:
    """Seconds to wait before the next attempt, or None when the task has failed for good.

    Losses by the infrastructure have a budget of their own; an attempt that is not ``counted``
    costs none.
    """
    if reason in _NEVER_RETRIED:
        return None
    if not counted:
        return 0.0
    lost = is_loss(reason, kind)
    blamed = sum(
        entry.get("counted", True) and is_loss(Reason(entry["reason"]), kind) == lost
        for entry in record.attempts
    )
    budget = retry.losses if lost else retry.times
    return retry.wait(blamed + 1) if blamed < budget else None
