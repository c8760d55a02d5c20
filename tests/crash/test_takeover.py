"""Two kernels over one store, as processes: one is stopped (SIGSTOP), and woken after a takeover.

Nobody takes over from a process that is merely slow: its lock is held by the operating system or
by its session, whatever the clock says. Once the lock is lost it may write no more.
"""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.services.postgres import PostgresServer, postgres_server

from chelate.checking import check_store
from chelate.model import NodeStatus
from chelate.store import SQLStore

__all__ = ["postgres_server"]

SCRIPT = Path(__file__).with_name("owner.py")
RESULT = "COMPLETED (6, 2)"


class Scene:
    """A store, a ledger, and the processes on it."""

    def __init__(self, folder: Path, server: PostgresServer | None) -> None:
        self.home, self.ledger = folder / "home", folder / "ledger"
        self.server = server
        self.url = "" if server is None else server.fresh()
        self.store = SQLStore(self.url, self.home)
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *known: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(SCRIPT), str(self.home), self.url, str(self.ledger), *known]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.processes.append(process)
        return process

    def lines(self) -> list[str]:
        return self.ledger.read_text().split() if self.ledger.exists() else []

    def until(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not happen"
            time.sleep(0.02)

    def stopped_in_the_middle(self, lines: int = 3) -> tuple[subprocess.Popen[str], str]:
        owner = self.start()
        assert owner.stdout is not None
        dispatch_id = owner.stdout.readline().strip()
        self.until(lambda: len(self.lines()) >= lines, f"the start of {lines} tasks")
        owner.send_signal(signal.SIGSTOP)
        while self.is_locked():  # stopped in the middle of a write, which nobody can pass
            owner.send_signal(signal.SIGCONT)
            owner.send_signal(signal.SIGSTOP)
        self.store.open()
        return owner, dispatch_id

    def is_locked(self) -> bool:
        if self.server is not None:
            return False
        with closing(sqlite3.connect(self.home / "chelate.db", timeout=0.2)) as link:
            try:
                link.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            link.rollback()
        return False

    def take_lock_away(self, dispatch_id: str) -> None:
        """What only an accident does: a lost session, or a lock file that somebody deleted."""
        owner = self.store.dispatch(dispatch_id).owner
        assert owner is not None
        if self.server is None:
            (self.home / "kernels" / f"{owner}.lock").unlink()
            return
        self.server.psql(
            "postgres",
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND "
            f"((classid::bigint << 32) | objid::bigint) = {signed(owner)}",
        )

    def ended(self) -> set[str]:
        """Keys of the attempts whose ends are recorded."""
        with self.store.snapshot() as snapshot:
            done = [row for _, row in snapshot.nodes() if row.status is NodeStatus.COMPLETED]
        return {row.key for row in done if row.key}

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()
        self.store.close()


def signed(kernel_id: str) -> int:
    number = int(kernel_id[:16], 16)
    return number - (1 << 64) if number >= 1 << 63 else number


@pytest.fixture(params=["sqlite", "postgres"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    server = None if request.param == "sqlite" else request.getfixturevalue("postgres_server")
    made = Scene(tmp_path, server)
    yield made
    made.close()


def answer(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output.splitlines()[-1]


def test_a_stopped_owner_keeps_its_dispatches_until_it_dies(scene: Scene) -> None:
    owner, dispatch_id = scene.stopped_in_the_middle()
    other = scene.start(dispatch_id)
    assert other.stdout is not None
    other.stdout.readline()
    before = scene.store.dispatch(dispatch_id)
    count = len(scene.lines())
    time.sleep(2.5)  # two looks for orphans
    after = scene.store.dispatch(dispatch_id)
    assert (after.owner, after.epoch) == (before.owner, before.epoch)
    assert len(scene.lines()) <= count + 1, "at most what was sent before the stop"
    owner.kill()
    assert answer(other) == RESULT
    assert scene.store.dispatch(dispatch_id).epoch == before.epoch + 1
    sound(scene)


def test_a_woken_owner_goes_on(scene: Scene) -> None:
    owner, dispatch_id = scene.stopped_in_the_middle()
    other = scene.start(dispatch_id)
    time.sleep(1.5)
    owner.send_signal(signal.SIGCONT)
    assert answer(owner) == RESULT
    assert answer(other) == RESULT
    assert len(scene.lines()) == 7
    sound(scene)


def test_an_owner_woken_after_a_takeover_is_refused(scene: Scene) -> None:
    owner, dispatch_id = scene.stopped_in_the_middle()
    first = scene.store.dispatch(dispatch_id)
    done = scene.ended()
    scene.take_lock_away(dispatch_id)
    other = scene.start(dispatch_id)
    scene.until(lambda: scene.store.dispatch(dispatch_id).epoch > first.epoch, "the takeover")
    owner.send_signal(signal.SIGCONT)
    assert owner.stderr is not None
    assert "taken for dead" in owner.stderr.readline()
    assert answer(other) == RESULT
    assert answer(owner) == RESULT, "it waits for the dispatch that is another's now"
    assert scene.store.dispatch(dispatch_id).epoch == first.epoch + 1
    again = {key.rsplit(":", 2)[0] for key in scene.ended() - done}
    assert not again & {key.rsplit(":", 2)[0] for key in done}, "what had ended stays"
    sound(scene)


def test_an_end_that_a_woken_owner_cannot_store_keeps_nobody_waiting(scene: Scene) -> None:
    hold = scene.ledger.with_name("ledger.hold")
    hold.touch()
    owner, dispatch_id = scene.stopped_in_the_middle(lines=7)
    first = scene.store.dispatch(dispatch_id)
    hold.unlink()
    time.sleep(0.5)  # the last task ends in its worker
    scene.take_lock_away(dispatch_id)
    other = scene.start(dispatch_id)
    scene.until(lambda: scene.store.dispatch(dispatch_id).epoch > first.epoch, "the takeover")
    owner.send_signal(signal.SIGCONT)
    assert answer(other) == RESULT
    assert answer(owner) == RESULT
    attempts = [one for row in scene.store.nodes(dispatch_id) for one in row.attempts]
    assert not [one for one in attempts if one.get("counted", True)], "it was nobody's failure"
    sound(scene)


def sound(scene: Scene) -> None:
    """No attempt ran twice, nothing ran after its end, and the store says the same."""
    runs = Counter(scene.lines())
    assert max(runs.values()) == 1
    last = {key.rsplit(":", 2)[0]: key for key in scene.lines()}
    assert set(last.values()) <= scene.ended(), "nothing ran after the attempt that counts"
    for process in scene.processes:
        process.wait(60)
    assert check_store(scene.store).findings == []
    keys = {f"CHELATE_TASK_KEY={key}".encode() for key in runs}
    assert not [place for place in Path("/proc").glob("[0-9]*") if carries(place, keys)]


def carries(place: Path, keys: set[bytes]) -> bool:
    try:
        return bool(keys.intersection((place / "environ").read_bytes().split(b"\0")))
    except OSError:
        return False
