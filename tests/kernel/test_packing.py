"""Ready tasks that travel together, and that end, fail and are cancelled one by one."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.kernel.fakes import FAST
from tests.kernel.graphs import graph_of

from chelate.contracts.executor import (
    Accepted,
    Capabilities,
    Executor,
    JobHandle,
    JobState,
    Observation,
    Outcome,
    PollReport,
    Unknown,
)
from chelate.errors import StoreUnavailableError
from chelate.kernel.engine import Engine
from chelate.kernel.lanes.carriers import Carriers, Flight
from chelate.model import NodeStatus, Reason, Retry, Status

LIMITS = dataclasses.replace(FAST, gather=0.1, pack=4, run_batch=100)


@dataclass
class Packs:
    """A backend of packed jobs; a test says how and when each task ends."""

    jobs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ended: dict[str, Outcome] = field(default_factory=dict)
    killed: set[str] = field(default_factory=set)
    starts: Counter[str] = field(default_factory=Counter)
    calls: list[int] = field(default_factory=list)
    cancels: list[Any] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    immediately: Any = None
    lost_answers: int = 0

    def end(self, *nodes: int, ok: bool = True, reason: Reason | None = None) -> None:
        for keys in list(self.jobs.values()):
            for key in keys:
                if int(key.split(":")[1]) in nodes and key not in self.ended:
                    self.ended[key] = Outcome(key, ok, b"v" if ok else None, reason=reason)

    def stop(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.ended.setdefault(key, Outcome(key, False, reason=Reason.CANCELLED_BY_USER))

    def carriers(self) -> list[set[int]]:
        return [{int(key.split(":")[1]) for key in keys} for keys in self.jobs.values()]


def executor_of(packs: Packs, *, cancel_task: bool = True, **limits: Any) -> type[Executor]:
    class Packing(Executor):
        name = "fake"
        capabilities = Capabilities(find=True, packing=True, cancel_task=cancel_task)

        async def run(self, jobs):
            packs.calls.append(len(jobs))
            for job in jobs:
                keys = tuple(task.key for task in job.tasks)
                packs.jobs[job.key] = keys
                packs.starts.update(keys)
                if packs.immediately is not None:
                    for key in keys:
                        packs.ended[key] = packs.immediately(key)
                if packs.lost_answers:
                    packs.lost_answers -= 1
                    yield Unknown(job.key, "the connection broke")
                else:
                    yield Accepted(job.key, JobHandle(job.key, "fake", "1", {}, keys))

        async def find(self, keys):
            found = {}
            for job, carried in packs.jobs.items():
                for key in set(keys) & set(carried):
                    found[key] = [JobHandle(job, "fake", "1", {}, carried)]
            return found

        async def poll(self, handles):
            seen = {}
            for handle in handles:
                over = frozenset(key for key in handle.tasks if key in packs.ended)
                state = JobState.RUNNING
                if len(over) == len(handle.tasks):
                    state = JobState.ENDED
                elif handle.key in packs.killed:
                    state = JobState.KILLED
                seen[handle.key] = Observation(
                    handle.key, state, reason=Reason.NODE_FAIL, ended=over, started_at=time.time()
                )
            return PollReport(frozenset(seen), seen)

        async def collect(self, handles):
            for handle in handles:
                for key in handle.tasks:
                    if key in packs.ended:
                        yield packs.ended[key]

        async def cancel(self, handles, *, force):
            for handle in handles:
                packs.cancels.append(handle.key)
                packs.stop(handle.tasks)

        async def cancel_tasks(self, handle, keys, *, force):
            packs.cancels.append(sorted(int(key.split(":")[1]) for key in keys))
            packs.stop(keys)

        async def release(self, handles):
            packs.released += [handle.key for handle in handles]

    Packing.limits = dataclasses.replace(LIMITS, **limits)
    return Packing


def started(packs: Packs, tasks: int) -> Any:
    return lambda: sum(map(len, packs.jobs.values())) == tasks


def test_equal_tasks_travel_in_packs_and_in_one_call(bench):
    packs = Packs(immediately=lambda key: Outcome(key, True, b"v"))
    kernel = bench(executor_of(packs))
    record = kernel.run(graph_of([[]] * 10))
    assert record.status is Status.COMPLETED
    assert packs.calls == [3]
    assert sorted(map(len, packs.jobs.values())) == [2, 4, 4]
    assert set(packs.starts.values()) == {1}
    kernel.until(lambda: sorted(packs.released) == sorted(packs.jobs))


def test_a_task_with_a_time_limit_travels_alone(bench):
    packs = Packs(immediately=lambda key: Outcome(key, True, b"v"))
    kernel = bench(executor_of(packs))
    kernel.run(graph_of([[]] * 3, timeout=60.0))
    assert [len(keys) for keys in packs.jobs.values()] == [1, 1, 1]


def test_what_depends_on_a_packed_task_need_not_wait_for_the_pack(bench):
    packs = Packs()
    kernel = bench(executor_of(packs))
    dispatch_id = kernel.dispatch(graph_of([[], [], [0]]))
    kernel.until(started(packs, 2))
    packs.end(0)
    kernel.until(started(packs, 3))
    assert packs.carriers() == [{0, 1}, {2}]
    assert packs.released == []
    packs.end(1, 2)
    assert kernel.wait(dispatch_id).status is Status.COMPLETED
    kernel.until(lambda: len(packs.released) == 2)


def test_one_failure_stops_none_of_the_others_and_is_retried_by_itself(bench):
    packs = Packs()
    kernel = bench(executor_of(packs))
    dispatch_id = kernel.dispatch(graph_of([[], [], []], retry=Retry(1, delay=0.0)))
    kernel.until(started(packs, 3))
    packs.end(1, ok=False, reason=Reason.USER_ERROR)
    kernel.until(started(packs, 4))
    assert packs.carriers() == [{0, 1, 2}, {1}]
    packs.end(0, 1, 2)
    assert kernel.wait(dispatch_id).status is Status.COMPLETED
    assert [kernel.node(dispatch_id, node).attempt for node in range(3)] == [1, 2, 1]


def test_a_dead_job_takes_only_the_tasks_without_a_result(bench):
    packs = Packs()
    kernel = bench(executor_of(packs))
    dispatch_id = kernel.dispatch(graph_of([[], [], []]))
    kernel.until(started(packs, 3))
    packs.end(0)
    kernel.until(lambda: kernel.node(dispatch_id, 0).status is NodeStatus.COMPLETED)
    packs.killed.update(packs.jobs)
    kernel.until(started(packs, 5))
    assert packs.carriers() == [{0, 1, 2}, {1, 2}]
    packs.end(1, 2)
    assert kernel.wait(dispatch_id).status is Status.COMPLETED


@pytest.mark.parametrize("helps", [True, False])
def test_a_packed_job_ends_only_when_all_its_tasks_are_cancelled(bench, helps):
    packs = Packs()
    kernel = bench(executor_of(packs, cancel_task=helps))
    dispatch_id = kernel.dispatch(graph_of([[], [], []]))
    kernel.until(started(packs, 3))
    kernel.until(lambda: kernel.gateway.record(dispatch_id).counts.get("RUNNING") == 3)
    kernel.gateway.cancel(dispatch_id, [1])
    if helps:
        kernel.until(lambda: kernel.node(dispatch_id, 1).status is NodeStatus.CANCELLED)
        assert packs.cancels == [[1]]
    else:
        kernel.until(lambda: kernel.node(dispatch_id, 1).status is NodeStatus.CANCELLING)
        assert packs.cancels == []
    packs.end(0)
    kernel.until(lambda: kernel.node(dispatch_id, 0).status is NodeStatus.COMPLETED)
    kernel.gateway.cancel(dispatch_id, [2])
    kernel.wait(dispatch_id)
    assert packs.cancels[-1] in packs.jobs
    statuses = [kernel.node(dispatch_id, node).status for node in range(3)]
    assert statuses == [NodeStatus.COMPLETED, NodeStatus.CANCELLED, NodeStatus.CANCELLED]


def test_a_lost_answer_of_a_pack_is_looked_up_by_its_tasks(bench):
    packs = Packs(lost_answers=1)
    kernel = bench(executor_of(packs))
    dispatch_id = kernel.dispatch(graph_of([[], [], []]))
    kernel.until(lambda: kernel.gateway.record(dispatch_id).counts.get("RUNNING") == 3)
    packs.end(0, 1, 2)
    assert kernel.wait(dispatch_id).status is Status.COMPLETED
    assert set(packs.starts.values()) == {1}
    kernel.until(lambda: packs.released == list(packs.jobs))


def test_a_pack_is_adopted_by_the_next_kernel(bench):
    packs = Packs()
    first = bench(executor_of(packs))
    dispatch_id = first.dispatch(graph_of([[], [], []]))
    first.until(lambda: first.gateway.record(dispatch_id).counts.get("RUNNING") == 3)
    packs.end(0)
    first.until(lambda: first.node(dispatch_id, 0).status is NodeStatus.COMPLETED)
    first.close()
    second = bench(executor_of(packs))
    second.gateway.engine.poke()
    second.until(lambda: dispatch_id in second.gateway.engine.running())
    packs.end(1, 2)
    assert second.wait(dispatch_id).status is Status.COMPLETED
    assert set(packs.starts.values()) == {1}
    second.until(lambda: packs.released == list(packs.jobs))


def test_outcomes_that_a_failed_turn_took_in_are_fetched_again(bench, monkeypatch):
    packs = Packs()
    kernel = bench(executor_of(packs))
    dispatch_id = kernel.dispatch(graph_of([[], []]))
    kernel.until(lambda: kernel.gateway.record(dispatch_id).counts.get("RUNNING") == 2)
    honest, failed = Engine._decide_and_store, []

    def fails_once(self: Engine, intake: Any, orders: Any) -> None:
        if intake.blobs and not failed:
            failed.append(True)
            raise StoreUnavailableError("The disk does not answer.")
        honest(self, intake, orders)

    monkeypatch.setattr(Engine, "_decide_and_store", fails_once)
    packs.end(0)
    kernel.until(lambda: kernel.node(dispatch_id, 0).status is NodeStatus.COMPLETED)
    assert failed
    packs.end(1)
    assert kernel.wait(dispatch_id).status is Status.COMPLETED
    kernel.until(lambda: packs.released == list(packs.jobs))


@dataclass
class Claimed(Packs):
    """Workers claim each task; ``claims`` says which job has it. Jobs are told apart by number."""

    claims: dict[str, str] = field(default_factory=dict)
    forbidden: list[str] = field(default_factory=list)

    def handle(self, number: str) -> JobHandle:
        keys = self.jobs[number]
        return JobHandle(keys[0], "fake", number, {}, keys)


def claiming(packs: Claimed) -> type[Executor]:
    """The first request for a pack is late: the job appears, and another is sent in its place."""

    class Claiming(executor_of(packs)):
        capabilities = Capabilities(idempotent=True, claims=True, packing=True, cancel_task=True)

        async def run(self, jobs):
            for job in jobs:
                number = str(len(packs.jobs))
                packs.jobs[number] = tuple(task.key for task in job.tasks)
                if number == "0":
                    yield Unknown(job.key, "the connection broke")
                else:
                    yield Accepted(job.key, packs.handle(number))

        async def poll(self, handles):
            seen = {}
            for handle in handles:
                mine = {key for key in handle.tasks if packs.claims.get(key) == handle.native_id}
                over = frozenset(mine & packs.ended.keys())
                state = JobState.RUNNING if mine - over else JobState.ENDED
                if not mine:
                    state = JobState.QUEUED
                if handle.native_id in packs.killed:
                    state = JobState.KILLED
                seen[handle.key] = Observation(
                    handle.key, state, reason=Reason.NODE_FAIL, ended=over, started_at=time.time()
                )
            assert len(seen) == len(handles), "two jobs of one key in one poll"
            return PollReport(frozenset(seen), seen)

        async def collect(self, handles):
            for handle in handles:
                for key in handle.tasks:
                    if key in packs.ended and packs.claims.get(key) == handle.native_id:
                        yield packs.ended[key]

        async def forbid(self, keys):
            packs.forbidden += [key for key in keys if key not in packs.claims]
            return {key: packs.handle(packs.claims[key]) for key in keys if key in packs.claims}

    return Claiming


def test_tasks_that_two_packs_carry_come_from_the_one_that_claimed_them(bench):
    packs = Claimed()
    kernel = bench(claiming(packs))
    dispatch_id = kernel.dispatch(graph_of([[], [], []]))
    kernel.until(started(packs, 6))
    assert packs.jobs["0"] == packs.jobs["1"]
    first, second, third = packs.jobs["0"]
    packs.claims.update({first: "0", second: "1", third: "0"})
    packs.end(0, 1, 2)
    assert kernel.wait(dispatch_id).status is Status.COMPLETED
    assert [kernel.node(dispatch_id, node).attempt for node in range(3)] == [1, 1, 1]


def test_what_a_dead_pack_never_began_is_kept_from_starting_in_another(bench):
    packs = Claimed()
    kernel = bench(claiming(packs))
    dispatch_id = kernel.dispatch(graph_of([[], []]))
    kernel.until(started(packs, 4))
    first, second = packs.jobs["1"]
    packs.claims[first] = "1"
    kernel.until(lambda: kernel.node(dispatch_id, 0).status is NodeStatus.RUNNING)
    packs.killed.add("1")
    kernel.until(lambda: kernel.node(dispatch_id, 1).attempt == 2)
    assert second in packs.forbidden


def test_a_job_is_ended_as_a_whole_when_nothing_else_can_run_in_it():
    """Of its three tasks one was brought, and one is expected of a job that was sent later."""
    flight = Flight(JobHandle("a", "fake", "1", {}, ("a", "b", "c")), "a", left={"a"})
    flight.brought.add("b")
    assert not flight.is_all({"a"})
    assert flight.is_all({"a", "c"})
    assert Flight(JobHandle("a", "fake", "1", {}, ("a",)), "a").is_all({"a"})


def test_a_packed_job_that_is_taken_over_needs_nothing_that_ended_elsewhere():
    """Its other tasks may be claimed, and brought, by a job that is cleaned up by now."""
    handle = JobHandle("a", "fake", "7", tasks=("a", "b", "c"))
    carriers = Carriers()
    carriers.take("a", handle, ["a", "c"], ["b"])
    assert "b" not in carriers
    assert carriers.let_go(["a"]) == []
    assert carriers.let_go(["c"]) == ["a"]
