"""Outages of the medium under a real kernel, as somebody meets them who calls ``ct.dispatch``.

Each gives one clear sentence or a recovery: no task runs twice, no end is invented, and what was
acknowledged is still there.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.services.pgproxy import CommitCutter
from tests.services.postgres import PostgresServer
from tests.services.postgres import start as start_server

import chelate as ct
from chelate import embedding
from chelate.checking import check_store
from chelate.embedding import current
from chelate.errors import (
    BlobDamagedError,
    BlobMissingError,
    DispatchNotFoundError,
    StoreError,
    StoreUnavailableError,
)
from chelate.store import SQLStore


@ct.electron
def step(ledger, number, pause=0.05):
    import os
    import time

    descriptor = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{os.environ['CHELATE_TASK_KEY']}\n".encode())
    os.close(descriptor)
    time.sleep(pause)
    return number + 1


@ct.electron
def large(number):
    return bytes([number]) * 2_000_000


@ct.lattice
def flow(ledger, length):
    chain = 0
    for _ in range(length):
        chain = step(ledger, chain)
    return chain, step(ledger, 0, 0.3), step(ledger, 1)


@ct.lattice
def values(number):
    return large(number)


class User:
    """One process of a user on a home of its own."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.home = folder / "home"
        self.ledger = folder / "ledger"
        self.settings = settings
        self.begin()

    def begin(self) -> None:
        ct.shutdown()
        ct.configure(
            home=self.home,
            poll_interval=0.05,
            progress="off",
            executors={"local": {"workers": 2}},
            **self.settings,
        )

    def dispatch(self, length: int = 8) -> str:
        return ct.dispatch(flow)(str(self.ledger), length)

    def runs(self) -> Counter[str]:
        return Counter(self.ledger.read_text().split() if self.ledger.exists() else [])

    def wait_for_runs(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while len(self.runs()) < count:
            assert time.monotonic() < deadline, "the tasks did not start"
            time.sleep(0.01)

    def completes(self, dispatch_id: str, length: int = 8) -> None:
        """It ends as if nothing had been; each task ran once; and the store is sound."""
        result = ct.get_result(dispatch_id, wait=True, timeout=120)
        assert result.status == "COMPLETED", result.error
        assert result.result == (length, 1, 2)
        ran = Counter(key.rsplit(":", 2)[0] for key in self.runs() if key.startswith(dispatch_id))
        assert set(ran.values()) == {1}
        assert len(ran) == length + 2
        assert max(self.runs().values()) == 1
        self.sound()

    def sound(self) -> None:
        ct.shutdown()
        store = SQLStore(self.settings.get("store") or "", self.home)
        try:
            assert check_store(store).findings == []
        finally:
            store.close()
        self.begin()


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    before = dict(embedding._overrides)
    yield User(tmp_path)
    ct.shutdown()
    embedding._overrides.clear()
    embedding._overrides.update(before)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores give up after a moment, not after half a minute."""
    monkeypatch.setitem(SQLStore.__init__.__kwdefaults__, "timeout", 0.3)


def database() -> Any:
    store = current().store
    assert isinstance(store, SQLStore)
    return store._database


# -- SQLite -------------------------------------------------------------------------------------


def locked_for(user: User, seconds: float) -> None:
    first = user.dispatch()
    user.wait_for_runs(2)
    with closing(sqlite3.connect(user.home / "chelate.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="locked by another process"):
            user.dispatch()
        with pytest.raises(StoreUnavailableError, match="locked by another process"):
            ct.cancel(first)
        assert ct.get_result(first).status == "RUNNING", "reading goes on"
        time.sleep(max(0.0, started + seconds - time.monotonic()))
        other.execute("ROLLBACK")
    user.completes(first)
    assert len(ct.list_dispatches()) == 1, "what was refused is not there"


def test_locked_for_longer_than_a_store_waits(user: User, hasty: None) -> None:
    locked_for(user, 2.0)


@pytest.mark.large
@pytest.mark.timeout(300)
def test_locked_for_a_minute(user: User) -> None:
    locked_for(user, 60.0)


def test_locked_for_a_moment_nobody_notices(user: User) -> None:
    first = user.dispatch()
    user.wait_for_runs(1)
    with closing(
        sqlite3.connect(user.home / "chelate.db", isolation_level=None, check_same_thread=False)
    ) as other:
        other.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.5, other.execute, ["ROLLBACK"])
        timer.start()
        second = user.dispatch(3)
        timer.join()
    user.completes(first)
    user.completes(second, 3)


def test_a_disk_that_is_full_for_a_while(user: User, hasty: None) -> None:
    first = user.dispatch()
    user.wait_for_runs(1)
    with database()._guard:
        link = database()._writing()
        pages = link.exec_driver_sql("PRAGMA page_count").scalar_one()
        link.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        link.rollback()
    kept = []
    with pytest.raises(StoreUnavailableError, match=r"full.*free some space"):  # noqa: PT012
        for _ in range(200):
            kept.append(user.dispatch(1))
    time.sleep(0.5)
    with database()._guard:
        database()._writing().exec_driver_sql("PRAGMA max_page_count=1000000")
        link.rollback()
    assert {row.dispatch_id for row in ct.list_dispatches(limit=999)} == {first, *kept}
    user.completes(first)
    for dispatch_id in kept:
        user.completes(dispatch_id, 1)


@pytest.mark.parametrize("which", ["chelate.db", "chelate.db-wal"])
def test_a_database_deleted_while_it_is_used(user: User, hasty: None, which: str) -> None:
    first = user.dispatch()
    user.wait_for_runs(2)
    away = user.home / "away"
    (user.home / which).rename(away)
    with pytest.raises(StoreUnavailableError, match=rf"{which} was deleted.*Put it back"):
        user.dispatch()
    with pytest.raises(StoreUnavailableError, match="Put it back"):
        ct.cancel(first)
    if (user.home / which).exists():
        (user.home / which).unlink()
    away.rename(user.home / which)
    user.completes(first)


def test_a_database_deleted_between_two_processes(user: User) -> None:
    first = user.dispatch(1)
    user.completes(first, 1)
    ct.shutdown()
    for path in user.home.glob("chelate.db*"):
        path.unlink()
    user.begin()
    with pytest.raises(DispatchNotFoundError, match=first):
        ct.get_result(first)
    user.completes(user.dispatch(2), 2)


def test_a_database_with_flipped_bytes(user: User) -> None:
    ids = [user.dispatch(1) for _ in range(5)]
    for dispatch_id in ids:
        ct.get_result(dispatch_id, wait=True)
    ct.shutdown()
    path = user.home / "chelate.db"
    data = bytearray(path.read_bytes())
    for page in range(1, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = os.urandom(64)
    path.write_bytes(data)
    user.begin()
    for dispatch_id in ids:
        with pytest.raises(StoreError, match=r"damaged|cannot be read|No dispatch"):
            _ = ct.get_result(dispatch_id).get_all_node_results()
    with pytest.raises(StoreError, match="damaged"):
        user.dispatch()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda path: path.write_bytes(b"!" + path.read_bytes()[1:]), BlobDamagedError),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), BlobDamagedError),
        (lambda path: path.unlink(), BlobMissingError),
    ],
    ids=["flipped", "truncated", "deleted"],
)
def test_a_damaged_value(
    user: User, change: Callable[[Path], object], error: type[StoreError]
) -> None:
    dispatch_id = ct.dispatch(values)(7)
    assert ct.get_result(dispatch_id, wait=True).status == "COMPLETED"
    ct.shutdown()
    (path,) = [p for p in (user.home / "blobs").glob("*/*") if p.stat().st_size > 1_000_000]
    change(path)
    user.begin()
    with pytest.raises(error, match="Redispatch the workflow"):
        _ = ct.get_result(dispatch_id).result
    again = ct.redispatch(dispatch_id, reuse_previous_results=True)()
    result = ct.get_result(again, wait=True)
    assert result.result == bytes([7]) * 2_000_000
    assert result.get_node_result(0)["reused_from"] is None
    user.sound()


# -- Postgres -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    """One that may be stopped."""
    with start_server() as own:
        yield own


@pytest.fixture
def remote(tmp_path: Path, server: PostgresServer) -> Iterator[User]:
    yield User(tmp_path, store=server.fresh())
    ct.shutdown()


def backends(server: PostgresServer) -> list[int]:
    found = server.psql(
        "postgres", "SELECT pid FROM pg_stat_activity WHERE application_name = 'chelate'"
    )
    return [int(word) for word in found.split()]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_server_that_restarts(remote: User, server: PostgresServer, mode: str) -> None:
    first = remote.dispatch()
    remote.wait_for_runs(2)
    server.stop(mode)
    server.start()
    second = remote.dispatch(2)
    remote.completes(first)
    remote.completes(second, 2)


def test_a_server_that_is_down_for_a_while(
    remote: User, server: PostgresServer, hasty: None
) -> None:
    remote.begin()
    first = remote.dispatch()
    remote.wait_for_runs(2)
    server.stop("fast")
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        remote.dispatch()
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        ct.cancel(first)
    time.sleep(1.5)
    server.start()
    remote.completes(first)
    assert len(ct.list_dispatches()) == 1


def test_a_backend_that_is_killed(remote: User, server: PostgresServer) -> None:
    first = remote.dispatch()
    remote.wait_for_runs(2)
    os.kill(backends(server)[0], signal.SIGKILL)
    remote.completes(first)


def test_sessions_that_are_ended_again_and_again(remote: User, server: PostgresServer) -> None:
    first = remote.dispatch()
    for count in (1, 3, 5, 7):
        remote.wait_for_runs(count)
        server.psql(
            "postgres",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'chelate'",
        )
    remote.completes(first)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_connections_that_are_cut_at_commit(
    tmp_path: Path, server: PostgresServer, before: bool, request: pytest.FixtureRequest
) -> None:
    cuts = 100 if request.config.getoption("--large") else 6
    url = server.fresh()
    with CommitCutter(server.folder) as proxy:
        user = User(tmp_path, store=url.replace(str(server.folder), str(proxy.folder)))
        ct.list_dispatches()
        ids = []
        for number in range(cuts):
            proxy.cut(before=before)
            ids.append(user.dispatch(2))
            user.wait_for_runs(4 * number + 1)
            proxy.cut(before=before)
            user.wait_for_runs(4 * number + 4)
        for dispatch_id in ids:
            assert ct.get_result(dispatch_id, wait=True, timeout=60).result == (2, 1, 2)
        proxy.cut(before=before)
        last = user.dispatch(30)
        proxy.cut(before=before)
        assert "cancel" in ct.cancel(last)
        assert ct.get_result(last, wait=True, timeout=60).status == "CANCELLED"
        assert proxy.cuts >= cuts
        assert len(ct.list_dispatches(limit=999)) == cuts + 1
        assert max(user.runs().values()) == 1
        ran = Counter(key.rsplit(":", 2)[0] for key in user.runs())
        assert max(ran.values()) == 1
        user.sound()
        ct.shutdown()
