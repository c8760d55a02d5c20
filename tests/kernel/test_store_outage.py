"""A store that fails for a while: nothing is lost, nothing runs twice, and nobody hangs."""

from __future__ import annotations

import threading
import time

import pytest
from tests.kernel.fakes import Backend, fake
from tests.kernel.graphs import chain

from chelate.contracts.executor import JobState
from chelate.errors import MachineError, StoreUnavailableError
from chelate.model import NodeStatus, Status


@pytest.mark.parametrize("method", ["commit", "change_counter", "orphans", "cancel_requests"])
def test_a_store_that_fails_for_a_while_is_waited_for(bench, method):
    backend = Backend()
    kernel = bench(fake(backend))
    store = kernel.gateway.store
    assert kernel.run(chain(1)).status is Status.COMPLETED
    honest, left = getattr(store, method), [3]

    def failing(*args, **kwargs):
        left[0] -= 1
        if left[0] >= 0:
            raise StoreUnavailableError("database is locked")
        return honest(*args, **kwargs)

    setattr(store, method, failing)
    dispatch_id = kernel.dispatch(chain(4))
    kernel.gateway.engine.poke()
    assert kernel.wait(dispatch_id).status is Status.COMPLETED
    assert set(backend.starts.values()) == {1}
    kernel.until(lambda: left[0] <= 0)


def test_a_turn_that_meets_a_defect_is_taken_again_from_the_store(bench):
    backend = Backend()
    kernel = bench(fake(backend))
    store = kernel.gateway.store
    honest, left = store.commit, [1]

    def failing(*args):
        left[0] -= 1
        if left[0] >= 0:
            raise TypeError("a defect")
        return honest(*args)

    store.commit = failing
    record = kernel.run(chain(3))
    assert record.status is Status.COMPLETED
    assert set(backend.starts.values()) == {1}


def test_who_waits_is_told_when_nothing_can_be_stored(bench, monkeypatch, caplog):
    monkeypatch.setattr("chelate.kernel.outage._PATIENCE", 0.5)
    monkeypatch.setattr("chelate.gateway._STORE_LOOK", 0.1)
    backend = Backend(finish=lambda key, node: None)
    kernel = bench(fake(backend))
    store = kernel.gateway.store
    dispatch_id = kernel.dispatch(chain(2))
    kernel.until(lambda: backend.jobs)
    honest, broken = store.commit, [True]

    def failing(*args, **kwargs):
        if broken:
            raise StoreUnavailableError("The disk is full.")
        return honest(*args, **kwargs)

    store.commit = failing
    backend.end()
    for _ in range(2):
        begin = time.monotonic()
        with pytest.raises(StoreUnavailableError, match=r"stored for 0.5 s: The disk is full\. "):
            kernel.gateway.wait(dispatch_id)
        assert 0.5 <= time.monotonic() - begin < 5.0
    with pytest.raises(StoreUnavailableError, match="The disk is full"):
        kernel.gateway.wait_tasks(dispatch_id, [1])
    broken.clear()
    monkeypatch.setattr("chelate.kernel.outage._PATIENCE", 30.0)
    assert kernel.wait(dispatch_id).status is Status.COMPLETED
    assert caplog.text.count("Nothing goes on") == 1


def test_a_lost_job_is_cleaned_up_when_its_loss_is_stored(bench):
    """Whoever takes over before that asks for the job again."""
    backend = Backend(finish=lambda key, node: None)
    kernel = bench(fake(backend))
    dispatch_id = kernel.dispatch(chain(1))
    kernel.until(lambda: kernel.node(dispatch_id).status is NodeStatus.RUNNING)
    store = kernel.gateway.store
    honest, released = store.commit, []

    def failing(*args):
        released.append(list(backend.released))
        if len(released) < 4:
            raise StoreUnavailableError("database or disk is full")
        return honest(*args)

    store.commit = failing
    with backend.lock:
        for job in backend.jobs.values():
            job.state = JobState.KILLED
    kernel.until(lambda: len(backend.released) == 1)
    assert released[:4] == [[]] * 4


@pytest.mark.parametrize("method", ["commit", "cancel_requests", "change_counter", "orphans"])
@pytest.mark.parametrize(
    "raised", [ValueError("odd"), BaseException("odd"), SystemExit(3), KeyboardInterrupt()]
)
def test_a_store_that_raises_anything_ends_no_kernel(bench, method, raised):
    backend = Backend()
    kernel = bench(fake(backend))
    store = kernel.gateway.store
    assert kernel.run(chain(1)).status is Status.COMPLETED
    honest, raises = getattr(store, method), [True]

    def failing(*args, **kwargs):
        if threading.current_thread() is not threading.main_thread() and raises:
            raises.clear()
            raise raised
        return honest(*args, **kwargs)

    setattr(store, method, failing)
    dispatch_id = kernel.dispatch(chain(3))
    kernel.gateway.engine.poke()
    assert kernel.wait(dispatch_id).status is Status.COMPLETED
    kernel.until(lambda: not raises)
    assert kernel.run(chain(2)).status is Status.COMPLETED
    assert set(backend.starts.values()) == {1}


def test_a_dispatch_that_a_store_cannot_read_again_is_set_aside_and_no_other(bench):
    backend = Backend(finish=lambda key, node: None)
    kernel = bench(fake(backend))
    store = kernel.gateway.store
    bad, well = kernel.dispatch(chain(2)), kernel.dispatch(chain(2))
    for dispatch_id in (bad, well):
        kernel.until(lambda d=dispatch_id: kernel.node(d).status is NodeStatus.RUNNING)
    honest_commit, honest_read, raises = store.commit, store.dispatch, [True]

    def commit(*args):
        if raises:
            raises.clear()
            raise TypeError("odd")
        return honest_commit(*args)

    def read(dispatch_id):
        if dispatch_id == bad and threading.current_thread() is not threading.main_thread():
            raise SystemExit(3)
        return honest_read(dispatch_id)

    store.commit, store.dispatch = commit, read
    backend.end()
    assert kernel.wait(well).status is Status.COMPLETED
    with pytest.raises(MachineError, match="Its store raised SystemExit"):
        kernel.wait(bad)
