"""The Slurm executor keeps to the contract, on a real cluster."""

from __future__ import annotations

from typing import Any

import pytest

from chelate.testing import ExecutorConformance


class TestSlurm(ExecutorConformance):
    slots = 4
    cannot = {
        "outage": "records on the shared file system can be read while the controller is away"
    }

    @pytest.fixture
    def make_executor(self, make_executor: Any) -> Any:
        """Four jobs fill the partition."""
        return lambda: make_executor(partition="small", cpus_per_task=8)
