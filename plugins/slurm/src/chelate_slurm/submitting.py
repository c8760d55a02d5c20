"""Submission: jobs are prepared on the host, grouped, and handed to sbatch with their names."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence

from chelate.api import (
    Accepted,
    AuthenticationError,
    ConfigError,
    Deferred,
    ExecutorError,
    Job,
    JobHandle,
    Reason,
    Rejected,
    Resources,
    RunOutcome,
    TransientError,
    Unknown,
)
from chelate.remote import JobHost, Prepared, UnreachableError
from chelate_slurm.answers import submitted_id, why_not_submitted
from chelate_slurm.controller import Controller
from chelate_slurm.naming import array_name, job_name, script_of
from chelate_slurm.options import SbatchOptions

__all__ = ["Submitter", "handle_of"]

_ARRAY = 1000
_PAIR = tuple[Job, Prepared]


def handle_of(tasks: Sequence[str], native_id: str, cluster: str = "") -> JobHandle:
    """The handle of the job that carries these tasks."""
    data = {"cluster": cluster} if cluster else {}
    return JobHandle(tasks[0], "slurm", native_id, data, tuple(tasks))


class Submitter:
    """Sends jobs to sbatch.

    Args:
        host: where jobs are prepared.
        controller: Slurm's programs.
        options: what every job asks for.
        array: whether equal jobs become one array.
        throttle: how many elements of an array run at once.
    """

    def __init__(
        self,
        host: JobHost,
        controller: Controller,
        options: SbatchOptions,
        *,
        array: bool,
        throttle: int | None,
    ) -> None:
        self._host = host
        self._controller = controller
        self._options = options
        self._most = _ARRAY if array else 1
        self._size = self._most  # elements in the next array: halved when a limit is hit
        self._throttle = f"%{throttle}" if throttle else ""
        self._ready = False

    def learn(self, config: Mapping[str, str]) -> None:
        """Keep to the cluster's own limit on arrays."""
        limit = config.get("MaxArraySize", "")
        if limit.isdigit() and self._most > 1:
            self._most = max(1, min(_ARRAY, int(limit)))
            self._size = self._most

    def argv(self, jobs: Sequence[Prepared], name: str, root: str, wants: Resources) -> list[str]:
        """Arguments of sbatch for a job, or an array of several. Raises ConfigError."""
        log = f"{jobs[0].folder}/scheduler.log"
        argv = [f"--job-name={name}", f"--chdir={root}", "--export=ALL", "--open-mode=append"]
        if len(jobs) > 1:
            log = f"{root}/logs/{name}-%a.log"
            argv.append(f"--array=0-{len(jobs) - 1}{self._throttle}")
        return [*argv, f"--output={log}", *self._options.argv(wants)]

    async def run(self, jobs: Sequence[Job]) -> AsyncGenerator[RunOutcome, None]:
        """See :meth:`SlurmExecutor.run`."""
        wanted: list[Job] = []
        for job in jobs:
            refused = self._refusal(job)
            if refused is not None:
                yield refused
            else:
                wanted.append(job)
        if not wanted:
            return
        prepared: list[_PAIR] = []
        for job, answer in zip(wanted, await self._prepare(wanted), strict=True):
            if isinstance(answer, Prepared):
                prepared.append((job, answer))
            else:
                yield answer
        if not prepared:
            return
        root = (await self._host.probe()).root
        groups: dict[Resources, list[_PAIR]] = {}
        for pair in prepared:
            groups.setdefault(pair[0].resources, []).append(pair)
        silent = ""
        for group in groups.values():
            while group:
                size = self._size
                chunk, group = group[:size], group[size:]
                live = [pair for pair in chunk if not _cancelled(pair[0])]
                for job, _ in chunk:
                    if _cancelled(job):
                        yield Deferred(job.key, "Cancelled before it was sent.")
                if not live:
                    continue
                if silent:
                    # The controller did not answer the one before: this one is not sent at all.
                    for job, _ in live:
                        yield Deferred(job.key, silent)
                    continue
                outcomes = await self._submit(live, root)
                first = outcomes[0]
                if isinstance(first, Deferred) and len(live) > 1 and first.delay is not None:
                    # A limit on submitted jobs, which a smaller array may keep to.
                    self._size = max(1, len(live) // 2)
                    group = [*live, *group]
                    continue
                if isinstance(first, (Unknown, Deferred)):
                    silent = first.message
                elif isinstance(first, Accepted):
                    self._size = min(self._most, max(self._size * 2, 2))
                for outcome in outcomes:
                    yield outcome

    def _refusal(self, job: Job) -> Rejected | None:
        """What can be told without asking anybody."""
        try:
            self._options.argv(job.resources)
        except ConfigError as error:
            return Rejected(job.key, Reason.INVALID_SPEC, str(error))
        return None

    async def _prepare(
        self, jobs: Sequence[Job]
    ) -> Sequence[Prepared | Rejected | Deferred | Unknown]:
        try:
            if not self._ready:
                root = (await self._host.probe()).root
                done = await self._host.transport.run(
                    ["mkdir", "-p", "-m", "700", "--", f"{root}/logs"], timeout=30.0
                )
                if done.exit_status != 0:
                    text = done.stderr.decode(errors="replace").strip()
                    raise ConfigError(f"{root}/logs cannot be made: {text}")
                self._ready = True
            return await self._host.prepare(jobs)
        except TransientError as error:
            # Without a start nothing runs yet, and all of it may be repeated.
            return [Deferred(job.key, str(error), error.retry_after) for job in jobs]
        except (ConfigError, ExecutorError) as error:
            return [_rejected(job.key, error) for job in jobs]

    async def _submit(self, pairs: Sequence[_PAIR], root: str) -> list[RunOutcome]:
        """One sbatch for these jobs; their outcomes, all of one kind."""
        jobs = [job for job, _ in pairs]
        there = [item for _, item in pairs]
        keys = [job.key for job in jobs]
        store = jobs[0].store
        named = [item.key for item in there]
        name = job_name(store, *named) if len(named) == 1 else array_name(store, named)
        argv = self.argv(there, name, root, jobs[0].resources)
        try:
            done = await self._controller.submit(argv, script_of(there, root, name))
        except UnreachableError as error:
            return [Deferred(key, str(error), error.retry_after) for key in keys]
        except TransientError as error:
            return [Unknown(key, str(error)) for key in keys]
        except (ConfigError, ExecutorError) as error:
            return [_rejected(key, error) for key in keys]
        answer = submitted_id(done.stdout.decode(errors="replace"))
        if answer is None or done.exit_status != 0:
            return [why_not_submitted(key, done) for key in keys]
        number, cluster = answer
        ids = [number] if len(keys) == 1 else [f"{number}_{index}" for index in range(len(keys))]
        return [
            Accepted(job.key, handle_of([task.key for task in job.tasks], native, cluster))
            for job, native in zip(jobs, ids, strict=True)
        ]


def _rejected(key: str, error: Exception) -> Rejected:
    """A refusal that asking again does not change; the host's own reason where it gave one."""
    if isinstance(error, AuthenticationError):
        return Rejected(key, Reason.AUTH, str(error))
    return Rejected(key, getattr(error, "reason", Reason.INVALID_SPEC), str(error))


def _cancelled(job: Job) -> bool:
    return all(task.cancel_requested for task in job.tasks)
