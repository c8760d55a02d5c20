"""Claims, strays, and what a user reads while a backend does not answer."""

from __future__ import annotations

import asyncio
import dataclasses
import threading

import pytest
from tests.kernel.fakes import FAST, Backend, failure, fake, handle_of, lost_answer
from tests.kernel.graphs import chain, graph_of

from chelate.api import hookimpl
from chelate.contracts.executor import (
    Accepted,
    Capabilities,
    JobHandle,
    JobState,
    Outcome,
    Rejected,
)
from chelate.errors import ConfigError
from chelate.model import NodeStatus, Reason, Retry, Status

S = NodeStatus


def never(key, node):
    return None


def claiming(backend, **methods):
    """An executor whose workers claim; ``forbidden`` are the keys it was asked to keep back."""
    forbidden: list[str] = []

    async def forbid(self, keys):
        forbidden.extend(keys)
        return {key: JobHandle(key, "fake", "1", {}, (key,)) for key in keys if key in backend.jobs}

    methods.setdefault("forbid", forbid)
    executor = fake(backend, find=False, idempotent=True, **methods)
    executor.capabilities = Capabilities(idempotent=True, claims=True)
    return executor, forbidden


async def silent(self, jobs):
    raise ConnectionError("no route")
    yield


def test_a_cancel_of_what_nobody_answered_for_takes_the_claim(bench):
    executor, forbidden = claiming(Backend(), run=silent)
    kernel = bench(executor)
    dispatch_id = kernel.dispatch(chain(2))
    kernel.until(lambda: kernel.gateway.engine.troubles())
    kernel.gateway.cancel(dispatch_id, None)
    assert kernel.wait(dispatch_id).status is Status.CANCELLED
    assert kernel.node(dispatch_id).key in forbidden


def test_what_goes_without_its_outcome_has_its_claim_taken_first(bench):
    async def collect(self, handles):
        raise OSError("no such file")
        yield

    limits = dataclasses.replace(FAST, absent_grace=0.3)
    executor, forbidden = claiming(Backend(), collect=collect, limits=limits)
    kernel = bench(executor)
    dispatch_id = kernel.dispatch(graph_of([[], [], []]))
    kernel.until(lambda: kernel.gateway.record(dispatch_id).counts.get("SUBMITTED") == 3)
    kernel.gateway.cancel(dispatch_id, None)
    assert kernel.wait(dispatch_id).status is Status.CANCELLED
    assert {kernel.node(dispatch_id, node).key for node in range(3)} <= set(forbidden)


def test_whoever_holds_the_claim_is_followed(bench):
    backend = Backend(finish=never)
    executor, forbidden = claiming(backend, run=lost_answer(backend))
    kernel = bench(executor)
    dispatch_id = kernel.dispatch(chain(2))
    kernel.until(lambda: backend.jobs)
    kernel.gateway.cancel(dispatch_id, None)
    assert kernel.wait(dispatch_id).status is Status.CANCELLED
    assert forbidden
    assert {job.state for job in backend.jobs.values()} == {JobState.KILLED}


def test_a_cancel_waits_for_the_claim(bench):
    allowed = []

    async def forbid(self, keys):
        if not allowed:
            raise ConnectionError("head node is down")
        return {}

    executor, _ = claiming(Backend(), run=silent, forbid=forbid)
    kernel = bench(executor)
    dispatch_id = kernel.dispatch(graph_of([[]]))
    kernel.until(lambda: kernel.gateway.engine.troubles())
    kernel.gateway.cancel(dispatch_id, None)
    kernel.until(lambda: kernel.node(dispatch_id).cancel_tries >= 1)
    row = kernel.node(dispatch_id)
    assert row.status is S.CANCELLING
    assert "head node is down" in row.error
    allowed.append(True)
    assert kernel.wait(dispatch_id).status is Status.CANCELLED
    assert kernel.node(dispatch_id).error is None


def test_a_job_that_never_ran_is_lost_only_once_its_claim_is_taken(bench):
    backend = Backend(finish=never)
    executor, forbidden = claiming(backend)
    kernel = bench(executor)

    def queued(key, node):
        return None

    backend.finish = queued
    dispatch_id = kernel.dispatch(graph_of([[]], retry=Retry(infrastructure=0)))
    kernel.until(lambda: backend.jobs)
    backend.lose()
    assert kernel.wait(dispatch_id).status is Status.FAILED
    row = kernel.node(dispatch_id)
    assert row.reason == "LOST"
    assert row.started_at or row.key in forbidden


def test_a_second_request_that_is_refused_says_nothing_of_the_first(bench):
    backend = Backend(finish=never)
    calls = [0]

    async def run(self, jobs):
        calls[0] += 1
        for job in jobs:
            if calls[0] == 1:
                backend.start(job)
                raise ConnectionError("lost the answer")
            yield Rejected(job.key, Reason.QUOTA, "over the quota")

    executor, _ = claiming(backend, run=run)
    kernel = bench(executor)
    dispatch_id = kernel.dispatch(graph_of([[]]))
    kernel.until(lambda: kernel.node(dispatch_id).status is S.RUNNING)
    backend.end()
    assert kernel.wait(dispatch_id).status is Status.COMPLETED


def test_a_late_answer_to_a_look_up_does_not_bring_back_what_has_ended(bench):
    backend = Backend(finish=never)
    polled: list[str] = []
    asked, answer = threading.Event(), threading.Event()

    async def find(self, keys):
        asked.set()
        while not answer.is_set():
            await asyncio.sleep(0.01)
        return {key: [JobHandle(key, "fake", "1", {}, (key,))] for key in keys}

    async def poll(self, handles):
        polled.extend(handle.key for handle in handles)
        return await fake(backend).poll(self, handles)

    executor, _ = claiming(backend, run=lost_answer(backend), poll=poll)
    executor.find = find
    executor.capabilities = Capabilities(find=True, idempotent=True, claims=True)
    executor.limits = dataclasses.replace(executor.limits, call_timeout=60.0)
    kernel = bench(executor)
    dispatch_id = kernel.dispatch(graph_of([[]]))
    assert asked.wait(30.0)
    kernel.gateway.cancel(dispatch_id, None)
    assert kernel.wait(dispatch_id).status is Status.CANCELLED
    key = kernel.node(dispatch_id).key
    kernel.until(lambda: key in backend.released)
    before = polled.count(key)
    answer.set()
    backend.finish = lambda key, node: Outcome(key, True, b"1")
    executor.run = fake(backend).run
    assert kernel.wait(kernel.dispatch(graph_of([[]]))).status is Status.COMPLETED
    assert polled.count(key) == before


# -- strays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rubbish", [False, True])
def test_jobs_of_nobody_are_ended_and_counted(bench, rubbish):
    backend = Backend(finish=never)
    asked = []

    async def list_jobs(self, store):
        asked.append(store)
        if rubbish and len(asked) == 1:
            return 7
        return [JobHandle(key, "fake", "1", {}, (key,)) for key in backend.jobs]

    executor = fake(backend, list_jobs=list_jobs)
    executor.capabilities = Capabilities(find=True, listing=True)
    first = bench(executor)
    marks = []
    honest = executor.run

    async def run(self, jobs):
        marks.extend(job.store for job in jobs)
        async for answer in honest(self, jobs):
            yield answer

    executor.run = run
    dispatch_id = first.dispatch(graph_of([[]]))
    first.until(lambda: first.node(dispatch_id).status is S.RUNNING)
    first.close()
    stray = f"{dispatch_id}:0:9:deadbeef"
    backend.jobs[stray] = dataclasses.replace(next(iter(backend.jobs.values())), key=stray)
    second = bench(executor)
    second.gateway.engine.poke()
    second.until(lambda: backend.jobs[stray].state is JobState.KILLED)
    assert second.gateway.engine.strays() == {"fake": 1}
    assert second.node(dispatch_id).status is S.RUNNING
    assert set(asked) == set(marks)
    assert len(marks[0]) == 16
    backend.end()
    assert second.wait(dispatch_id).status is Status.COMPLETED


# -- reasons --------------------------------------------------------------------------------------


def test_a_cancel_that_lasts_says_why(bench):
    backend = Backend(finish=never)

    async def cancel(self, handles, *, force):
        raise TimeoutError("the controller is busy")

    kernel = bench(fake(backend, cancel=cancel))
    dispatch_id = kernel.dispatch(graph_of([[]]))
    kernel.until(lambda: kernel.node(dispatch_id).status is S.RUNNING)
    kernel.gateway.cancel(dispatch_id, None)
    kernel.until(lambda: kernel.node(dispatch_id).cancel_tries >= 2)
    row = kernel.node(dispatch_id)
    assert row.status is S.CANCELLING
    assert "the controller is busy" in row.error
    assert "2 times" in row.error
    for job in backend.jobs.values():
        job.state = JobState.KILLED
    assert kernel.wait(dispatch_id).status is Status.CANCELLED
    assert kernel.node(dispatch_id).cancel_tries >= 2


def test_a_cancel_whose_executor_cannot_be_made_any_more_says_why(bench):
    backend = Backend(finish=never)
    first = bench(fake(backend))
    dispatch_id = first.dispatch(graph_of([[], []]))
    first.until(lambda: first.gateway.record(dispatch_id).counts.get("RUNNING") == 2)
    first.close()

    def broken(self):
        raise ConfigError("the account was closed")

    second = bench(fake(backend, __init__=broken))
    second.gateway.engine.poke()
    second.until(lambda: "account was closed" in (second.node(dispatch_id).error or ""))
    assert second.node(dispatch_id).status is S.RUNNING
    second.gateway.cancel(dispatch_id, [0])
    second.until(lambda: second.node(dispatch_id).status is S.CANCELLING)
    second.until(lambda: "account was closed" in (second.node(dispatch_id).error or ""))
    second.close()
    third = bench(fake(backend))
    third.gateway.engine.poke()
    third.until(lambda: third.node(dispatch_id).status is S.CANCELLED)
    backend.end()
    assert third.wait(dispatch_id).status is Status.CANCELLED


def test_handles_are_stored_while_the_rest_of_the_batch_is_sent(bench):
    import asyncio

    backend = Backend(finish=never)

    async def run(self, jobs):
        for number, job in enumerate(jobs):
            if number:
                await asyncio.sleep(30)
            backend.start(job)
            yield Accepted(job.key, handle_of(job))

    executor = fake(backend, run=run, limits=dataclasses.replace(FAST, call_timeout=60.0))
    kernel = bench(executor)
    dispatch_id = kernel.dispatch(graph_of([[], []]))
    kernel.until(lambda: kernel.node(dispatch_id, 0).handle is not None, 10.0)


def test_the_site_may_say_why_a_task_failed(bench):
    class Site:
        @hookimpl
        def chelate_classify_failure(self, executor, observation, record):
            if executor.name == "fake" and "no" in observation.message and record.attempt == 1:
                return Reason.NODE_FAIL
            raise RuntimeError("the site's hook broke")

    backend = Backend(finish=lambda key, node: failure(key))
    kernel = bench(fake(backend))
    kernel.gateway.plugins.register(Site(), "site")
    record = kernel.run(graph_of([[]], retry=Retry(delay=0.0)))
    assert record.status is Status.FAILED
    row = kernel.node(record.dispatch_id)
    assert [entry["reason"] for entry in row.attempts] == ["NODE_FAIL"]
    assert (row.attempt, row.reason) == (2, "USER_ERROR")
