"""What a pool remembers of a task, and the words for how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

from chelate.api import Job, JobHandle, JobState, Observation, Outcome, Reason, Task
from chelate.executors.link import Frame, Link
from chelate.worker import FILE, GRAPH, OK

__all__ = ["FINAL_STATES", "MemoryWatch", "Record", "crash_outcome", "outcome_of"]

FINAL_STATES = frozenset({JobState.ENDED, JobState.KILLED})


class Record:
    """One task from its acceptance to its release."""

    __slots__ = (
        "batch",
        "cancelled",
        "cost",
        "devices",
        "folder",
        "force",
        "function",
        "handle",
        "job",
        "key",
        "link",
        "mem",
        "observation",
        "outcome",
        "queued_at",
        "reported",
        "slots",
        "task",
    )

    def __init__(self, job: Job, task: Task, handle: JobHandle, folder: str | None) -> None:
        self.key = job.key
        self.job = job
        self.task = task
        self.handle = handle
        self.folder = folder
        self.slots = job.resources.cpus
        self.mem = int(job.resources.mem or 0)
        self.devices: tuple[str, ...] = ()
        self.function = task.call.get("function") or task.call["kind"]
        self.cost = 0.0
        self.batch: list[int] = []
        self.link: Link | None = None
        self.cancelled = False
        self.force = False
        self.queued_at = 0.0
        self.observation = Observation(job.key, JobState.QUEUED)
        self.reported: Observation | None = None
        self.outcome: Outcome | None = None

    @property
    def wide(self) -> bool:
        """Whether it needs more than one slot, and so is placed on its own."""
        return self.slots > 1 or self.mem > 0 or self.job.resources.gpus > 0

    @property
    def final(self) -> bool:
        return self.observation.state in FINAL_STATES

    def observe(self, state: JobState, started_at: float | None = None) -> None:
        self.observation = Observation(self.key, state, started_at=started_at)

    def kill(self) -> None:
        """It ended because somebody cancelled it."""
        self.outcome = None
        self.observation = Observation(
            self.key,
            JobState.KILLED,
            Reason.CANCELLED_BY_USER,
            f"Task {self.task.name!r} was cancelled.",
            self.observation.started_at,
        )


def outcome_of(key: str, frame: Frame) -> Outcome:
    """The outcome that a worker's frame tells."""
    _, flags, started, ended, digest, meta, fingerprint, payload, exception, out, err = frame
    if flags & OK:
        whole, _, parts = fingerprint.decode().partition(" ")
        return Outcome(
            key,
            True,
            Path(os.fsdecode(payload)) if flags & FILE else payload,
            digest.decode(),
            whole or None,
            json.loads(parts) if parts else None,
            bool(flags & GRAPH),
            stdout=out,
            stderr=err,
            started_at=started,
            ended_at=ended,
        )
    story: dict[str, Any] = json.loads(meta)
    reason, error = story["reason"], story["error"]
    if reason == "TERMINATED":
        reason = "CRASHED"
        error += "Somebody outside chelate sent SIGTERM to the worker; run the task again.\n"
    return Outcome(
        key,
        False,
        reason=Reason(reason),
        error=error,
        exception=exception or None,
        stdout=out,
        stderr=err,
        started_at=started,
        ended_at=ended,
    )


def crash_outcome(record: Record, link: Link, memory: MemoryWatch, now: float) -> Outcome:
    """The outcome of a task whose worker died under it."""
    code = link.process.returncode
    reason = Reason.CRASHED
    name = record.task.name
    if code < 0:
        try:
            label = f"{signal.Signals(-code).name} ({signal.strsignal(-code)})"
        except ValueError:
            label = f"signal {-code}"
        error = f"Task {name!r} died with its worker process of {label}."
        if -code == signal.SIGKILL and memory.exhausted():
            reason = Reason.OOM
            error = (
                f"Task {name!r} was killed because memory ran out; "
                "give it more, or run fewer tasks at once (workers=, mem=)."
            )
    else:
        error = f"Task {name!r} ended its worker process with exit code {code}."
    _, started, offsets = link.mark()
    return Outcome(
        record.task.key,
        False,
        reason=reason,
        error=error + "\n",
        stdout=link.log(0, offsets[0]),
        stderr=link.log(1, offsets[1]),
        started_at=started,
        ended_at=now,
    )


class MemoryWatch:
    """Tells whether the system has killed something for memory since the last question."""

    def __init__(self) -> None:
        self._last = self._count()

    def exhausted(self) -> bool:
        last, self._last = self._last, self._count()
        return self._last > last

    @staticmethod
    def _count() -> int:
        files = [Path("/proc/vmstat")]
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/cgroup").read_text().splitlines():
                if line.startswith("0::"):
                    files.append(Path("/sys/fs/cgroup" + line[3:]) / "memory.events")
        total = 0
        for file in files:
            with contextlib.suppress(OSError, ValueError):
                for line in file.read_text().splitlines():
                    name, _, value = line.partition(" ")
                    if name == "oom_kill":
                        total += int(value)
        return total
