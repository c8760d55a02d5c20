"""Kits for authors of plugins: subclass one class, provide a factory, and get the tests.

:class:`ExecutorConformance` for executors, :class:`TriggerConformance` for triggers,
:class:`StoreConformance` for result stores; :class:`FakeBackend` and :class:`FakeExecutor` to see
what a kernel or a site's own code makes of a backend's faults. Needs pytest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chelate.testing.executor_conformance import ExecutorConformance as ExecutorConformance
    from chelate.testing.fake_backend import FakeBackend as FakeBackend
    from chelate.testing.fake_executor import FakeExecutor as FakeExecutor
    from chelate.testing.store_conformance import StoreConformance as StoreConformance
    from chelate.testing.trigger_conformance import TriggerConformance as TriggerConformance

__all__ = [
    "ExecutorConformance",
    "FakeBackend",
    "FakeExecutor",
    "StoreConformance",
    "TriggerConformance",
]

_HOMES = {
    "ExecutorConformance": "executor_conformance",
    "FakeBackend": "fake_backend",
    "FakeExecutor": "fake_executor",
    "StoreConformance": "store_conformance",
    "TriggerConformance": "trigger_conformance",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'chelate.testing' has no attribute {name!r}")
    return getattr(import_module(f"chelate.testing.{_HOMES[name]}"), name)
