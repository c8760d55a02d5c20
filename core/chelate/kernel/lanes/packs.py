"""Which jobs of a lane go out together: how long they wait for company, and who shares a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from chelate.contracts.executor import Capabilities, Job, Limits
from chelate.model import Resources

__all__ = ["Departures"]


class Departures:
    """Jobs that wait for their call of ``run``. Moments are monotonic seconds."""

    def __init__(self, limits: Limits, capabilities: Capabilities) -> None:
        self._limits = limits
        self._pack = limits.pack if capabilities.packing else 1
        self._jobs: list[Job] = []
        self._first = 0.0  # when the one that has waited longest came
        self.keys: set[str] = set()

    def add(self, jobs: Sequence[Job], now: float) -> None:
        """Jobs of one task each, in the order in which they should start."""
        if not self._jobs:
            self._first = now
        self._jobs.extend(jobs)
        self.keys.update(job.key for job in jobs)

    def wait(self, now: float) -> float | None:
        """Seconds until :meth:`take` gives something; None while nothing waits."""
        if not self._jobs:
            return None
        if len(self._jobs) >= self._limits.run_batch * self._pack:
            return 0.0
        return max(0.0, self._first + self._limits.gather - now)

    def take(self) -> list[Job]:
        """The next call's jobs, packed."""
        size = self._limits.run_batch * self._pack
        batch, self._jobs = self._jobs[:size], self._jobs[size:]
        self.keys.difference_update(job.key for job in batch)
        return batch

    def drop(self, dispatch_id: str) -> None:
        """Jobs of this dispatch are not to be started here."""
        self._jobs = [job for job in self._jobs if job.tasks[0].dispatch_id != dispatch_id]
        self.keys = {job.key for job in self._jobs}

    def packed(self, jobs: Sequence[Job]) -> list[Job]:
        """Jobs that ask for the same become one, up to the executor's limit.

        A task with a time limit of its own travels alone: behind others its clock would run
        before it starts.
        """
        if self._pack < 2:
            return list(jobs)
        groups: dict[tuple[Resources, str | None], list[Job]] = {}
        alone: list[Job] = []
        for job in jobs:
            if job.timeout is not None:
                alone.append(job)
            else:
                groups.setdefault((job.resources, job.code), []).append(job)
        packs = [
            _one(group[start : start + self._pack])
            for group in groups.values()
            for start in range(0, len(group), self._pack)
        ]
        return [*packs, *alone]


def _one(jobs: list[Job]) -> Job:
    return replace(jobs[0], tasks=tuple(task for job in jobs for task in job.tasks))
