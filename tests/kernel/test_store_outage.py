"""A store that fails for a while: nothing is lost, nothing runs twice, and nobody hangs."""

from __future__ import annotations

import pytest
from tests.kernel.fakes import Backend, fake
from tests.kernel.graphs import chain

from chelate.errors import StoreUnavailableError
from chelate.model import Status


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
