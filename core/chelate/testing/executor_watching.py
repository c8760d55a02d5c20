"""Conformance of watching: polls, look-ups, logs, listings, and a second process."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from chelate.contracts.executor import Accepted, Executor, JobHandle, JobState, Unknown
from chelate.errors import ChelateError
from chelate.testing import second_process
from chelate.testing.executor_bench import FINAL_STATES, Bench, value_of
from chelate.testing.executor_driven import ExecutorTests, driven
from chelate.testing.executor_tasks import beats, notes, shows, waits

__all__ = ["WatchingTests"]

ORDER = (JobState.QUEUED, JobState.RUNNING, JobState.ENDED)
THOUSANDS = 3000
RUNNING = frozenset({JobState.RUNNING})


class WatchingTests(ExecutorTests):
    """Part of the kit."""

    # -- polls --------------------------------------------------------------------------------

    @driven()
    async def test_polling_nothing(self, bench: Bench) -> None:
        report = await bench.look([])
        assert not report.seen
        assert not report.covered

    @driven("shared_files")
    async def test_states_only_move_forward(self, bench: Bench) -> None:
        go = bench.folder / "go"
        handle = await bench.start(waits(str(go)))
        await bench.until([handle], RUNNING)
        go.touch()
        last = 1
        while last < 2:
            seen = (await bench.look([handle])).seen.get(handle.key)
            if seen is not None:
                assert ORDER.index(seen.state) >= last, f"{seen.state} after {ORDER[last]}"
                last = ORDER.index(seen.state)
        for _ in range(3):
            assert (await bench.look([handle])).seen[handle.key].state is JobState.ENDED

    @driven()
    async def test_unknown_handles_run_nowhere(self, bench: Bench) -> None:
        handle = await bench.start(lambda: 1)
        await bench.until([handle])
        stranger = bench.unknown(handle)
        report = await bench.look([stranger, handle])
        assert report.seen[handle.key].state is JobState.ENDED
        seen = report.seen.get(stranger.key)
        assert seen is None or seen.state in FINAL_STATES
        assert stranger.key not in await bench.collect([stranger])
        await bench.executor.cancel([stranger], force=False)
        await bench.executor.release([stranger])
        assert value_of((await bench.collect([handle]))[handle.key]) == 1

    @driven()
    async def test_foreign_handles_harm_nobody(self, bench: Bench) -> None:
        handle = await bench.start(lambda: 1)
        key = bench.task(len).key
        foreign = JobHandle(key, "another", "arn:of:something/else", {"odd": [1]}, (key,))
        report = await bench.look([foreign, handle])
        assert foreign.key not in report.seen
        await bench.executor.cancel([foreign], force=True)
        assert value_of((await bench.outcomes([handle]))[handle.key]) == 1

    @driven()
    async def test_thousands_of_handles_in_one_call(self, bench: Bench) -> None:
        handle = await bench.start(lambda: 1)
        await bench.until([handle])
        many = [bench.unknown(handle) for _ in range(THOUSANDS)]
        limit = bench.executor.limits.call_timeout
        report = await asyncio.wait_for(bench.look([*many, handle]), limit)
        assert report.seen[handle.key].state is JobState.ENDED

    @driven("outage", "shared_files")
    async def test_a_failed_query_changes_nothing(self, bench: Bench) -> None:
        go = bench.folder / "go"
        handle = await bench.start(waits(str(go), 3))
        await bench.until([handle], RUNNING)
        with self.outage(bench):
            for _ in range(3):
                try:
                    report = await bench.look([handle])
                except (ChelateError, OSError):
                    continue
                assert handle.key not in report.covered
                assert handle.key not in report.seen
                assert report.errors, "say in a sentence which query failed"
        go.touch()
        assert value_of((await bench.outcomes([handle]))[handle.key]) == 3

    @driven("outage", "shared_files")
    async def test_no_job_is_guessed_during_an_outage(self, bench: Bench) -> None:
        ledger = bench.folder / "ledger"
        jobs = [bench.job(notes(str(ledger)), n) for n in range(3)]
        started: dict[str, JobHandle] = {}
        with self.outage(bench):
            try:
                for outcome in await bench.run(*jobs):
                    assert not isinstance(outcome, Accepted)
            except (ChelateError, OSError):
                pass  # nothing was said, so the kernel looks them up
        if bench.executor.capabilities.find:
            found = await bench.executor.find([job.key for job in jobs])
            started = {key: handles[0] for key, handles in found.items() if handles}
            bench.handles.update(started)
        left = [job for job in jobs if job.key not in started]
        await bench.outcomes([*await bench.accepted(*left), *started.values()])
        assert sorted(ledger.read_text().split()) == ["0", "1", "2"]

    # -- looking up ---------------------------------------------------------------------------

    @driven("find", "shared_files")
    async def test_a_job_is_found_by_its_key(self, bench: Bench) -> None:
        go = bench.folder / "go"
        jobs = [bench.job(waits(str(go), n)) for n in range(3)]
        handles = await bench.accepted(*jobs)
        await bench.until(handles[:1], RUNNING)
        found = await bench.executor.find([job.key for job in jobs])
        for job, handle in zip(jobs, handles, strict=True):
            (one,) = found[job.key]
            assert (one.key, tuple(one.tasks)) == (handle.key, tuple(handle.tasks))
        go.touch()
        again = [found[job.key][0] for job in jobs]
        ended = await bench.outcomes(again)
        assert [value_of(ended[job.key]) for job in jobs] == [0, 1, 2]
        assert await bench.executor.find([]) == {}

    @driven("find")
    async def test_a_job_that_never_was_is_not_found(self, bench: Bench) -> None:
        handle = await bench.start(lambda: 1)
        key = bench.task(len).key
        found = await bench.executor.find([key, handle.key])
        assert not found.get(key)
        await bench.until([handle])

    @driven("find", "shared_files")
    async def test_a_call_that_is_cancelled_leaves_nothing_unseen(self, bench: Bench) -> None:
        """The kernel gives up waiting; afterwards find() knows whether the job is there."""
        ledger = bench.folder / "ledger"
        for pause in (0.0, 0.001, 0.02, 0.1):
            job = bench.job(notes(str(ledger)), pause)
            call = asyncio.ensure_future(bench.run(job))
            await asyncio.sleep(pause)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            await asyncio.sleep(min(bench.executor.limits.find_grace, 3.0))
            handles = (await bench.executor.find([job.key])).get(job.key) or []
            assert len(handles) <= 1
            if not handles:
                handles = await bench.accepted(job)
            bench.handles[job.key] = handles[0]
            await bench.until(handles)
        assert sorted(ledger.read_text().split()) == ["0.0", "0.001", "0.02", "0.1"]

    @driven("idempotent", "shared_files")
    async def test_one_key_is_one_run(self, bench: Bench) -> None:
        ledger = bench.folder / "ledger"
        job = bench.job(notes(str(ledger)), 1)
        handles = [outcome.handle for _ in range(3) for outcome in await bench.run(job)
                   if isinstance(outcome, Accepted)]  # fmt: skip
        await bench.until(handles[:1])
        handles += [outcome.handle for outcome in await bench.run(job)
                    if isinstance(outcome, Accepted)]  # fmt: skip
        assert value_of((await bench.outcomes(handles[:1]))[job.key]) == 1
        await bench.until(handles)
        await bench.rests(ledger)
        assert ledger.read_text() == "1\n"

    @driven("claims", "shared_files")
    async def test_a_forbidden_key_never_starts(self, bench: Bench) -> None:
        ledger = bench.folder / "ledger"
        job = bench.job(notes(str(ledger)), 1)
        assert await bench.executor.forbid([job.key]) == {}
        for outcome in await bench.run(job):
            if isinstance(outcome, Accepted):
                await bench.until([outcome.handle])
                found = await bench.collect([outcome.handle])
                assert not any(item.ok for item in found.values())
            assert not isinstance(outcome, Unknown)
        await bench.rests(ledger)
        assert not ledger.exists()

    @driven("claims", "shared_files")
    async def test_a_job_that_holds_its_claim_is_told(self, bench: Bench) -> None:
        go = bench.folder / "go"
        handle = await bench.start(waits(str(go), 1))
        await bench.until([handle], RUNNING)
        held = await bench.executor.forbid([handle.key])
        assert held[handle.key].key == handle.key
        go.touch()
        assert value_of((await bench.outcomes([handle]))[handle.key]) == 1

    @driven("listing", "shared_files")
    async def test_the_jobs_of_a_store_are_listed(self, bench: Bench) -> None:
        go = bench.folder / "go"
        handles = [await bench.start(waits(str(go))) for _ in range(2)]
        await bench.until(handles, RUNNING)
        listed = await bench.executor.list_jobs(bench.store)
        assert {handle.key for handle in listed} == {handle.key for handle in handles}
        assert not await bench.executor.list_jobs(bench.store + "x")
        assert not await bench.executor.list_jobs(bench.store[:-1])
        go.touch()
        await bench.outcomes(handles)
        await bench.release(handles)
        assert not await bench.executor.list_jobs(bench.store)

    # -- logs ---------------------------------------------------------------------------------

    @driven("logs", "shared_files")
    async def test_logs_while_it_runs_by_offset(self, bench: Bench) -> None:
        handle = await bench.start(shows(str(bench.folder), 3))
        text = b""
        for number in range(3):
            (bench.folder / f"go-{number}").touch()
            wanted = f"part {number} größe\n".encode()
            while not text.endswith(wanted):
                text += await bench.executor.logs(handle, "stdout", len(text), 7)
                await asyncio.sleep(0.01)
        assert await bench.executor.logs(handle, "stdout", len(text), 100) == b""
        assert await bench.executor.logs(handle, "stderr", 0, 100) == b""
        found = await bench.outcomes([handle])
        assert found[handle.key].stdout == text

    @driven()
    async def test_logs_of_an_unknown_job_are_empty(self, bench: Bench) -> None:
        handle = await bench.start(lambda: 1)
        await bench.until([handle])
        assert await bench.executor.logs(bench.unknown(handle), "stdout", 0, 100) == b""

    # -- a second process ---------------------------------------------------------------------

    def elsewhere(self, bench: Bench, handles: list[JobHandle], do: str) -> dict[str, Any]:
        """What a fresh process sees that knows the executor's options and the handles only."""
        kind: type[Executor] = type(bench.executor)
        order = {
            "file": inspect.getfile(kind),
            "module": kind.__module__,
            "class": kind.__qualname__,
            "options": dict(bench.executor.ref().options),
            "handles": [handle.to_json() for handle in handles],
            "do": do,
            "patience": self.patience,
        }
        path = os.pathsep.join([entry for entry in sys.path if entry])
        done = subprocess.run(
            [sys.executable, str(Path(second_process.__file__))],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            timeout=self.patience * 2,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    @driven("detached", "shared_files")
    async def test_a_second_process_polls_and_collects_by_handle_alone(self, bench: Bench) -> None:
        go = bench.folder / "go"
        handles = [await bench.start(waits(str(go), number)) for number in range(3)]
        await bench.until(handles, RUNNING)
        told = await asyncio.to_thread(self.elsewhere, bench, handles, "poll")
        assert set(told["states"].values()) == {"RUNNING"}
        go.touch()
        told = await asyncio.to_thread(self.elsewhere, bench, handles, "collect")
        assert told["ok"] == {handle.key: True for handle in handles}
        here = await bench.outcomes(handles)
        assert told["digests"] == {key: outcome.digest for key, outcome in here.items()}

    @driven("detached", "shared_files")
    async def test_a_second_process_cancels_by_handle_alone(self, bench: Bench) -> None:
        pulse = bench.folder / "pulse"
        handle = await bench.start(beats(str(pulse)))
        await bench.appears(pulse)
        told = await asyncio.to_thread(self.elsewhere, bench, [handle], "cancel")
        assert told["states"][handle.key] != "RUNNING"
        await bench.rests(pulse)
        await bench.until([handle])
