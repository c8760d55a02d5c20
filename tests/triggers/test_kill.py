"""Killed again and again with twenty triggers running: no fire is lost, and none is doubled."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from tests.triggers import life

import chelate

ROOT = Path(__file__).resolve().parents[2]


class Life:
    """One process."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        path = os.pathsep.join([str(ROOT / "core"), str(ROOT)])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.triggers.life", str(folder), *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> None:
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            raise AssertionError(self.process.communicate(timeout=60)[1])

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=60)


class World:
    """Makes events while processes come and go, and counts them."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder = folder
        self.chance = chance
        self.made: Counter[str] = Counter()
        for number in range(life.DIRECTORIES):
            (folder / f"dir{number}").mkdir()
        for number in range(life.FILES):
            (folder / f"file{number}").touch()
        with closing(sqlite3.connect(folder / "rows.db")) as link:
            for number in range(life.TABLES):
                link.execute(f"CREATE TABLE t{number} (id INTEGER PRIMARY KEY)")
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.go_on)

    def go_on(self) -> None:
        while not self.over.wait(self.chance.uniform(0.05, 0.4)):
            some = self.chance.choice([1, 1, 2, 5])
            number = self.chance.randrange(life.DIRECTORIES)
            for _ in range(some):
                (self.folder / f"dir{number}" / str(self.made[f"dir{number}"])).write_text("x")
                self.made[f"dir{number}"] += 1
            number = self.chance.randrange(life.TABLES)
            with closing(sqlite3.connect(self.folder / "rows.db", timeout=60)) as link, link:
                link.executemany(f"INSERT INTO t{number} VALUES (?)", [(None,)] * some)
            self.made[f"t{number}"] += some
            number = self.chance.randrange(life.FILES)
            with (self.folder / f"file{number}").open("ab") as file:
                file.write(b".")
            self.made[f"file{number}"] += 1


def campaign(folder: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    world = World(folder, random.Random(seed + 1))
    first = Life(folder)
    first.ready()
    world.thread.start()
    running = first
    for number in range(kills):
        threading.Event().wait(chance.uniform(0.05, 1.5))
        running.kill()
        if number < kills - 1:
            running = Life(folder)
            if chance.random() < 0.8:  # else it is killed while it starts
                running.ready()
    world.over.set()
    world.thread.join()
    last = Life(folder, "--last")
    _, errors = last.process.communicate(timeout=280)
    assert last.process.returncode == 0, errors
    check(folder, world.made)


def check(folder: Path, made: Counter[str]) -> None:
    chelate.configure(home=folder / "home", progress="off")
    try:
        rows = chelate.list_triggers()
        runs = Counter((folder / "ledger").read_text().split())
        stored = {run.dispatch_id for run in chelate.list_dispatches("COMPLETED", limit=100_000)}
    finally:
        chelate.configure(home=None, progress=None)
    assert len(rows) == 20
    fired: list[str] = []
    for row in rows:
        fired += row.dispatch_ids
        assert len(row.dispatch_ids) == row.fires
        if row.kind == "TimeTrigger":
            assert row.fires > 0
            moments = [fire["time"].timestamp() for fire in reversed(row.history)]
            created = row.created.timestamp()
            slot = 0
            for moment in moments:  # of the record, which may come when the next slot has begun
                slots = int((moment - created) / row.options["time_gap"])
                slot = max(slot + 1, slots - 1)
                assert slot <= slots, f"a moment of the grid fired twice: {moments}"
            continue
        if row.kind == "DirTrigger":
            events, size = made[Path(row.options["dir_path"]).name], row.options["batch_size"]
        elif row.kind == "SQLiteTrigger":
            events, size = made[row.options["table_name"]], row.options["trigger_after_n"]
        else:
            events, size = made[Path(row.options["path"]).name], 1
        assert row.fires == events // size, (row.kind, row.options, events)
    assert set(fired) == stored
    assert len(fired) == len(set(fired))
    # A run that died with its process is tried again by the executor's rules, as another attempt.
    assert {run.partition(":")[0] for run in runs} == set(fired)
    assert set(runs.values()) == {1}, "one attempt ran twice"


@pytest.mark.timeout(600)
def test_killed_eight_times(tmp_path: Path) -> None:
    campaign(tmp_path, 8, seed=6)


@pytest.mark.large
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_thirty_times(tmp_path: Path, seed: int) -> None:
    campaign(tmp_path, 30, seed)
