"""Which node may take over which stored result: execution keys and the multiset they select from.

A node's *execution key* says what its result depends on: its code, and the fingerprints of
its arguments by parameter. Neither name, number, position, executor nor resources are in it. It
comes twice, once with the syntax-tree digest of the code and once with the bytecode digest; two
nodes are equal when either agrees. Completed nodes of the parent form a multiset by key, and each
is used up by the node that takes it over: two equal calls of a random task have two results, and
a third call runs.

Decisions follow verifying traces ("Build Systems à la Carte", Mokhov, Mitchell and Peyton Jones,
2018): a node is decided when its inputs are known, so an equal output upstream stops the re-run
there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chelate import values
from chelate.graph import Function, Graph, Kind, Node, Reference
from chelate.model import NodeRecord, NodeStatus, ValueRef

__all__ = [
    "Candidate",
    "Keys",
    "ReuseIndex",
    "Tables",
    "Unstable",
    "argument_names",
    "execution_keys",
    "occurrences",
    "reference_print",
    "value_print",
]

Lookup = Callable[[int], ValueRef]
_PATH = values.fingerprint("chelate path")
_OBJECT = values.fingerprint("chelate object")


class Unstable(Exception):
    """An argument has no stable fingerprint."""


def value_print(ref: ValueRef) -> str:
    """The fingerprint of a task's output.

    An output without one counts by its stored bytes: when the task that made it was reused the
    bytes are the same ones, and otherwise nobody can tell.
    """
    return ref.fingerprint or values.fingerprint(f"blob {ref.digest}") or ""


def _path_print(ref: ValueRef, path: list[list[Any]], constants: Mapping[str, ValueRef]) -> str:
    base = value_print(ref)
    if ref.parts is not None and (part := ref.parts.get(_part_name(path[0]))) is not None:
        base, path = part, path[1:]
    if not path:
        return base
    steps = [["c", _constant(step[1], constants)] if step[0] == "c" else step for step in path]
    text = values.fingerprint(json.dumps(steps))
    return values.combine("t", [_PATH or "", base, text or ""])


def _part_name(step: list[Any]) -> str:
    """How ``values.parts`` names the item that a step takes, or something it never names."""
    if step[0] == "i":
        return values.part_key(step[1]) or ""
    if step[0] == "u" and step[3] is None:
        return str(step[1])
    return ""


def _constant(digest: str, constants: Mapping[str, ValueRef]) -> str:
    ref = constants.get(digest)
    if ref is None or ref.fingerprint is None:
        raise Unstable("")
    return ref.fingerprint


def reference_print(
    reference: Reference,
    lookup: Lookup,
    parameters: Mapping[int, ValueRef],
    constants: Mapping[str, ValueRef],
) -> str:
    """The fingerprint of an argument, from the fingerprints of what it is made of.

    Raises:
        Unstable: a constant in it has none.
    """
    head = reference[0]
    if head == "p":
        ref = parameters[reference[1]]
        if ref.fingerprint is None:
            raise Unstable("")
        return ref.fingerprint
    if head == "n":
        ref = lookup(reference[1])
        return (
            value_print(ref) if len(reference) == 2 else _path_print(ref, reference[2], constants)
        )
    if head == "c":
        return _constant(reference[1], constants)
    if head == "d":
        flat = [part for pair in reference[1] for part in pair]
        return values.combine(
            "d", [reference_print(part, lookup, parameters, constants) for part in flat]
        )
    if head == "o":
        inner = [reference_print(part, lookup, parameters, constants) for part in reference[2]]
        made_by = _constant(reference[1], constants)
        return values.combine("t", [_OBJECT or "", made_by, *inner])
    return values.combine(
        head, [reference_print(part, lookup, parameters, constants) for part in reference[1]]
    )


def argument_names(node: Node, function: Function | None) -> list[tuple[str, Reference]]:
    """Parameter names with their references, in the order of the call; those that a star takes
    in are ``args[0]``, ``args[1]`` and so on."""
    names = _names(() if function is None else function.parameters, len(node.args))
    named = list(zip(names, node.args, strict=False))
    return [*named, *sorted(node.kwargs.items())]


def _names(parameters: Sequence[str], count: int) -> list[str]:
    """What the first ``count`` positional arguments are called."""
    leading = next((i for i, name in enumerate(parameters) if name[0] == "*"), len(parameters))
    star = parameters[leading].lstrip("*") if leading < len(parameters) else "arg"
    return [*parameters[:leading], *(f"{star}[{i}]" for i in range(count - leading))][:count]


# The two execution keys of a node, by syntax tree (None where the source is not to be had) and by
# bytecode. They are texts to compare and live no longer than the decision, so nobody hashes them.
Keys = tuple["str | None", "str | None"]


class Tables:
    """What fingerprints of a graph's arguments need, gathered once per graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.parameters = {node.id: node.value for node in graph.nodes if node.value is not None}
        self._calls: dict[tuple[str, int, int], tuple[list[str], frozenset[str], Keys]] = {}

    def print(self, reference: Reference, lookup: Lookup) -> str:
        """The fingerprint of a reference; raises Unstable."""
        return reference_print(reference, lookup, self.parameters, self.graph.values)

    def call(self, node: Node) -> tuple[list[str], frozenset[str], Keys]:
        """Names of the positional arguments, those that do not count, and the keys' beginnings."""
        which = (node.kind, node.function, len(node.args))
        known = self._calls.get(which)
        if known is None:
            function = self.graph.functions[node.function] if node.function >= 0 else None
            names = _names(() if function is None else function.parameters, len(node.args))
            ignored = frozenset(() if function is None else function.ignore)
            ast: str | None
            code: str | None
            if function is None:
                ast = code = node.kind
            elif node.kind == Kind.OPERATOR:
                ast = code = f"operator {function.name}"
            else:
                ast, code = function.ast, function.code
            heads = (
                None if ast is None else f"{node.kind} ast {ast}",
                None if code is None else f"{node.kind} code {code}",
            )
            known = self._calls[which] = names, ignored, heads
        return known


def execution_keys(node: Node, tables: Tables, lookup: Lookup) -> Keys:
    """The keys of a node whose inputs are known.

    Raises:
        Unstable: an argument has no fingerprint.
    """
    names, ignored, (ast, code) = tables.call(node)
    parameters, constants = tables.parameters, tables.graph.values
    given = ""
    for name, reference in zip(names, node.args, strict=True):
        if name not in ignored:
            found = reference_print(reference, lookup, parameters, constants)
            given += f" {len(name)} {name} {found}"
    if node.kwargs:
        for name, reference in sorted(node.kwargs.items()):
            if name not in ignored:
                found = reference_print(reference, lookup, parameters, constants)
                given += f" {len(name)} {name} {found}"
    return (None if ast is None else ast + given, None if code is None else code + given)


def occurrences(graph: Graph) -> dict[int, tuple[str, int]]:
    """Node id → its name and which call of that name it is, counted from 0."""
    seen: dict[str, int] = {}
    found: dict[int, tuple[str, int]] = {}
    for node in graph.tasks():
        count = seen.get(node.name, 0)
        seen[node.name] = count + 1
        found[node.id] = (node.name, count)
    return found


@dataclass(slots=True)
class Candidate:
    """A completed node of the parent. ``damage`` says what is wrong with its stored result."""

    node: Node
    record: NodeRecord
    name: str
    occurrence: int
    origin: tuple[str, int]
    damage: str | None = None


@dataclass(slots=True)
class ReuseIndex:
    """The parent's completed nodes, by execution key, by name, and what has been used up.

    ``by_key`` maps an execution key and whether the stored result is damaged to candidates by
    name, the first one last.
    """

    dispatch_id: str
    graph: Graph
    records: Mapping[int, NodeRecord]
    by_key: dict[tuple[str, bool], dict[str, list[Candidate]]] = field(default_factory=dict)
    by_place: dict[tuple[str, int], Candidate] = field(default_factory=dict)
    by_origin: dict[tuple[str, int], Candidate] = field(default_factory=dict)
    nodes: dict[tuple[str, int], int] = field(default_factory=dict)  # also those not completed
    keys: dict[int, Keys] = field(default_factory=dict)
    used: set[int] = field(default_factory=set)
    tables: Tables = field(init=False)

    def __post_init__(self) -> None:
        self.tables = Tables(self.graph)

    @classmethod
    def of(
        cls,
        dispatch_id: str,
        graph: Graph,
        records: Mapping[int, NodeRecord],
        damaged: Callable[[Iterable[str]], Mapping[str, str]],
    ) -> ReuseIndex:
        """Index a dispatch. ``damaged`` tells of digests whose bytes are gone or wrong."""
        index = cls(dispatch_id, graph, records)
        tables = index.tables
        places = occurrences(graph)
        index.nodes = {place: node_id for node_id, place in places.items()}
        outputs = {
            node_id: record.output
            for node_id, record in records.items()
            if record.status is NodeStatus.COMPLETED and record.output is not None
        }
        trouble = damaged({output.digest for output in outputs.values()})
        for node in reversed(graph.nodes):
            output = outputs.get(node.id)
            if output is None:
                continue
            record = records[node.id]
            name, occurrence = places[node.id]
            origin = record.reused_from or (dispatch_id, node.id)
            damage = trouble.get(output.digest)
            candidate = Candidate(node, record, name, occurrence, origin, damage)
            index.by_place[name, occurrence] = index.by_origin[origin] = candidate
            try:
                keys = execution_keys(node, tables, outputs.__getitem__)
            except (Unstable, KeyError):
                continue
            index.keys[node.id] = keys
            for key in keys:
                if key is not None:
                    by_name = index.by_key.setdefault((key, damage is not None), {})
                    by_name.setdefault(name, []).append(candidate)
        return index

    def match(self, name: str, occurrence: int, keys: Keys) -> Candidate | None:
        """The candidate to take over, not yet used up.

        First the call of the same name and occurrence, then any of the same name, then any; one
        whose stored bytes are damaged only if there is no other.
        """
        own = self.by_place.get((name, occurrence))
        if own is not None and own.damage is None and own.node.id not in self.used:
            known = self.keys.get(own.node.id)
            if known is not None and any(
                key is not None and key == other for key, other in zip(keys, known, strict=True)
            ):
                return own
        for damaged in (False, True):
            heads = [
                head
                for key in keys
                if key is not None
                for queue in self.by_key.get((key, damaged), {}).values()
                if (head := self._head(queue)) is not None
            ]
            if heads:
                return min(heads, key=lambda head: (head.name != name, head.node.id))
        return None

    def _head(self, queue: list[Candidate]) -> Candidate | None:
        while queue and queue[-1].node.id in self.used:
            queue.pop()
        return queue[-1] if queue else None

    def use(self, candidate: Candidate) -> None:
        """Nobody else may take it over."""
        self.used.add(candidate.node.id)

    def taken(self, origins: Iterable[tuple[str, int] | None]) -> frozenset[int]:
        """The nodes whose results, first computed at ``origins``, have been taken over."""
        known = (self.by_origin.get(origin) for origin in origins if origin is not None)
        return frozenset(candidate.node.id for candidate in known if candidate is not None)
