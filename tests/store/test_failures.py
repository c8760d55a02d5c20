"""A medium that fails gives one clear sentence, and what was stored before stays readable."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Connection

from chelate.contracts.store import Commit, DispatchFilter
from chelate.digest import digest_bytes
from chelate.errors import (
    BlobDamagedError,
    BlobMissingError,
    ConfigError,
    SchemaTooNewError,
    StoreUnavailableError,
)
from chelate.model import DispatchRecord, NodeRecord, NodeStatus
from chelate.store import SQLStore, migrations
from chelate.store.locks import network_filesystem

LARGE = b"large" * 20_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLStore]:
    store = SQLStore("", tmp_path / "home", timeout=0.2)
    store.open()
    yield store
    store.close()


def add(store: SQLStore, blobs: dict[str, bytes] | None = None, **changes: object) -> str:
    record = DispatchRecord(str(uuid4()), "workflow", created_at=1.0, **changes)  # type: ignore[arg-type]
    assert store.add_dispatch(record, blobs or {})
    return record.dispatch_id


def in_child(work: Callable[[], None], uid: int | None = None) -> None:
    """Run ``work`` in a forked child, as another user where asked; it must not raise."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            if uid is not None:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            work()
            status = 0
        except BaseException:
            os.write(writing, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        story = stream.read().decode()
    _, status = os.waitpid(pid, 0)
    assert status == 0, story


def test_everything_is_private(store: SQLStore) -> None:
    add(store, {digest_bytes(LARGE): LARGE})
    store.claim_kernel()
    for place in [store.home, *store.home.rglob("*")]:
        assert stat.S_IMODE(place.stat().st_mode) == (0o700 if place.is_dir() else 0o600), place


def test_a_full_file_system(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = shutil.which("mount")
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)]
    if mount is None or os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        store = SQLStore("", small / "home")
        store.open()
        kernel = store.claim_kernel()
        dispatch_id = add(store, owner=kernel)
        ballast = small / "ballast"
        with ballast.open("wb", buffering=0) as out:
            free = os.statvfs(small).f_bavail * os.statvfs(small).f_frsize
            os.posix_fallocate(out.fileno(), 0, free)
        data = os.urandom(30_000)
        turn = Commit({digest_bytes(data): data}, {dispatch_id: [NodeRecord(1)]})
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match="disk is full") as caught:
                store.commit(kernel, turn, 0)
            assert str(small) in str(caught.value)
        with pytest.raises(StoreUnavailableError, match="No space"):
            add(store, {digest_bytes(LARGE): LARGE})
        assert store.nodes(dispatch_id) == []
        assert store.dispatch(dispatch_id).owner == kernel
        ballast.unlink()
        assert store.commit(kernel, turn, 0) == []
        add(store, {digest_bytes(LARGE): LARGE})
        assert store.read(digest_bytes(LARGE)) == LARGE
        assert not [path for path in store.home.rglob(".*") if path.is_file()], "left-overs"
        store.close()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_database_that_may_not_grow(store: SQLStore) -> None:
    kernel = store.claim_kernel()
    dispatch_id = add(store, owner=kernel)
    link = store._database._writing()
    pages = link.exec_driver_sql("PRAGMA page_count").scalar_one()
    link.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    link.rollback()
    rows = [NodeRecord(at, NodeStatus.RUNNING, error="x" * 500) for at in range(200)]
    with pytest.raises(StoreUnavailableError, match="disk is full"):
        store.commit(kernel, Commit(nodes={dispatch_id: rows}), 0)
    assert store.nodes(dispatch_id) == []
    store._database._writing().exec_driver_sql("PRAGMA max_page_count=1000000")
    link.rollback()
    assert store.commit(kernel, Commit(nodes={dispatch_id: rows}), 0) == []
    assert len(store.nodes(dispatch_id)) == 200


def test_a_read_only_home() -> None:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    other = 65534 if os.geteuid() == 0 else None
    try:
        home = folder / "home"
        home.mkdir()
        home.chmod(0o555)

        def fresh() -> None:
            with pytest.raises(StoreUnavailableError, match="writable") as caught:
                SQLStore("", home).open()
            assert str(home) in str(caught.value)

        in_child(fresh, other)
        home.chmod(0o755)
        written = SQLStore("", home)
        written.open()
        dispatch_id = add(written)
        written.close()
        for place in [*home.rglob("*"), home]:
            place.chmod(0o555 if place.is_dir() else 0o444)
        in_child(fresh, other)
        for place in [home, *home.rglob("*")]:
            place.chmod(0o755)
        again = SQLStore("", home)
        again.open()
        assert again.dispatch(dispatch_id).name == "workflow"
        again.close()
    finally:
        shutil.rmtree(folder)


def test_a_home_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailableError, match="file"):
        SQLStore("", tmp_path / "file" / "home").open()


def test_locked_beyond_the_timeout(store: SQLStore) -> None:
    dispatch_id = add(store)
    other = sqlite3.connect(store.home / "chelate.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailableError, match=r"locked by another process.*0\.2 s"):
        add(store)
    assert store.dispatch(dispatch_id).name == "workflow"
    other.execute("ROLLBACK")
    other.close()
    add(store)
    assert len(store.dispatches(DispatchFilter())) == 2


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database at all, but long enough to have a header " * 40)
    before = path.read_bytes()
    with pytest.raises(StoreUnavailableError, match=r"notes\.txt.*not a database"):
        SQLStore(f"sqlite:///{path}", tmp_path).open()
    assert path.read_bytes() == before


def test_a_database_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE nodes (x)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(StoreUnavailableError, match=r"other\.db is the database of another"):
        SQLStore(f"sqlite:///{path}", tmp_path).open()
    assert path.read_bytes() == before


def add_column(connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE facts ADD COLUMN note VARCHAR")


def test_an_older_schema_is_brought_up_and_a_newer_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres_url: str
) -> None:
    for url in ("", postgres_url):
        store = SQLStore(url, tmp_path / "home")
        store.open()
        dispatch_id = add(store)
        store.close()
        with monkeypatch.context() as patch:
            patch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, add_column))
            for _ in range(2):
                store.open()
                assert store.dispatch(dispatch_id).name == "workflow"
                store.close()
        path = tmp_path / "home" / "chelate.db"
        before = path.read_bytes()
        with pytest.raises(SchemaTooNewError, match=r"version 2, and .* up to 1"):
            store.open()
        store.close()
        assert path.read_bytes() == before


def test_a_failed_migration_leaves_the_old_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(connection: Connection) -> None:
        add_column(connection)
        raise RuntimeError("half-way")

    store = SQLStore("", tmp_path / "home")
    store.open()
    dispatch_id = add(store)
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, broken))
        with pytest.raises(RuntimeError, match="half-way"):
            store.open()
    store.close()
    store.open()
    store.set_fact("a", 1)
    assert store.dispatch(dispatch_id).name == "workflow"
    store.close()


def test_damaged_and_deleted_values(store: SQLStore, tmp_path: Path) -> None:
    digest = digest_bytes(LARGE)
    add(store, {digest: LARGE})
    path = store.path(digest)
    assert path is not None
    path.write_bytes(b"L" + LARGE[1:])
    with pytest.raises(BlobDamagedError, match=digest) as caught:
        store.read(digest)
    assert str(path) in str(caught.value)
    add(store, {digest: LARGE})
    assert store.read(digest) == LARGE, "storing it again mends it"
    path.unlink()
    with pytest.raises(BlobMissingError, match=digest):
        store.read(digest)
    assert store.missing_blobs([digest]) == {digest}

    small = b"small"
    name = digest_bytes(small)
    add(store, {name: small})
    store.close()
    database = sqlite3.connect(store.home / "chelate.db")
    database.execute("UPDATE blobs SET data = X'6f74686572' WHERE digest = ?", (name,))
    database.commit()
    database.close()
    fresh = SQLStore("", store.home)
    fresh.open()
    for call in (fresh.read, lambda item: fresh.read_many([item])):
        with pytest.raises(BlobDamagedError, match=name):
            call(name)
    add(fresh, {name: small})
    assert fresh.read(name) == small
    source = tmp_path / "source"
    source.write_bytes(LARGE + b"!")
    with pytest.raises(BlobDamagedError):
        fresh.put_file(digest, source, move=False)
    assert fresh.path(digest) is None
    with pytest.raises(ConfigError, match="digest"):
        fresh.put_file("../../etc/passwd", source, move=True)
    fresh.close()


def test_network_file_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path.resolve()
    mounts = tmp_path / "mounts"
    for kind, refused in (("nfs4", True), ("lustre", True), ("cifs", True), ("ext4", False)):
        mounts.write_text(f"/dev/x / ext4 rw 0 0\nserver:/x {real} {kind} rw 0 0\n")
        assert network_filesystem(tmp_path / "home", mounts) == (kind if refused else None)
    mounts.write_text(f"server:/ / nfs rw 0 0\n/dev/y {real} ext4 rw 0 0\n")
    assert network_filesystem(tmp_path, mounts) is None
    spaced = tmp_path / "a b"
    mounts.write_text(f"//server/x {real}/a\\040b cifs rw 0 0\n")
    assert network_filesystem(spaced, mounts) == "cifs"
    assert network_filesystem(tmp_path, tmp_path / "no such table") is None
    monkeypatch.setattr("chelate.store.sqlite.network_filesystem", lambda path: "nfs4")
    with pytest.raises(StoreUnavailableError, match=r"network file system \(nfs4\).*Postgres"):
        SQLStore("", tmp_path / "home").open()


def test_a_wrong_url_or_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("mysql://x", "sqlite://x", "sqlite:///:memory:"):
        with pytest.raises(ConfigError):
            SQLStore(url, tmp_path)
    with pytest.raises(ConfigError, match="FULL or NORMAL"):
        SQLStore("", tmp_path, synchronous="OFF")
    monkeypatch.setenv("CHELATE_SYNCHRONOUS", "normal")
    SQLStore("", tmp_path)
    assert list(tmp_path.iterdir()) == [], "a constructor does nothing"


def test_a_forked_child_opens_its_own_connections(store: SQLStore) -> None:
    kernel = store.claim_kernel()
    dispatch_id = add(store, owner=kernel)
    store.change_counter()

    def child() -> None:
        assert store.dispatch(dispatch_id).owner == kernel
        assert store.orphans() == [], "the parent lives"
        mine = store.claim_kernel()
        own = add(store, owner=mine)
        assert store.commit(mine, Commit(nodes={own: [NodeRecord(1)]}), 0) == []
        assert store.request_cancel(dispatch_id, None) > 0
        store.close()

    before = store.change_counter()
    in_child(child)
    assert store.change_counter() != before
    assert len(store.orphans()) == 1, "the child's"
    assert len(store.cancel_requests(kernel, 0)) == 1


def test_a_child_does_not_keep_its_parents_lock(store: SQLStore) -> None:
    up_reading, up_writing = os.pipe()
    end_reading, end_writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(end_writing)
        owner = SQLStore("", store.home)
        owner.open()
        add(owner, owner=owner.claim_kernel())
        if os.fork() == 0:
            os.write(up_writing, b"u")
            os.read(end_reading, 1)  # outlives its parent until the test closes the pipe
        os._exit(0)
    os.waitpid(pid, 0)
    try:
        assert os.read(up_reading, 1) == b"u"
        assert len(store.orphans()) == 1
    finally:
        for descriptor in (up_reading, up_writing, end_reading, end_writing):
            os.close(descriptor)
