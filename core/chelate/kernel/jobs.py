"""From a node to a job for an executor, and from an executor's outcome to an event."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chelate.contracts.executor import HOLD_FROM, Job, Outcome, Task
from chelate.contracts.store import ResultStore
from chelate.digest import digest_bytes, digest_stream
from chelate.graph import Graph, Kind, Node, digests_in, nodes_in
from chelate.kernel import events as ev
from chelate.model import DispatchRecord, NodeRecord, Reason, TaskPolicy, ValueRef

__all__ = ["keep_text", "make_job", "settle"]

_INLINE = 1 << 20


def make_job(
    dispatch: DispatchRecord,
    graph: Graph,
    node: Node,
    record: NodeRecord,
    outputs: Mapping[int, NodeRecord],
    parameters: Mapping[int, str],
    store: ResultStore,
    taken_apart: bool = False,
    store_id: str = "",
    stay: bool = False,
) -> Job:
    """The job of the node's current attempt. ``parameters`` maps parameter node to digest.

    Its task's ``held`` are inputs so large that they may be held elsewhere; who sends it looks.
    """
    policy: TaskPolicy = graph.policies[node.policy]
    function = graph.functions[node.function].digest if node.function >= 0 else None
    values: dict[str, str] = {}
    inputs: dict[str, None] = {} if function is None else {function: None}
    large: set[str] = set()
    for reference in (*node.args, *node.kwargs.values()):
        head = reference[0]
        if head == "p":
            values[str(reference[1])] = parameters[reference[1]]
        elif head == "n" and len(reference) == 2:
            output = outputs[reference[1]].output
            assert output is not None
            values[str(reference[1])] = output.digest
            if output.size >= HOLD_FROM:
                large.add(output.digest)
        else:
            for node_id in nodes_in(reference):
                digest = parameters.get(node_id)
                if digest is None:
                    output = outputs[node_id].output
                    assert output is not None
                    digest = output.digest
                    if output.size >= HOLD_FROM:
                        large.add(digest)
                values[str(node_id)] = digest
            for digest in digests_in(reference):
                inputs[digest] = None
    for digest in values.values():
        inputs[digest] = None
    call: dict[str, Any] = {
        "kind": node.kind,
        "function": function,
        "args": node.args,
        "kwargs": node.kwargs,
        "values": values,
        "name": node.name,
        "python": dispatch.options.get("python"),
    }
    if taken_apart:
        call["parts"] = True
    if node.kind in (Kind.SUBLATTICE, Kind.BUILD):
        call["defaults"] = dispatch.options.get("defaults")
        replacements = dispatch.options.get("replacements") or {}
        call["replacements"] = replacements
        for digest in replacements.values():
            inputs[digest] = None
    key = record.key
    assert key is not None
    task = Task(
        key=key,
        dispatch_id=dispatch.dispatch_id,
        node_id=node.id,
        attempt=record.attempt,
        name=node.name,
        call=call,
        inputs=tuple(inputs),
        context={"root_dispatch_id": dispatch.root_id},
        is_cancelled=lambda: record.cancel_requested,
        stay=stay,
        held=frozenset(large),
    )
    return Job(
        key, (task,), policy.resources, store, policy.timeout, code=graph.code, store=store_id
    )


def settle(
    outcome: Outcome, node: int, attempt: int, store: ResultStore, blobs: dict[str, bytes]
) -> ev.Ended:
    """Put an outcome's bytes where they belong and say how the task ended.

    Small values go into ``blobs``, to be committed with the row; large ones into the store at
    once, before any row names them.
    """
    output: ValueRef | None = None
    if outcome.ok:
        payload = outcome.payload
        if isinstance(payload, Path):
            size = payload.stat().st_size
            digest = outcome.digest
            if digest is None:
                with payload.open("rb") as stream:
                    digest = digest_stream(stream)
            store.put_file(digest, payload, move=True)
            output = ValueRef(digest, size, outcome.fingerprint, outcome.parts)
        elif outcome.held is not None and outcome.digest is not None:
            digest = outcome.digest
            output = ValueRef(digest, outcome.held, outcome.fingerprint, outcome.parts)
        elif payload is not None:
            digest = digest_bytes(payload)
            blobs[digest] = payload
            output = ValueRef(digest, len(payload), outcome.fingerprint, outcome.parts)
        else:
            return ev.Ended(
                node,
                attempt,
                False,
                reason=Reason.RESULT_MISSING,
                error="The task succeeded, but its executor brought no result.",
            )
    return ev.Ended(
        node,
        attempt,
        outcome.ok,
        output=output,
        reason=outcome.reason,
        error=outcome.error,
        exception=keep_text(outcome.exception, blobs),
        stdout=keep_text(outcome.stdout, blobs),
        stderr=keep_text(outcome.stderr, blobs),
        started_at=outcome.started_at,
        ended_at=outcome.ended_at,
        usage=outcome.usage,
    )


def keep_text(data: bytes | None, blobs: dict[str, bytes]) -> str | None:
    """Put bytes into ``blobs`` and return their digest; None for nothing."""
    if not data:
        return None
    digest = digest_bytes(data)
    blobs[digest] = data
    return digest
