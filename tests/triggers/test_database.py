"""Tables: what counts and when, in SQLite and in Postgres."""

from __future__ import annotations

import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

Execute = Callable[..., Any]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def sql(file: Path) -> Execute:
    def execute(statement: str, rows: Any = None) -> None:
        with closing(sqlite3.connect(file, timeout=30)) as link, link:
            if rows is None:
                link.execute(statement)
            else:
                link.executemany(statement, rows)

    execute("CREATE TABLE jobs (id INTEGER PRIMARY KEY, status TEXT)")
    return execute


@pytest.fixture
def watch(ct: Any, held: Any, file: Path, sql: Execute) -> Callable[..., Any]:
    def register(table: str = "jobs", **options: Any) -> Any:
        trigger = ct.triggers.SQLiteTrigger(str(file), table, 0.1, **options)
        trigger.lattice_dispatch_id = held()
        trigger.register()
        return trigger

    return register


def settles(ct: Any, trigger: Any, expected: int) -> None:
    deadline = time.monotonic() + 60
    row = lambda: ct.list_triggers(trigger.lattice_dispatch_id)[0]  # noqa: E731
    while row().fires < expected and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.8)
    assert row().fires == expected, row()


def test_a_row_counts_once_however_long_it_matches(ct: Any, watch: Any, sql: Execute) -> None:
    trigger = watch(where_clauses=["status = 'new'"])
    sql("INSERT INTO jobs (status) VALUES ('new')")
    settles(ct, trigger, 1)
    ct.shutdown()
    ct.dispatch(ct.lattice(lambda: None, name="wakes_the_kernel"))()
    settles(ct, trigger, 1)


def test_an_update_that_makes_a_row_match_counts(ct: Any, watch: Any, sql: Execute) -> None:
    sql("INSERT INTO jobs VALUES (1, 'draft'), (2, 'new')")
    trigger = watch(where_clauses=["status = 'new'", "id < 10"])
    settles(ct, trigger, 0)  # what is there at registration is the baseline
    sql("UPDATE jobs SET status = 'new' WHERE id = 1")
    settles(ct, trigger, 1)
    sql("INSERT INTO jobs VALUES (11, 'new')")
    sql("UPDATE jobs SET status = 'done' WHERE id = 1")
    settles(ct, trigger, 1)
    sql("UPDATE jobs SET status = 'new' WHERE id = 1")
    settles(ct, trigger, 2)


def test_existing_rows_count_when_asked(ct: Any, watch: Any, sql: Execute) -> None:
    sql("INSERT INTO jobs (status) VALUES (?)", [("new",)] * 3)
    settles(ct, watch(count_existing=True), 3)


def test_1000_rows_of_one_transaction_are_counted_exactly(
    ct: Any, watch: Any, sql: Execute
) -> None:
    hundreds, sevens = watch(trigger_after_n=100), watch(trigger_after_n=7)
    sql("INSERT INTO jobs (status) VALUES (?)", [("new",)] * 1000)
    settles(ct, hundreds, 10)
    settles(ct, sevens, 142)
    sql("INSERT INTO jobs (status) VALUES (?)", [("new",)] * 1)
    settles(ct, sevens, 143)  # 1001 = 143 * 7
    settles(ct, hundreds, 10)


def test_conditions_with_or_colons_and_percents(ct: Any, watch: Any, sql: Execute) -> None:
    trigger = watch(where_clauses=["status = 'a' OR status LIKE 'b:%'", "id > 5"])
    sql("INSERT INTO jobs VALUES (1, 'a'), (6, 'a'), (7, 'b:c'), (8, 'c')")
    settles(ct, trigger, 2)


def test_tables_without_and_with_composite_keys(ct: Any, watch: Any, sql: Execute) -> None:
    sql("CREATE TABLE plain (word TEXT)")
    sql("CREATE TABLE pairs (a TEXT, b INTEGER, PRIMARY KEY (a, b))")
    sql('CREATE TABLE "select * from" (id INTEGER PRIMARY KEY)')
    plain, pairs, odd = watch("plain"), watch("pairs"), watch("select * from")
    sql("INSERT INTO plain VALUES ('same'), ('same'), ('other')")
    sql("INSERT INTO pairs VALUES ('x', 1), ('x', 2)")
    sql('INSERT INTO "select * from" VALUES (9)')
    settles(ct, plain, 3)
    settles(ct, pairs, 2)
    settles(ct, odd, 1)
    sql("INSERT INTO plain VALUES ('same')")
    settles(ct, plain, 4)


def test_trouble_shows_and_passes(
    ct: Any, watch: Any, sql: Execute, file: Path, until: Any
) -> None:
    trigger = watch()
    row = lambda: ct.list_triggers(trigger.lattice_dispatch_id)[0]  # noqa: E731
    file.rename(f"{file}-away")
    until(lambda: row().state == "failing")
    assert "unable to open" in row().last_error
    assert not file.exists(), "the trigger made an empty database"
    Path(f"{file}-away").rename(file)
    sql("INSERT INTO jobs (status) VALUES ('new')")
    until(lambda: row().state == "active" and row().fires == 1)
    assert row().last_error is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"table_name": "nothing"}, "no table 'nothing'"),
        ({"table_name": ""}, "table_name=''"),
        ({"table_name": "jobs; DROP TABLE jobs"}, "no table 'jobs; DROP TABLE jobs'"),
        ({"where_clauses": ["status = pending"]}, "no such column: pending"),
        ({"where_clauses": ["id >"]}, "syntax error"),
        ({"where_clauses": [""]}, "must be SQL conditions"),
        ({"where_clauses": [3]}, "must be SQL conditions"),
        ({"poll_interval": -1}, "poll_interval=-1"),
        ({"trigger_after_n": 0}, "trigger_after_n=0"),
        ({"db_path": "/does/not/exist.db"}, "no database file '/does/not/exist.db'"),
    ],
)
def test_bad_input_is_refused_at_registration(
    ct: Any, held: Any, file: Path, sql: Execute, options: dict[str, Any], words: str
) -> None:
    given = {"db_path": str(file), "table_name": "jobs", **options}
    with pytest.raises(ct.errors.ConfigError) as caught:
        ct.triggers.SQLiteTrigger(**given, lattice_dispatch_id=held()).register()
    assert words in str(caught.value)
    assert not ct.list_triggers()
    sql("SELECT * FROM jobs")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("no url at all", "not a SQLAlchemy URL"),
        ("oracle+nothing://host/db", "driver that is not installed"),
        ("sqlite:////does/not/exist.db", "no database file"),
        ("postgresql://nobody:pass-word@localhost:1/none", "cannot be used"),
    ],
)
def test_connections_that_fail(ct: Any, held: Any, url: str, words: str) -> None:
    with pytest.raises(ct.errors.ConfigError) as caught:
        ct.triggers.DatabaseTrigger(url, "jobs", lattice_dispatch_id=held()).register()
    assert words in str(caught.value)
    assert "pass-word" not in str(caught.value)


# -- Postgres ---------------------------------------------------------------------------------


@pytest.fixture
def engine(postgres_url: str) -> Iterator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine(postgres_url.replace("://", "+psycopg://"))
    with engine.begin() as link:
        link.exec_driver_sql("CREATE TABLE jobs (id SERIAL PRIMARY KEY, status TEXT)")
    yield engine
    engine.dispose()


def test_postgres_counts_commits_out_of_order(
    ct: Any, held: Any, postgres_url: str, engine: sqlalchemy.Engine
) -> None:
    trigger = ct.triggers.DatabaseTrigger(postgres_url, "jobs", 0.1, "status LIKE 'n%'")
    trigger.lattice_dispatch_id = held()
    trigger.register()
    slow, fast = engine.connect(), engine.connect()
    slow.exec_driver_sql("INSERT INTO jobs (status) VALUES ('new')")  # id 1, not committed
    fast.exec_driver_sql("INSERT INTO jobs (status) VALUES ('new'), ('old')")
    fast.commit()
    settles(ct, trigger, 1)
    slow.commit()
    settles(ct, trigger, 2)
    slow.close()
    fast.close()


def test_postgres_schemas_bursts_and_no_idle_connections(
    ct: Any, held: Any, postgres_url: str, engine: sqlalchemy.Engine
) -> None:
    with engine.begin() as link:
        link.exec_driver_sql("CREATE SCHEMA other")
        link.exec_driver_sql("CREATE TABLE other.rows (id BIGINT PRIMARY KEY, at TIMESTAMPTZ)")
    trigger = ct.triggers.DatabaseTrigger(
        postgres_url, "other.rows", 0.1, ["at::date >= DATE '2020-01-01'"], 100
    )
    trigger.lattice_dispatch_id = held()
    trigger.register()
    with engine.begin() as link:
        link.exec_driver_sql(
            "INSERT INTO other.rows SELECT n, now() FROM generate_series(1, 1000) AS n"
        )
    settles(ct, trigger, 10)


def test_a_password_is_not_in_the_store(
    ct: Any, held: Any, postgres_url: str, engine: sqlalchemy.Engine, tmp_path: Path
) -> None:
    url = postgres_url.replace("tester@", "tester:very-secret@")
    trigger = ct.triggers.DatabaseTrigger(url, "jobs", 0.1)
    trigger.lattice_dispatch_id = held()
    trigger.register()
    (row,) = ct.list_triggers()
    assert row.options["db_path"].startswith("postgresql://tester:***@")
    ct.shutdown()
    for file in (tmp_path / "home").glob("chelate.db*"):
        assert b"very-secret" not in file.read_bytes()
    (kept,) = (tmp_path / "home" / "triggers").iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    with engine.begin() as link:
        link.exec_driver_sql("INSERT INTO jobs (status) VALUES ('new')")
    ct.dispatch(ct.lattice(lambda: None, name="wakes_the_kernel"))()
    settles(ct, trigger, 1)
    ct.stop_triggers(row.id)
    assert not list((tmp_path / "home" / "triggers").iterdir())


def test_the_url_may_name_variables(
    ct: Any,
    held: Any,
    postgres_url: str,
    engine: sqlalchemy.Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JOBS_USER", "tester")
    url = postgres_url.replace("tester@", "${JOBS_USER}@")
    ct.triggers.DatabaseTrigger(url, "jobs", lattice_dispatch_id=held()).register()
    assert ct.list_triggers()[0].options["db_path"] == url
