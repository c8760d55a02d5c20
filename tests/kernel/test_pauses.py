"""Executors that cannot be used for a while: what their tasks do, and what the user is told."""

from __future__ import annotations

import logging
import time

import pytest
from tests.kernel.fakes import Backend, fake
from tests.kernel.graphs import graph_of

from chelate.contracts.executor import Accepted, Rejected
from chelate.errors import AuthenticationError, ConfigError
from chelate.kernel.lanes.report import Complaints
from chelate.model import NodeStatus, Reason, Status
from chelate.result import Result
from chelate.show.summary import result_as_text


@pytest.fixture
def pause(monkeypatch):
    """Sets how long refused credentials are left alone."""

    def lasts(seconds):
        for module in ("lane", "work", "calls"):
            monkeypatch.setattr(f"chelate.kernel.lanes.{module}.FIRST_PAUSE", seconds)

    return lasts


class Login:
    """An executor whose credentials are refused until they are mended."""

    def __init__(self, where):
        self.mended = False
        self.tries = []
        self.backend = backend = Backend()

        def refused():
            self.tries.append(time.monotonic())
            return not self.mended

        async def open_it(executor):
            if refused():
                raise AuthenticationError("The key has expired.")

        async def run(executor, jobs):
            no = refused()
            if no and where == "run":
                raise AuthenticationError("The key has expired.")
            for job in jobs:
                if no:
                    yield Rejected(job.key, Reason.AUTH, "The key has expired.")
                else:
                    yield Accepted(job.key, backend.start(job))

        methods = {"open": open_it} if where == "open" else {"run": run}
        self.executor = fake(backend, name="login", **methods)


@pytest.fixture(params=["open", "run", "answers"])
def login(request):
    return Login(request.param)


def test_refused_credentials_fail_no_task_and_are_tried_again_until_mended(
    bench, login, pause, caplog
):
    pause(0.3)
    kernel = bench(login.executor, fake(Backend(), name="well"))
    dispatch_id = kernel.dispatch(graph_of([[], [], [0]], executor="login"))
    kernel.until(lambda: "has expired" in str(kernel.node(dispatch_id).error))
    text = str(kernel.gateway.engine.troubles())
    assert "paused" in text
    assert "The key has expired. Mend that" in text
    shown = result_as_text(Result(kernel.gateway, kernel.gateway.record(dispatch_id)))
    assert "The executor is paused, because it is not let in" in shown
    kernel.until(lambda: len(login.tries) >= 3)
    waits = [b - a for a, b in zip(login.tries, login.tries[1:], strict=False)]
    assert waits[0] >= 0.29
    assert waits[1] >= 0.59
    assert kernel.gateway.record(dispatch_id).status is Status.RUNNING
    assert kernel.run(graph_of([[]], executor="well")).status is Status.COMPLETED
    login.mended = True
    assert kernel.wait(dispatch_id).status is Status.COMPLETED
    assert set(login.backend.starts.values()) == {1}
    row = kernel.node(dispatch_id)
    assert (row.attempt, row.attempts, row.error) == (1, [], None)
    assert kernel.gateway.engine.troubles() == {}
    assert caplog.text.count("is paused") == 1


def test_what_waits_for_credentials_is_cancelled_at_once(bench, login):
    kernel = bench(login.executor)
    dispatch_id = kernel.dispatch(graph_of([[], [0], []], executor="login"))
    kernel.until(lambda: kernel.gateway.engine.troubles() and kernel.node(dispatch_id).error)
    kernel.gateway.cancel(dispatch_id, [0])
    kernel.until(lambda: kernel.gateway.record(dispatch_id).counts.get("CANCELLED") == 2)
    kernel.gateway.cancel(dispatch_id, None)
    record = kernel.wait(dispatch_id, 10.0)
    assert record.status is Status.CANCELLED
    assert kernel.node(dispatch_id, 2).status is NodeStatus.CANCELLED
    assert not login.backend.starts
    assert len(login.tries) == 1


def test_the_next_dispatch_tries_the_credentials_again(bench, login, pause, monkeypatch):
    pause(0.3)
    kernel = bench(login.executor)
    first = kernel.dispatch(graph_of([[]], executor="login"))
    kernel.until(lambda: len(login.tries) >= 5)  # the next try would be 4.8 s from here
    login.mended = True
    begin = time.monotonic()
    assert kernel.run(graph_of([[]], executor="login")).status is Status.COMPLETED
    assert kernel.wait(first).status is Status.COMPLETED
    assert time.monotonic() - begin < 4.5


def test_an_executor_that_could_not_be_made_is_made_again_for_the_next_dispatch(bench):
    broken = [True]

    async def open_it(self):
        if broken:
            raise ConfigError("There is no partition 'long'.")

    kernel = bench(fake(Backend(), open=open_it))
    record = kernel.run(graph_of([[]]))
    assert record.status is Status.FAILED
    assert "There is no partition 'long'." in record.error
    assert kernel.run(graph_of([[]])).status is Status.FAILED
    broken.clear()
    assert kernel.run(graph_of([[], [0]])).status is Status.COMPLETED


def left_running(bench, monkeypatch):
    """A backend with a job whose kernel has ended, and its dispatch."""
    monkeypatch.setattr("chelate.kernel.lane_table._FIRST_WAIT", 0.2)
    backend = Backend(finish=lambda key, node: None)
    kernel = bench(fake(backend))
    dispatch_id = kernel.dispatch(graph_of([[], [0]]))
    kernel.until(lambda: kernel.node(dispatch_id).status is NodeStatus.RUNNING)
    kernel.close()
    return backend, dispatch_id


def test_tasks_of_an_executor_that_cannot_be_made_after_a_restart_wait_for_it(bench, monkeypatch):
    backend, dispatch_id = left_running(bench, monkeypatch)
    broken = [True]

    async def open_it(self):
        if broken:
            raise ConfigError("There is no partition 'long'.")

    kernel = bench(fake(backend, open=open_it))
    kernel.gateway.engine.poke()
    kernel.until(lambda: "no partition" in str(kernel.node(dispatch_id).error))
    assert kernel.node(dispatch_id).status is NodeStatus.RUNNING
    broken.clear()
    kernel.until(lambda: kernel.node(dispatch_id).error is None)
    backend.end()
    assert kernel.wait(dispatch_id).status is Status.COMPLETED
    assert set(backend.starts.values()) == {1}


def test_options_that_a_plugin_does_not_take_after_a_restart_are_named_and_its_tasks_wait(
    bench, monkeypatch
):
    backend, dispatch_id = left_running(bench, monkeypatch)
    kernel = bench(fake(backend), executors={"fake": {"partition": "long"}})
    kernel.gateway.engine.poke()
    said = (
        "Options of executor 'fake' (this process): FakeExecutor takes no options, not 'partition'"
    )
    kernel.until(lambda: said in str(kernel.node(dispatch_id).error))
    kernel.close()
    kernel = bench(fake(backend))
    kernel.gateway.engine.poke()
    backend.end()
    assert kernel.wait(dispatch_id).status is Status.COMPLETED
    assert set(backend.starts.values()) == {1}


def test_a_cancel_waits_for_the_plugin_that_is_missing_after_a_restart(bench, monkeypatch):
    backend, dispatch_id = left_running(bench, monkeypatch)
    kernel = bench()
    kernel.gateway.cancel(dispatch_id, None)
    kernel.until(lambda: "No executor is named 'fake'" in str(kernel.node(dispatch_id).error))
    assert kernel.node(dispatch_id).status is NodeStatus.CANCELLING
    assert kernel.node(dispatch_id, 1).status is NodeStatus.CANCELLED
    assert kernel.gateway.record(dispatch_id).status is Status.CANCELLING
    kernel.gateway.plugins.register_class(fake(backend))
    assert kernel.wait(dispatch_id).status is Status.CANCELLED
    assert backend.cancels
    assert kernel.node(dispatch_id).error is None


def test_a_complaint_that_lasts_is_repeated_ever_more_seldom(caplog):
    complaints = Complaints(logging.getLogger("chelate.lanes"), "Executor cluster")
    said = []
    with caplog.at_level(logging.WARNING, "chelate.lanes"):
        for moment in range(0, 4 * 3600, 10):
            before = len(caplog.records)
            complaints.say("no route", moment)
            if moment == 30:
                complaints.say("no name", moment)
                assert len(caplog.records) == before + 1
            elif len(caplog.records) > before:
                said.append(moment)
    assert said[:5] == [0, 60, 180, 420, 900]
    assert len(said) < 12
    with caplog.at_level(logging.WARNING, "chelate.lanes"):
        before = len(caplog.records)
        complaints.say("no route", 10 * 3600)
    assert len(caplog.records) == before + 1
