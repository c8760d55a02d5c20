"""The kernel's own threads for short work."""

from __future__ import annotations

import threading
import time

import pytest

from chelate.kernel.pool import Helpers


def threads(name: str) -> int:
    return sum(thread.name.startswith(name) for thread in threading.enumerate())


@pytest.mark.parametrize("before", [0, 1, 3])
def test_what_comes_after_the_end_is_done_and_leaves_no_thread(before: int) -> None:
    helpers = Helpers("late-help")
    gate = threading.Event()
    running = [helpers.submit(gate.wait, 30) for _ in range(before)]
    helpers.shutdown()
    late = [helpers.submit(lambda number=number: number) for number in range(5)]
    assert [future.result(30) for future in late] == [0, 1, 2, 3, 4]
    gate.set()
    assert [future.result(30) for future in running] == [True] * before
    helpers.shutdown()
    deadline = time.monotonic() + 30
    while threads("late-help"):
        assert time.monotonic() < deadline, "threads are left"
        time.sleep(0.01)
