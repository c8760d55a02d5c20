"""What a call is aimed at: a dispatch by id, tasks by node id or name; what a cancel found."""

from __future__ import annotations

import operator
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chelate.errors import ConfigError, InvalidDispatchIdError, TaskNotFoundError
from chelate.graph import Graph, Kind, Node
from chelate.model import DispatchRecord, Status

__all__ = ["CancelAnswer", "as_asked", "as_targets", "check_dispatch_id", "resolve_tasks"]


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
        if self.record.held and self.live:
            return (
                f"Dispatch {dispatch_id} has not been started; its tasks {list(self.live)} will "
                "not run when it is."
            )
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


def as_asked(record: DispatchRecord) -> DispatchRecord:
    """The record, CANCELLING as soon as that is asked for, however late its owner looks."""
    if record.cancel_requested and not record.status.final:
        record.status = Status.CANCELLING
    return record


def as_targets(task_ids: object) -> list[int | str] | None:
    """What a caller named, as a list; None stands for the whole dispatch.

    Whole numbers of other kinds, such as numpy's, become plain ones.

    Raises:
        ConfigError: it names nothing that tasks are known by.
    """
    if task_ids is None:
        return None
    one = _plain(task_ids)
    if isinstance(one, (int, str)):
        return [one]
    if isinstance(task_ids, Iterable) and not isinstance(task_ids, (bytes, Mapping)):
        return [_plain(item) for item in task_ids]
    raise ConfigError(
        f"task_ids={task_ids!r:.80} must be a node id, the name of a task, or a list of these; "
        "nothing was cancelled. Leave it out to cancel the whole dispatch."
    )


def _plain(item: Any) -> Any:
    if isinstance(item, bool):
        return item
    try:
        return operator.index(item)
    except TypeError:
        return item


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
        elif any(node.kind == Kind.BUILD for node in graph.nodes):
            raise TaskNotFoundError(
                f"There is no task {target!r}: the workflow of this dispatch is still being built; "
                "nothing was cancelled. Cancel the whole dispatch, or its tasks once it is built."
            )
        else:
            shown = ", ".join(f"{node.id} ({node.name})" for node in list(tasks.values())[:20])
            more = " …" if len(tasks) > 20 else ""
            if any(node.kind == Kind.SUBLATTICE for node in tasks.values()):
                more += ". Tasks of sub-workflows go by the ids of the sub-workflows' dispatches"
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
