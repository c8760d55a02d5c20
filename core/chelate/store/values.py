"""The values of a store: small ones in its database, large ones as files below its home."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from chelate.api import (
    BlobHeldError,
    BlobMissingError,
    ConfigError,
    ResultStore,
    StoreUnavailableError,
    is_digest,
)
from chelate.store.blobs import BlobFiles, RecentBlobs, require_digest
from chelate.store.database import Database

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from chelate.store.statements import Statements

__all__ = ["HELD", "StoredValues"]

HELD = "held:"  # begins the name of the fact that says where a value stays


class StoredValues(ResultStore):
    """The half of the SQL store that reads and writes values; the other half sets it up."""

    can_hold = True
    home: Path
    _database: Database
    _files: BlobFiles
    _recent: RecentBlobs
    _statements: Statements | None

    def _sql(self) -> Statements:
        if self._statements is None:
            from chelate.store.statements import Statements

            self._statements = Statements(self._database)
        return self._statements

    def _unavailable(self, error: OSError) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"The store in {self.home} cannot be used: {error.strerror or error} "
            f"({error.filename or self.home}). Make the folder writable and see that its disk "
            "has space, or set CHELATE_HOME to another folder."
        )

    def _store_large(self, blobs: Mapping[str, bytes]) -> dict[str, bytes]:
        limit = self._database.inline_limit
        small = {digest: data for digest, data in blobs.items() if len(data) <= limit}
        if len(small) < len(blobs):
            try:
                self._files.write((d, data) for d, data in blobs.items() if d not in small)
            except OSError as error:
                raise self._unavailable(error) from error
        return small

    def _inline(self, digests: Iterable[str]) -> dict[str, bytes]:
        wanted = list(digests)
        return self._database.read(lambda link: self._sql().blobs(link, wanted)) if wanted else {}

    def missing_blobs(self, digests: Iterable[str]) -> set[str]:
        wanted = set(digests)
        lacking = wanted - self._database.read(
            lambda link: self._sql().blob_sizes(link, sorted(wanted)).keys()
        )
        lacking = {digest for digest in lacking if self.path(digest) is None}
        return lacking - self.held(lacking).keys() if lacking else lacking

    def _notes(self, digests: Iterable[str]) -> dict[str, dict[str, Any]]:
        names = [HELD + digest for digest in digests]
        found = self._database.read(lambda link: self._sql().facts_named(link, names))
        return {name.removeprefix(HELD): note for name, note in found.items()}

    def held(self, digests: Iterable[str] | None) -> dict[str, dict[str, Any]]:
        """Values that stay elsewhere; what came here meanwhile, or is known to be gone, is not
        among them."""
        if digests is None:
            rows = self._database.read(lambda link: self._sql().facts(link, HELD))
            digests = [name.removeprefix(HELD) for name, _ in rows]
        noted = {name: note for name, note in self._notes(digests).items() if "gone" not in note}
        if not noted:
            return noted
        inline = self._database.read(lambda link: self._sql().blob_sizes(link, list(noted)))
        return {
            digest: note
            for digest, note in noted.items()
            if digest not in inline and self.path(digest) is None
        }

    def unhold(self, digest: str, *, gone: bool) -> None:
        """Forget where a value stayed, or remember that it is gone there."""
        name = HELD + digest
        sql = self._sql()

        def work(link: Connection) -> None:
            note = sql.facts_named(link, [name]).get(name)
            if note is not None:
                sql.set_facts(link, {name: {**note, "gone": True} if gone else None})

        self._database.write(work)

    def put_file(self, digest: str, path: Path, *, move: bool) -> None:
        """Store a large value. A copy is checked against ``digest``; a moved file is the
        caller's word, so that a large result is not read twice.

        Raises:
            BlobDamagedError: the copied bytes do not match.
        """
        if not is_digest(digest):
            raise ConfigError(f"{digest!r} is not a digest, so it cannot name a stored value.")
        try:
            self._files.put(digest, Path(path), move=move)
        except OSError as error:
            raise self._unavailable(error) from error

    def read(self, digest: str) -> bytes:
        data = self._recent.get(digest)
        if data is not None:
            return data
        data = self._inline([digest]).get(digest)
        if data is not None:
            require_digest(data, digest, self._database.place)
            self._recent.add({digest: data})
            return data
        path = self._existing(digest)
        try:
            return require_digest(path.read_bytes(), digest, str(path))
        except OSError as error:
            raise self._unavailable(error) from error

    def read_many(self, digests: Iterable[str]) -> dict[str, bytes]:
        """Small values in bulk, each checked; large or missing ones are left out.

        Raises:
            BlobDamagedError: a value does not match its digest.
        """
        found: dict[str, bytes] = {}
        asked: list[str] = []
        for digest in dict.fromkeys(digests):
            data = self._recent.get(digest)
            if data is None:
                asked.append(digest)
            else:
                found[digest] = data
        fresh = self._inline(asked)
        for digest, data in fresh.items():
            require_digest(data, digest, self._database.place)
        self._recent.add(fresh)
        return found | fresh

    def stream(self, digest: str) -> BinaryIO:
        """The value as a file object; a large one is not checked while it is read."""
        path = self.path(digest)
        try:
            return io.BytesIO(self.read(digest)) if path is None else path.open("rb")
        except OSError as error:
            raise self._unavailable(error) from error

    def path(self, digest: str) -> Path | None:
        if not is_digest(digest) or self._recent.get(digest) is not None:
            return None  # hot small values are asked for once per task: no look at the disk
        path = self._files.path(digest)
        return path if path.is_file() else None

    def _existing(self, digest: str) -> Path:
        path = self.path(digest)
        if path is None:
            note = self._notes([digest]).get(digest)
            if note is not None:
                where = f"The value {digest} stayed with executor {note['executor']}"
                if "gone" in note:
                    raise BlobMissingError(
                        f"{where}, and is no longer there. Redispatch the workflow that made it."
                    )
                size = f"{note['size'] / 2**20:.1f} MiB"
                raise BlobHeldError(f"{where} ({size}); reading its task's output brings it here.")
            path = self.path(digest)
            if path is not None:
                return path  # it came between the two looks, and its note went
            raise BlobMissingError(
                f"The stored value {digest} is neither in {self._database.place} nor in "
                f"{self._files.folder}: its file was removed, or this home is not the one that "
                "stored it. Redispatch the workflow that made it."
            )
        return path

    def size(self, digest: str) -> int:
        size = self._database.read(lambda link: self._sql().blob_sizes(link, [digest])).get(digest)
        if size is not None:
            return size
        try:
            return self._existing(digest).stat().st_size
        except BlobHeldError:
            note = self._notes([digest]).get(digest)
            return self._existing(digest).stat().st_size if note is None else int(note["size"])
