"""Results on their way: whole, genuine, in bounded memory, and taken up where they were cut."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import pickle
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.remote.kit import Host
from tests.remote.test_life import add, value

from chelate.api import BlobMissingError, Deferred, Reason, TransientError
from chelate.remote import Environment, LocalTransport


def fill(size):
    return bytes(size)


def test_a_cut_result_is_taken_up_where_it_broke(host: Host):
    size = 3_000_000

    async def main():
        job = host.maker.job(os.urandom, size)
        await host.start(job)
        await host.over(job)
        received = 0
        for cut in (1_000_000, 1_500_000):
            host.transport.cut = cut
            with pytest.raises(TransientError):
                await host.outcomes(job)
            sizes = [path.stat().st_size for path in host.spool.iterdir()]
            assert received < sizes[0] <= size + 100
            received = sizes[0]
        host.transport.cut = size - received + 50_000  # less than the whole would need
        (outcome,) = await host.outcomes(job)
        return outcome

    outcome = asyncio.run(main())
    data = outcome.payload.read_bytes()
    assert hashlib.blake2b(data, digest_size=32).hexdigest() == outcome.digest
    assert len(pickle.loads(data)) == size


def _grown(host: Host, size: int) -> float:
    """Growth of this process's memory in MiB while a result of so many bytes comes."""

    async def main():
        job = host.maker.job(fill, size)
        await host.start(job)
        await host.over(job, 300)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        (outcome,) = await host.outcomes(job)
        assert outcome.payload.stat().st_size > size
        outcome.payload.unlink()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    return asyncio.run(main())


def test_a_large_result_takes_little_memory(host: Host):
    assert _grown(host, 100 << 20) < 48


@pytest.mark.large
def test_a_gigabyte_takes_little_memory(host: Host):
    assert _grown(host, 1 << 30) < 64


def test_a_large_input_takes_little_memory(host: Host):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    job = host.maker.job(add, 1, 2)
    path = host.maker.blobs.folder / "big"
    with path.open("wb") as file:
        file.truncate(100 << 20)
    state = hashlib.blake2b(digest_size=32)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            state.update(piece)
    digest = state.hexdigest()
    path.rename(path.parent / digest)
    reader = _Files(host.maker.blobs)
    job.blobs = reader
    job.tasks[0].inputs = (*job.tasks[0].inputs, digest)
    asyncio.run(host.run(job))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 48


class _Files:
    """A reader whose large values are files only."""

    def __init__(self, blobs):
        self.blobs = blobs

    def path(self, digest):
        return self.blobs.path(digest)

    def size(self, digest):
        path = self.blobs.path(digest)
        return path.stat().st_size if path else self.blobs.size(digest)

    def read(self, digest):
        assert self.blobs.path(digest) is None, "a large value was read into memory"
        return self.blobs.read(digest)


def _record(host: Host, job) -> Path:
    return host.folder(job) / "run-0" / "record.0"


def forge_record(host: Host, job, other):
    """Another result, signed with a key that is not the job's."""
    path = _record(host, job)
    body = json.loads(path.read_text().partition("\n")[2])
    path.write_text("0" * 64 + "\n" + json.dumps({**body, "ok": True}))


def swap_record(host: Host, job, other):
    """The genuine record of another job."""
    _record(host, job).write_text(_record(host, other).read_text())


def swap_value(host: Host, job, other):
    """Other bytes under the name of the value."""
    digest = json.loads(_record(host, job).read_text().partition("\n")[2])["digest"]
    (host.root / "cas" / digest[:2] / digest).write_bytes(pickle.dumps("forged"))


@pytest.mark.parametrize("forge", [forge_record, swap_record, swap_value])
def test_what_the_supervisor_did_not_write_is_refused(make_host, forge):
    host = make_host(cold=True)

    async def main():
        job, other = host.maker.job(add, 1, 2), host.maker.job(add, 3, 4)
        await host.run(job, other)
        forge(host, job, other)
        return await host.outcomes(job)

    (outcome,) = asyncio.run(main())
    assert not outcome.ok
    assert outcome.reason is Reason.RESULT_CORRUPT


def test_a_value_that_went_away_is_missing(make_host):
    host = make_host(cold=True)

    async def main():
        job = host.maker.job(add, 1, 2)
        await host.run(job)
        digest = json.loads(_record(host, job).read_text().partition("\n")[2])["digest"]
        (host.root / "cas" / digest[:2] / digest).unlink()
        return await host.outcomes(job)

    (outcome,) = asyncio.run(main())
    assert outcome.reason is Reason.RESULT_MISSING


def test_logs_are_read_by_offset(host: Host):
    def chatter():
        for number in range(100_000):
            sys.stdout.write(f"line {number:06}\n")

    async def main():
        job = host.maker.job(chatter)
        (outcome,) = await host.run(job)
        piece = await host.jobs.logs(job.key, "stdout", 12 * 500, 24)
        tail = await host.jobs.logs(job.key, "stdout", -12, 100)
        return outcome, piece, tail

    outcome, piece, tail = asyncio.run(main())
    assert piece == b"line 000500\nline 000501\n"
    assert tail == b"line 099999\n"
    assert outcome.stdout.startswith(b"line 000000\n")
    assert outcome.stdout.endswith(b"line 099999\n")
    assert b"left out" in outcome.stdout
    assert len(outcome.stdout) < 1_200_000


def test_a_result_beyond_the_quota_is_told(make_host):
    host = make_host(environment=Environment(python=sys.executable, prerun="ulimit -f 100"))

    async def main():
        return await host.run(host.maker.job(os.urandom, 500_000))

    (outcome,) = asyncio.run(main())
    assert outcome.reason is Reason.QUOTA
    assert "could not be written" in outcome.error


@pytest.fixture
def small_disk(tmp_path):
    """A folder that takes 3 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3000k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_told(small_disk, tmp_path):
    host = Host(tmp_path, small_disk / "root")

    async def main():
        (outcome,) = await host.run(host.maker.job(os.urandom, 8_000_000))
        (answer,) = await host.start(host.maker.job(len, os.urandom(8_000_000)))
        (again,) = await host.run(host.maker.job(add, 1, 2))
        return outcome, answer, again

    outcome, answer, again = asyncio.run(main())
    assert outcome.reason is Reason.DISK_FULL
    assert "could not be written" in outcome.error
    assert answer.reason is Reason.DISK_FULL
    assert "make room" in answer.message
    assert value(again) == 3  # nothing of what did not fit is left


def test_a_disk_without_room_for_the_tools_is_told(small_disk, tmp_path):
    (small_disk / "other").write_bytes(bytes(2_950_000))
    host = Host(tmp_path, small_disk / "root")
    (answer,) = asyncio.run(host.start(host.maker.job(add, 1, 2)))
    assert answer.reason is Reason.DISK_FULL
    assert "No space left" in answer.message


class Cramped(LocalTransport):
    """A host where no file may be larger than 50 KiB."""

    async def run(self, argv, stdin=b"", *, timeout=None):
        argv = ["sh", "-c", 'ulimit -f 100; exec "$@"', "cramped", *argv]
        return await super().run(argv, stdin, timeout=timeout)


def test_a_quota_refuses_what_does_not_fit(host: Host):
    async def main():
        host.transport.inner = Cramped()
        return await host.start(host.maker.job(len, os.urandom(200_000)))

    (answer,) = asyncio.run(main())
    assert answer.reason is Reason.QUOTA
    assert "make room" in answer.message


def test_values_that_vanish_here_defer_the_job(host: Host):
    async def main():
        job = host.maker.job(len, os.urandom(1000))

        def gone(digest):
            raise BlobMissingError("gone meanwhile")

        sizes = {digest: len(data) for digest, data in host.maker.blobs.data.items()}
        host.maker.blobs.read = gone
        host.maker.blobs.size = sizes.__getitem__
        return await host.start(job)

    (answer,) = asyncio.run(main())
    assert isinstance(answer, Deferred)


def test_what_is_over_is_swept_and_nothing_else(make_host):
    host = make_host(cold=True, keep=3600.0, cleanup="never")

    async def main():
        done = host.maker.job(add, 1, 2)
        await host.run(done)
        fresh = host.maker.job(add, 3, 4)
        await host.run(fresh)
        waiting = host.maker.job(add, 5, 6)
        await host.jobs.prepare([waiting])
        await host.jobs.release([done.key, fresh.key])  # sweeps, too
        assert host.folder(done).exists()
        old = time.time() - 7200
        strange = host.root / "jobs" / "important"
        strange.mkdir()
        outside = host.root.parent / "outside"
        outside.mkdir()
        (outside / "kept").write_text("x")
        link = host.root / "jobs" / ("f" * 40)
        link.symlink_to(outside)
        for path in (host.folder(done), strange):
            os.utime(path, (old, old))
        for path in host.root.glob("cas/*/*"):
            os.utime(path, (old, old))
        await host.jobs.sweep()
        kept = len(list(host.root.glob("cas/*/*")))
        assert not host.folder(done).exists()
        assert host.folder(fresh).exists()
        assert host.folder(waiting).exists()
        assert strange.exists()
        assert (outside / "kept").exists()
        assert kept  # a job that waits may need them
        await host.jobs.stop([waiting.key])
        os.utime(host.folder(waiting), (old, old))
        await host.jobs.sweep()
        assert not host.folder(waiting).exists()
        await host.jobs.sweep()
        assert not list(host.root.glob("cas/*/*"))
        (again,) = await host.run(host.maker.job(add, 1, 2))  # all of it is sent again
        return again

    assert value(asyncio.run(main())) == 3
