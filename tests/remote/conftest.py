"""A host per test, of which nothing may be left running."""

from __future__ import annotations

import os
import signal

import pytest
from tests.remote.kit import Host


def job_processes(root) -> set[int]:
    """Processes that a job below ``root`` started, and its supervisors."""
    found = set()
    names = set(os.listdir(root / "jobs")) if (root / "jobs").exists() else set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                marks = file.read().split(b"\0")
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                command = file.read()
        except OSError:
            continue
        ours = any(f"CHELATE_JOB={name}".encode() in marks for name in names)
        if ours or (str(root).encode() in command and int(pid) != os.getpid()):
            found.add(int(pid))
    return found


@pytest.fixture
def make_host(tmp_path):
    made = []

    def make(name="host", **options) -> Host:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        host = Host(folder, **options)
        made.append(host)
        return host

    yield make
    for host in made:
        for pid in job_processes(host.root):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def host(make_host) -> Host:
    return make_host()
