"""What a call is aimed at: a dispatch by id, tasks by node id or name; what a cancel found."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from chelate.errors import InvalidDispatchIdError, TaskNotFoundError
from chelate.graph import Graph, Kind, Node
from chelate.model import DispatchRecord

__all__ = ["CancelAnswer", "check_dispatch_id", "resolve_tasks"]


class CancelAnswer:
    """What a cancel found: ``live`` targets are being cancelled, ``over`` had ended before."""

    def __init__(
        self, record: DispatchRecord, live: tuple[int, ...], over: tuple[int, ...]
    ) -> None:
        self.record = record
        self.live = live
        self.over = over

    def sentence(self, whole: bool) -> str:
        """For people."""
        dispatch_id = self.record.dispatch_id
        if self.record.status.final:
            return f"Dispatch {dispatch_id} had already ended: {self.record.status}."
        if whole:
            return f"Dispatch {dispatch_id} is being cancelled."
        parts = []
        if self.live:
            parts.append(f"Tasks {list(self.live)} in dispatch {dispatch_id} are being cancelled.")
        if self.over:
            parts.append(f"Tasks {list(self.over)} had already ended.")
        return " ".join(parts) or f"There is nothing to cancel in dispatch {dispatch_id}."


def resolve_tasks(graph: Graph, targets: Sequence[int | str]) -> list[int]:
    """Node ids of tasks given by id or name; a name stands for every task that has it.

    Raises:
        TaskNotFoundError: with the tasks that exist.
    """
    tasks: dict[int, Node] = {node.id: node for node in graph.tasks() if node.kind != Kind.BUILD}
    by_name: dict[str, list[int]] = {}
    for node in tasks.values():
        by_name.setdefault(node.name, []).append(node.id)
    found: list[int] = []
    for target in targets:
        if isinstance(target, str) and target in by_name:
            found.extend(by_name[target])
        elif isinstance(target, int) and not isinstance(target, bool) and target in tasks:
            found.append(target)
        else:
            shown = ", ".join(f"{node.id} ({node.name})" for node in list(tasks.values())[:20])
            more = " …" if len(tasks) > 20 else ""
            raise TaskNotFoundError(
                f"There is no task {target!r} in this dispatch; nothing was cancelled. "
                f"Its tasks: {shown or 'none'}{more}"
            )
    return list(dict.fromkeys(found))


def check_dispatch_id(dispatch_id: object) -> str:
    """The id in its usual form.

    Raises:
        InvalidDispatchIdError: it is not the text of a UUID.
    """
    try:
        if isinstance(dispatch_id, (str, uuid.UUID)):
            return str(uuid.UUID(str(dispatch_id)))
    except ValueError:
        pass
    raise InvalidDispatchIdError(
        f"{dispatch_id!r:.80} is not a dispatch id. Ids are what ct.dispatch(...)(...) returns; "
        "ct.list_dispatches() lists them."
    )
