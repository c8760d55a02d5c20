"""Chelate: a small workflow kernel that survives being killed, cancels for real, and re-runs
only what changed.

Everything public is imported when first used, so ``import chelate`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chelate import errors, triggers
    from chelate.client.context import get_context
    from chelate.client.electron import Electron, electron
    from chelate.client.lattice import Lattice, lattice
    from chelate.configuration import get_config, reload_config, set_config
    from chelate.dispatching import (
        cancel,
        dispatch,
        dispatch_sync,
        get_result,
        list_dispatches,
        wait,
    )
    from chelate.embedding import configure, shutdown
    from chelate.errors import ChelateError, TaskCancelledError
    from chelate.executors.local import LocalExecutor
    from chelate.explaining import explain
    from chelate.model import Resources, Retry, Status
    from chelate.redispatching import redispatch
    from chelate.result import Result, TransportableObject
    from chelate.triggering import (
        list_triggers,
        pause_triggers,
        resume_triggers,
        stop_triggers,
    )
    from chelate.values import File

__version__ = "0.1.0"

_WHERE = {
    "ChelateError": "chelate.errors",
    "Electron": "chelate.client.electron",
    "File": "chelate.values",
    "Lattice": "chelate.client.lattice",
    "LocalExecutor": "chelate.executors.local",
    "Resources": "chelate.model",
    "Result": "chelate.result",
    "Retry": "chelate.model",
    "Status": "chelate.model",
    "TaskCancelledError": "chelate.errors",
    "TransportableObject": "chelate.result",
    "cancel": "chelate.dispatching",
    "configure": "chelate.embedding",
    "dispatch": "chelate.dispatching",
    "dispatch_sync": "chelate.dispatching",
    "electron": "chelate.client.electron",
    "errors": "chelate.errors",
    "explain": "chelate.explaining",
    "get_config": "chelate.configuration",
    "get_context": "chelate.client.context",
    "get_result": "chelate.dispatching",
    "lattice": "chelate.client.lattice",
    "list_dispatches": "chelate.dispatching",
    "list_triggers": "chelate.triggering",
    "pause_triggers": "chelate.triggering",
    "redispatch": "chelate.redispatching",
    "reload_config": "chelate.configuration",
    "resume_triggers": "chelate.triggering",
    "set_config": "chelate.configuration",
    "shutdown": "chelate.embedding",
    "stop_triggers": "chelate.triggering",
    "triggers": "chelate.triggers",
    "wait": "chelate.dispatching",
}
_MODULES = frozenset({"errors", "triggers"})

__all__ = [
    "ChelateError",
    "Electron",
    "File",
    "Lattice",
    "LocalExecutor",
    "Resources",
    "Result",
    "Retry",
    "Status",
    "TaskCancelledError",
    "TransportableObject",
    "cancel",
    "configure",
    "dispatch",
    "dispatch_sync",
    "electron",
    "errors",
    "explain",
    "get_config",
    "get_context",
    "get_result",
    "lattice",
    "list_dispatches",
    "list_triggers",
    "pause_triggers",
    "redispatch",
    "reload_config",
    "resume_triggers",
    "set_config",
    "shutdown",
    "stop_triggers",
    "triggers",
    "wait",
]


def __getattr__(name: str) -> Any:
    where = _WHERE.get(name)
    if where is None:
        raise AttributeError(f"module 'chelate' has no attribute {name!r}")
    module = import_module(where)
    value = module if name in _MODULES else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
