"""Folders for values on their way here; what a killed process left is removed by the next one."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

__all__ = ["Spool"]

_PREFIX = "chelate-spool-"
_OWNER = "owner"


class Spool:
    """A folder of this process alone, made when it is first asked for.

    It holds a locked file for as long as it is used. The operating system drops the lock when the
    process dies, however it does, and whoever makes a spool next removes those without a lock.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self._lock = -1

    def folder(self) -> Path:
        """Where it is.

        Raises:
            OSError: the folder for temporary files cannot be written.
        """
        if self.path is None:
            _sweep(Path(tempfile.gettempdir()))
            path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._lock = os.open(path / _OWNER, flags, 0o600)
            with suppress(OSError):  # a file system without locks: nobody sweeps it, then
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                os.write(self._lock, _host())  # an empty file may still be unlocked
            self.path = path
        return self.path

    def drop(self, job: str) -> None:
        """Remove what came of the job with this id."""
        for path in self.path.glob(f"{job}-*.part") if self.path else ():
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove it with all that is in it; the next use makes another."""
        path, self.path = self.path, None
        if path is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(self._lock)


def _host() -> bytes:
    """Locks of some shared file systems are seen on their own host only."""
    return os.uname().nodename.encode()


def _sweep(folder: Path) -> None:
    for path in folder.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another user's, one that lives, or one that is just removed
            descriptor = os.open(path / _OWNER, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.read(descriptor, 1000) == _host():
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)
