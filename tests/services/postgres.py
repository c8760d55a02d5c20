"""A throw-away Postgres server for tests: its own folder, a Unix socket, no TCP port.

Use the fixture by importing it into a ``conftest.py``::

    from tests.services.postgres import postgres_server, postgres_url

or :func:`start` directly. Postgres refuses to run as root, so root starts it as another user.
Without an installed server the tests are skipped, and fail when ``CHELATE_REQUIRE_SERVICES=1``.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest

__all__ = ["PostgresServer", "find_binaries", "postgres_server", "postgres_url", "start"]


def find_binaries() -> Path | None:
    """The folder of ``initdb`` and ``pg_ctl`` of the newest installed server."""
    chosen = os.environ.get("POSTGRES_BIN")
    if chosen:
        return Path(chosen)
    found = shutil.which("pg_ctl")
    if found:
        return Path(found).resolve().parent

    def version(folder: Path) -> int:
        digits = re.match(r"\d+", folder.parent.name)
        return int(digits[0]) if digits else 0

    installed = Path("/usr/lib/postgresql").glob("*/bin")
    usable = [folder for folder in installed if (folder / "pg_ctl").exists()]
    return max(usable, key=version, default=None)


@dataclass
class PostgresServer:
    """A running server; ``folder`` holds its data and its socket."""

    binaries: Path
    folder: Path
    prefix: list[str] = field(default_factory=list)

    def run(self, program: str, *arguments: str) -> str:
        """Run one of the server's programs as the server's user; its output."""
        done = subprocess.run(
            [*self.prefix, str(self.binaries / program), *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed ({done.returncode}): {done.stdout[-2000:]}")
        return done.stdout

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = f"-k {self.folder} -c listen_addresses= -c fsync=off -c full_page_writes=off"
        flags = ["-w", "-t", "60", "-l", str(self.folder / "log"), "-o", options, "start"]
        # The server keeps the standard streams of pg_ctl open, so they must not be pipes.
        subprocess.run(
            [*self.prefix, str(self.binaries / "pg_ctl"), "-D", str(self.folder / "data"), *flags],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=120,
        )

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server: ``smart``, ``fast`` (ends sessions) or ``immediate`` (as a crash)."""
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", mode, "stop")

    def pid(self) -> int:
        """The process id of the server."""
        return int((self.folder / "data" / "postmaster.pid").read_text().split("\n")[0])

    def fresh(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{uuid4().hex[:12]}"
        self.psql("postgres", f"CREATE DATABASE {name}")
        return f"postgresql://tester@/{name}?host={self.folder}"

    def psql(self, database: str, command: str) -> str:
        """Run one SQL command as the superuser; unaligned rows."""
        where = ["-h", str(self.folder), "-U", "tester", "-d", database]
        return self.run("psql", "-X", "-q", "-tA", *where, "-c", command)


def _other_user() -> tuple[list[str], int, int] | None:
    """As root: how to run as another user, and that user's numbers; None when not root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        numbers = ["--reuid", str(user.pw_uid), "--regid", str(user.pw_gid), "--clear-groups"]
        return ["setpriv", *numbers, "--"], user.pw_uid, user.pw_gid
    raise RuntimeError("Root needs a user 'postgres' or 'nobody' to run the server as.")


@contextmanager
def start() -> Iterator[PostgresServer]:
    """A new server, which is gone with its data at the end.

    Raises:
        RuntimeError: no server is installed, or it does not start.
    """
    binaries = find_binaries()
    if binaries is None:
        raise RuntimeError("No Postgres server is installed.")
    # Not pytest's folder: other users cannot enter it, and a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    other = _other_user()
    server = PostgresServer(binaries, folder, [] if other is None else other[0])
    try:
        if other is not None:
            os.chown(folder, other[1], other[2])
        rights = ["--auth=trust", "-U", "tester", "--encoding=UTF8", "--locale=C", "--no-sync"]
        server.run("initdb", "-D", str(folder / "data"), *rights)
        server.start()
        pid = server.pid()
        try:
            yield server
        finally:
            try:
                server.stop()
            except RuntimeError:
                if (folder / "data" / "postmaster.pid").exists():
                    os.kill(pid, signal.SIGKILL)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for the whole session."""
    if find_binaries() is None:
        if os.environ.get("CHELATE_REQUIRE_SERVICES") == "1":
            pytest.fail("No Postgres server is installed, and CHELATE_REQUIRE_SERVICES=1.")
        pytest.skip("no Postgres server is installed (on Debian: apt install postgresql)")
    with start() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """The URL of an empty database, new for each test."""
    return postgres_server.fresh()
