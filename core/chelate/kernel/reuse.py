"""Reuse while a dispatch runs: each node is decided when its inputs are known."""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from chelate.contracts.store import ResultStore
from chelate.diff import (
    ReuseIndex,
    Tables,
    Unstable,
    execution_keys,
    occurrences,
)
from chelate.errors import ChelateError
from chelate.graph import Graph, Kind
from chelate.kernel import events as ev
from chelate.model import FINAL, DispatchRecord, NodeRecord, NodeStatus, ValueRef

__all__ = [
    "Decided",
    "Reuse",
    "collecting_later",
    "damaged_blobs",
    "nondeterminism_fact",
    "parent_trouble",
]

_LOG = logging.getLogger("chelate.reuse")
_HASHED_AT_MOST = 16 << 20  # larger values are checked by presence and size alone


def damaged_blobs(store: ResultStore, digests: Iterable[str]) -> dict[str, str]:
    """Digest → RESULT_MISSING or RESULT_DAMAGED, for those that cannot be taken over."""
    wanted = set(digests)
    trouble = dict.fromkeys(store.missing_blobs(wanted), "RESULT_MISSING")
    present = wanted - trouble.keys()
    try:
        unread = present - store.read_many(present).keys()
    except ChelateError:  # one of them is damaged, and it is not said which
        unread = present
    # Of values that stay elsewhere, whoever asked for the redispatch has made sure.
    for digest in unread - store.held(unread).keys():
        try:
            if store.size(digest) <= _HASHED_AT_MOST:
                store.read(digest)
        except ChelateError:
            trouble[digest] = "RESULT_DAMAGED"
    return trouble


def nondeterminism_fact(name: str) -> str:
    """Where the store keeps that a task was seen to give different results for equal inputs."""
    return f"nondeterministic:{name}"


@contextmanager
def collecting_later() -> Iterator[None]:
    """Put garbage collection off while many objects are made that all stay: it would look
    through them again and again, and that takes as long as making them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if not gc.get_freeze_count():
                # Together these two count all there is as old, without looking at any of it.
                gc.freeze()
                gc.unfreeze()
            gc.enable()


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
    _names: dict[str, frozenset[str]] = field(default_factory=dict)
    _swapped: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.tables = Tables(self.graph)
        self.places = occurrences(self.graph)

    @classmethod
    def of(cls, store: ResultStore, record: DispatchRecord, graph: Graph) -> Reuse | None:
        """The reuse that the dispatch's options ask for, or None."""
        parent_id = record.options.get("reuse_from")
        if not parent_id:
            return None
        with collecting_later():
            return cls._read(store, record, graph, parent_id)

    @classmethod
    def _read(
        cls, store: ResultStore, record: DispatchRecord, graph: Graph, parent_id: str
    ) -> Reuse | None:
        try:
            parent = store.dispatch(parent_id)
            old = Graph.from_json(store.read(parent.graph or ""))
            records = {row.node_id: row for row in store.nodes(parent_id)}
        except ChelateError as error:
            _LOG.warning("Dispatch %s reuses nothing: %s", record.dispatch_id, error)
            return None
        index = ReuseIndex.of(
            parent_id, old, records, lambda digests: damaged_blobs(store, digests)
        )
        reuse = cls(store, record, graph, index, float(record.options.get("audit") or 0.0))
        reuse._swapped = _differing(parent.options, record.options)
        return reuse

    def resume(self, rows: Iterable[NodeRecord]) -> None:
        """After a restart: what has been taken over is used up, and audits go on."""
        records = {row.node_id: row for row in rows}
        for row in records.values():
            origin = row.reused_from
            if origin in self.index.by_origin:
                self.index.use(self.index.by_origin[origin])
        children = {
            candidate.record.child_id: candidate for candidate in self.index.by_place.values()
        }
        for row in records.values():
            if row.child_id is not None and row.reused_from is None:
                compared = self.store.dispatch(row.child_id).options.get("reuse_from")
                if compared is not None and compared in children:
                    self.index.use(children[compared])
            elif row.decision in ("RESULT_MISSING", "RESULT_DAMAGED") or (
                row.decision or ""
            ).startswith("AUDIT"):
                decided = self.look(row.node_id, lambda i: _output(records, i))
                if row.decision == "AUDIT" and decided.output is not None:
                    self.audits[row.node_id] = decided.output

    def child_of(self, node_id: int) -> str | None:
        """The parent's sub-dispatch that this node's is to be compared with, and uses up."""
        name, occurrence = self.places[node_id]
        index = self.index
        own = index.nodes.get((name, occurrence))
        same = [own, *(i for (other, _), i in index.nodes.items() if other == name)]
        for old in same:
            row = None if old is None or old in index.used else index.records.get(old)
            if old is not None and row is not None and row.child_id is not None:
                index.used.add(old)
                return row.child_id
        return None

    def decide(self, node_ids: Iterable[int], records: Mapping[int, NodeRecord]) -> list[ev.Reused]:
        """Nodes that just became ready, in order; those that need no run."""
        with collecting_later():
            return self._decide(node_ids, records)

    def _decide(
        self, node_ids: Iterable[int], records: Mapping[int, NodeRecord]
    ) -> list[ev.Reused]:
        reused: list[ev.Reused] = []
        for node_id in node_ids:
            decided = self.look(node_id, lambda i: _output(records, i))
            if decided.output is not None and decided.origin is not None:
                if self.audit and self._drawn(node_id):
                    self.audits[node_id] = decided.output
                    records[node_id].decision = "AUDIT"
                    continue
                reused.append(ev.Reused(node_id, decided.output, decided.origin, decided.child_id))
            elif decided.code:
                records[node_id].decision = decided.code
        return reused

    def _drawn(self, node_id: int) -> bool:
        """Whether a node is audited; the same for a dispatch and node after a restart."""
        return random.Random(f"{self.record.dispatch_id}:{node_id}").random() < self.audit

    def look(self, node_id: int, output: Callable[[int], ValueRef]) -> Decided:
        """Decide one node whose inputs are known, and use its candidate up.

        ``output`` may raise :class:`~chelate.diff.Unstable` for a result that nobody can compare.
        """
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
                keys = execution_keys(node, self.tables, output)
            except Unstable:
                return Decided(node_id, code="UNSTABLE_ARGUMENT")
            candidate = self.index.match(name, occurrence, keys)
        if candidate is None:
            return Decided(node_id, code=self._unfinished(name, occurrence))
        if self.replaced_inside(candidate.record.child_id):
            return Decided(node_id)
        self.index.use(candidate)
        if candidate.damage:
            return Decided(node_id, code=candidate.damage)
        row = candidate.record
        return Decided(node_id, candidate.origin, row.output, row.child_id)

    def _unfinished(self, name: str, occurrence: int) -> str | None:
        """PARENT_UNFINISHED when the parent had not got there yet; later nobody could tell."""
        old = self.index.nodes.get((name, occurrence))
        if old is None:
            return None
        row = self.index.records.get(old)
        return None if row is not None and row.status in FINAL else "PARENT_UNFINISHED"

    def replaced_inside(self, child_id: str | None) -> frozenset[str]:
        """Tasks called in a sub-workflow that this dispatch and its parent replace otherwise."""
        if not self._swapped or child_id is None:
            return frozenset()
        return self._swapped & self._names_below(child_id)

    def _names_below(self, dispatch_id: str) -> frozenset[str]:
        known = self._names.get(dispatch_id)
        if known is None:
            try:
                graph = Graph.from_json(
                    self.store.read(self.store.dispatch(dispatch_id).graph or "")
                )
                rows = self.store.nodes(dispatch_id)
            except ChelateError as error:
                _LOG.warning("Sub-workflow %s is built again: %s", dispatch_id, error)
                return self._swapped
            known = frozenset(node.name for node in graph.tasks())
            for row in rows:
                if row.child_id is not None:
                    known |= self._names_below(row.child_id)
            self._names[dispatch_id] = known
        return known

    def audited(self, record: NodeRecord) -> None:
        """Compare a node that ran only for that; a difference is kept for good."""
        if record.status is not NodeStatus.COMPLETED:
            return
        expected = self.audits.pop(record.node_id, None)
        if expected is None:
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
    record = records[node_id]
    output = record.output
    assert output is not None
    if output.fingerprint is None and record.reused_from is None:
        raise Unstable("")
    return output


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> frozenset[str]:
    """Names of tasks that two dispatches replace by different things."""
    before, after = old.get("replacement_prints") or {}, new.get("replacement_prints") or {}
    # A replacement without a print is the same as nothing, itself included.
    return frozenset(
        name
        for name in {*before, *after}
        if before.get(name) != after.get(name) or before.get(name) is None
    )


def parent_trouble(store: ResultStore, options: Mapping[str, Any]) -> str | None:
    """Why nothing can be taken over although that was asked for; None when nothing is wrong."""
    try:
        Graph.from_json(store.read(store.dispatch(options["reuse_from"]).graph or ""))
    except ChelateError as error:
        return str(error)
    return None
