"""What comes due while no kernel runs."""

from __future__ import annotations

import time

from tests.kernel.fakes import Backend, fake
from tests.kernel.graphs import graph_of

from chelate.contracts.executor import Outcome
from chelate.model import NodeStatus, Reason, Retry, Status


def failed(key):
    return Outcome(key, False, reason=Reason.USER_ERROR, error="no")


def test_a_time_limit_that_passed_while_nobody_was_there_ends_the_task(bench):
    backend = Backend(finish=lambda key, node: None)
    kernel = bench(fake(backend))
    dispatch_id = kernel.dispatch(graph_of([[], [0]], timeout=1.5))
    kernel.until(lambda: kernel.node(dispatch_id).status is NodeStatus.RUNNING)
    due = kernel.node(dispatch_id).due
    kernel.close()
    kernel.until(lambda: time.time() > due)
    kernel = bench(fake(backend))
    kernel.gateway.engine.poke()
    assert kernel.wait(dispatch_id).status is Status.FAILED
    row = kernel.node(dispatch_id)
    assert row.reason == "TIMEOUT"
    assert "longer than its time limit of 1.5 s" in str(row.error)
    assert backend.cancels
    assert kernel.node(dispatch_id, 1).status is NodeStatus.SKIPPED


def test_a_task_that_ended_in_time_while_nobody_was_there_keeps_its_result(bench):
    backend = Backend(finish=lambda key, node: None)
    kernel = bench(fake(backend))
    dispatch_id = kernel.dispatch(graph_of([[]], timeout=1.5))
    kernel.until(lambda: kernel.node(dispatch_id).status is NodeStatus.RUNNING)
    due = kernel.node(dispatch_id).due
    kernel.close()
    backend.end()
    kernel.until(lambda: time.time() > due)
    kernel = bench(fake(backend))
    kernel.gateway.engine.poke()
    assert kernel.wait(dispatch_id).status is Status.COMPLETED
    assert set(backend.starts.values()) == {1}


def test_a_retry_that_came_due_while_nobody_was_there_begins_at_once(bench):
    outcomes: list[str] = []

    def finish(key, node):
        outcomes.append(key)
        return failed(key) if len(outcomes) == 1 else None

    backend = Backend(finish=finish)
    kernel = bench(fake(backend))
    dispatch_id = kernel.dispatch(graph_of([[]], retry=Retry(times=1, delay=2.0)))
    kernel.until(lambda: kernel.node(dispatch_id).status is NodeStatus.BACKOFF)
    due = kernel.node(dispatch_id).due
    kernel.close()
    kernel.until(lambda: time.time() > due)
    kernel = bench(fake(backend))
    kernel.gateway.engine.poke()
    begin = time.monotonic()
    kernel.until(lambda: len(outcomes) == 2)
    assert time.monotonic() - begin < 2.0
    backend.end()
    assert kernel.wait(dispatch_id).status is Status.COMPLETED
