"""Executors over hosts: placed, found again, refused, and driven by a real kernel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from tests.remote.box import Box, Named
from tests.remote.conftest import job_processes
from tests.remote.kit import Blobs, Maker
from tests.remote.test_life import add, ledger, value, wait_for

import chelate as ct
from chelate import embedding
from chelate.api import (
    Accepted,
    AuthenticationError,
    Deferred,
    JobState,
    Reason,
    Rejected,
    Resources,
    TransientError,
    Unknown,
)


@pytest.fixture
def box(tmp_path):
    made = []

    def make(**options) -> Box:
        made.append(Box(root=str(tmp_path / "root"), **options))
        return made[-1]

    yield make
    for executor in made:
        for name in executor.names:
            for pid in job_processes(tmp_path / "root" / name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def maker(tmp_path):
    return Maker(Blobs(tmp_path))


async def run(executor, *jobs):
    return {outcome.key: outcome async for outcome in executor.run(jobs)}


async def ended(executor, handles, seconds=60.0):
    """Outcomes of jobs, each waited for."""
    deadline = time.monotonic() + seconds
    while True:
        report = await executor.poll(handles)
        assert report.covered == {handle.key for handle in handles}, report
        final = (JobState.ENDED, JobState.KILLED)
        if all(report.seen[handle.key].state in final for handle in handles):
            return [outcome async for outcome in executor.collect(handles)]
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


def test_jobs_are_spread_over_hosts_and_wait_for_slots(box, maker, tmp_path):
    async def main():
        executor = box(names=["a", "b"], slots=1, gpus=1)
        await executor.open()
        assert executor.limits.max_in_flight == 2

        def devices():
            time.sleep(0.5)
            return os.environ["CUDA_VISIBLE_DEVICES"]

        jobs = [maker.job(devices, resources=Resources(gpus=1)) for _ in range(3)]
        answers = await run(executor, *jobs)
        accepted = [item.handle for item in answers.values() if isinstance(item, Accepted)]
        waiting = [item for item in answers.values() if isinstance(item, Deferred)]
        assert sorted(handle.data["host"] for handle in accepted) == ["a", "b"]
        assert len(waiting) == 1
        outcomes = await ended(executor, accepted)
        await executor.release(accepted)
        again = await run(executor, *(job for job in jobs if job.key == waiting[0].key))
        assert isinstance(again[waiting[0].key], Accepted)
        await executor.close()
        return outcomes

    outcomes = asyncio.run(main())
    assert [value(outcome) for outcome in outcomes] == ["0", "0"]


def test_what_no_host_can_do_is_refused(box, maker):
    async def main():
        executor = box(slots=2)
        wants = [
            Resources(cpus=3), Resources(gpus=1), Resources(nodes=2), Resources(disk="1G"),
            Resources(mem="100000G"),
        ]  # fmt: skip
        jobs = [maker.job(add, 1, 2, resources=want) for want in wants]
        return list((await run(executor, *jobs)).values())

    answers = asyncio.run(main())
    assert all(isinstance(answer, Rejected) for answer in answers)
    assert {answer.reason for answer in answers} == {Reason.UNSCHEDULABLE}


def held_back(path):
    while not Path(path).exists():
        time.sleep(0.02)
    return "done"


def test_a_fresh_process_finds_follows_and_forbids(box, maker, tmp_path):
    async def main():
        executor = box(names=["a", "b"])
        running = maker.job(held_back, str(tmp_path / "go"))
        never = maker.job(ledger, str(tmp_path / "never"))
        started = (await run(executor, running))[running.key]
        fresh = box(names=["a", "b"])
        found = await fresh.find([running.key, never.key])
        listed = await fresh.list_jobs("s")
        held = await fresh.forbid([running.key, never.key])
        (late,) = (await run(executor, never)).values()
        handle = found[running.key][0]
        (tmp_path / "go").touch()
        outcomes = await ended(fresh, [handle])
        await fresh.release([handle])
        return started.handle, found, listed, held, outcomes, late, await fresh.poll([handle])

    handle, found, listed, held, outcomes, late, after = asyncio.run(main())
    assert list(found) == [handle.key]
    assert found[handle.key][0].tasks == handle.tasks
    assert [item.key for item in listed] == [handle.key] == list(held)
    assert value(outcomes[0]) == "done"
    assert not (tmp_path / "never").exists()
    assert late is not None
    assert after.covered == {handle.key}
    assert not after.seen


class Down(Named):
    error: Exception = TransientError("The host is down.")

    async def run(self, argv, stdin=b"", *, timeout=None):
        raise self.error


def test_a_host_that_is_down_hides_nothing_of_the_others(box, maker):
    async def main():
        executor = box(names=["a", "b"], slots=4)
        jobs = [maker.job(add, 1, n) for n in range(2)]
        handles = [item.handle for item in (await run(executor, *jobs)).values()]
        executor._all()[0].host.transport = Down("a")
        here = [handle for handle in handles if handle.data["host"] == "b"]
        outcomes = await ended(executor, here)
        report = await executor.poll(handles)
        with pytest.raises(TransientError):
            await executor.find(["d:9:1:x"])
        with pytest.raises(TransientError):
            await executor.cancel(handles, force=False)
        more = (await run(executor, maker.job(add, 1, 2))).values()
        return here, outcomes, report, list(more)

    here, outcomes, report, more = asyncio.run(main())
    assert all(outcome.ok for outcome in outcomes)
    assert report.covered == {handle.key for handle in here}
    assert report.errors == ("The host is down.",)
    assert isinstance(more[0], Accepted)


@pytest.mark.parametrize("before", [False, True])
def test_a_request_that_comes_late_to_another_host_starts_nothing_twice(
    box, maker, tmp_path, before
):
    """A claim holds on its own host, so the hosts that were asked in vain are closed first."""

    async def main():
        executor = box(names=["a", "b"], slots=1)
        transport = executor._all()[0].host.transport
        through = transport.run
        late = []

        async def lost(argv, stdin=b"", **options):
            if argv[-1] != "put":
                return await through(argv, stdin, **options)
            pieces = [stdin] if isinstance(stdin, bytes) else [piece async for piece in stdin]
            late.append((argv, b"".join(pieces)))
            raise TransientError("The answer was lost.")

        job = maker.job(ledger, str(tmp_path / "ledger"))
        transport.run = lost
        assert isinstance((await run(executor, job))[job.key], Unknown)
        transport.run = through
        assert await executor.find([job.key]) == {}
        blocker = maker.job(held_back, str(tmp_path / "go"))
        (busy,) = (await run(executor, blocker)).values()
        assert busy.handle.data["host"] == "a"
        if before:
            await transport.run(*late[0], timeout=60.0)
        answer = (await run(executor, job))[job.key]
        if before:
            assert isinstance(answer, Unknown)
        else:
            assert answer.handle.data["host"] == "b"
            await transport.run(*late[0], timeout=60.0)
        (handle,) = (await box(names=["a", "b"]).find([job.key]))[job.key]
        assert handle.data["host"] == ("a" if before else "b")
        (outcome,) = await ended(executor, [handle])
        (tmp_path / "go").touch()
        await ended(executor, [busy.handle])
        return outcome

    outcome = asyncio.run(main())
    assert value(outcome) == "done"
    assert len((tmp_path / "ledger").read_text().splitlines()) == 1


def test_a_task_goes_to_no_other_host_while_the_first_may_have_it(box, maker):
    async def main():
        executor = box(names=["a", "b"], slots=1)
        job = maker.job(add, 1, 2)
        assert await executor.find([job.key]) == {}
        hosts = executor._all()
        hosts[0].used["other"] = {"cpus": 1}

        async def down(*args, **options):
            raise TransientError("Host a does not answer.")

        hosts[0].host.forbid = down
        answer = (await run(executor, job))[job.key]
        assert isinstance(answer, Deferred)
        assert "Host a does not answer." in answer.message
        assert not hosts[1].used
        del hosts[0].host.forbid
        answer = (await run(executor, job))[job.key]
        assert answer.handle.data["host"] == "b"
        (outcome,) = await ended(executor, [answer.handle])
        return outcome

    assert value(asyncio.run(main())) == 3


def test_bad_credentials_refuse_jobs_with_their_reason(box, maker):
    async def main():
        executor = box()
        executor._all()[0].host.transport = Down("here")
        executor._all()[0].host.transport.error = AuthenticationError("The key is not accepted.")
        return list((await run(executor, maker.job(add, 1, 2))).values())

    (answer,) = asyncio.run(main())
    assert (answer.reason, answer.message) == (Reason.AUTH, "The key is not accepted.")


# -- under a real kernel ----------------------------------------------------------------------


@pytest.fixture
def kernel(tmp_path):
    before = dict(embedding._overrides)
    ct.configure(home=tmp_path / "home", progress="off")
    embedding.current().plugins.register_class(Box)
    yield
    embedding.shutdown()
    embedding._overrides.clear()
    embedding._overrides.update(before)


def test_a_workflow_runs_on_a_host(kernel, box, tmp_path):
    executor = box(slots=4)

    @ct.electron(executor=executor)
    def double(x):
        return x * 2

    @ct.electron(executor=executor)
    def large(x):
        return bytes(300_000 * x)

    @ct.electron(executor=executor)
    def broken():
        raise KeyError("nothing here")

    @ct.electron
    def local(values, data):
        return sum(values), len(data)

    @ct.lattice
    def workflow(x):
        broken()
        return local([double(x), double(double(x))], large(x))

    result = ct.get_result(ct.dispatch(workflow)(3), wait=True)
    assert str(result.status) == "FAILED"
    failed = [node for node in result.get_all_node_results() if node["error"]]
    assert ["nothing here" in node["error"] for node in failed] == [True]
    outputs = [node["output"] for node in result.get_all_node_results()]
    assert (18, 900_000) in [getattr(output, "value", output) for output in outputs]
    roots = tmp_path / "root" / "here" / "jobs"
    deadline = time.monotonic() + 30
    while len(list(roots.iterdir())) > 1:  # only the failed one is kept to be looked at
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_cancel_reaches_the_host(kernel, box, tmp_path):
    executor = box()
    pid_file = str(tmp_path / "pid")

    @ct.electron(executor=executor)
    def hold():
        Path(pid_file).write_text(str(os.getpid()))
        time.sleep(600)

    @ct.lattice
    def workflow():
        return hold()

    dispatch_id = ct.dispatch(workflow)()
    pid = int(wait_for(Path(pid_file), 60))
    ct.cancel(dispatch_id)
    result = ct.get_result(dispatch_id, wait=True)
    assert str(result.status) == "CANCELLED"
    assert not Path(f"/proc/{pid}").exists()
    deadline = time.monotonic() + 20
    while job_processes(tmp_path / "root" / "here"):  # the last question may still be answered
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_modules_of_the_user_travel_along(kernel, box, tmp_path, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "mine_and_only_mine.py").write_text(
        "FACTOR = 7\n\ndef times(x):\n    return FACTOR * x\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    import mine_and_only_mine

    @ct.electron(executor=box())
    def use(x):
        import mine_and_only_mine as module

        return module.times(x), module.__file__

    @ct.lattice
    def workflow(x):
        return use(x)

    del mine_and_only_mine
    result = ct.get_result(ct.dispatch(workflow)(6), wait=True)
    sys.modules.pop("mine_and_only_mine")
    assert result.result[0] == 42, result
