"""Workers run the code that a job was stored with, whatever the files say."""

# ruff: noqa: PTH110, PTH118, PTH120, PTH123, PTH208, SIM115 (tasks do what users do)
from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from chelate.api import BlobDamagedError, Reason, Resources, digest_bytes
from chelate.executors.local import LocalExecutor

sys.path.insert(0, str(Path(__file__).parent))
from pool_kit import Blobs, drive, value


def archive(root: Path, files: dict[str, str]) -> bytes:
    """A snapshot of ``files`` as if they had been loaded from ``root``."""
    index = {
        "format": 1,
        "roots": [str(root)],
        "files": {
            name: [len(text), digest_bytes(text.encode()), str(root / name)]
            for name, text in files.items()
        },
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        opened.writestr("chelate-snapshot.json", json.dumps(index))
        for name, text in files.items():
            opened.writestr(name, text, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def root(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    return folder


def ask():
    import mine

    return mine.answer(), os.path.dirname(mine.__file__), os.getpid()


async def results(driver, jobs):
    await driver.run(*jobs)
    outcomes = await driver.outcomes([driver.handles[job.key] for job in jobs])
    return [value(outcomes[job.key]) for job in jobs]


def coded(driver, code, function=ask, *args, **options):
    digest = None if code is None else driver.blobs.put(code)
    return replace(driver.job(function, *args, **options), code=digest)


def returning(number):
    return {"mine.py": f"def answer(): return {number}\n"}


@pytest.mark.parametrize("large", [False, True])
def test_equal_files_are_used_in_place_and_others_are_not(root, tmp_path, large):
    rest = "#" + os.urandom(1 << 16).hex() if large else ""  # large values are files of the store
    files = {"mine.py": f"def answer(): return 1\n{rest}"}
    blobs = Blobs(tmp_path)

    async def scenario(driver):
        code = archive(root, files)
        write(root, files)
        ((answer, where, _),) = await results(driver, [coded(driver, code)])
        assert (answer, where) == (1, str(root))
        return code

    code = drive(scenario, LocalExecutor(workers=1), blobs)

    async def later(driver):
        ((answer, where, _),) = await results(driver, [coded(driver, code)])
        assert (answer, where != str(root)) == (1, True)

    write(root, returning(2))
    drive(later, LocalExecutor(workers=1), blobs)
    shutil.rmtree(root)
    drive(later, LocalExecutor(workers=1), blobs)


def test_a_living_worker_never_runs_other_code(root):
    async def scenario(driver):
        pids = set()
        for number in (1, 2, 1, 3):
            code = archive(root, returning(number))
            if number != 3:
                write(root, returning(number))
            ((answer, _, pid),) = await results(driver, [coded(driver, code)])
            assert answer == number
            pids.add(pid)
        assert len(pids) == 4

    drive(scenario, LocalExecutor(workers=1))


def test_same_code_shares_its_workers(root):
    async def scenario(driver):
        code = archive(root, returning(1))
        found = await results(driver, [coded(driver, code) for _ in range(200)])
        assert {answer for answer, _, _ in found} == {1}
        assert driver.executor._pool._number <= 2
        assert len({where for _, where, _ in found}) == 1

    drive(scenario)


def test_many_codes_on_few_slots_are_all_served(root):
    def slow():
        import mine

        time.sleep(0.01)
        return mine.answer()

    async def scenario(driver):
        jobs, expected = [], []
        for number in range(4):
            code = archive(root, returning(number))
            jobs += [coded(driver, code, slow) for _ in range(40)]
            expected += [number] * 40
        jobs += [coded(driver, None, os.getpid) for _ in range(10)]
        assert (await results(driver, jobs))[:160] == expected

    drive(scenario)


def test_endless_work_of_one_code_lets_another_in_but_is_not_interrupted(root):
    def nap(seconds):
        time.sleep(seconds)
        return os.getpid()

    async def scenario(driver):
        ours, other = archive(root, returning(1)), archive(root, returning(2))
        jobs = [coded(driver, ours, nap, 0.05) for _ in range(200)]
        await driver.run(*jobs)
        late = coded(driver, other)
        begin = time.monotonic()
        ((answer, _, _),) = await results(driver, [late])
        assert answer == 2
        assert time.monotonic() - begin < 8
        await driver.executor.cancel([driver.handles[job.key] for job in jobs], force=False)
        await driver.until([driver.handles[job.key] for job in jobs])

    drive(scenario, LocalExecutor(workers=1))


def test_busy_workers_are_left_alone(root, tmp_path):
    def wait(gate):
        while not os.path.exists(gate):
            time.sleep(0.01)
        return os.getpid()

    async def scenario(driver):
        gate = str(tmp_path / "gate")
        ours, other = archive(root, returning(1)), archive(root, returning(2))
        busy = [coded(driver, ours, wait, gate) for _ in range(2)]
        late = coded(driver, other)
        await driver.run(*busy, late)
        await asyncio.sleep(1)
        (tmp_path / "gate").touch()
        outcomes = await driver.outcomes([driver.handles[job.key] for job in (*busy, late)])
        assert len({value(outcomes[job.key]) for job in busy}) == 2
        assert value(outcomes[late.key])[0] == 2

    drive(scenario)


def test_wide_tasks_get_their_code_too(root):
    async def scenario(driver):
        wide = Resources(cpus=2)
        for number in (1, 2, 1):
            code = archive(root, returning(number))
            narrow = coded(driver, archive(root, returning(number + 10)))
            job = coded(driver, code, resources=wide)
            first, second = await results(driver, [narrow, job])
            assert (first[0], second[0]) == (number + 10, number)

    drive(scenario)


def test_data_files_come_from_where_they_are(root):
    files = {
        "mine.py": "def answer(): return open(__file__[:-7] + 'near.txt').read()\n",
        "pack/__init__.py": "",
        "pack/code.py": "import os\nfolder = os.path.dirname(__file__)\n",
    }
    write(root, {**files, "near.txt": "near", "pack/data.txt": "1", "pack/inner/more.txt": "2"})
    write(root, {"pack/new.py": "", "pack/scripts/new.py": ""})
    code = archive(root, files)
    write(root, {"pack/code.py": "edited = True\n"})

    def read():
        import mine
        import pack.code

        folder = pack.code.folder
        names = [name for name in os.listdir(folder) if name != "__pycache__"]
        data = [open(os.path.join(folder, name)).read() for name in ("data.txt", "inner/more.txt")]
        return mine.answer(), data, sorted(names)

    async def scenario(driver):
        ((near, data, names),) = await results(driver, [coded(driver, code, read)])
        assert (near, data) == ("near", ["1", "2"])
        assert names == ["__init__.py", "code.py", "data.txt", "inner"]

    drive(scenario)
    assert (root / "pack/inner/more.txt").read_text() == "2"  # the pool's folder is gone, not this


class Lossy(Blobs):
    """A store whose files are damaged behind its back."""

    def path(self, digest):
        path = self.folder / f"{digest}.damaged"
        if digest == self.lost:
            path.write_bytes(self.data[digest][:-1])
            return path
        return None


class Damaged(Blobs):
    def read(self, digest):
        if digest == self.lost:
            raise BlobDamagedError(f"The value {digest:.12} is damaged.")
        return super().read(digest)


@pytest.mark.parametrize("kind", [Blobs, Lossy, Damaged])
@pytest.mark.parametrize("cpus", [1, 2])
def test_lost_or_damaged_code_fails_the_task_with_a_sentence(root, tmp_path, kind, cpus):
    blobs = kind(tmp_path)

    async def scenario(driver):
        code = archive(root, returning(1))
        blobs.lost = digest_bytes(code)
        broken = [coded(driver, code, resources=Resources(cpus=cpus)) for _ in range(3)]
        if kind is Blobs:
            del blobs.data[digest_bytes(code)]
        whole = [coded(driver, archive(root, returning(2))) for _ in range(3)]
        jobs = [job for pair in zip(broken, whole, strict=True) for job in pair]
        await driver.run(*jobs)
        outcomes = await driver.outcomes([driver.handles[job.key] for job in jobs])
        for job in broken:
            outcome = outcomes[job.key]
            assert (outcome.ok, outcome.reason) == (False, Reason.ENV_MISSING)
            assert "stored code" in outcome.error
            assert "ispatch the workflow again" in outcome.error
        assert [value(outcomes[job.key])[0] for job in whole] == [2, 2, 2]

    drive(scenario, blobs=blobs)
