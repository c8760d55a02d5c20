"""Folders of pools, and what the kernels of a host tell each other through them.

A kernel may die, or be taken for dead and wake again, with tasks in its memory and in the pipes of
its workers that no process carries yet. So a pool lists tasks before it takes them, and reads then
which of them another kernel forbade; that one forbids before it reads which were taken. So at least
one of two kernels knows of the other, and what both know of is written off by the pool.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from chelate.api import TransientError, digest_bytes
from chelate.executors import process_tree

__all__ = ["PoolFolder", "boot_id", "prefix"]

SPARE = 10_000  # tasks that ended and are still listed


class PoolFolder:
    """The private folder of one pool. Its name tells where it is and which process owns it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.here = path.name.startswith(prefix())
        pid, _, rest = path.name.removeprefix(prefix()).partition("-")
        self.owner = int(pid) if self.here and pid.isdigit() else 0
        self._start = rest.split("-")[0]
        self._listed = 0
        self._forbidden: set[str] = set()  # by others in this pool, or by us in another's
        self._heard = 0  # bytes of the list of forbidden tasks that were read
        self._off: set[str] = set()

    @classmethod
    def create(cls) -> PoolFolder:
        """A new one of this process."""
        own = f"{prefix()}{os.getpid()}-{process_tree.start_ticks(os.getpid())}-"
        return cls(Path(tempfile.mkdtemp(prefix=own)))

    @property
    def owner_lives(self) -> bool:
        """Whether the process that made it still runs. Raises OSError when nobody can tell."""
        return self.owner > 0 and process_tree.lives(self.owner, self._start)

    def accept(self, keys: Sequence[str], kept: Collection[str]) -> set[str]:
        """List tasks before they are taken; those that another kernel forbade must not be.

        ``kept`` are those of all earlier ones that may still run.

        Raises:
            TransientError: the folder cannot be written; nothing may be taken.
        """
        try:
            if not self.path.is_dir():  # whoever cleans has removed it
                self.path.mkdir(mode=0o700)
                self._append("accepted", kept)
            if self._listed > 2 * len(kept) + SPARE:
                part = self.path / "accepted.part"
                part.write_bytes(_lines(kept))
                part.replace(self.path / "accepted")
                self._listed = len(kept)
            self._listed += len(keys)
            self._append("accepted", keys)
            self._listen()
            refused = self._forbidden.intersection(keys) if self._forbidden else set()
            self.write_off(refused)
        except OSError as error:
            raise TransientError(
                f"The folder {self.path} of the local executor's workers cannot be used: {error}. "
                "Free space there, or set TMPDIR to another place."
            ) from error
        return refused

    def _listen(self) -> None:
        with suppress(FileNotFoundError), (self.path / "forbidden").open("rb") as stream:
            if stream.seek(0, os.SEEK_END) < self._heard:
                self._heard = 0
            stream.seek(self._heard)
            news = stream.read()
            whole = news[: news.rfind(b"\n") + 1]  # the rest is about to be written
            self._heard += len(whole)
            self._forbidden.update(whole.decode().split())

    def forbid(self, keys: Collection[str]) -> set[str]:
        """From another kernel: none of these may be taken; those that were before, and still are.

        Raises:
            FileNotFoundError: the pool was closed, or cannot be seen from here.
        """
        news = [key for key in keys if key not in self._forbidden]
        self._append("forbidden", news)
        self._forbidden.update(news)
        taken = self._read("accepted").intersection(keys)
        return taken - self.written_off() if taken else taken

    def write_off(self, keys: Iterable[str]) -> None:
        """Say for other kernels that these tasks run here no more. Raises OSError."""
        news = [key for key in keys if key not in self._off]
        if news:
            self._append("written-off", news)
            self._off.update(news)

    def written_off(self) -> set[str]:
        """The tasks that the pool has given up."""
        return self._read("written-off")

    def _append(self, name: str, keys: Iterable[str]) -> None:
        with (self.path / name).open("ab", buffering=0) as stream:
            data = _lines(keys)
            while data:  # a full disk takes a part, and refuses the next
                data = data[stream.write(data) :]

    def _read(self, name: str) -> set[str]:
        try:
            return set((self.path / name).read_text().split())
        except FileNotFoundError:
            return set()


def _lines(keys: Iterable[str]) -> bytes:
    """Lines that stay whole behind one that a full disk has cut."""
    return "".join(f"\n{key}\n" for key in keys).encode()


@cache
def boot_id() -> str:
    """What the system calls the time since it was started; empty outside Linux."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@cache
def prefix() -> str:
    """Process ids mean something on one host, since one boot, in one container only."""
    try:
        space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        space = ""
    place = f"{boot_id() or os.uname().nodename}\n{space}"
    return f"chelate-pool-{digest_bytes(place.encode())[:8]}-"
