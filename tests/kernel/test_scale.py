"""Ten thousand running tasks: taken over after a restart, and cancelled.

What is bounded is the work (seconds of a processor), which a busy machine does not change.
"""

from __future__ import annotations

import dataclasses
import time

import pytest
from tests.kernel.fakes import FAST, Backend, fake
from tests.kernel.graphs import graph_of

from chelate.model import Status

LIMITS = dataclasses.replace(
    FAST, max_in_flight=20_000, run_batch=1_000, poll_min=1.0, poll_max=1.0, call_timeout=30.0
)


@pytest.mark.parametrize(
    ("tasks", "adoption", "recording"),
    [(1_000, 5.0, 0.2), pytest.param(10_000, 5.0, 0.2, marks=pytest.mark.large)],
)
def test_running_tasks_are_adopted_and_cancelled(bench, tasks, adoption, recording):
    backend = Backend(finish=lambda key, node: None)
    executor = fake(backend, limits=LIMITS)
    first = bench(executor)
    dispatch_id = first.dispatch(graph_of([[]] * tasks))
    first.until(lambda: first.gateway.record(dispatch_id).counts.get("RUNNING") == tasks, 120.0)
    first.close()

    polled: set[str] = set()
    honest = executor.poll

    async def poll(self, handles):
        polled.update(handle.key for handle in handles)
        return await honest(self, handles)

    executor.poll = poll
    second = bench(executor)
    assert second.gateway.engine.kernel_id
    begin = time.process_time()
    second.gateway.engine.poke()
    second.until(lambda: len(polled) == tasks, 60.0)
    adopted = time.process_time() - begin
    assert len(backend.starts) == tasks
    assert set(backend.starts.values()) == {1}

    begin = time.thread_time()
    second.gateway.cancel(dispatch_id, None)
    whole = time.thread_time() - begin
    assert second.wait(dispatch_id, 120.0).status is Status.CANCELLED
    assert len({key for key, _ in backend.cancels}) == tasks
    assert adopted < adoption
    assert whole < recording


@pytest.mark.parametrize("tasks", [1_000, pytest.param(10_000, marks=pytest.mark.large)])
def test_cancelling_tasks_by_number_is_recorded_at_once(bench, tasks):
    backend = Backend(finish=lambda key, node: None)
    kernel = bench(fake(backend, limits=LIMITS))
    dispatch_id = kernel.dispatch(graph_of([[]] * (tasks + 1)))
    kernel.until(lambda: kernel.gateway.record(dispatch_id).counts.get("RUNNING", 0) > tasks, 120.0)
    begin = time.thread_time()
    kernel.gateway.store.request_cancel(dispatch_id, list(range(tasks)))
    recorded = time.thread_time() - begin
    kernel.gateway.engine.poke()
    kernel.gateway.wait_tasks(dispatch_id, list(range(tasks)))
    assert kernel.gateway.record(dispatch_id).status is Status.RUNNING
    assert recorded < 0.2
