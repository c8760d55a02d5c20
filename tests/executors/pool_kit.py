"""A store in memory and a tiny kernel, enough to drive an executor."""

from __future__ import annotations

import asyncio
import pickle
import time
from pathlib import Path

import cloudpickle

from chelate.api import BlobMissingError, Job, JobState, Resources, Task, digest_bytes
from chelate.executors.local import LocalExecutor

FINAL = {JobState.ENDED, JobState.KILLED}


class Blobs:
    """A BlobReader over a dict; values of 64 KiB and more as files when a folder is given."""

    def __init__(self, folder: Path | None = None):
        self.data: dict[str, bytes] = {}
        self.folder = folder

    def add(self, value) -> str:
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
        return len(self.data[digest])


class Driver:
    """Makes jobs and waits for them, as a lane would."""

    def __init__(self, executor: LocalExecutor, blobs: Blobs | None = None):
        self.executor = executor
        self.blobs = blobs or Blobs()
        self.count = 0
        self.handles = {}

    def job(self, function, *args, resources=None, name=None, context=None) -> Job:
        self.count += 1
        digest = self.blobs.add(function)
        values = {str(n): self.blobs.add(value) for n, value in enumerate(args)}
        key = f"d:{self.count}:1:{time.monotonic_ns():x}"
        call = {
            "kind": "task",
            "function": digest,
            "args": [["p", n] for n in range(len(args))],
            "kwargs": {},
            "values": values,
            "name": name or getattr(function, "__name__", "task"),
        }
        inputs = (digest, *values.values())
        task = Task(key, "d", self.count, 1, call["name"], call, inputs, context or {})
        return Job(key, (task,), resources or Resources(), self.blobs)

    async def run(self, *jobs):
        outcomes = []
        async for outcome in self.executor.run(jobs):
            outcomes.append(outcome)
            handle = getattr(outcome, "handle", None)
            if handle is not None:
                self.handles[handle.key] = handle
        return outcomes

    async def start(self, function, *args, **options):
        job = self.job(function, *args, **options)
        (outcome,) = await self.run(job)
        return outcome.handle

    async def until(self, handles, states=FINAL, timeout=60.0):
        """Observations by key once every handle is in one of ``states``."""
        deadline = time.monotonic() + timeout
        found = {}
        waiting = list(handles)
        while waiting:
            assert time.monotonic() < deadline, [h.key for h in waiting]
            report = await self.executor.poll(waiting)
            assert report.covered >= {h.key for h in waiting}
            for handle in list(waiting):
                if report.seen[handle.key].state in states:
                    found[handle.key] = report.seen[handle.key]
                    waiting.remove(handle)
        return found

    async def outcomes(self, handles):
        await self.until(handles)
        return {outcome.key: outcome async for outcome in self.executor.collect(handles)}

    async def result(self, function, *args, **options):
        handle = await self.start(function, *args, **options)
        return (await self.outcomes([handle]))[handle.key]


def value(outcome):
    assert outcome.ok, outcome.error
    payload = outcome.payload
    data = payload.read_bytes() if isinstance(payload, Path) else payload
    assert outcome.digest == digest_bytes(data)
    return pickle.loads(data)


def drive(scenario, executor=None, blobs=None):
    """Run ``scenario(driver)`` on a fresh executor and close it."""

    async def whole():
        local = executor or LocalExecutor(workers=2)
        await local.open()
        driver = Driver(local, blobs)
        try:
            return await scenario(driver)
        finally:
            await local.close()

    return asyncio.run(whole())


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def eventually(condition, timeout=30.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
