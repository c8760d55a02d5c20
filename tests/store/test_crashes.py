"""kill -9, races between processes, and a Postgres server that goes away."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tests.services.postgres import PostgresServer
from tests.services.postgres import start as start_server

from chelate.contracts.store import Commit, DispatchFilter
from chelate.errors import ConfigError, OwnershipLostError, StoreUnavailableError
from chelate.model import DispatchRecord, NodeRecord, NodeStatus
from chelate.store import SQLStore

WRITER = """
import sys, uuid
from pathlib import Path
from chelate.contracts.store import Commit
from chelate.digest import digest_bytes
from chelate.model import DispatchRecord, NodeRecord, NodeStatus
from chelate.store import SQLStore

store = SQLStore(sys.argv[1], Path(sys.argv[2]))
store.open()
kernel = store.claim_kernel()
dispatch_id = str(uuid.uuid4())
store.add_dispatch(DispatchRecord(dispatch_id, "crash", owner=kernel), {})
print(dispatch_id, flush=True)
for turn in range(100_000):
    nodes = [NodeRecord(2 * turn + half, NodeStatus.COMPLETED, turn) for half in (0, 1)]
    data = f"{dispatch_id} {turn}".encode()
    commit = Commit({digest_bytes(data): data}, {dispatch_id: nodes})
    assert store.commit(kernel, commit, 0) == []
    print(turn, flush=True)
"""

ADOPTER = """
import json, sys
from pathlib import Path
from chelate.store import SQLStore

store = SQLStore(sys.argv[1], Path(sys.argv[2]))
store.open()
kernel = store.claim_kernel()
ids = json.loads(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
won = [name for one in ids for name in store.adopt(kernel, [one])]
print(json.dumps([kernel, won]), flush=True)
sys.stdin.readline()
"""


def run(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    return "" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))


def opened(url: str, home: Path, timeout: float = 30.0) -> SQLStore:
    store = SQLStore(url, home, timeout=timeout)
    store.open()
    return store


def add(store: SQLStore, **changes: object) -> str:
    record = DispatchRecord(str(uuid4()), "workflow", **changes)  # type: ignore[arg-type]
    assert store.add_dispatch(record, {})
    return record.dispatch_id


def check_killed(store: SQLStore, lines: list[str]) -> None:
    """Every acknowledged turn of the killed writer is there, and none is torn."""
    dispatch_id, *turns = lines
    nodes = store.nodes(dispatch_id)
    assert len(nodes) % 2 == 0, "a torn commit"
    assert [node.node_id for node in nodes] == list(range(len(nodes)))
    acknowledged = len(turns)
    assert acknowledged <= len(nodes) // 2 <= acknowledged + 1


def test_kill_9_loses_no_acknowledged_commit(tmp_path: Path) -> None:
    store = opened("", tmp_path)
    dice = random.Random(7)
    ids = []
    running = [run(WRITER, "", str(tmp_path)) for _ in range(2)]
    for at in range(20):
        writer = running.pop(0)
        assert writer.stdout is not None
        lines = [writer.stdout.readline().strip() for _ in range(dice.randrange(2, 40))]
        writer.kill()
        lines += writer.stdout.read().split("\n")[:-1]
        writer.wait()
        writer.communicate()
        check_killed(store, [line for line in lines if line])
        ids.append(lines[0])
        if at < 18:
            running.append(run(WRITER, "", str(tmp_path)))
    kernel = store.claim_kernel()
    assert sorted(store.orphans()) == sorted(ids)
    assert sorted(store.adopt(kernel, ids)) == sorted(ids)
    assert store.orphans() == []
    assert [path.stem for path in (tmp_path / "kernels").iterdir()] == [kernel]
    store.close()


def test_kill_9_on_postgres(tmp_path: Path, postgres_url: str) -> None:
    store = opened(postgres_url, tmp_path)
    writer = run(WRITER, postgres_url, str(tmp_path))
    assert writer.stdout is not None
    lines = [writer.stdout.readline().strip() for _ in range(20)]
    assert store.orphans() == []
    writer.kill()
    lines += writer.stdout.read().split("\n")[:-1]
    writer.communicate()
    check_killed(store, [line for line in lines if line])
    deadline = time.monotonic() + 20
    while store.orphans() != [lines[0]]:
        assert time.monotonic() < deadline, "the server has not noticed the death"
    store.close()


def test_two_processes_race_and_one_wins_each(url: str, tmp_path: Path) -> None:
    store = opened(url, tmp_path)
    gone = opened(url, tmp_path)
    old = gone.claim_kernel()
    ids = sorted(add(store, owner=old if at % 2 else None) for at in range(20))
    gone.close()
    racers = [run(ADOPTER, url, str(tmp_path), json.dumps(ids)) for _ in range(2)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    answers = [json.loads(racer.stdout.readline()) for racer in racers if racer.stdout]
    won = [name for _, names in answers for name in names]
    assert sorted(won) == ids, "each exactly once"
    for kernel, names in answers:
        for name in names:
            assert (store.dispatch(name).owner, store.dispatch(name).epoch) == (kernel, 1)
    assert store.orphans() == []
    for racer in racers:
        racer.communicate("\n")
    store.close()


def test_a_kernel_that_lost_its_lock_may_not_write_again(tmp_path: Path) -> None:
    """As after a pause in which the lock was lost: its lock file goes, another adopts."""
    sleeper, store = opened("", tmp_path), opened("", tmp_path)
    old, new = sleeper.claim_kernel(), store.claim_kernel()
    dispatch_id = add(store, owner=old)
    (tmp_path / "kernels" / f"{old}.lock").unlink()
    assert store.adopt(new, [dispatch_id]) == [dispatch_id]
    late = Commit(nodes={dispatch_id: [NodeRecord(1, NodeStatus.COMPLETED)]})
    with pytest.raises(OwnershipLostError, match="taken for dead"):
        sleeper.commit(old, late, 0)
    with pytest.raises(OwnershipLostError, match="taken for dead"):
        sleeper.adopt(old, [dispatch_id])
    assert store.nodes(dispatch_id) == []
    store.close()
    sleeper.close()


# -- Postgres ---------------------------------------------------------------------------------


def end_sessions(server: PostgresServer, url: str) -> None:
    name = url.partition("@/")[2].partition("?")[0]
    server.psql(
        "postgres",
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
    )


def test_a_lost_connection_is_made_again_and_its_lock_taken(
    tmp_path: Path, postgres_server: PostgresServer, postgres_url: str
) -> None:
    store, other = opened(postgres_url, tmp_path), opened(postgres_url, tmp_path)
    kernel, rival = store.claim_kernel(), other.claim_kernel()
    dispatch_id = add(store, owner=kernel)
    store.change_counter()
    for turn in range(3):
        end_sessions(postgres_server, postgres_url)
        rows = {dispatch_id: [NodeRecord(turn, NodeStatus.RUNNING)]}
        assert store.commit(kernel, Commit(nodes=rows), 0) == []
        store.change_counter()
        assert other.orphans() == []
        assert other.adopt(rival, [dispatch_id]) == []
        assert len(store.nodes(dispatch_id)) == turn + 1
    store.close()
    other.close()


def test_a_commit_whose_answer_was_lost_is_written_once(
    tmp_path: Path,
    postgres_server: PostgresServer,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = opened(postgres_url, tmp_path)
    kernel = store.claim_kernel()
    dispatch_id = add(store, owner=kernel)
    cut: list[bool] = []
    dialect = store._database._pool().dialect
    commit = dialect.do_commit

    def commit_and_lose(driver: Any) -> None:
        commit(driver)
        if cut:
            cut.clear()
            end_sessions(postgres_server, postgres_url)
            driver.execute("SELECT 1")

    monkeypatch.setattr(dialect, "do_commit", commit_and_lose)
    cut.append(True)
    rows = {dispatch_id: [NodeRecord(1, NodeStatus.COMPLETED)]}
    assert store.commit(kernel, Commit(nodes=rows), 0) == []
    assert not cut
    name = postgres_url.partition("@/")[2].partition("?")[0]
    assert postgres_server.psql(name, "SELECT count(*) FROM events").strip() == "1"
    for write, expected in (
        (lambda: store.add_dispatch(DispatchRecord("again", "x"), {}), True),
        (lambda: store.add_dispatch(DispatchRecord("held", "x", held=True), {}), True),
        (lambda: store.release_hold("held"), True),
        (lambda: store.adopt(kernel, ["again"]), ["again"]),
    ):
        cut.append(True)
        assert write() == expected
        assert not cut
    assert store.dispatch("again").epoch == 1
    store.close()


@pytest.fixture
def own_server(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    with start_server() as server:
        yield server


def test_a_server_that_crashes_and_comes_back(tmp_path: Path, own_server: PostgresServer) -> None:
    url = own_server.fresh()
    store = opened(url, tmp_path, timeout=20)
    kernel = store.claim_kernel()
    dispatch_id = add(store, owner=kernel)
    rows = {dispatch_id: [NodeRecord(1, NodeStatus.RUNNING)]}
    own_server.stop("immediate")
    with ThreadPoolExecutor() as pool:
        writing = pool.submit(store.commit, kernel, Commit(nodes=rows), 0)
        own_server.start()
        assert writing.result() == []
    assert len(store.nodes(dispatch_id)) == 1
    store.close()

    hasty = opened(url, tmp_path, timeout=0.3)
    own_server.stop("fast")
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        hasty.dispatches(DispatchFilter())
    hasty.close()
    started = time.monotonic()
    with pytest.raises(StoreUnavailableError, match="Look whether the server runs"):
        SQLStore(url, tmp_path).open()
    assert time.monotonic() - started < 10, "opening does not wait for a server"
    own_server.start()


def test_postgres_without_rights_or_room_of_its_own(
    tmp_path: Path, postgres_server: PostgresServer, postgres_url: str
) -> None:
    name = postgres_url.partition("@/")[2].partition("?")[0]
    postgres_server.psql(name, "CREATE TABLE nodes (x int)")
    with pytest.raises(StoreUnavailableError, match=r"another program \(nodes\)"):
        SQLStore(postgres_url, tmp_path).open()
    nowhere = postgres_url.replace(name, "no_such_database")
    with pytest.raises(StoreUnavailableError, match="no_such_database"):
        SQLStore(nowhere, tmp_path).open()
    secret = "postgresql://tester:hunter2@127.0.0.1:1/db"
    with pytest.raises(StoreUnavailableError) as caught:
        SQLStore(secret, tmp_path).open()
    assert "hunter2" not in str(caught.value)


def test_a_missing_driver_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r'pip install "chelate\[postgres\]"'):
        SQLStore("postgresql://localhost/db", tmp_path).open()


def test_a_paused_owner_is_not_taken_for_dead(url: str, tmp_path: Path) -> None:
    store = opened(url, tmp_path)
    writer = run(WRITER, url, str(tmp_path))
    assert writer.stdout is not None
    assert writer.stdout.readline()
    writer.send_signal(signal.SIGSTOP)
    try:
        assert store.orphans() == []
    finally:
        writer.kill()
        writer.communicate()
    store.close()
