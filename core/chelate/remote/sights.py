"""What one host says about itself and about jobs, and what that means to the kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chelate.api import JobHandle, JobState, Observation, Reason, digest_bytes

__all__ = [
    "HostReport",
    "Prepared",
    "Sight",
    "is_pack",
    "job_id",
    "job_key",
    "key_on_host",
    "observation",
    "store_id",
]


def job_id(key: str) -> str:
    """The name of a job's directory: 40 hexadecimal characters that say nothing of the key."""
    return digest_bytes(key.encode())[:40]


def job_key(tasks: Sequence[str]) -> str:
    """What hosts know a job by: the key of its task, or of a pack's tasks a name for all.

    Two packs may begin with the same task, so the first one's key does not tell them apart.
    """
    if len(tasks) == 1:
        return tasks[0]
    return f"pack:{digest_bytes(' '.join(tasks).encode())[:40]}"


def is_pack(key: str) -> bool:
    """Whether hosts know a pack by this key."""
    return key.startswith("pack:")


def key_on_host(handle: JobHandle) -> str:
    """What the host knows this job by."""
    return job_key(handle.tasks or (handle.key,))


def store_id(store: str) -> str:
    """16 hexadecimal characters for a store, as in lists of its jobs."""
    return digest_bytes(store.encode())[:16]


@dataclass(frozen=True, slots=True)
class HostReport:
    """What a probe found; asked once per connection.

    ``root`` is the absolute root folder and ``agent`` the command that answers on the host;
    ``python`` is the version that tasks get (``"3.11.2"``) when it could be found out without
    prerun, ``executable`` its path and ``cloudpickle`` whether it has one of its own. ``free`` is
    in bytes; ``clock`` is how far the host's
    clock is ahead of ours, in seconds.
    """

    root: str
    agent: tuple[str, ...]
    python: str | None
    executable: str | None
    hostname: str
    boot_id: str
    platform: str
    cpus: int
    memory: int
    free: int
    clock: float
    cloudpickle: bool
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job whose directory is complete on the host, where it is known by ``key``.

    ``command`` runs it to its end in the foreground; a scheduler appends its own job id and how
    often it has restarted the job, each as one argument. Run twice, it runs the job once.
    """

    key: str
    id: str
    folder: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sight:
    """One job as seen by one successful look.

    ``known``: its directory is there. ``claimed``: a supervisor has started it, and ``native``,
    ``run``, ``host``, ``pid``, ``start_ticks`` and ``boot_id`` say which. ``forbidden``: it will
    never start. ``alive``: None when that cannot be told from here (claimed on another host).
    ``done``: its outcome can be collected. ``heartbeat_age`` and ``age`` (since it was prepared
    or started) are in seconds. ``cancelled``: a stop was asked for. ``tasks`` are those of the
    whole job, also where one of them was asked for, and ``job`` is its id. ``log`` is the end of
    what a supervisor that failed has left.
    """

    key: str
    known: bool = False
    claimed: bool = False
    forbidden: bool = False
    done: bool = False
    cancelled: bool = False
    alive: bool | None = None
    native: str = ""
    run: int = 0
    host: str = ""
    pid: int = 0
    start_ticks: int = 0
    boot_id: str = ""
    rebooted: bool = False
    started_at: float | None = None
    heartbeat_age: float | None = None
    age: float | None = None
    tasks: tuple[str, ...] = ()
    job: str = ""
    log: str = ""


def observation(sight: Sight, *, where: str, launch_grace: float = 60.0) -> Observation | None:
    """What a job started by us is doing; None when the host does not know it.

    Args:
        sight: the answer of :meth:`JobHost.look`.
        where: the host, for sentences.
        launch_grace: seconds after which a job that nobody claimed counts as never started;
            :meth:`JobHost.look` has taken its claim by then.
    """
    key = sight.key
    if sight.done:
        return Observation(key, JobState.ENDED, started_at=sight.started_at, run=sight.run)
    if sight.forbidden:
        if sight.cancelled:
            message = "The job was cancelled before it started."
            return Observation(key, JobState.KILLED, Reason.CANCELLED_BY_USER, message)
        message = f"The job did not start on {where} within {launch_grace:g} s. {sight.log}".strip()
        return Observation(key, JobState.KILLED, Reason.LAUNCH_FAIL, message)
    if not sight.claimed:
        return Observation(key, JobState.QUEUED) if sight.known else None
    if sight.alive is not False:
        return Observation(key, JobState.RUNNING, started_at=sight.started_at, run=sight.run)
    if sight.cancelled:
        message = "The job was cancelled."
        return Observation(key, JobState.KILLED, Reason.CANCELLED_BY_USER, message, run=sight.run)
    if sight.rebooted:
        message = f"{sight.host or where} was restarted while the job ran."
    else:
        message = f"The supervisor of the job on {where} was killed. {sight.log}".strip()
    return Observation(key, JobState.KILLED, Reason.NODE_FAIL, message, run=sight.run)
