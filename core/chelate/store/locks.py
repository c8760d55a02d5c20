"""Which kernels are alive: locks that the operating system drops when their process dies.

A lock belongs to an open file, and a forked child inherits open files. So a child closes its
copies at once (without unlocking, which would free the parent's lock as well), and a lock is held
only in the process that took it.
"""

from __future__ import annotations

import fcntl
import os
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Protocol

__all__ = ["KernelLocks", "boot_id", "forget_on_fork", "network_filesystem"]


class _Forgets(Protocol):
    def forget(self) -> None: ...


_forgetful: weakref.WeakSet[_Forgets] = weakref.WeakSet()


def _after_fork() -> None:
    for thing in list(_forgetful):
        thing.forget()


os.register_at_fork(after_in_child=_after_fork)


def forget_on_fork(thing: _Forgets) -> None:
    """Call ``thing.forget()`` in every forked child for as long as ``thing`` lives."""
    _forgetful.add(thing)


class KernelLocks:
    """One lock file per kernel in ``folder``; the kernel holds it exclusively while it lives.

    Probing takes the lock shared, so that two processes which look at once do not take each
    other for the owner.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: dict[str, int] = {}
        self._guard = threading.Lock()
        forget_on_fork(self)

    def _path(self, kernel_id: str) -> Path:
        return self.folder / f"{kernel_id}.lock"

    def take(self, kernel_id: str) -> None:
        """Hold the lock of a new kernel until :meth:`release` or the end of this process."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(self._path(kernel_id), flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        with self._guard:
            self._held[kernel_id] = descriptor

    def held(self) -> set[str]:
        """The kernels whose locks this object holds."""
        with self._guard:
            return set(self._held)

    def probe(self, kernel_id: str) -> int | None:
        """None while the kernel lives; otherwise a descriptor that keeps it dead until closed.

        The descriptor is -1 when there is no lock file any more.
        """
        if kernel_id in self._held:
            return None
        try:
            descriptor = os.open(self._path(kernel_id), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return -1
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def alive(self, kernel_id: str) -> bool:
        """Whether some process holds the kernel's lock."""
        descriptor = self.probe(kernel_id)
        if descriptor is None:
            return True
        if descriptor >= 0:
            os.close(descriptor)
        return False

    def discard(self, kernel_id: str) -> None:
        """Remove the lock file of a dead kernel."""
        with suppress(FileNotFoundError):
            self._path(kernel_id).unlink()

    def release(self) -> None:
        """Let go of every lock held here."""
        with self._guard:
            held, self._held = self._held, {}
        for kernel_id, descriptor in held.items():
            try:
                self.discard(kernel_id)
            finally:
                os.close(descriptor)

    def forget(self) -> None:
        """In a forked child: the locks are the parent's."""
        self._guard = threading.Lock()
        held, self._held = self._held, {}
        for descriptor in held.values():
            os.close(descriptor)


def boot_id() -> str:
    """What tells one boot of this machine from another; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


# fmt: off
_NETWORK = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre",
    "gpfs", "beegfs", "ceph", "afs", "9p", "ncpfs",
    "glusterfs", "pvfs2", "orangefs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph",
    "fuse.beegfs", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse",
})
# fmt: on


def network_filesystem(path: Path, mounts: Path = Path("/proc/mounts")) -> str | None:
    """The type of the network file system that holds ``path``; None when it is a local one.

    None also where the system keeps no table of mounts.
    """
    try:
        table = mounts.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    places = {path.resolve(), *path.resolve().parents}
    depth, kind = -1, ""
    for line in table.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(fields[1].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
        # Of two mounts on one point the later covers the earlier.
        if point in places and len(point.parts) >= depth:
            depth, kind = len(point.parts), fields[2]
    return kind if kind in _NETWORK else None
