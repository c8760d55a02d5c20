"""The fake backend passes the kit, and misbehaves as it is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from chelate.testing import ExecutorConformance, FakeBackend, FakeExecutor
from chelate.testing.executor_bench import Bench


class TestFake(ExecutorConformance):
    many = 30  # a process for each
    cannot: ClassVar = {"queue": "its jobs start at once"}

    @pytest.fixture
    def make_executor(self, tmp_path: Path) -> Callable[[], FakeExecutor]:
        FakeBackend(tmp_path / "backend")
        return lambda: FakeExecutor(str(tmp_path / "backend"))

    def outage(self, bench: Bench) -> Any:
        return bench.executor.backend.outage()
