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
from collections import deque
from collections.abc import Callable, Iterable, Mapping
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
    "argument_prints",
    "execution_keys",
    "occurrences",
    "reference_print",
    "value_print",
]

Lookup = Callable[[int], ValueRef]
_PATH = values.fingerprint("chelate path")
_OBJECT = values.fingerprint("chelate object")


class Unstable(Exception):
    """An argument has no stable fingerprint; ``args[0]`` is the parameter's name."""


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
    """Parameter names with their references, in the order of the call."""
    names = function.parameters if function is not None else ()
    named = [
        (names[index] if index < len(names) else f"arg[{index}]", reference)
        for index, reference in enumerate(node.args)
    ]
    return [*named, *sorted(node.kwargs.items())]


@dataclass(frozen=True, slots=True)
class Keys:
    """The two execution keys of a node; ``ast`` is None where the source is not to be had.

    They are texts to compare and live no longer than the decision, so nobody hashes them.
    """

    ast: str | None
    code: str | None

    def __iter__(self) -> Any:
        return (key for key in (self.ast, self.code) if key is not None)


class Tables:
    """What fingerprints of a graph's arguments need, gathered once per graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.parameters = {node.id: node.value for node in graph.nodes if node.value is not None}

    def print(self, reference: Reference, lookup: Lookup) -> str:
        """The fingerprint of a reference; raises Unstable."""
        return reference_print(reference, lookup, self.parameters, self.graph.values)


def argument_prints(node: Node, tables: Tables, lookup: Lookup) -> list[list[str]]:
    """``[[parameter, fingerprint], …]`` of a call, ignored parameters left out.

    Raises:
        Unstable: an argument has no fingerprint; names the parameter.
    """
    graph = tables.graph
    function = graph.functions[node.function] if node.function >= 0 else None
    found: list[list[str]] = []
    for name, reference in argument_names(node, function):
        if function is not None and name in function.ignore:
            continue
        try:
            found.append([name, tables.print(reference, lookup)])
        except Unstable as error:
            raise Unstable(name) from error
    return found


def execution_keys(node: Node, tables: Tables, lookup: Lookup) -> Keys:
    """The keys of a node whose inputs are known.

    Raises:
        Unstable: an argument has no fingerprint.
    """
    graph = tables.graph
    function = graph.functions[node.function] if node.function >= 0 else None
    arguments = argument_prints(node, tables, lookup)
    ast: str | None
    code: str | None
    if function is None:
        ast = code = node.kind
    elif node.kind == Kind.OPERATOR:
        ast = code = f"operator {function.name}"
    else:
        ast, code = function.ast, function.code

    given = "".join([f" {len(name)} {name} {found}" for name, found in arguments])
    return Keys(
        None if ast is None else f"{node.kind} ast {ast}{given}",
        None if code is None else f"{node.kind} code {code}{given}",
    )


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

    ``by_key`` maps an execution key and whether the stored result is damaged to queues by name.
    """

    dispatch_id: str
    graph: Graph
    records: Mapping[int, NodeRecord]
    by_key: dict[tuple[str, bool], dict[str, deque[Candidate]]] = field(default_factory=dict)
    by_place: dict[tuple[str, int], Candidate] = field(default_factory=dict)
    by_origin: dict[tuple[str, int], Candidate] = field(default_factory=dict)
    nodes: dict[tuple[str, int], int] = field(default_factory=dict)  # also those not completed
    keys: dict[int, Keys] = field(default_factory=dict)
    used: set[int] = field(default_factory=set)

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
        tables = Tables(graph)
        places = occurrences(graph)
        index.nodes = {place: node_id for node_id, place in places.items()}
        outputs = {
            node_id: record.output
            for node_id, record in records.items()
            if record.status is NodeStatus.COMPLETED and record.output is not None
        }
        trouble = damaged({output.digest for output in outputs.values()})
        for node in graph.tasks():
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
                queues = index.by_key.setdefault((key, damage is not None), {})
                queues.setdefault(name, deque()).append(candidate)
        return index

    def match(self, name: str, occurrence: int, keys: Keys) -> Candidate | None:
        """The candidate to take over, not yet used up.

        First the call of the same name and occurrence, then any of the same name, then any; one
        whose stored bytes are damaged only if there is no other.
        """
        own = self.by_place.get((name, occurrence))
        if own is not None and own.damage is None and own.node.id not in self.used:
            known = self.keys.get(own.node.id)
            if known is not None and not set(keys).isdisjoint(known):
                return own
        for damaged in (False, True):
            heads = [
                head
                for key in keys
                for queue in self.by_key.get((key, damaged), {}).values()
                if (head := self._head(queue)) is not None
            ]
            if heads:
                return min(heads, key=lambda head: (head.name != name, head.node.id))
        return None

    def _head(self, queue: deque[Candidate]) -> Candidate | None:
        while queue and queue[0].node.id in self.used:
            queue.popleft()
        return queue[0] if queue else None

    def use(self, candidate: Candidate) -> None:
        """Nobody else may take it over."""
        self.used.add(candidate.node.id)

    def taken(self, origins: Iterable[tuple[str, int] | None]) -> frozenset[int]:
        """The nodes whose results, first computed at ``origins``, have been taken over."""
        known = (self.by_origin.get(origin) for origin in origins if origin is not None)
        return frozenset(candidate.node.id for candidate in known if candidate is not None)
