"""Built-in triggers and users' own pass the kit."""

from __future__ import annotations

import itertools
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy
from tests.triggers.own import AsyncTrigger, CountingTrigger, ForgetfulTrigger, WatchingTrigger

from chelate.testing.trigger_conformance import Cause, MakeTrigger, TriggerConformance
from chelate.triggers import DatabaseTrigger, DirTrigger, SQLiteTrigger, TimeTrigger

NUMBERS = itertools.count()


class TestDirectory(TriggerConformance):
    quiet = 0.7

    @pytest.fixture
    def make_trigger(self, tmp_path: Path) -> MakeTrigger:
        (tmp_path / "watched").mkdir()
        return lambda: DirTrigger(tmp_path / "watched", ["created"])

    @pytest.fixture
    def cause(self, tmp_path: Path) -> Cause:
        def make(times: int) -> None:
            for _ in range(times):
                (tmp_path / "watched" / f"file-{next(NUMBERS)}").write_text("x")

        return make


class TestSQLite(TriggerConformance):
    quiet = 0.7

    @pytest.fixture
    def make_trigger(self, tmp_path: Path) -> MakeTrigger:
        with closing(sqlite3.connect(tmp_path / "jobs.db")) as link:
            link.execute("CREATE TABLE jobs (id INTEGER PRIMARY KEY, status TEXT)")
        return lambda: SQLiteTrigger(str(tmp_path / "jobs.db"), "jobs", 0.1)

    @pytest.fixture
    def cause(self, tmp_path: Path) -> Cause:
        def insert(times: int) -> None:
            with closing(sqlite3.connect(tmp_path / "jobs.db")) as link, link:
                link.executemany("INSERT INTO jobs (status) VALUES (?)", [("new",)] * times)

        return insert


class TestPostgres(TriggerConformance):
    quiet = 0.7

    @pytest.fixture
    def make_trigger(self, postgres_url: str) -> MakeTrigger:
        engine = sqlalchemy.create_engine(postgres_url.replace("://", "+psycopg://"))
        with engine.begin() as link:
            link.exec_driver_sql("CREATE TABLE jobs (id UUID PRIMARY KEY, status TEXT)")
        engine.dispose()
        return lambda: DatabaseTrigger(postgres_url, "jobs", 0.2, ["status = 'new'"])

    @pytest.fixture
    def cause(self, postgres_url: str) -> Cause:
        def insert(times: int) -> None:
            engine = sqlalchemy.create_engine(postgres_url.replace("://", "+psycopg://"))
            with engine.begin() as link:
                link.exec_driver_sql(
                    "INSERT INTO jobs SELECT gen_random_uuid(), 'new' "
                    f"FROM generate_series(1, {times})"
                )
            engine.dispose()

        return insert


class TestTime(TriggerConformance):
    quiet = 0.7
    by_itself = True

    @pytest.fixture
    def make_trigger(self) -> MakeTrigger:
        return lambda: TimeTrigger(0.3)

    @pytest.fixture
    def cause(self) -> Cause:
        return lambda times: time.sleep(0.3 * min(times, 3))


class TestOwnCheck(TriggerConformance):
    quiet = 0.7
    kind = CountingTrigger

    @pytest.fixture
    def make_trigger(self, tmp_path: Path) -> MakeTrigger:
        (tmp_path / "events").touch()
        return lambda: self.kind(str(tmp_path / "events"))

    @pytest.fixture
    def cause(self, tmp_path: Path) -> Cause:
        def append(times: int) -> None:
            with (tmp_path / "events").open("ab") as file:
                file.write(b"." * times)

        return append


class TestOwnObserve(TestOwnCheck):
    quiet = 1.0  # also how long its baseline may take
    kind = WatchingTrigger


class TestOwnBaseline(TestOwnCheck):
    quiet = 1.0  # also how long its baseline may take
    kind = ForgetfulTrigger
    counts_while_down = False


class TestOwnCoroutine(TestOwnCheck):
    quiet = 1.0  # also how long its baseline may take
    kind = AsyncTrigger
    stands_alone = False
