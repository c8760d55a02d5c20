"""Several kernels on one store: one owner per dispatch, adoption, and refusal of stale writes."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from contextlib import contextmanager

from tests.kernel.fakes import FAST, Backend, fake
from tests.kernel.graphs import chain, graph_of

from chelate.contracts.executor import Accepted, Capabilities, JobState, Outcome
from chelate.errors import StoreUnavailableError
from chelate.model import NodeStatus, Status

S = NodeStatus


def never(key, node):
    return None


@contextmanager
def asleep(engine):
    """The engine takes no turn, and never hears what its lanes say meanwhile."""
    receive, awake, sleeping = engine._receive, threading.Event(), threading.Event()

    def wait(seconds):
        sleeping.set()
        awake.wait(60)
        receive(0.0)
        engine._receive = receive
        return []

    engine._receive = wait
    engine.poke()
    assert sleeping.wait(10)
    try:
        yield
    finally:
        awake.set()


def test_two_kernels_share_a_home_and_run_everything_once(bench):
    backend = Backend()
    executor = fake(backend)
    one, two = bench(executor), bench(executor)
    ids = [kernel.dispatch(chain(4)) for _ in range(10) for kernel in (one, two)]
    for dispatch_id in ids:
        assert two.wait(dispatch_id).status is Status.COMPLETED
        assert one.wait(dispatch_id).status is Status.COMPLETED
    assert set(backend.starts.values()) == {1}
    assert len(backend.starts) == 80
    owners = {one.gateway.record(dispatch_id).owner for dispatch_id in ids}
    assert owners == {one.gateway.engine.kernel_id, two.gateway.engine.kernel_id}


def test_when_a_kernel_goes_another_adopts_its_running_jobs(bench):
    backend = Backend(finish=never)
    executor = fake(backend)
    one, two = bench(executor), bench(executor)
    dispatch_id = one.dispatch(chain(3))
    two.gateway.engine.poke()
    one.until(lambda: one.node(dispatch_id).status is S.RUNNING)
    one.close()
    two.until(lambda: dispatch_id in two.gateway.engine.running())
    backend.end()
    assert two.wait(dispatch_id).status is Status.COMPLETED
    assert set(backend.starts.values()) == {1}


def test_a_kernel_that_lost_its_lock_writes_no_more(bench):
    backend = Backend(finish=never)
    executor = fake(backend)
    one, two = bench(executor), bench(executor)
    dispatch_id = one.dispatch(chain(3))
    one.until(lambda: one.node(dispatch_id).status is S.RUNNING)
    one.gateway.store._database.locks.release()
    two.gateway.engine.poke()
    two.until(lambda: dispatch_id in two.gateway.engine.running())
    backend.end()
    assert two.wait(dispatch_id).status is Status.COMPLETED
    one.until(lambda: dispatch_id not in one.gateway.engine.running())
    assert set(backend.starts.values()) == {1}
    assert two.gateway.record(dispatch_id).epoch == 1
    again = one.run(chain(2))
    assert again.status is Status.COMPLETED
    assert again.owner == one.gateway.engine.kernel_id, "it became a kernel anew"


def test_a_kernel_that_gets_a_dispatch_back_reads_what_the_other_did(bench):
    """It was stopped, lost its lock, and wakes when its successor is gone as well."""
    backend = Backend(finish=never)
    executor = fake(backend)
    one, two = bench(executor), bench(executor)
    dispatch_id = one.dispatch(chain(3))
    one.until(lambda: one.node(dispatch_id).status is S.RUNNING)
    engine = one.gateway.engine
    with asleep(engine):
        one.gateway.store._database.locks.release()
        two.gateway.engine.poke()
        two.until(lambda: dispatch_id in two.gateway.engine.running())
        for job in list(backend.jobs.values()):
            job.state, job.outcome = JobState.ENDED, Outcome(job.key, True, b"value")
        two.until(lambda: two.node(dispatch_id, 1).status is S.RUNNING)
        two.close()
    engine.poke()
    one.until(lambda: one.gateway.record(dispatch_id).epoch == 2)
    one.until(lambda: dispatch_id in engine.running())
    backend.end()
    assert one.wait(dispatch_id).status is Status.COMPLETED
    assert set(backend.starts.values()) == {1}
    assert len(backend.starts) == 3


def test_what_is_read_again_after_an_outage_may_be_anothers_by_then(bench, monkeypatch):
    backend = Backend(finish=never)
    executor = fake(backend)
    one, two = bench(executor), bench(executor)
    dispatch_id = one.dispatch(chain(3))
    one.until(lambda: one.node(dispatch_id).status is S.RUNNING)
    engine = one.gateway.engine

    def outage(items):
        monkeypatch.undo()
        raise StoreUnavailableError("database or disk is full")

    with asleep(engine):
        one.gateway.store._database.locks.release()
        two.gateway.engine.poke()
        two.until(lambda: dispatch_id in two.gateway.engine.running())
        monkeypatch.setattr(engine, "_turn", outage)
    engine.poke()
    one.until(lambda: dispatch_id not in engine._live)
    assert dispatch_id not in engine.running()
    backend.end()
    assert one.wait(dispatch_id).status is Status.COMPLETED
    assert set(backend.starts.values()) == {1}
    assert two.gateway.record(dispatch_id).owner == two.gateway.engine.kernel_id


def test_an_adoption_whose_answer_was_lost_is_carried_out(bench):
    backend = Backend(finish=never)
    executor = fake(backend)
    one, two = bench(executor), bench(executor)
    dispatch_id = one.dispatch(chain(3))
    one.until(lambda: one.node(dispatch_id).status is S.RUNNING)
    store = two.gateway.store
    honest, answers = store.adopt, []

    def unheard(kernel_id, orphans):
        answers.append(honest(kernel_id, orphans))
        if len(answers) == 1:
            raise StoreUnavailableError("server closed the connection unexpectedly")
        return answers[-1]

    store.adopt = unheard
    one.close()
    two.gateway.engine.poke()
    two.until(lambda: dispatch_id in two.gateway.engine.running())
    backend.end()
    assert two.wait(dispatch_id).status is Status.COMPLETED
    assert answers[0] == [dispatch_id]
    assert two.gateway.record(dispatch_id).epoch == 1, "it was taken once"
    assert set(backend.starts.values()) == {1}


def test_a_kernel_that_only_lost_its_lock_goes_on_from_memory(bench):
    backend = Backend(finish=never)
    one = bench(fake(backend))
    dispatch_id = one.dispatch(chain(3))
    one.until(lambda: one.node(dispatch_id).status is S.RUNNING)
    engine = one.gateway.engine
    before = engine._live[dispatch_id]
    one.gateway.store._database.locks.release()
    kernel = engine.kernel_id
    two = bench(fake(backend))
    two.gateway.store._database.write(lambda link: two.gateway.store._sql().bury(link, [kernel]))
    engine.poke()
    one.until(lambda: one.gateway.record(dispatch_id).owner == engine.kernel_id != kernel)
    assert engine._live[dispatch_id] is before
    backend.end()
    assert one.wait(dispatch_id).status is Status.COMPLETED
    assert set(backend.starts.values()) == {1}


def test_a_cancel_from_another_kernel_reaches_the_owner(bench):
    backend = Backend(finish=never)
    executor = fake(backend)
    one, two = bench(executor), bench(executor)
    dispatch_id = one.dispatch(graph_of([[], [0], []]))
    one.until(lambda: one.gateway.record(dispatch_id).counts.get("RUNNING") == 2)
    two.gateway.cancel(dispatch_id, [0])
    two.gateway.wait_tasks(dispatch_id, [0, 1])
    assert two.node(dispatch_id, 2).status is S.RUNNING
    two.gateway.cancel(dispatch_id, None)
    assert two.wait(dispatch_id).status is Status.CANCELLED
    assert one.gateway.cancel(dispatch_id, None).sentence(True).endswith("ended: CANCELLED.")


def test_a_cancel_recorded_while_nobody_lives_is_carried_out(bench):
    backend = Backend(finish=never)
    executor = fake(backend)
    one = bench(executor)
    dispatch_id = one.dispatch(chain(2))
    one.until(lambda: one.node(dispatch_id).status is S.RUNNING)
    store = one.gateway.store
    one.gateway.engine.stop(5.0)
    store.request_cancel(dispatch_id, None)
    one.close()
    two = bench(executor)
    assert two.wait(dispatch_id).status is Status.CANCELLED
    assert [key for key, _ in backend.cancels]
    assert set(backend.starts.values()) == {1}


def test_what_a_lost_dispatch_starts_late_is_ended(bench):
    """A local task that run() was given before the takeover, and accepts after it."""
    backend, gate, asked = Backend(finish=never), threading.Event(), []

    async def run(self, jobs):
        for job in jobs:
            asked.append(job.key)
            late = len(asked) == 2
            while late and not gate.is_set():
                await asyncio.sleep(0.01)
            yield Accepted(job.key, backend.start(job))

    executor = fake(backend, run=run, limits=dataclasses.replace(FAST, call_timeout=60.0))
    executor.capabilities = Capabilities(detached=False, find=True)
    one, two = bench(executor), bench(executor)
    dispatch_id = one.dispatch(graph_of([[], []]))
    one.until(lambda: len(asked) == 2 and one.node(dispatch_id).status is S.RUNNING)
    one.gateway.store._database.locks.release()
    two.gateway.engine.poke()
    two.until(lambda: len(asked) == 3)
    ended = backend.jobs[asked[0]]
    ended.state, ended.outcome = JobState.ENDED, Outcome(ended.key, True, b"value")
    one.until(lambda: dispatch_id not in one.gateway.engine._live)
    gate.set()
    two.until(lambda: asked[1] in {key for key, _ in backend.cancels})
    backend.end()
    assert two.wait(dispatch_id).status is Status.COMPLETED
    assert asked[1] not in {row.key for row in two.gateway.store.nodes(dispatch_id)}


def test_what_a_kernel_ended_itself_and_got_back_is_not_cancelled(bench):
    """A woken kernel ends the local tasks that it lost, and their new owner dies before it."""
    backend = Backend(finish=never)
    executor = fake(backend)
    executor.capabilities = Capabilities(detached=False, find=True)
    one, two = bench(executor), bench(executor)
    dispatch_id = one.dispatch(graph_of([[], []]))
    one.until(lambda: one.node(dispatch_id, 1).status is S.RUNNING)
    engine = one.gateway.engine
    with asleep(engine):
        one.gateway.store._database.locks.release()
        two.gateway.engine.poke()
        two.until(lambda: dispatch_id in two.gateway.engine.running())
        two.close()
    engine.poke()
    one.until(lambda: one.gateway.record(dispatch_id).epoch == 2)
    one.until(lambda: len(backend.starts) == 4)
    backend.end()
    assert one.wait(dispatch_id).status is Status.COMPLETED
    assert len(backend.cancels) >= 2
    rows = one.gateway.store.nodes(dispatch_id)
    assert [attempt.get("counted") for row in rows for attempt in row.attempts] == [False] * 2
