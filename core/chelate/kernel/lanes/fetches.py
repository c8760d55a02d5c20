"""Bringing values home that stayed with an executor: in a lane, and for readers without a kernel.

A value arrives in a file of its own below the home, so that what a cut left is taken up at its
end, by whichever process comes next; and only one process at a time writes there.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chelate.contracts.executor import Executor, JobHandle
from chelate.contracts.store import ResultStore
from chelate.digest import digest_stream
from chelate.errors import (
    AuthenticationError,
    BlobDamagedError,
    ChelateError,
    StoreError,
    StoreUnavailableError,
    TransientError,
)
from chelate.kernel.lanes.calls import LaneCalls
from chelate.kernel.lanes.report import Fetched, LaneReport

__all__ = ["Fetches", "Wanted", "bring", "store_fetched"]

_FORSAKEN = 7 * 86400.0  # seconds after which nobody takes up what a cut left


@dataclass(frozen=True, slots=True)
class Wanted:
    """A value to be brought to ``folder``, unless it ``is_home`` already."""

    digest: str
    size: int
    handle: JobHandle
    folder: Path
    is_home: Callable[[], bool]

    @classmethod
    def of(cls, store: ResultStore, digest: str, note: Mapping[str, Any], home: Path) -> Wanted:
        """What a store has noted of a value that stays elsewhere."""
        handle = JobHandle.from_json(note["handle"])
        folder = home / "fetching"
        return cls(digest, note["size"], handle, folder, lambda: store.path(digest) is not None)


Call = Callable[[Callable[[], Any]], Awaitable[Any]]


async def bring(executor: Executor, wanted: Wanted, call: Call) -> Path | None:
    """The whole value as a file; None when somebody else has brought it meanwhile.

    Args:
        executor: the one that the value stayed with, open.
        wanted: the value.
        call: awaits a call of the executor under its deadline.

    Raises:
        BlobMissingError: it is gone.
        BlobDamagedError: what the executor brings is not the value.
        TransientError: worth another try, and nothing is lost that has come; also when the disk
            here is full.
    """
    wanted.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _tidy(wanted.folder)
    target = wanted.folder / wanted.digest
    with _alone(target):
        if wanted.is_home():
            target.unlink(missing_ok=True)
            return None
        for _ in range(2):  # what an earlier process has left may be damaged
            try:
                await call(lambda: executor.fetch_held(wanted.handle, wanted.digest, target))
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                text = (
                    f"The value {wanted.digest} ({wanted.size:,} bytes) does not fit into "
                    f"{wanted.folder}: {error.strerror}. Make room there."
                )
                raise TransientError(text) from error
            if await asyncio.to_thread(_is_whole, target, wanted.digest):
                return target
            target.unlink(missing_ok=True)
    raise BlobDamagedError(
        f"What executor {executor.name!r} brought as the value {wanted.digest} is another one; "
        "it is refused."
    )


def _tidy(folder: Path) -> None:
    before = time.time() - _FORSAKEN
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < before:
                path.unlink()


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            text = f"Another process is bringing the value {target.name}."
            raise TransientError(text) from error
        yield
    finally:
        os.close(descriptor)


def _is_whole(path: Path, digest: str) -> bool:
    with path.open("rb") as data:
        whole = digest_stream(data) == digest
        os.fsync(data.fileno())
    return whole


def store_fetched(store: ResultStore, digest: str, path: Path | None) -> None:
    """The value is an ordinary one from now on.

    Raises:
        StoreError: it cannot be stored.
    """
    try:
        if path is not None:
            store.put_file(digest, path, move=True)
    except StoreError:
        if store.path(digest) is None:  # else another process was first
            raise
    # What is here comes before any note; if this cannot be written now, nothing is wrong.
    with suppress(StoreUnavailableError):
        store.unhold(digest, gone=False)


class Fetches:
    """The values that a lane is asked for, one after the other, so that jobs go on beside it."""

    def __init__(self, calls: LaneCalls) -> None:
        self._calls = calls
        self._wanted: dict[str, Wanted] = {}

    def add(self, wanted: Sequence[Wanted]) -> None:
        """Values to bring."""
        self._wanted.update((item.digest, item) for item in wanted)
        self._calls.wake()

    async def part(self) -> None:
        """One value. What may pass is raised, so that it is tried again after a while."""
        calls = self._calls
        if not self._wanted:
            await calls.pause(None)
            return
        wanted = next(iter(self._wanted.values()))
        path, failure = None, None
        try:
            path = await bring(calls.executor, wanted, lambda call: calls.timed("fetch_held", call))
        except (AuthenticationError, TransientError):
            self._wanted[wanted.digest] = self._wanted.pop(wanted.digest)  # others go first
            raise
        except ChelateError as error:
            failure = error
        calls.fine()
        del self._wanted[wanted.digest]
        told = LaneReport(calls.name, fetched=[Fetched(wanted.digest, path, failure)])
        calls.report(told)
