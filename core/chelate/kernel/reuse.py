"""Reuse while a dispatch runs: each node is decided when its inputs are known."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from chelate.contracts.store import ResultStore
from chelate.diff import ReuseIndex, Tables, Unstable, execution_keys, occurrences
from chelate.digest import digest_bytes
from chelate.errors import ChelateError
from chelate.graph import Graph, Kind
from chelate.kernel import events as ev
from chelate.model import DispatchRecord, NodeRecord, NodeStatus, ValueRef

__all__ = ["Decided", "Reuse", "damaged_blobs", "nondeterminism_fact", "replaced_digest"]

_LOG = logging.getLogger("chelate.reuse")
_HASHED_AT_MOST = 16 << 20  # larger values are checked by presence and size alone


def replaced_digest(options: Mapping[str, Any]) -> str | None:
    """What the replacements of a dispatch are, as one digest; None without any."""
    prints = options.get("replacement_prints")
    if not prints:
        return None
    return digest_bytes(repr(sorted(prints.items())).encode())


def damaged_blobs(store: ResultStore, digests: Iterable[str]) -> dict[str, str]:
    """Digest → RESULT_MISSING or RESULT_DAMAGED, for those that cannot be taken over."""
    wanted = set(digests)
    trouble = dict.fromkeys(store.missing_blobs(wanted), "RESULT_MISSING")
    present = wanted - trouble.keys()
    fine = store.read_many(present).keys()
    for digest in present - fine:
        try:
            if store.size(digest) <= _HASHED_AT_MOST:
                store.read(digest)
        except ChelateError:
            trouble[digest] = "RESULT_DAMAGED"
    return trouble


def nondeterminism_fact(name: str) -> str:
    """Where the store keeps that a task was seen to give different results for equal inputs."""
    return f"nondeterministic:{name}"


@dataclass(frozen=True, slots=True)
class Decided:
    """REUSE with the parent's node, or RUN with a code when an equal one had completed."""

    node: int
    origin: tuple[str, int] | None = None
    output: ValueRef | None = None
    child_id: str | None = None
    code: str | None = None


@dataclass(slots=True)
class Reuse:
    """What one dispatch may take over from its parent.

    ``audits`` maps nodes that run only to be compared to the fingerprint they should give.
    """

    store: ResultStore
    record: DispatchRecord
    graph: Graph
    index: ReuseIndex
    audit: float = 0.0
    tables: Tables = field(init=False)
    places: dict[int, tuple[str, int]] = field(init=False)
    audits: dict[int, ValueRef] = field(default_factory=dict)
    _dice: random.Random = field(default_factory=random.SystemRandom)

    def __post_init__(self) -> None:
        self.tables = Tables(self.graph)
        self.places = occurrences(self.graph)

    @classmethod
    def of(cls, store: ResultStore, record: DispatchRecord, graph: Graph) -> Reuse | None:
        """The reuse that the dispatch's options ask for, or None."""
        parent_id = record.options.get("reuse_from")
        if not parent_id:
            return None
        try:
            parent = store.dispatch(parent_id)
            old = Graph.from_json(store.read(parent.graph or ""))
            records = {row.node_id: row for row in store.nodes(parent_id)}
        except ChelateError as error:
            _LOG.warning("Dispatch %s reuses nothing: %s", record.dispatch_id, error)
            return None
        index = ReuseIndex.of(
            parent_id,
            old,
            records,
            lambda digests: damaged_blobs(store, digests),
            replaced_digest(parent.options),
        )
        return cls(store, record, graph, index, float(record.options.get("audit") or 0.0))

    def resume(self, rows: Iterable[NodeRecord]) -> None:
        """After a restart: what has been taken over is used up."""
        origins = {candidate.origin: candidate for candidate in self.index.by_place.values()}
        for row in rows:
            if row.reused_from in origins:
                self.index.use(origins[row.reused_from])

    def child_of(self, node_id: int) -> str | None:
        """The sub-dispatch of the parent's node that stands where this one stands."""
        old = self.index.nodes.get(self.places[node_id])
        row = None if old is None else self.index.records.get(old)
        return None if row is None else row.child_id

    def decide(self, node_ids: Iterable[int], records: Mapping[int, NodeRecord]) -> list[ev.Reused]:
        """Nodes that just became ready, in order; those that need no run."""
        reused: list[ev.Reused] = []
        for node_id in node_ids:
            decided = self.look(node_id, lambda i: _output(records, i))
            if decided.output is not None and decided.origin is not None:
                if self.audit and self._dice.random() < self.audit:
                    self.audits[node_id] = decided.output
                    records[node_id].decision = "AUDIT"
                    continue
                reused.append(ev.Reused(node_id, decided.output, decided.origin, decided.child_id))
            elif decided.code:
                records[node_id].decision = decided.code
        return reused

    def look(self, node_id: int, output: Any) -> Decided:
        """Decide one node whose inputs are known, and use its candidate up."""
        node = self.tables.graph.nodes[node_id]
        policy = self.graph.policies[node.policy]
        name, occurrence = self.places[node_id]
        if policy.reuse is False or node.kind == Kind.BUILD:
            return Decided(node_id, code="OPTED_OUT")
        if policy.reuse == "always":
            candidate = self.index.by_place.get((name, occurrence))
            if candidate is not None and candidate.node.id in self.index.used:
                candidate = None
        else:
            try:
                keys = execution_keys(
                    node, self.tables, output, replaced_digest(self.record.options)
                )
            except Unstable:
                return Decided(node_id, code="UNSTABLE_ARGUMENT")
            candidate = self.index.match(name, occurrence, keys)
        if candidate is None:
            return Decided(node_id)
        self.index.use(candidate)
        if candidate.damage:
            return Decided(node_id, code=candidate.damage)
        row = candidate.record
        return Decided(node_id, candidate.origin, row.output, row.child_id)

    def audited(self, record: NodeRecord) -> None:
        """Compare a node that ran only for that; a difference is kept for good."""
        expected = self.audits.pop(record.node_id, None)
        if expected is None or record.status is not NodeStatus.COMPLETED:
            return
        got = record.output
        if got is not None and _same_value(expected, got):
            record.decision = "AUDIT_SAME"
            return
        record.decision = "AUDIT_DIFFERENT"
        name = self.places[record.node_id][0]
        where = {"dispatch_id": self.record.dispatch_id, "node_id": record.node_id}
        self.store.set_fact(nondeterminism_fact(name), where)


def _same_value(first: ValueRef, second: ValueRef) -> bool:
    if first.fingerprint is not None and second.fingerprint is not None:
        return first.fingerprint == second.fingerprint
    return first.digest == second.digest


def _output(records: Mapping[int, NodeRecord], node_id: int) -> ValueRef:
    output = records[node_id].output
    assert output is not None
    return output
