"""Postgres: one session writes and holds the kernels' advisory locks, so that losing the one is
losing the other and is noticed by the next write.

Advisory locks belong to a session: a pooler in transaction mode between here and the server
breaks them. Use the server itself, or a pooler in session mode.
"""

from __future__ import annotations

import selectors
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from chelate.api import (
    ConfigError,
    StoreError,
    StoreUnavailableError,
)
from chelate.store.database import Busy, Database

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Table
    from sqlalchemy.engine import URL
    from sqlalchemy.exc import DBAPIError

__all__ = ["PostgresDatabase"]

T = TypeVar("T")

_CHUNK_ROWS = 5000
_CHUNK_BYTES = 8 << 20
_UNLOCKING = 2.0  # seconds

# SQLSTATE classes and codes: what passes by itself, and a sentence for what does not.
_PASSING = ("08", "40", "55P03", "57P", "53300", "25P03")
_SENTENCES = {
    "53100": "The server's disk is full; free some space and try again",
    "53200": "The server is out of memory; try again, or give it more",
    "25006": "The server accepts no writes; connect to the primary server",
    "28": "The server refuses the user or the password; look at the URL",
    "3D000": "There is no such database; create it first",
    "42501": "The user lacks the right; grant it create and write on the schema",
}


class PostgresDatabase(Database):
    """The database at ``url`` (``postgresql://…``)."""

    inline_limit = 1 << 20
    numbers = "json_array_elements_text(CAST(:numbers AS json))"
    collation = "C"
    gapless = False

    def __init__(self, url: str, *, synchronous: str, timeout: float) -> None:
        # The URL may hold a password, which must not get into messages.
        super().__init__("on Postgres", synchronous=synchronous, timeout=timeout)
        self._raw_url = url
        self._held: set[str] = set()
        self._opening = threading.local()

    def _url(self) -> URL:
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(self._raw_url).set(drivername="postgresql+psycopg")
        except (ArgumentError, ValueError) as error:
            raise ConfigError(
                "The store's Postgres URL cannot be read; write it as "
                "postgresql://user:password@host:5432/database"
            ) from error
        self.place = url.set(drivername="postgresql").render_as_string(hide_password=True)
        return url

    def _prepare(self) -> None:
        try:
            import psycopg  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"A store on Postgres needs the psycopg driver ({error}). "
                'Install it with: pip install "chelate[postgres]"'
            ) from error
        self._url()

    def open(self) -> None:
        """As in the base; a server that does not answer is reported at once, not tried again."""
        self._opening.now = True
        try:
            super().open()
        finally:
            self._opening.now = False

    def _create_engine(self) -> Engine:
        from sqlalchemy import create_engine, event

        url = self._url()
        wishes = {
            "connect_timeout": "10",
            "application_name": "chelate",
            "keepalives_idle": "30",
            "tcp_user_timeout": "30000",
        }
        engine = create_engine(
            url,
            connect_args={name: wish for name, wish in wishes.items() if name not in url.query},
            max_overflow=-1,
            pool_use_lifo=True,
        )
        event.listen(engine, "connect", self._set_up)
        return engine

    def _set_up(self, driver: Any, _: Any) -> None:
        settings = [
            f"SET lock_timeout = {int(self.timeout * 1000)}",
            # So that the server, too, notices a host that vanished, and frees its locks.
            "SET tcp_keepalives_idle = 30",
            "SET tcp_keepalives_interval = 10",
            "SET tcp_keepalives_count = 3",
        ]
        if self.synchronous == "NORMAL":
            settings.append("SET synchronous_commit = off")
        driver.execute("; ".join(settings))
        driver.commit()

    def _readable(self, engine: Engine) -> Engine:
        return engine.execution_options(isolation_level="AUTOCOMMIT")

    def _begin(self, connection: Connection) -> None:
        """The driver begins by itself."""

    def _reading(self) -> Connection:
        self._prepare()
        return (
            self._pool()
            .connect()
            .execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        )

    def damage(self, connection: Connection, thorough: bool) -> list[str]:
        """Nothing: the server checks its own pages when it reads them."""
        return []

    def lock(self, connection: Connection, number: int) -> None:
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (number,))

    def _version(self, connection: Connection) -> int:
        from chelate.store.tables import METADATA

        found = connection.exec_driver_sql(
            "SELECT name FROM unnest(%s::text[]) AS name WHERE to_regclass(name) IS NOT NULL",
            (sorted(METADATA.tables),),
        ).scalars()
        there = set(found)
        if not there:
            return 0
        if {"meta", "dispatches", "cancels"} <= there:
            version = connection.exec_driver_sql(
                "SELECT value FROM meta WHERE name = 'schema_version'"
            ).scalar()
            if version is not None:
                return int(version)
        raise StoreUnavailableError(
            f"The database {self.place} has tables of another program "
            f"({', '.join(sorted(there))}). Give chelate a database of its own."
        )

    def _set_version(self, connection: Connection, version: int) -> None:
        connection.exec_driver_sql(
            "INSERT INTO meta (name, value) VALUES ('schema_version', %s) "
            "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (str(version),),
        )

    def _explain(self, error: DBAPIError) -> StoreError | None:
        text = str(error.orig).strip().replace("\n", " ")
        code = getattr(error.orig, "sqlstate", None)
        for prefix, sentence in _SENTENCES.items():
            if code is not None and code.startswith(prefix):
                return StoreUnavailableError(
                    f"The store {self.place} cannot be used ({text}). {sentence}."
                )
        # Without a code the failure is not the server's: no answer, or no connection.
        lost = code is None and type(error.orig).__name__ in ("OperationalError", "InterfaceError")
        if lost or error.connection_invalidated or (code or "").startswith(_PASSING):
            kind = StoreUnavailableError if getattr(self._opening, "now", False) else Busy
            return kind(
                f"The store {self.place} does not answer ({text}). Look whether the server runs "
                "and can be reached, and try again."
            )
        return None

    def _watch(self, connection: Connection) -> int:
        # Two views of a database that differ have different snapshots, and asking for one reads
        # no table. Sequences will not do: they move before their rows can be seen.
        answer = connection.exec_driver_sql(
            "SELECT hashtextextended(pg_current_snapshot()::text, 0)"
        ).scalar_one()
        return int(answer) & (1 << 64) - 1

    # -- kernels --------------------------------------------------------------------------------

    def _reclaim(self, connection: Connection) -> None:
        for kernel_id in sorted(self._held):
            self._lock(kernel_id, connection)
        connection.commit()

    def _lock(self, kernel_id: str, connection: Connection) -> None:
        connection.exec_driver_sql("SELECT pg_advisory_lock(%s)", (_lock_number(kernel_id),))

    def claim(self, kernel_id: str, connection: Connection) -> None:
        if kernel_id not in self._held:
            self._lock(kernel_id, connection)
            self._held.add(kernel_id)

    def alive(self, kernel_ids: Sequence[str], connection: Connection) -> set[str]:
        held = connection.exec_driver_sql(
            "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks WHERE granted "
            "AND locktype = 'advisory' AND objsubid = 1 AND mode = 'ExclusiveLock' AND database = "
            "(SELECT oid FROM pg_database WHERE datname = current_database())"
        ).scalars()
        numbers = set(held)
        return {
            kernel_id
            for kernel_id in kernel_ids
            if kernel_id in self._held or _lock_number(kernel_id) in numbers
        }

    def hold_dead(
        self, kernel_ids: Sequence[str], connection: Connection, work: Callable[[set[str]], T]
    ) -> T:
        dead = set()
        for kernel_id in kernel_ids:
            # A session gets its own locks again and again, so its own kernels are left out.
            if kernel_id not in self._held:
                free = connection.exec_driver_sql(
                    "SELECT pg_try_advisory_xact_lock_shared(%s)", (_lock_number(kernel_id),)
                ).scalar()
                if free:
                    dead.add(kernel_id)
        return work(dead)

    def release(self) -> None:
        held, self._held = self._held, set()
        writer = self._writer
        if held and writer is not None and not writer.invalidated:
            _unlock(writer.connection.driver_connection)

    def forget(self) -> None:
        super().forget()
        self._held = set()

    # -- bulk -----------------------------------------------------------------------------------

    def compile_insert(
        self, table: Table, *, update: Callable[[Any], dict[str, Any]] | None, where: Any = None
    ) -> str:
        from sqlalchemy import ARRAY, bindparam, column, func, select
        from sqlalchemy.dialects import postgresql
        from sqlalchemy.dialects.postgresql import psycopg

        columns = [item for item in table.columns if item.autoincrement is not True]
        names = [item.name for item in columns]
        # One array per column: a tenth of the cost of one statement per row.
        arrays = [bindparam(item.name, type_=ARRAY(item.type)) for item in columns]
        rows = func.unnest(*arrays).table_valued(*names).render_derived()
        insert = postgresql.insert(table).from_select(
            names, select(*[column(name) for name in names]).select_from(rows)
        )
        if update is None:
            insert = insert.on_conflict_do_nothing()
        else:
            insert = insert.on_conflict_do_update(
                index_elements=list(table.primary_key), set_=update(insert.excluded), where=where
            )
        dialect = psycopg.dialect(paramstyle="format")  # type: ignore[no-untyped-call]
        return str(insert.compile(dialect=dialect))

    def insert_many(self, connection: Connection, sql: str, rows: Sequence[tuple[Any, ...]]) -> int:
        written = 0
        for chunk in _chunks(rows):
            # Rows become columns, one array each.
            written += connection.exec_driver_sql(
                sql, tuple(map(list, zip(*chunk, strict=True)))
            ).rowcount
        return written


def _unlock(driver: Any) -> None:
    """Free the session's locks before it goes: a server ends a session some time after its client
    has left it. One that does not answer is not waited for; it frees them when it finds out."""
    from psycopg import Error

    with suppress(Error), selectors.DefaultSelector() as answer:
        driver.pgconn.send_query(b"SELECT pg_advisory_unlock_all()")
        driver.pgconn.flush()
        answer.register(driver.pgconn.socket, selectors.EVENT_READ)
        answer.select(_UNLOCKING)


def _chunks(rows: Sequence[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    chunk: list[tuple[Any, ...]] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += sum(len(item) for item in row if isinstance(item, (str, bytes)))
        if len(chunk) >= _CHUNK_ROWS or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _lock_number(kernel_id: str) -> int:
    """The first 64 bits of a kernel's id, as Postgres's signed bigint."""
    number = int(kernel_id[:16], 16)
    return number - (1 << 64) if number >= 1 << 63 else number
