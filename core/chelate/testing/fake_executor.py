"""The executor in front of a :class:`~chelate.testing.fake_backend.FakeBackend`.

The capabilities of an instance can be narrowed, to see what the kernel makes of a poorer one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Container, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from chelate.contracts.executor import (
    Accepted,
    Capabilities,
    Deferred,
    Executor,
    Job,
    JobHandle,
    JobState,
    Limits,
    Observation,
    Outcome,
    PollReport,
    Rejected,
    RunOutcome,
    Unknown,
)
from chelate.errors import BlobMissingError, ConfigError, StoreError, TransientError
from chelate.model import Reason, Resources
from chelate.testing.fake_backend import FakeBackend, FakeJob, Fault

__all__ = ["FakeExecutor"]

SLOTS = 64


class FakeExecutor(Executor):
    """Runs each task in a process of its own, and does what the backend's faults say.

    Args:
        folder: of the backend.
        without: names of capabilities that it shall not have.
        limits: fields of ``Limits`` that differ.
    """

    name = "fake"
    limits = Limits(
        max_in_flight=1000,
        poll_min=0.05,
        poll_max=0.2,
        call_timeout=10.0,
        absent_grace=0.5,
        find_grace=0.2,
        cancel_grace=1.0,
    )
    capabilities = Capabilities(
        find=True,
        idempotent=True,
        logs=True,
        packing=True,
        cancel_task=True,
        claims=True,
        listing=True,
        holds=True,
    )

    def __init__(
        self,
        folder: str,
        *,
        without: Sequence[str] = (),
        limits: Mapping[str, Any] | None = None,
    ) -> None:
        unknown = set(without) - {field.name for field in fields(Capabilities)}
        if unknown:
            raise ConfigError(f"without={sorted(unknown)} names no capability.")
        self.folder = folder
        self.capabilities = replace(self.capabilities, **dict.fromkeys(without, False))
        self.limits = replace(self.limits, **(limits or {}))

    @property
    def backend(self) -> FakeBackend:
        """The backend that this process knows by the folder."""
        return FakeBackend.at(self.folder)

    async def _meet(self, call: str, keys: Sequence[str]) -> tuple[Fault | None, str]:
        fault = self.backend.meet(call, keys)
        if fault is not None and fault.kind == "delay":
            await asyncio.sleep(fault.delay)
        return fault, fault.kind if fault is not None else ""

    # -- starting -----------------------------------------------------------------------------

    async def run(self, jobs: Sequence[Job]) -> AsyncIterator[RunOutcome]:
        """One request per job."""
        for job in jobs:
            yield await self._run(job)

    async def _run(self, job: Job) -> RunOutcome:
        if all(task.cancel_requested for task in job.tasks):
            return Deferred(job.key, "Cancelled before it was sent.")
        if job.resources != Resources(cpus=min(job.resources.cpus, SLOTS)):
            text = f"The fake backend has {SLOTS} processors and nothing else to ask for."
            return Rejected(job.key, Reason.UNSCHEDULABLE, text)
        try:
            fault, kind = await self._meet("run", [job.key])
        except TransientError as error:
            if "503" in str(error):
                return Unknown(job.key, str(error))
            return Deferred(job.key, str(error), error.retry_after)
        backend = self.backend
        gone = {d for task in job.tasks for d in task.held if not backend.value(d).exists()}
        if gone:
            text = f"Results that stayed with the fake backend are gone: {', '.join(sorted(gone))}."
            return Rejected(job.key, Reason.RESULT_MISSING, text, frozenset(gone))
        if fault is not None and kind == "late_delivery":
            backend.start_later(job, fault.delay)
            return Unknown(job.key, "The request timed out.")
        if kind == "disk_full":
            return Rejected(job.key, Reason.DISK_FULL, "The fake backend's disk is full.")
        keys = [task.key for task in job.tasks]
        name = " ".join(keys)
        copies = backend.jobs(name)
        again = bool(copies) and not self.capabilities.idempotent and bool(copies[0].document)
        try:
            done = backend.start(job, len(copies) if again else 0)
            if kind == "duplicate":
                backend.start(job, len(backend.jobs(name)))
        except StoreError as error:
            return Rejected(job.key, Reason.RESULT_MISSING, f"An input cannot be sent: {error}")
        if not done.document:
            return Rejected(job.key, Reason.DUPLICATE, "This key was forbidden to start.")
        if kind == "drop_reply":
            return Unknown(job.key, "The answer was lost.")
        if done.tasks != keys:
            return Unknown(job.key, "The task was sent before, in a pack.")
        return Accepted(job.key, self._handle(done))

    def _handle(self, job: FakeJob) -> JobHandle:
        return JobHandle(job.document["key"], self.name, job.native_id, {}, tuple(job.tasks))

    def _job(self, handle: JobHandle) -> FakeJob | None:
        if handle.executor != self.name:
            return None
        name = " ".join(handle.tasks or (handle.key,))
        jobs = [job for job in self.backend.jobs(name) if job.document]
        same = [job for job in jobs if job.native_id == handle.native_id]
        return next(iter(same or jobs), None)

    # -- watching -----------------------------------------------------------------------------

    async def poll(self, handles: Sequence[JobHandle]) -> PollReport:
        """One look at the processes, for all."""
        keys = [handle.key for handle in handles]
        try:
            _, kind = await self._meet("poll", keys)
        except TransientError as error:
            return PollReport(frozenset(), {}, (str(error),))
        covered = [handle for handle in handles if handle.executor == self.name]
        if kind == "half_covered":
            covered = covered[::2]
        jobs = {handle.key: job for handle in covered if (job := self._job(handle)) is not None}
        living = self.backend.living([key for job in jobs.values() for key in job.own.values()])
        seen = {key: self._seen(key, job, living) for key, job in jobs.items()}
        if kind == "stale_listing":
            seen = {}
        return PollReport(frozenset(handle.key for handle in covered), seen)

    def _seen(self, key: str, job: FakeJob, living: set[str]) -> Observation:
        if self.backend.answer is not None:
            state = JobState.KILLED if job.marked("cancelled") else JobState.ENDED
            return Observation(key, state)
        own = job.own
        if job.marked("cancelled") and living & set(own.values()):
            return Observation(key, JobState.RUNNING)
        if any(not job.ended(n) and task in living for n, task in own.items()):
            begun = any(job.part(n, "started").exists() for n in own)
            state = JobState.RUNNING if begun else JobState.QUEUED
            return Observation(key, state, ended=self._over(job, living))
        if job.marked("cancelled") and not any(job.ended(n) for n in own):
            text = "The job was cancelled."
            return Observation(key, JobState.KILLED, Reason.CANCELLED_BY_USER, text)
        return Observation(key, JobState.ENDED)

    @staticmethod
    def _over(job: FakeJob, living: Container[str]) -> frozenset[str]:
        """The tasks of a job that have ended."""
        return frozenset(k for n, k in job.own.items() if job.ended(n) or k not in living)

    async def cancel(self, handles: Sequence[JobHandle], *, force: bool) -> None:
        """Signals to all processes of the jobs."""
        _, kind = await self._meet("cancel", [handle.key for handle in handles])
        if kind == "stale_listing":
            return
        keys: list[str] = []
        for handle in handles:
            job = self._job(handle)
            if job is not None:
                if not all(job.ended(n) for n in job.own):
                    job.mark("cancelled")
                keys += job.own.values()
        self.backend.end(keys, force=force)

    async def cancel_tasks(self, handle: JobHandle, keys: Sequence[str], *, force: bool) -> None:
        """Signals to the processes of these tasks."""
        await self._meet("cancel", keys)
        job = self._job(handle)
        if job is not None:
            ends = {number: key for number, key in job.own.items() if key in keys}
            for number in ends:
                job.part(number, "cancelled").touch()
            self.backend.end(list(ends.values()), force=force)

    async def find(self, keys: Sequence[str]) -> Mapping[str, Sequence[JobHandle]]:
        """Jobs by key, duplicates included."""
        _, kind = await self._meet("find", keys)
        if kind == "stale_listing":
            return {}
        found: dict[str, Any] = {}
        for key in keys:
            handles = [self._handle(job) for job in self.backend.jobs(key) if job.document]
            if handles:
                found[key] = handles
        return found

    async def forbid(self, keys: Sequence[str]) -> Mapping[str, JobHandle]:
        """Takes the places of jobs."""
        await self._meet("forbid", keys)
        held: dict[str, JobHandle] = {}
        for key in keys:
            if self.backend.claim(key) is None:
                jobs = [job for job in self.backend.jobs(key) if job.document]
                if jobs:
                    held[key] = self._handle(jobs[0])
        return held

    async def list_jobs(self, store: str) -> Sequence[JobHandle]:
        """Jobs of the store that have a process."""
        await self._meet("list", [])
        jobs = [job for job in self.backend.every() if job.document.get("store") == store]
        living = self.backend.living([key for job in jobs for key in job.own.values()])
        return [self._handle(job) for job in jobs if living & set(job.own.values())]

    # -- results ------------------------------------------------------------------------------

    async def collect(self, handles: Sequence[JobHandle]) -> AsyncIterator[Outcome]:
        """What the tasks have written."""
        _, kind = await self._meet("collect", [handle.key for handle in handles])
        jobs = [job for handle in handles if (job := self._job(handle)) is not None]
        living = self.backend.living([key for job in jobs for key in job.own.values()])
        for job in jobs:
            over = self._over(job, living)
            if job.marked("cancelled") and not any(map(job.ended, job.own)):
                continue
            for number, key in job.own.items():
                if key not in over:
                    continue
                outcome = self.backend.answered(key) or job.outcome(number)
                payload = outcome.payload
                if self.capabilities.holds and job.stays(number, payload):
                    outcome = self.backend.keep(outcome)
                elif kind == "truncated_output" and isinstance(payload, bytes):
                    outcome = replace(outcome, payload=payload[: len(payload) // 2])
                yield outcome

    async def fetch_held(self, handle: JobHandle, digest: str, target: Path) -> None:
        """From the backend's values; cut in the middle, only half of what was left comes."""
        _, kind = await self._meet("fetch", [handle.key])
        try:
            data = self.backend.value(digest).read_bytes()
        except FileNotFoundError as error:
            raise BlobMissingError(f"The value {digest} is gone.") from error
        with target.open("ab") as file:
            left = data[file.tell() :]
            file.write(left[: len(left) // 2] if kind == "truncated_output" else left)
        if kind == "truncated_output":
            raise TransientError("The fake backend's answer was cut off.")

    async def missing_held(self, handle: JobHandle, digests: Sequence[str]) -> set[str]:
        """Values that the backend has not."""
        await self._meet("lacking", [handle.key])
        return {digest for digest in digests if not self.backend.value(digest).exists()}

    async def logs(self, handle: JobHandle, stream: str, offset: int, limit: int) -> bytes:
        """Part of the first task's output."""
        await self._meet("logs", [handle.key])
        job = self._job(handle)
        if job is None or stream not in ("stdout", "stderr") or not job.part(0, stream).exists():
            return b""
        with job.part(0, stream).open("rb") as file:
            file.seek(offset)
            return file.read(limit)

    async def release(self, handles: Sequence[JobHandle]) -> None:
        """Forget the jobs."""
        await self._meet("release", [handle.key for handle in handles])
        for handle in handles:
            job = self._job(handle)
            if job is not None:
                self.backend.remove(job)
