"""The store on SQLite or Postgres. The contract is ``chelate.contracts.store``."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from chelate.api import (
    CancelRequest,
    Commit,
    ConfigError,
    DispatchFilter,
    DispatchNotFoundError,
    DispatchRecord,
    NodeRecord,
    OwnershipLostError,
)
from chelate.store.blobs import BlobFiles, RecentBlobs
from chelate.store.locks import boot_id
from chelate.store.postgres import PostgresDatabase
from chelate.store.rows import (
    clean_text,
    decode_dispatch,
    decode_node,
    dump_json,
    encode_dispatch,
    encode_node,
)
from chelate.store.sqlite import SQLiteDatabase
from chelate.store.values import HELD, StoredValues

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from chelate.store.snapshot import SQLSnapshot

__all__ = ["SQLStore"]

T = TypeVar("T")


class SQLStore(StoredValues):
    """Records in SQLite (``sqlite:///path``) or Postgres (``postgresql://…``).

    Args:
        url: ``""``, ``"sqlite"`` or ``"sqlite://"`` mean ``<home>/chelate.db``.
        home: the folder of ``blobs/`` (large values as files) and ``kernels/`` (lock files).
            Values up to 32 KiB live in SQLite, up to 1 MiB in Postgres; larger ones are files,
            so all kernels of one Postgres store must share ``home`` if they are to read them.
        synchronous: ``"FULL"`` (default; a commit survives a power cut) or ``"NORMAL"`` (it
            survives the death of the process); ``CHELATE_SYNCHRONOUS`` where not given.
        timeout: seconds for which a lock or a lost connection is waited for.

    Raises:
        ConfigError: the URL or an option is wrong.
    """

    schemes = ("sqlite", "postgresql")

    def __init__(
        self, url: str, home: Path, *, synchronous: str | None = None, timeout: float = 30.0
    ) -> None:
        chosen = (synchronous or os.environ.get("CHELATE_SYNCHRONOUS") or "FULL").upper()
        if chosen not in ("FULL", "NORMAL"):
            raise ConfigError(f"synchronous={chosen!r} must be FULL or NORMAL.")
        self.home = Path(home).absolute()
        self._files = BlobFiles(self.home / "blobs")
        self._recent = RecentBlobs()
        self._statements = None
        scheme = url.partition(":")[0]
        if scheme in ("", "sqlite"):
            self._database = SQLiteDatabase(
                self._file(url), self.home / "kernels", synchronous=chosen, timeout=timeout
            )
        elif scheme == "postgresql":
            self._database = PostgresDatabase(url, synchronous=chosen, timeout=timeout)
        else:
            raise ConfigError(
                f"A store URL begins with sqlite: or postgresql:, and this one with {scheme!r}."
            )

    def _file(self, url: str) -> Path:
        if url in ("", "sqlite", "sqlite:", "sqlite://", "sqlite:///"):
            return self.home / "chelate.db"
        path = url.removeprefix("sqlite:///")
        if path == url or path.startswith(":memory:"):
            raise ConfigError(f"{url!r} names no file; write sqlite:///path/to/chelate.db")
        return Path(path).absolute()

    # -- life -----------------------------------------------------------------------------------

    def open(self) -> None:
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._files.folder.mkdir(mode=0o700, exist_ok=True)
            self._database.open()
        except OSError as error:
            raise self._unavailable(error) from error
        except BaseException:
            self._database.close()
            raise
        self._sql()

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def snapshot(self) -> Iterator[SQLSnapshot]:
        """A look at everything; the store need not be open, and nothing is written."""
        with self._database.looking() as connection:
            from chelate.store.snapshot import SQLSnapshot

            yield SQLSnapshot(self._database, connection, self._files.folder)

    # -- ownership ------------------------------------------------------------------------------

    def claim_kernel(self) -> str:
        kernel_id = uuid4().hex
        row = (kernel_id, "live", os.getpid(), socket.gethostname(), boot_id(), time.time())
        sql = self._sql()

        def work(connection: Connection) -> list[str]:
            self._database.claim(kernel_id, connection)
            others = sql.live_kernels(connection)
            gone = self._database.hold_dead(
                others, connection, lambda dead: sql.bury(connection, dead)
            )
            sql.sweep_kernels(connection)
            sql.add_kernel(connection, row)
            return gone

        try:
            self._discard(self._database.write(work))
        except OSError as error:
            raise self._unavailable(error) from error
        return kernel_id

    def _discard(self, dead: Iterable[str]) -> None:
        if isinstance(self._database, SQLiteDatabase):
            for kernel_id in dead:
                self._database.locks.discard(kernel_id)

    def orphans(self) -> list[str]:
        sql = self._sql()

        def work(connection: Connection) -> list[str]:
            waiting = sql.unfinished(connection)
            owners = sql.live_among(connection, {owner for _, owner in waiting if owner})
            alive = self._database.alive(owners, connection) if owners else set()
            return [dispatch_id for dispatch_id, owner in waiting if owner not in alive]

        return self._database.read(work)

    def adopt(self, kernel_id: str, dispatch_ids: Sequence[str]) -> list[str]:
        sql = self._sql()
        earlier: set[str] = set()  # won by a try whose answer was lost

        def work(connection: Connection) -> tuple[list[str], list[str]]:
            self._require_live(connection, kernel_id, dispatch_ids)
            rows = sql.lock_dispatches(connection, dispatch_ids)
            owners = sorted({row.owner for row in rows if row.owner not in (None, kernel_id)})
            suspects = sql.live_among(connection, owners)

            def take(dead: set[str]) -> tuple[list[str], list[str]]:
                buried = sql.bury(connection, dead)
                free = {None, *(owner for owner in owners if owner not in suspects), *dead}
                fresh = [row.dispatch_id for row in rows if row.owner in free and not row.ended]
                sql.set_owner(connection, kernel_id, fresh)
                mine = {row.dispatch_id for row in rows if row.owner == kernel_id} & earlier
                return [*fresh, *sorted(mine)], buried

            won, buried = self._database.hold_dead(suspects, connection, take)
            earlier.update(won)
            return won, buried

        won, buried = self._database.write(work)
        self._discard(buried)
        return [dispatch_id for dispatch_id in dispatch_ids if dispatch_id in set(won)]

    def kernels_alive(self, kernel_ids: Iterable[str]) -> set[str]:
        sql = self._sql()
        asked = set(kernel_ids)

        def work(connection: Connection) -> set[str]:
            known = sql.live_among(connection, asked)
            return self._database.alive(known, connection) if known else set()

        return self._database.read(work)

    def _require_live(
        self, connection: Connection, kernel_id: str, dispatch_ids: Iterable[str]
    ) -> None:
        if self._sql().kernel_state(connection, kernel_id) != "live":
            raise OwnershipLostError(
                f"Kernel {kernel_id} was taken for dead, and others may own its dispatches now; "
                "it must write no more. Claim a new kernel.",
                list(dispatch_ids),
            )

    # -- writing --------------------------------------------------------------------------------

    def add_dispatch(
        self,
        record: DispatchRecord,
        blobs: Mapping[str, bytes],
        facts: Mapping[str, Any] | None = None,
        expect: Mapping[str, Any] | None = None,
    ) -> bool:
        sql = self._sql()
        small = self._store_large(blobs)
        row = encode_dispatch(record)
        added = False

        def work(connection: Connection) -> bool:
            nonlocal added
            if sql.expected(connection, expect) and sql.add_dispatch(connection, row):
                sql.add_blobs(connection, small)
                sql.set_facts(connection, facts)
                added = True
            elif added:
                added = sql.dispatch(connection, record.dispatch_id) is not None
            return added  # True also when an earlier try went through without an answer.

        answer = self._database.write(work)
        if answer:
            self._recent.add(small)
        return answer

    def commit(self, kernel_id: str, commit: Commit, seen: int) -> list[CancelRequest]:
        sql = self._sql()
        small = self._store_large(commit.blobs)
        nodes = [
            encode_node(dispatch_id, node)
            for dispatch_id, records in commit.nodes.items()
            for node in records
        ]
        dispatches = [encode_dispatch(record) for record in commit.dispatches]
        created = {record.dispatch_id: record for record in commit.created}
        touched = sorted({*commit.nodes, *(record.dispatch_id for record in commit.dispatches)})
        turn = uuid4().hex
        again = False

        def work(connection: Connection) -> list[CancelRequest]:
            nonlocal again
            self._require_live(connection, kernel_id, touched)
            rows = sql.lock_dispatches(connection, touched)
            now = {name: (record.owner, record.epoch) for name, record in created.items()}
            now.update((row.dispatch_id, (row.owner, row.epoch)) for row in rows)
            epochs = {name: epoch for name, (_, epoch) in now.items()}
            read = {**epochs, **commit.epochs}
            lost = [name for name in touched if now.get(name) != (kernel_id, read.get(name))]
            if lost:
                raise OwnershipLostError(
                    f"Kernel {kernel_id} does not own {', '.join(lost[:3])}"
                    f"{' and others' if len(lost) > 3 else ''} (any more); nothing was written. "
                    "Drop these dispatches from memory.",
                    lost,
                )
            if again and sql.has_turn(connection, turn):
                return []
            requests = sql.cancels(connection, kernel_id, seen)
            if requests:
                return requests
            sql.add_blobs(connection, small)
            sql.set_facts(connection, {HELD + name: note for name, note in commit.held.items()})
            sql.add_dispatches(connection, [encode_dispatch(item) for item in created.values()])
            sql.put_nodes(connection, nodes)
            sql.put_dispatches(connection, dispatches)
            sql.add_events(connection, self._events(commit, epochs, turn))
            again = True
            return []

        requests = self._database.write(work)
        if not requests:
            self._recent.add(small)
        return requests

    def _events(
        self, commit: Commit, epochs: Mapping[str, int], turn: str
    ) -> list[tuple[Any, ...]]:
        rows = {row.dispatch_id: row.status.value for row in (*commit.created, *commit.dispatches)}
        now = time.time()
        events: list[tuple[Any, ...]] = []
        for dispatch_id in sorted({*commit.nodes, *rows}):
            records = commit.nodes.get(dispatch_id, ())
            changes: list[list[Any]] = [[node.node_id, node.status._value_] for node in records]
            if dispatch_id in rows:
                changes.append([None, rows[dispatch_id]])
            events.append((dispatch_id, epochs[dispatch_id], now, turn, dump_json(changes)))
        return events

    def request_cancel(self, dispatch_id: str, nodes: Sequence[int] | None) -> int:
        sql = self._sql()

        def work(connection: Connection) -> int:
            rows = sql.lock_dispatches(connection, [dispatch_id])
            if not rows:
                raise _no_dispatch(dispatch_id)
            if rows[0].ended:
                return 0
            now = time.time()
            number = sql.add_cancel(connection, dispatch_id, nodes, now)
            # Its place among the events says what was sent before and what after.
            event = (dispatch_id, rows[0].epoch, now, f"cancel:{number}", "[]")
            sql.add_events(connection, [event])
            return number

        return self._database.write(work)

    def cancel_requests(self, kernel_id: str, seen: int) -> list[CancelRequest]:
        return self._database.read(lambda link: self._sql().cancels(link, kernel_id, seen))

    def release_hold(
        self,
        dispatch_id: str,
        facts: Mapping[str, Any] | None = None,
        expect: Mapping[str, Any] | None = None,
    ) -> bool:
        sql = self._sql()
        released = False

        def work(connection: Connection) -> bool:
            nonlocal released
            rows = sql.lock_dispatches(connection, [dispatch_id])
            if not rows:
                raise _no_dispatch(dispatch_id)
            if sql.expected(connection, expect) and sql.release_hold(connection, dispatch_id):
                sql.set_facts(connection, facts)
                released = True
            return released

        return self._database.write(work)

    # -- reading --------------------------------------------------------------------------------

    def dispatch(self, dispatch_id: str) -> DispatchRecord:
        row = self._database.read(lambda link: self._sql().dispatch(link, dispatch_id))
        if row is None:
            raise _no_dispatch(dispatch_id)
        return decode_dispatch(row)

    def dispatches(self, query: DispatchFilter) -> list[DispatchRecord]:
        """Newest first. ``roots_only`` yields to ``root_id`` and ``parent_id``, which ask for
        children."""
        rows = self._database.read(lambda link: self._sql().dispatches(link, query))
        return [decode_dispatch(row) for row in rows]

    def nodes(self, dispatch_id: str, ids: Iterable[int] | None = None) -> list[NodeRecord]:
        wanted = None if ids is None else sorted(set(ids))
        rows = self._database.read(lambda link: self._sql().nodes(link, dispatch_id, wanted))
        return [decode_node(row) for row in rows]

    def change_counter(self) -> int:
        return self._database.change_counter()

    # -- facts ----------------------------------------------------------------------------------

    def get_fact(self, name: str) -> Any:
        text = self._database.read(lambda link: self._sql().fact(link, name))
        return None if text is None else json.loads(text)

    def set_fact(self, name: str, value: Any) -> None:
        self.set_facts({name: value})

    def set_facts(self, values: Mapping[str, Any], expect: Mapping[str, Any] | None = None) -> bool:
        sql = self._sql()
        stored = False

        def work(connection: Connection) -> bool:
            nonlocal stored
            if sql.expected(connection, expect):
                sql.set_facts(connection, values)
                stored = True
            elif stored:  # The answer of an earlier try was lost: did it take place?
                stored = sql.expected(connection, values)
            return stored

        return self._database.write(work)

    def facts(self, prefix: str) -> Iterator[tuple[str, Any]]:
        rows = self._database.read(lambda link: self._sql().facts(link, prefix))
        return ((name, json.loads(text)) for name, text in rows)


def _no_dispatch(dispatch_id: str) -> DispatchNotFoundError:
    return DispatchNotFoundError(
        f"No dispatch has the id {clean_text(dispatch_id)!r} in this store; "
        "list_dispatches() shows those that exist."
    )
