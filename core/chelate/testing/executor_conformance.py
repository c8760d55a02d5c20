"""What every executor must do, as tests that an author of an executor runs on their own::

    from chelate.testing import ExecutorConformance

    class TestMine(ExecutorConformance):
        cannot = {"logs": "the service shows output only at the end"}

        @pytest.fixture
        def make_executor(self):
            return lambda: MyExecutor(queue="test")

``make_executor()`` gives a new, unopened executor on the same backend at each call within one
test. ``cannot`` names what the backend cannot do, and why, in the words of
``chelate.testing.executor_driven.ABILITIES``; nothing else is skipped, and nothing that
``capabilities`` denies may be left out of it.
"""

from __future__ import annotations

from chelate.testing.executor_bench import MakeExecutor
from chelate.testing.executor_cancelling import CancellingTests
from chelate.testing.executor_objects import ObjectTests
from chelate.testing.executor_packing import PackingTests
from chelate.testing.executor_results import ResultTests
from chelate.testing.executor_watching import WatchingTests

__all__ = ["ExecutorConformance", "MakeExecutor"]


class ExecutorConformance(ObjectTests, ResultTests, WatchingTests, PackingTests, CancellingTests):
    """Subclass it, and provide a fixture ``make_executor``; see ``ExecutorTests`` for the rest."""
