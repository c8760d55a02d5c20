"""The fake backend passes the kit, and misbehaves as told; the kernel gets through all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.kernel.conftest import Bench as Kernel
from tests.kernel.graphs import chain

from chelate.api import Accepted, Deferred, Outcome, Reason, Rejected, Unknown
from chelate.model import Status
from chelate.testing import ExecutorConformance, FakeBackend, FakeExecutor
from chelate.testing.executor_bench import Bench, value_of
from chelate.testing.executor_tasks import notes
from chelate.testing.fake_backend import FAULTS


class TestFake(ExecutorConformance):
    many = 30  # a process for each
    cannot: ClassVar = {"queue": "its jobs start at once"}

    @pytest.fixture
    def make_executor(self, tmp_path: Path) -> Callable[[], FakeExecutor]:
        FakeBackend(tmp_path / "backend")
        return lambda: FakeExecutor(str(tmp_path / "backend"))

    def outage(self, bench: Bench) -> Any:
        return bench.executor.backend.outage()


@pytest.mark.parametrize(
    ("kind", "outcome", "starts"),
    [
        ("drop_reply", Unknown, 1),
        ("late_delivery", Unknown, 1),
        ("server_error", Unknown, 0),
        ("throttle", Deferred, 0),
        ("outage", Deferred, 0),
        ("disk_full", Rejected, 0),
        ("duplicate", Accepted, 2),
        ("delay", Accepted, 1),
    ],
)
def test_a_faulty_start(tmp_path: Path, kind: str, outcome: type, starts: int) -> None:
    backend = FakeBackend(tmp_path / "backend")
    backend.inject(kind, "run", delay=0.2)
    bench = Bench(lambda: FakeExecutor(str(tmp_path / "backend")), tmp_path, 30.0)

    async def scenario() -> None:
        job = bench.job(notes(str(tmp_path / "ledger")), 1)
        (answer,) = await bench.run(job)
        assert isinstance(answer, outcome)
        if kind == "late_delivery":
            assert not backend.ledger("run")
        found = (await bench.executor.find([job.key])).get(job.key, ())
        while len(found) < starts:
            await asyncio.sleep(0.02)
            found = (await bench.executor.find([job.key])).get(job.key, ())
        assert len(found) == starts == backend.ledger("run")[job.key]
        (again,) = await bench.run(bench.job(lambda: 1))
        assert isinstance(again, Accepted), "a fault is over after its times"
        for handle in found:
            bench.handles[handle.key] = handle
            await bench.executor.cancel([handle], force=True)

    bench.drive(scenario())


def test_faulty_looks_and_results(tmp_path: Path) -> None:
    backend = FakeBackend(tmp_path / "backend")
    bench = Bench(lambda: FakeExecutor(str(tmp_path / "backend")), tmp_path, 30.0)

    async def scenario() -> None:
        handles = [await bench.start(lambda: "x" * 1000) for _ in range(4)]
        await bench.until(handles)
        backend.inject("half_covered", "poll")
        assert len((await bench.look(handles)).covered) == 2
        backend.inject("stale_listing", "poll")
        report = await bench.look(handles)
        assert (len(report.covered), len(report.seen)) == (4, 0)
        backend.inject("stale_listing", "find")
        assert await bench.executor.find([handles[0].key]) == {}
        backend.inject("truncated_output", "collect")
        with pytest.raises(AssertionError, match="digest"):
            value_of((await bench.collect(handles[:1])).popitem()[1])
        with backend.outage():
            report = await bench.look(handles)
            assert not report.covered
            assert report.errors
        assert len(await bench.collect(handles)) == 4

    bench.drive(scenario())


def test_every_fault_is_told_apart() -> None:
    assert len(set(FAULTS.values())) == len(FAULTS)


# What the kernel makes of each: every task ends well, and no attempt runs twice.
NIGHT = [
    ("drop_reply", "run", 2),
    ("late_delivery", "run", 1),
    ("server_error", "run", 2),
    ("throttle", "run", 2),
    ("outage", "poll", 3),
    ("half_covered", "poll", 3),
    ("stale_listing", "poll", 1),
    ("stale_listing", "find", 1),
    ("server_error", "collect", 2),
    ("delay", "collect", 1),
    ("outage", "find", 2),
    ("server_error", "release", 1),
]


@pytest.mark.parametrize(("kind", "call", "times"), NIGHT)
def test_the_kernel_gets_through_it(tmp_path: Path, kind: str, call: str, times: int) -> None:
    backend = FakeBackend(tmp_path / "backend", lambda task: Outcome(task.key, True, b"value"))

    class Night(FakeExecutor):
        name = "fake"

        def __init__(self) -> None:
            super().__init__(str(tmp_path / "backend"))

    kernel = Kernel(tmp_path / "home", Night)
    try:
        if call == "find":  # somebody has to have a reason to look something up
            backend.inject("drop_reply", "run")
        backend.inject(kind, call, times=times, delay=0.1)
        assert kernel.run(chain(3)).status is Status.COMPLETED
        assert set(backend.ledger("run").values()) == {1}
    finally:
        kernel.close()


def test_a_refusal_reaches_the_user(tmp_path: Path) -> None:
    backend = FakeBackend(tmp_path / "backend", lambda task: Outcome(task.key, True, b"value"))

    class Full(FakeExecutor):
        name = "fake"

        def __init__(self) -> None:
            super().__init__(str(tmp_path / "backend"))

    kernel = Kernel(tmp_path / "home", Full)
    try:
        backend.inject("disk_full", "run")
        ended = kernel.dispatch(chain(1))
        assert kernel.wait(ended).status is Status.FAILED
        assert kernel.node(ended).reason == Reason.DISK_FULL
        assert "disk is full" in (kernel.node(ended).error or "")
    finally:
        kernel.close()
