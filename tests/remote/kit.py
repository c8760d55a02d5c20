"""A store in memory, jobs, a host in a folder, and ways to make the way there fail."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import cloudpickle

from chelate.api import (
    BlobMissingError,
    Job,
    JobHandle,
    Resources,
    Task,
    TransientError,
    digest_bytes,
)
from chelate.remote import (
    Completed,
    Environment,
    JobHost,
    LocalTransport,
    Transport,
    UnreachableError,
    job_id,
    job_key,
)


class Blobs:
    """A BlobReader over a dict; values of 64 KiB and more as files when a folder is given."""

    def __init__(self, folder: Path | None = None):
        self.data: dict[str, bytes] = {}
        self.folder = folder

    def add(self, value) -> str:
        module = sys.modules.get(getattr(value, "__module__", None) or "")
        if module is not None and module.__name__.startswith("test"):
            cloudpickle.register_pickle_by_value(module)  # the host has no tests
        return self.put(cloudpickle.dumps(value, protocol=5))

    def put(self, data: bytes) -> str:
        digest = digest_bytes(data)
        self.data[digest] = data
        if self.folder is not None and len(data) >= 65536:
            (self.folder / digest).write_bytes(data)
        return digest

    def read(self, digest):
        if digest not in self.data:
            raise BlobMissingError(f"The value {digest} is gone.")
        return self.data[digest]

    def path(self, digest):
        path = None if self.folder is None else self.folder / digest
        return path if path is not None and path.exists() else None

    def size(self, digest):
        return len(self.read(digest))


class Maker:
    """Makes jobs, each with keys of its own."""

    def __init__(self, blobs: Blobs | None = None):
        self.blobs = blobs or Blobs()
        self.count = 0

    def task(self, function, *args) -> Task:
        self.count += 1
        digest = self.blobs.add(function)
        values = {str(n): self.blobs.add(value) for n, value in enumerate(args)}
        call = {
            "kind": "task",
            "function": digest,
            "args": [["p", n] for n in range(len(args))],
            "kwargs": {},
            "values": values,
            "name": getattr(function, "__name__", "task"),
        }
        key = f"d:{self.count}:1:{time.monotonic_ns():x}"
        return Task(key, "d", self.count, 1, call["name"], call, (digest, *values.values()))

    def job(self, function, *args, **options) -> Job:
        return self.pack([self.task(function, *args)], **options)

    def pack(self, tasks, *, resources=None, timeout=None, code=None, store="s") -> Job:
        resources = resources or Resources()
        return Job(tasks[0].key, tuple(tasks), resources, self.blobs, timeout, code, store)


class Flaky(Transport):
    """A transport that counts, and fails where a test says so.

    ``before`` and ``after`` are called with each command; what they raise is what the caller
    gets, before or after the command ran. ``cut`` ends streams after so many bytes.
    """

    def __init__(self):
        self.inner = LocalTransport()
        self.host = self.inner.host
        self.commands: list[list[str]] = []
        self.sent = 0
        self.before: Callable | None = None
        self.after: Callable | None = None
        self.cut: int | None = None

    @property
    def verbs(self) -> list[str]:
        return ["probe" if command[0] == "sh" else command[3] for command in self.commands]

    async def run(self, argv, stdin=b"", *, timeout=None) -> Completed:
        if self.before:
            self.before(argv)
        self.commands.append(list(argv))

        async def counted():
            if isinstance(stdin, bytes):
                self.sent += len(stdin)
                yield stdin
                return
            async for piece in stdin:
                self.sent += len(piece)
                yield piece

        done = await self.inner.run(argv, counted(), timeout=timeout)
        if self.after:
            self.after(argv)
        return done

    async def stream(self, argv, stdin=b""):
        if self.before:
            self.before(argv)
        self.commands.append(list(argv))
        left = self.cut
        async with aclosing(self.inner.stream(argv, stdin)) as pieces:
            async for piece in pieces:
                if left is not None:
                    if len(piece) > left:
                        yield piece[:left]
                        raise TransientError("The connection was cut.")
                    left -= len(piece)
                yield piece


def unreachable(argv):
    raise UnreachableError("The host does not answer.")


def lost(argv):
    raise TransientError("The answer was lost.")


class Host:
    """A JobHost in a folder, with what tests do over and over."""

    def __init__(self, folder: Path, root: Path, environment: Environment | None = None, **options):
        self.transport = Flaky()
        self.root = root
        self.spool = folder / "spool"
        self.spool.mkdir(exist_ok=True)
        self.maker = Maker(Blobs(folder))
        options = {"grace": 0.5, **options}
        environment = environment or Environment(python=sys.executable)
        self.jobs = JobHost(self.transport, root=str(self.root), environment=environment, **options)

    def folder(self, job: Job) -> Path:
        return self.root / "jobs" / job_id(self.key(job))

    def key(self, job: Job) -> str:
        return job_key([task.key for task in job.tasks])

    def handle(self, job: Job) -> JobHandle:
        return JobHandle(job.key, "t", "n", {}, tuple(task.key for task in job.tasks))

    async def start(self, *jobs: Job):
        return await self.jobs.prepare(jobs, start=True)

    async def until(self, job: Job, wanted: Callable, seconds: float = 30.0):
        deadline = time.monotonic() + seconds
        while True:
            (sight,) = (await self.jobs.look([self.key(job)])).values()
            if wanted(sight):
                return sight
            assert time.monotonic() < deadline, sight
            await asyncio.sleep(0.05)

    async def over(self, job: Job, seconds: float = 60.0) -> None:
        """Wait for the end of a job; the look before the last is a cheap one."""
        deadline = time.monotonic() + seconds
        while not (self.folder(job) / "done").exists():
            assert time.monotonic() < deadline, self.folder(job)
            await asyncio.sleep(0.02)

    async def outcomes(self, *jobs: Job):
        for job in jobs:
            await self.over(job)
        handles = [self.handle(job) for job in jobs]
        return [outcome async for outcome in self.jobs.collect(handles, self.spool)]

    async def run(self, *jobs: Job):
        for answer in await self.start(*jobs):
            assert type(answer).__name__ == "Prepared", answer
        return await self.outcomes(*jobs)
