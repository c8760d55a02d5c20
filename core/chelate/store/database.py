"""Connections and transactions: what SQLite and Postgres have in common.

One connection writes, under a lock, so that threads of one process queue up here and not at the
database; readers take short connections from a pool. Failures become sentences, and those that
pass (a lock, a lost connection) are tried again until ``timeout`` seconds have gone by. So every
piece of work handed to :meth:`Database.write` must bear being run twice: the answer to a COMMIT
can be lost after the COMMIT took place.
"""

from __future__ import annotations

import ctypes
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from chelate.api import (
    StoreError,
    StoreUnavailableError,
)
from chelate.store.locks import forget_on_fork
from chelate.store.migrations import check, migrate

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Table
    from sqlalchemy.exc import DBAPIError

__all__ = ["Busy", "Database"]

T = TypeVar("T")

_SCHEMA_LOCK = 0x6368656C_61746501


class Busy(StoreUnavailableError):
    """The medium cannot just now: worth another try."""


class Database(ABC):
    """One database. Nothing happens before :meth:`open`; the attributes are settled then."""

    inline_limit: int  # values up to this many bytes live in the database
    numbers: str  # SQL for the rows, each a ``value``, of the JSON list ``:numbers``
    collation: str  # the one that orders text by code point
    gapless: bool  # whether a transaction that is rolled back gives its numbers back

    def __init__(self, place: str, *, synchronous: str, timeout: float) -> None:
        self.place = place
        self.synchronous = synchronous
        self.timeout = timeout
        self._engine: Engine | None = None
        self._writer: Connection | None = None
        self._watcher: Connection | None = None
        self._generation = 0
        self._drivers: set[Any] = set()
        self._guard = threading.RLock()
        self._watch_guard = threading.Lock()
        forget_on_fork(self)

    # -- what differs ---------------------------------------------------------------------------

    @abstractmethod
    def _create_engine(self) -> Engine:
        """A pool of connections, none of them open."""

    @abstractmethod
    def _prepare(self) -> None:
        """Before the first connection: look at the place, create what must exist."""

    @abstractmethod
    def _begin(self, connection: Connection) -> None:
        """Start a writing transaction."""

    @abstractmethod
    def _readable(self, engine: Engine) -> Engine:
        """The engine whose connections read without a transaction."""

    @abstractmethod
    def lock(self, connection: Connection, number: int) -> None:
        """Let nobody else pass here with this number until the transaction ends."""

    @abstractmethod
    def _version(self, connection: Connection) -> int:
        """The stored schema version, 0 when there is no schema; refuses others' databases."""

    @abstractmethod
    def _set_version(self, connection: Connection, version: int) -> None:
        """Store the schema version, in the current transaction."""

    @abstractmethod
    def _explain(self, error: DBAPIError) -> StoreError | None:
        """The sentence for a failure; Busy when it may pass; None when it is no known one."""

    @abstractmethod
    def _reading(self) -> Connection:
        """A new connection that can only read, and sees one moment."""

    @abstractmethod
    def damage(self, connection: Connection, thorough: bool) -> list[str]:
        """What the database finds wrong with itself, in sentences."""

    @abstractmethod
    def _watch(self, connection: Connection) -> int:
        """A number that changes when the database does."""

    @abstractmethod
    def claim(self, kernel_id: str, connection: Connection) -> None:
        """Take the kernel's lock for the life of this process."""

    @abstractmethod
    def alive(self, kernel_ids: Sequence[str], connection: Connection) -> set[str]:
        """Which of the kernels hold their locks; a look without consequences."""

    @abstractmethod
    def hold_dead(
        self, kernel_ids: Sequence[str], connection: Connection, work: Callable[[set[str]], T]
    ) -> T:
        """Call ``work`` with those kernels that are dead and cannot come back meanwhile."""

    @abstractmethod
    def release(self) -> None:
        """Let go of the locks of this process's kernels."""

    @abstractmethod
    def compile_insert(
        self, table: Table, *, update: Callable[[Any], dict[str, Any]] | None, where: Any = None
    ) -> str:
        """SQL that inserts rows; on a conflict it updates (``update`` of the excluded row, where
        ``where`` holds) or leaves the old row."""

    @abstractmethod
    def insert_many(self, connection: Connection, sql: str, rows: Sequence[tuple[Any, ...]]) -> int:
        """Run what :meth:`compile_insert` made, for many rows in the order of the columns; how
        many were written."""

    # -- life -------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect, check the version before anything is changed, create or migrate.

        Raises:
            SchemaTooNewError: written by a newer chelate.
            StoreUnavailableError: anything else that keeps the store from opening.
        """
        self._prepare()
        found = self.read(self._version)
        check(found, self.place)
        self.write(self._migrate)

    def _migrate(self, connection: Connection) -> None:
        self.lock(connection, _SCHEMA_LOCK)
        found = self._version(connection)
        check(found, self.place)
        version = migrate(connection, found)
        if version != found:
            self._set_version(connection, version)

    def close(self) -> None:
        """Close every connection and release the kernels' locks."""
        with self._guard:
            try:
                self.release()
            finally:
                self._drop_writer()
                self._drop_watcher()
                if self._engine is not None:
                    self._engine.dispose()
                    self._engine = None

    def forget(self) -> None:
        """In a forked child: nothing of the parent's may be used, closed or even collected.

        Closing a copy of a connection would end the parent's session (Postgres) or act on files
        whose locks the child only believes it has (SQLite), so the copies are kept for good.
        """
        for driver in self._drivers:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(driver))
        for thing in (self._engine, self._writer, self._watcher):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
        self._drivers = set()
        self._engine = self._writer = self._watcher = None
        self._generation += 1
        self._guard = threading.RLock()
        self._watch_guard = threading.Lock()

    def _pool(self) -> Engine:
        engine = self._engine
        if engine is not None:  # Readers must not queue behind a commit, which holds the guard.
            return engine
        with self._guard:
            if self._engine is None:
                from sqlalchemy import event

                engine = self._create_engine()
                event.listen(engine, "connect", lambda driver, _: self._drivers.add(driver))
                event.listen(engine, "close", lambda driver, _: self._drivers.discard(driver))
                self._engine = engine
            return self._engine

    def _drop_writer(self) -> None:
        connection, self._writer = self._writer, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    def _drop_watcher(self) -> None:
        with self._watch_guard:
            connection, self._watcher = self._watcher, None
            self._generation += 1
            if connection is not None:
                connection.invalidate()
                connection.close()

    # -- work -------------------------------------------------------------------------------------

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one writing transaction and commit; all of it or nothing.

        Raises:
            StoreUnavailableError: the medium fails, or stays busy beyond the time-out.
        """
        return self._persist(lambda: self._write_once(work))

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` on a connection that only reads."""
        return self._persist(lambda: self._read_once(work))

    def _persist(self, attempt: Callable[[], T]) -> T:
        started = time.monotonic()
        try:
            return attempt()
        except Busy:
            left = self.timeout - (time.monotonic() - started)
            if left <= 0:
                raise
            from tenacity import (
                Retrying,
                retry_if_exception_type,
                stop_after_delay,
                wait_random_exponential,
            )

            retrying = Retrying(
                retry=retry_if_exception_type(Busy),
                stop=stop_after_delay(left),
                wait=wait_random_exponential(multiplier=0.05, max=2.0),
                reraise=True,
            )
            return retrying(attempt)

    def _write_once(self, work: Callable[[Connection], T]) -> T:
        from sqlalchemy.exc import DBAPIError

        with self._guard:
            try:
                connection = self._writing()
                with connection.begin():
                    self._begin(connection)
                    return work(connection)
            except DBAPIError as error:
                if error.connection_invalidated or self._stuck():
                    self._drop_writer()
                raise self._sentence(error) from error

    def _stuck(self) -> bool:
        """Whether the writing connection is of no further use after a failure."""
        return self._writer is not None and self._writer.invalidated

    def _read_once(self, work: Callable[[Connection], T]) -> T:
        with self.explained(), self._readable(self._pool()).connect() as connection:
            return work(connection)

    @contextmanager
    def looking(self) -> Iterator[Connection]:
        """A reading transaction on a database that need not be open; nothing is created.

        Raises:
            StoreUnavailableError: it is not there, cannot be read, or is damaged.
        """
        with self.explained(), self._reading() as connection:
            found = self._version(connection)
            check(found, self.place)
            if not found:
                raise StoreUnavailableError(f"There is no store in {self.place}.")
            yield connection

    @contextmanager
    def explained(self) -> Iterator[None]:
        """The driver's errors become sentences."""
        from sqlalchemy.exc import DBAPIError

        try:
            yield
        except DBAPIError as error:
            raise self._sentence(error) from error
        except UnicodeDecodeError as error:  # SQLite gives back whatever bytes are there
            text = f"A row holds what is no text ({error}): the database is damaged."
            raise StoreError(text) from error

    def _writing(self) -> Connection:
        if self._writer is None:
            connection = self._pool().connect()
            try:
                self._reclaim(connection)
            except BaseException:
                connection.close()
                raise
            self._writer = connection
        return self._writer

    @abstractmethod
    def _reclaim(self, connection: Connection) -> None:
        """On a new writing connection: take again the locks that the last one held."""

    def change_counter(self) -> int:
        """A number that differs from the last one when anybody has written since."""
        return self._persist(self._watch_once)

    def _watch_once(self) -> int:
        from sqlalchemy.exc import DBAPIError

        try:
            with self._watch_guard:
                if self._watcher is None:
                    self._watcher = self._readable(self._pool()).connect()
                    self._generation += 1
                return (self._generation << 64) + self._watch(self._watcher)
        except DBAPIError as error:
            self._drop_watcher()
            raise self._sentence(error) from error

    def _sentence(self, error: DBAPIError) -> StoreError:
        known = self._explain(error)
        if known is not None:
            return known
        return StoreError(
            f"The store {self.place} refused a statement ({error.orig}); nothing was written. "
            "If no other program changed it, this is a defect in chelate: please report it."
        )
