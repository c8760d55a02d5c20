"""Graphs and results to look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from chelate.graph import Graph, Kind, Node
from chelate.model import ExecutorRef, NodeRecord, Status, TaskPolicy

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


def graph(name: str, *tasks: tuple[Any, ...]) -> Graph:
    """Tasks as ``(name, parents[, kind[, executor]])``; ids count up."""
    made = Graph(name)
    executors: list[str] = []
    for index, (task, parents, *more) in enumerate(tasks):
        kind = more[0] if more else Kind.TASK
        executor = more[1] if len(more) > 1 else "local"
        if executor not in executors:
            executors.append(executor)
            made.policies.append(TaskPolicy(ExecutorRef(executor)))
        needs = [["n", parent] for parent in parents]
        policy = executors.index(executor)
        made.nodes.append(Node(index, task, kind, 0, needs, policy=policy, line=f"wf.py:{index}"))
    return made


def diamond() -> Graph:
    return graph("diamond", ("load", []), ("left", [0]), ("right", [0]), ("join", [1, 2]))


@dataclass
class FakeResult:
    """What a summary looks at."""

    graph: Graph
    node_records: dict[int, NodeRecord] = field(default_factory=dict)
    result: Any = None
    status: Status = Status.COMPLETED
    error: str | None = None
    name: str = "wf"
    dispatch_id: str = "0f0f0f0f-0000-4000-8000-000000000000"
    start_time: datetime | None = START
    end_time: datetime | None = START + timedelta(seconds=2.5)
