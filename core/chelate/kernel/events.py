"""Facts in, orders out: what the state machine is told and what it asks for.

Every event that concerns an attempt carries the attempt's number, so that news of attempt 1
cannot touch attempt 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chelate.model import Reason, Status, ValueRef

__all__ = [
    "Accepted",
    "Built",
    "Cancel",
    "CancelChild",
    "CancelJob",
    "ChildEnded",
    "Deferred",
    "Due",
    "Effect",
    "Ended",
    "Event",
    "Forbidden",
    "Gone",
    "LookUp",
    "NotFound",
    "Refused",
    "Reused",
    "Run",
    "StartTimer",
    "Started",
    "Stuck",
    "TimedOut",
    "Unanswerable",
    "Unsure",
    "Watch",
]


# -- events ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Accepted:
    """The backend has the job under ``handle`` (JSON)."""

    node: int
    attempt: int
    handle: dict[str, Any]


@dataclass(slots=True)
class Refused:
    """The backend, a policy or the kernel refuses the task for good."""

    node: int
    attempt: int
    reason: Reason
    message: str


@dataclass(slots=True)
class Deferred:
    """Nothing was accepted; try the same attempt again."""

    node: int
    attempt: int
    message: str


@dataclass(slots=True)
class Unsure:
    """Nobody knows whether the backend has it; it must be looked up."""

    node: int
    attempt: int
    message: str


@dataclass(slots=True)
class NotFound:
    """The backend does not have the key. ``resend`` it under the same key when the backend tells
    duplicates apart; otherwise the attempt is over. ``certain``: no request can still arrive."""

    node: int
    attempt: int
    resend: bool
    certain: bool = True


@dataclass(slots=True)
class Unanswerable:
    """It may have run, and the backend offers no way to tell."""

    node: int
    attempt: int
    message: str


@dataclass(slots=True)
class Started:
    """The backend says it runs, since ``at`` (seconds since the epoch)."""

    node: int
    attempt: int
    at: float


@dataclass(slots=True)
class Ended:
    """The task ended and its outcome is stored: ``output`` on success, else ``reason``."""

    node: int
    attempt: int
    ok: bool
    output: ValueRef | None = None
    reason: Reason | None = None
    error: str | None = None
    exception: str | None = None
    stdout: str | None = None
    stderr: str | None = None
    started_at: float | None = None
    ended_at: float | None = None
    usage: dict[str, Any] | None = None
    handle: dict[str, Any] | None = None  # of a job too short to be worth an Accepted


@dataclass(slots=True)
class Gone:
    """The job is gone and nothing will come. ``counted`` is False when the kernel's own death
    took the job with it, which is no reason to use up a retry."""

    node: int
    attempt: int
    reason: Reason
    message: str
    counted: bool = True


@dataclass(slots=True)
class Forbidden:
    """The attempt's claim is taken, so it never starts."""

    node: int
    attempt: int


@dataclass(slots=True)
class Stuck:
    """Nothing comes of it at present, and why: it was asked ``tries`` times to stop, or its
    executor cannot be used or has put it off. Without a message: that is over."""

    node: int
    attempt: int
    message: str
    tries: int = 0


@dataclass(slots=True)
class Cancel:
    """A recorded wish to cancel these nodes (None: all)."""

    nodes: tuple[int, ...] | None


@dataclass(slots=True)
class TimedOut:
    """The attempt's time limit has passed."""

    node: int
    attempt: int


@dataclass(slots=True)
class Due:
    """The wait before the next attempt is over."""

    node: int
    attempt: int


@dataclass(slots=True)
class Built:
    """The node's sub-workflow was built; its dispatch exists. The rest tells of the build."""

    node: int
    attempt: int
    child_id: str
    started_at: float | None = None
    stdout: str | None = None
    stderr: str | None = None


@dataclass(slots=True)
class ChildEnded:
    """The node's sub-dispatch ended."""

    node: int
    child_id: str
    status: Status
    output: ValueRef | None = None
    error: str | None = None


@dataclass(slots=True)
class Reused:
    """The node needs no run: an equal one completed before."""

    node: int
    output: ValueRef
    origin: tuple[str, int]
    child_id: str | None = None


Event = (
    Accepted
    | Refused
    | Deferred
    | Unsure
    | NotFound
    | Unanswerable
    | Started
    | Ended
    | Gone
    | Forbidden
    | Stuck
    | Cancel
    | TimedOut
    | Due
    | Built
    | ChildEnded
    | Reused
)


# -- effects ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Run:
    """Hand the node's current attempt to its lane."""

    node: int


@dataclass(slots=True)
class Watch:
    """Poll a handle that is known from before a restart."""

    node: int


@dataclass(slots=True)
class LookUp:
    """Ask the backend for the attempt's key."""

    node: int


@dataclass(slots=True)
class CancelJob:
    """Ask the backend to stop the job, again and again until it is gone."""

    node: int


@dataclass(slots=True)
class CancelChild:
    """Cancel the node's sub-dispatch."""

    node: int
    child_id: str


@dataclass(slots=True)
class StartTimer:
    """Send ``event`` after ``seconds`` of monotonic time."""

    event: TimedOut | Due
    seconds: float


Effect = Run | Watch | LookUp | CancelJob | CancelChild | StartTimer
