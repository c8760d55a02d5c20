"""What became of a job: Slurm's state and the host's own record, put together.

A record written by the job's supervisor decides. Without one, Slurm's state gives the reason. A
state that is not known here never ends anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from chelate.api import Reason
from chelate.remote import Sight
from chelate_slurm.answers import Row

__all__ = ["ACTIVE", "ENDED", "WAITING", "Verdict", "is_impossible", "verdict"]

WAITING = frozenset(
    [
        "PENDING",
        "CONFIGURING",
        "REQUEUED",
        "REQUEUE_FED",
        "REQUEUE_HOLD",
        "RESV_DEL_HOLD",
        "SPECIAL_EXIT",
        "POWER_UP_NODE",
    ]
)
RUNNING = frozenset(
    ["RUNNING", "RESIZING", "SIGNALING", "STAGE_OUT", "COMPLETING", "SUSPENDED", "STOPPED"]
)
ACTIVE = WAITING | RUNNING
_REASONS = {
    "TIMEOUT": Reason.TIMEOUT,
    "DEADLINE": Reason.TIMEOUT,
    "OUT_OF_MEMORY": Reason.OOM,
    "PREEMPTED": Reason.PREEMPTED,
    "NODE_FAIL": Reason.NODE_FAIL,
    "BOOT_FAIL": Reason.NODE_FAIL,
    "LAUNCH_FAILED": Reason.LAUNCH_FAIL,
    "RECONFIG_FAIL": Reason.LAUNCH_FAIL,
    "CANCELLED": Reason.CANCELLED_BY_BACKEND,
}
ENDED = frozenset(_REASONS) | {"COMPLETED", "FAILED"}
_SENTENCES = {
    Reason.TIMEOUT: "reached its time limit and was ended by Slurm; ask for more with "
    "Resources(time=...) or time=",
    Reason.OOM: "used more memory than it had asked for and was ended; ask for more with "
    "Resources(mem=...) or mem=",
    Reason.PREEMPTED: "had to make room for a job of higher priority",
    Reason.NODE_FAIL: "was lost with its node",
    Reason.LAUNCH_FAIL: "could not be started on its node",
    Reason.CANCELLED_BY_BACKEND: "was cancelled outside chelate, by scancel or an administrator",
    Reason.CANCELLED_BY_USER: "was cancelled",
    Reason.RESULT_MISSING: "ended, but left no result; root= must be on a file system that the "
    "nodes and the login node share",
    Reason.ENV_MISSING: "found no interpreter on its node; name one that exists there with "
    "python=, conda= or venv=, and see that root= is shared",
    Reason.UNSCHEDULABLE: "can never run as it is",
    Reason.CRASHED: "was killed on its node",
}

# Why a pending job will stay so for good, unless an administrator changes the cluster.
_IMPOSSIBLE = {
    "AccountNotAllowed": "the account may not use the partition",
    "AssocGrpBillingMinutes": "the account's allotment is used up",
    "AssocGrpCPUMinutesLimit": "the account's allotment is used up",
    "BadConstraints": "no node has what it asks for",
    "DependencyNeverSatisfied": "a job that it depends on has failed",
    "InvalidAccount": "the account does not exist, or is not yours",
    "InvalidQOS": "the QOS does not exist, or is not yours",
    "PartitionConfig": "it asks for more than the partition has",
    "PartitionNodeLimit": "it asks for more nodes than the partition allows",
    "PartitionTimeLimit": "it asks for more time than the partition allows",
    "QOSNotAllowed": "the QOS may not use the partition",
    "QOSTimeLimit": "it asks for more time than the QOS allows",
    "QOSUsageThreshold": "the QOS has reached its threshold",
    "QOSMaxCpuPerJobLimit": "it asks for more processors than the QOS allows a job",
    "QOSMaxMemoryPerJob": "it asks for more memory than the QOS allows a job",
    "QOSMaxNodePerJobLimit": "it asks for more nodes than the QOS allows a job",
    "QOSMaxWallDurationPerJobLimit": "it asks for more time than the QOS allows",
    "AssocMaxWallDurationPerJobLimit": "it asks for more time than the account allows",
}

_MEMORY = re.compile(r"oom[-_ ]kill|out[- ]of[- ]memory|exceeded (?:job |step )?memory", re.I)
_NO_PYTHON = re.compile(
    r"cannot be seen on|exec: .*(?:not found|cannot execute)|bad interpreter"
    r"|/python[0-9.]*: No such file",
    re.I,
)
_LIMIT = re.compile(r"CANCELLED AT \S+ DUE TO TIME LIMIT", re.I)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a job ended that left no record of its own; ``message`` is for the user."""

    reason: Reason
    message: str


def is_impossible(row: Row) -> str:
    """Why a pending job will never start, in words; empty when it may."""
    if row.state != "PENDING":
        return ""
    return _IMPOSSIBLE.get(row.reason.partition(",")[0].strip(), "")


def verdict(
    row: Row, sight: Sight, log: str, said: str = "", *, asked: bool, waited: str = ""
) -> Verdict:
    """Why a job that Slurm calls ended left no record.

    Args:
        row: its last state.
        sight: what the host knows of it.
        log: the end of what Slurm printed.
        said: the end of what the environment and the prerun printed.
        asked: whether this kernel, or an earlier one, asked for its end.
        waited: why it was taken out of the queue as hopeless, when it was.
    """
    reason = _REASONS.get(row.state)
    if waited:
        reason = Reason.UNSCHEDULABLE
    elif reason is Reason.CANCELLED_BY_BACKEND:
        if asked or sight.cancelled:
            reason = Reason.CANCELLED_BY_USER
        elif _LIMIT.search(log):
            reason = Reason.TIMEOUT
    elif reason is None and (asked or sight.cancelled):
        reason = Reason.CANCELLED_BY_USER
    elif reason is None:
        reason = _of_failure(row, sight, log)
    parts = [f"Slurm job {row.id} {_SENTENCES[reason]}"]
    if waited:
        parts.append(f": {waited}")
    where = f" on node {row.node}" if row.node and row.node != "None" else ""
    parts.append(f" (state {row.state}{where}).")
    message = "".join(parts)
    if reason not in (Reason.CANCELLED_BY_USER, Reason.UNSCHEDULABLE):
        if said.strip():
            message += f"\nIts environment and prerun printed:\n{said.strip()}"
        if log.strip():
            message += f"\nIts log ends with:\n{log.strip()}"
    return Verdict(reason, message)


def _of_failure(row: Row, sight: Sight, log: str) -> Reason:
    """COMPLETED or FAILED without a record: the log and the claim tell more than the state."""
    if _MEMORY.search(log):
        return Reason.OOM
    if row.state == "COMPLETED":
        return Reason.RESULT_MISSING
    if sight.claimed:
        return Reason.CRASHED
    return Reason.ENV_MISSING if _NO_PYTHON.search(log) else Reason.LAUNCH_FAIL
