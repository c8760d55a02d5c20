"""Every statement of the store, built once.

The writes of a commit are compiled to text and run straight on the driver, row tuples in; what
runs once per call is left to SQLAlchemy, which caches it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    Connection,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    text,
    update,
)

from chelate.api import (
    FINAL,
    CancelRequest,
    DispatchFilter,
    NodeStatus,
    Status,
)
from chelate.store import tables
from chelate.store.database import Database
from chelate.store.rows import dump_json

__all__ = ["LockedDispatch", "Statements"]

K = TypeVar("K")

_CHUNK = 500  # values in one IN list
_CANCEL_LOCK = 0x6368656C_61746502
_ENDED = [status.value for status in Status if status.final]
_UNENDED = [status.value for status in Status if not status.final]
_ENDED_NODES = ", ".join(sorted(f"'{status.value}'" for status in FINAL))
_ENDED_DISPATCHES = ", ".join(f"'{status}'" for status in _ENDED)

kernels = tables.table_of(tables.Kernel)
dispatches = tables.table_of(tables.Dispatch)
nodes = tables.table_of(tables.Node)
cancels = tables.table_of(tables.Cancel)
events = tables.table_of(tables.Event)
blobs = tables.table_of(tables.Blob)
facts = tables.table_of(tables.Fact)


# What every turn of a kernel asks is put together once.
_KERNEL_STATE = (
    select(kernels.c.state).where(kernels.c.kernel_id == bindparam("kernel_id")).with_for_update()
)
_LIVE_AMONG = select(kernels.c.kernel_id).where(
    kernels.c.kernel_id.in_(bindparam("ids", expanding=True)), kernels.c.state == "live"
)
_UNFINISHED = (
    select(dispatches.c.dispatch_id, dispatches.c.owner)
    .where(dispatches.c.status.not_in(_ENDED), dispatches.c.held.is_(False))
    .order_by(dispatches.c.created_at, dispatches.c.dispatch_id)
)
_LOCK_DISPATCHES = (
    select(dispatches.c.dispatch_id, dispatches.c.owner, dispatches.c.epoch, dispatches.c.status)
    .where(dispatches.c.dispatch_id.in_(bindparam("ids", expanding=True)))
    .order_by(dispatches.c.dispatch_id)
    .with_for_update()
)
_CANCELS = (
    select(cancels.c.seq, cancels.c.dispatch_id, cancels.c.nodes)
    .join(dispatches, dispatches.c.dispatch_id == cancels.c.dispatch_id)
    .where(cancels.c.seq > bindparam("seen"), dispatches.c.owner == bindparam("kernel_id"))
    .order_by(cancels.c.seq)
)


class LockedDispatch(NamedTuple):
    """A dispatch that nobody else can change before the transaction ends."""

    dispatch_id: str
    owner: str | None
    epoch: int
    ended: bool


def _chunks(values: Iterable[K]) -> Iterator[list[K]]:
    listed = list(values)
    for start in range(0, len(listed), _CHUNK):
        yield listed[start : start + _CHUNK]


def _all_but(table: Any, *names: str) -> Any:
    keys = {column.name for column in table.primary_key}
    return [c.name for c in table.columns if c.name not in keys and c.name not in names]


class Statements:
    """The statements for one kind of database."""

    def __init__(self, database: Database) -> None:
        self._database = database

        def node_row(excluded: Any) -> dict[str, Any]:
            row = {name: excluded[name] for name in _all_but(nodes, "cancel_requested")}
            row["cancel_requested"] = or_(nodes.c.cancel_requested, excluded.cancel_requested)
            return row

        def dispatch_row(excluded: Any) -> dict[str, Any]:
            kept = ("owner", "epoch", "created_at", "cancel_requested", "held")
            row = {name: excluded[name] for name in _all_but(dispatches, *kept)}
            row["cancel_requested"] = or_(dispatches.c.cancel_requested, excluded.cancel_requested)
            row["held"] = and_(dispatches.c.held, excluded.held)
            return row

        unended = text(f"nodes.status NOT IN ({_ENDED_NODES})")
        compile_insert = database.compile_insert
        self._put_nodes = compile_insert(nodes, update=node_row, where=unended)
        # One list goes over, not a row for each node; and since the dispatch is locked, nobody
        # else writes its nodes: plain inserts cost half of those that look for conflicts.
        listed = f"SELECT CAST(value AS INTEGER) FROM {database.numbers} AS list"
        self._flag_nodes = text(
            "UPDATE nodes SET cancel_requested = true WHERE dispatch_id = :dispatch_id AND "
            f"node_id IN ({listed}) AND {unended}"
        )
        self._add_flagged = text(
            "INSERT INTO nodes (dispatch_id, node_id, status, attempt, cancel_requested, "
            f"cancel_tries) SELECT :dispatch_id, missing.*, '{NodeStatus.WAITING}', 0, true, 0 "
            f"FROM ({listed} EXCEPT SELECT node_id FROM nodes WHERE dispatch_id = :dispatch_id "
            "ORDER BY 1) AS missing"
        )
        self._put_dispatches = compile_insert(
            dispatches,
            update=dispatch_row,
            where=text(f"dispatches.status NOT IN ({_ENDED_DISPATCHES})"),
        )
        self._add_dispatches = compile_insert(dispatches, update=None)
        # The comparison mends a value that the medium damaged, and costs nothing otherwise.
        self._add_blobs = compile_insert(
            blobs,
            update=lambda excluded: {"data": excluded.data, "size": excluded.size},
            where=text("blobs.data <> excluded.data"),
        )
        self._add_events = compile_insert(events, update=None)
        self._put_facts = compile_insert(facts, update=lambda excluded: {"value": excluded.value})
        self._add_kernels = compile_insert(kernels, update=None)

    # -- kernels --------------------------------------------------------------------------------

    def kernel_state(self, connection: Connection, kernel_id: str) -> str | None:
        """``live``, ``dead`` or None; the row is locked until the transaction ends."""
        return connection.execute(_KERNEL_STATE, {"kernel_id": kernel_id}).scalar()

    def live_kernels(self, connection: Connection) -> list[str]:
        """Kernels not yet known to be dead."""
        query = select(kernels.c.kernel_id).where(kernels.c.state == "live")
        return list(connection.execute(query).scalars())

    def live_among(self, connection: Connection, kernel_ids: Collection[str]) -> list[str]:
        """Those of ``kernel_ids`` that are not yet known to be dead."""
        found: list[str] = []
        for chunk in _chunks(sorted(kernel_ids)):
            found.extend(connection.execute(_LIVE_AMONG, {"ids": chunk}).scalars())
        return found

    def add_kernel(self, connection: Connection, row: tuple[Any, ...]) -> None:
        """Insert a kernel's row unless it exists."""
        self._database.insert_many(connection, self._add_kernels, [row])

    def bury(self, connection: Connection, dead: Collection[str]) -> list[str]:
        """Mark kernels dead for good."""
        for chunk in _chunks(sorted(dead)):
            connection.execute(
                update(kernels).where(kernels.c.kernel_id.in_(chunk)).values(state="dead")
            )
        return sorted(dead)

    def sweep_kernels(self, connection: Connection) -> None:
        """Remove the rows of dead kernels that own nothing unfinished. A kernel without a row may
        write as little as a dead one."""
        owners = select(dispatches.c.owner).where(
            dispatches.c.status.in_(_UNENDED), dispatches.c.owner.is_not(None)
        )
        connection.execute(
            delete(kernels).where(kernels.c.state == "dead", kernels.c.kernel_id.not_in(owners))
        )

    # -- dispatches -----------------------------------------------------------------------------

    def unfinished(self, connection: Connection) -> list[tuple[str, str | None]]:
        """Id and owner of dispatches that have not ended and are not held, oldest first."""
        return [(row[0], row[1]) for row in connection.execute(_UNFINISHED)]

    def lock_dispatches(
        self, connection: Connection, dispatch_ids: Iterable[str]
    ) -> list[LockedDispatch]:
        """Rows locked in the order of their ids, so that no two transactions wait in a circle."""
        found: list[LockedDispatch] = []
        for chunk in _chunks(sorted(set(dispatch_ids))):
            for row in connection.execute(_LOCK_DISPATCHES, {"ids": chunk}):
                found.append(LockedDispatch(row[0], row[1], row[2], row[3] in _ENDED))
        return found

    def set_owner(
        self, connection: Connection, kernel_id: str, dispatch_ids: Iterable[str]
    ) -> None:
        """Give dispatches to a kernel, in a new epoch."""
        for chunk in _chunks(dispatch_ids):
            connection.execute(
                update(dispatches)
                .where(dispatches.c.dispatch_id.in_(chunk))
                .values(owner=kernel_id, epoch=dispatches.c.epoch + 1)
            )

    def add_dispatch(self, connection: Connection, row: tuple[Any, ...]) -> bool:
        """Insert a row; False when the id exists."""
        return self._database.insert_many(connection, self._add_dispatches, [row]) == 1

    def add_dispatches(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows unless they exist."""
        self._database.insert_many(connection, self._add_dispatches, rows)

    def put_dispatches(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Write rows; owner, epoch and what was asked for from outside stay."""
        self._database.insert_many(connection, self._put_dispatches, rows)

    def release_hold(self, connection: Connection, dispatch_id: str) -> bool:
        """Whether the dispatch was held until now."""
        return bool(
            connection.execute(
                update(dispatches)
                .where(dispatches.c.dispatch_id == dispatch_id, dispatches.c.held.is_(True))
                .values(held=False)
            ).rowcount
        )

    def dispatch(self, connection: Connection, dispatch_id: str) -> Sequence[Any] | None:
        """One row."""
        query = select(dispatches).where(dispatches.c.dispatch_id == dispatch_id)
        return connection.execute(query).first()

    def dispatches(self, connection: Connection, wish: DispatchFilter) -> Sequence[Sequence[Any]]:
        """The rows that a filter selects."""
        query = select(dispatches)
        if wish.status:
            asked = dispatches.c.status.in_([item.value for item in wish.status])
            over = dispatches.c.status.in_(_ENDED)
            if Status.CANCELLING in wish.status:
                query = query.where(asked | (dispatches.c.cancel_requested.is_(True) & ~over))
            else:
                query = query.where(asked & (dispatches.c.cancel_requested.is_(False) | over))
        if wish.name is not None:
            query = query.where(dispatches.c.name == wish.name)
        if wish.root_id is not None:
            query = query.where(dispatches.c.root_id == wish.root_id)
        if wish.parent_id is not None:
            query = query.where(dispatches.c.parent_id == wish.parent_id)
        elif wish.roots_only and wish.root_id is None:
            query = query.where(dispatches.c.parent_id.is_(None))
        if wish.since is not None:
            query = query.where(dispatches.c.created_at >= wish.since)
        newest = (dispatches.c.created_at.desc(), dispatches.c.dispatch_id.desc())
        query = query.order_by(*newest).limit(wish.limit).offset(wish.offset)
        return connection.execute(query).all()

    # -- nodes, events, cancels -----------------------------------------------------------------

    def put_nodes(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Write whole rows; rows of ended nodes stay, and a wish to cancel stays."""
        # One statement may not touch a row twice on Postgres; the last word counts.
        latest = {row[:2]: row for row in rows}
        self._database.insert_many(connection, self._put_nodes, list(latest.values()))

    def nodes(
        self, connection: Connection, dispatch_id: str, ids: Sequence[int] | None
    ) -> list[Sequence[Any]]:
        """Rows by node id; ``ids`` ascending or None for all."""
        query = select(nodes).where(nodes.c.dispatch_id == dispatch_id).order_by(nodes.c.node_id)
        if ids is None:
            return list(connection.execute(query))
        found: list[Sequence[Any]] = []
        for chunk in _chunks(ids):
            found.extend(connection.execute(query.where(nodes.c.node_id.in_(chunk))))
        return found

    def add_events(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Append events."""
        self._database.insert_many(connection, self._add_events, rows)

    def has_turn(self, connection: Connection, turn: str) -> bool:
        """Whether a commit with this token took place."""
        return bool(connection.execute(select(exists().where(events.c.turn == turn))).scalar())

    def add_cancel(
        self, connection: Connection, dispatch_id: str, ids: Sequence[int] | None, at: float
    ) -> int:
        """Record a request on a dispatch that is locked; its sequence number."""
        if ids is None:
            connection.execute(
                update(dispatches)
                .where(dispatches.c.dispatch_id == dispatch_id)
                .values(cancel_requested=True)
            )
        else:
            wanted = {"dispatch_id": dispatch_id, "numbers": dump_json(sorted(set(ids)))}
            connection.execute(self._flag_nodes, wanted)
            connection.execute(self._add_flagged, wanted)
        self._database.lock(connection, _CANCEL_LOCK)
        listed = None if ids is None else dump_json(list(ids))
        row = insert(cancels).values(dispatch_id=dispatch_id, nodes=listed, at=at)
        return int(connection.execute(row.returning(cancels.c.seq)).scalar_one())

    def cancels(self, connection: Connection, kernel_id: str, seen: int) -> list[CancelRequest]:
        """Requests after ``seen`` for dispatches of a kernel."""
        wanted = {"seen": seen, "kernel_id": kernel_id}
        return [
            CancelRequest(seq, dispatch_id, None if ids is None else tuple(json.loads(ids)))
            for seq, dispatch_id, ids in connection.execute(_CANCELS, wanted)
        ]

    # -- blobs ----------------------------------------------------------------------------------

    def add_blobs(self, connection: Connection, values: Mapping[str, bytes]) -> None:
        """Insert small values."""
        rows = [(digest, len(data), data) for digest, data in values.items()]
        self._database.insert_many(connection, self._add_blobs, rows)

    def blobs(self, connection: Connection, digests: Sequence[str]) -> dict[str, bytes]:
        """The small values among ``digests``."""
        found: dict[str, bytes] = {}
        for chunk in _chunks(digests):
            query = select(blobs.c.digest, blobs.c.data).where(blobs.c.digest.in_(chunk))
            found.update((digest, bytes(data)) for digest, data in connection.execute(query))
        return found

    def blob_sizes(self, connection: Connection, digests: Sequence[str]) -> dict[str, int]:
        """Sizes in bytes of the small values among ``digests``."""
        found: dict[str, int] = {}
        for chunk in _chunks(digests):
            query = select(blobs.c.digest, blobs.c.size).where(blobs.c.digest.in_(chunk))
            found.update((digest, size) for digest, size in connection.execute(query))
        return found

    # -- facts ----------------------------------------------------------------------------------

    def fact(self, connection: Connection, name: str) -> str | None:
        """The JSON text of a fact."""
        return connection.execute(select(facts.c.value).where(facts.c.name == name)).scalar()

    def facts_named(self, connection: Connection, names: Iterable[str]) -> dict[str, Any]:
        """The values of those facts that are there."""
        found: dict[str, Any] = {}
        for chunk in _chunks(names):
            query = select(facts.c.name, facts.c.value).where(facts.c.name.in_(chunk))
            found.update((row[0], json.loads(row[1])) for row in connection.execute(query))
        return found

    def set_facts(self, connection: Connection, values: Mapping[str, Any] | None) -> None:
        """Write facts, in the order of their names; None removes one."""
        for name, value in sorted((values or {}).items()):
            if value is None:
                connection.execute(delete(facts).where(facts.c.name == name))
            else:
                self._database.insert_many(connection, self._put_facts, [(name, dump_json(value))])

    def expected(self, connection: Connection, values: Mapping[str, Any] | None) -> bool:
        """Whether these facts hold; they are locked until the transaction ends."""
        for name, value in sorted((values or {}).items()):
            query = select(facts.c.value).where(facts.c.name == name).with_for_update()
            found = connection.execute(query).scalar()
            if (None if found is None else json.loads(found)) != value:
                return False
        return True

    def facts(self, connection: Connection, prefix: str) -> list[tuple[str, str]]:
        """Facts by the beginning of their names; LIKE would ignore case on SQLite."""
        query = (
            select(facts.c.name, facts.c.value)
            .where(func.substr(facts.c.name, 1, len(prefix)) == prefix)
            .order_by(facts.c.name)
        )
        return [(row[0], row[1]) for row in connection.execute(query)]
