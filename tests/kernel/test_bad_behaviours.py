"""What plugins do wrong, each act in each method, all in one kernel that has to stay well.

Every act happens the first time that the method is called; after that the executor behaves. Its
tasks must then end as they should, each started once, and the others must not notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.kernel.fakes import FAST, Backend, fake
from tests.kernel.graphs import graph_of

from chelate.contracts.executor import JobHandle, Observation, Outcome, PollReport, Unknown
from chelate.errors import TransientError
from chelate.model import NodeStatus, Status

METHODS = ("run", "poll", "collect", "cancel", "find", "release", "open")
LIMITS = dataclasses.replace(FAST, call_timeout=1.0, absent_grace=30.0, find_grace=0.3)


def raising(make: Callable[[], BaseException]) -> Callable[..., Any]:
    async def act(*args: Any) -> Any:
        raise make()

    return act


async def hang(*args: Any) -> Any:
    await asyncio.sleep(3600)


async def answer_late(*args: Any) -> Any:
    await asyncio.sleep(2.5)


async def stop_the_loop(*args: Any) -> Any:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0)


async def cancel_everything(*args: Any) -> Any:
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(0)


async def cancel_another(*args: Any) -> Any:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    parts = [task for task in tasks if "forever" in repr(task.get_coro())]
    next(iter(parts)).cancel()
    await asyncio.sleep(0)


async def close_stdout(*args: Any) -> Any:
    sys.stdout.close()
    raise OSError("stdout is closed")


async def change_the_process(*args: Any) -> Any:
    os.environ["CHELATE_HOME"] = "/nowhere"
    raise OSError("the environment is another")


async def ruin_its_arguments(given: Any = None, *args: Any) -> Any:
    if isinstance(given, list):
        given.clear()
    raise OSError("the arguments are gone")


async def start_a_thread_that_dies(*args: Any) -> Any:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    raise TypeError


ACTS: dict[str, Callable[..., Any]] = {
    "raises": raising(lambda: ValueError("no")),
    "raises without a word": raising(ValueError),
    "raises itself in circles": raising(RecursionError),
    "is out of memory": raising(MemoryError),
    "raises BaseException": raising(lambda: BaseException("no")),
    "exits": raising(lambda: SystemExit(3)),
    "interrupts": raising(KeyboardInterrupt),
    "ends generators": raising(GeneratorExit),
    "cancels itself": raising(asyncio.CancelledError),
    "stops iterating": raising(StopAsyncIteration),
    "hangs": hang,
    "answers late": answer_late,
    "stops the loop": stop_the_loop,
    "cancels everything": cancel_everything,
    "cancels another": cancel_another,
    "closes stdout": close_stdout,
    "changes the process": change_the_process,
    "ruins its arguments": ruin_its_arguments,
    "starts a thread": start_a_thread_that_dies,
}


class Once:
    """An executor that does one wrong thing the first time one of its methods is called."""

    def __init__(self, name: str, method: str, act: Callable[..., Any]) -> None:
        self.method = method
        self.acted = 0
        self.backend = backend = Backend()
        if method == "cancel":
            backend.finish = lambda key, node: None
        self.executor = fake(backend, name=name.replace(" ", "_"), idempotent=True, limits=LIMITS)
        if method == "find":
            self._lose_answers()
        original = getattr(self.executor, method)

        async def call(executor: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.acted:
                self.acted += 1
                return await act(*args)
            return await original(executor, *args, **kwargs)

        async def stream(executor: Any, *args: Any) -> Any:
            if not self.acted:
                self.acted += 1
                await act(*args)
            async for item in original(executor, *args):
                yield item

        setattr(self.executor, method, stream if method in ("run", "collect") else call)

    def _lose_answers(self) -> None:
        backend, lost = self.backend, []

        async def run(executor: Any, jobs: Any) -> Any:
            for job in jobs:
                if job.key not in backend.jobs:
                    backend.start(job)
                lost.append(job.key)
                yield Unknown(job.key, "the connection broke")

        self.executor.run = run  # type: ignore[method-assign]


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("method", METHODS)
def test_whatever_a_plugin_does_once_its_tasks_end_and_nobody_notices(bench, monkeypatch, method):
    monkeypatch.setattr(sys, "stdout", open(os.devnull, "w"))  # noqa: PTH123, SIM115
    monkeypatch.setenv("CHELATE_HOME", os.environ.get("CHELATE_HOME", ""))
    bad = {act: Once(act, method, what) for act, what in ACTS.items()}
    kernel = bench(*(one.executor for one in bad.values()), fake(Backend(), name="well"))
    ids = {act: kernel.dispatch(graph_of([[], []], executor=act.replace(" ", "_"))) for act in bad}
    if method == "cancel":
        for dispatch_id in ids.values():
            kernel.until(lambda d=dispatch_id: kernel.gateway.record(d).counts.get("RUNNING") == 2)
            kernel.gateway.cancel(dispatch_id, None)
    begin = time.monotonic()
    assert kernel.run(graph_of([[], [0]], executor="well")).status is Status.COMPLETED
    assert time.monotonic() - begin < 5.0
    for act, dispatch_id in ids.items():
        kernel.until(lambda one=bad[act]: one.acted)
        record = kernel.wait(dispatch_id, 60.0)
        if method == "open" and record.status is Status.FAILED:
            # What cannot be opened refuses its tasks and says why; it is not tried again.
            assert "PLUGIN" in record.error, act
            continue
        expected = Status.CANCELLED if method == "cancel" else Status.COMPLETED
        assert record.status is expected, (act, record.error)
        assert set(bad[act].backend.starts.values()) == {1}, act
    assert kernel.run(graph_of([[], [0]], executor="well")).status is Status.COMPLETED


def answers(method: str, answer: Any) -> Callable[[type], None]:
    async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return answer

    async def stream(self: Any, *args: Any) -> Any:
        yield answer

    return lambda cls: setattr(cls, method, stream if method in ("run", "collect") else call)


def huge(job: Any) -> JobHandle:
    return JobHandle(job.key, "fake", "1", {"text": "x" * (1 << 20)}, (job.key,))


def bad_handle(make: Callable[[Any], Any]) -> Callable[[type], None]:
    from chelate.contracts.executor import Accepted

    async def run(self: Any, jobs: Any) -> Any:
        for job in jobs:
            yield Accepted(job.key, make(job))

    return lambda cls: setattr(cls, "run", run)


NEVER_RIGHT: dict[str, Callable[[type], None]] = {
    "run answers None": answers("run", None),
    "run answers for a stranger": answers("run", Unknown("x:0:1:y", "")),
    "run is no generator": lambda cls: setattr(cls, "run", lambda self, jobs: None),
    "run is a coroutine": lambda cls: setattr(cls, "run", hang),
    "the handle is None": bad_handle(lambda job: None),
    "the handle is a dict": bad_handle(lambda job: {"key": job.key}),
    "the handle is huge": bad_handle(huge),
    "the handle is no JSON": bad_handle(
        lambda job: JobHandle(job.key, "fake", "1", {"lock": threading.Lock()}, (job.key,))
    ),
    "the handle holds NaN": bad_handle(
        lambda job: JobHandle(job.key, "fake", "1", {"n": float("nan")}, (job.key,))
    ),
    "the handle's id is a number": bad_handle(lambda job: JobHandle(job.key, "fake", -1)),  # type: ignore[arg-type]
    "poll answers None": answers("poll", None),
    "poll answers a list": answers("poll", []),
    "poll answers half a report": answers("poll", PollReport(None, None)),  # type: ignore[arg-type]
    "poll covers nothing": answers("poll", PollReport(frozenset(), {})),
    "poll sees strangers": answers(
        "poll",
        PollReport(frozenset("x"), {"x": Observation("x", None)}),  # type: ignore[arg-type]
    ),
    "poll is no coroutine": lambda cls: setattr(cls, "poll", lambda self, handles: None),
    "collect answers None": answers("collect", None),
    "collect answers for a stranger": answers("collect", Outcome("x:0:1:y", True, b"")),
    "find answers a list": answers("find", []),
}


def test_what_is_never_right_completes_nothing_and_can_be_cancelled(bench):
    backends: dict[str, Backend] = {}
    classes = []
    for what, spoil in NEVER_RIGHT.items():
        backends[what] = Backend()
        cls = fake(backends[what], name=what.replace(" ", "_"), limits=LIMITS)
        spoil(cls)
        classes.append(cls)
    kernel = bench(*classes, fake(Backend(), name="well"))
    ids = {
        what: kernel.dispatch(graph_of([[]], executor=what.replace(" ", "_")))
        for what in NEVER_RIGHT
    }
    for _ in range(10):
        assert kernel.run(graph_of([[], [0]], executor="well")).status is Status.COMPLETED
    for what, dispatch_id in ids.items():
        counts = kernel.gateway.record(dispatch_id).counts
        assert what == "find answers a list" or not counts.get("COMPLETED"), what
        assert max(backends[what].starts.values(), default=0) <= 1, what
        kernel.gateway.cancel(dispatch_id, None)
    assert kernel.run(graph_of([[], [0]], executor="well")).status is Status.COMPLETED


async def refuse_to_be_cancelled(*args: Any) -> Any:
    for _ in range(3):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)


@pytest.mark.parametrize(
    ("act", "said"),
    [(refuse_to_be_cancelled, "did not answer"), (ACTS["cancels itself"], "cancelled from within")],
)
def test_a_cancel_that_never_answers_gives_its_reason(bench, act, said):
    backend = Backend()
    backend.finish = lambda key, node: None
    cls = fake(backend, limits=LIMITS)
    cls.cancel = lambda *args, force: act(*args)  # type: ignore[method-assign]
    kernel = bench(cls)
    dispatch_id = kernel.dispatch(graph_of([[]], executor="fake"))
    kernel.until(lambda: kernel.gateway.record(dispatch_id).counts.get("RUNNING") == 1)
    kernel.gateway.cancel(dispatch_id, None)
    kernel.until(lambda: said in (kernel.node(dispatch_id).error or ""))


def streaming(act: Callable[..., Any]) -> Callable[..., Any]:
    async def stream(*args: Any) -> Any:
        await act()
        yield

    return stream


@pytest.mark.parametrize("method", ["run", "collect"])
def test_a_stream_that_refuses_to_be_cancelled_holds_neither_its_lane_nor_the_process(
    bench, method
):
    backend = Backend()
    cls = fake(backend, idempotent=True, limits=LIMITS)
    honest, calls = getattr(cls, method), []

    async def first_stuck(self: Any, given: Any) -> Any:
        calls.append(given)
        if len(calls) == 1:
            await refuse_to_be_cancelled()
        async for item in honest(self, given):
            yield item

    setattr(cls, method, first_stuck)
    kernel = bench(cls)
    assert kernel.run(graph_of([[], [0]])).status is Status.COMPLETED
    assert set(backend.starts.values()) == {1}
    setattr(cls, method, streaming(refuse_to_be_cancelled))
    kernel.dispatch(graph_of([[]]))
    kernel.until(lambda: len(backend.jobs) == (3 if method == "collect" else 2))
    begin = time.monotonic()
    kernel.close()
    assert time.monotonic() - begin < 8.0


@pytest.mark.parametrize("act", [ACTS["raises"], hang, refuse_to_be_cancelled])
def test_a_cancelled_task_goes_without_an_outcome_that_cannot_be_fetched(bench, act):
    backend = Backend()
    limits = dataclasses.replace(LIMITS, absent_grace=3.0)
    kernel = bench(fake(backend, collect=streaming(act), limits=limits))
    dispatch_id = kernel.dispatch(graph_of([[]]))
    kernel.until(lambda: backend.starts)
    kernel.gateway.cancel(dispatch_id, None)
    kernel.until(lambda: "cannot be fetched" in (kernel.node(dispatch_id).error or ""))
    assert kernel.wait(dispatch_id, 60.0).status is Status.CANCELLED


def test_a_result_that_cannot_be_fetched_for_a_while_outlives_its_time_limit(bench):
    backend = Backend(finish=lambda key, node: None)
    broken = [True]
    limits = dataclasses.replace(LIMITS, absent_grace=0.5)
    cls = fake(backend, limits=limits)
    honest = cls.collect

    async def collect(self, handles):
        if broken:
            raise TransientError("no route")
        async for outcome in honest(self, handles):
            yield outcome

    cls.collect = collect
    kernel = bench(cls)
    dispatch_id = kernel.dispatch(graph_of([[]], timeout=1.0))
    kernel.until(lambda: kernel.node(dispatch_id).status is NodeStatus.RUNNING)
    backend.end()
    kernel.until(lambda: kernel.node(dispatch_id).cancel_tries >= 3)
    assert kernel.node(dispatch_id).status is NodeStatus.CANCELLING
    broken.clear()
    assert kernel.wait(dispatch_id).status is Status.COMPLETED
    assert set(backend.starts.values()) == {1}


def test_a_user_who_cancels_what_its_time_limit_ends_waits_for_no_outcome(bench):
    limits = dataclasses.replace(LIMITS, absent_grace=0.5)
    backend = Backend(finish=lambda key, node: None)
    kernel = bench(fake(backend, limits=limits, collect=streaming(ACTS["raises"])))
    dispatch_id = kernel.dispatch(graph_of([[]], timeout=1.0))
    kernel.until(lambda: kernel.node(dispatch_id).status is NodeStatus.RUNNING)
    backend.end()
    kernel.until(lambda: kernel.node(dispatch_id).cancel_tries >= 2)
    kernel.gateway.cancel(dispatch_id, None)
    assert kernel.wait(dispatch_id, 60.0).status is Status.CANCELLED


@pytest.mark.parametrize("delay", ["30", float("inf"), float("nan"), -1, None])
def test_a_plugin_that_asks_to_be_left_alone_for_no_time_is_asked_again(bench, delay):
    backend = Backend()
    cls = fake(backend, idempotent=True, limits=LIMITS)
    honest, calls = cls.run, []

    async def run(self, jobs):
        calls.append(jobs)
        if len(calls) == 1:
            raise TransientError("busy", retry_after=delay)
        async for answer in honest(self, jobs):
            yield answer

    cls.run = run
    assert bench(cls).run(graph_of([[]])).status is Status.COMPLETED


@pytest.mark.parametrize("act", [hang, ACTS["raises"], ACTS["exits"], ACTS["cancels itself"]])
def test_who_looks_at_a_running_task_sees_it_whatever_its_executor_says_of_its_output(bench, act):
    backend = Backend()
    backend.finish = lambda key, node: None
    cls = fake(backend, limits=LIMITS)
    cls.logs = act  # type: ignore[method-assign]
    kernel = bench(cls)
    dispatch_id = kernel.dispatch(graph_of([[]], executor="fake"))
    kernel.until(lambda: kernel.gateway.record(dispatch_id).counts.get("RUNNING") == 1)
    assert kernel.gateway.logs(dispatch_id, 0, "stdout") == b""
    kernel.gateway.cancel(dispatch_id, None)
    assert kernel.wait(dispatch_id, 60.0).status is Status.CANCELLED
