"""What a running task may know about itself."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from chelate.errors import UserError

__all__ = ["TaskContext", "get_context"]

# The worker, which imports nothing of chelate, leaves a dict here before each task.
_MODULE = "_chelate_task_context"


@dataclass(frozen=True, slots=True)
class TaskContext:
    """The task that runs now. ``attempt`` counts from 1; ``root_dispatch_id`` is the dispatch
    that the user started, which differs from ``dispatch_id`` inside a sub-workflow.
    """

    dispatch_id: str
    node_id: int
    attempt: int
    name: str
    root_dispatch_id: str

    @property
    def task_id(self) -> int:
        """Another word for ``node_id``."""
        return self.node_id


def get_context() -> TaskContext:
    """The context of the task that calls this.

    Raises:
        UserError: no task is running here.
    """
    current = getattr(sys.modules.get(_MODULE), "current", None)
    if not current:
        raise UserError(
            "get_context() was called outside a running task; call it in the body of an electron."
        )
    return TaskContext(
        dispatch_id=current["dispatch_id"],
        node_id=current["node_id"],
        attempt=current.get("attempt", 1),
        name=current.get("name", ""),
        root_dispatch_id=current.get("root_dispatch_id") or current["dispatch_id"],
    )
