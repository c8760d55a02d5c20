"""The local executor passes the kit."""

from __future__ import annotations

from typing import ClassVar

import pytest

from chelate.executors.local import LocalExecutor
from chelate.testing.executor_conformance import ExecutorConformance, MakeExecutor


class TestLocal(ExecutorConformance):
    slots = 2
    cannot: ClassVar = {
        "cancel_task": "it runs one task per job",
        "claims": "a request cannot be on its way to the process that makes it",
        "detached": "its tasks end with the process that started them",
        "idempotent": "a key is known to the process that ran it, and to no other",
        "listing": "its tasks end with the process that started them",
        "outage": "nothing lies between it and its workers that could be cut",
        "packing": "its workers take tasks one by one at no cost",
    }

    @pytest.fixture
    def make_executor(self) -> MakeExecutor:
        return lambda: LocalExecutor(workers=2)
