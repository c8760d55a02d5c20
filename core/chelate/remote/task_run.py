"""One task as the author of a simple executor sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chelate.api import Resources, Task, TaskCancelledError

__all__ = ["TaskRun", "metadata_of"]


@dataclass(frozen=True, slots=True)
class TaskRun:
    """What ``run`` is given.

    ``command`` runs the task to its end, in the foreground, on any machine that sees ``folder``;
    start it once, or as often as you like: it runs the task once. ``folder`` is the author's to
    write into, too. ``timeout`` is in seconds.
    """

    task: Task
    command: tuple[str, ...]
    folder: str
    resources: Resources
    timeout: float | None

    @property
    def key(self) -> str:
        """Unlike every other task's and attempt's; a good idempotency token."""
        return self.task.key

    @property
    def dispatch_id(self) -> str:
        """The dispatch that the task belongs to."""
        return self.task.dispatch_id

    @property
    def node_id(self) -> int:
        """The task's number in the dispatch."""
        return self.task.node_id

    @property
    def name(self) -> str:
        """The task's name; any text."""
        return self.task.name

    @property
    def metadata(self) -> dict[str, Any]:
        """The ``task_metadata`` that ``poll`` and ``cancel`` are given."""
        return metadata_of(self.task.key)

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody wants it stopped; look before each expensive step."""
        return self.task.cancel_requested

    def check_cancelled(self) -> None:
        """Raises TaskCancelledError when a cancel is requested."""
        if self.task.cancel_requested:
            raise TaskCancelledError(f"Task {self.task.name!r} was cancelled.")


def metadata_of(key: str) -> dict[str, Any]:
    """Dispatch, node and attempt of a task's key."""
    dispatch_id, node_id, attempt = key.split(":")[:3]
    return {"dispatch_id": dispatch_id, "node_id": int(node_id), "attempt": int(attempt)}
