"""SQLite: one file in WAL mode, immediate transactions, lock files for kernels."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Sequence
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from chelate.api import (
    StoreError,
    StoreUnavailableError,
)
from chelate.store.database import Busy, Database
from chelate.store.locks import KernelLocks, network_filesystem

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine, Table
    from sqlalchemy.exc import DBAPIError

__all__ = ["APPLICATION_ID", "SQLiteDatabase"]

T = TypeVar("T")

APPLICATION_ID = 0x63686C74  # "chlt", which the `file` command shows

_ROWS = 25  # rows in one statement, where there are many

_PASSING = ("database is locked", "database table is locked", "locking protocol")
_SENTENCES = (
    ("database or disk is full", "The disk is full; free some space and try again"),
    ("readonly database", "It can only be read; make the file and its folder writable"),
    ("unable to open database file", "It cannot be opened; look at the rights of file and folder"),
    ("file is not a database", "The file is not a database; move it away or name another one"),
    ("malformed", "The database is damaged; restore it from a backup"),
    ("disk I/O error", "The disk does not answer properly; look at its health and free space"),
)


class SQLiteDatabase(Database):
    """The file ``path``; kernels lock files in ``kernels``."""

    inline_limit = 32 << 10
    numbers = "json_each(:numbers)"
    collation = "BINARY"
    gapless = True

    def __init__(self, path: Path, kernels: Path, *, synchronous: str, timeout: float) -> None:
        super().__init__(str(path), synchronous=synchronous, timeout=timeout)
        self.path = path
        self.locks = KernelLocks(kernels)
        self._files: dict[str, int] = {}  # what the writing connection uses, by name

    def _prepare(self) -> None:
        folder = self.path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        kind = network_filesystem(folder)
        if kind is not None:
            raise StoreUnavailableError(
                f"The store {self.path} lies on a network file system ({kind}), where SQLite's "
                "locks cannot be trusted. Set CHELATE_HOME to a folder on a local disk, or use a "
                "Postgres URL."
            )
        self.locks.folder.mkdir(mode=0o700, exist_ok=True)
        self._create_file()
        if not stat.S_ISREG(self.path.stat().st_mode):
            raise StoreUnavailableError(f"The store {self.path} is not a file; name another one.")
        for place in (self.path, folder):
            if not os.access(place, os.W_OK):
                raise StoreUnavailableError(
                    f"The store {self.path} cannot be written, because {place} is read-only for "
                    "this user. Make it writable, or set CHELATE_HOME to another folder."
                )

    def _create_file(self) -> None:
        # Opening and closing the database's own file would drop the locks that other connections
        # of this process hold on it; so a new one is made, with its rights, under another name.
        if self.path.exists():
            return
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(6)}")
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            os.link(temporary, self.path)
        except FileExistsError:
            pass  # Another process was faster, and its file is as good.
        finally:
            temporary.unlink()

    def _create_engine(self) -> Engine:
        from sqlalchemy import create_engine, event

        engine = create_engine(
            self._place("rw"),  # a database that was deleted must not come back empty
            # No implicit transactions of the driver: they begin deferred and fail when upgraded.
            connect_args={"isolation_level": None, "timeout": self.timeout},
            max_overflow=-1,
        )
        event.listen(engine, "connect", self._set_up)
        return engine

    def _place(self, mode: str) -> URL:
        from sqlalchemy import URL

        name = f"file:{quote(str(self.path))}"
        return URL.create("sqlite", database=name, query={"mode": mode, "uri": "true"})

    def _set_up(self, driver: Any, _: Any) -> None:
        driver.execute("PRAGMA foreign_keys=ON")
        driver.execute(f"PRAGMA synchronous={self.synchronous}")

    def _readable(self, engine: Engine) -> Engine:
        return engine

    def _begin(self, connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        # What is written to a file that has lost its name would be acknowledged, and then gone.
        if (lost := self._lost()) is not None:
            raise lost

    def _lost(self) -> StoreUnavailableError | None:
        for name in (str(self.path), f"{self.path}-wal"):
            try:
                number = os.stat(name).st_ino  # noqa: PTH116 (once per transaction)
            except FileNotFoundError:
                number = 0
            known = self._files.get(name) or number
            self._files[name] = known
            if known != number:
                return StoreUnavailableError(
                    f"The store's file {name} was deleted or replaced while it was in use; nothing "
                    "is written. Put it back, or end this process and start again."
                )
        return None

    def _reading(self) -> Connection:
        from sqlalchemy import create_engine
        from sqlalchemy.pool import NullPool

        if not self.path.is_file():
            raise StoreUnavailableError(f"There is no store at {self.path}.")
        wishes = {"isolation_level": None, "timeout": self.timeout}
        engine = create_engine(self._place("ro"), connect_args=wishes, poolclass=NullPool)
        connection = engine.connect()
        connection.exec_driver_sql("BEGIN")
        return connection

    def damage(self, connection: Connection, thorough: bool) -> list[str]:
        question = "PRAGMA integrity_check" if thorough else "PRAGMA quick_check"
        answers = connection.exec_driver_sql(question).scalars()
        return [f"SQLite says of {self.path}: {text}" for text in answers if text != "ok"]

    def _stuck(self) -> bool:
        writer = self._writer
        return super()._stuck() or (
            writer is not None and bool(writer.connection.dbapi_connection.in_transaction)  # type: ignore[union-attr]
        )

    def _reclaim(self, connection: Connection) -> None:
        self._files = {}  # Lock files do not depend on connections.

    def open(self) -> None:
        """As in the base; the file is put into WAL mode between the check and the first write."""
        self._prepare()
        self.read(self._check_and_set_mode)
        self.write(self._migrate)

    def _check_and_set_mode(self, connection: Connection) -> None:
        from chelate.store.migrations import check

        check(self._version(connection), self.place)
        if connection.exec_driver_sql("PRAGMA journal_mode").scalar() != "wal":
            mode = connection.exec_driver_sql("PRAGMA journal_mode=WAL").scalar()
            if mode != "wal":
                raise StoreUnavailableError(
                    f"The file system of {self.place} does not allow SQLite's write-ahead log "
                    f"(the mode stayed {mode!r}). Set CHELATE_HOME to a folder on a local disk."
                )

    def lock(self, connection: Connection, number: int) -> None:
        """An immediate transaction keeps other writers out already."""

    def _version(self, connection: Connection) -> int:
        version = int(connection.exec_driver_sql("PRAGMA user_version").scalar() or 0)
        owner = int(connection.exec_driver_sql("PRAGMA application_id").scalar() or 0)
        if owner == APPLICATION_ID:
            return version
        if owner or version or connection.exec_driver_sql("SELECT 1 FROM sqlite_master").first():
            raise StoreUnavailableError(
                f"{self.place} is the database of another program; name another file."
            )
        return 0

    def _set_version(self, connection: Connection, version: int) -> None:
        connection.exec_driver_sql(f"PRAGMA application_id={APPLICATION_ID}")
        connection.exec_driver_sql(f"PRAGMA user_version={version}")

    def _explain(self, error: DBAPIError) -> StoreError | None:
        text = str(error.orig)
        if any(words in text for words in _PASSING):
            return Busy(
                f"The store {self.place} was locked by another process for longer than "
                f"{self.timeout:g} s; end the program that holds it, and try again."
            )
        for words, sentence in _SENTENCES:
            if words in text:
                return self._lost() or StoreUnavailableError(
                    f"The store {self.place} cannot be used ({text}). {sentence}."
                )
        return None

    def _watch(self, connection: Connection) -> int:
        return int(connection.exec_driver_sql("PRAGMA data_version").scalar() or 0)

    # -- kernels --------------------------------------------------------------------------------

    def claim(self, kernel_id: str, connection: Connection) -> None:
        if kernel_id not in self.locks.held():
            self.locks.take(kernel_id)

    def alive(self, kernel_ids: Sequence[str], connection: Connection) -> set[str]:
        return {kernel_id for kernel_id in kernel_ids if self.locks.alive(kernel_id)}

    def hold_dead(
        self, kernel_ids: Sequence[str], connection: Connection, work: Callable[[set[str]], T]
    ) -> T:
        probes: dict[str, int] = {}
        try:
            for kernel_id in kernel_ids:
                descriptor = self.locks.probe(kernel_id)
                if descriptor is not None:
                    probes[kernel_id] = descriptor
            return work(set(probes))
        finally:
            for descriptor in probes.values():
                if descriptor >= 0:
                    os.close(descriptor)

    def release(self) -> None:
        self.locks.release()

    # -- bulk -----------------------------------------------------------------------------------

    def compile_insert(
        self, table: Table, *, update: Callable[[Any], dict[str, Any]] | None, where: Any = None
    ) -> str:
        from sqlalchemy import bindparam
        from sqlalchemy.dialects import sqlite

        names = [column.name for column in table.columns if column.autoincrement is not True]
        insert = sqlite.insert(table).values({name: bindparam(name) for name in names})
        if update is None:
            insert = insert.on_conflict_do_nothing()
        else:
            insert = insert.on_conflict_do_update(
                index_elements=list(table.primary_key), set_=update(insert.excluded), where=where
            )
        return str(insert.compile(dialect=sqlite.dialect()))

    def insert_many(self, connection: Connection, sql: str, rows: Sequence[tuple[Any, ...]]) -> int:
        if len(rows) < 4 * _ROWS:
            return connection.exec_driver_sql(sql, list(rows)).rowcount if rows else 0
        # Binding values one by one is half the cost of a row: so columns that are empty in the
        # whole batch become a literal NULL, and one statement takes many rows.
        kept = [
            at
            for at, column in enumerate(zip(*rows, strict=True))
            if column.count(None) < len(column)
        ]
        head, _, rest = sql.partition(" VALUES (")
        tail = rest.partition(")")[2]
        marks = ["NULL"] * len(rows[0])
        for at in kept:
            marks[at] = "?"
        pick = itemgetter(*kept)
        whole = len(rows) - len(rows) % _ROWS
        row = f"({', '.join(marks)})"
        wide = f"{head} VALUES {', '.join([row] * _ROWS)}{tail}"
        batches = [
            tuple(chain.from_iterable(map(pick, rows[start : start + _ROWS])))
            for start in range(0, whole, _ROWS)
        ]
        written = connection.exec_driver_sql(wide, batches).rowcount
        return written + self.insert_many(connection, sql, rows[whole:])
