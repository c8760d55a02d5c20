"""The engine and its lanes over a real store, with executors that misbehave on purpose."""

from __future__ import annotations

import dataclasses
import re
import time

import pytest
from tests.kernel.fakes import FAST, Backend, failure, fake, handle_of, hang, lost_answer
from tests.kernel.graphs import chain, graph_of

from chelate.api import hookimpl
from chelate.contracts.executor import (
    Accepted,
    Deferred,
    JobHandle,
    JobState,
    Observation,
    Outcome,
    PollReport,
    Rejected,
)
from chelate.errors import RejectedError, TransientError
from chelate.model import NodeStatus, Reason, Retry, Status

S = NodeStatus


def never(key, node):
    return None


def test_a_graph_runs_to_its_end(bench):
    backend = Backend()
    kernel = bench(fake(backend))
    record = kernel.run(graph_of([[], [0], [0], [1, 2]]))
    assert record.status is Status.COMPLETED
    assert kernel.gateway.store.read(record.result.digest) == b"value"
    assert backend.nodes == {0: 1, 1: 1, 2: 1, 3: 1}
    kernel.until(lambda: len(backend.released) == 4)


def test_limits_are_respected(bench):
    backend = Backend(finish=never)
    limits = dataclasses.replace(FAST, max_in_flight=3)
    kernel = bench(fake(backend, limits=limits))
    dispatch_id = kernel.dispatch(graph_of([[]] * 10))
    kernel.until(lambda: len(backend.jobs) == 3)
    time.sleep(0.2)
    assert len(backend.jobs) == 3
    backend.end()
    assert kernel.wait(dispatch_id).status is Status.COMPLETED


def test_adopted_jobs_count_against_the_limit(bench):
    backend = Backend(finish=never)
    executor = fake(backend, limits=dataclasses.replace(FAST, max_in_flight=3))
    first = bench(executor)
    dispatch_id = first.dispatch(graph_of([[]] * 10))
    first.until(lambda: first.gateway.record(dispatch_id).counts.get("RUNNING") == 3)
    first.close()
    second = bench(executor)
    second.gateway.engine.poke()
    second.until(lambda: dispatch_id in second.gateway.engine.running())
    time.sleep(0.3)
    assert len(backend.jobs) == 3
    backend.end()
    assert second.wait(dispatch_id).status is Status.COMPLETED
    assert set(backend.starts.values()) == {1}


# -- lost answers ---------------------------------------------------------------------------------


def test_a_lost_answer_is_looked_up_and_nothing_runs_twice(bench):
    backend = Backend(finish=never)
    kernel = bench(fake(backend, run=lost_answer(backend)))
    dispatch_id = kernel.dispatch(graph_of([[], []]))
    kernel.until(lambda: kernel.gateway.record(dispatch_id).counts.get("RUNNING") == 2)
    backend.end()
    assert kernel.wait(dispatch_id).status is Status.COMPLETED
    assert set(backend.starts.values()) == {1}


def test_an_idempotent_backend_is_sent_the_same_key_again(bench):
    backend = Backend()
    kernel = bench(fake(backend, find=False, idempotent=True, run=lost_answer(backend, times=1)))
    record = kernel.run(graph_of([[]]))
    assert record.status is Status.COMPLETED
    assert list(backend.starts.values()) == [1]
    assert kernel.node(record.dispatch_id).attempt == 1


def test_resending_slows_down(bench):
    """A plugin whose run() always breaks must not be called in a tight loop."""
    calls = []

    async def run(self, jobs):
        calls.append(time.monotonic())
        raise ConnectionError("no route")
        yield

    kernel = bench(fake(Backend(), find=False, idempotent=True, run=run))
    dispatch_id = kernel.dispatch(graph_of([[]]))
    kernel.until(lambda: len(calls) >= 2)
    time.sleep(1.0)
    assert len(calls) <= 5
    assert "no route" in str(kernel.gateway.engine.troubles())
    kernel.gateway.cancel(dispatch_id, None)
    assert kernel.wait(dispatch_id).status is Status.CANCELLED


def test_a_blind_backend_says_uncertain_and_can_be_cancelled(bench):
    backend = Backend()
    kernel = bench(fake(backend, find=False, run=lost_answer(backend)))
    dispatch_id = kernel.dispatch(graph_of([[], [0]]))
    kernel.until(lambda: kernel.node(dispatch_id).status is S.UNCERTAIN)
    assert "cannot say" in kernel.node(dispatch_id).error
    kernel.gateway.cancel(dispatch_id, None)
    assert kernel.wait(dispatch_id).status is Status.CANCELLED
    assert list(backend.starts.values()) == [1]


def test_a_job_that_never_arrived_uses_up_its_budget_and_fails(bench):
    async def run(self, jobs):
        raise ConnectionError("no route to the head node")
        yield

    kernel = bench(fake(Backend(), run=run))
    record = kernel.run(graph_of([[]], retry=Retry(delay=0.0, infrastructure=2)))
    assert record.status is Status.FAILED
    assert "no route to the head node" in record.error
    assert kernel.node(record.dispatch_id).attempt == 3


def test_a_job_found_late_is_adopted(bench):
    backend = Backend(finish=never)
    looks = []

    async def find(self, keys):
        looks.append(keys)
        if len(looks) < 2:
            return {}
        return {key: [JobHandle(key, "fake", "1", {}, (key,))] for key in keys}

    executor = fake(backend, run=lost_answer(backend))
    executor.find = find
    kernel = bench(executor)
    dispatch_id = kernel.dispatch(graph_of([[]]))
    kernel.until(lambda: kernel.node(dispatch_id).status is S.RUNNING)
    backend.end()
    assert kernel.wait(dispatch_id).status is Status.COMPLETED
    assert list(backend.starts.values()) == [1]


def test_copies_of_one_job_are_cancelled(bench):
    backend = Backend(finish=never)

    async def find(self, keys):
        return {
            key: [JobHandle(key, "fake", name, {}, (key,)) for name in ("1", "2")] for key in keys
        }

    async def cancel(self, handles, *, force):
        backend.cancels.extend((handle.native_id, force) for handle in handles)

    executor = fake(backend, run=lost_answer(backend), cancel=cancel)
    executor.find = find
    kernel = bench(executor)
    dispatch_id = kernel.dispatch(graph_of([[]]))
    kernel.until(lambda: backend.cancels)
    assert backend.cancels == [("2", True)]
    backend.end()
    assert kernel.wait(dispatch_id).status is Status.COMPLETED


def test_run_that_hangs_is_given_up_and_looked_up(bench):
    backend = Backend(finish=never)

    async def run(self, jobs):
        for job in jobs:
            backend.start(job)
        await hang()
        yield

    kernel = bench(fake(backend, run=run))
    dispatch_id = kernel.dispatch(graph_of([[]]))
    kernel.until(lambda: kernel.node(dispatch_id).status is S.RUNNING)
    backend.end()
    assert kernel.wait(dispatch_id).status is Status.COMPLETED
    assert list(backend.starts.values()) == [1]


# -- absent is not done ---------------------------------------------------------------------------


def test_a_job_that_stays_absent_is_lost_and_tried_again(bench):
    backend = Backend(finish=never)
    kernel = bench(fake(backend))
    dispatch_id = kernel.dispatch(graph_of([[]], retry=Retry(delay=0.0)))
    kernel.until(lambda: kernel.node(dispatch_id).status is S.RUNNING)
    backend.lose()
    kernel.until(lambda: kernel.node(dispatch_id).attempt == 2)
    backend.end()
    assert kernel.wait(dispatch_id).status is Status.COMPLETED
    (entry,) = kernel.node(dispatch_id).attempts
    assert entry["reason"] == "LOST"


@pytest.mark.parametrize("fault", ["uncovered", "raises", "flickers", "rubbish"])
def test_a_poll_that_knows_nothing_changes_nothing(bench, fault):
    backend = Backend(finish=never)
    executor = fake(backend)
    honest = executor.poll
    polls = [0]

    async def poll(self, handles):
        polls[0] += 1
        if not 3 <= polls[0] < 7:
            return await honest(self, handles)
        if fault == "raises":
            raise ConnectionError("controller restarts")
        if fault == "rubbish":
            return {"jobs": "many"}
        if fault == "flickers" and polls[0] % 3:
            return PollReport(frozenset(handle.key for handle in handles), {})
        if fault == "flickers":
            return await honest(self, handles)
        return PollReport(frozenset(), {}, ("no answer",))

    executor.poll = poll
    kernel = bench(executor)
    dispatch_id = kernel.dispatch(graph_of([[]]))
    kernel.until(lambda: polls[0] >= 7)
    backend.end()
    assert kernel.wait(dispatch_id).status is Status.COMPLETED
    assert kernel.node(dispatch_id).attempt == 1


def test_a_short_job_does_not_wait_for_the_interval_of_a_long_one(bench):
    backend = Backend(finish=lambda key, node: None if node == 0 else Outcome(key, True, b"v"))
    limits = dataclasses.replace(FAST, poll_max=30.0, call_timeout=5.0)
    kernel = bench(fake(backend, limits=limits))
    long = kernel.dispatch(graph_of([[]]))
    kernel.until(lambda: kernel.node(long).status is S.RUNNING)
    time.sleep(2.0)
    begin = time.monotonic()
    assert kernel.run(graph_of({1: []})).status is Status.COMPLETED
    assert time.monotonic() - begin < 0.9
    backend.end()


# -- cancelling -----------------------------------------------------------------------------------


def test_a_running_job_is_cancelled_when_it_is_gone(bench):
    backend = Backend(finish=never)
    kernel = bench(fake(backend))
    dispatch_id = kernel.dispatch(chain(3))
    kernel.until(lambda: kernel.node(dispatch_id).status is S.RUNNING)
    kernel.gateway.cancel(dispatch_id, None)
    record = kernel.wait(dispatch_id)
    assert record.status is Status.CANCELLED
    assert record.counts == {"CANCELLED": 3}
    assert backend.nodes == {0: 1}


def test_a_cancel_right_after_the_dispatch_is_never_lost(bench):
    backend = Backend(finish=never)
    kernel = bench(fake(backend))
    for _ in range(20):
        dispatch_id = kernel.dispatch(chain(2))
        kernel.gateway.cancel(dispatch_id, None)
        assert kernel.wait(dispatch_id).status is Status.CANCELLED


def test_a_cancel_is_repeated_and_becomes_harsher(bench):
    backend = Backend(finish=never)

    async def cancel(self, handles, *, force):
        backend.cancels.extend((handle.key, force) for handle in handles)

    kernel = bench(fake(backend, cancel=cancel))
    dispatch_id = kernel.dispatch(graph_of([[]]))
    kernel.until(lambda: kernel.node(dispatch_id).status is S.RUNNING)
    begin = time.monotonic()
    kernel.gateway.cancel(dispatch_id, None)
    kernel.until(lambda: len(backend.cancels) >= 3)
    assert [force for _, force in backend.cancels[:3]] == [False, True, True]
    assert time.monotonic() - begin >= FAST.cancel_grace
    assert kernel.gateway.record(dispatch_id).status is Status.CANCELLING
    for job in backend.jobs.values():
        job.state = JobState.KILLED
    assert kernel.wait(dispatch_id).status is Status.CANCELLED


@pytest.mark.parametrize("fault", ["raises", "hangs", "exits"])
def test_a_failed_cancel_is_tried_again(bench, fault):
    backend = Backend(finish=never)
    executor = fake(backend)
    honest = executor.cancel
    calls = [0]

    async def cancel(self, handles, *, force):
        calls[0] += 1
        if calls[0] > 2:
            await honest(self, handles, force=force)
        elif fault == "hangs":
            await hang()
        elif fault == "exits":
            raise SystemExit(3)
        else:
            raise ConnectionError("no")

    executor.cancel = cancel
    kernel = bench(executor)
    dispatch_id = kernel.dispatch(graph_of([[]]))
    kernel.until(lambda: kernel.node(dispatch_id).status is S.RUNNING)
    kernel.gateway.cancel(dispatch_id, None)
    assert kernel.wait(dispatch_id).status is Status.CANCELLED


def three_cancelled(bench, executor):
    """Three tasks that had begun to run, and were asked to stop."""
    kernel = bench(executor)
    dispatch_id = kernel.dispatch(graph_of([[], [], []]))
    kernel.until(lambda: kernel.gateway.record(dispatch_id).counts.get("RUNNING") == 3)
    kernel.gateway.cancel(dispatch_id, None)
    return kernel, dispatch_id


def test_one_job_that_cannot_be_cancelled_keeps_no_other_alive(bench):
    backend = Backend(finish=never)
    executor = fake(backend)
    honest = executor.cancel

    async def cancel(self, handles, *, force):
        if any(backend.jobs[handle.key].node == 0 for handle in handles):
            raise PermissionError("not yours")
        await honest(self, handles, force=force)

    executor.cancel = cancel
    kernel, dispatch_id = three_cancelled(bench, executor)
    kernel.until(lambda: kernel.gateway.record(dispatch_id).counts.get("CANCELLED") == 2)
    assert kernel.gateway.record(dispatch_id).status is Status.CANCELLING
    backend.jobs.clear()
    assert kernel.wait(dispatch_id).status is Status.CANCELLED


def test_a_cancel_that_nobody_answers_is_not_repeated_job_by_job(bench):
    backend = Backend(finish=never)
    executor = fake(backend)
    honest = executor.cancel
    asked: list[int] = []

    async def cancel(self, handles, *, force):
        asked.append(len(handles))
        if len(asked) < 3:
            raise TransientError("The controller does not answer.")
        await honest(self, handles, force=force)

    executor.cancel = cancel
    kernel, dispatch_id = three_cancelled(bench, executor)
    assert kernel.wait(dispatch_id).status is Status.CANCELLED
    assert asked[:3] == [3, 3, 3]


def test_cancel_of_some_tasks_waits_for_them(bench):
    backend = Backend(finish=never)
    kernel = bench(fake(backend))
    dispatch_id = kernel.dispatch(graph_of([[], [0], []]))
    kernel.until(lambda: kernel.gateway.record(dispatch_id).counts.get("RUNNING") == 2)
    answer = kernel.gateway.cancel(dispatch_id, ["task_0"])
    kernel.gateway.wait_tasks(dispatch_id, answer.live)
    assert kernel.node(dispatch_id, 0).status is S.CANCELLED
    assert kernel.node(dispatch_id, 1).status is S.CANCELLED
    assert kernel.node(dispatch_id, 2).status is S.RUNNING
    backend.end()
    assert kernel.wait(dispatch_id).status is Status.CANCELLED


# -- plugins that misbehave -----------------------------------------------------------------------


def test_a_plugin_that_blocks_delays_nobody_else(bench):
    async def run(self, jobs):
        time.sleep(2.0)
        for job in jobs:
            yield Accepted(job.key, handle_of(job))

    backend = Backend()
    kernel = bench(fake(Backend(), name="stuck", run=run), fake(backend))
    stuck = kernel.dispatch(graph_of([[]], executor="stuck"))
    begin = time.monotonic()
    for _ in range(5):
        assert kernel.run(chain(2)).status is Status.COMPLETED
    assert time.monotonic() - begin < 1.9
    kernel.gateway.cancel(stuck, None)


def raising(error):
    async def run(self, jobs):
        raise error
        yield

    return run


def yielding(make):
    async def run(self, jobs):
        for job in jobs:
            yield make(job)

    return run


async def no_generator(self, jobs):
    return [Accepted(job.key, handle_of(job)) for job in jobs]


RUN_FAULTS = {
    "raises": (raising(RuntimeError("broken plugin")), "broken plugin"),
    "exits": (raising(SystemExit(1)), "SystemExit"),
    "interrupts": (raising(KeyboardInterrupt()), "KeyboardInterrupt"),
    "base exception": (raising(GeneratorExit()), "GeneratorExit|did not answer"),
    "no generator": (no_generator, "must yield"),
    "nothing": (yielding(lambda job: None), "unasked"),
    "strange key": (yielding(lambda job: Accepted("x", handle_of(job))), "unasked"),
    "no handle": (yielding(lambda job: Accepted(job.key, None)), "not the handle"),
    "text": (yielding(lambda job: Accepted(job.key, "7")), "not the handle"),
    "foreign handle": (
        yielding(lambda job: Accepted(job.key, JobHandle("k", "fake", "1"))),
        "not the handle",
    ),
    "not JSON": (
        yielding(lambda job: Accepted(job.key, JobHandle(job.key, "fake", "1", {"f": open}))),
        "not plain JSON",
    ),
    "huge": (
        yielding(
            lambda job: Accepted(job.key, JobHandle(job.key, "fake", "1", {"x": "y" * 10**6}))
        ),
        "KiB",
    ),
    "number as id": (
        yielding(lambda job: Accepted(job.key, JobHandle(job.key, "fake", -1))),
        "native_id",
    ),
    "no reason": (yielding(lambda job: Rejected(job.key, "because", "no")), "not a Reason"),
}


@pytest.mark.parametrize("fault", RUN_FAULTS)
def test_a_run_that_breaks_the_contract_is_named(bench, fault):
    run, words = RUN_FAULTS[fault]
    backend = Backend()
    kernel = bench(fake(Backend(), name="bad", run=run), fake(backend))
    record = kernel.run(graph_of([[], []], executor="bad", retry=Retry(infrastructure=0)))
    assert record.status is Status.FAILED
    assert re.search(words, record.error), record.error
    assert kernel.run(chain(2)).status is Status.COMPLETED


@pytest.mark.parametrize(
    "field", ["ok", "payload", "reason", "error", "stdout", "usage", "ended_at"]
)
def test_an_outcome_that_breaks_the_contract_fails_its_task_alone(bench, field):
    def finish(key, node):
        outcome = Outcome(key, node == 1, b"v", error=None)
        if node == 0:
            setattr(outcome, field, object())
        return outcome

    kernel = bench(fake(Backend(finish=finish)))
    record = kernel.run(graph_of([[], []]))
    assert record.status is Status.FAILED
    assert kernel.node(record.dispatch_id, 0).reason == "PLUGIN"
    assert field in kernel.node(record.dispatch_id, 0).error
    assert kernel.node(record.dispatch_id, 1).status is S.COMPLETED


@pytest.mark.parametrize("fault", ["raises", "hangs", "exits", "stranger", "silent", "rubbish"])
def test_a_collect_that_fails_for_one_job_starves_no_other(bench, fault):
    backend = Backend()
    executor = fake(backend)
    calls = [0]

    async def collect(self, handles):
        calls[0] += 1
        for handle in handles:
            job = backend.jobs[handle.key]
            if job.node == 0 and calls[0] < 6:
                if fault == "raises":
                    raise OSError("no such file")
                if fault == "exits":
                    raise SystemExit(1)
                if fault == "hangs":
                    await hang()
                if fault == "stranger":
                    yield Outcome("x:0:1:y", True, b"")
                if fault == "rubbish":
                    yield {"key": handle.key}
                continue
            yield job.outcome

    executor.collect = collect
    limits = dataclasses.replace(FAST, call_timeout=0.4, absent_grace=30.0)
    executor.limits = limits
    kernel = bench(executor)
    record = kernel.run(graph_of([[], [], []]))
    assert record.status is Status.COMPLETED
    assert set(backend.starts.values()) == {1}


def test_a_job_that_ends_without_any_outcome_fails(bench):
    async def collect(self, handles):
        return
        yield

    kernel = bench(fake(Backend(), collect=collect))
    record = kernel.run(graph_of([[]]))
    assert record.status is Status.FAILED
    assert "RESULT_MISSING" in record.error


def test_news_told_before_a_failing_collect_is_not_lost(bench):
    backend = Backend(finish=lambda key, node: None)
    executor = fake(backend)
    honest = executor.collect
    calls = [0]

    async def collect(self, handles):
        calls[0] += 1
        if calls[0] == 1:
            raise OSError("no such file")
        async for outcome in honest(self, handles):
            yield outcome

    executor.collect = collect
    kernel = bench(executor)
    dispatch_id = kernel.dispatch(graph_of([[], []]))
    kernel.until(lambda: kernel.gateway.record(dispatch_id).counts.get("RUNNING") == 2)
    for job in backend.jobs.values():
        if job.node == 0:
            job.state = JobState.KILLED
        else:
            job.outcome = Outcome(job.key, True, b"v")
            job.state = JobState.ENDED
    record = kernel.wait(dispatch_id)
    assert record.counts == {"FAILED": 1, "COMPLETED": 1}


def test_a_release_that_fails_hurts_nobody(bench):
    async def release(self, handles):
        raise OSError("disk gone")

    assert bench(fake(Backend(), release=release)).run(chain(4)).status is Status.COMPLETED


@pytest.mark.parametrize("where", ["__init__", "open"])
@pytest.mark.parametrize("error", [RuntimeError("bad option"), SystemExit(2)])
def test_an_executor_that_cannot_be_made_fails_its_tasks(bench, where, error):
    if where == "open":

        async def broken(self):
            raise error
    else:

        def broken(self):
            raise error

    kernel = bench(fake(Backend(), name="bad", **{where: broken}), fake(Backend()))
    record = kernel.run(graph_of([[], [0]], executor="bad"))
    assert record.status is Status.FAILED
    assert kernel.node(record.dispatch_id).reason == "PLUGIN"
    assert (str(error) if not isinstance(error, SystemExit) else "SystemExit") in record.error
    assert kernel.run(chain(2)).status is Status.COMPLETED


def test_an_executor_that_cannot_be_reached_yet_is_tried_again(bench):
    tries = [0]

    async def open_later(self):
        tries[0] += 1
        if tries[0] == 1:
            raise TransientError("VPN is down")

    kernel = bench(fake(Backend(), open=open_later))
    dispatch_id = kernel.dispatch(graph_of([[]]))
    kernel.until(lambda: kernel.gateway.engine.troubles())
    assert kernel.gateway.engine.troubles() == {"fake": "VPN is down"}
    assert kernel.wait(dispatch_id).status is Status.COMPLETED
    assert tries[0] == 2


def test_deferred_jobs_come_again_later(bench):
    backend = Backend()
    asked = [0]

    async def run(self, jobs):
        for job in jobs:
            asked[0] += 1
            if asked[0] == 1:
                yield Deferred(job.key, "queue full", 0.05)
            else:
                yield Accepted(job.key, backend.start(job))

    kernel = bench(fake(backend, run=run))
    record = kernel.run(graph_of([[]]))
    assert record.status is Status.COMPLETED
    assert kernel.node(record.dispatch_id).attempt == 1


@pytest.mark.parametrize("how", ["deferred", "raised"])
def test_a_task_that_is_put_off_says_why(bench, how):
    backend = Backend()
    away = [True]

    async def run(self, jobs):
        if away[0] and how == "raised":
            raise TransientError("VPN is down", retry_after=0.05)
        for job in jobs:
            if away[0]:
                yield Deferred(job.key, "VPN is down", 0.05)
            else:
                yield Accepted(job.key, backend.start(job))

    kernel = bench(fake(backend, run=run))
    dispatch_id = kernel.dispatch(graph_of([[]]))
    kernel.until(lambda: kernel.node(dispatch_id).error == "VPN is down")
    seen = {kernel.node(dispatch_id).error for _ in range(200)}
    assert seen == {"VPN is down"}, "it must not come and go"
    away[0] = False
    assert kernel.wait(dispatch_id).status is Status.COMPLETED
    assert kernel.node(dispatch_id).error is None


def test_a_policy_refuses_a_batch(bench):
    class Policy:
        @hookimpl
        def chelate_before_run(self, executor, jobs):
            if executor.name == "dear":
                raise RejectedError("Too dear for this project.")

    backend = Backend()
    kernel = bench(fake(backend, name="dear"), fake(Backend()))
    kernel.gateway.plugins.register(Policy(), "policy")
    record = kernel.run(graph_of([[]], executor="dear"))
    assert record.status is Status.FAILED
    assert "Too dear for this project." in record.error
    assert not backend.starts
    assert kernel.run(graph_of([[]])).status is Status.COMPLETED


def test_observers_are_told_and_may_fail(bench):
    told = []

    class Observer:
        @hookimpl
        def chelate_tasks_changed(self, dispatch_id, changes):
            told.extend((row.node_id, str(row.status)) for row in changes)
            raise RuntimeError("observer broke")

        @hookimpl
        def chelate_dispatch_changed(self, change):
            told.append(str(change.status))

        @hookimpl
        def chelate_cancel_requested(self, dispatch_id, targets):
            told.append(("cancel", targets))

    backend = Backend()
    kernel = bench(fake(backend))
    kernel.gateway.plugins.register(Observer(), "observer")
    kernel.run(graph_of([[]]))
    kernel.until(lambda: "COMPLETED" in told)
    assert (0, "COMPLETED") in told
    backend.finish = never
    dispatch_id = kernel.dispatch(graph_of([[]]))
    kernel.gateway.cancel(dispatch_id, None)
    assert ("cancel", None) in told


# -- retries and limits of time -------------------------------------------------------------------


def test_retries_end_with_the_last_words(bench):
    kernel = bench(fake(Backend(finish=lambda key, node: failure(key))))
    record = kernel.run(graph_of([[]], retry=Retry(times=2, delay=0.05)))
    assert record.status is Status.FAILED
    assert "after 3 attempts" in record.error
    assert "flow.py:1" in record.error
    assert [a["attempt"] for a in kernel.node(record.dispatch_id).attempts] == [1, 2]


def test_a_time_limit_stops_the_job(bench):
    backend = Backend(finish=never)
    kernel = bench(fake(backend))
    record = kernel.run(graph_of([[]], timeout=0.3))
    assert record.status is Status.FAILED
    assert kernel.node(record.dispatch_id).reason == "TIMEOUT"
    assert "0.3 s" in record.error


def test_a_killed_job_says_why(bench):
    backend = Backend(finish=never)
    executor = fake(backend)

    async def poll(self, handles):
        seen = {h.key: Observation(h.key, JobState.KILLED, Reason.OOM, "9 GiB") for h in handles}
        return PollReport(frozenset(seen), seen)

    executor.poll = poll
    record = bench(executor).run(graph_of([[]]))
    assert "OOM" in record.error
    assert "9 GiB" in record.error
