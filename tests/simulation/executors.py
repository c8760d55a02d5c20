"""Executors before the simulated backends, with the faults of plugins and networks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from tests.simulation.cluster import TOMB, Backend, Instance

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
    Rejected,
    Unknown,
)
from chelate.errors import TransientError
from chelate.model import Reason

__all__ = ["executor_class"]

_STATES = {
    "QUEUED": JobState.QUEUED,
    "RUNNING": JobState.RUNNING,
    "ENDED": JobState.ENDED,
    "KILLED": JobState.KILLED,
    "TWIN": JobState.KILLED,
}


async def _never() -> None:
    await asyncio.get_running_loop().create_future()


class _Sim(Executor):
    """``backend`` and ``process`` are class attributes of a subclass made per process."""

    backend: Backend
    process: Any

    def __init__(self) -> None:
        self._change: asyncio.Future[None] | None = None

    async def open(self) -> None:
        await self._weather("open")
        if not self.capabilities.detached:
            self.backend.listeners.append(self._wake)

    def _wake(self) -> None:
        if self._change is not None and not self._change.done():
            self._change.set_result(None)

    async def _weather(self, what: str) -> None:
        """What may happen on the way to any call, and back."""
        universe, process = self.backend.universe, self.process
        if process.dead:
            await _never()
        universe.log(f"{process.name} {self.name}.{what}")
        if universe.chance(process.faults.crash):
            process.die(f"at {what}()")
            await _never()
        rate = process.faults.plugin
        if universe.chance(rate * 0.2):
            universe.log(f"{what}() hangs")
            await _never()
        if universe.chance(rate):
            fault = universe.random.choice((TransientError, ConnectionError, OSError, SystemExit))
            universe.log(f"{what}() raises {fault.__name__}")
            raise fault(f"{what} fails")
        if universe.random.random() < 0.3:
            await asyncio.sleep(universe.random.uniform(0.0, 0.5))

    async def run(self, jobs: Sequence[Job]):  # type: ignore[no-untyped-def, override]
        universe, backend = self.backend.universe, self.backend
        self.process.examiner.sent(jobs)
        try:
            await self._weather("run")
        except TransientError:
            raise  # said before anything was sent
        for job in jobs:
            if all(task.cancel_requested for task in job.tasks):
                yield Deferred(job.key, "cancelled", 0.1)
                continue
            answer = await self._submit(job)
            if universe.chance(self.process.faults.crash):
                self.process.die(f"after run() of {job.key}")
                await _never()
            if universe.chance(self.process.faults.plugin * 0.3):
                yield universe.random.choice((None, 7, Accepted(job.key, None), Unknown("x", "")))  # type: ignore[arg-type]
            universe.log(f"run() answers {type(answer).__name__} for {job.key}")
            yield answer
        backend.counts["runs"] += 1

    async def _submit(self, job: Job) -> Any:
        universe, backend, faults = self.backend.universe, self.backend, self.process.faults
        key, keys = job.key, tuple(task.key for task in job.tasks)
        if universe.chance(faults.plugin * 0.5):
            return Deferred(key, "queue full", universe.random.uniform(0.1, 3.0))
        if universe.chance(faults.plugin * 0.1):
            return Rejected(key, Reason.QUOTA, "over the quota")
        if universe.chance(faults.lost):
            universe.log(f"the request for {key} is lost")
            return await self._no_answer(key)
        if backend.model.late and universe.chance(faults.lost):
            universe.log(f"the request for {key} will be late")
            backend.deliver_late(keys, job.store)
            return await self._no_answer(key)
        owner = None if self.capabilities.detached else self.process
        instance = backend.deliver(keys, job.store, owner)
        if universe.chance(faults.lost):
            universe.log(f"the answer for {key} is lost")
            return await self._no_answer(key)
        return Accepted(key, backend.handle(instance))

    async def _no_answer(self, key: str) -> Any:
        if not self.capabilities.detached:
            return Unknown(key, "the worker does not answer")
        how = self.backend.universe.random.random()
        if how < 0.15:
            await _never()
        if how < 0.4:
            raise ConnectionError("connection reset")
        return Unknown(key, "no answer")

    def _own(self, instance: Instance) -> bool:
        return self.capabilities.detached or instance.process is self.process

    async def poll(self, handles: Sequence[JobHandle]) -> PollReport:
        self.backend.universe.log("poll " + " ".join(handle.native_id for handle in handles))
        await self._weather("poll")
        universe, backend, rate = self.backend.universe, self.backend, self.process.faults.plugin
        if universe.chance(rate * 0.5):
            universe.log("poll() answers rubbish")
            return universe.random.choice((None, {}, [], PollReport(None, None)))  # type: ignore[arg-type]
        if not self.capabilities.detached:
            loop = asyncio.get_running_loop()
            if not any(backend.of(handle).state in ("ENDED", "KILLED") for handle in handles):
                self._change = loop.create_future()
                timer = loop.call_later(1.0, self._wake)
                await self._change
                timer.cancel()
        covered, seen = set(), {}
        for handle in handles:
            instance = backend.of(handle)
            if universe.chance(rate):
                universe.log(f"{handle.key} is not covered")
                continue
            covered.add(handle.key)
            if not self._own(instance):
                continue
            if universe.now < instance.hidden_until and instance.state == "RUNNING":
                continue
            if instance.state in ("KILLED", "TWIN") and instance.forgotten:
                continue
            if universe.chance(rate * 0.2):
                seen[handle.key] = universe.random.choice(("RUNNING", None, 3))
                continue
            state = _STATES[instance.state]
            reason = Reason.DUPLICATE if instance.state == "TWIN" else instance.reason
            told = reason if state is JobState.KILLED else None
            ended = frozenset(instance.over) if len(instance.keys) > 1 else frozenset()
            seen[handle.key] = Observation(handle.key, state, told, "", 1.0, ended=ended)
        return PollReport(frozenset(covered), seen)

    async def cancel(self, handles: Sequence[JobHandle], *, force: bool) -> None:
        await self._weather("cancel")
        for handle in handles:
            instance = self.backend.of(handle)
            if self._own(instance):
                self.process.examiner.asked_to_end(self.backend, instance)
                self.backend.stop(instance, force)
        await self._weather("cancel")

    async def cancel_tasks(self, handle: JobHandle, keys: Sequence[str], *, force: bool) -> None:
        await self._weather("cancel_tasks")
        self.backend.stop_tasks(self.backend.of(handle), keys, force)
        await self._weather("cancel_tasks")

    async def collect(self, handles: Sequence[JobHandle]):  # type: ignore[no-untyped-def, override]
        await self._weather("collect")
        universe, rate = self.backend.universe, self.process.faults.plugin
        for handle in handles:
            instance = self.backend.of(handle)
            for outcome in list(instance.outcomes.values()):
                if universe.chance(rate):
                    continue
                if universe.chance(rate * 0.3):
                    yield universe.random.choice((None, {}, Outcome("a:0:1:b", True, b"")))
                if instance.released and not self.process.examiner.stale:
                    universe.blame(f"{handle.key} is collected after its release")
                yield outcome

    async def find(self, keys: Sequence[str]) -> Mapping[str, Sequence[JobHandle]]:
        await self._weather("find")
        universe, backend = self.backend.universe, self.backend
        if universe.chance(self.process.faults.plugin * 0.5):
            return universe.random.choice((None, [], 5))  # type: ignore[return-value]
        found: dict[str, list[JobHandle]] = {}
        for key in keys:
            for instance in backend.keyed.get(key, ()):
                visible = universe.now - instance.born >= backend.model.lag
                if visible and self._own(instance) and not instance.released:
                    found.setdefault(key, []).append(backend.handle(instance))
        return found

    async def forbid(self, keys: Sequence[str]) -> Mapping[str, JobHandle]:
        await self._weather("forbid")
        backend = self.backend
        held = {}
        for key in keys:
            number = backend.claims.setdefault(key, TOMB)
            backend.universe.log(
                f"the claim of {key} is {'held' if number >= 0 else 'a tombstone'}"
            )
            if number != TOMB:
                held[key] = backend.handle(backend.instances[number])
        await self._weather("forbid")
        return held

    async def list_jobs(self, store: str) -> Sequence[JobHandle]:
        await self._weather("list_jobs")
        if not store:
            self.backend.universe.blame("list_jobs() without the id of a store")
        return [
            self.backend.handle(instance)
            for instance in self.backend.instances
            if instance.state in ("QUEUED", "RUNNING") and instance.store == store
        ]

    async def release(self, handles: Sequence[JobHandle]) -> None:
        await self._weather("release")
        for handle in handles:
            instance = self.backend.of(handle)
            if self._own(instance):
                self.process.examiner.released(instance)
                instance.released = True


def executor_class(backend: Backend, process: Any) -> type[Executor]:
    """The executor of one backend in one process."""
    return type(
        f"Sim_{backend.model.name}",
        (_Sim,),
        {
            "name": backend.model.name,
            "limits": backend.model.limits,
            "capabilities": backend.model.capabilities,
            "backend": backend,
            "process": process,
        },
    )
