"""The local executor: tasks in a pool of worker processes on this machine."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from chelate.api import (
    Accepted,
    Capabilities,
    ConfigError,
    Executor,
    Job,
    JobHandle,
    Limits,
    Observation,
    Outcome,
    PollReport,
    Reason,
    Rejected,
    RunOutcome,
    TransientError,
    Unknown,
    parse_memory,
)
from chelate.executors.neighbours import Neighbours, place, register
from chelate.executors.pool import Pool
from chelate.executors.pool_folder import PoolFolder
from chelate.executors.record import Record

__all__ = ["LocalExecutor"]

WAIT = 1.0  # seconds that a poll waits for news
GATHER = 0.005  # seconds that the first news of a poll over many jobs waits for more
STARTING = 0.02  # seconds between looks while a task is about to begin


class LocalExecutor(Executor):
    """Runs tasks in worker processes here. Nothing is started before the first task.

    Args:
        workers: slots, and so processes at most; default: the processors this process may use.
        gpus: accelerators that tasks may ask for.
        mem: memory that tasks may ask for in sum, ``"16G"`` or MiB; default: this machine's.
        workdir: folder that tasks start in; default: this process's.
        create_unique_workdir: a folder of its own below ``workdir`` for every task,
            ``<dispatch id>/node_<n>``.
        python: interpreter of the workers; default: this one.
        env: environment variables for the workers, beyond this process's.
    """

    name = "local"
    limits = Limits(
        max_in_flight=4096,
        run_batch=1024,
        poll_min=0.0,
        poll_max=1.0,
        absent_grace=0.0,
        find_grace=0.0,
        cancel_grace=5.0,
    )
    capabilities = Capabilities(detached=False, find=True, push=True, logs=True)

    def __init__(
        self,
        *,
        workers: int | None = None,
        gpus: int = 0,
        mem: str | int | None = None,
        workdir: str | None = None,
        create_unique_workdir: bool = False,
        python: str | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self.workers = workers
        self.gpus = gpus
        self.mem = mem
        self.workdir = workdir
        self.create_unique_workdir = create_unique_workdir
        self.python = python
        self.env = env
        self._slots = 0
        self._memory = 0
        self._shared: PoolFolder | None = None
        self._neighbours = Neighbours()
        self._pool: Pool | None = None
        self._told = 0  # how many ended tasks the last poll knew of
        self._records: dict[str, Record] = {}
        self._data: dict[str, str] = {}

    async def open(self) -> None:
        """Check the options. Raises ConfigError."""
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers={self.workers} of the local executor must be at least 1.")
        if self.gpus < 0:
            raise ConfigError(f"gpus={self.gpus} of the local executor must be 0 or more.")
        if self.python is not None and shutil.which(self.python) is None:
            raise ConfigError(f"python={self.python!r} of the local executor is no interpreter.")
        if self.create_unique_workdir and self.workdir is None:
            raise ConfigError("create_unique_workdir=True of the local executor needs workdir=.")
        self._slots = self.workers or _usable_processors()
        self._memory = _memory() if self.mem is None else parse_memory(self.mem)
        self.abandoned = False
        self._folder()  # before anything is sent here, so that others can forbid it

    async def close(self) -> None:
        """End the workers and what runs in them; without its kernel a local task has no use."""
        self.abandoned = True  # also if a worker keeps this from ending
        pool, self._pool = self._pool, None
        shared, self._shared = self._shared, None
        if pool is not None:
            await pool.close()
        elif shared is not None:
            shutil.rmtree(shared.path, ignore_errors=True)

    def _folder(self) -> PoolFolder:
        if self._shared is None:
            self._shared = PoolFolder.create()
            register(self._shared.path, self)
        return self._shared

    def halt(self) -> None:
        """From another thread: start nothing more."""
        if self._pool is not None:
            self._pool.halt()

    def _started(self) -> Pool:
        if self._pool is None:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            devices = visible.split(",") if visible else [str(n) for n in range(self.gpus)]
            self._pool = Pool(
                self._folder(),
                self._slots,
                self._memory,
                devices[: self.gpus],
                self.python,
                self.env or {},
            )
            self._data = place(self._pool.folder)
        return self._pool

    # -- starting -----------------------------------------------------------------------------

    async def run(self, jobs: Sequence[Job]) -> AsyncIterator[RunOutcome]:
        """Accept each job at once; refuse what this machine cannot do."""
        if not self._slots:
            await self.open()
        if self.abandoned:
            raise TransientError("The kernel has left this instance, whose thread did not answer.")
        pool = self._started()
        refusals: dict[str, RunOutcome] = {
            job.key: refused for job in jobs if (refused := self._refusal(job))
        }
        fresh = [job.key for job in jobs if not (job.key in self._records or job.key in refusals)]
        for key in pool.shared.accept(fresh, self._records):
            refusals[key] = Unknown(key, "Another kernel has taken this task over.")
        for job in jobs:
            if job.key in refusals:
                yield refusals[job.key]
                continue
            known = self._records.get(job.key)
            if known is None:
                task = job.tasks[0]
                handle = JobHandle(job.key, self.name, "", self._data, (task.key,))
                folder = self.workdir
                if folder is not None:
                    folder = str(Path(folder).expanduser().absolute())
                    if self.create_unique_workdir:
                        folder = f"{folder}/{task.dispatch_id}/node_{task.node_id}"
                known = Record(job, task, handle, folder)
                self._records[job.key] = known
                pool.submit(known)
            yield Accepted(job.key, known.handle)

    def _refusal(self, job: Job) -> Rejected | None:
        wants = job.resources
        why = ""
        if len(job.tasks) != 1:
            why = f"The local executor runs one task per job, and this one has {len(job.tasks)}."
        elif wants.cpus > self._slots:
            why = (
                f"Resources(cpus={wants.cpus}) is more than the {self._slots} slots of the local "
                f"executor; ask for fewer, or set LocalExecutor(workers={wants.cpus})."
            )
        elif wants.mem is not None and int(wants.mem) > self._memory:
            why = (
                f"Resources(mem={wants.mem}) is more than the {self._memory} MiB of the local "
                "executor; ask for less, or set LocalExecutor(mem=...)."
            )
        elif wants.gpus > self.gpus:
            why = (
                f"Resources(gpus={wants.gpus}) is more than the {self.gpus} of the local executor; "
                f"if this machine has them, set LocalExecutor(gpus={wants.gpus})."
            )
        else:
            for option, asked in (
                ("nodes", wants.nodes > 1),
                ("exclusive", wants.exclusive),
                ("gpu_type", wants.gpu_type is not None),
                ("disk", wants.disk is not None),
            ):
                if asked:
                    why = (
                        f"Resources({option}={getattr(wants, option)!r}) means nothing to the "
                        "local executor; leave it out, or use an executor that knows it."
                    )
        return Rejected(job.key, Reason.UNSCHEDULABLE, why) if why else None

    # -- watching -----------------------------------------------------------------------------

    async def poll(self, handles: Sequence[JobHandle]) -> PollReport:
        """Wait up to a second for news of any of the jobs, then tell of all."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + WAIT
        foreign = [handle for handle in handles if handle.key not in self._records]
        covered, errors = (
            await self._neighbours.settle(foreign, self._shared) if foreign else (set(), [])
        )
        settled = bool(foreign) and len(covered) == len(foreign)
        # Telling of all jobs costs as much as many tasks, so one answer should bring some news.
        wanted = max(1, len(handles) // 4)
        since = 0.0
        while True:
            pool = self._pool
            starting = pool.refresh() if pool else False
            fresh = pool.finished - self._told if pool else 0
            now = loop.time()
            since = since or (now if fresh else 0.0)
            if fresh >= wanted or not fresh or now - since >= GATHER:
                news, seen = self._look(handles)
                if news or settled or now >= deadline or not handles:
                    return PollReport(frozenset(seen) | covered, seen, tuple(errors))
                fresh = 0
            if pool is None:
                if not settled:
                    await asyncio.sleep(deadline - now)
                return PollReport(frozenset(covered), {}, tuple(errors))
            future: asyncio.Future[None] = loop.create_future()
            target = self._told + (wanted if fresh else 1)
            pool.waiting[future] = target
            wait = GATHER if fresh else STARTING if starting else WAIT
            timer = loop.call_later(min(max(deadline - now, 0.0), wait), _wake, future)
            try:
                await future
            finally:
                timer.cancel()
                del pool.waiting[future]

    def _look(self, handles: Sequence[JobHandle]) -> tuple[bool, dict[str, Observation]]:
        """What is known of own jobs, and whether any of it was not told before."""
        seen: dict[str, Observation] = {}
        news = False
        records = self._records
        self._told = self._pool.finished if self._pool else 0
        for handle in handles:
            key = handle.key
            record = records.get(key)
            if record is not None:
                observation = seen[key] = record.observation
                if observation is not record.reported:
                    record.reported = observation
                    news = True
        return news, seen

    async def find(self, keys: Sequence[str]) -> Mapping[str, Sequence[JobHandle]]:
        """Own jobs by key, and those that a living kernel of this host holds.

        Of other jobs nothing is left on this host when this returns, nor will any begin here: pools
        of dead kernels have ended, with what they had not begun, and living ones are forbidden it.
        Not seen are pools of living kernels with another folder for temporary files and no worker.

        Raises:
            OSError: what runs here, or what it holds, cannot be read at present.
        """
        found = {key: [self._records[key].handle] for key in keys if key in self._records}
        others = [key for key in keys if key not in found]
        if others:
            for key, pool in (await self._neighbours.look_up(others, self._shared)).items():
                found[key] = [JobHandle(key, self.name, "", place(pool), (key,))]
        return found

    async def cancel(self, handles: Sequence[JobHandle], *, force: bool) -> None:
        """Take queued tasks back; end running ones with everything they started."""
        own = [self._records[handle.key] for handle in handles if handle.key in self._records]
        if self._pool is not None and own:
            self._pool.cancel(own, force)
        foreign = [handle for handle in handles if handle.key not in self._records]
        if foreign:
            await self._neighbours.settle(foreign, self._shared)

    # -- results ------------------------------------------------------------------------------

    async def collect(self, handles: Sequence[JobHandle]) -> AsyncIterator[Outcome]:
        """Outcomes of own jobs that ended."""
        for handle in handles:
            record = self._records.get(handle.key)
            if record is not None and record.final and record.outcome is not None:
                yield record.outcome

    async def logs(self, handle: JobHandle, stream: str, offset: int, limit: int) -> bytes:
        """Output so far of a running task, or of an ended one that is not released."""
        record = self._records.get(handle.key)
        if record is None:
            return b""
        if record.outcome is not None:
            text = record.outcome.stdout if stream == "stdout" else record.outcome.stderr
            return text[offset : offset + limit]
        link = record.link
        if link is None or link.outstanding.get(link.mark().sequence) is not record:
            return b""
        number = 0 if stream == "stdout" else 1
        return os.pread(link.logs[number], limit, link.mark().offsets[number] + offset)

    async def release(self, handles: Sequence[JobHandle]) -> None:
        """Forget jobs that ended, and their result files."""
        for handle in handles:
            record = self._records.get(handle.key)
            if record is not None and record.final:
                del self._records[handle.key]
                if record.outcome is not None and isinstance(record.outcome.payload, Path):
                    record.outcome.payload.unlink(missing_ok=True)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _usable_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int:
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20)
