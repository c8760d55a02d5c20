"""Whether a failed attempt is followed by another, and when."""

from __future__ import annotations

from typing import Any

from chelate.model import NodeRecord, Reason, Retry

__all__ = ["verdict"]

_NEVER_RETRIED = frozenset(
    {
        Reason.INVALID_SPEC,
        Reason.UNSCHEDULABLE,
        Reason.ENV_MISMATCH,
        Reason.ENV_MISSING,
        Reason.PLUGIN,
        Reason.UNPICKLABLE,
        Reason.DEPTH,
        Reason.AUTH,
        Reason.RESULT_CORRUPT,
    }
)


def verdict(record: NodeRecord, retry: Retry, reason: Reason, counted: bool) -> float | None:
    """Seconds to wait before the next attempt, or None when the task has failed for good.

    Losses by the infrastructure have a budget of their own; an attempt that is not ``counted``
    costs none.
    """
    if reason in _NEVER_RETRIED:
        return None
    if not counted:
        return 0.0
    blamed = sum(_same_budget(entry, reason) for entry in record.attempts)
    budget = retry.infrastructure if reason.infrastructure else retry.times
    return retry.wait(blamed + 1) if blamed < budget else None


def _same_budget(entry: dict[str, Any], reason: Reason) -> bool:
    if not entry.get("counted", True):
        return False
    return Reason(entry["reason"]).infrastructure == reason.infrastructure
