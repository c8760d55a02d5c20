"""Graphs made by hand, for tests that need no client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chelate.graph import Graph, Kind, Node
from chelate.kernel.states.machine import Machine
from chelate.model import ExecutorRef, Retry, TaskPolicy

DISPATCH = "0f0f0f0f-0000-4000-8000-000000000000"


def graph_of(
    parents: Mapping[int, Sequence[int]] | Sequence[Sequence[int]],
    *,
    retry: Retry | None = None,
    timeout: float | None = None,
    executor: str = "fake",
    kinds: Mapping[int, str] | None = None,
) -> Graph:
    """Node i needs the nodes ``parents[i]``; all share one policy."""
    if not isinstance(parents, Mapping):
        parents = dict(enumerate(parents))
    policy = TaskPolicy(ExecutorRef(executor), retry or Retry(delay=0.0), timeout)
    nodes = [
        Node(
            node_id,
            f"task_{node_id}",
            (kinds or {}).get(node_id, Kind.TASK),
            args=[["n", parent] for parent in needed],
            policy=0,
            line=f"flow.py:{node_id + 1}",
        )
        for node_id, needed in parents.items()
    ]
    last = max(parents, default=0)
    return Graph("flow", nodes, policies=[policy], result=["n", last])


def chain(length: int, **options: object) -> Graph:
    """Each node needs the one before."""
    return graph_of([[]] + [[i] for i in range(length - 1)], **options)  # type: ignore[arg-type]


def machine_of(graph: Graph) -> Machine:
    return Machine(DISPATCH, graph, [policy.executor.name for policy in graph.policies], "token")
