"""The transition table: what every event means in every status.

An entry is the name of a handler of :class:`~chelate.kernel.states.machine.Machine`, ``LATE`` (old
news, ignored) or ``BUG`` (impossible, raises :class:`~chelate.errors.MachineError`).
"""

from __future__ import annotations

from typing import Any

from chelate.kernel import events as ev
from chelate.model import NodeStatus

__all__ = ["BUG", "LATE", "TABLE"]

LATE = "late"
BUG = "bug"

S = NodeStatus


def _table() -> dict[tuple[NodeStatus, type[Any]], str]:
    """Every (status, event) pair. ``Cancel`` is decided in ``Machine._cancel`` for all at once."""
    live = (S.SUBMITTING, S.SUBMITTED, S.RUNNING, S.CANCELLING, S.UNCERTAIN)
    moves: dict[type[Any], tuple[str, tuple[NodeStatus, ...]]] = {
        ev.Accepted: ("_on_accepted", (S.SUBMITTING, S.CANCELLING, S.UNCERTAIN)),
        ev.Refused: ("_on_refused", (S.SUBMITTING, S.SUBMITTED, S.RUNNING, S.CANCELLING)),
        ev.Deferred: ("_on_deferred", (S.SUBMITTING, S.CANCELLING)),
        ev.Unsure: ("_on_unsure", (S.SUBMITTING, S.CANCELLING)),
        ev.NotFound: ("_on_not_found", (S.SUBMITTING, S.CANCELLING)),
        ev.Unanswerable: ("_on_unanswerable", (S.SUBMITTING, S.CANCELLING)),
        ev.Started: ("_on_started", (S.SUBMITTING, S.SUBMITTED, S.RUNNING)),
        ev.Ended: ("_on_ended", live),
        ev.Gone: ("_on_gone", live),
        ev.Forbidden: ("_on_forbidden", (S.CANCELLING,)),
        ev.Stuck: ("_on_stuck", (S.READY, S.SUBMITTING, S.SUBMITTED, S.RUNNING, S.CANCELLING)),
        ev.TimedOut: ("_on_timed_out", (S.RUNNING, S.SUBMITTED)),
        ev.Due: ("_on_due", (S.BACKOFF,)),
        ev.Built: ("_on_built", live),
        ev.ChildEnded: ("_on_child_ended", (S.EXPANDED, S.CANCELLING)),
        ev.Reused: ("_on_reused", (S.WAITING, S.READY)),
    }
    # Before anything was sent there can be no news of this attempt.
    impossible = {
        (S.WAITING, event) for event in (ev.Accepted, ev.Ended, ev.Started, ev.Built, ev.Unsure)
    }
    table: dict[tuple[NodeStatus, type[Any]], str] = {}
    for event, (handler, statuses) in moves.items():
        for status in S:
            if status in statuses:
                table[status, event] = handler
            else:
                table[status, event] = BUG if (status, event) in impossible else LATE
    return table


TABLE = _table()
