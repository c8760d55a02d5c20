"""The client column: what runs in the user's process and in workers that build graphs."""

from __future__ import annotations

from chelate.client.build import build_in_worker, task_names, wait_for
from chelate.client.codec import (
    load_value,
    pickle_function,
    pickle_lattice,
    pickle_portable,
    pickle_value,
)
from chelate.client.context import TaskContext, get_context
from chelate.client.electron import Electron, electron
from chelate.client.lattice import Lattice, lattice

__all__ = [
    "Electron",
    "Lattice",
    "TaskContext",
    "build_in_worker",
    "electron",
    "get_context",
    "lattice",
    "load_value",
    "pickle_function",
    "pickle_lattice",
    "pickle_portable",
    "pickle_value",
    "task_names",
    "wait_for",
]
