"""The executor contract: run, poll and cancel over job handles.

An executor turns jobs into something running elsewhere and tells the truth about it. The kernel
owns persistence, cadence, batching, limits, retries, cancel escalation and the rules for lost
jobs. Every instance lives in a lane: one thread with one event loop, so a method may block
without delaying anybody else, and never needs a lock.

Most methods are coroutines over lists, so one query serves a thousand jobs. Authors who want
less subclass :class:`~chelate.api.TaskExecutor`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, Protocol

from chelate.contracts.limits import Capabilities, Limits
from chelate.errors import ConfigError
from chelate.model import ExecutorRef, Reason, Resources

__all__ = [
    "HOLD_FROM",
    "Accepted",
    "BlobReader",
    "Capabilities",
    "Deferred",
    "Executor",
    "Job",
    "JobHandle",
    "JobState",
    "Limits",
    "Observation",
    "Outcome",
    "PollReport",
    "Rejected",
    "RunOutcome",
    "Task",
    "Unknown",
]

HANDLE_VERSION = 1
HOLD_FROM = 1 << 20  # bytes; smaller results never stay with an executor


class BlobReader(Protocol):
    """Read access to stored values by digest. Bytes are opaque: never unpickle them."""

    def read(self, digest: str) -> bytes:
        """The bytes. Raises BlobMissingError or BlobDamagedError."""

    def path(self, digest: str) -> Path | None:
        """A file holding exactly the bytes, or None when the value lives in the database."""

    def size(self, digest: str) -> int:
        """Size in bytes."""


@dataclass(slots=True)
class Task:
    """One attempt of one node, ready to run.

    ``call`` is ``{"function": digest|None, "kind": kind, "args": [reference], "kwargs": {…},
    "values": {"<node id>": digest}}``: everything the worker needs besides the blobs, which are
    named in ``inputs``. ``context`` is what ``ct.get_context()`` gives inside the task.

    ``stay`` says that nobody but later tasks of this very executor needs a large result: it may
    stay where the task ran (``Outcome.held``). ``held`` are those of
    ``inputs`` that stayed with this executor, and that ``Job.blobs`` cannot give.
    """

    key: str  # "<dispatch>:<node>:<attempt>:<random>", also found in the worker's environment
    dispatch_id: str
    node_id: int
    attempt: int
    name: str
    call: dict[str, Any]
    inputs: tuple[str, ...]  # digests of every blob the call needs, the function's first
    context: dict[str, Any] = field(default_factory=dict)
    is_cancelled: Callable[[], bool] | None = None
    stay: bool = False
    held: frozenset[str] = frozenset()

    @property
    def cancel_requested(self) -> bool:
        """Whether a cancel has been recorded; check before each expensive step."""
        return self.is_cancelled is not None and self.is_cancelled()


@dataclass(slots=True)
class Job:
    """What ``run`` is given: one task, or several packed under one handle.

    A packed job has the key of its first task. Each of its tasks may be sent again later under its
    own key and in other company, so a worker claims every task by the task's key.
    """

    key: str
    tasks: tuple[Task, ...]
    resources: Resources
    blobs: BlobReader
    timeout: float | None = None  # seconds; the kernel enforces it too
    code: str | None = None  # blob: snapshot of the user's own modules
    store: str = ""  # the store's id: names and lists of jobs of one store begin with it


@dataclass(frozen=True, slots=True)
class JobHandle:
    """Enough for a fresh process to poll, cancel and collect; JSON, no secrets.

    ``native_id`` is the backend's own id (Slurm job id, AWS Batch job id, job ARN, process id);
    ``data`` whatever else the executor needs; ``tasks`` the keys of the tasks the job carries.
    """

    key: str
    executor: str
    native_id: str
    data: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    version: int = HANDLE_VERSION

    def to_json(self) -> dict[str, Any]:
        return {
            "v": self.version,
            "key": self.key,
            "executor": self.executor,
            "native_id": self.native_id,
            "data": dict(self.data),
            "tasks": list(self.tasks),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> JobHandle:
        return cls(
            key=data["key"],
            executor=data["executor"],
            native_id=data["native_id"],
            data=dict(data["data"]),
            tasks=tuple(data["tasks"]),
            version=data["v"],
        )


@dataclass(frozen=True, slots=True)
class Accepted:
    """The backend has the job."""

    key: str
    handle: JobHandle


@dataclass(frozen=True, slots=True)
class Rejected:
    """The backend refuses the job for good; ``message`` is a sentence for the user.

    With ``Reason.AUTH`` it refuses whoever asks: the executor pauses and the job waits.
    ``gone`` are values of ``Task.held`` that are no longer there; a redispatch makes them anew.
    """

    key: str
    reason: Reason
    message: str
    gone: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Deferred:
    """Nothing was accepted; ask again after ``delay`` seconds (None: the lane's own back-off)."""

    key: str
    message: str
    delay: float | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """The answer was lost, late or unreadable. Never guess: the kernel looks the key up."""

    key: str
    message: str


RunOutcome = Accepted | Rejected | Deferred | Unknown


class JobState(Enum):
    """What ``poll`` can say of a job."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    ENDED = "ENDED"  # collect will yield its outcome
    KILLED = "KILLED"  # the platform ended it; nothing will come


@dataclass(frozen=True, slots=True)
class Observation:
    """One job as seen by one successful query. ``run`` counts restarts by the scheduler.

    ``ended`` are the keys of those tasks of a packed job that are over while others go on;
    ``collect`` may be asked for them at once and yields what it has.
    """

    key: str
    state: JobState
    reason: Reason | None = None  # with KILLED: why
    message: str = ""
    started_at: float | None = None
    run: int = 0
    ended: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PollReport:
    """The answer of ``poll``.

    Only a key in ``covered`` and not in ``seen`` is absent. A key outside ``covered`` keeps its
    state: silence is no news. ``errors`` are sentences about queries that failed.
    """

    covered: frozenset[str]
    seen: Mapping[str, Observation]
    errors: tuple[str, ...] = ()


@dataclass(slots=True)
class Outcome:
    """How one task ended. ``key`` is the task's key.

    On success ``payload`` is the pickled result, as bytes or as a file the kernel may move into
    its store; ``digest`` the payload's digest where the worker has already computed it, and
    ``fingerprint`` the value's fingerprint, ``parts`` those of its items when the call asked for
    them (``"parts": true``). For a sub-workflow, ``graph`` is True and the payload
    a bundle (``chelate.bundle``). Of a task that may ``stay``, ``held`` may stand in place of the
    payload: the result, ``digest``, has so many bytes (1 MiB or more) and stays where it is, also
    when the job is released, until :meth:`Executor.fetch_held` asks for it. On failure ``error`` is
    the traceback text (the user's own frames) and ``exception`` the pickled exception when it can
    be pickled.
    """

    key: str
    ok: bool
    payload: bytes | Path | None = None
    digest: str | None = None
    fingerprint: str | None = None
    parts: dict[str, str] | None = None
    graph: bool = False
    reason: Reason | None = None
    error: str | None = None
    exception: bytes | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    started_at: float | None = None
    ended_at: float | None = None
    usage: dict[str, Any] | None = None
    held: int | None = None


class Executor(ABC):
    """Base of every executor.

    A subclass sets ``name`` (its entry point's name). Its constructor only stores options: no
    network, thread or file before :meth:`open`. Options must be JSON values and never secrets;
    they are captured from the constructor call, so that an equal instance can be made elsewhere.
    """

    name: ClassVar[str]
    limits: Limits = Limits()
    capabilities: Capabilities = Capabilities()
    abandoned: bool = False  # set by the kernel when it leaves an instance that blocks its thread
    _options: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Executor:
        self = super().__new__(cls)
        own = cls.__new__ is not Executor.__new__
        if cls.__init__ is object.__init__ and not own and (args or kwargs):
            # object's own takes anything, and says nothing.
            raise TypeError(f"{cls.__name__} takes no options, not {[*args, *kwargs][0]!r}")
        bound = signature(cls.__init__).bind(self, *args, **kwargs)
        options: dict[str, Any] = {}
        for index, (name, value) in enumerate(bound.arguments.items()):
            kind = bound.signature.parameters[name].kind
            if index == 0 or kind is kind.VAR_POSITIONAL:
                continue
            if kind is kind.VAR_KEYWORD:
                options.update(value)
            else:
                options[name] = value
        self._options = options
        return self

    def ref(self) -> ExecutorRef:
        """Name and options as plain JSON.

        Raises:
            ConfigError: an option is not a JSON value.
        """
        try:
            return ExecutorRef(self.name, json.loads(json.dumps(self._options, allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"An option of executor {self.name!r} is not plain JSON ({error}); "
                "use strings, numbers, lists and dicts, and name secrets by reference."
            ) from error

    async def open(self) -> None:
        """First use of the network, tried again after AuthenticationError and TransientError.

        Anything else fails the tasks that wait, until a later dispatch asks for it again.
        """
        return None

    async def close(self) -> None:
        """Let go of connections. Never ends a job."""
        return None

    @abstractmethod
    def run(self, jobs: Sequence[Job]) -> AsyncIterator[RunOutcome]:
        """Start jobs; yield each one's outcome as soon as it is known."""

    @abstractmethod
    async def poll(self, handles: Sequence[JobHandle]) -> PollReport:
        """Look at jobs. A failed query changes nothing: leave its keys out of ``covered``."""

    @abstractmethod
    async def cancel(self, handles: Sequence[JobHandle], *, force: bool) -> None:
        """Ask jobs to stop; ``force`` without mercy. Only a request: poll has the truth."""

    @abstractmethod
    def collect(self, handles: Sequence[JobHandle]) -> AsyncIterator[Outcome]:
        """Fetch outcomes of jobs that ENDED. Repeatable until :meth:`release`.

        Of a packed job that goes on: the outcomes of the tasks that are over.
        """

    async def cancel_tasks(self, handle: JobHandle, keys: Sequence[str], *, force: bool) -> None:
        """Cancel some tasks of a packed job; only with ``capabilities.cancel_task``."""
        raise ConfigError(f"Executor {self.name!r} cannot cancel single tasks of a packed job.")

    async def find(self, keys: Sequence[str]) -> Mapping[str, Sequence[JobHandle]]:
        """Jobs by the key of a task they carry, after a lost answer.

        More than one handle for a key means duplicates; a packed job's handle stands under each
        of its tasks that were asked for.
        """
        raise ConfigError(f"Executor {self.name!r} cannot look jobs up.")

    async def forbid(self, keys: Sequence[str]) -> Mapping[str, JobHandle]:
        """Take the claims of ``keys``, so that a request still on its way starts nothing.

        Returns the handles of the keys whose claim a job holds already; the others are safe.
        Only with ``capabilities.claims``.
        """
        raise ConfigError(f"Executor {self.name!r} cannot keep a job from starting.")

    async def list_jobs(self, store: str) -> Sequence[JobHandle]:
        """Jobs of this store that are not over, whoever started them.

        The kernel cancels those that belong to no live attempt. Only with
        ``capabilities.listing``.
        """
        raise ConfigError(f"Executor {self.name!r} cannot list its jobs.")

    async def logs(self, handle: JobHandle, stream: str, offset: int, limit: int) -> bytes:
        """Up to ``limit`` bytes of ``"stdout"`` or ``"stderr"`` from ``offset``, while it runs."""
        return b""

    async def fetch_held(self, handle: JobHandle, digest: str, target: Path) -> None:
        """Bring a result that stayed (``Outcome.held``) into a file, in bounded memory.

        ``handle`` is that of the job that made it, released or not, of any process. What
        ``target`` holds already is the value's beginning: go on behind it. The kernel compares
        the whole with ``digest``. Repeatable. Only with ``capabilities.holds``.

        Raises:
            BlobMissingError: the value is gone for good.
            TransientError: ask again; what came stays in ``target``.
        """
        raise ConfigError(f"Executor {self.name!r} leaves no results with its jobs.")

    async def missing_held(self, handle: JobHandle, digests: Sequence[str]) -> set[str]:
        """Those of the values that stayed with jobs on this job's host which are gone there."""
        return set()

    async def release(self, handles: Sequence[JobHandle]) -> None:
        """Clean up behind jobs whose outcome is safely stored. Idempotent."""
        return None
