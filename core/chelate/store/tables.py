"""The tables of a store, declared once for SQLite and Postgres.

Importing this module loads SQLModel, so it is imported when a store opens and never before.
Columns named as JSON hold compact JSON text, so that both databases give back the same bytes.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, Table
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

__all__ = [
    "METADATA",
    "Blob",
    "Cancel",
    "Dispatch",
    "Event",
    "Fact",
    "Kernel",
    "Meta",
    "Node",
    "table_of",
]


# A registry of its own keeps these tables out of the metadata of a user's SQLModel classes.
class _Base(SQLModel, registry=registry()):
    pass


METADATA = _Base.metadata


def _sequence() -> Any:
    # SQLite numbers rows by itself only in columns of exactly the type INTEGER.
    number = BigInteger().with_variant(Integer, "sqlite")
    return Field(default=None, sa_column=Column(number, primary_key=True, autoincrement=True))


class Meta(_Base, table=True):
    """What the store is: ``schema_version``."""

    __tablename__ = "meta"
    name: str = Field(primary_key=True)
    value: str


class Kernel(_Base, table=True):
    """A kernel that lives, or is dead and still owns what is unfinished; ``state`` says which."""

    __tablename__ = "kernels"
    kernel_id: str = Field(primary_key=True)
    state: str
    pid: int
    host: str
    boot_id: str
    started_at: float


class Dispatch(_Base, table=True):
    """One row per dispatch; ``result``, ``options`` and ``counts`` are JSON."""

    __tablename__ = "dispatches"
    __table_args__ = (
        Index("dispatches_by_time", "created_at"),
        Index("dispatches_by_status", "status"),
        Index("dispatches_by_root", "root_id"),
        Index("dispatches_by_parent", "parent_id"),
    )
    dispatch_id: str = Field(primary_key=True)
    name: str
    status: str
    root_id: str
    parent_id: str | None
    parent_node: int | None
    depth: int
    graph: str | None
    lattice: str | None
    inputs: str | None
    result: str | None
    error: str | None
    created_at: float
    started_at: float | None
    ended_at: float | None
    owner: str | None
    epoch: int
    cancel_requested: bool
    held: bool
    redispatched_from: str | None
    options: str
    counts: str


class Node(_Base, table=True):
    """One row per touched node; ``handle``, ``output``, ``reused_from``, ``attempts``, ``usage``
    are JSON. Without a row id, one tree holds the rows in the order in which they are read."""

    __tablename__ = "nodes"
    __table_args__ = {"sqlite_with_rowid": False}
    dispatch_id: str = Field(primary_key=True)
    node_id: int = Field(primary_key=True)
    status: str
    attempt: int
    key: str | None
    executor: str | None
    handle: str | None
    started_at: float | None
    ended_at: float | None
    output: str | None
    error: str | None
    exception: str | None
    reason: str | None
    stdout: str | None
    stderr: str | None
    reused_from: str | None
    child_id: str | None
    cancel_requested: bool
    cancel_tries: int
    due: float | None
    attempts: str | None
    usage: str | None
    decision: str | None


class Cancel(_Base, table=True):
    """Requests to cancel, in the order of their commits; ``nodes`` is a JSON list or NULL."""

    __tablename__ = "cancels"
    __table_args__ = {"sqlite_autoincrement": True}
    seq: int | None = _sequence()
    dispatch_id: str
    nodes: str | None
    at: float


class Event(_Base, table=True):
    """What a commit changed in one dispatch: JSON ``[[node_id, status], …]``, with a null node id
    for the dispatch itself. ``turn`` is the commit's token, by which a retry knows itself."""

    __tablename__ = "events"
    __table_args__ = {"sqlite_autoincrement": True}
    seq: int | None = _sequence()
    dispatch_id: str
    epoch: int
    at: float
    turn: str
    changes: str


class Blob(_Base, table=True):
    """Small values by digest; large ones are files."""

    __tablename__ = "blobs"
    digest: str = Field(primary_key=True)
    size: int = Field(sa_column=Column(BigInteger, nullable=False))
    data: bytes = Field(sa_column=Column(LargeBinary, nullable=False))


class Fact(_Base, table=True):
    """Small durable JSON values by name."""

    __tablename__ = "facts"
    name: str = Field(primary_key=True)
    value: str


def table_of(model: type[SQLModel]) -> Table:
    """The SQLAlchemy table of one of the classes above."""
    return METADATA.tables[str(model.__tablename__)]
