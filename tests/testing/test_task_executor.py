"""Twenty lines make an executor that passes the kit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

import chelate
from chelate.api import TaskExecutor
from chelate.testing import ExecutorConformance

STARTED: list[subprocess.Popen[bytes]] = []


class ProcessExecutor(TaskExecutor):
    name = "process"

    def __init__(self, root: str) -> None:
        self.root = root
        # The tests may run from a source tree that was never installed.
        variables = {"PYTHONPATH": str(Path(chelate.__file__).parents[1])}
        self.environment = {"python": sys.executable, "env_vars": variables}

    def run(self, task: Any) -> int:
        null = subprocess.DEVNULL
        process = subprocess.Popen(
            task.command, stdin=null, stdout=null, stderr=null, start_new_session=True
        )
        STARTED.append(process)
        return process.pid

    def poll(self, task_metadata: dict[str, Any], job_handle: int) -> str | None:
        return "RUNNING" if Path(f"/proc/{job_handle}").exists() else None

    def cancel(self, task_metadata: dict[str, Any], job_handle: int) -> None:
        os.killpg(job_handle, signal.SIGTERM)


@pytest.fixture
def reaped() -> Iterator[None]:
    """Wait for the supervisors, which outlive their executor."""
    yield
    while STARTED:
        STARTED.pop().wait(30)


@pytest.mark.large
class TestProcess(ExecutorConformance):
    many = 20
    cannot: ClassVar = {
        "cancel_task": "it runs one task at a time",
        "outage": "nothing lies between it and its processes",
        "packing": "it runs one task at a time",
        "queue": "its tasks start at once",
    }

    @pytest.fixture
    def make_executor(self, tmp_path: Path, reaped: None) -> Any:
        return lambda: ProcessExecutor(str(tmp_path / "root"))
