"""Conformance of the object itself: options, opening and closing, handles, starting."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from chelate.contracts.executor import (
    Accepted,
    Deferred,
    Executor,
    JobHandle,
    JobState,
    Rejected,
)
from chelate.model import ExecutorRef, Reason, Resources
from chelate.testing.executor_bench import ANY_STATE, Bench, MakeExecutor, value_of
from chelate.testing.executor_driven import ABILITIES, CAPABILITIES, ExecutorTests, driven
from chelate.testing.executor_tasks import notes, waits

__all__ = ["ObjectTests"]

LARGEST_HANDLE = 4096
QUEUED = 5.0  # seconds after which a job that has not begun is believed to wait
HOSTILE = (
    "'; touch {canary}; '", '"; touch {canary}; "', "$(touch {canary})", "`touch {canary}`",
    "a\ntouch {canary}\n", "| touch {canary} #", "&& touch {canary}", "-rf /", "--help", "../../up",
    "größe ✓ 雪", "a b\tc", "%s%n{{}}", "\\", "*", "~root", "#SBATCH --hold", "\x1b[31mred",
    "x" * 300, " ",
)  # fmt: skip
ABSURD: dict[str, Any] = {
    "cpus": 10**6, "mem": "1000000G", "gpus": 10**5, "gpu_type": "no-such-gpu-of-anyone",
    "disk": "1000000000G", "nodes": 10**6,
}  # fmt: skip


class _Trap:
    """Hears of files, sockets and processes that this thread opens while it is set."""

    def __init__(self) -> None:
        self.thread = 0
        self.heard: list[str] = []
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.thread != threading.get_ident():
            return
        writes = event == "open" and str(arguments[1] or "r")[0] not in "r"
        if writes or event.startswith(("socket.", "subprocess.", "os.fork", "os.mkdir", "os.exec")):
            self.heard.append(f"{event}{arguments!r:.200}")


_TRAPS: list[_Trap] = []  # an audit hook stays for good, so one serves every test


class ObjectTests(ExecutorTests):
    """Part of the kit."""

    # -- the object ---------------------------------------------------------------------------

    def test_what_it_cannot_do_is_named(self, make_executor: MakeExecutor) -> None:
        executor = make_executor()
        assert set(self.cannot) <= set(ABILITIES), f"the kit knows {sorted(ABILITIES)}"
        assert all(len(reason) > 10 for reason in self.cannot.values()), "give a reason"
        able = {name for name in CAPABILITIES if getattr(executor.capabilities, name)}
        unnamed = set(CAPABILITIES) - able - set(self.cannot)
        assert not unnamed, f"capabilities says no to {sorted(unnamed)}; name them in cannot"
        assert not able & set(self.cannot), "capabilities promises what cannot denies"

    def test_a_name_and_limits(self, make_executor: MakeExecutor) -> None:
        executor = make_executor()
        assert executor.name
        assert executor.name == type(executor).name
        limits = executor.limits
        assert min(limits.max_in_flight, limits.run_batch, limits.poll_batch, limits.pack) >= 1
        assert 0 <= limits.poll_min <= limits.poll_max
        assert limits.call_timeout > 0
        assert executor.capabilities.packing or limits.pack == 1

    def test_options_are_json_and_make_an_equal_executor(self, make_executor: MakeExecutor) -> None:
        executor = make_executor()
        ref = executor.ref()
        assert ref.name == executor.name
        assert ExecutorRef.from_json(json.loads(json.dumps(ref.to_json()))) == ref
        assert type(executor)(**ref.options).ref() == ref

    def test_the_constructor_does_nothing(self, make_executor: MakeExecutor) -> None:
        options = make_executor().ref().options
        kind: type[Executor] = type(make_executor())
        if not _TRAPS:
            _TRAPS.append(_Trap())
        trap = _TRAPS[0]
        trap.heard.clear()
        start = threading.Thread.start

        def started(thread: threading.Thread) -> None:
            trap.heard.append(f"thread {thread.name}")
            start(thread)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading.Thread, "start", started)
            trap.thread = threading.get_ident()
            try:
                kind(**options)
            finally:
                trap.thread = 0
        assert not trap.heard, "the constructor may only store its options"

    @driven()
    async def test_opening_and_closing_twice(self, bench: Bench) -> None:
        await bench.executor.open()
        assert await bench.value(lambda: 1) == 1
        await bench.executor.close()
        await bench.executor.close()
        await bench.executor.open()
        bench.handles.clear()
        assert await bench.value(lambda: 2) == 2

    @driven("detached", "shared_files")
    async def test_closing_ends_no_job(self, bench: Bench) -> None:
        go = bench.folder / "go"
        handle = await bench.start(waits(str(go), 7))
        await bench.until([handle], frozenset({JobState.RUNNING}))
        await bench.executor.close()
        bench.executor = bench.make()
        await bench.executor.open()
        go.touch()
        assert value_of((await bench.outcomes([handle]))[handle.key]) == 7

    @driven()
    async def test_closing_an_unopened_one(self, bench: Bench) -> None:
        await bench.make().close()

    # -- handles ------------------------------------------------------------------------------

    @driven()
    async def test_every_job_is_answered_once(self, bench: Bench) -> None:
        jobs = [bench.job(lambda n=n: n) for n in range(5)]
        outcomes = await bench.run(*jobs)
        assert sorted(outcome.key for outcome in outcomes) == sorted(job.key for job in jobs)
        assert all(isinstance(outcome, (Accepted, Deferred)) for outcome in outcomes)
        assert await bench.run() == []

    @driven()
    async def test_handles_are_small_versioned_json(self, bench: Bench) -> None:
        job = bench.job(lambda: 5)
        (handle,) = await bench.accepted(job)
        text = json.dumps(handle.to_json(), allow_nan=False)
        assert len(text) <= LARGEST_HANDLE
        assert JobHandle.from_json(json.loads(text)) == handle
        assert handle.version >= 1
        assert (handle.key, handle.executor) == (job.key, bench.executor.name)
        assert tuple(handle.tasks) == (job.tasks[0].key,)
        assert isinstance(handle.native_id, str)
        again = JobHandle.from_json(json.loads(text))
        assert value_of((await bench.outcomes([again]))[job.key]) == 5

    @driven()
    async def test_no_secret_in_handles_and_command_lines(self, bench: Bench) -> None:
        planted = f"planted-{os.urandom(8).hex()}"
        seen = Path("/proc")

        def lines() -> str:
            found = []
            for entry in seen.iterdir() if seen.is_dir() else ():
                if entry.name.isdigit() and entry.name != str(os.getpid()):
                    try:
                        found.append((entry / "cmdline").read_bytes().decode(errors="replace"))
                    except OSError:
                        continue  # it has ended
            return "\n".join(found)

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KIT_API_TOKEN", planted)
            go = bench.folder / "go"
            handle = await bench.start(lambda a, w: (len(a), w()), planted, waits(str(go)))
            await bench.until([handle], ANY_STATE)
            assert planted not in json.dumps(handle.to_json())
            assert planted not in lines()
            go.touch()
            if "shared_files" not in self.cannot:
                found = await bench.outcomes([handle])
                assert value_of(found[handle.key]) == (len(planted), None)

    # -- refusing -----------------------------------------------------------------------------

    @pytest.mark.parametrize("option", ABSURD)
    def test_resources_are_honoured_or_refused_never_dropped(
        self, bench: Bench, option: str
    ) -> None:
        async def scenario() -> None:
            ledger = bench.folder / "ledger"
            job = bench.job(notes(str(ledger)), 1, resources=Resources(**{option: ABSURD[option]}))
            (outcome,) = await bench.run(job)
            if isinstance(outcome, Rejected):
                assert isinstance(outcome.reason, Reason)
                assert len(outcome.message.split()) > 3, "say what to do in a sentence"
            elif isinstance(outcome, Accepted):
                begun = ANY_STATE - {JobState.QUEUED}
                try:
                    seen = await bench.until([outcome.handle], begun, patience=QUEUED)
                    seen = await bench.until([outcome.handle])
                except AssertionError:
                    return  # it waits for a machine that there may be one day
                found = await bench.collect([outcome.handle])
                assert not any(item.ok for item in found.values()), f"{option} was dropped: {seen}"
            await bench.rests(ledger, 0.2)
            assert not ledger.exists()

        bench.drive(scenario())

    @driven()
    async def test_a_lost_input_is_told(self, bench: Bench) -> None:
        job = bench.job(lambda a: a, 1)
        (value,) = job.tasks[0].call["values"].values()
        (bench.folder / "values" / value).unlink()
        (outcome,) = await bench.run(job)
        if isinstance(outcome, Accepted):
            seen = await bench.until([outcome.handle])
            found = (await bench.collect([outcome.handle])).get(job.key)
            assert found is None or not found.ok
            said = seen[job.key]
            message = (found.error if found else said and said.message) or ""
        else:
            assert isinstance(outcome, (Deferred, Rejected))
            message = outcome.message
        assert len(message.split()) > 3

    @driven("shared_files")
    async def test_hostile_names_are_only_names(self, bench: Bench) -> None:
        canary = bench.folder / "canary"
        names = [name.replace("{canary}", str(canary)) for name in HOSTILE][: self.names]
        jobs = [bench.job(lambda name: name, name, name=name) for name in names]
        handles = await bench.accepted(*jobs)
        found = await bench.outcomes(handles)
        assert [value_of(found[job.key]) for job in jobs] == names
        assert not canary.exists()
