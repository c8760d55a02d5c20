"""Plugins that block their thread: their work goes on in another, and nobody else notices."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from tests.kernel.fakes import Backend, fake
from tests.kernel.graphs import graph_of

from chelate.contracts.executor import Accepted
from chelate.model import NodeStatus, Status

METHODS = ("run", "poll", "collect", "cancel", "find", "release")


@pytest.fixture
def block():
    event = threading.Event()
    yield event
    event.set()


class Blocking:
    """An executor one of whose methods blocks its thread the first time."""

    def __init__(self, method, block):
        self.backend = backend = Backend()
        if method == "cancel":
            backend.finish = lambda key, node: None
        self.blocked = []
        lost = []

        async def lose_first(executor, jobs):
            for job in jobs:
                handle = backend.start(job)
                if lost:
                    yield Accepted(job.key, handle)
                lost.append(job.key)

        methods = {"run": lose_first} if method == "find" else {}
        self.executor = fake(backend, name=method, **methods)
        original = getattr(self.executor, method)

        def stop_once():
            if not self.blocked:
                self.blocked.append(method)
                block.wait()

        async def call(executor, *args, **kwargs):
            stop_once()
            return await original(executor, *args, **kwargs)

        async def stream(executor, *args):
            async for item in original(executor, *args):
                stop_once()
                yield item

        setattr(self.executor, method, stream if method in ("run", "collect") else call)


def test_the_work_of_a_blocked_thread_goes_on_in_another(bench, block):
    all_of_them = {method: Blocking(method, block) for method in METHODS}
    well = fake(Backend(), name="well")
    kernel = bench(*(one.executor for one in all_of_them.values()), well)
    ids = {method: kernel.dispatch(graph_of([[], []], executor=method)) for method in all_of_them}
    cancelled = ids["cancel"]
    kernel.until(lambda: kernel.gateway.record(cancelled).counts.get("RUNNING") == 2)
    kernel.gateway.cancel(cancelled, None)
    begin = time.monotonic()
    assert kernel.run(graph_of([[]], executor="well")).status is Status.COMPLETED
    assert time.monotonic() - begin < 3.0
    for method, dispatch_id in ids.items():
        record = kernel.wait(dispatch_id, 60.0)
        expected = Status.CANCELLED if method == "cancel" else Status.COMPLETED
        assert record.status is expected, method
        kernel.until(lambda one=all_of_them[method]: one.blocked)
        assert set(all_of_them[method].backend.starts.values()) == {1}, method


def test_a_plugin_that_always_blocks_is_called_again_and_the_kernel_stays_well(bench, block):
    threads = set()

    async def run(self, jobs):
        threads.add(threading.get_ident())
        block.wait()
        yield

    kernel = bench(fake(Backend(), run=run, idempotent=True), fake(Backend(), name="well"))
    dispatch_id = kernel.dispatch(graph_of([[]]))
    kernel.until(lambda: len(threads) >= 2)
    assert kernel.run(graph_of([[]], executor="well")).status is Status.COMPLETED
    assert kernel.node(dispatch_id).status is not NodeStatus.COMPLETED


def test_of_many_tasks_of_a_silent_executor_only_one_is_waited_for(bench):
    backend = Backend(finish=lambda key, node: None)

    async def logs(self, handle, stream, offset, limit):
        await asyncio.sleep(3600)

    kernel = bench(fake(backend, logs=logs))
    dispatch_id = kernel.dispatch(graph_of([[]] * 20))
    kernel.until(lambda: kernel.gateway.record(dispatch_id).counts.get("RUNNING") == 20)
    begin = time.monotonic()
    for node in range(20):
        assert kernel.gateway.logs(dispatch_id, node, "stdout") == b""
    assert time.monotonic() - begin < 5.0  # the executor's call timeout is 1 s
    backend.end()
    assert kernel.wait(dispatch_id).status is Status.COMPLETED
