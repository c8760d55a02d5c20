"""Finding and ending whole trees of processes, however hard they try to stay.

A tree is what descends from a root, what shares its process group, and what carries a mark in
the environment it was started with; a process that detached itself keeps at least one of them.
Without ``/proc`` (outside Linux) only process groups are seen.

Started as a script, this is the guardian of a pool: it outlives the kernel's death, ends every
worker of the pool with its tree, and removes the pool's folder.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import struct
import sys
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "KEY_VARIABLE",
    "MARK_VARIABLE",
    "Process",
    "Tree",
    "carriers",
    "environment",
    "guard",
    "holders",
    "lives",
    "of_pools",
    "pools",
    "running_key",
    "send",
    "snapshot",
    "start_ticks",
    "with_descendants",
]

MARK_VARIABLE = b"CHELATE_WORKER_MARK"
KEY_VARIABLE = b"CHELATE_TASK_KEY"
MARK = struct.Struct("<QdQQ224s")  # as in worker.py, which this file must run without


class Process(NamedTuple):
    """A process at one moment; ``start`` in clock ticks since boot tells a reused id apart."""

    pid: int
    parent: int
    group: int
    start: int


def _read(pid: int) -> Process | None:
    try:
        return _stat(pid)
    except OSError:
        return None


def _stat(pid: int) -> Process | None:
    text = Path(f"/proc/{pid}/stat").read_bytes()
    fields = text[text.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        return None
    return Process(pid, int(fields[1]), int(fields[2]), int(fields[19]))


def start_ticks(pid: int) -> int | None:
    """When the living process ``pid`` began, in clock ticks since boot; None when it is gone."""
    process = _read(pid)
    return process.start if process else None


def lives(pid: int, start: str) -> bool:
    """Whether the process ``pid`` that began at ``start``, as :func:`start_ticks` told it, runs.

    Raises:
        OSError: nobody can tell at present.
    """
    try:
        if start == "None":  # no /proc here
            os.kill(pid, 0)
            return True
        process = _stat(pid)
    except (FileNotFoundError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return process is not None and str(process.start) == start


def snapshot() -> dict[int, Process]:
    """Every living process by id; empty where there is no ``/proc``."""
    try:
        names = os.listdir("/proc")  # noqa: PTH208 (thousands of names; no Path for each)
    except OSError:
        return {}
    found = (_read(int(name)) for name in names if name.isdigit())
    return {process.pid: process for process in found if process}


def environment(pid: int) -> dict[bytes, bytes]:
    """The marks among the variables that ``pid`` was started with."""
    try:
        data = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    if b"CHELATE_" not in data:
        return {}
    pairs = (item.partition(b"=") for item in data.split(b"\0"))
    return {name: value for name, _, value in pairs if name in (MARK_VARIABLE, KEY_VARIABLE)}


def carriers(pids: Iterable[int], values: Collection[bytes]) -> set[int]:
    """Which of the processes carry one of ``values``: a worker's mark or a task's key."""
    wanted = set(values)
    return {pid for pid in pids if wanted.intersection(environment(pid).values())}


def send(pids: Iterable[int], number: int) -> None:
    """Signal each process that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


class Tree:
    """The tree of one root, remembered while it falls apart.

    ``values`` are those of the two variables that only this tree's processes carry. A worker
    adopts its orphans, so while it lives its tree hangs together.
    """

    def __init__(self, root: int, values: Collection[bytes]) -> None:
        self.root = root
        self.values = frozenset(values)
        self._start = start_ticks(root)
        self._known: dict[int, int] = {}

    def living(self, processes: dict[int, Process] | None = None) -> set[int]:
        """Ids of what still lives of the tree, as seen in one snapshot."""
        if processes is None:
            processes = snapshot()
        if not processes:
            return self._group()
        root = processes.get(self.root)
        reused = root is not None and root.start != self._start
        pids = {
            pid
            for pid, start in self._known.items()
            if pid in processes and processes[pid].start == start
        }
        if not reused:
            pids |= {item.pid for item in processes.values() if item.group == self.root}
            pids |= {self.root} & processes.keys()
        pids |= carriers(processes.keys() - pids, self.values)
        pids = with_descendants(pids, processes)
        self._known = {pid: processes[pid].start for pid in pids}
        return pids

    def _group(self) -> set[int]:
        try:
            os.killpg(self.root, 0)
        except (ProcessLookupError, PermissionError):
            return set()
        return {-self.root}

    def terminate(self, processes: dict[int, Process] | None = None) -> None:
        """Ask every process of the tree to stop."""
        send(self.living(processes), signal.SIGTERM)

    def kill(self, processes: dict[int, Process] | None = None) -> bool:
        """One step of ending the tree by force; True when nothing of it is left.

        The root goes last, halted: whoever loses its parent meanwhile becomes the root's child.
        """
        pids = self.living(processes)
        rest = pids - {self.root}
        if self.root in pids and rest:
            send([self.root], signal.SIGSTOP)
            send(rest, signal.SIGKILL)
        else:
            send(pids, signal.SIGKILL)
        return not pids


def with_descendants(pids: Collection[int], processes: dict[int, Process]) -> set[int]:
    """``pids`` and everything below them, without this process itself."""
    children: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process.pid)
    found = set(pids) - {os.getpid()}
    stack = list(found)
    while stack:
        for child in children.get(stack.pop(), ()):
            if child not in found and child != os.getpid():
                found.add(child)
                stack.append(child)
    return found


def running_key(mark: bytes) -> str:
    """The key of the task that the worker with this mark file is in; empty when in none."""
    try:
        data = Path(os.fsdecode(mark)).read_bytes()
    except OSError:
        return ""
    sequence, _, _, _, key = MARK.unpack(data)
    return key.rstrip(b"\0").decode() if sequence else ""


def holders(keys: Collection[str]) -> dict[str, set[int]]:
    """Processes of tasks, by key: workers that are in one now, and what its tasks started."""
    wanted = set(keys)
    processes = snapshot()
    found: dict[str, set[int]] = {}
    for pid in processes:
        values = environment(pid)
        mark = values.get(MARK_VARIABLE)
        for key in (values.get(KEY_VARIABLE, b"").decode(), running_key(mark) if mark else ""):
            if key in wanted and pid != os.getpid():
                found.setdefault(key, set()).add(pid)
    return {key: with_descendants(pids, processes) for key, pids in found.items()}


def _pool(pid: int) -> Path | None:
    """The private folder of the pool that ``pid`` belongs to."""
    mark = environment(pid).get(MARK_VARIABLE)
    return Path(os.fsdecode(mark)).parent if mark else None


def pools() -> set[Path]:
    """The private folders of all pools that have a process of this user."""
    return {folder for pid in snapshot() if _is_own(pid) and (folder := _pool(pid))}


def _is_own(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}").stat().st_uid == os.getuid()
    except OSError:
        return False


def of_pools(folders: Collection[Path]) -> set[int]:
    """Processes of the pools with these private folders, and what descends from them."""
    if not folders:
        return set()
    processes = snapshot()
    pids = {pid for pid in processes if _pool(pid) in folders}
    return with_descendants(pids, processes)


def guard(folder: str) -> None:
    """Wait for the kernel's death, however it comes; then end its workers and their trees."""
    kernel = os.getppid()
    watched: list[int] = [0]
    with contextlib.suppress(AttributeError, OSError):  # not Linux, or an old kernel
        watched.append(os.pidfd_open(kernel))
    # A child that the kernel forked holds the pipe open, hence the second look.
    while os.getppid() == kernel and not select.select(watched, [], [], 5.0)[0]:
        continue
    while pids := of_pools([Path(folder)]):
        send(pids, signal.SIGKILL)
        time.sleep(0.01)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    guard(sys.argv[1])
