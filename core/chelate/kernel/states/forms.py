"""Whether a stored row still says something: for who resumes it, and for who checks it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from chelate.contracts.executor import JobHandle
from chelate.kernel.keys import lane_ref
from chelate.model import DispatchRecord, NodeRecord, NodeStatus, Reason

__all__ = ["strange_moments", "strangeness"]

_REASONS = frozenset(reason.value for reason in Reason)
_IN_FLIGHT = frozenset(
    NodeStatus(name) for name in ("SUBMITTING", "SUBMITTED", "RUNNING", "CANCELLING", "UNCERTAIN")
)
_FUTURE = 1e11  # seconds since 1970


def strange_moments(record: DispatchRecord | NodeRecord) -> Iterator[str]:
    """Sentences about moments that are none."""
    for name in ("created_at", "started_at", "ended_at", "due"):
        moment = getattr(record, name, None)
        last = math.inf if name == "due" else _FUTURE
        if moment is not None and not (isinstance(moment, (int, float)) and 0 <= moment < last):
            yield f"Its {name} is {moment!r:.100}, which is no time."


def strangeness(row: NodeRecord) -> Iterator[str]:
    """Sentences about what no kernel has written into a task's row."""
    yield from strange_moments(row)
    for name in ("attempt", "cancel_tries"):
        number = getattr(row, name)
        if not isinstance(number, int) or number < 0:
            yield f"Its {name} is {number!r:.100}, which is no number of any."
    if row.status is NodeStatus.EXPANDED and row.child_id is None:
        yield "It is EXPANDED, and names no sub-dispatch."
    reasons = [row.reason] if row.reason is not None else []
    try:
        reasons += [entry["reason"] for entry in row.attempts]
    except (KeyError, TypeError):
        yield f"Its earlier attempts are {row.attempts!r:.200}, which are none."
    for reason in reasons:
        if not isinstance(reason, str) or reason not in _REASONS:
            yield f"A reason of it is {reason!r:.100}, which is none."
    if row.status in _IN_FLIGHT and (row.key or "").split(":")[1:3] != _numbers(row):
        yield f"It is {row.status}, and {row.key!r:.200} is no key of its attempt {row.attempt!r}."
    if row.handle is None:
        return
    if not _is_handle(row):
        yield f"Its job's handle {row.handle!r:.200} is none of its attempt {row.key!r:.200}."
    if not _is_lane(row.executor):
        yield f"Its executor is {row.executor!r:.100}, which names none."


def _numbers(row: NodeRecord) -> list[str]:
    return [str(row.node_id), str(row.attempt)]


def _is_handle(row: NodeRecord) -> bool:
    try:
        handle = JobHandle.from_json(row.handle or {})
    except (KeyError, TypeError, ValueError):
        return False
    named = all(isinstance(text, str) for text in (handle.key, handle.native_id, *handle.tasks))
    return named and (row.key is None or row.key == handle.key or row.key in handle.tasks)


def _is_lane(name: str | None) -> bool:
    try:
        return bool(lane_ref(name or "").name)
    except ValueError:
        return False
