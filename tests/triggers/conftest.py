"""A home of its own for each test, and the services of these tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.services.postgres import postgres_server, postgres_url

import chelate

__all__ = ["postgres_server", "postgres_url"]


@pytest.fixture
def ct(tmp_path: Path) -> Iterator[Any]:
    chelate.configure(home=tmp_path / "home", poll_interval=0.1, progress="off")
    yield chelate
    chelate.configure(home=None, poll_interval=None, progress=None)
    left = [thread.name for thread in threading.enumerate() if "chelate-trig" in thread.name]
    deadline = time.monotonic() + 20
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [thread.name for thread in threading.enumerate() if "chelate-trig" in thread.name]
    assert not left, "threads of triggers outlive their kernel"


@pytest.fixture
def until() -> Callable[..., Any]:
    """Wait until something holds, and give it back."""

    def wait(condition: Callable[[], Any], patience: float = 60.0) -> Any:
        deadline = time.monotonic() + patience
        while not (found := condition()):
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.03)
        return found

    return wait


@pytest.fixture
def held(ct: Any) -> Callable[[], str]:
    """Dispatches that wait for a trigger."""

    @ct.lattice
    def waiting(value: int) -> int:
        return value

    return lambda: ct.dispatch(waiting, disable_run=True)(7)
