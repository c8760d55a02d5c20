"""Local tasks of other kernels on this host: dead ones, stopped ones, and ones that live."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from chelate.api import JobHandle, TransientError, Unknown
from chelate.executors import pool_folder
from chelate.executors.local import LocalExecutor
from chelate.executors.pool_folder import PoolFolder
from chelate.executors.process_tree import lives, start_ticks

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
        assert await driver.executor.find([handle.key]) == {}
        assert not alive(worker)
        assert not Path(handle.data["pool"]).exists()

    drive(scenario)
    assert not (tmp_path / "second").exists()


def test_a_woken_worker_begins_nothing_without_its_kernel(tmp_path, unread):
    _, worker = unread

    async def scenario(driver):
        with suppress(ProcessLookupError):  # another test's look-up may have ended it
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
        await asyncio.sleep(0)  # what it gives up is written once for many
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
        assert isinstance(refused, Unknown)
        assert (await driver.outcomes([accepted.handle]))[fine.key].ok
        assert not (tmp_path / "a").exists()
        await other.close()
        assert await other.find([late.key]) == {}

    drive(scenario, LocalExecutor(workers=1))


def test_what_was_looked_up_before_the_first_task_is_refused_as_well(tmp_path):
    async def scenario(driver):
        job = driver.job(hold, str(tmp_path / "begun"), str(tmp_path))
        assert await LocalExecutor().find([job.key]) == {}
        (refused,) = await driver.run(job)
        assert isinstance(refused, Unknown)

    drive(scenario)
    assert not (tmp_path / "begun").exists()


def test_a_task_in_a_workers_pipe_is_given_up_when_it_has_come_back(tmp_path):
    async def scenario(driver):
        await driver.result(hold, str(tmp_path / "first"), str(tmp_path))
        (link,) = driver.executor._pool._links
        os.kill(link.process.pid, signal.SIGSTOP)
        sent = await driver.start(hold, str(tmp_path / "sent"), str(tmp_path / "end"))
        await eventually(lambda: link.outstanding)
        await driver.executor.cancel([sent], force=False)
        other = LocalExecutor()
        assert list(await other.find([sent.key])) == [sent.key], "the worker may still begin it"
        os.kill(link.process.pid, signal.SIGCONT)
        await driver.until([sent])
        assert await other.find([sent.key]) == {}

    drive(scenario, LocalExecutor(workers=1))


def test_a_task_that_has_ended_is_over_for_others_when_it_is_given_up(tmp_path):
    async def scenario(driver):
        handle = await driver.start(hold, str(tmp_path / "first"), str(tmp_path))
        await driver.until([handle])
        other = LocalExecutor()
        assert list(await other.find([handle.key])) == [handle.key]
        await driver.executor.cancel([handle], force=False)
        assert await other.find([handle.key]) == {}
        assert (await other.poll([as_read(handle)])).covered == {handle.key}

    drive(scenario)


def test_waiting_for_another_kernel_costs_little_and_keeps_its_lists_short(tmp_path):
    async def scenario(driver):
        handle = await driver.start(hold, str(tmp_path / "first"), str(tmp_path / "end"))
        queued = await driver.start(hold, str(tmp_path / "second"), str(tmp_path / "end"))
        other = LocalExecutor(workers=1)
        await other.open()
        begin = time.monotonic()
        report = await other.poll([as_read(queued)])
        assert time.monotonic() - begin > 0.5
        assert f"Process {os.getpid()}," in report.errors[0]
        for _ in range(20):
            await other.find([handle.key, "unknown"])
        forbidden = driver.executor._pool.folder / "forbidden"
        assert sorted(forbidden.read_text().split()) == sorted([handle.key, "unknown"])
        await other.close()
        (tmp_path / "end").touch()
        await driver.until([handle, queued])

    drive(scenario, LocalExecutor(workers=1))


def test_pools_whose_folder_was_removed_go_on(tmp_path):
    end = str(tmp_path / "end")

    async def scenario(driver):
        first = await driver.start(hold, str(tmp_path / "first"), end)
        await eventually((tmp_path / "first").exists)
        queued = await driver.start(hold, str(tmp_path / "queued"), end)
        other = LocalExecutor(workers=1)
        await other.open()
        shutil.rmtree(driver.executor._pool.folder)
        report = await other.poll([as_read(queued)])
        assert report.covered == frozenset()
        assert "still lives" in report.errors[0]
        Path(end).touch()
        outcomes = await driver.outcomes([first, queued])
        assert [outcomes[h.key].ok for h in (first, queued)] == [True, True], "nobody hurt it"
        late = await driver.start(hold, str(tmp_path / "late"), end)
        assert list(await other.find([late.key])) == [late.key]
        await driver.until([late])
        await other.close()

    drive(scenario, LocalExecutor(workers=1))


def test_an_instance_that_its_kernel_has_left_begins_nothing_more(tmp_path):
    async def scenario(driver):
        first = await driver.start(hold, str(tmp_path / "first"), str(tmp_path / "end"))
        await eventually((tmp_path / "first").exists)
        queued = await driver.start(hold, str(tmp_path / "queued"), str(tmp_path))
        (link,) = driver.executor._pool._links
        driver.executor.abandoned = True
        assert await LocalExecutor().find([first.key, queued.key]) == {}
        assert not alive(link.process.pid)
        with pytest.raises(TransientError, match="has left this instance"):
            await driver.run(driver.job(hold, "", ""))

    drive(scenario, LocalExecutor(workers=1))
    assert not (tmp_path / "queued").exists()


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


def test_what_a_handle_calls_its_pool_is_not_deleted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "precious").touch()

    async def scenario(driver):
        handle = await driver.start(hold, str(tmp_path / "begun"), str(tmp_path))
        for pool in ("", ".", str(tmp_path)):
            data = {**handle.data, "pool": pool}
            report = await LocalExecutor().poll([JobHandle("a", "local", "", data, ("a",))])
            assert report.covered == {"a"}
        await driver.until([handle])

    drive(scenario)
    assert (tmp_path / "precious").exists()


def test_a_line_that_a_full_disk_has_cut_hides_no_other(tmp_path):
    shared = PoolFolder.create()
    try:
        shared.accept(["a", "b"], {})
        with (shared.path / "accepted").open("ab") as stream:
            stream.write(b"\ntorn:li")
        shared.accept(["c"], {})
        assert PoolFolder(shared.path).forbid(["b", "c", "d"]) == {"b", "c"}
        assert shared.accept(["d", "e"], {}) == {"d"}
    finally:
        shutil.rmtree(shared.path)


def test_a_full_disk_takes_nothing(tmp_path):
    shared = PoolFolder.create()
    shutil.rmtree(shared.path)
    shared.path.touch()
    try:
        with pytest.raises(TransientError, match="TMPDIR"):
            shared.accept(["a"], {})
    finally:
        shared.path.unlink()


def test_without_proc_a_process_is_known_by_its_number():
    process = subprocess.Popen([sys.executable, "-c", ""])
    assert lives(process.pid, "None")
    process.wait()
    assert not lives(process.pid, "None")
    assert lives(os.getpid(), str(start_ticks(os.getpid())))
    assert not lives(os.getpid(), "1")


CUT = """
import resource, shutil, signal
from chelate.api import TransientError
from chelate.executors.pool_folder import PoolFolder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
shared = PoolFolder.create()
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
try:
    shared.accept([f"dispatch:{number}:1:abcdefgh" for number in range(1000)], {})
except TransientError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
shared.accept(["late"], {})
print(PoolFolder(shared.path).forbid(["late", "dispatch:999:1:abcdefgh"]))
shutil.rmtree(shared.path)
"""


def test_a_disk_that_takes_a_part_takes_no_task():
    done = subprocess.run([sys.executable, "-c", CUT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    refused, found = done.stdout.splitlines()
    assert "TMPDIR" in refused
    assert found == "{'late'}"
