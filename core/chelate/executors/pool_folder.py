"""Folders of pools, and what the kernels of a host tell each other through them.

A kernel may die, or be taken for dead and wake again, with tasks in its memory and in the pipes of
its workers that no process carries yet. So a pool lists every task before it takes it and every
one that it gives up, and takes none that another kernel forbade. A lock orders taking with
forbidding, so of two kernels one knows for certain.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from chelate.api import TransientError, digest_bytes
from chelate.executors import process_tree

__all__ = ["PoolFolder", "boot_id", "end_leftovers", "other_pools"]

PATIENCE = 2.0  # seconds that the lock of another kernel, which holds it for moments, may take
SPARE = 10_000  # tasks that ended and are still listed
_LOOK = 0.02  # seconds between two looks at processes that end


class PoolFolder:
    """The private folder of one pool. Its name tells host and process that own it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listed = 0
        self._forbidden: set[str] = set()
        self._heard = 0  # bytes of the list of forbidden tasks that were read

    @classmethod
    def create(cls) -> PoolFolder:
        """A new one of this process."""
        own = f"{_prefix()}{os.getpid()}-{process_tree.start_ticks(os.getpid())}-"
        return cls(Path(tempfile.mkdtemp(prefix=own)))

    @property
    def owner_lives(self) -> bool:
        """Whether the process that made it still runs, on this host and since this boot."""
        pid, _, rest = self.path.name.removeprefix(_prefix()).partition("-")
        return pid.isdigit() and str(process_tree.start_ticks(int(pid))) == rest.split("-")[0]

    async def accept(self, keys: Sequence[str], kept: Collection[str]) -> set[str]:
        """List tasks before they are taken; those that another kernel forbade must not be.

        ``kept`` are those of all earlier ones that may still run.

        Raises:
            TransientError: another kernel holds the lock; nothing was taken.
        """
        async with self._locked() as accepted:
            with suppress(FileNotFoundError), (self.path / "forbidden").open("rb") as stream:
                stream.seek(self._heard)
                news = stream.read()
                self._heard += len(news)
                self._forbidden.update(news.decode().split())
            if self._listed > 2 * len(kept) + SPARE:
                accepted.truncate(0)
                accepted.write(_lines(kept))
                self._listed = len(kept)
            refused = self._forbidden.intersection(keys) if self._forbidden else set()
            taken = [key for key in keys if key not in refused]
            accepted.write(_lines(taken))
            self._listed += len(taken)
        return refused

    async def forbid(self, keys: Sequence[str]) -> set[str]:
        """From another kernel: none of these may be taken; those that were before, and still are.

        Raises:
            FileNotFoundError: the pool was closed.
            TransientError: its owner holds the lock, and is perhaps stopped.
        """
        async with self._locked() as accepted:
            with (self.path / "forbidden").open("ab") as stream:
                stream.write(_lines(keys))
            accepted.seek(0)
            taken = set(accepted.read().decode().split()).intersection(keys)
        return taken - self.written_off() if taken else taken

    def write_off(self, keys: Iterable[str]) -> None:
        """Say for other kernels that these tasks will not run here, or not for much longer."""
        with (self.path / "written-off").open("ab") as stream:
            stream.write(_lines(keys))

    def written_off(self) -> set[str]:
        """The tasks that the pool has given up."""
        try:
            return set((self.path / "written-off").read_text().split())
        except OSError:
            return set()

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[BinaryIO]:
        deadline = time.monotonic() + PATIENCE
        if not self.path.is_dir():
            raise FileNotFoundError(f"The pool {self.path} was closed.")
        with (self.path / "accepted").open("a+b") as accepted:
            while True:
                try:
                    fcntl.flock(accepted, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise TransientError(
                            f"Another kernel keeps the local pool {self.path} locked. If its "
                            "process is stopped, let it go on or end it."
                        ) from error
                    await asyncio.sleep(0.005)
                except OSError:  # a file system without locks: nothing better can be had there
                    break
            try:
                yield accepted
                accepted.flush()
            finally:
                with suppress(OSError):  # a child forked meanwhile would keep it locked
                    fcntl.flock(accepted, fcntl.LOCK_UN)


def _lines(keys: Iterable[str]) -> bytes:
    return "".join(f"{key}\n" for key in keys).encode()


@cache
def boot_id() -> str:
    """What the system calls the time since it was started; empty outside Linux."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@cache
def _prefix() -> str:
    """Process ids mean something on one host, since one boot, in one container only."""
    try:
        space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        space = ""
    place = "\n".join((os.uname().nodename, boot_id(), space))
    return f"chelate-pool-{digest_bytes(place.encode())[:8]}-"


def other_pools() -> list[PoolFolder]:
    """Every pool of this user and host that left a folder or a process, also one's own."""
    paths = set(Path(tempfile.gettempdir()).glob(f"{_prefix()}*"))
    paths.update(path for path in process_tree.pools() if path.name.startswith(_prefix()))
    return [PoolFolder(path) for path in sorted(paths) if _is_mine(path)]


def _is_mine(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.getuid()
    except FileNotFoundError:
        return True  # a process of it could be read
    except OSError:
        return False


async def end_leftovers(dead: Collection[PoolFolder], keys: Sequence[str]) -> set[str]:
    """Kill, and see gone, all processes of these tasks and of dead pools; the keys found."""
    folders = [pool.path for pool in dead]
    found: set[str] = set()
    while True:
        holders = process_tree.holders(keys)
        pids = set().union(*holders.values(), process_tree.of_pools(folders))
        if not pids:
            break
        found.update(holders)
        process_tree.send(pids, signal.SIGKILL)
        await asyncio.sleep(_LOOK)
    for folder in folders:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    return found
