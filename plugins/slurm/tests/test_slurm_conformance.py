"""The Slurm executor keeps to the contract, on a real cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.services.slurm import PROGRAMS, SlurmCluster

from chelate.testing import ExecutorConformance


class TestSlurm(ExecutorConformance):
    """Four jobs at once; the controller needs a second or so for each step of a job."""

    slots = 4
    many = 24
    names = 12
    patience = 120.0

    @pytest.fixture
    def make_executor(self, make_executor: Any, cluster: SlurmCluster) -> Any:
        """Four jobs fill the partition."""
        self.cluster = cluster
        return lambda: make_executor(partition="small", cpus_per_task=8)

    @contextmanager
    def outage(self, bench: Any) -> Iterator[None]:
        """No program of Slurm reaches the controller."""
        words = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
        for name in PROGRAMS:
            self.cluster.write_program(name, f"echo '{words}' >&2; exit 1")
        try:
            yield
        finally:
            self.cluster.write_wrappers()
