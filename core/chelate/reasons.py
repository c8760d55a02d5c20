"""Why a node was reused or run: exactly one reason, by precedence, from stored data alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from chelate.diff import (
    ReuseIndex,
    Tables,
    Unstable,
    argument_names,
    occurrences,
    value_print,
)
from chelate.graph import Function, Graph, Kind, Node, Reference, leaves, nodes_in
from chelate.model import NodeRecord, NodeStatus, ValueRef

__all__ = ["Decision", "Reasons", "same_code"]

Compare = Callable[[Function, Function], "tuple[str, str] | None"]
Text = Callable[[str, str], str]

_SENTENCES = {
    "OPTED_OUT": "reuse=False: it always runs",
    "PARENT_UNFINISHED": "it had not completed in the earlier dispatch",
    "RESULT_MISSING": "its stored result is gone",
    "RESULT_DAMAGED": "its stored result is damaged",
    "AUDIT": "an equal one had completed; it runs again to be compared",
    "AUDIT_SAME": "an equal one had completed; it ran again and gave the same value",
    "AUDIT_DIFFERENT": "an equal one had completed; it ran again and gave another value, so the "
    "task is nondeterministic",
}


_RECORDED = ("OPTED_OUT", "PARENT_UNFINISHED", "AUDIT", "AUDIT_SAME", "AUDIT_DIFFERENT")


@dataclass(frozen=True, slots=True)
class Decision:
    """REUSE, RUN or OPEN for one node, with one reason.

    ``origin`` is where a reused result was first computed: dispatch id and node id.
    """

    node_id: int
    name: str
    decision: str
    code: str
    sentence: str
    origin: tuple[str, int] | None = None


def _none_inside(child_id: str | None) -> frozenset[str]:
    return frozenset()


@dataclass(slots=True)
class Reasons:
    """Compares a graph with the one it reuses from.

    Args:
        graph: the new graph.
        index: the parent's, or None when nothing is reused.
        replaced: task names replaced in this very dispatch.
        compare: tells why two functions differ, from their stored manifests.
        text: short text of a stored value, given parameter name and digest.
        replaced_inside: which replaced tasks a sub-dispatch of the parent calls.
        taken: parent nodes that have been taken over.
        nothing: code and sentence of every node when nothing is reused.
    """

    graph: Graph
    index: ReuseIndex | None
    replaced: frozenset[str]
    compare: Compare
    text: Text
    replaced_inside: Callable[[str | None], frozenset[str]] = _none_inside
    taken: frozenset[int] = frozenset()
    nothing: tuple[str, str] = ("REUSE_OFF", "reuse was not asked for")
    _places: dict[int, tuple[str, int]] = field(init=False)
    _free: dict[str, list[int]] = field(init=False)
    _results: dict[str, set[str]] = field(default_factory=dict)
    _now: Tables = field(init=False)
    _before: Tables = field(init=False)

    def __post_init__(self) -> None:
        index = self.index
        self._places = occurrences(self.graph)
        self._now = Tables(self.graph)
        self._before = self._now if index is None else index.tables
        # By name, so that the reasons of ten thousand nodes do not take their square.
        self._free = {}
        for (name, _), node_id in (index.nodes if index is not None else {}).items():
            free = self._free.setdefault(name, [])
            if node_id not in self.taken:
                free.append(node_id)

    def run(self, node: Node, code: str | None, outputs: Mapping[int, ValueRef]) -> tuple[str, str]:
        """Why a node runs. ``code`` is what the decision itself recorded."""
        if self.index is None:
            return self.nothing
        if code in _RECORDED:
            return code, _SENTENCES[code]
        old = self._counterpart(self._places[node.id])
        if old is None:
            if node.name in self._free:
                return "EXTRA_CALL", f"one more call of {node.name}() than before"
            return "NEW_TASK", f"the earlier dispatch had no task {node.name}"
        record = self.index.records.get(old.id)
        if (reason := _parent_reason(record)) is not None:
            return reason
        if code in ("RESULT_MISSING", "RESULT_DAMAGED"):
            return code, _SENTENCES[code]
        if (reason := self._code_reason(node, old)) is not None:
            return reason
        if (reason := self._argument_reason(node, old, outputs)) is not None:
            if node.kind == Kind.RETURN:  # nobody has named its argument
                return reason[0], reason[1].replace("argument arg[0]", "the value")
            return reason
        return "EXTRA_CALL", f"one more call of {node.name}() with these inputs than before"

    def _counterpart(self, place: tuple[str, int]) -> Node | None:
        """The parent's node that stood where this one stands, unless another took it over."""
        assert self.index is not None
        old = self.index.nodes.get(place)
        if old is None or old in self.taken:
            free = self._free.get(place[0])
            old = free[0] if free else None
        return None if old is None else self.index.graph.nodes[old]

    def _code_reason(self, node: Node, old: Node) -> tuple[str, str] | None:
        if node.kind not in (Kind.TASK, Kind.SUBLATTICE) or node.function < 0 or old.function < 0:
            return None
        assert self.index is not None
        now, before = self.graph.functions[node.function], self.index.graph.functions[old.function]
        if same_code(before, now):
            record = self.index.records.get(old.id)
            names = self.replaced_inside(None if record is None else record.child_id)
            if names:
                return "REPLACED", f"{', '.join(sorted(names))} is replaced, and is called inside"
            return None
        if node.name in self.replaced:
            return "REPLACED", f"{node.name} was replaced by {now.name}()"
        return self.compare(before, now) or ("BODY", "its code changed")

    def _argument_reason(
        self, node: Node, old: Node, outputs: Mapping[int, ValueRef]
    ) -> tuple[str, str] | None:
        assert self.index is not None
        before_graph = self.index.graph
        now = dict(argument_names(node, _function(self.graph, node)))
        before = dict(argument_names(old, _function(before_graph, old)))
        ignored = set(_function(self.graph, node).ignore if node.function >= 0 else ())
        for name in now:
            if name not in before and name not in ignored:
                return "ARGUMENT_NEW", f"argument {name} is new"
        for name in before:
            if name not in now and name not in ignored:
                return "ARGUMENT_REMOVED", f"argument {name} is no longer given"
        tables, old_tables = self._now, self._before
        unstable: tuple[str, str] | None = None
        for name, reference in now.items():
            if name in ignored:
                continue
            try:
                new_print = tables.print(reference, outputs.__getitem__)
                old_print = old_tables.print(before[name], self._old_output)
            except Unstable:
                unstable = unstable or (
                    "UNSTABLE_ARGUMENT",
                    f"argument {name} has no stable fingerprint, so it cannot be compared",
                )
                continue
            except KeyError:
                return "UPSTREAM", f"argument {name} comes from a task that has no result"
            if new_print != old_print:
                return self._changed(name, reference, before[name], outputs)
            for node_id in nodes_in(reference):
                if (ref := outputs.get(node_id)) is not None and ref.fingerprint is None:
                    name_of = self.graph.nodes[node_id].name
                    unstable = unstable or _unstable(name, name_of)
        return unstable

    def _old_output(self, node_id: int) -> ValueRef:
        assert self.index is not None
        output = self.index.records[node_id].output
        if output is None:
            raise KeyError(node_id)
        return output

    def _changed(
        self, name: str, now: Reference, before: Reference, outputs: Mapping[int, ValueRef]
    ) -> tuple[str, str]:
        tables, old_tables = self._now, self._before
        code = _code_in(before, old_tables, self._old_output)
        for key, digest in _code_in(now, tables, outputs.__getitem__).items():
            if code.get(key, digest) != digest:
                kind, _, label = key.partition(" ")
                label = label.rstrip(":").rpartition(":")[2]
                if kind == "class":
                    return "CLASS_OF_ARGUMENT", f"argument {name}: class {label} changed"
                call = "()" if kind == "function" else ""
                return "ARGUMENT", f"argument {name}: {label}{call} changed"
        upstream = [i for i in nodes_in(now) if i not in tables.parameters]
        if upstream:
            return self._other_results(name, upstream, before, outputs)
        first, second = self._literal(name, before, old_tables), self._literal(name, now, tables)
        if first is None or second is None:
            sources = [i for i in nodes_in(before) if i not in old_tables.parameters]
            if not sources:
                return "ARGUMENT", f"argument {name} is put together differently"
            source = old_tables.graph.nodes[sources[0]].name
            return "ARGUMENT", f"argument {name} no longer comes from {source}()"
        if first.startswith("File(") and first == second:
            return "FILE", f"content of {first[5:-1]} changed"
        if first != second:
            return "ARGUMENT", f"argument {name} changed: {first} → {second}"
        return "ARGUMENT", f"argument {name} has another value"

    def _literal(self, name: str, reference: Reference, tables: Tables) -> str | None:
        if reference[0] == "p":
            return self.text(name, tables.parameters[reference[1]].digest)
        return self.text(name, reference[1]) if reference[0] == "c" else None

    def _other_results(
        self, name: str, upstream: list[int], before: Reference, outputs: Mapping[int, ValueRef]
    ) -> tuple[str, str]:
        """Compare the results that an argument is made of, task by task."""
        old: dict[str, list[ValueRef]] = {}
        for node_id in nodes_in(before):
            if node_id not in self._before.parameters:
                source = self._before.graph.nodes[node_id].name
                old.setdefault(source, []).append(self._old_output(node_id))
        new: dict[str, list[ValueRef]] = {}
        for node_id in upstream:
            new.setdefault(self.graph.nodes[node_id].name, []).append(outputs[node_id])
        for source, found in new.items():
            if source not in old:
                return "ARGUMENT", f"argument {name} now comes from {source}()"
            if len(found) != len(old[source]):
                counts = f"{len(found)} results of {source}() instead of {len(old[source])}"
                return "ARGUMENT", f"argument {name} holds {counts}"
            if Counter(map(value_print, found)) != Counter(map(value_print, old[source])):
                if any(ref.fingerprint is None for ref in found):
                    return _unstable(name, source)
                if self._earlier_results(source).issuperset(map(value_print, found)):
                    return "ARGUMENT", f"argument {name} comes from another call of {source}()"
                text = f"argument {name} changed: result of {source}() has another value"
                return "UPSTREAM", text
        return "ARGUMENT", f"argument {name} is put together differently"

    def _earlier_results(self, source: str) -> set[str]:
        assert self.index is not None
        if not self._results:
            for (name, _), candidate in self.index.by_place.items():
                if candidate.record.output is not None:
                    found = self._results.setdefault(name, set())
                    found.add(value_print(candidate.record.output))
        return self._results.get(source, set())


def _unstable(name: str, source: str) -> tuple[str, str]:
    text = f"argument {name}: the result of {source}() has no stable fingerprint"
    return "UNSTABLE_ARGUMENT", text


def _code_in(
    reference: Reference, tables: Tables, outputs: Callable[[int], ValueRef]
) -> dict[str, str]:
    """Digests of the users' code in the values of an argument, by kind and name."""
    found: dict[str, str] = {}
    for leaf in leaves(reference):
        ref: ValueRef | None
        if leaf[0] == "n" and leaf[1] not in tables.parameters:
            ref = outputs(leaf[1])
        elif leaf[0] in ("p", "n"):
            ref = tables.parameters[leaf[1]]
        else:
            ref = tables.graph.values.get(leaf[1])
        for key, digest in ((ref.parts or {}) if ref is not None else {}).items():
            if key.startswith(("class ", "function ", "module ")):
                found[key] = digest
    return found


def same_code(first: Function, second: Function) -> bool:
    """Whether two stored functions do the same, as far as can be told."""
    if first.ast is not None and first.ast == second.ast:
        return True
    return first.code is not None and first.code == second.code


def _function(graph: Graph, node: Node) -> Function:
    return graph.functions[node.function] if node.function >= 0 else Function(None, node.name)


def _parent_reason(record: NodeRecord | None) -> tuple[str, str] | None:
    if record is None or record.status not in _ENDED:
        return "PARENT_UNFINISHED", _SENTENCES["PARENT_UNFINISHED"]
    if record.status is NodeStatus.FAILED:
        return "PARENT_FAILED", "it had failed in the earlier dispatch"
    if record.status is NodeStatus.SKIPPED:
        return "PARENT_FAILED", "it had been skipped in the earlier dispatch"
    if record.status is NodeStatus.CANCELLED:
        return "PARENT_CANCELLED", "it had been cancelled in the earlier dispatch"
    return None


_ENDED: Any = frozenset(
    {NodeStatus.COMPLETED, NodeStatus.FAILED, NodeStatus.SKIPPED, NodeStatus.CANCELLED}
)
