"""The base of remote executors passes the kit with this machine as its host."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

import chelate
from chelate.remote import DirectExecutor, Environment, HostSlots, JobHost, LocalTransport
from chelate.testing import ExecutorConformance


class HereExecutor(DirectExecutor):
    name = "here"

    def __init__(self, root: str) -> None:
        self.root = root

    def hosts(self) -> Sequence[HostSlots]:
        paths = {"PYTHONPATH": str(Path(chelate.__file__).parents[1])}
        environment = Environment(python=sys.executable, env_vars=paths)
        host = JobHost(LocalTransport(), root=self.root, environment=environment, grace=2.0)
        return [HostSlots(host, slots=8, mem=4096)]


@pytest.mark.large
class TestDirect(ExecutorConformance):
    many = 20
    cannot: ClassVar = {
        "outage": "nothing lies between it and its processes",
        "queue": "a job without a free slot is deferred, not queued",
    }

    @pytest.fixture
    def make_executor(self, tmp_path: Path) -> Callable[[], HereExecutor]:
        return lambda: HereExecutor(str(tmp_path / "root"))
