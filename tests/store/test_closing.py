"""A store that is closed lets go of its kernels' work, so that somebody else can go on with it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.services.postgres import PostgresServer

from chelate.store import SQLStore


@pytest.fixture
def database(postgres_server: PostgresServer) -> str:
    return postgres_server.fresh()


@pytest.fixture
def watcher(database: str, tmp_path: Path) -> Iterator[SQLStore]:
    store = SQLStore(database, tmp_path / "home")
    store.open()
    yield store
    store.close()


def test_its_kernels_are_gone_when_close_returns(
    watcher: SQLStore, database: str, tmp_path: Path
) -> None:
    # A server ends a session some time after its client has left it, one in a hundred late enough.
    for _ in range(30):
        store = SQLStore(database, tmp_path / "home")
        store.open()
        kernel_id = store.claim_kernel()
        assert watcher.kernels_alive([kernel_id]) == {kernel_id}
        store.close()
        assert watcher.kernels_alive([kernel_id]) == set()


def test_a_server_that_does_not_answer_is_not_waited_for(
    watcher: SQLStore, database: str, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    store = SQLStore(database, tmp_path / "home")
    store.open()
    kernel_id = store.claim_kernel()
    name = database.split("?")[0].rpartition("/")[2]
    session = int(
        postgres_server.psql(
            name,
            "SELECT pid FROM pg_locks JOIN pg_database ON pg_database.oid = database "
            f"WHERE locktype = 'advisory' AND datname = '{name}'",
        )
    )
    os.kill(session, signal.SIGSTOP)
    try:
        started = time.monotonic()
        store.close()
        assert time.monotonic() - started < 10
        assert watcher.kernels_alive([kernel_id]) == {kernel_id}
    finally:
        os.kill(session, signal.SIGCONT)
    deadline = time.monotonic() + 30
    while watcher.kernels_alive([kernel_id]):
        assert time.monotonic() < deadline
