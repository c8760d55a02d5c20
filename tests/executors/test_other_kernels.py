"""Local tasks of other kernels on this host: dead ones, stopped ones, and ones that live."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from chelate.api import JobHandle, Reason, Rejected, TransientError
from chelate.executors import pool_folder
from chelate.executors.local import LocalExecutor
from chelate.executors.pool_folder import PoolFolder

sys.path.insert(0, str(Path(__file__).parent))
from pool_kit import alive, drive, eventually


def as_read(handle):
    return JobHandle.from_json(json.loads(json.dumps(handle.to_json())))


def hold(begun, end):
    Path(begun).touch()
    while not Path(end).exists():
        time.sleep(0.01)


def test_another_instance_ends_what_it_finds_and_says_absent(tmp_path):
    def slow(path):
        Path(path).write_text(str(os.getpid()))
        time.sleep(600)

    async def scenario(driver):
        handle = await driver.start(slow, str(tmp_path / "pid"))
        await eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        pid = int((tmp_path / "pid").read_text())
        other = LocalExecutor(workers=1)
        await other.open()
        copy = JobHandle.from_json(json.loads(json.dumps(handle.to_json())))
        report = await other.poll([copy])
        assert (report.covered, dict(report.seen)) == ({handle.key}, {})
        assert not alive(pid)
        assert await other.find([handle.key]) == {}
        await other.close()

    drive(scenario, LocalExecutor(workers=1))


KERNEL = """
import asyncio, json, sys
sys.path.insert(0, {kit!r})
from pool_kit import Driver
from chelate.executors.local import LocalExecutor

async def main():
    executor = LocalExecutor(workers=1)
    await executor.open()
    driver = Driver(executor)

    def work(folder):
        import os, subprocess, time
        subprocess.Popen(["setsid", "sh", "-c", "echo $$ > " + folder + "/child; sleep 600"])
        with open(folder + "/worker", "w") as file:
            file.write(str(os.getpid()))
        time.sleep(600)

    handle = await driver.start(work, {folder!r})
    print(json.dumps(handle.to_json()), flush=True)
    while True:
        await executor.poll([handle])

asyncio.run(main())
"""


def test_no_orphan_outlives_a_killed_kernel(tmp_path):
    code = KERNEL.format(kit=str(Path(__file__).parent), folder=str(tmp_path))
    kernel = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)

    def pids():
        files = [tmp_path / "worker", tmp_path / "child"]
        return [int(f.read_text()) for f in files if f.exists() and f.read_text().strip()]

    async def scenario(driver):
        handle = JobHandle.from_json(json.loads(kernel.stdout.readline()))
        await eventually(lambda: len(pids()) == 2)
        assert all(alive(pid) for pid in pids())
        kernel.kill()
        kernel.wait()
        await eventually(lambda: not any(alive(pid) for pid in pids()))
        await eventually(lambda: not Path(handle.data["pool"]).exists())
        report = await driver.executor.poll([handle])
        assert (report.covered, dict(report.seen)) == ({handle.key}, {})

    try:
        drive(scenario)
    finally:
        kernel.kill()
        kernel.communicate()


# -- a dead kernel's stopped worker --------------------------------------------------------------

UNREAD = """
import asyncio, json, os, signal, sys
sys.path.insert(0, {kit!r})
from pool_kit import Driver, eventually
from chelate.executors.local import LocalExecutor

async def main():
    executor = LocalExecutor(workers=1)
    await executor.open()
    driver = Driver(executor)

    def work(folder, number):
        import pathlib
        (pathlib.Path(folder) / number).touch()

    await driver.result(work, {folder!r}, "first")
    pool = executor._pool
    (link,) = pool._links
    os.kill(link.process.pid, signal.SIGSTOP)
    handle = await driver.start(work, {folder!r}, "second")
    await eventually(lambda: link.outstanding)
    pids = link.process.pid, pool._guardian.pid
    print(json.dumps([handle.to_json(), *pids]), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.fixture
def unread(tmp_path):
    """A killed kernel whose guardian was killed first: handle and process id of its worker, which
    is stopped with a task unread in its pipe."""
    code = UNREAD.format(kit=str(Path(__file__).parent), folder=str(tmp_path))
    kernel = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    handle, worker, guardian = json.loads(kernel.stdout.readline())
    for pid in (guardian, kernel.pid):
        os.kill(pid, signal.SIGKILL)
    kernel.communicate()
    yield JobHandle.from_json(handle), worker
    if alive(worker):
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("same_folder", [True, False])
def test_a_look_up_ends_what_a_dead_kernel_sent_and_nobody_began(
    tmp_path, unread, same_folder, monkeypatch
):
    handle, worker = unread
    if not same_folder:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))

    async def scenario(driver):
        assert alive(worker)
        assert await driver.executor.find([handle.key]) == {}
        assert not alive(worker)
        assert not Path(handle.data["pool"]).exists()

    drive(scenario)
    assert not (tmp_path / "second").exists()


def test_a_woken_worker_begins_nothing_without_its_kernel(tmp_path, unread):
    _, worker = unread

    async def scenario(driver):
        os.kill(worker, signal.SIGCONT)
        await eventually(lambda: not alive(worker))

    drive(scenario)
    assert not (tmp_path / "second").exists()
    assert (tmp_path / "first").exists()


# -- a kernel that lives, and was taken for dead ---------------------------------------------------


def test_what_a_living_kernel_has_taken_is_told_of_until_it_gives_it_up(tmp_path):
    end = str(tmp_path / "end")

    async def scenario(driver):
        first = await driver.start(hold, str(tmp_path / "first"), end)
        queued = await driver.start(hold, str(tmp_path / "queued"), end)
        await eventually((tmp_path / "first").exists)
        other = LocalExecutor(workers=1)
        await other.open()
        found = await other.find([queued.key, "unknown"])
        assert list(found) == [queued.key]
        (handle,) = found[queued.key]
        assert handle.to_json() == queued.to_json()
        report = await other.poll([as_read(handle)])
        assert report.covered == frozenset()
        assert "still lives" in report.errors[0]
        await driver.executor.cancel([queued], force=True)
        report = await other.poll([as_read(handle)])
        assert (report.covered, dict(report.seen)) == ({queued.key}, {})
        assert await other.find([queued.key]) == {}
        Path(end).touch()
        assert (await driver.outcomes([first]))[first.key].ok, "its other tasks are its own"
        assert not (tmp_path / "queued").exists()
        await other.close()

    drive(scenario, LocalExecutor(workers=1))


def test_a_living_kernel_may_not_take_what_another_looked_up(tmp_path):
    async def scenario(driver):
        await driver.result(hold, str(tmp_path / "begun"), str(tmp_path))
        late, fine = (driver.job(hold, str(tmp_path / name), str(tmp_path)) for name in "ab")
        other = LocalExecutor(workers=1)
        await other.open()
        assert await other.find([late.key]) == {}
        refused, accepted = await driver.run(late, fine)
        assert isinstance(refused, Rejected)
        assert refused.reason is Reason.LOST
        assert (await driver.outcomes([accepted.handle]))[fine.key].ok
        assert not (tmp_path / "a").exists()
        await other.close()
        assert await other.find([late.key]) == {}

    drive(scenario, LocalExecutor(workers=1))


def test_a_kernel_stopped_while_it_takes_tasks_is_no_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(pool_folder, "PATIENCE", 0.1)

    async def scenario(driver):
        await driver.result(hold, str(tmp_path / "begun"), str(tmp_path))
        accepted = driver.executor._pool.folder / "accepted"
        other = LocalExecutor(workers=1)
        with accepted.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            with pytest.raises(TransientError, match="let it go on or end it"):
                await other.find(["a"])
            with pytest.raises(TransientError, match="locked"):
                await driver.run(driver.job(hold, "", ""))
        assert await other.find(["a"]) == {}

    drive(scenario)


def test_the_list_of_taken_tasks_stays_short_and_tells_of_what_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(pool_folder, "SPARE", 10)
    end = str(tmp_path / "end")

    async def scenario(driver):
        first = await driver.start(hold, str(tmp_path / "first"), end)
        for _ in range(50):
            handle = await driver.start(hold, str(tmp_path / "begun"), str(tmp_path))
            await driver.until([handle])
            await driver.executor.release([handle])
        accepted = driver.executor._pool.folder / "accepted"
        assert len(accepted.read_text().splitlines()) < 20
        assert first.key in await LocalExecutor().find([first.key])
        Path(end).touch()
        await driver.until([first])

    drive(scenario)


def test_pools_of_other_hosts_and_containers_are_not_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = PoolFolder.create().path
    dead = own.with_name(own.name.replace(f"-{os.getpid()}-", "-4999999-"))
    foreign = own.with_name("chelate-pool-00000000-4999999-1-x")
    for path in (dead, foreign):
        path.mkdir()

    async def scenario(driver):
        assert await driver.executor.find(["a"]) == {}

    drive(scenario)
    assert own.exists()
    assert foreign.exists()
    assert not dead.exists()
