"""Jobs on a host: started, ended in every way there is, and told about truthfully."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import sys
import time
from pathlib import Path

import pytest
from tests.remote.conftest import job_processes
from tests.remote.kit import Host, lost, unreachable

from chelate.api import Deferred, JobState, Reason, Rejected, Unknown
from chelate.remote import Environment, Prepared, job_id, observation


def add(a, b):
    sys.stdout.write("adding\n")
    return a + b


def ledger(path, seconds=0.0):
    """Append a line, so that every execution counts."""
    with Path(path).open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(seconds)
    return "done"


def wait_for(path: Path, seconds: float = 20.0) -> str:
    deadline = time.monotonic() + seconds
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)
    return path.read_text()


def value(outcome):
    assert outcome.ok, outcome
    payload = outcome.payload
    return pickle.loads(payload if isinstance(payload, bytes) else payload.read_bytes())


def test_a_job_runs_and_says_how_it_ended(host: Host):
    async def main():
        good, bad = host.maker.job(add, 1, 2), host.maker.job(add, 1, "x")
        outcomes = await host.run(good, bad)
        await host.jobs.release([good.key, bad.key])
        return good, bad, outcomes

    good, bad, outcomes = asyncio.run(main())
    assert value(outcomes[0]) == 3
    assert outcomes[0].stdout == b"adding\n"
    assert outcomes[0].usage["max_rss_kib"] > 1000
    assert outcomes[1].reason is Reason.USER_ERROR
    assert "TypeError" in outcomes[1].error
    assert "_chelate_host" not in outcomes[1].error
    assert isinstance(pickle.loads(outcomes[1].exception), TypeError)
    assert not host.folder(good).exists()
    assert host.folder(bad).exists()  # cleanup="on_success" keeps it to be looked at


def test_only_what_is_missing_is_sent(make_host):
    big = os.urandom(300_000)
    host = make_host(cold=True)

    async def main():
        await host.jobs.probe()
        sent = [host.transport.sent]
        for _ in range(2):
            await host.run(host.maker.job(len, big))
            sent.append(host.transport.sent)
        other = make_host(cold=True)  # a fresh process on the same host
        other.maker.blobs = host.maker.blobs
        await other.run(other.maker.job(len, big))
        return sent, other

    sent, other = asyncio.run(main())
    assert sent[0] > 20_000  # the tools
    assert sent[1] - sent[0] > 300_000
    assert sent[2] - sent[1] < 5_000
    assert other.transport.sent < 10_000
    assert host.transport.verbs.count("missing") == 1  # the second time all is known to be there
    start = host.transport.verbs.index("missing")
    assert host.transport.verbs[start : start + 2] == ["missing", "put"]


def test_a_result_is_there_for_the_next_task(host: Host):
    async def main():
        first = host.maker.job(os.urandom, 200_000)
        (outcome,) = await host.run(first)
        payload = outcome.payload
        assert payload.stat().st_size > 200_000
        host.maker.blobs.put(payload.read_bytes())
        sent = host.transport.sent
        second = host.maker.job(len, pickle.loads(payload.read_bytes()))
        task = second.tasks[0]
        task.call["values"]["0"] = outcome.digest
        task.inputs = (task.inputs[0], outcome.digest)
        (length,) = await host.run(second)
        return value(length), host.transport.sent - sent

    length, sent = asyncio.run(main())
    assert length == 200_000
    assert sent < 5_000


def test_a_job_started_twice_runs_once(host: Host, tmp_path):
    async def main():
        job = host.maker.job(ledger, str(tmp_path / "ledger"), 0.3)
        answers = await asyncio.gather(*(host.start(job) for _ in range(4)))
        sights = await asyncio.gather(*(host.jobs.start([job.key]) for _ in range(2)))
        prepared = answers[0][0]
        foreground = await host.transport.inner.run(prepared.command)
        return await host.outcomes(job), sights, foreground

    outcomes, sights, foreground = asyncio.run(main())
    assert value(outcomes[0]) == "done"
    assert len((tmp_path / "ledger").read_text().splitlines()) == 1
    assert sights[0] == sights[1] or sights[0].keys() == sights[1].keys()
    assert foreground.exit_status in (0, 75)


def test_a_lost_answer_is_no_news_and_an_unreachable_host_takes_nothing(host: Host, tmp_path):
    async def main():
        job = host.maker.job(ledger, str(tmp_path / "ledger"))
        await host.jobs.probe()
        host.transport.before = unreachable
        (refused,) = await host.start(job)
        host.transport.before = None
        host.transport.after = lambda argv: lost(argv) if "put" in argv else None
        (unknown,) = await host.start(job)
        host.transport.after = None
        await host.over(job)
        (again,) = await host.start(job)
        return refused, unknown, again, await host.outcomes(job)

    refused, unknown, again, outcomes = asyncio.run(main())
    assert isinstance(refused, Deferred)
    assert isinstance(unknown, Unknown)
    assert isinstance(again, Prepared)
    assert value(outcomes[0]) == "done"
    assert len((tmp_path / "ledger").read_text().splitlines()) == 1


def fork_hard(path):
    """A grandchild in a session of its own, without a parent, deaf to SIGTERM."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            Path(path).write_text(str(os.getpid()))
            time.sleep(600)
        os._exit(0)
    time.sleep(600)


def test_a_cancel_ends_the_whole_tree(host: Host, tmp_path):
    async def main():
        job = host.maker.job(fork_hard, str(tmp_path / "pid"))
        await host.start(job)
        pid = await asyncio.to_thread(wait_for, tmp_path / "pid")
        await host.jobs.stop([job.key])
        await host.over(job)
        return int(pid), await host.outcomes(job)

    pid, (outcome,) = asyncio.run(main())
    assert outcome.reason is Reason.CANCELLED_BY_USER
    assert not Path(f"/proc/{pid}").exists()
    assert not job_processes(host.root)


def test_force_leaves_nothing_at_once(make_host, tmp_path):
    host = make_host(grace=600.0)

    async def main():
        job = host.maker.job(fork_hard, str(tmp_path / "pid"))
        await host.start(job)
        await asyncio.to_thread(wait_for, tmp_path / "pid")
        began = time.monotonic()
        await host.jobs.stop([job.key])
        await host.jobs.stop([job.key], force=True)
        await host.over(job)
        return time.monotonic() - began, await host.outcomes(job)

    seconds, (outcome,) = asyncio.run(main())
    assert seconds < 15
    assert outcome.reason is Reason.CANCELLED_BY_USER
    assert not job_processes(host.root)


def test_what_was_never_started_can_be_forbidden(host: Host, tmp_path):
    async def main():
        job = host.maker.job(ledger, str(tmp_path / "ledger"))
        unknown = host.maker.job(ledger, str(tmp_path / "ledger"))
        (prepared,) = await host.jobs.prepare([job])
        stopped = await host.jobs.stop([job.key])
        forbidden = await host.jobs.forbid([unknown.key])
        await host.start(unknown)
        await host.jobs.start([job.key])
        code = (await host.transport.inner.run(prepared.command)).exit_status
        running = host.maker.job(ledger, str(tmp_path / "other"), 5.0)
        await host.start(running)
        held = await host.jobs.forbid([running.key])
        await host.jobs.stop([running.key], force=True)
        return job, stopped[job.key], forbidden[unknown.key], held[running.key], code

    _, stopped, forbidden, held, code = asyncio.run(main())
    seen = observation(stopped, where="h")
    assert (seen.state, seen.reason) == (JobState.KILLED, Reason.CANCELLED_BY_USER)
    assert forbidden.forbidden
    assert not forbidden.claimed
    assert held.claimed
    assert code == 75
    assert not (tmp_path / "ledger").exists()


def test_the_listing_names_what_runs_for_a_store(host: Host, tmp_path):
    async def main():
        jobs = [
            host.maker.job(ledger, str(tmp_path / "ledger"), 30.0, store=name)
            for name in ("one", "one", "two")
        ]
        await host.start(*jobs)
        before = await host.jobs.listing("one")
        await host.jobs.stop([jobs[0].key], force=True)
        await host.over(jobs[0])
        after = await host.jobs.listing("one")
        await host.jobs.stop([job.key for job in jobs], force=True)
        return [job.key for job in jobs], set(before), set(after)

    keys, before, after = asyncio.run(main())
    assert before == set(keys[:2])
    assert after == {keys[1]}


def die(number):
    os.kill(os.getpid(), number)
    time.sleep(60)


def test_the_death_of_a_task_is_told(host: Host):
    async def main():
        return await host.run(
            host.maker.job(die, signal.SIGKILL),
            host.maker.job(os._exit, 7),
            host.maker.job(time.sleep, 600, timeout=0.5),
        )

    killed, left, slow = asyncio.run(main())
    assert killed.reason is Reason.CRASHED
    assert "SIGKILL" in killed.error
    assert left.reason is Reason.CRASHED
    assert "exit status 7" in left.error
    assert slow.reason is Reason.TIMEOUT


def spawn():
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.map(abs, [-1])


def remove_own_folder():
    import shutil

    shutil.rmtree(Path.cwd())
    return "clean"


def test_a_task_may_spawn_processes_and_remove_its_folder(host: Host):
    async def main():
        return await host.run(host.maker.job(spawn), host.maker.job(remove_own_folder))

    outcomes = asyncio.run(main())
    assert [value(outcome) for outcome in outcomes] == [[1], "clean"]


def leave_a_thread():
    import threading

    threading.Thread(target=time.sleep, args=(600,)).start()
    return "done"


@pytest.mark.large
def test_a_thread_that_does_not_end_keeps_no_result(host: Host):
    async def main():
        job = host.maker.job(leave_a_thread)
        await host.start(job)
        await host.over(job, 120)
        return await host.outcomes(job)

    (outcome,) = asyncio.run(main())
    assert value(outcome) == "done"


def test_the_death_of_the_supervisor_is_told_when_nothing_runs_any_more(host: Host, tmp_path):
    async def main():
        job = host.maker.job(fork_hard, str(tmp_path / "pid"))
        await host.start(job)
        await asyncio.to_thread(wait_for, tmp_path / "pid")
        sight = (await host.jobs.look([job.key]))[job.key]
        os.kill(sight.pid, signal.SIGKILL)
        sight = await host.until(job, lambda sight: sight.alive is False)
        return observation(sight, where="the host")

    seen = asyncio.run(main())
    assert (seen.state, seen.reason) == (JobState.KILLED, Reason.NODE_FAIL)
    assert "killed" in seen.message
    assert not job_processes(host.root)


def talk(path):
    sys.stdout.write("last words\n")
    sys.stderr.write("a warning\n")
    Path(path).write_text("x")
    time.sleep(600)


def test_what_a_task_printed_outlives_its_supervisor(host: Host, tmp_path):
    """On a cluster the node is gone, and only the scheduler knows that the job has ended."""

    async def main():
        done, slow = host.maker.task(add, 1, 2), host.maker.task(talk, str(tmp_path / "words"))
        job = host.maker.pack([done, slow])
        await host.start(job)
        await asyncio.to_thread(wait_for, tmp_path / "words")
        claim = json.loads(claim_file(host, job).read_text())
        os.kill(claim["pid"], signal.SIGKILL)
        claim_file(host, job).write_text(json.dumps({**claim, "host": "a-lost-node"}))
        handles = [host.handle(job)]
        before = [one async for one in host.jobs.collect(handles, host.spool)]
        said = {host.key(job): "The node burned."}
        return before, [one async for one in host.jobs.collect(handles, host.spool, said)]

    before, (first, second) = asyncio.run(main())
    assert before == []
    assert value(first) == 3
    assert (second.reason, second.error) == (Reason.NODE_FAIL, "The node burned.")
    assert (second.stdout, second.stderr) == (b"last words\n", b"a warning\n")
    for pid in job_processes(host.root):  # nobody else would: the job seems to be elsewhere
        os.kill(pid, signal.SIGKILL)


def claim_file(host: Host, job) -> Path:
    return host.folder(job) / "claim.0"


def test_a_reboot_is_told(host: Host, tmp_path):
    async def main():
        job = host.maker.job(ledger, str(tmp_path / "ledger"), 600.0)
        await host.start(job)
        await asyncio.to_thread(wait_for, tmp_path / "ledger")
        sight = (await host.jobs.look([job.key]))[job.key]
        os.kill(sight.pid, signal.SIGKILL)
        claim = json.loads(claim_file(host, job).read_text())
        claim["boot_id"] = "another boot"
        claim_file(host, job).write_text(json.dumps(claim))
        sight = (await host.jobs.look([job.key]))[job.key]
        elsewhere = {**claim, "host": "another-login-node"}
        claim_file(host, job).write_text(json.dumps(elsewhere))
        other = (await host.jobs.look([job.key]))[job.key]
        return observation(sight, where="h"), observation(other, where="h")

    seen, other = asyncio.run(main())
    assert (seen.state, seen.reason) == (JobState.KILLED, Reason.NODE_FAIL)
    assert "restarted" in seen.message
    assert other.state is JobState.RUNNING  # nobody here can tell


def test_a_job_that_nobody_claims_did_not_start(host: Host):
    async def main():
        job = host.maker.job(add, 1, 2)
        await host.jobs.prepare([job])
        early = (await host.jobs.look([job.key], launch_grace=60.0))[job.key]
        late = (await host.jobs.look([job.key], launch_grace=0.0))[job.key]
        started = (await host.jobs.start([job.key]))[job.key]
        return observation(early, where="h"), observation(late, where="h"), started

    early, late, started = asyncio.run(main())
    assert early.state is JobState.QUEUED
    assert (late.state, late.reason) == (JobState.KILLED, Reason.LAUNCH_FAIL)
    assert started.forbidden


def test_a_requeued_job_takes_over_from_its_own_earlier_run(host: Host, tmp_path):
    async def main():
        job = host.maker.job(ledger, str(tmp_path / "ledger"), 1.0)
        (prepared,) = await host.jobs.prepare([job])
        run = host.transport.inner.run
        first = asyncio.create_task(run([*prepared.command, "77", "0"]))
        await asyncio.to_thread(wait_for, tmp_path / "ledger")
        sight = (await host.jobs.look([job.key]))[job.key]
        os.kill(sight.pid, signal.SIGKILL)
        await first
        stranger = await run([*prepared.command, "78", "0"])
        other = await run([*prepared.command, "78", "1"])
        second = await run([*prepared.command, "77", "1"])
        return sight, stranger, other, second, await host.outcomes(job)

    sight, stranger, other, second, (outcome,) = asyncio.run(main())
    assert (sight.native, sight.run) == ("77", 0)
    assert (stranger.exit_status, other.exit_status, second.exit_status) == (75, 75, 0)
    assert value(outcome) == "done"
    assert len((tmp_path / "ledger").read_text().splitlines()) == 2


def test_a_scheduler_that_ends_the_child_first_has_ended_the_job(host: Host, tmp_path):
    """It signals one process after the other; the job may start again, so nothing is over."""

    async def main():
        job = host.maker.job(ledger, str(tmp_path / "ledger"), 600.0)
        (prepared,) = await host.jobs.prepare([job])
        first = asyncio.create_task(host.transport.inner.run([*prepared.command, "77", "0"]))
        await asyncio.to_thread(wait_for, tmp_path / "ledger")
        sight = (await host.jobs.look([job.key]))[job.key]
        for pid in [*(job_processes(host.root) - {sight.pid}), sight.pid]:
            os.kill(pid, signal.SIGTERM)
            await asyncio.sleep(0.2)
        return await first, (await host.jobs.look([job.key]))[job.key]

    ended, sight = asyncio.run(main())
    assert ended.exit_status == 128 + signal.SIGTERM
    assert not sight.done


def test_a_pack_loses_one_task_and_keeps_the_others(host: Host, tmp_path):
    async def main():
        tasks = [
            host.maker.task(add, 1, 2),
            host.maker.task(die, signal.SIGKILL),
            host.maker.task(time.sleep, 600),
            host.maker.task(ledger, str(tmp_path / "never")),
            host.maker.task(add, 3, 4),
        ]
        job = host.maker.pack(tasks)
        await host.start(job)
        await host.jobs.stop_tasks(host.key(job), [tasks[3].key])
        await host.jobs.stop_tasks(host.key(job), [tasks[2].key])
        alone = await host.jobs.logs(tasks[4].key, "stdout", 0, 100)
        assert alone in (b"", b"adding\n")
        return await host.outcomes(job), await host.jobs.logs(host.key(job), "stdout", 0, 100)

    outcomes, log = asyncio.run(main())
    assert value(outcomes[0]) == 3
    assert value(outcomes[4]) == 7
    reasons = [outcome.reason for outcome in outcomes[1:4]]
    assert reasons == [Reason.CRASHED, Reason.CANCELLED_BY_USER, Reason.CANCELLED_BY_USER]
    assert not (tmp_path / "never").exists()
    assert log == b"adding\nadding\n"


def test_a_task_of_a_pack_is_stopped_and_cleaned_up_by_its_own_key(host: Host):
    """As a task that was sent alone again knows it: the rest of the pack is not touched."""

    async def main():
        tasks = [host.maker.task(time.sleep, 600), host.maker.task(add, 3, 4)]
        job = host.maker.pack(tasks)
        keys = [task.key for task in tasks]
        await host.start(job)
        sight = (await host.jobs.stop([tasks[0].key], force=True))[tasks[0].key]
        assert (sight.claimed, sight.cancelled, sight.tasks) == (True, True, tuple(keys))
        outcomes = await host.outcomes(job)
        handles = [host.handle(host.maker.pack([tasks[1]]))]
        (own,) = [one async for one in host.jobs.collect(handles, host.spool)]
        claims = [host.root / "jobs" / job_id(key) for key in keys]
        assert all(map(Path.exists, claims))
        await host.jobs.release([host.key(job)])
        kept = [*claims, host.folder(job)]
        host.jobs.cleanup = "always"
        assert all(map(Path.exists, kept))  # by default the folders of what failed stay
        await host.jobs.release([tasks[1].key])
        assert all(map(Path.exists, kept))
        await host.jobs.release([host.key(job)])
        assert not any(map(Path.exists, kept))
        return outcomes, own

    outcomes, own = asyncio.run(main())
    assert outcomes[0].reason is Reason.CANCELLED_BY_USER
    assert value(outcomes[1]) == value(own) == 7


def test_what_a_pack_had_done_outlives_its_supervisor(host: Host):
    async def main():
        job = host.maker.pack([host.maker.task(add, 1, 2), host.maker.task(time.sleep, 600)])
        await host.start(job)
        await asyncio.to_thread(wait_for, host.folder(job) / "run-0" / "record.0")
        (sight,) = (await host.jobs.look([job.tasks[1].key])).values()
        os.kill(sight.pid, signal.SIGKILL)
        await host.until(job, lambda sight: sight.done)
        return await host.outcomes(job)

    first, second = asyncio.run(main())
    assert value(first) == 3
    assert second.reason is Reason.NODE_FAIL


def test_jobs_outlive_the_process_that_started_them(host: Host, make_host, tmp_path):
    job = host.maker.job(ledger, str(tmp_path / "ledger"), 1.0)
    pid = os.fork()
    if pid == 0:
        asyncio.run(host.start(job))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    fresh = make_host()
    (outcome,) = asyncio.run(fresh.outcomes(job))
    assert value(outcome) == "done"


def test_prerun_lasts_and_postrun_follows(make_host, tmp_path):
    host = make_host(
        environment=Environment(
            python=sys.executable,
            env_vars={"FIRST": "a b'c\n$(x)"},
            # As sourced scripts do: look at arguments, which are not theirs, and set their own.
            prerun="set -u; export SECOND=$FIRST-second$*; set -- a 'b c'",
            postrun=f'printf %s "$CHELATE_EXIT_STATUS $FIRST" > {tmp_path}/post',
        )
    )

    async def main():
        good = await host.run(host.maker.job(os.getenv, "SECOND"))
        told = (tmp_path / "post").read_text()
        await host.run(host.maker.job(add, 1, "x"))
        return good[0], told, (tmp_path / "post").read_text()

    outcome, first, second = asyncio.run(main())
    assert value(outcome) == "a b'c\n$(x)-second"
    assert first == "0 a b'c\n$(x)"
    assert second.startswith("1 ")


def test_a_prerun_that_fails_is_named_with_what_it_said(make_host, tmp_path):
    async def outcome(prerun):
        host = make_host(
            f"p{len(prerun)}", environment=Environment(python=sys.executable, prerun=prerun)
        )
        return (await host.run(host.maker.job(ledger, str(tmp_path / "ledger"))))[0]

    async def main():
        texts = ("echo no licence >&2; false", "exit 9", "if (")
        return await asyncio.gather(*map(outcome, texts))

    outcomes = asyncio.run(main())
    assert [item.reason for item in outcomes] == [Reason.PRERUN] * 3
    assert "no licence" in outcomes[0].error
    assert "exit status 1" in outcomes[0].error
    assert not (tmp_path / "ledger").exists()


def test_a_refused_input_refuses_its_job_alone(host: Host):
    async def main():
        good, bad = host.maker.job(add, 1, 2), host.maker.job(add, 3, "gone")
        del host.maker.blobs.data[bad.tasks[0].inputs[2]]
        return await host.start(good, bad)

    good, bad = asyncio.run(main())
    assert isinstance(good, Prepared)
    assert isinstance(bad, Rejected)
    assert bad.reason is Reason.RESULT_MISSING
