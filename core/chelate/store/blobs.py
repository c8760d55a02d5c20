"""Values as files named by their digest, and a small memory of the latest small ones.

A file appears under its name only when it is whole and on the disk: temporary name in the same
folder, fsync, rename, fsync of the folder.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from chelate.api import (
    BlobDamagedError,
    digest_bytes,
    digest_stream,
)
from chelate.store.locks import forget_on_fork

__all__ = ["BlobFiles", "RecentBlobs", "damaged", "require_digest"]


def damaged(digest: str, place: str) -> BlobDamagedError:
    """The error for a value whose bytes do not match their name."""
    return BlobDamagedError(
        f"The stored value {digest} in {place} does not match its digest: the medium or another "
        "program changed it. Redispatch the workflow that made it, or restore the file."
    )


def require_digest(data: bytes, digest: str, place: str) -> bytes:
    """``data``, when it is what ``digest`` names.

    Raises:
        BlobDamagedError: it is not.
    """
    if digest_bytes(data) != digest:
        raise damaged(digest, place)
    return data


class BlobFiles:
    """Files ``<folder>/<first two digits>/<digest>``, readable by their owner alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        """Where the value is, or would be."""
        return self.folder / digest[:2] / digest

    def _temporary(self, target: Path) -> Path:
        target.parent.mkdir(mode=0o700, exist_ok=True)
        return target.with_name(f".{target.name}.{secrets.token_hex(6)}")

    def write(self, values: Iterable[tuple[str, bytes]]) -> None:
        """Store values from memory; one that is there already is checked, and mended if damaged."""
        folders = set()
        for digest, data in values:
            target = self.path(digest)
            if self._whole(target, digest, len(data)):
                continue
            temporary = self._temporary(target)
            try:
                with _create(temporary) as out:
                    out.write(data)
                    _sync(out)
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
            folders.add(target.parent)
        for folder in folders:
            _sync_folder(folder)

    def put(self, digest: str, source: Path, *, move: bool) -> None:
        """Store a file. With ``move`` it is taken away from where it was; a copy is checked.

        Raises:
            BlobDamagedError: the copied bytes do not match ``digest``.
        """
        target = self.path(digest)
        if move and self._take(source, target):
            return
        if not self._whole(target, digest, source.stat().st_size):
            temporary = self._temporary(target)
            try:
                with source.open("rb") as data, _create(temporary) as out:
                    shutil.copyfileobj(data, out, 1 << 20)
                    _sync(out)
                with temporary.open("rb") as data:
                    if digest_stream(data) != digest:
                        raise damaged(digest, str(source))
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(target.parent)
        if move:
            source.unlink(missing_ok=True)

    def _take(self, source: Path, target: Path) -> bool:
        with source.open("rb") as data:
            os.fsync(data.fileno())
        source.chmod(0o600)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            source.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            return False
        _sync_folder(target.parent)
        return True

    def _whole(self, target: Path, digest: str, size: int) -> bool:
        with suppress(FileNotFoundError):
            if target.stat().st_size == size:
                with target.open("rb") as data:
                    return digest_stream(data) == digest
        return False


def _create(path: Path) -> BinaryIO:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    return os.fdopen(descriptor, "wb")


def _sync(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    # The folder's own entry in its parent may be as new as the file.
    for place in (folder, folder.parent):
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class RecentBlobs:
    """The latest small values, at most ``limit`` bytes: children read a result at once."""

    def __init__(self, limit: int = 16 << 20) -> None:
        self._limit = limit
        self._size = 0
        self._values: OrderedDict[str, bytes] = OrderedDict()
        self._guard = threading.Lock()
        forget_on_fork(self)

    def get(self, digest: str) -> bytes | None:
        """The value, when it is remembered."""
        with self._guard:
            data = self._values.get(digest)
            if data is not None:
                self._values.move_to_end(digest)
            return data

    def add(self, values: Mapping[str, bytes]) -> None:
        """Remember values that are durably stored, and forget the oldest beyond the limit."""
        with self._guard:
            for digest, data in values.items():
                if digest not in self._values and len(data) <= self._limit:
                    self._values[digest] = data
                    self._size += len(data)
            while self._size > self._limit:
                self._size -= len(self._values.popitem(last=False)[1])

    def forget(self) -> None:
        """In a forked child: a thread of the parent may have held the lock."""
        self._guard = threading.Lock()
        self._values = OrderedDict()
        self._size = 0
