"""The executor: start a command, say whether it runs, end it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

from chelate.api import TaskExecutor, TaskRun

__all__ = ["TemplateExecutor"]

# Detached, so that the task outlives the process that starts it; prints the process id.
START = 'setsid "$@" </dev/null >/dev/null 2>&1 & echo $!'


class TemplateExecutor(TaskExecutor):
    """Runs each task in a process of this machine, behind a launcher.

    Args:
        launcher: what stands before every command, such as ``["nice", "-n", "10"]``.
        root: folder for the tasks' directories.
    """

    name = "template"

    def __init__(self, launcher: Sequence[str] = (), *, root: str = "~/.chelate") -> None:
        self.launcher = launcher
        self.root = root

    def run(self, task: TaskRun) -> int:
        """Start the task; its process id is the job handle."""
        command = ["sh", "-c", START, "sh", *self.launcher, *task.command]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout)

    def poll(self, task_metadata: dict[str, Any], job_handle: int) -> str | None:
        """Whether the process is there."""
        try:
            os.kill(job_handle, 0)
        except ProcessLookupError:
            return None
        return "RUNNING"

    def cancel(self, task_metadata: dict[str, Any], job_handle: int) -> None:
        """Ask the process, and everything in its group, to stop."""
        os.killpg(job_handle, signal.SIGTERM)
