"""The campaign's processes, as the process table shows them, and what each of them is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from chelate.remote.sights import job_id

__all__ = ["Seen", "look", "of_task"]


class Seen(NamedTuple):
    """One living process; ``start`` in clock ticks tells a reused id apart."""

    pid: int
    start: int
    role: str
    command: str
    environment: dict[str, str]


def look(folder: Path) -> list[Seen]:
    """Every living process that names the campaign's folder in its command or environment."""
    place = os.fsencode(folder)
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208 - many times a second
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:  # noqa: PTH123
                environ = file.read()
            with open(f"/proc/{name}/cmdline", "rb") as file:  # noqa: PTH123
                command = file.read()
            if place not in environ and place not in command:
                continue
            with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields[0] in (b"Z", b"X"):
            continue
        pairs = (item.partition("=") for item in environ.decode(errors="replace").split("\0"))
        environment = {
            key: value for key, _, value in pairs if key.startswith(("CHELATE_", "FAKE_"))
        }
        text = command.decode(errors="replace").replace("\0", " ").strip()
        role = _role(text, environment)
        found.append(Seen(int(name), int(fields[19]), role, text, environment))
    return found


def _role(command: str, environment: dict[str, str]) -> str:
    if "workload.py" in command:
        return "kernel"
    if "process_tree.py" in command:
        return "guardian"
    if "CHELATE_WORKER_MARK" in environment:
        return "worker" if "worker.py" in command else "grandchild"
    if "CHELATE_JOB" in environment:
        return "child"
    if " supervise " in command:
        return "supervisor"
    if "scheduler.py serve" in command:
        return "scheduler"
    if "FAKE_SLURM_STEP" in environment:
        return "step"
    return "program"


def of_task(seen: list[Seen], keys: set[str]) -> dict[str, list[Seen]]:
    """What runs for each of these attempts: bodies, and all that they started."""
    jobs = {job_id(key): key for key in keys}
    found: dict[str, list[Seen]] = {}
    for process in seen:
        key = jobs.get(process.environment.get("CHELATE_JOB", ""), "")
        inherited = process.environment.get("CHELATE_TASK_KEY", "")
        mark = process.environment.get("CHELATE_WORKER_MARK", "")
        for name in {key, inherited, _running(mark) if mark else ""}:
            if name in keys:
                found.setdefault(name, []).append(process)
    return found


def _running(mark: str) -> str:
    from chelate.executors.process_tree import running_key

    return running_key(os.fsencode(mark))
