"""What the tests of an executor are made with: values, jobs, and a lane's way to drive them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from chelate.client.codec import load_value, pickle_function, pickle_value
from chelate.contracts.executor import (
    Accepted,
    Deferred,
    Executor,
    Job,
    JobHandle,
    JobState,
    Observation,
    Outcome,
    PollReport,
    RunOutcome,
    Task,
)
from chelate.digest import digest_bytes
from chelate.errors import BlobMissingError
from chelate.model import Resources

__all__ = ["FINAL_STATES", "Bench", "MakeExecutor", "ValueFolder", "value_of"]

MakeExecutor = Callable[[], Executor]
FINAL_STATES = frozenset({JobState.ENDED, JobState.KILLED})
ANY_STATE = frozenset(JobState)
PAUSE = 0.05  # seconds between two polls of an executor whose poll does not wait
ABSENCES = 3  # polls that must not see a covered job before it counts as gone


class ValueFolder:
    """A BlobReader over a folder. Values of 32 KiB and more can be read as files, as in a store."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.reads: list[str] = []

    def put(self, data: bytes) -> str:
        """Store bytes and return their digest."""
        digest = digest_bytes(data)
        (self._folder / digest).write_bytes(data)
        return digest

    def read(self, digest: str) -> bytes:
        """The bytes. Raises BlobMissingError."""
        self.reads.append(digest)
        try:
            return (self._folder / digest).read_bytes()
        except FileNotFoundError as error:
            raise BlobMissingError(f"The value {digest} is gone.") from error

    def path(self, digest: str) -> Path | None:
        """The file of a large value, else None."""
        path = self._folder / digest
        return path if path.exists() and path.stat().st_size >= 1 << 15 else None

    def size(self, digest: str) -> int:
        """Size in bytes. Raises BlobMissingError."""
        return len(self.read(digest))


def value_of(outcome: Outcome) -> Any:
    """The value of a successful outcome, whose digest is checked."""
    assert outcome.ok, f"{outcome.reason}: {outcome.error}"
    payload = outcome.payload
    data = payload.read_bytes() if isinstance(payload, Path) else payload
    assert data is not None, "an outcome that is ok brings a payload"
    if outcome.digest is not None:
        assert outcome.digest == digest_bytes(data), "the digest is not the payload's"
    return load_value(data)


class Bench:
    """One executor, driven as a lane drives it: batches of its size, polls, and patience.

    Args:
        make: gives a new, unopened executor on the same backend.
        folder: shared by the tasks and the tests where the backend shares files.
        patience: seconds to wait for what must come.
    """

    def __init__(self, make: MakeExecutor, folder: Path, patience: float) -> None:
        self.make = make
        self.folder = folder
        self.patience = patience
        self.values = ValueFolder(folder / "values")
        self.executor = make()
        self.handles: dict[str, JobHandle] = {}
        self.dispatch_id = str(uuid4())
        self.store = f"kit{uuid4().hex[:12]}"
        self._count = 0

    def drive(self, scenario: Any) -> None:
        """Run a coroutine in a loop of its own, and leave nothing behind on the backend."""
        asyncio.run(self._whole(scenario))

    async def _whole(self, scenario: Any) -> None:
        await self.executor.open()
        try:
            await scenario
        finally:
            await self.clean()
            await self.executor.close()

    async def clean(self) -> None:
        """End and release every job that is left."""
        handles = list(self.handles.values())
        if handles:
            await self.executor.cancel(handles, force=True)
            await self.until(handles)
            await self.release(handles)

    # -- making -------------------------------------------------------------------------------

    def task(
        self,
        function: Any,
        *args: Any,
        kind: str = "task",
        name: str | None = None,
        cancelled: Callable[[], bool] | None = None,
        **kwargs: Any,
    ) -> Task:
        """A task that calls ``function`` (or, as bytes, the pickle of one) with real values."""
        self._count += 1
        data = function if isinstance(function, bytes) else pickle_function(function)
        digest = self.values.put(data)
        given = [*args, *kwargs.values()]
        values = {str(n): self.values.put(pickle_value(value)) for n, value in enumerate(given)}
        name = name or str(getattr(function, "__name__", "task"))
        call = {
            "kind": kind,
            "function": digest,
            "args": [["p", n] for n in range(len(args))],
            "kwargs": {key: ["p", len(args) + n] for n, key in enumerate(kwargs)},
            "values": values,
            "name": name,
            "python": None,
        }
        if kind == "sublattice":
            call.update(defaults=None, replacements={})
        return Task(
            key=f"{self.dispatch_id}:{self._count}:1:{uuid4().hex[:12]}",
            dispatch_id=self.dispatch_id,
            node_id=self._count,
            attempt=1,
            name=name,
            call=call,
            inputs=tuple(dict.fromkeys((digest, *values.values()))),
            context={"root_dispatch_id": self.dispatch_id},
            is_cancelled=cancelled,
        )

    def pack(
        self,
        tasks: Sequence[Task],
        resources: Resources | None = None,
        timeout: float | None = None,
    ) -> Job:
        """A job of these tasks."""
        return Job(
            tasks[0].key,
            tuple(tasks),
            resources or Resources(),
            self.values,
            timeout=timeout,
            store=self.store,
        )

    def job(
        self,
        function: Any,
        *args: Any,
        resources: Resources | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> Job:
        """A job of one task; ``options`` are those of :meth:`task`."""
        return self.pack([self.task(function, *args, **options)], resources, timeout)

    def unknown(self, handle: JobHandle) -> JobHandle:
        """A handle like this one of a job that was never run."""
        key = self.task(len).key
        text = json.dumps(handle.to_json()).replace(handle.key, key)
        return replace(JobHandle.from_json(json.loads(text)), native_id="")

    # -- driving ------------------------------------------------------------------------------

    async def run(self, *jobs: Job) -> list[RunOutcome]:
        """What ``run`` yields, batch by batch; the handles are remembered."""
        found: list[RunOutcome] = []
        size = self.executor.limits.run_batch
        for start in range(0, len(jobs), size):
            async with aclosing(self.executor.run(jobs[start : start + size])) as outcomes:  # type: ignore[type-var]
                async for outcome in outcomes:
                    found.append(outcome)
                    if isinstance(outcome, Accepted):
                        self.handles[outcome.handle.key] = outcome.handle
        return found

    async def accepted(self, *jobs: Job) -> list[JobHandle]:
        """Handles of the jobs, in their order; what is deferred is offered again."""
        left = {job.key: job for job in jobs}
        deadline = time.monotonic() + self.patience
        while left:
            delays = []
            for outcome in await self.run(*left.values()):
                if isinstance(outcome, Accepted):
                    del left[outcome.key]
                elif isinstance(outcome, Deferred):
                    delays.append(outcome.delay or 0.5)
                else:
                    raise AssertionError(f"run() yielded {outcome}")
            if delays:
                assert time.monotonic() < deadline, f"{len(left)} jobs are deferred for ever"
                await asyncio.sleep(min(delays))
                await self.executor.poll(list(self.handles.values()))
        return [self.handles[job.key] for job in jobs]

    async def start(self, function: Any, *args: Any, **options: Any) -> JobHandle:
        """Run one task; its handle."""
        (handle,) = await self.accepted(self.job(function, *args, **options))
        return handle

    async def look(self, handles: Sequence[JobHandle]) -> PollReport:
        """One poll, checked against the contract's rules."""
        report = await self.executor.poll(handles)
        keys = {handle.key for handle in handles}
        assert isinstance(report, PollReport)
        assert set(report.seen) <= keys, "poll() told of a job that it was not asked about"
        assert set(report.covered) <= keys, "poll() covered a job that it was not asked about"
        assert all(isinstance(error, str) and error for error in report.errors)
        for key, seen in report.seen.items():
            assert isinstance(seen, Observation)
            assert seen.key == key
        return report

    async def until(
        self,
        handles: Iterable[JobHandle],
        states: frozenset[JobState] = FINAL_STATES,
        patience: float | None = None,
    ) -> dict[str, Observation | None]:
        """Wait until each job is in one of the states; None for one that is absent."""
        patience = self.patience if patience is None else patience
        waiting = {handle.key: handle for handle in handles}
        found: dict[str, Observation | None] = {}
        absent: dict[str, int] = {}
        deadline = time.monotonic() + patience
        while waiting:
            report = await self.look(list(waiting.values()))
            for key in list(waiting):
                seen = report.seen.get(key)
                if seen is None and key in report.covered:
                    absent[key] = absent.get(key, 0) + 1
                if seen is not None and seen.state in states:
                    found[key] = seen
                    del waiting[key]
                elif absent.get(key, 0) >= ABSENCES:
                    found[key] = None
                    del waiting[key]
            if waiting:
                assert time.monotonic() < deadline, (
                    f"{len(waiting)} jobs are not {sorted(state.value for state in states)} "
                    f"after {patience:g} s: {report}"
                )
                await asyncio.sleep(PAUSE)
        return found

    async def cancelled(self, handles: Sequence[JobHandle]) -> dict[str, Observation | None]:
        """Cancel jobs as the kernel does, gently and after a grace by force, until all are gone."""
        await self.executor.cancel(handles, force=False)
        try:
            grace = min(self.executor.limits.cancel_grace, self.patience)
            return await self.until(handles, patience=grace)
        except AssertionError:
            await self.executor.cancel(handles, force=True)
            return await self.until(handles)

    async def collect(self, handles: Sequence[JobHandle]) -> dict[str, Outcome]:
        """Outcomes by the key of the task."""
        found: dict[str, Outcome] = {}
        async with aclosing(self.executor.collect(handles)) as outcomes:  # type: ignore[type-var]
            async for outcome in outcomes:
                assert isinstance(outcome, Outcome)
                assert outcome.key not in found, "collect() told of one task twice"
                found[outcome.key] = outcome
        return found

    async def outcomes(self, handles: Sequence[JobHandle]) -> dict[str, Outcome]:
        """Wait for the end of jobs, and their outcomes."""
        await self.until(handles)
        return await self.collect(handles)

    async def release(self, handles: Sequence[JobHandle]) -> None:
        """Clean up behind jobs."""
        await self.executor.release(handles)
        for handle in handles:
            self.handles.pop(handle.key, None)

    async def outcome(self, function: Any, *args: Any, **options: Any) -> Outcome:
        """Run one task to its end."""
        handle = await self.start(function, *args, **options)
        seen = await self.until([handle])
        found = await self.collect([handle])
        assert handle.key in found, f"the job ended as {seen[handle.key]} and brought no outcome"
        return found[handle.key]

    async def value(self, function: Any, *args: Any, **options: Any) -> Any:
        """Run one task to its end; its value."""
        return value_of(await self.outcome(function, *args, **options))

    async def appears(self, path: Path, size: int = 1) -> str:
        """Wait until a task has written so much to a file; its text."""
        deadline = time.monotonic() + self.patience
        while not path.exists() or path.stat().st_size < size:
            assert time.monotonic() < deadline, f"no task has written {path.name}"
            await asyncio.sleep(PAUSE)
        return path.read_text()

    async def rests(self, path: Path, seconds: float = 0.5) -> None:
        """Nothing writes to a file any more."""
        before = path.read_text() if path.exists() else ""
        await asyncio.sleep(seconds)
        after = path.read_text() if path.exists() else ""
        assert after == before, f"something still writes to {path.name}"
