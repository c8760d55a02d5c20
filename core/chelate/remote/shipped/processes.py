"""Whole trees of processes: found by descent and by a mark that nobody can shed, and ended."""

import ctypes
import os
import signal
import sys
import time
from typing import Any

__all__ = [
    "MARK", "boot_id", "end", "identity", "is_alive", "members", "oom_kills", "send",
    "start_ticks", "subreaper",
]  # fmt: skip

MARK = "CHELATE_JOB"  # in the environment of everything that a job starts


def boot_id() -> str:
    """What changes with every start of the host; empty outside Linux."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def _stat(pid: int) -> "tuple[int, int] | None":
    """Parent and start (clock ticks since boot) of a living process."""
    try:
        with open("/proc/{}/stat".format(pid), "rb") as file:
            text = file.read()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        return None
    return int(fields[1]), int(fields[19])


def start_ticks(pid: int) -> int:
    """When a living process began; 0 when it is gone, or where there is no ``/proc``."""
    found = _stat(pid)
    return found[1] if found else 0


def identity() -> "dict[str, Any]":
    """What tells this process from any other, anywhere and at any time."""
    pid = os.getpid()
    return {
        "host": os.uname()[1],
        "boot_id": boot_id(),
        "pid": pid,
        "start_ticks": start_ticks(pid),
    }


def is_alive(claim: "dict[str, Any]") -> "bool | None":
    """Whether the process of a claim lives; None when that cannot be told from here."""
    if claim.get("host") != os.uname()[1]:
        return None
    if claim.get("boot_id") != boot_id():
        return False
    pid = int(claim.get("pid") or 0)
    if pid <= 1:
        return False
    if os.path.isdir("/proc/self"):
        return start_ticks(pid) == claim.get("start_ticks")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _marked(pid: int, mark: bytes) -> bool:
    try:
        with open("/proc/{}/environ".format(pid), "rb") as file:
            return mark in file.read().split(b"\0")
    except OSError:
        return False


def members(identifier: str, root: int = 0) -> "set[int]":
    """Living processes of a job: what carries its mark, and all that descends from those and
    from ``root``; without ``root`` itself and this process."""
    table = {}
    try:
        names = os.listdir("/proc")
    except OSError:
        return set()
    for name in names:
        if name.isdigit():
            found = _stat(int(name))
            if found:
                table[int(name)] = found[0]
    mark = "{}={}".format(MARK, identifier).encode()
    found_all = {pid for pid in table if _marked(pid, mark)}
    children = {}  # type: dict[int, list[int]]
    for pid, parent in table.items():
        children.setdefault(parent, []).append(pid)
    stack = [*found_all, root] if root else list(found_all)
    while stack:
        for pid in children.get(stack.pop(), ()):
            if pid not in found_all:
                found_all.add(pid)
                stack.append(pid)
    return found_all - {root, os.getpid()}


def send(pids: "set[int]", number: int) -> None:
    """Signal each process that is still there."""
    for pid in pids:
        if pid > 1:
            try:
                os.kill(pid, number)
            except (ProcessLookupError, PermissionError):
                pass


def end(identifier: str, root: int = 0, seconds: float = 10.0) -> bool:
    """Kill every process of a job and see them gone; False when some outlast the time.

    Where there is no ``/proc`` to look at, nothing is found.
    """
    deadline = time.monotonic() + seconds
    while True:
        pids = members(identifier, root)
        if not pids:
            return True
        send(pids, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)


def subreaper() -> None:
    """Adopt orphaned grandchildren, so that whoever detached itself is still found."""
    if sys.platform.startswith("linux"):
        set_child_subreaper = 36
        ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def oom_kills() -> int:
    """How often the kernel has killed for memory in this process's control group (v2, then v1)."""
    try:
        with open("/proc/self/cgroup") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return 0
    for _, controllers, path in lines:
        if controllers == "":
            candidate = "/sys/fs/cgroup{}/memory.events".format(path)
        elif "memory" in controllers.split(","):
            candidate = "/sys/fs/cgroup/memory{}/memory.oom_control".format(path)
        else:
            continue
        try:
            with open(candidate) as file:
                for line in file:
                    name, _, count = line.partition(" ")
                    if name == "oom_kill":
                        return int(count)
        except (OSError, ValueError):
            continue
    return 0
