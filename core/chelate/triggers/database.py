"""The triggers of tables: fire when so many rows have come to meet some conditions."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from chelate.api import BaseTrigger, Check, ConfigError

if TYPE_CHECKING:
    from sqlalchemy import Engine, Select
    from sqlalchemy.engine import URL

__all__ = ["DatabaseTrigger", "SQLiteTrigger"]

_LIMITED = ("postgresql", "mysql", "mariadb")  # their drivers know connect_timeout
_SECONDS_TO_CONNECT = 10


class DatabaseTrigger(BaseTrigger):
    """Fires after every ``trigger_after_n`` rows that have come to meet the conditions.

    A row counts when it meets them and did not at the last look: when it is inserted, and when
    an update makes it match. It counts again only after it has ceased to match, been seen so, and
    matches once more. Rows are known by their primary key; in a table without one by their whole
    content, so there a changed row is a new one. Rows that match at registration are the baseline
    and do not count, unless ``count_existing``. Each look is one short transaction that reads the
    keys of the rows that match; where there are more than some 100,000, narrow them with
    ``where_clauses``.

    Args:
        db_path: a SQLAlchemy URL. A password in it is kept in a file that only this user can
            read, and not in the store; ``${NAME}`` is taken from the environment at each look.
        table_name: a table or view, ``schema.table`` for one of another schema.
        poll_interval: seconds between looks.
        where_clauses: SQL conditions, all of which must hold, such as ``["id > 2"]``. They are
            run as they stand.
        trigger_after_n: rows per fire.
        count_existing: count rows that match at registration.
        lattice_dispatch_id, dispatcher_addr, triggers_server_addr, max_concurrent, overlap: see
            :class:`BaseTrigger`.
    """

    def __init__(
        self,
        db_path: str,
        table_name: str,
        poll_interval: float = 1,
        where_clauses: str | Sequence[str] | None = None,
        trigger_after_n: int = 1,
        lattice_dispatch_id: str | None = None,
        dispatcher_addr: str | None = None,
        triggers_server_addr: str | None = None,
        *,
        count_existing: bool = False,
        max_concurrent: int | None = None,
        overlap: str | None = None,
    ) -> None:
        super().__init__(
            lattice_dispatch_id,
            dispatcher_addr,
            triggers_server_addr,
            max_concurrent=max_concurrent,
            overlap=overlap,
        )
        self.db_path = os.fspath(db_path)
        self.table_name = table_name
        self.poll_interval = poll_interval
        self.where_clauses = [where_clauses] if isinstance(where_clauses, str) else where_clauses
        self.trigger_after_n = trigger_after_n
        self.count_existing = count_existing
        self._guard = threading.Lock()
        self._prepared: tuple[Engine, Select[Any], bool] | None = None

    # -- checking -------------------------------------------------------------------------------

    def validate(self) -> None:
        gap, after = self.poll_interval, self.trigger_after_n
        if isinstance(gap, bool) or not isinstance(gap, (int, float)) or not 0 < gap < 1e9:
            raise ConfigError(f"poll_interval={gap!r} must be a number of seconds above 0.")
        if isinstance(after, bool) or not isinstance(after, int) or after < 1:
            raise ConfigError(f"trigger_after_n={after!r} must be a whole number of at least 1.")
        if not isinstance(self.table_name, str) or not self.table_name:
            raise ConfigError(f"table_name={self.table_name!r} must be the name of a table.")
        clauses = self.where_clauses
        if clauses is not None:
            if not all(isinstance(clause, str) and clause.strip() for clause in clauses):
                raise ConfigError(f"where_clauses={clauses!r} must be SQL conditions, as texts.")
            self.where_clauses = list(clauses)
        self._check_place()
        from sqlalchemy.exc import DBAPIError, SQLAlchemyError

        self.release()
        engine, query, _ = self._prepare()
        try:
            with engine.connect() as connection:
                connection.execute(query.limit(0)).all()
        except DBAPIError as error:
            raise ConfigError(
                f"where_clauses={self.where_clauses!r} cannot be run on table "
                f"{self.table_name!r} of {self._shown()}: {_reason(error)}"
            ) from error
        except SQLAlchemyError as error:
            raise ConfigError(f"where_clauses={self.where_clauses!r}: {error}.") from error
        finally:
            self.release()

    def _check_place(self) -> None:
        """Before anything connects: SQLite would create a file that is missing."""
        url = self._url()
        if url.get_backend_name() != "sqlite" or not url.database or url.query.get("uri"):
            return
        if url.database != ":memory:" and not Path(url.database).is_file():
            raise ConfigError(f"There is no database file {url.database!r}.")

    def _url(self) -> URL:
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(os.path.expandvars(self.db_path))
        except (ArgumentError, ValueError) as error:
            raise ConfigError(
                "db_path is not a SQLAlchemy URL, such as sqlite:////folder/file.db or "
                "postgresql+psycopg://user@host/database."
            ) from error
        # Versions of SQLAlchemy differ in their default driver; chelate[postgres] brings this one.
        if url.drivername == "postgresql" and find_spec("psycopg"):
            url = url.set(drivername="postgresql+psycopg")
        return url

    def _target(self) -> URL:
        """The URL to connect to. A SQLite file that has gone must not be made anew, empty."""
        url = self._url()
        path = url.database
        if url.get_backend_name() != "sqlite" or not path or path == ":memory:":
            return url
        if url.query.get("uri"):
            return url
        query = {"mode": "rw", "uri": "true"}
        return url.set(database=f"file:{quote(str(Path(path).absolute()))}", query=query)

    def _shown(self) -> str:
        return self._url().render_as_string(hide_password=True)

    def _prepare(self) -> tuple[Engine, Select[Any], bool]:
        """The engine, the query for the keys of rows that match, and whether they are keys.

        Raises:
            ConfigError: the database cannot be reached, or has no such table.
        """
        with self._guard:
            if self._prepared is not None:
                return self._prepared
            from sqlalchemy import (
                MetaData,
                Table,
                and_,
                create_engine,
                literal_column,
                select,
                text,
            )
            from sqlalchemy.exc import NoSuchModuleError, NoSuchTableError, SQLAlchemyError
            from sqlalchemy.pool import NullPool

            url = self._target()
            limited = url.get_backend_name() in _LIMITED
            arguments = {"connect_timeout": _SECONDS_TO_CONNECT} if limited else {}
            schema, _, name = self.table_name.rpartition(".")
            try:
                # No pool: hundreds of triggers must not hold hundreds of idle connections.
                engine = create_engine(url, poolclass=NullPool, connect_args=arguments)
                with engine.connect() as connection:
                    table = Table(name, MetaData(), schema=schema or None, autoload_with=connection)
            except NoSuchTableError as error:
                raise ConfigError(
                    f"There is no table {self.table_name!r} in {self._shown()}."
                ) from error
            except (NoSuchModuleError, ImportError) as error:
                raise ConfigError(
                    f"{self._shown()} needs a driver that is not installed: {error}."
                ) from error
            except SQLAlchemyError as error:
                raise ConfigError(
                    f"The database {self._shown()} cannot be used: {_reason(error)}"
                ) from error
            keys = list(table.primary_key.columns)
            query = select(*(keys or table.columns or [literal_column("1")])).select_from(table)
            if self.where_clauses:
                # In parentheses, so that an OR in one condition does not swallow the others.
                query = query.where(and_(*(text(f"({_escape(c)})") for c in self.where_clauses)))
            self._prepared = engine, query, bool(keys)
            return self._prepared

    # -- looking --------------------------------------------------------------------------------

    def check(self, cursor: Any, now: float) -> Check:
        """``cursor`` is ``{"keys", "count"}``: the rows that matched, and those counted since the
        last fire."""
        engine, query, _ = self._prepare()
        with engine.connect() as connection:
            rows = connection.execute(query)
            matching = _keys(rows)
        keys = _pack(matching)
        if cursor is None:
            cursor = {"keys": [] if self.count_existing else keys, "count": 0}
        if keys == cursor["keys"]:
            return Check(0, cursor, self.poll_interval)
        new = sum((matching - _unpack(cursor["keys"])).values())
        fires, count = divmod(cursor["count"] + new, self.trigger_after_n)
        return Check(fires, {"keys": keys, "count": count}, self.poll_interval)

    def release(self) -> None:
        """Forget engine and table."""
        with self._guard:
            prepared, self._prepared = self._prepared, None
        if prepared is not None:
            prepared[0].dispose()

    def hide(self, options: dict[str, Any]) -> dict[str, Any]:
        """The URL, when it holds a password."""
        from sqlalchemy.engine import make_url

        if "://" not in self.db_path or not make_url(self.db_path).password:
            return {}
        if str(make_url(self.db_path).password).startswith("${"):
            return {}
        options["db_path"] = make_url(self.db_path).render_as_string(hide_password=True)
        return {"db_path": self.db_path}


class SQLiteTrigger(DatabaseTrigger):
    """As :class:`DatabaseTrigger`, for a SQLite file.

    Args:
        db_path: the path of the file; everything else as there.
    """

    def validate(self) -> None:
        path = Path(self.db_path).expanduser().absolute()
        self.db_path = str(path)
        if not path.is_file():
            raise ConfigError(f"There is no database file {self.db_path!r}.")
        super().validate()

    def _url(self) -> URL:
        from sqlalchemy.engine import URL

        return URL.create("sqlite", database=self.db_path)


def _reason(error: Exception) -> str:
    """What the database itself said, on one line."""
    said = str(getattr(error, "orig", None) or error)
    return " ".join(said.split())


def _escape(clause: str) -> str:
    """SQLAlchemy reads ``:name`` as a parameter; conditions have none."""
    return clause.replace("\\:", ":").replace(":", "\\:")


def _keys(rows: Iterable[Sequence[Any]]) -> Counter[Any]:
    """How often each key occurs: whole numbers as they are, anything else as a digest."""
    found: Counter[Any] = Counter()
    for row in rows:
        if len(row) == 1 and type(row[0]) is int:
            found[row[0]] += 1
        else:
            found[blake2b(repr(tuple(row)).encode(), digest_size=8).hexdigest()] += 1
    return found


def _pack(keys: Counter[Any]) -> list[Any]:
    """Keys as JSON: ``[first, last]`` for runs of whole numbers, texts, ``[text, times]``."""
    packed: list[Any] = []
    numbers = sorted(key for key, times in keys.items() if type(key) is int and times == 1)
    for number in numbers:
        if packed and packed[-1][1] == number - 1:
            packed[-1][1] = number
        else:
            packed.append([number, number])
    texts = sorted((key, times) for key, times in keys.items() if type(key) is str)
    packed += [key if times == 1 else [key, times] for key, times in texts]
    repeated = sorted((k, t) for k, t in keys.items() if type(k) is int and t > 1)
    packed += [[number, number, times] for number, times in repeated]
    return packed


def _unpack(packed: Iterable[Any]) -> Counter[Any]:
    found: Counter[Any] = Counter()
    for item in packed:
        if isinstance(item, str):
            found[item] = 1
        elif isinstance(item[0], str):
            found[item[0]] = item[1]
        elif len(item) == 3:
            found[item[0]] = item[2]
        else:
            found.update(range(item[0], item[1] + 1))
    return found
