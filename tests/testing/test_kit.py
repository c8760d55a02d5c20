"""The kit finds what it is for: each executor here breaks one promise, and one test says so."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from chelate.api import (
    Accepted,
    Capabilities,
    Job,
    JobHandle,
    JobState,
    Observation,
    Outcome,
    PollReport,
    RunOutcome,
)
from chelate.testing import ExecutorConformance, FakeBackend, FakeExecutor
from chelate.testing.executor_bench import Bench


class Kit(ExecutorConformance):
    __test__ = False
    many = 10

    def outage(self, bench: Bench) -> Any:
        return bench.executor.backend.outage()


class Starts(FakeExecutor):
    """Starts a thread in its constructor."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        threading.Thread(target=len, args=[""]).start()


class Writes(FakeExecutor):
    """Writes a file in its constructor."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        Path(folder).with_name("trace").write_text("")


class Boasts(FakeExecutor):
    """Denies a capability that nobody has named."""

    capabilities = Capabilities(find=True)


class Opens(FakeExecutor):
    """Opens the values of its tasks."""

    async def _run(self, job: Job) -> RunOutcome:
        from chelate.client.codec import load_value

        for digest in job.tasks[0].inputs[1:]:
            load_value(job.blobs.read(digest))
        return await super()._run(job)


class Leaks(FakeExecutor):
    """Puts a secret of the environment into its handles."""

    def _handle(self, job: Any) -> JobHandle:
        handle = super()._handle(job)
        token = {"token": os.environ.get("KIT_API_TOKEN", "")}
        return JobHandle(handle.key, handle.executor, handle.native_id, token, handle.tasks)


class Drops(FakeExecutor):
    """Ignores what a task asks for."""

    async def _run(self, job: Job) -> RunOutcome:
        job.resources = type(job.resources)()
        return await super()._run(job)


class Guesses(FakeExecutor):
    """Takes silence for an end."""

    async def poll(self, handles: Sequence[JobHandle]) -> PollReport:
        report = await super().poll(handles)
        return PollReport(frozenset(handle.key for handle in handles), report.seen)


class Doubles(FakeExecutor):
    """Runs a key as often as it is told to."""

    async def _run(self, job: Job) -> RunOutcome:
        return Accepted(
            job.key, self._handle(self.backend.start(job, len(self.backend.jobs(job.key))))
        )


class Blind(FakeExecutor):
    """Finds nothing."""

    async def find(self, keys: Sequence[str]) -> Mapping[str, Sequence[JobHandle]]:
        return {}


class Lenient(FakeExecutor):
    """Says that a job is gone when it was only asked to go."""

    def _seen(self, key: str, job: Any, living: set[str]) -> Observation:
        if job.marked("cancelled"):
            return Observation(key, JobState.KILLED)
        return super()._seen(key, job, living)


class Deaf(FakeExecutor):
    """Cancels everybody."""

    async def cancel(self, handles: Sequence[JobHandle], *, force: bool) -> None:
        await super().cancel(handles, force=force)
        if handles:
            self.backend.end([key for job in self.backend.every() for key in job.tasks], force=True)


class Forgets(FakeExecutor):
    """Gives a result only once."""

    async def collect(self, handles: Sequence[JobHandle]) -> Any:
        async for outcome in super().collect(handles):
            yield outcome
        await self.release(handles)


class Remembers(FakeExecutor):
    """Knows its jobs in memory only."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.own: set[str] = set()

    async def _run(self, job: Job) -> RunOutcome:
        self.own.add(job.key)
        return await super()._run(job)

    def _job(self, handle: JobHandle) -> Any:
        return super()._job(handle) if handle.key in self.own else None


class Mute(FakeExecutor):
    """Loses the text of failures."""

    async def collect(self, handles: Sequence[JobHandle]) -> Any:
        async for outcome in super().collect(handles):
            yield outcome if outcome.ok else Outcome(outcome.key, False, reason=outcome.reason)


BROKEN = [
    (Starts, "test_the_constructor_does_nothing"),
    (Writes, "test_the_constructor_does_nothing"),
    (Boasts, "test_what_it_cannot_do_is_named"),
    (Opens, "test_no_process_but_the_worker_unpickles"),
    (Leaks, "test_no_secret_in_handles_and_command_lines"),
    (Guesses, "test_a_failed_query_changes_nothing"),
    (Doubles, "test_one_key_is_one_run"),
    (Blind, "test_a_job_is_found_by_its_key"),
    (Lenient, "test_a_whole_tree_of_processes"),
    (Deaf, "test_neighbours_are_untouched"),
    (Forgets, "test_collect_repeats_until_release"),
    (Remembers, "test_a_second_process_polls_and_collects_by_handle_alone"),
    (Mute, "test_an_exception_comes_with_traceback_and_object"),
]


@pytest.mark.parametrize(
    ("broken", "test"), BROKEN, ids=lambda item: getattr(item, "__name__", None)
)
def test_a_broken_promise_is_found(tmp_path: Path, broken: Any, test: str) -> None:
    folder = tmp_path / "backend"
    kit = Kit()
    kit.patience = 5.0
    for kind, sound in ((FakeExecutor, True), (broken, False)):
        FakeBackend(folder)

        def make(kind: Any = kind) -> FakeExecutor:
            return kind(str(folder))

        place = tmp_path / kind.__name__
        place.mkdir()
        method = getattr(kit, test)
        given = make if "constructor" in test or "named" in test else Bench(make, place, 5.0)
        if sound:
            method(given)
        else:
            with pytest.raises((AssertionError, OSError, KeyError)):
                method(given)


def test_dropped_resources_are_found(tmp_path: Path) -> None:
    bench = Bench(lambda: Drops(str(tmp_path / "backend")), tmp_path, 20.0)
    with pytest.raises(AssertionError, match="dropped"):
        Kit().test_resources_are_honoured_or_refused_never_dropped(bench, "gpus")


def test_only_what_is_named_is_skipped(tmp_path: Path) -> None:
    class Poor(Kit):
        cannot = {"logs": "the service shows output only at the end"}  # noqa: RUF012

    bench = Bench(lambda: FakeExecutor(str(tmp_path / "backend")), tmp_path, 20.0)
    with pytest.raises(pytest.skip.Exception, match="cannot logs: the service shows"):
        Poor().test_logs_while_it_runs_by_offset(bench)
    Poor().test_polling_nothing(bench)
    assert json.dumps(bench.executor.ref().to_json())
