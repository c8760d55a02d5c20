"""One task at a time: the executor for authors who want to write twenty lines.

::

    class QueueExecutor(TaskExecutor):
        name = "queue"

        def run(self, task):
            return submit(task.command)              # the backend's id: the job handle

        def poll(self, task_metadata, job_handle):
            return {"Q": "QUEUED", "R": "RUNNING"}.get(state(job_handle))

        def cancel(self, task_metadata, job_handle):
            remove(job_handle)

The base lays everything that a task needs into a directory and gives the author one command that
runs it, wherever that directory can be seen. The command claims the task, so it may be submitted
twice and runs once; it survives the author's process; and it leaves the signed result where the
base finds it. The author's methods only say when and where.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import sys
from abc import ABCMeta, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from chelate.api import (
    Accepted,
    AuthenticationError,
    Capabilities,
    ConfigError,
    Deferred,
    Executor,
    ExecutorError,
    Job,
    JobHandle,
    JobState,
    Limits,
    Observation,
    Outcome,
    PluginContractError,
    PollReport,
    Reason,
    Rejected,
    RejectedError,
    Resources,
    RunOutcome,
    TaskCancelledError,
    TransientError,
    Unknown,
)
from chelate.remote.blocking import Blocking
from chelate.remote.environment import Environment
from chelate.remote.host import JobHost
from chelate.remote.local import LocalTransport
from chelate.remote.sights import Prepared, Sight, job_id, observation
from chelate.remote.spool import Spool
from chelate.remote.task_run import TaskRun, metadata_of

__all__ = ["TaskExecutor"]

LAUNCH_GRACE = 300.0  # seconds after which a job that nobody can ask about counts as never started
SILENCE = 120.0  # seconds without a sign of life from another machine
_UNASKED: Any = object()


if TYPE_CHECKING:
    # Authors give run, poll and cancel other arguments than the kernel's contract has.
    _Base: Any
else:
    _Base = Executor


class TaskExecutor(_Base, metaclass=ABCMeta):  # type: ignore[misc]
    """Subclass it, and define :meth:`run`, :meth:`poll` and :meth:`cancel`, plain or async.

    Plain methods run in at most ``threads`` threads, so they may block. A cancel is looked for
    before every step, and TaskCancelledError, raised anywhere, ends the task as cancelled.

    Attributes:
        name: the executor's name, as its entry point.
        root: folder for the tasks' directories, which the backend's machines must see, too.
        environment: what tasks find around them: ``python``, ``conda``, ``venv``, ``modules``,
            ``env_vars``, ``prerun``, ``postrun``. Default: this interpreter.
        honours: names of the ``Resources`` that :meth:`run` passes on; tasks that ask for others
            are refused.
        threads: how many plain methods run at once.
    """

    name: ClassVar[str]
    root: str = "~/.chelate"
    environment: Mapping[str, Any] | None = None
    honours: Sequence[str] = ()
    threads: int = 8
    limits: Limits = Limits(poll_min=0.5, poll_max=20.0, absent_grace=15.0, find_grace=5.0)
    capabilities: Capabilities = Capabilities(
        find=True, idempotent=True, logs=True, claims=True, listing=True
    )
    _host: JobHost | None = None
    _blocking: Blocking | None = None

    @functools.cached_property
    def _spool(self) -> Spool:
        return Spool()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, kernel in (("run", _run), ("poll", _poll), ("cancel", _cancel)):
            own = cls.__dict__.get(name)
            if own is not None:
                setattr(cls, name, _either(own, kernel))

    # -- the author's ---------------------------------------------------------------------------

    @abstractmethod
    def run(self, task: TaskRun) -> Any:
        """Have ``task.command`` run somewhere, and return the backend's id of it: the job handle.

        The handle is any JSON value without secrets. Raise TransientError when nothing was
        started and it may work later, RejectedError or ConfigError when it never will, and
        TaskCancelledError to stop; after any other exception the task is kept from starting.
        """

    def poll(self, task_metadata: dict[str, Any], job_handle: Any) -> Any:
        """What the backend says of a job: ``"QUEUED"``, ``"RUNNING"``, ``"ENDED"`` or None when it
        does not know it; raise when it cannot be asked. Without this method the task's own
        directory is asked alone.
        """
        return None

    def cancel(self, task_metadata: dict[str, Any], job_handle: Any) -> Any:
        """Remove the job from the backend; its processes are ended by the base."""
        return None

    # -- opening --------------------------------------------------------------------------------

    @property
    def host(self) -> JobHost:
        """The directories of the tasks."""
        if self._host is None:
            given = {"python": sys.executable} if self.environment is None else self.environment
            environment = Environment.of(given)
            self._host = JobHost(LocalTransport(), root=self.root, environment=environment)
        return self._host

    async def open(self) -> None:
        """Check the options. Raises ConfigError."""
        unknown = set(self.honours) - set(Resources.__dataclass_fields__)
        if unknown:
            raise ConfigError(f"honours={sorted(unknown)} of {self.name!r} are no resources.")
        assert self.host is not None

    async def close(self) -> None:
        """Let go of fetched files; jobs go on."""
        self._blocking = None
        if self._host is not None:
            await self._host.transport.close()
            self._host = None
        self._spool.close()

    async def _call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """One of the author's methods: awaited, or in a thread when it is a plain one.

        Raises:
            PluginContractError: it wants to end the process, which would end the event loop.
        """
        try:
            if not inspect.iscoroutinefunction(inspect.unwrap(method)):
                if self._blocking is None:
                    self._blocking = Blocking(self.name, self.threads)
                answer = await self._blocking.call(method, *arguments)
            else:
                answer = method(*arguments)
            return await answer if inspect.isawaitable(answer) else answer
        except (Exception, asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:
            raise PluginContractError(f"{method.__name__}() raised {error!r}.") from error

    # -- starting -------------------------------------------------------------------------------

    async def _prepare(self, jobs: Sequence[Job]) -> AsyncIterator[tuple[Job, Any]]:
        wanted: list[Job] = []
        for job in jobs:
            refused = self._refusal(job)
            if refused is not None:
                yield job, refused
            else:
                wanted.append(job)
        if wanted:
            answers = await self.host.prepare(wanted)
            for job, answer in zip(wanted, answers, strict=True):
                yield job, answer

    def _refusal(self, job: Job) -> RunOutcome | None:
        if job.tasks[0].cancel_requested:
            return Deferred(job.key, "Cancelled before it was sent.")
        asked = [name for name in job.resources.to_json() if name not in self.honours]
        if asked:
            given = ", ".join(f"{name}={getattr(job.resources, name)!r}" for name in asked)
            text = f"Resources({given}) means nothing to executor {self.name!r}; leave it out."
            return Rejected(job.key, Reason.UNSCHEDULABLE, text)
        return None

    async def _send(self, job: Job, prepared: Prepared) -> RunOutcome:
        (task,) = job.tasks
        run = TaskRun(task, prepared.command, prepared.folder, job.resources, job.timeout)
        try:
            run.check_cancelled()
            native = await self._call(self.run, run)
            return Accepted(job.key, self._handle(job.key, native))
        except TaskCancelledError as error:
            if task.cancel_requested:
                return Deferred(job.key, str(error))
            refusal = Rejected(job.key, Reason.CANCELLED_BY_USER, str(error))
        except TransientError as error:
            return Deferred(job.key, str(error), error.retry_after)
        except AuthenticationError as error:
            return Rejected(job.key, Reason.AUTH, str(error))
        except (ConfigError, RejectedError) as error:
            return Rejected(job.key, Reason.INVALID_SPEC, str(error))
        except Exception as error:  # noqa: BLE001 - an author's method may raise anything
            reason = Reason.LAUNCH_FAIL if isinstance(error, OSError) else Reason.PLUGIN
            text = f"run() of executor {self.name!r} failed: {type(error).__name__}: {error}"
            refusal = Rejected(job.key, reason, text)
        return await self._settled(refusal)

    async def _settled(self, refusal: Rejected) -> RunOutcome:
        """The refusal, once it is certain that the task has not started and never will."""
        try:
            held = await self.forbid([refusal.key])
        except ExecutorError as error:
            return Unknown(refusal.key, f"{refusal.message} {error}")
        return Accepted(refusal.key, held[refusal.key]) if held else refusal

    def _handle(self, key: str, native: Any = None) -> JobHandle:
        try:
            native = json.loads(json.dumps(native, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise PluginContractError(
                f"its job handle {native!r:.200} is no JSON value."
            ) from error
        text = native if isinstance(native, str) else json.dumps(native)
        return JobHandle(key, self.name, text[:200], {"job_handle": native}, (key,))

    # -- watching -------------------------------------------------------------------------------

    async def _seen(self, handle: JobHandle, sight: Sight) -> Observation | None:
        """What the task's directory says, and where that is silent, the backend."""
        seen = observation(sight, where=self.host.transport.host, launch_grace=LAUNCH_GRACE)
        if seen is None or seen.state not in (JobState.QUEUED, JobState.RUNNING):
            return seen
        state = _UNASKED
        if self._polls and handle.data["job_handle"] is not None:
            native = handle.data["job_handle"]
            state = await self._call(self.poll, metadata_of(handle.key), native)
        if state is _UNASKED or state in ("QUEUED", "RUNNING", JobState.QUEUED, JobState.RUNNING):
            return seen
        if state not in (None, "ENDED", "KILLED", JobState.ENDED, JobState.KILLED):
            raise PluginContractError(f"poll() of {self.name!r} returned {state!r:.100}.")
        # The backend has let it go; a supervisor that lives is about to write its record.
        lives = sight.alive or (sight.alive is None and (sight.heartbeat_age or 0.0) < SILENCE)
        return seen if sight.claimed and lives else None

    @property
    def _polls(self) -> bool:
        return type(self).poll is not TaskExecutor.poll

    async def find(self, keys: Sequence[str]) -> Mapping[str, Sequence[JobHandle]]:
        """Tasks that have started, by key; the job handle of one found so is None."""
        sights = await self.host.look(keys) if keys else {}
        started = [sight.key for sight in sights.values() if sight.claimed or sight.done]
        return {key: [self._handle(key)] for key in started}

    async def forbid(self, keys: Sequence[str]) -> Mapping[str, JobHandle]:
        """Keep tasks from starting; those that have are returned."""
        sights = await self.host.forbid(keys)
        started = [sight.key for sight in sights.values() if sight.claimed or sight.done]
        return {key: self._handle(key) for key in started}

    async def list_jobs(self, store: str) -> Sequence[JobHandle]:
        """Tasks of the store that run."""
        return [self._handle(key) for key in await self.host.listing(store)]

    # -- results --------------------------------------------------------------------------------

    async def collect(self, handles: Sequence[JobHandle]) -> AsyncIterator[Outcome]:
        """What the tasks have left in their directories."""
        own = [handle for handle in handles if handle.executor == self.name]
        if own:
            async for outcome in self.host.collect(own, self._spool.folder()):
                yield outcome

    async def logs(self, handle: JobHandle, stream: str, offset: int, limit: int) -> bytes:
        """Output so far."""
        return await self.host.logs(handle.key, stream, offset, limit)

    async def release(self, handles: Sequence[JobHandle]) -> None:
        """Remove the directories of tasks that are over."""
        own = [handle.key for handle in handles if handle.executor == self.name]
        for key in own:
            self._spool.drop(job_id(key))
        if own:
            await self.host.release(own)


# The kernel's side of the three methods whose names the author's have, too.


async def _run(self: TaskExecutor, jobs: Sequence[Job]) -> AsyncIterator[RunOutcome]:
    sending: list[asyncio.Future[RunOutcome]] = []
    try:
        async for job, answer in self._prepare(jobs):
            if isinstance(answer, Prepared):
                sending.append(asyncio.ensure_future(self._send(job, answer)))
            else:
                yield answer
        for done in asyncio.as_completed(sending):
            yield await done
    finally:
        for task in sending:
            task.cancel()


async def _poll(self: TaskExecutor, handles: Sequence[JobHandle]) -> PollReport:
    own = {handle.key: handle for handle in handles if handle.executor == self.name}
    if not own:
        return PollReport(frozenset(), {})
    grace = None if self._polls else LAUNCH_GRACE
    try:
        sights = await self.host.look(list(own), launch_grace=grace)
    except ExecutorError as error:
        return PollReport(frozenset(), {}, (str(error),))
    keys = [key for key in own if key in sights]
    looks = [self._seen(own[key], sights[key]) for key in keys]
    seen: dict[str, Observation] = {}
    errors: list[str] = []
    covered = set(keys)
    for key, found in zip(keys, await asyncio.gather(*looks, return_exceptions=True), strict=True):
        if isinstance(found, TaskCancelledError):
            seen[key] = Observation(key, JobState.KILLED, Reason.CANCELLED_BY_USER, str(found))
        elif isinstance(found, BaseException):
            covered.discard(key)
            errors.append(f"poll() of {self.name!r} failed: {type(found).__name__}: {found}")
        elif found is not None:
            seen[key] = found
    return PollReport(frozenset(covered), seen, tuple(dict.fromkeys(errors)))


async def _cancel(self: TaskExecutor, handles: Sequence[JobHandle], *, force: bool) -> None:
    own = {handle.key: handle for handle in handles if handle.executor == self.name}
    sights = await self.host.stop(list(own), force=force) if own else {}
    calls = [
        self._call(self.cancel, metadata_of(key), own[key].data["job_handle"])
        for key, sight in sights.items()
        if not sight.done and own[key].data["job_handle"] is not None
    ]
    harmless = (TaskCancelledError, ProcessLookupError)
    for found in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(found, BaseException) and not isinstance(found, harmless):
            raise found


def _either(own: Callable[..., Any], kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel's method for the kernel's arguments, and the author's for the author's."""

    @functools.wraps(own)
    def method(self: TaskExecutor, *arguments: Any, **options: Any) -> Any:
        batch = len(arguments) == 1 and not isinstance(arguments[0], TaskRun)
        return (kernel if batch else own)(self, *arguments, **options)

    return method


for _name, _kernel in (("poll", _poll), ("cancel", _cancel)):
    setattr(TaskExecutor, _name, _either(getattr(TaskExecutor, _name), _kernel))
