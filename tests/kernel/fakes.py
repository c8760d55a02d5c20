"""A backend that a test scripts, and executors in front of it.

The backend outlives executors and kernels, as a cluster does. An executor class is made per test,
with the capabilities and the faults that the test is about.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from chelate.contracts.executor import (
    Accepted,
    Capabilities,
    Executor,
    Job,
    JobHandle,
    JobState,
    Limits,
    Observation,
    Outcome,
    PollReport,
    Unknown,
)
from chelate.model import Reason

FAST = Limits(
    max_in_flight=100,
    run_batch=10,
    poll_min=0.02,
    poll_max=0.05,
    call_timeout=1.0,
    absent_grace=0.2,
    find_grace=0.1,
    cancel_grace=0.3,
)


@dataclass
class Running:
    key: str
    node: int
    state: JobState = JobState.RUNNING
    outcome: Outcome | None = None


@dataclass
class Backend:
    """``finish`` decides about a job when it arrives: an outcome, or None to let it run."""

    finish: Callable[[str, int], Outcome | None] = lambda key, node: Outcome(key, True, b"value")
    jobs: dict[str, Running] = field(default_factory=dict)
    starts: Counter[str] = field(default_factory=Counter)
    nodes: Counter[int] = field(default_factory=Counter)
    cancels: list[tuple[str, bool]] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    most: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)

    def start(self, job: Job) -> JobHandle:
        node = job.tasks[0].node_id
        with self.lock:
            self.starts[job.key] += 1
            self.nodes[node] += 1
            running = Running(job.key, node)
            running.outcome = self.finish(job.key, node)
            if running.outcome is not None:
                running.state = JobState.ENDED
            self.jobs[job.key] = running
            self.most = max(self.most, len(self.jobs) - len(self.released))
        return handle_of(job)

    def end(self, outcome: Outcome | None = None) -> None:
        """End everything that runs, from now on too."""
        with self.lock:
            self.finish = lambda key, node: outcome or Outcome(key, True, b"value")
            for job in self.jobs.values():
                if job.state is JobState.RUNNING:
                    job.state = JobState.ENDED
                    job.outcome = self.finish(job.key, job.node)

    def lose(self) -> None:
        """Forget every job, as a crashed controller does."""
        with self.lock:
            self.jobs.clear()


def handle_of(job: Job) -> JobHandle:
    return JobHandle(job.key, "fake", "1", {}, (job.tasks[0].key,))


def fake(
    backend: Backend,
    *,
    find: bool = True,
    idempotent: bool = False,
    limits: Limits = FAST,
    name: str = "fake",
    **methods: Any,
) -> type[Executor]:
    """An executor class before ``backend``; ``methods`` replace its own."""

    class FakeExecutor(Executor):
        async def run(self, jobs):
            for job in jobs:
                if idempotent and job.key in backend.jobs:
                    yield Accepted(job.key, handle_of(job))
                else:
                    yield Accepted(job.key, backend.start(job))

        async def poll(self, handles: Sequence[JobHandle]) -> PollReport:
            seen = {
                handle.key: Observation(handle.key, job.state, started_at=time.time())
                for handle in handles
                if (job := backend.jobs.get(handle.key)) is not None
            }
            return PollReport(frozenset(handle.key for handle in handles), seen)

        async def cancel(self, handles: Sequence[JobHandle], *, force: bool) -> None:
            for handle in handles:
                backend.cancels.append((handle.key, force))
                job = backend.jobs.get(handle.key)
                if job is not None and job.state is JobState.RUNNING:
                    job.state = JobState.KILLED

        async def collect(self, handles: Sequence[JobHandle]):
            for handle in handles:
                outcome = backend.jobs[handle.key].outcome
                if outcome is not None:
                    yield outcome

        async def find(self, keys):
            return {
                key: [JobHandle(key, "fake", "1", {}, (key,))]
                for key in keys
                if key in backend.jobs
            }

        async def release(self, handles: Sequence[JobHandle]) -> None:
            backend.released += [handle.key for handle in handles]

    FakeExecutor.name = name
    FakeExecutor.__qualname__ = f"FakeExecutor_{name}"
    FakeExecutor.limits = limits
    FakeExecutor.capabilities = Capabilities(find=find, idempotent=idempotent)
    for method, function in methods.items():
        setattr(FakeExecutor, method, function)
    return FakeExecutor


def failure(key: str, reason: Reason = Reason.USER_ERROR) -> Outcome:
    return Outcome(key, False, reason=reason, error="ValueError: no")


async def hang(*args: Any, **kwargs: Any) -> None:
    """A method that never answers."""
    await asyncio.sleep(3600)


def lost_answer(backend: Backend, times: int = 10**9) -> Any:
    """A ``run`` whose jobs start, and whose answer is lost the first ``times`` times."""
    left = [times]

    async def run(self, jobs):
        for job in jobs:
            started = handle_of(job) if job.key in backend.jobs else backend.start(job)
            left[0] -= 1
            if left[0] >= 0:
                yield Unknown(job.key, "the connection broke")
            else:
                yield Accepted(job.key, started)

    return run
