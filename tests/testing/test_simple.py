"""The executor for authors who want less, as the kernel and its author see it."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.kernel.conftest import Bench as Kernel
from tests.testing.test_task_executor import STARTED, ProcessExecutor

import chelate as ct
from chelate.api import (
    Accepted,
    Deferred,
    JobState,
    Reason,
    Rejected,
    RejectedError,
    TaskCancelledError,
    TaskExecutor,
    TransientError,
)
from chelate.client.build import build_bundle
from chelate.testing.executor_bench import Bench, value_of
from chelate.testing.executor_tasks import beats, notes, waits


@pytest.fixture(autouse=True)
def reaped() -> Iterator[None]:
    yield
    while STARTED:
        STARTED.pop().wait(30)


def drive(executor: TaskExecutor, folder: Path, scenario: Callable[[Bench], Any]) -> None:
    executor.root = str(folder / "root")
    bench = Bench(lambda: executor, folder, 60.0)
    bench.drive(scenario(bench))


class Base(TaskExecutor):
    """Starts the command here; what differs is in ``before``."""

    name = "base"

    def before(self, task: Any) -> None:
        return None

    def run(self, task: Any) -> int:
        self.before(task)
        null = subprocess.DEVNULL
        STARTED.append(subprocess.Popen(task.command, stdin=null, stdout=null, stderr=null))
        return STARTED[-1].pid


def test_a_workflow_runs_and_is_cancelled(tmp_path: Path) -> None:
    class Rooted(ProcessExecutor):
        name = "rooted"

        def __init__(self) -> None:
            super().__init__(str(tmp_path / "root"))

    @ct.electron(executor="rooted")
    def add(a: int, b: int) -> int:
        return a + b

    pulse = tmp_path / "pulse"
    endless = ct.electron(beats(str(pulse)), executor="rooted")

    @ct.lattice
    def sums(a: int) -> int:
        return add(add(a, 1), 2)

    @ct.lattice
    def long() -> Any:
        return add(endless(), 1)

    kernel = Kernel(tmp_path / "home", Rooted)
    try:
        done = kernel.gateway.wait(kernel.gateway.accept(build_bundle(sums, (1,), {})), 60.0)
        assert done.status == "COMPLETED", done.error
        ended = kernel.gateway.accept(build_bundle(long, (), {}))
        kernel.until(lambda: pulse.exists(), 60.0)
        kernel.gateway.cancel(ended, None)
        assert kernel.gateway.wait(ended, 60.0).status == "CANCELLED"
        size = pulse.stat().st_size
        handle = kernel.node(ended).handle
        assert handle is not None
        assert set(handle["data"]) == {"job_handle"}
        assert pulse.stat().st_size == size
    finally:
        kernel.close()


def test_the_author_may_block_or_await(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Mixed(Base):
        name = "mixed"

        async def run(self, task: Any) -> Any:
            assert threading.current_thread() is threading.main_thread()
            seen.append(task.metadata)
            return {"pid": await asyncio.to_thread(Base.run, self, task)}

        def poll(self, task_metadata: Any, job_handle: Any) -> str:
            assert threading.current_thread() is not threading.main_thread()
            seen.append((task_metadata, job_handle))
            return "RUNNING"

        async def cancel(self, task_metadata: Any, job_handle: Any) -> None:
            seen.append((task_metadata, job_handle))

    async def scenario(bench: Bench) -> None:
        go = tmp_path / "go"
        handle = await bench.start(waits(str(go), 5))
        await bench.until([handle], frozenset({JobState.RUNNING}))
        go.touch()
        assert value_of((await bench.outcomes([handle]))[handle.key]) == 5
        told = seen[0]
        assert set(told) == {"dispatch_id", "node_id", "attempt"}
        assert all(item == (told, handle.data["job_handle"]) for item in seen[1:])
        assert handle.data["job_handle"].keys() == {"pid"}

    drive(Mixed(), tmp_path, scenario)


def test_a_slow_author_delays_no_other_call(tmp_path: Path) -> None:
    begun, gate = threading.Event(), threading.Event()

    class Slow(Base):
        name = "slow"

        def before(self, task: Any) -> None:
            begun.set()
            assert gate.wait(60)

    async def scenario(bench: Bench) -> None:
        first = asyncio.ensure_future(bench.accepted(bench.job(lambda: 1)))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        assert not (await bench.look([])).seen
        assert await bench.executor.find(["d:1:1:x"]) == {}
        assert not first.done()
        gate.set()
        assert value_of((await bench.outcomes(await first)).popitem()[1]) == 1

    drive(Slow(), tmp_path, scenario)


def test_who_hangs_holds_up_neither_the_others_nor_the_process(tmp_path: Path) -> None:
    gate = threading.Event()
    hung: list[Any] = []

    class Hangs(Base):
        name = "hangs"
        threads = 1

        def before(self, task: Any) -> None:
            if len(hung) < 4:
                hung.append(threading.current_thread())
                gate.wait()

    async def scenario(bench: Bench) -> None:
        for count in range(4):
            sending = asyncio.ensure_future(bench.run(bench.job(lambda: 1)))
            while len(hung) == count and not sending.done():
                await asyncio.sleep(0.01)
            assert not sending.done()
            sending.cancel()
            await asyncio.wait([sending])
        (outcome,) = await bench.run(bench.job(lambda: 1))
        assert isinstance(outcome, Deferred), outcome  # four wait for ever: that is enough
        assert "not returned" in outcome.message
        assert all(thread.daemon for thread in hung)
        gate.set()
        while any(thread.is_alive() for thread in hung):
            await asyncio.sleep(0.01)
        assert (
            value_of(
                (await bench.outcomes(await bench.accepted(bench.job(lambda: 1)))).popitem()[1]
            )
            == 1
        )

    try:
        drive(Hangs(), tmp_path, scenario)
    finally:
        gate.set()


def test_a_poll_that_wants_to_end_the_process_is_an_error(tmp_path: Path) -> None:
    class Exits(Base):
        name = "exits"

        def poll(self, task_metadata: Any, job_handle: Any) -> str:
            raise SystemExit(3)

    async def scenario(bench: Bench) -> None:
        handle = await bench.start(beats(str(tmp_path / "pulse")))
        while not (tmp_path / "pulse").exists():
            await asyncio.sleep(0.01)
        report = await bench.look([handle])
        assert not report.covered
        assert "SystemExit(3)" in report.errors[0]
        await bench.executor.cancel([handle], force=True)

    drive(Exits(), tmp_path, scenario)


@pytest.mark.parametrize(
    ("raised", "kind", "reason"),
    [
        (TransientError("busy", retry_after=3.0), Deferred, None),
        (RejectedError("never"), Rejected, Reason.INVALID_SPEC),
        (OSError("no such program"), Rejected, Reason.LAUNCH_FAIL),
        (KeyError("a slip"), Rejected, Reason.PLUGIN),
        (TaskCancelledError("not today"), Rejected, Reason.CANCELLED_BY_USER),
        (SystemExit("out"), Rejected, Reason.PLUGIN),
        (KeyboardInterrupt("now"), Rejected, Reason.PLUGIN),
    ],
)
def test_what_run_raises_is_told(tmp_path: Path, raised: Any, kind: Any, reason: Any) -> None:
    class Raises(Base):
        name = "raises"

        def before(self, task: Any) -> None:
            raise raised

    async def scenario(bench: Bench) -> None:
        (outcome,) = await bench.run(bench.job(lambda: 1))
        assert isinstance(outcome, kind)
        assert str(raised.args[0]) in outcome.message
        assert getattr(outcome, "reason", None) is reason
        assert getattr(outcome, "delay", None) == getattr(raised, "retry_after", None)

    drive(Raises(), tmp_path, scenario)


def test_a_run_that_fails_after_it_started_something_is_found(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"

    class Late(Base):
        name = "late"

        def run(self, task: Any) -> int:
            Base.run(self, task)
            STARTED[-1].wait(60)
            raise ConnectionResetError("the answer was lost")

    async def scenario(bench: Bench) -> None:
        (outcome,) = await bench.run(bench.job(notes(str(ledger)), 1))
        assert isinstance(outcome, Accepted)
        assert value_of((await bench.outcomes([outcome.handle])).popitem()[1]) == 1
        assert ledger.read_text() == "1\n"

    drive(Late(), tmp_path, scenario)


def test_a_cancel_is_looked_for_before_each_step(tmp_path: Path) -> None:
    looks: list[int] = []

    class Careful(Base):
        name = "careful"

        def before(self, task: Any) -> None:
            assert task.cancel_requested
            task.check_cancelled()

    def cancelled() -> bool:
        looks.append(1)
        return len(looks) > 2  # not yet when it is prepared, nor when it is sent

    async def scenario(bench: Bench) -> None:
        (outcome,) = await bench.run(bench.job(lambda: 1, cancelled=cancelled))
        assert isinstance(outcome, Deferred)
        assert not STARTED

    drive(Careful(), tmp_path, scenario)


def test_a_job_that_the_backend_lost_is_absent(tmp_path: Path) -> None:
    class Loses(Base):
        name = "loses"
        known: Any = "QUEUED"

        def run(self, task: Any) -> str:
            return "queued for ever"

        def poll(self, task_metadata: Any, job_handle: Any) -> Any:
            if self.known is ...:
                raise ConnectionError("no route")
            return self.known

    executor = Loses()

    async def scenario(bench: Bench) -> None:
        handle = await bench.start(lambda: 1)
        report = await bench.look([handle])
        assert report.seen[handle.key].state is JobState.QUEUED
        executor.known = ...
        report = await bench.look([handle])
        assert not report.covered
        assert "no route" in report.errors[0]
        executor.known = None
        report = await bench.look([handle])
        assert report.covered == {handle.key}
        assert not report.seen

    drive(executor, tmp_path, scenario)


def test_resources_are_named_or_refused(tmp_path: Path) -> None:
    from chelate.api import Resources

    class Honest(Base):
        name = "honest"
        honours = ("cpus",)

        def before(self, task: Any) -> None:
            assert task.resources.cpus == 2

    async def scenario(bench: Bench) -> None:
        assert await bench.value(lambda: 1, resources=Resources(cpus=2)) == 1
        (outcome,) = await bench.run(bench.job(lambda: 1, resources=Resources(gpus=1)))
        assert isinstance(outcome, Rejected)
        assert "gpus=1" in outcome.message

    drive(Honest(), tmp_path, scenario)
