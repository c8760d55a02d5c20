"""What the kernel keeps to with an executor, and what it may ask of it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Capabilities", "Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the kernel keeps to. Seconds throughout.

    ``absent_grace``: a covered job must stay absent this long, in at least three polls, before
    it is lost. ``find_grace``: how long a look-up may lag behind a submission.
    """

    max_in_flight: int = 1000
    run_batch: int = 100
    poll_batch: int = 5000
    poll_min: float = 2.0
    poll_max: float = 60.0
    call_timeout: float = 60.0
    absent_grace: float = 60.0
    find_grace: float = 10.0
    cancel_grace: float = 30.0
    gather: float = 0.0  # how long ready tasks may wait for others to go with them
    pack: int = 1  # the most tasks in one job; only with ``capabilities.packing``


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the backend can do; the kernel never asks for the rest."""

    find: bool = False  # find() sees jobs by key
    idempotent: bool = False  # running a key twice is one job, by token or by claim
    push: bool = False  # poll() may wait until something changes
    logs: bool = False  # logs() works while the job runs
    packing: bool = False  # a job may carry several tasks
    cancel_task: bool = False  # one task of a packed job can be cancelled
    detached: bool = True  # jobs outlive the kernel's process
    claims: bool = False  # forbid() keeps a key from ever starting
    listing: bool = False  # list_jobs() names what runs for a store
    holds: bool = False  # results may stay with it; fetch() brings them, lacking() looks
