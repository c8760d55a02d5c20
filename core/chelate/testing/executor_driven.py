"""Tests of an executor as coroutines, each with the abilities that it needs of the backend."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pytest

from chelate.testing.executor_bench import Bench, MakeExecutor

__all__ = ["ABILITIES", "ExecutorTests", "driven"]

# What a backend may be unable to do: the contract's capabilities, and then the kit's own words.
ABILITIES: Mapping[str, str] = {
    "find": "jobs are looked up by key",
    "idempotent": "running a key twice is one job",
    "logs": "output can be read while the job runs",
    "packing": "a job may carry several tasks",
    "cancel_task": "one task of a packed job can be cancelled",
    "detached": "jobs outlive the process that started them",
    "claims": "a key can be kept from ever starting",
    "listing": "the jobs of a store can be listed",
    "holds": "large results stay where they were made until they are fetched",
    "crash": "a task that takes its process down is told from one that raised",
    "outage": "the way to the backend can be cut (override `outage`)",
    "output": "stdout and stderr are brought back",
    "queue": "jobs wait for one another (set `slots`)",
    "shared_files": "tasks and tests see the same files below tmp_path",
    "sublattice": "chelate is installed where tasks run",
    "trees": "a cancel reaches processes that a task has started",
}
CAPABILITIES = (
    "find", "idempotent", "logs", "packing", "cancel_task", "detached", "claims", "listing",
)  # fmt: skip

Scenario = Callable[[Any, Bench], Coroutine[Any, Any, None]]


def driven(*needs: str) -> Callable[[Scenario], Callable[[Any, Bench], None]]:
    """Make a test of a coroutine that drives an open executor; it skips only for named needs."""
    assert not set(needs) - set(ABILITIES)

    def wrap(scenario: Scenario) -> Callable[[Any, Bench], None]:
        async def whole(self: Any, bench: Bench) -> None:
            # An executor may know only when it is open.
            if "holds" in needs and not bench.executor.capabilities.holds:
                pytest.skip("cannot holds: by its capabilities, every result comes home")
            await scenario(self, bench)

        def test(self: Any, bench: Bench) -> None:
            for need in needs:
                if need in self.cannot:
                    pytest.skip(f"cannot {need}: {self.cannot[need]}")
            bench.drive(whole(self, bench))

        test.__name__ = scenario.__name__
        test.__qualname__ = scenario.__qualname__
        test.__doc__ = scenario.__doc__
        return test

    return wrap


class ExecutorTests:
    """Base of the kit's parts.

    Attributes:
        cannot: what the backend cannot do, and why: the words of ``ABILITIES``.
        slots: how many tasks of one slot run at once, where that is known.
        many: how many jobs are run at once in the test of many.
        names: how many hostile names are tried.
        patience: seconds to wait for what must come.
    """

    cannot: ClassVar[Mapping[str, str]] = {}
    slots: int | None = None
    many = 200
    names = 20
    patience = 60.0

    @pytest.fixture
    def bench(self, make_executor: MakeExecutor, tmp_path: Path) -> Bench:
        """The executor under test, on a bench with a folder of its own."""
        folder = tmp_path / f"kit-{uuid4().hex[:8]}"
        folder.mkdir()
        return Bench(make_executor, folder, self.patience)

    def outage(self, bench: Bench) -> Any:
        """A context in which nothing reaches the backend; jobs on it go on."""
        raise AssertionError("override outage(), or name 'outage' in cannot")
