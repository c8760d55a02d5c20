"""A host per test, of which nothing may be left running."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest
from tests.remote.kit import Host


def job_processes(root) -> set[int]:
    """Processes that a job below ``root`` started, and its supervisors."""
    found = set()
    names = {path.name for path in (root / "jobs").glob("*")}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            marks = (process / "environ").read_bytes().split(b"\0")
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        ours = any(f"CHELATE_JOB={name}".encode() in marks for name in names)
        if ours or (str(root).encode() in command and int(process.name) != os.getpid()):
            found.add(int(process.name))
    return found


@pytest.fixture(scope="session")
def warm(tmp_path_factory) -> Host:
    """A root with everything in it, as on a host that has been used before."""
    folder = tmp_path_factory.mktemp("warm")
    host = Host(folder, folder / "root")
    asyncio.run(host.jobs.probe())
    return host


@pytest.fixture
def make_host(tmp_path, warm):
    made = []

    def make(name="host", *, cold=False, **options) -> Host:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        host = Host(folder, folder / "root" if cold else warm.root, **options)
        made.append(host)
        return host

    yield make
    for host in made:
        for pid in job_processes(host.root):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def host(make_host, warm) -> Host:
    """Of a process that has probed the host."""
    host = make_host()
    host.jobs._report, host.jobs._secret = warm.jobs._report, warm.jobs._secret
    return host
