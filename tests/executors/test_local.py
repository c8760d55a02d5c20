"""The local executor as a lane sees it: results, output, crashes, cancels, resources."""

# ruff: noqa: PTH109, PTH110, PTH118, PTH123, T201 (tasks do what users do)
from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chelate.api import JobState, Reason, Rejected, Resources
from chelate.executors.local import LocalExecutor

sys.path.insert(0, str(Path(__file__).parent))
from pool_kit import Blobs, Driver, alive, drive, eventually, value


def test_nothing_starts_before_the_first_task():
    async def scenario(driver):
        assert driver.executor._pool is None
        await driver.executor.poll([])
        assert driver.executor._pool is None

    drive(scenario)


def test_results_and_user_errors():
    async def scenario(driver):
        assert value(await driver.result(lambda a, b: a * b, 6, 7)) == 42
        failed = await driver.result(lambda: 1 / 0)
        assert (failed.ok, failed.reason) == (False, Reason.USER_ERROR)
        assert "ZeroDivisionError" in failed.error
        left = await driver.result(lambda: sys.exit(3))
        assert "SystemExit: 3" in left.error
        odd = await driver.result(lambda: (n for n in ()), name="odd")
        assert odd.reason is Reason.UNPICKLABLE
        assert "'odd'" in odd.error
        assert value(await driver.result(os.getpid)) != os.getpid()

    drive(scenario)


def test_two_thousand_tasks_in_batches():
    def same(x):
        return x

    async def scenario(driver):
        jobs = [driver.job(same, n) for n in range(2000)]
        await driver.run(*jobs)
        outcomes = await driver.outcomes([driver.handles[job.key] for job in jobs])
        assert [value(outcomes[job.key]) for job in jobs] == list(range(2000))
        assert driver.executor._pool._number == 2
        await driver.executor.release(list(driver.handles.values()))
        assert [o async for o in driver.executor.collect(list(driver.handles.values()))] == []

    drive(scenario)


def test_context_key_and_folder(tmp_path):
    def where():
        import _chelate_task_context as context

        here, key = os.getcwd(), os.environ["CHELATE_TASK_KEY"]
        os.chdir("/")
        return here, key, context.current

    async def scenario(driver):
        for _ in range(2):
            handle = await driver.start(where, context={"root": "r"})
            outcome = (await driver.outcomes([handle]))[handle.key]
            here, key, context = value(outcome)
            assert here == str(tmp_path / "d" / f"node_{driver.count}")
            assert key == handle.key
            assert (context["root"], context["dispatch_id"]) == ("r", "d")
            assert (context["node_id"], context["attempt"]) == (driver.count, 1)

    drive(scenario, LocalExecutor(workers=1, workdir=str(tmp_path), create_unique_workdir=True))


def test_output_is_separate_per_task_and_stream():
    def talk(word):
        print(word)
        print(word, "error", file=sys.stderr)
        os.write(1, b"\xff\x00raw")
        subprocess.run(["echo", "child"], check=True)

    async def scenario(driver):
        for word in ("one", "two"):
            outcome = await driver.result(talk, word)
            assert outcome.stdout == word.encode() + b"\n\xff\x00rawchild\n"
            assert outcome.stderr == word.encode() + b" error\n"
        assert (await driver.result(lambda: None)).stdout == b""

    drive(scenario, LocalExecutor(workers=1))


def test_output_can_be_read_while_the_task_runs(tmp_path):
    def slow(gate):
        print("begun")
        while not os.path.exists(gate):
            time.sleep(0.01)

    async def scenario(driver):
        await driver.result(print, "before")
        gate = tmp_path / "gate"
        handle = await driver.start(slow, str(gate))
        await driver.until([handle], {JobState.RUNNING})
        seen = b""
        while seen != b"begun\n":
            seen = await driver.executor.logs(handle, "stdout", 0, 100)
            await asyncio.sleep(0.01)
        assert await driver.executor.logs(handle, "stdout", 2, 3) == b"gun"
        assert await driver.executor.logs(handle, "stderr", 0, 100) == b""
        gate.touch()
        assert (await driver.outcomes([handle]))[handle.key].stdout == b"begun\n"
        assert await driver.executor.logs(handle, "stdout", 0, 3) == b"beg"

    drive(scenario, LocalExecutor(workers=1))


def test_very_long_output_keeps_head_and_tail():
    async def scenario(driver):
        outcome = await driver.result(lambda: print("a" * 10_000_000 + "end"))
        assert len(outcome.stdout) < 1_200_000
        assert outcome.stdout.startswith(b"aaaa")
        assert outcome.stdout.endswith(b"end\n")
        assert b"bytes of output are left out" in outcome.stdout
        assert (await driver.result(print, "next")).stdout == b"next\n"

    drive(scenario, LocalExecutor(workers=1))


@pytest.mark.parametrize(
    "harm",
    [
        lambda: sys.stdout.close(),
        lambda: os.close(1),
        lambda: setattr(sys, "stdout", None),
        lambda: os.dup2(os.open("/dev/null", os.O_WRONLY), 1) and None,
    ],
    ids=["closed", "descriptor", "replaced", "redirected"],
)
def test_streams_are_mended_behind_a_task(harm):
    async def scenario(driver):
        assert (await driver.result(harm)).ok
        assert (await driver.result(print, "still here")).stdout == b"still here\n"

    drive(scenario, LocalExecutor(workers=1))


def test_large_values_travel_by_file(tmp_path):
    async def scenario(driver):
        big = os.urandom(1_000_000)
        handle = await driver.start(lambda data: data + b"!", big)
        outcome = (await driver.outcomes([handle]))[handle.key]
        assert isinstance(outcome.payload, Path)
        assert value(outcome) == big + b"!"
        await driver.executor.release([handle])
        assert not outcome.payload.exists()

    drive(scenario, blobs=Blobs(tmp_path))
    drive(scenario, blobs=Blobs())


def test_missing_input_fails_the_task_alone():
    async def scenario(driver):
        job = driver.job(lambda x: x, 1)
        del driver.blobs.data[job.tasks[0].inputs[1]]
        await driver.run(job)
        outcome = (await driver.outcomes([driver.handles[job.key]]))[job.key]
        assert outcome.reason is Reason.RESULT_MISSING
        assert value(await driver.result(lambda: 1)) == 1

    drive(scenario)


# -- crashes ----------------------------------------------------------------------------------


def make_segfault():
    def segfault():  # not at module level, where it would be pickled by reference
        import ctypes

        print("last words")
        ctypes.string_at(0)

    return segfault


segfault = make_segfault()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (segfault, "SIGSEGV"),
        (lambda: os._exit(7), "exit code 7"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(5), "SIGTERM"),
    ],
    ids=["segfault", "exit", "kill", "term"],
)
def test_a_crash_is_named_and_neighbours_go_on(harm, words):
    def same(x):
        return x

    async def scenario(driver):
        await driver.outcomes([await driver.start(same, n) for n in range(50)])
        jobs = [driver.job(same, n) for n in range(300)]
        crash = driver.job(harm, name="bomb")
        await driver.run(*jobs[:150], crash, *jobs[150:])
        outcomes = await driver.outcomes(list(driver.handles.values()))
        assert outcomes[crash.key].reason is Reason.CRASHED
        assert words in outcomes[crash.key].error
        assert [value(outcomes[job.key]) for job in jobs] == list(range(300))
        if harm is segfault:
            assert outcomes[crash.key].stdout == b"last words\n"

    drive(scenario)


def test_a_worker_that_cannot_start_fails_the_tasks(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no such library >&2\nexit 4\n")
    python.chmod(0o755)

    async def scenario(driver):
        outcome = await driver.result(lambda: 1)
        assert outcome.reason is Reason.LAUNCH_FAIL
        assert "no such library" in outcome.error

    drive(scenario, LocalExecutor(workers=1, python=str(python)))


# -- cancel -----------------------------------------------------------------------------------


def test_cancel_running_queued_finished_and_twice(tmp_path):
    def touch(path):
        Path(path).touch()

    async def scenario(driver):
        finished = await driver.start(lambda: 1)
        await driver.until([finished])
        running = await driver.start(time.sleep, 600)
        await driver.until([running], {JobState.RUNNING})
        queued = await driver.start(touch, str(tmp_path / "queued"))
        neighbour = await driver.start(touch, str(tmp_path / "neighbour"))
        everything = [finished, running, queued]
        await driver.executor.cancel(everything, force=False)
        await driver.executor.cancel(everything, force=True)
        seen = await driver.until(everything)
        assert seen[finished.key].state is JobState.ENDED
        for handle in (running, queued):
            assert seen[handle.key].state is JobState.KILLED
            assert seen[handle.key].reason is Reason.CANCELLED_BY_USER
        await driver.until([neighbour])
        assert [path.name for path in tmp_path.iterdir()] == ["neighbour"]
        await driver.executor.cancel(everything, force=True)

    drive(scenario, LocalExecutor(workers=1))


def test_a_cancelled_task_may_clean_up(tmp_path):
    def tidy(path):
        try:
            time.sleep(600)
        finally:
            Path(path).touch()

    async def scenario(driver):
        handle = await driver.start(tidy, str(tmp_path / "tidied"))
        await driver.until([handle], {JobState.RUNNING})
        await asyncio.sleep(0.2)
        await driver.executor.cancel([handle], force=False)
        await driver.until([handle])
        assert (tmp_path / "tidied").exists()

    drive(scenario)


@pytest.mark.parametrize("force", [False, True])
def test_stubborn_trees_are_gone_when_cancelled(tmp_path, force):
    def stubborn(folder):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        code = (
            "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
            "os.setsid() if sys.argv[2] == 'session' else None;"
            "open(os.path.join(sys.argv[1], str(os.getpid())), 'w').close(); time.sleep(600)"
        )
        for kind in ("session", "plain"):
            subprocess.Popen([sys.executable, "-c", code, folder, kind])
        subprocess.Popen(
            f"setsid {sys.executable} -c {json.dumps(code)} {folder} orphan & exit",
            shell=True,
            env={},
        )
        if os.fork() == 0:
            os.setsid()
            if os.fork():
                os._exit(0)
            open(os.path.join(folder, str(os.getpid())), "w").close()
            time.sleep(600)
        while True:
            try:
                time.sleep(600)
            except BaseException:
                continue

    async def scenario(driver):
        handle = await driver.start(stubborn, str(tmp_path))
        await driver.until([handle], {JobState.RUNNING})
        neighbour = await driver.start(time.sleep, 600)
        await driver.until([neighbour], {JobState.RUNNING})
        await eventually(lambda: len(list(tmp_path.iterdir())) == 4)
        pids = [int(path.name) for path in tmp_path.iterdir()]
        await driver.executor.cancel([handle], force=force)
        seen = await driver.until([handle])
        assert seen[handle.key].state is JobState.KILLED
        assert [pid for pid in pids if alive(pid)] == []
        report = await driver.executor.poll([neighbour])
        assert report.seen[neighbour.key].state is JobState.RUNNING

    drive(scenario)


def test_cancel_in_a_stream_of_tasks_hurts_nobody_else():
    def same(x):
        return x

    async def scenario(driver):
        jobs = [driver.job(same, n) for n in range(1500)]
        await driver.run(*jobs)
        handles = [driver.handles[job.key] for job in jobs]
        for start in range(0, 1500, 100):
            await driver.executor.cancel(handles[start : start + 3], force=False)
            await asyncio.sleep(0.002)
        seen = await driver.until(handles)
        for number, job in enumerate(jobs):
            if number % 100 >= 3:
                assert seen[job.key].state is JobState.ENDED
        ended = [h for h in handles if seen[h.key].state is JobState.ENDED]
        assert all(o.ok for o in (await driver.outcomes(ended)).values())

    drive(scenario)


def test_tasks_prefetched_behind_a_slow_one_are_moved():
    def work(seconds):
        time.sleep(seconds)
        return os.getpid()

    async def scenario(driver):
        await driver.outcomes([await driver.start(work, 0) for _ in range(100)])
        slow = driver.job(work, 600)
        quick = [driver.job(work, 0) for _ in range(60)]
        await driver.run(slow, *quick)
        await driver.outcomes([driver.handles[job.key] for job in quick])
        await driver.executor.cancel([driver.handles[slow.key]], force=True)

    drive(scenario)


# -- resources --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resources", "word"),
    [
        (Resources(cpus=3), "workers=3"),
        (Resources(mem="2G"), "mem="),
        (Resources(gpus=1), "gpus=1"),
        (Resources(nodes=2), "nodes"),
        (Resources(exclusive=True), "exclusive"),
        (Resources(gpu_type="a100"), "gpu_type"),
        (Resources(disk="1G"), "disk"),
    ],
)
def test_what_the_machine_cannot_do_is_refused(resources, word):
    async def scenario(driver):
        (refused,) = await driver.run(driver.job(print, resources=resources))
        assert isinstance(refused, Rejected)
        assert refused.reason is Reason.UNSCHEDULABLE
        assert word in refused.message

    drive(scenario, LocalExecutor(workers=2, mem="1G"))


def test_processors_are_counted_and_wide_tasks_not_starved():
    def span(seconds):
        begin = time.monotonic()
        time.sleep(seconds)
        return begin, time.monotonic()

    async def scenario(driver):
        narrow = [driver.job(span, 0.1) for _ in range(30)]
        wide = [driver.job(span, 0.1, resources=Resources(cpus=2)) for _ in range(2)]
        await driver.run(*narrow[:20], *wide, *narrow[20:])
        outcomes = await driver.outcomes(list(driver.handles.values()))
        spans = {key: value(outcome) for key, outcome in outcomes.items()}
        for job in wide:
            begin, end = spans[job.key]
            for key, (first, last) in spans.items():
                assert key == job.key or last <= begin or first >= end
        assert max(spans[job.key][0] for job in wide) < max(span[0] for span in spans.values())

    drive(scenario)


def test_accelerators_are_shared_out():
    def which():
        begin = time.monotonic()
        time.sleep(0.2)
        return os.environ.get("CUDA_VISIBLE_DEVICES"), begin, time.monotonic()

    async def scenario(driver):
        jobs = [driver.job(which, resources=Resources(gpus=1)) for _ in range(3)]
        both = driver.job(which, resources=Resources(gpus=2))
        none = driver.job(which)
        await driver.run(*jobs, both, none)
        outcomes = await driver.outcomes(list(driver.handles.values()))
        found = [value(outcomes[job.key]) for job in jobs]
        assert {devices for devices, _, _ in found} <= {"0", "1"}
        found.append(value(outcomes[both.key]))
        assert found[-1][0] == "0,1"
        assert value(outcomes[none.key])[0] == ""
        for number, (devices, begin, end) in enumerate(found):
            for others, first, last in found[:number]:
                assert last <= begin or first >= end or not set(devices) & set(others)

    drive(scenario, LocalExecutor(workers=2, gpus=2))


def test_close_ends_workers_and_removes_the_folder(tmp_path):
    found = {}

    async def scenario(driver):
        handle = await driver.start(time.sleep, 600)
        await driver.until([handle], {JobState.RUNNING})
        pool = driver.executor._pool
        found["folder"] = pool.folder
        found["pids"] = [link.process.pid for link in pool._links]

    drive(scenario)
    assert not found["folder"].exists()
    assert not any(alive(pid) for pid in found["pids"])


def test_driver_options_are_plain():
    executor = LocalExecutor(workers=2, env={"A": "1"})
    assert executor.ref().options == {"workers": 2, "env": {"A": "1"}}
    assert Driver(executor).executor.name == "local"
