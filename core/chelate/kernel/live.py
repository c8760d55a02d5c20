"""A dispatch that this kernel is running: its record, its machine, and how it starts and ends."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from chelate.bundle import Bundle
from chelate.contracts.executor import Job
from chelate.contracts.store import ResultStore
from chelate.digest import digest_bytes
from chelate.errors import GraphError, StoreError
from chelate.graph import Graph, Kind, Node, leaves
from chelate.kernel.homecoming import staying
from chelate.kernel.jobs import make_job
from chelate.kernel.keys import lane_name
from chelate.kernel.reuse import Reuse
from chelate.kernel.states.forms import strangeness
from chelate.kernel.states.machine import Machine
from chelate.kernel.world import World
from chelate.model import DispatchRecord, NodeRecord, NodeStatus, Status, ValueRef

__all__ = ["BUILD_NODE", "LiveDispatch", "child_record"]

BUILD_NODE = -1
_SHOWN_FAILURES = 10


@dataclass(slots=True)
class LiveDispatch:
    """One dispatch in memory. ``changed`` is True while its own row waits to be stored."""

    record: DispatchRecord
    graph: Graph
    machine: Machine
    world: World
    parameters: dict[int, str] = field(default_factory=dict)
    taken_apart: frozenset[int] = frozenset()
    staying: frozenset[int] = frozenset()  # nodes whose results their executors may keep
    reuse: Reuse | None = None
    changed: bool = False

    @classmethod
    def of(
        cls, record: DispatchRecord, graph: Graph, store: ResultStore, world: World
    ) -> LiveDispatch:
        """A dispatch about to start or to be resumed."""
        live = cls(record, graph, _machine(record, graph, world.token()), world)
        live._prepare(store)
        return live

    def _prepare(self, store: ResultStore) -> None:
        """What follows from the graph; what may be reused is known once the graph is built."""
        self.parameters = _parameters(self.graph)
        self.taken_apart = frozenset(
            leaf[1]
            for node in self.graph.nodes
            for reference in (*node.args, *node.kwargs.values())
            if reference[0] != "p" and len(reference) > (2 if reference[0] == "n" else 1)
            for leaf in leaves(reference)
            if leaf[0] == "n" and len(leaf) > 2
        )
        if not self.building:
            self.staying = staying(self.graph) if store.can_hold else frozenset()
            self.reuse = Reuse.of(store, self.record, self.graph)
            self.machine.offered = None if self.reuse is None else []

    @classmethod
    def load(
        cls, store: ResultStore, dispatch_id: str, world: World, known: LiveDispatch | None = None
    ) -> LiveDispatch:
        """Read a dispatch and bring its machine up to date.

        Of one that was ``known`` and has been adopted again, memory still holds unless another
        kernel had it in between; each change of owner is an epoch.

        Raises:
            StoreError: the record or its graph cannot be read.
            GraphError: the stored graph cannot be understood.
        """
        record = store.dispatch(dispatch_id)
        if known is not None and record.epoch == known.record.epoch + 1:
            known.record.epoch = record.epoch
            return known
        if record.graph is None:
            raise GraphError(f"Dispatch {dispatch_id} has no graph.")
        rows = store.nodes(dispatch_id)
        for row in rows:
            for text in strangeness(row):
                raise _not_understood(f"task {row.node_id} of dispatch {dispatch_id}", text)
            if row.status is NodeStatus.COMPLETED and row.output is None and row.node_id >= 0:
                what = f"task {row.node_id} of dispatch {dispatch_id}"
                raise _not_understood(what, "It is COMPLETED and has no output.")
        now = world.time()
        try:
            live = cls.of(record, Graph.from_json(store.read(record.graph)), store, world)
            if live.reuse is not None:
                live.reuse.resume(rows)
            live.machine.resume(rows, now)
        except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise _not_understood(f"dispatch {dispatch_id}", f"{error!r}.") from error
        live.begin(now)
        return live

    def begin(self, now: float) -> None:
        """Mark the dispatch as running."""
        if self.record.status is Status.NEW_OBJ:
            self.record.status = Status.RUNNING
            self.record.started_at = now
            self.changed = True

    def job(self, record: NodeRecord, store: ResultStore, store_id: str) -> Job:
        """What an executor is given to run the node of this record."""
        return make_job(
            self.record,
            self.graph,
            self.node(record.node_id),
            record,
            self.machine.records,
            self.parameters,
            store,
            record.node_id in self.taken_apart,
            store_id,
            record.node_id in self.staying,
        )

    def decide(self) -> None:
        """Complete the nodes that just became ready and need no run."""
        while self.reuse is not None and (offered := self.machine.offered):
            self.machine.offered = []
            reused = self.reuse.decide(offered, self.machine.records)
            self.machine.handle(reused, self.world.time())

    def replace_graph(self, bundle: Bundle, blobs: dict[str, bytes], store: ResultStore) -> None:
        """The graph was built in a worker: go on with it."""
        assert bundle.graph is not None
        data = bundle.graph.to_json()
        digest = digest_bytes(data)
        blobs.update(bundle.blobs)
        blobs[digest] = data
        self.record.graph = digest
        self.record.inputs = bundle.inputs or self.record.inputs
        self.graph = bundle.graph
        requested = self.machine.cancel_requested
        self.machine = _machine(self.record, bundle.graph, self.world.token())
        self.machine.cancel_requested = requested
        self._prepare(store)
        self.changed = True
        self.machine.start()

    def node(self, node_id: int) -> Node:
        """The node of that id."""
        return self.machine.nodes[node_id]

    def refresh(self) -> None:
        """Bring status and counts of the record up to the machine's."""
        counts = {str(status): n for status, n in self.machine.counts.items() if n}
        status = self.machine.status
        if counts != self.record.counts or status is not self.record.status:
            self.record.counts = counts
            self.changed = True
            if not status.final:
                self.record.status = status

    @property
    def over(self) -> bool:
        """Whether every node has ended (a dispatch whose graph is unbuilt is not over)."""
        if self.machine.open:
            return False
        return not (self.building and self.machine.status is Status.COMPLETED)

    @property
    def building(self) -> bool:
        """Whether the graph is still being built in a worker."""
        return BUILD_NODE in self.machine.nodes

    def finish(self, now: float) -> None:
        """Write status, result and error into the record."""
        record, machine = self.record, self.machine
        record.status = machine.status
        record.ended_at = now
        record.counts = {str(status): n for status, n in machine.counts.items() if n}
        self.changed = True
        if record.status is Status.COMPLETED:
            head, where = self.graph.result[0], self.graph.result[1]
            if head == "n":
                record.result = machine.records[where].output
            elif head == "p":
                record.result = next(n.value for n in self.graph.nodes if n.id == where)
            else:
                record.result = self.graph.values.get(where) or ValueRef(where, 0)
        elif record.status is Status.FAILED:
            record.error = self.failure()

    def failure(self) -> str:
        """What failed, for people: task, node, the lattice line that called it, the traceback."""
        failed = [
            record for record in self.machine.records.values() if record.status is NodeStatus.FAILED
        ]
        parts = []
        for record in failed[:_SHOWN_FAILURES]:
            node = self.machine.nodes[record.node_id]
            called = f", called at {node.line}" if node.line else ""
            tries = f" after {record.attempt} attempts" if record.attempt > 1 else ""
            what = f"Task {node.name} (node {node.id}{called}) failed{tries}: {record.reason}"
            if node.id == BUILD_NODE:
                what = "The workflow could not be built:"
            parts.append(f"{what}\n{(record.error or '').rstrip()}")
        if len(failed) > _SHOWN_FAILURES:
            parts.append(f"… and {len(failed) - _SHOWN_FAILURES} more tasks failed.")
        return "\n\n".join(parts)


def _machine(record: DispatchRecord, graph: Graph, token: str) -> Machine:
    lanes = [lane_name(policy.executor) for policy in graph.policies]
    machine = Machine(record.dispatch_id, graph, lanes, token)
    machine.cancel_requested = record.cancel_requested
    return machine


def _parameters(graph: Graph) -> dict[int, str]:
    return {
        node.id: node.value.digest
        for node in graph.nodes
        if node.kind == Kind.PARAMETER and node.value is not None
    }


def child_record(
    parent: LiveDispatch, node_id: int, attempt: int, bundle: Bundle, now: float, owner: str
) -> tuple[DispatchRecord, dict[str, bytes]]:
    """The record and blobs of a sub-workflow's dispatch.

    Its id follows from parent, node and attempt, so creating it twice after a crash is harmless.
    """
    assert bundle.graph is not None
    data = bundle.graph.to_json()
    graph = digest_bytes(data)
    name = f"{parent.record.dispatch_id}:{node_id}:{attempt}"
    options: dict[str, Any] = {
        key: parent.record.options[key]
        for key in (
            "defaults",
            "replacements",
            "replacement_prints",
            "replaced",
            "python",
            "audit",
        )
        if key in parent.record.options
    }
    options["defaults"] = bundle.graph.metadata or options.get("defaults")
    if parent.reuse is not None:
        options["reuse_from"] = parent.reuse.child_of(node_id)
        options["reuse_child"] = True
    record = DispatchRecord(
        dispatch_id=str(uuid.uuid5(uuid.NAMESPACE_OID, name)),
        name=bundle.graph.name,
        root_id=parent.record.root_id,
        parent_id=parent.record.dispatch_id,
        parent_node=node_id,
        depth=parent.record.depth + 1,
        graph=graph,
        lattice=bundle.lattice,
        inputs=bundle.inputs,
        created_at=now,
        owner=owner,
        options=options,
    )
    return record, {**bundle.blobs, graph: data}


def _not_understood(what: str, why: str) -> StoreError:
    return StoreError(
        f"What is stored of {what} cannot be understood. {why} If the medium or another program "
        "changed it, see what else is damaged with: chelate fsck"
    )
