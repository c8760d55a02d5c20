"""Everything in a store as it was at one moment, for who checks it. The contract is
``chelate.contracts.store.Snapshot``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Column, ColumnElement, Select, select

from chelate.api import (
    BlobMissingError,
    CancelRequest,
    DispatchRecord,
    NodeRecord,
    StoreError,
    digest_bytes,
    digest_stream,
    is_digest,
)
from chelate.store import statements as sql
from chelate.store.database import Database
from chelate.store.rows import decode_dispatch, decode_node
from chelate.store.tables import METADATA
from chelate.store.values import HELD

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["SQLSnapshot"]

T = TypeVar("T")

_ROWS = 1000  # fetched at once
_DISPATCHES = 500  # in one IN list
_PIECE = 16 << 20  # bytes of a file that are searched at once
_OVERLAP = 4096


class SQLSnapshot:
    """One reading transaction, and the files that go with it."""

    def __init__(self, database: Database, connection: Connection, folder: Path) -> None:
        self.gapless = database.gapless
        self._database = database
        self._connection = connection
        self._folder = folder
        self._unreadable: list[str] = []

    def _rows(self, query: Select[Any]) -> Iterator[Sequence[Any]]:
        """Rows of which every column holds what it is for: SQLite stores anything anywhere."""
        forms = [
            (column.name, _forms(column), column.nullable)
            for column in query.selected_columns
            if isinstance(column, Column)
        ]
        for row in self._raw(query):
            for value, (name, form, nullable) in zip(row, forms, strict=True):
                if not (isinstance(value, form) or (value is None and nullable)):
                    where = f"A row of {query.get_final_froms()[0]} cannot be read"
                    self._unreadable.append(f"{where}: {value!r:.100} is no {name}.")
                    break
            else:
                yield row

    def _raw(self, query: Select[Any]) -> Iterator[Sequence[Any]]:
        wishes = {"yield_per": _ROWS}
        with (
            self._database.explained(),
            self._connection.execute(query, execution_options=wishes) as rows,
        ):
            yield from rows

    def _by(self, column: ColumnElement[str]) -> ColumnElement[str]:
        return column.collate(self._database.collation)

    def _decoded(
        self, query: Select[Any], what: str, decode: Callable[[Sequence[Any]], T]
    ) -> Iterator[T]:
        for row in self._rows(query):
            try:
                yield decode(row)
            except (StoreError, TypeError, ValueError) as error:
                self._unreadable.append(f"A row of {what} cannot be read: {error}")

    def dispatches(self) -> Iterator[DispatchRecord]:
        query = select(sql.dispatches).order_by(self._by(sql.dispatches.c.dispatch_id))
        return self._decoded(query, "dispatches", decode_dispatch)

    def nodes(self, dispatch_ids: Sequence[str] | None = None) -> Iterator[tuple[str, NodeRecord]]:
        owner = sql.nodes.c.dispatch_id
        query = select(sql.nodes).order_by(self._by(owner), sql.nodes.c.node_id)
        queries = [query]
        if dispatch_ids is not None:
            asked = sorted(dispatch_ids)
            starts = range(0, len(asked), _DISPATCHES)
            queries = [query.where(owner.in_(asked[at : at + _DISPATCHES])) for at in starts]
        for part in queries:
            yield from self._decoded(part, "nodes", lambda row: (row[0], decode_node(row)))

    def events(self) -> Iterator[tuple[str, int, int, str, list[list[Any]]]]:
        events = sql.events.c
        query = select(
            events.dispatch_id, events.seq, events.epoch, events.turn, events.changes
        ).order_by(self._by(events.dispatch_id), events.seq)
        return self._decoded(query, "events", lambda row: (*row[:4], json.loads(row[4])))

    def cancels(self) -> Iterator[CancelRequest]:
        cancels = sql.cancels.c
        query = select(cancels.seq, cancels.dispatch_id, cancels.nodes).order_by(cancels.seq)
        return self._decoded(
            query,
            "cancels",
            lambda row: CancelRequest(
                row[0], row[1], None if row[2] is None else tuple(json.loads(row[2]))
            ),
        )

    def alive(self, kernel_ids: Iterable[str]) -> set[str]:
        return self._database.alive(sorted(kernel_ids), self._connection)

    # -- values ---------------------------------------------------------------------------------

    def _files(self) -> Iterator[Path]:
        return (path for path in self._folder.glob("??/*") if is_digest(path.name))

    def blobs(self, hashed: bool) -> Iterator[tuple[str, int, bool, float | None]]:
        columns = [sql.blobs.c.digest, sql.blobs.c.size]
        if not hashed:
            for digest, size in self._rows(select(*columns)):
                yield digest, size, True, None
        else:
            for digest, size, data in self._rows(select(*columns, sql.blobs.c.data)):
                yield digest, size, len(data) == size and digest_bytes(data) == digest, None
        for path in self._files():
            try:
                found = path.stat()
            except OSError:  # a link that leads nowhere, or removed since
                continue
            whole = not hashed or _matches(path)
            yield path.name, found.st_size, whole, max(0.0, time.time() - found.st_mtime)

    def held(self) -> Iterator[str]:
        facts = sql.facts.c
        query = select(facts.name, facts.value)
        for name, gone in self._decoded(query, "facts", _fact):
            if name.startswith(HELD) and not gone:
                yield name.removeprefix(HELD)

    def read(self, digest: str) -> bytes:
        query = select(sql.blobs.c.data).where(sql.blobs.c.digest == digest)
        with self._database.explained():
            data = self._connection.execute(query).scalar()
        if data is not None:
            return bytes(data)
        try:
            return (self._folder / digest[:2] / digest).read_bytes()
        except OSError as error:
            raise BlobMissingError(f"The stored value {digest} cannot be read: {error}.") from error

    # -- the whole ------------------------------------------------------------------------------

    def texts(self) -> Iterator[tuple[str, bytes]]:
        for table in METADATA.sorted_tables:
            for row in self._raw(select(table)):
                for column, value in zip(table.columns, row, strict=True):
                    if isinstance(value, (str, bytes)):
                        where = ", ".join(str(row[at]) for at in range(len(table.primary_key)))
                        place = f"column {column.name} of the row {where} of {table}"
                        yield place, value.encode() if isinstance(value, str) else value
        for path in self._files():
            with path.open("rb") as stream:
                last = b""
                while piece := stream.read(_PIECE):
                    yield str(path), last + piece
                    last = piece[-_OVERLAP:]

    def damage(self, thorough: bool) -> list[str]:
        with self._database.explained():
            return [*self._unreadable, *self._database.damage(self._connection, thorough)]


def _fact(row: Sequence[Any]) -> tuple[str, bool]:
    name, value = row[0], json.loads(row[1])
    return name, name.startswith(HELD) and "gone" in value


def _forms(column: Column[Any]) -> tuple[type, ...]:
    # SQLModel gives texts a type of its own, around SQLAlchemy's.
    kind = getattr(column.type, "impl", column.type).python_type
    return {bool: (bool, int), float: (float, int)}.get(kind, (kind,))


def _matches(path: Path) -> bool:
    try:
        with path.open("rb") as data:
            return digest_stream(data) == path.name
    except OSError:
        return False
