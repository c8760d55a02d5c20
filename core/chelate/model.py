"""The nouns: statuses, reasons, resources, and the records that pass between the rooms.

Everything here is frozen, small and turns into JSON and back. Nothing here does I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from chelate.errors import ConfigError

__all__ = [
    "FINAL",
    "DispatchRecord",
    "ExecutorRef",
    "NodeRecord",
    "NodeStatus",
    "Reason",
    "Resources",
    "Retry",
    "Status",
    "TaskPolicy",
    "ValueRef",
    "parse_duration",
    "parse_memory",
]


class _Word(str, Enum):
    """A string constant that prints as its bare value on every supported Python."""

    __str__ = str.__str__
    __hash__ = str.__hash__  # Enum's own is Python code, and these are keys on the hot path

    def __format__(self, spec: str) -> str:
        return str.__format__(self.value, spec)


class Status(_Word):
    """The status of a dispatch, as users see it."""

    NEW_OBJ = "NEW_OBJ"
    RUNNING = "RUNNING"
    CANCELLING = "CANCELLING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def final(self) -> bool:
        """Whether the dispatch has ended."""
        return self in _FINAL_DISPATCH


_FINAL_DISPATCH = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED})


class NodeStatus(_Word):
    """The status of a node inside the kernel; the four in ``FINAL`` never change again."""

    WAITING = "WAITING"  # inputs are missing
    READY = "READY"  # may be sent
    BACKOFF = "BACKOFF"  # waits before the next attempt
    SUBMITTING = "SUBMITTING"  # intent committed; the backend may or may not know
    SUBMITTED = "SUBMITTED"  # the backend gave a handle
    RUNNING = "RUNNING"  # the backend says it runs
    EXPANDED = "EXPANDED"  # its sub-dispatch runs
    CANCELLING = "CANCELLING"  # asked to stop, not confirmed
    UNCERTAIN = "UNCERTAIN"  # may have run, and nobody can tell
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    SKIPPED = "SKIPPED"  # something it needs failed or was skipped


FINAL = frozenset(
    {NodeStatus.COMPLETED, NodeStatus.FAILED, NodeStatus.CANCELLED, NodeStatus.SKIPPED}
)


class Reason(_Word):
    """Why an attempt ended, was refused or is stuck."""

    USER_ERROR = "USER_ERROR"
    CRASHED = "CRASHED"  # the task's process died of a signal or exited
    OOM = "OOM"
    TIMEOUT = "TIMEOUT"
    PREEMPTED = "PREEMPTED"
    NODE_FAIL = "NODE_FAIL"
    LAUNCH_FAIL = "LAUNCH_FAIL"
    IMAGE_PULL = "IMAGE_PULL"
    ENV_MISMATCH = "ENV_MISMATCH"
    ENV_MISSING = "ENV_MISSING"
    PRERUN = "PRERUN"  # the user's commands before the task failed
    UNSCHEDULABLE = "UNSCHEDULABLE"
    QUOTA = "QUOTA"
    INVALID_SPEC = "INVALID_SPEC"
    PLUGIN = "PLUGIN"  # the executor's plugin is missing, broken or broke its contract
    AUTH = "AUTH"
    CANCELLED_BY_USER = "CANCELLED_BY_USER"
    CANCELLED_BY_BACKEND = "CANCELLED_BY_BACKEND"
    RESULT_MISSING = "RESULT_MISSING"
    RESULT_CORRUPT = "RESULT_CORRUPT"
    UNPICKLABLE = "UNPICKLABLE"  # the task returned something that cannot be pickled
    DISK_FULL = "DISK_FULL"
    DUPLICATE = "DUPLICATE"
    UPSTREAM = "UPSTREAM"  # a task it needs did not complete
    DEPTH = "DEPTH"  # sub-workflows nested too deeply
    LOST = "LOST"
    UNKNOWN = "UNKNOWN"

    @property
    def infrastructure(self) -> bool:
        """Whether the backend, not the task, is to blame: retried by its own budget."""
        return self in _INFRASTRUCTURE


_INFRASTRUCTURE = frozenset(
    {Reason.LOST, Reason.NODE_FAIL, Reason.PREEMPTED, Reason.LAUNCH_FAIL, Reason.IMAGE_PULL}
)

_MEMORY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(I?)B?\s*", re.IGNORECASE)
_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_memory(text: int | float | str) -> int:
    """``"16G"``, ``"16GiB"`` or a number of MiB, as whole MiB (rounded up).

    Letters are binary multiples, as Slurm reads them (K = 1024 bytes).

    Raises:
        ConfigError: the text is not an amount of memory.
    """
    if isinstance(text, bool) or not isinstance(text, (int, float, str)):
        raise ConfigError(f"mem={text!r} is not an amount of memory; write '4G' or whole MiB.")
    if isinstance(text, (int, float)):
        mib = float(text)
    else:
        match = _MEMORY.fullmatch(text)
        if match is None:
            raise ConfigError(f"mem={text!r} is not an amount of memory; write '4G' or '512M'.")
        unit = match[2].upper()
        mib = float(match[1]) * (1024 ** (_POWER[unit] - 2) if unit else 1)
    if not 0 < mib < 2**53:
        raise ConfigError(f"mem={text!r} must be more than nothing and finite.")
    whole = int(mib)
    return whole + (mib > whole)


_CLOCK = re.compile(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?")
_SPAN = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(s|m|min|h|d)\s*", re.IGNORECASE)
_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: float | int | str) -> float:
    """Seconds, ``"90s"``, ``"5m"``, ``"2h"``, ``"1d"``, ``"HH:MM:SS"`` or ``"D-HH:MM:SS"``.

    Raises:
        ConfigError: the text is not a positive span of time.
    """
    seconds = -1.0
    if isinstance(text, bool):
        pass
    elif isinstance(text, (int, float)):
        seconds = float(text)
    elif isinstance(text, str):
        if match := _SPAN.fullmatch(text):
            seconds = float(match[1]) * _SECONDS[match[2].lower()]
        elif clock := _CLOCK.fullmatch(text.strip()):
            days, hours, minutes, rest = (int(part or 0) for part in clock.groups())
            if clock[4] is None:
                hours, minutes, rest = 0, hours, minutes
            seconds = ((days * 24 + hours) * 60 + minutes) * 60.0 + rest
    if not 0 < seconds < 1e10:
        raise ConfigError(f"{text!r} is not a span of time; write seconds, '5m', '2h' or HH:MM:SS.")
    return seconds


@dataclass(frozen=True, slots=True)
class Resources:
    """What a task needs, in neutral terms; an executor maps each one or refuses the task.

    Args:
        cpus: processor cores per task.
        mem: memory, ``"4G"`` or whole MiB; kept as MiB.
        gpus: accelerators per task.
        gpu_type: a backend's name for the kind of accelerator.
        disk: scratch space, ``"10G"`` or whole MiB; kept as MiB.
        time: wall-clock limit asked of the backend, seconds or ``"2h"``; kept as seconds.
        nodes: hosts per task.
        exclusive: no other job on the same host.

    Raises:
        ConfigError: a value is out of range.
    """

    cpus: int = 1
    mem: int | str | None = None
    gpus: int = 0
    gpu_type: str | None = None
    disk: int | str | None = None
    time: float | str | None = None
    nodes: int = 1
    exclusive: bool = False

    def __post_init__(self) -> None:
        for name, least in (("cpus", 1), ("gpus", 0), ("nodes", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}.")
        if self.mem is not None:
            object.__setattr__(self, "mem", parse_memory(self.mem))
        if self.disk is not None:
            object.__setattr__(self, "disk", parse_memory(self.disk))
        if self.time is not None:
            object.__setattr__(self, "time", parse_duration(self.time))

    def to_json(self) -> dict[str, Any]:
        """Only what differs from the defaults."""
        return {name: value for name, value in asdict(self).items() if value != _NO_RESOURCES[name]}


_NO_RESOURCES: dict[str, Any] = {
    "cpus": 1,
    "mem": None,
    "gpus": 0,
    "gpu_type": None,
    "disk": None,
    "time": None,
    "nodes": 1,
    "exclusive": False,
}


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a failed task is tried again, and how long to wait before.

    The n-th wait is ``min(max_delay, delay * factor ** (n - 1))`` seconds. ``times`` counts the
    attempts after the first. Losses by the infrastructure have a budget of their own
    (``infrastructure``; None: the setting ``infrastructure_retries``), so that a preempted node
    does not use up the user's retries.
    """

    times: int = 0
    delay: float = 1.0
    factor: float = 2.0
    max_delay: float = 60.0
    infrastructure: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("times", self.times), ("infrastructure", self.losses)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ConfigError(f"retries: {name}={value!r} must be a whole number, 0 or more.")
        for name, least in (("delay", 0), ("max_delay", 0), ("factor", 1)):
            wait = getattr(self, name)
            if not (isinstance(wait, (int, float)) and least <= wait < float("inf")):
                raise ConfigError(f"retries: {name}={wait!r} must be a number, {least} or more.")

    @property
    def losses(self) -> int:
        """The budget for losses."""
        return 3 if self.infrastructure is None else self.infrastructure

    def wait(self, failures: int) -> float:
        """Seconds to wait after the ``failures``-th failure (counted from 1)."""
        return float(min(self.max_delay, self.delay * self.factor ** min(failures - 1, 64)))


@dataclass(frozen=True, slots=True)
class ExecutorRef:
    """An executor as the user wrote it: name and JSON options. Equal refs share a lane."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "options": dict(self.options)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ExecutorRef:
        return cls(str(data["name"]), dict(data.get("options") or {}))


@dataclass(frozen=True, slots=True)
class TaskPolicy:
    """How the kernel treats a task; equal policies are stored once per graph."""

    executor: ExecutorRef
    retry: Retry = Retry()
    timeout: float | None = None
    resources: Resources = Resources()
    reuse: bool | str = True  # True, False or "always"

    def to_json(self) -> dict[str, Any]:
        return {
            "executor": self.executor.to_json(),
            "retry": asdict(self.retry),
            "timeout": self.timeout,
            "resources": self.resources.to_json(),
            "reuse": self.reuse,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TaskPolicy:
        return cls(
            executor=ExecutorRef.from_json(data["executor"]),
            retry=Retry(**data["retry"]),
            timeout=data["timeout"],
            resources=Resources(**data["resources"]),
            reuse=data["reuse"],
        )


@dataclass(frozen=True, slots=True)
class ValueRef:
    """A stored value: the digest and size of its pickle, and the fingerprint of its meaning.

    ``fingerprint`` is equal for equal values whatever bytes they pickled to; None when the value
    has no stable fingerprint. ``parts`` are the fingerprints of its direct items, where somebody
    takes it apart, and of the code of the user's classes and functions in it. The kernel compares
    fingerprints and never opens the bytes.
    """

    digest: str
    size: int
    fingerprint: str | None = None
    parts: Mapping[str, str] | None = None

    def to_json(self) -> list[Any]:
        known = [self.digest, self.size, self.fingerprint]
        return known if self.parts is None else [*known, dict(self.parts)]

    @classmethod
    def from_json(cls, data: Any) -> ValueRef | None:
        return None if data is None else cls(*data)


@dataclass(slots=True)
class NodeRecord:
    """One row per node that has been touched: its current attempt and, at the end, its outcome.

    Times are seconds since the epoch, UTC, for display only. ``attempts`` holds one short dict
    per earlier attempt: ``{"attempt", "reason", "message", "started_at", "ended_at"}``.
    """

    node_id: int
    status: NodeStatus = NodeStatus.WAITING
    attempt: int = 0
    key: str | None = None
    executor: str | None = None
    handle: dict[str, Any] | None = None
    started_at: float | None = None
    ended_at: float | None = None
    output: ValueRef | None = None
    error: str | None = None
    exception: str | None = None  # digest of the pickled exception, if it could be pickled
    reason: str | None = None
    stdout: str | None = None  # digest
    stderr: str | None = None  # digest
    reused_from: tuple[str, int] | None = None
    child_id: str | None = None  # the sub-dispatch
    cancel_requested: bool = False
    cancel_tries: int = 0
    due: float | None = None  # wall-clock moment of the next attempt or of the time limit
    attempts: list[dict[str, Any]] = field(default_factory=list)
    usage: dict[str, Any] | None = None
    decision: str | None = None  # why a redispatch ran it although an equal one had completed


@dataclass(slots=True)
class DispatchRecord:
    """One row per dispatch. ``graph``, ``lattice`` and ``inputs`` are digests of blobs."""

    dispatch_id: str
    name: str
    status: Status = Status.NEW_OBJ
    root_id: str = ""
    parent_id: str | None = None
    parent_node: int | None = None
    depth: int = 0
    graph: str | None = None
    lattice: str | None = None
    inputs: str | None = None
    result: ValueRef | None = None
    error: str | None = None
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    owner: str | None = None
    epoch: int = 0
    cancel_requested: bool = False
    held: bool = False  # waits for a trigger
    redispatched_from: str | None = None
    options: dict[str, Any] = field(default_factory=dict)  # reuse, replacements, defaults
    counts: dict[str, int] = field(default_factory=dict)  # nodes by status, kept by the kernel
