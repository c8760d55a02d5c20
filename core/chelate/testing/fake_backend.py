"""A backend that misbehaves on order: what a cluster does on its worst days, on one machine.

::

    backend = FakeBackend(tmp_path)
    backend.inject("drop_reply", "run")        # the next run happens, and its answer is lost
    with backend.outage():                     # nothing gets through; jobs go on
        ...
    assert backend.ledger("run") == {key: 1}   # what it really did, whatever it said

Its state is a folder, so it outlives executors and processes, and any process that knows the
folder sees the same jobs. Faults belong to the process that injects them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from chelate.contracts.executor import HOLD_FROM, Job, Outcome, Task
from chelate.digest import digest_bytes
from chelate.errors import TransientError
from chelate.executors import process_tree
from chelate.model import Reason
from chelate.testing import fake_task

__all__ = ["FAULTS", "FakeBackend", "FakeJob", "Fault"]

COPIES = 4  # jobs of one key at most
FAULTS = {
    "delay": "it answers after `delay` seconds",
    "disk_full": "results cannot be written",
    "drop_reply": "it acts, and the answer is lost",
    "duplicate": "it acts twice on one request",
    "half_covered": "a poll covers every second job",
    "late_delivery": "the request times out and is acted on `delay` seconds later",
    "outage": "nothing gets through",
    "server_error": "it answers with an error of its own and does nothing",
    "stale_listing": "a look-up or poll does not see jobs yet",
    "throttle": "it refuses for now, and asks to be left alone for `delay` seconds",
    "truncated_output": "a result is cut off on its way",
}


@dataclass(slots=True)
class Fault:
    """What goes wrong, in which call (None: any), how often, and for how many seconds."""

    kind: str
    call: str | None = None
    times: int = 1
    delay: float = 0.0


class FakeJob:
    """One job as its folder shows it; a task's files are in ``<folder>/<number>``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.native_id = folder.name
        self._document: dict[str, Any] | None = None

    @property
    def document(self) -> dict[str, Any]:
        """``{"key", "store", "tasks": [key, …], "own": [number, …]}``; empty while the job is only
        forbidden. ``own`` are the tasks that no other job had claimed."""
        if self._document is None:
            try:
                self._document = json.loads((self.folder / "job.json").read_text())
            except OSError:
                return {}
        return self._document or {}

    @property
    def tasks(self) -> list[str]:
        """Keys of the tasks."""
        return list(self.document.get("tasks", ()))

    @property
    def own(self) -> dict[int, str]:
        """Keys by number of the tasks that run in this job."""
        return {number: self.tasks[number] for number in self.document.get("own", ())}

    def marked(self, word: str) -> bool:
        """Whether the folder holds a file of that name."""
        return (self.folder / word).exists()

    def mark(self, word: str) -> None:
        """Leave an empty file of that name."""
        with contextlib.suppress(OSError):
            (self.folder / word).touch()

    def part(self, number: int, name: str) -> Path:
        """A file of a task."""
        return self.folder / str(number) / name

    def ended(self, number: int) -> bool:
        """Whether a task has written its outcome."""
        return self.part(number, "outcome.json").exists()

    def stays(self, number: int, payload: object) -> bool:
        """Whether a task's result may stay with the backend, and is worth it."""
        wish = self.document.get("stay", ())
        large = isinstance(payload, bytes) and len(payload) >= HOLD_FROM
        return large and bool(wish) and bool(wish[number])

    def outcome(self, number: int) -> Outcome:
        """How a task ended; one without an outcome of its own was killed or died."""
        key = self.tasks[number]
        streams = [_read(self.part(number, name)) for name in ("stdout", "stderr")]
        if not self.ended(number):
            killed = self.marked("cancelled") or self.part(number, "cancelled").exists()
            return Outcome(
                key,
                False,
                reason=Reason.CANCELLED_BY_USER if killed else Reason.CRASHED,
                error="The task was cancelled." if killed else "The task's process is gone.",
                stdout=streams[0],
                stderr=streams[1],
            )
        header = json.loads(self.part(number, "outcome.json").read_text())
        return Outcome(
            key,
            header["ok"],
            _read(self.part(number, "payload")) if header["ok"] else None,
            header.get("digest"),
            graph=bool(header.get("graph")),
            reason=None if header["ok"] else Reason(_reason(header["reason"])),
            error=header.get("error"),
            exception=_read(self.part(number, "exception")) or None,
            stdout=streams[0],
            stderr=streams[1],
            started_at=header["started_at"],
            ended_at=header["ended_at"],
        )


def _reason(word: str) -> str:
    return "CANCELLED_BY_USER" if word == "TERMINATED" else word


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


class FakeBackend:
    """A cluster in a folder.

    Args:
        folder: where jobs live; two backends of one folder are one.
        answer: gives a task's outcome at once, instead of a process that runs it; for tests
            that are about the kernel and not about values.
    """

    _known: ClassVar[dict[str, FakeBackend]] = {}
    # Of every backend, since a task may end after whoever started it has let go of its backend.
    _processes: ClassVar[list[subprocess.Popen[bytes]]] = []

    def __init__(self, folder: Path, answer: Callable[[Task], Outcome] | None = None) -> None:
        self.folder = folder
        self.answer = answer
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self._faults: list[Fault] = []
        self._answers: dict[str, Outcome] = {}
        self._lock = threading.RLock()
        self._known[str(folder)] = self

    @classmethod
    def at(cls, folder: str) -> FakeBackend:
        """The backend of a folder."""
        return cls._known.get(folder) or cls(Path(folder))

    # -- misbehaving --------------------------------------------------------------------------

    def inject(
        self, kind: str, call: str | None = None, *, times: int = 1, delay: float = 0.0
    ) -> None:
        """Let something go wrong in the next calls; see ``FAULTS`` and :class:`Fault`."""
        assert kind in FAULTS, f"{kind!r} is none of {sorted(FAULTS)}"
        with self._lock:
            self._faults.append(Fault(kind, call, times, delay))

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Nothing gets through; jobs go on."""
        fault = Fault("outage", None, sys.maxsize)
        with self._lock:
            self._faults.insert(0, fault)
        try:
            yield
        finally:
            with self._lock:
                self._faults.remove(fault)

    def meet(self, call: str, keys: Sequence[str]) -> Fault | None:
        """Note a call, and what goes wrong in it.

        Raises:
            TransientError: the call does not get through, or is refused for now.
        """
        with self._lock:
            self.calls.append((call, tuple(keys)))
            fault = next((item for item in self._faults if item.call in (None, call)), None)
            if fault is None:
                return None
            fault.times -= 1
            if not fault.times:
                self._faults.remove(fault)
        if fault.kind == "outage":
            raise TransientError("The fake backend cannot be reached.")
        if fault.kind == "throttle":
            raise TransientError("The fake backend is busy (429).", retry_after=fault.delay)
        if fault.kind == "server_error":
            raise TransientError("The fake backend broke (503).")
        return fault

    def ledger(self, verb: str) -> Counter[str]:
        """How often each key was really started (``"run"``) or ended by force or wish
        (``"cancel"``), by whatever process."""
        lines = _read(self.folder / f"ledger-{verb}").decode().splitlines()
        return Counter(lines)

    def _note(self, verb: str, key: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        descriptor = os.open(self.folder / f"ledger-{verb}", flags, 0o600)
        os.write(descriptor, f"{key}\n".encode())
        os.close(descriptor)

    # -- jobs ---------------------------------------------------------------------------------

    def jobs(self, key: str) -> list[FakeJob]:
        """All jobs of a task's key, or of a pack's; more than one is a duplicate."""
        name = digest_bytes(key.encode())[:32]
        places = [self.folder / "jobs" / f"{name}.{copy}" for copy in range(COPIES)]
        found = [place.parent / (_read(place / "carrier").decode() or place) for place in places]
        return [FakeJob(place) for place in found if place.is_dir()]

    def every(self) -> list[FakeJob]:
        """All jobs."""
        return [FakeJob(path) for path in sorted(self.folder.glob("jobs/*"))]

    def claim(self, key: str, copy: int = 0) -> FakeJob | None:
        """Take the place of a job; None when it is taken."""
        name = digest_bytes(key.encode())[:32]
        folder = self.folder / "jobs" / f"{name}.{copy}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
        except FileExistsError:
            return None
        return FakeJob(folder)

    def start(self, job: Job, copy: int = 0) -> FakeJob:
        """Start a job, unless it was started before."""
        keys = [task.key for task in job.tasks]
        claimed = self.claim(" ".join(keys), copy)
        if claimed is None:
            return self.jobs(" ".join(keys))[copy]
        own = [0] if len(keys) == 1 else self._own(keys, claimed, copy)
        values = self.folder / "values"
        values.mkdir(exist_ok=True)
        for task in job.tasks:
            for digest in task.inputs:
                target = values / digest
                if not target.exists():
                    part = values / f"{digest}.{os.getpid()}.{threading.get_ident()}"
                    part.write_bytes(job.blobs.read(digest))
                    part.rename(target)
        document = {
            "key": job.key,
            "store": job.store,
            "tasks": keys,
            "own": own,
            "stay": [task.stay for task in job.tasks],
        }
        for number in own:
            task = job.tasks[number]
            self._note("run", task.key)
            if self.answer is not None:
                self._answers[task.key] = self.answer(task)
            else:
                self._spawn(claimed.folder / str(number), task, values)
        part = claimed.folder / "job.part"
        part.write_text(json.dumps(document))
        part.rename(claimed.folder / "job.json")
        return claimed

    def _own(self, keys: Sequence[str], pack: FakeJob, copy: int) -> list[int]:
        """Claim each task of a pack; the numbers of those that nobody had."""
        own: list[int] = []
        for number, key in enumerate(keys):
            place = self.claim(key, copy)
            if place is not None:
                (place.folder / "carrier").write_text(pack.native_id)
                own.append(number)
        return own

    def value(self, digest: str) -> Path:
        """Where the backend has a value, if it has."""
        return self.folder / "values" / digest

    def keep(self, outcome: Outcome) -> Outcome:
        """Let a result stay with the backend."""
        data = outcome.payload
        assert isinstance(data, bytes)
        digest = digest_bytes(data)
        self.value(digest).parent.mkdir(parents=True, exist_ok=True)
        self.value(digest).write_bytes(data)
        return replace(outcome, payload=None, digest=digest, held=len(data))

    def start_later(self, job: Job, seconds: float) -> None:
        """Act on a request only after a while, whoever has given up on it."""
        timer = threading.Timer(seconds, self.start, [job])
        timer.daemon = True
        timer.start()

    def _spawn(self, folder: Path, task: Task, values: Path) -> None:
        folder.mkdir()
        context = {
            **task.context,
            "dispatch_id": task.dispatch_id,
            "node_id": task.node_id,
            "attempt": task.attempt,
            "name": task.name,
        }
        order = {"call": task.call, "context": context, "values": str(values)}
        (folder / "task.json").write_text(json.dumps(order))
        path = os.pathsep.join(entry for entry in sys.path if entry)
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, str(fake_task.__file__), str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": path, "CHELATE_TASK_KEY": task.key},
            )
        self._reap()
        self._processes.append(process)

    def _reap(self) -> None:
        for process in list(self._processes):
            if process.poll() is not None:
                with contextlib.suppress(ValueError):  # another thread was first
                    self._processes.remove(process)

    def answered(self, key: str) -> Outcome | None:
        """The outcome that ``answer`` gave for a task."""
        return self._answers.get(key)

    def living(self, keys: Sequence[str]) -> set[str]:
        """Those of the tasks that have a process."""
        self._reap()
        return set(process_tree.holders(keys)) if keys else set()

    def end(self, keys: Sequence[str], *, force: bool) -> None:
        """Signal every process of these tasks."""
        for key in keys:
            self._note("cancel", key)
        holders = process_tree.holders(keys) if keys else {}
        pids: set[Any] = set().union(*holders.values())
        process_tree.send(pids, signal.SIGKILL if force else signal.SIGTERM)

    def remove(self, job: FakeJob) -> None:
        """Forget a job."""
        shutil.rmtree(job.folder, ignore_errors=True)
