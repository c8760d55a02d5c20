"""The graph: nodes with their calls, as data that the kernel can read without opening a value.

An argument is a *reference*, a JSON list:

==========================  ====================================================================
``["p", id]``               the value of parameter node ``id``
``["n", id, path]``         the output of node ``id``, then along ``path``; each step is
                            ``["i", key]`` (an item; key is int, str, bool or None),
                            ``["c", digest]`` (an item whose key is a stored value),
                            ``["a", name]`` (an attribute) or
                            ``["u", index, count, star]`` (tuple unpacking into ``count``
                            targets, ``star`` the index of the starred one or None)
``["c", digest]``           a stored constant inside a container
``["l", refs]``             a list; ``"t"`` tuple, ``"s"`` set, ``"f"`` frozenset alike
``["d", [[ref, ref], …]]``  a dict of key and value references, in order
``["o", digest, refs]``     a rebuilt object: the stored callable applied to refs (named tuples)
==========================  ====================================================================

Only built-in containers are taken apart, and only when they hold a placeholder; a list of a
thousand numbers is one value.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chelate.errors import CycleError, GraphError
from chelate.model import TaskPolicy, ValueRef

__all__ = ["Function", "Graph", "Kind", "Node", "Reference", "digests_in", "leaves", "nodes_in"]

Reference = list[Any]
FORMAT = 1


class Kind:
    """What a node is."""

    TASK = "task"
    PARAMETER = "parameter"  # complete from the start, never scheduled
    OPERATOR = "operator"  # arithmetic or a method call on a placeholder
    SUBLATTICE = "sublattice"  # an electron on a lattice
    RETURN = "return"  # rebuilds what the lattice returns from several outputs
    BUILD = "build"  # builds the graph of its own dispatch in a worker


@dataclass(frozen=True, slots=True)
class Function:
    """A stored function: the blob of its pickle, its name, its parameters' names.

    ``manifest`` is the digest of the stored fingerprint manifest and ``fingerprint`` its two
    digests (syntax tree, bytecode); both None until fingerprints are taken.
    """

    digest: str | None
    name: str
    parameters: tuple[str, ...] = ()
    ast: str | None = None
    code: str | None = None
    manifest: str | None = None
    ignore: tuple[str, ...] = ()  # parameters that do not count for a redispatch


@dataclass(slots=True)
class Node:
    """One node. ``args`` and ``kwargs`` hold references, ``after`` ids it only waits for."""

    id: int
    name: str
    kind: str = Kind.TASK
    function: int = -1  # index into Graph.functions
    args: list[Reference] = field(default_factory=list)
    kwargs: dict[str, Reference] = field(default_factory=dict)
    after: tuple[int, ...] = ()
    policy: int = -1  # index into Graph.policies
    line: str = ""  # the lattice line that made the call: "file.py:12"
    value: ValueRef | None = None  # parameter nodes only

    def references(self) -> Iterator[Reference]:
        yield from self.args
        yield from self.kwargs.values()

    def parents(self) -> set[int]:
        """Ids of the nodes that must complete first, parameter nodes included."""
        found: set[int] = set(self.after)
        for reference in self.references():
            head = reference[0]
            if head == "p" or head == "n":
                found.add(reference[1])
            elif head != "c":
                found.update(nodes_in(reference))
        return found


def leaves(reference: Reference) -> Iterator[Reference]:
    """Every leaf reference (``p``, ``n``, ``c``) and every ``o``, without recursion."""
    stack = [reference]
    while stack:
        item = stack.pop()
        head = item[0]
        if head in ("l", "t", "s", "f"):
            stack.extend(reversed(item[1]))
        elif head == "d":
            for key, value in reversed(item[1]):
                stack.append(value)
                stack.append(key)
        else:
            yield item
            if head == "o":
                stack.extend(reversed(item[2]))


def nodes_in(reference: Reference) -> Iterator[int]:
    """Ids of the nodes a reference needs."""
    for leaf in leaves(reference):
        if leaf[0] in ("p", "n"):
            yield leaf[1]


def digests_in(reference: Reference) -> Iterator[str]:
    """Digests of the stored constants a reference needs, path keys included."""
    for leaf in leaves(reference):
        if leaf[0] == "c" or leaf[0] == "o":
            yield leaf[1]
        elif leaf[0] == "n" and len(leaf) > 2:
            for step in leaf[2]:
                if step[0] == "c":
                    yield step[1]


@dataclass(slots=True)
class Graph:
    """A whole workflow as data.

    ``result`` says what the lattice returns: ``["n", id]`` for one node's output (``RETURN``
    nodes included) or ``["c", digest]`` for a constant. ``values`` gives size and fingerprint of
    every stored constant by digest.
    """

    name: str
    nodes: list[Node] = field(default_factory=list)
    functions: list[Function] = field(default_factory=list)
    policies: list[TaskPolicy] = field(default_factory=list)
    values: dict[str, ValueRef] = field(default_factory=dict)
    result: Reference = field(default_factory=list)
    code: str | None = None  # blob: snapshot of the user modules the functions refer to
    metadata: dict[str, Any] | None = None  # what sub-workflows inherit (Lattice.effective)

    def tasks(self) -> Iterator[Node]:
        """The nodes that are scheduled: all but parameters."""
        return (node for node in self.nodes if node.kind != Kind.PARAMETER)

    def dependencies(self) -> dict[int, set[int]]:
        """Scheduled node → scheduled nodes it needs."""
        parameter = {node.id for node in self.nodes if node.kind == Kind.PARAMETER}
        return {node.id: node.parents() - parameter for node in self.tasks()}

    def order(self) -> list[int]:
        """Ids of the scheduled nodes, each after what it needs.

        Raises:
            CycleError: a circle; the message names its nodes.
            GraphError: a reference to a node that is not there.
        """
        needs = self.dependencies()
        known = needs.keys()
        children: dict[int, list[int]] = {}
        pending: dict[int, int] = {}
        for node_id, parents in needs.items():
            pending[node_id] = len(parents)
            for parent in parents:
                if parent not in known:
                    raise GraphError(f"Node {node_id} needs node {parent}, which does not exist.")
                children.setdefault(parent, []).append(node_id)
        ready = deque(node_id for node_id, count in pending.items() if not count)
        done: list[int] = []
        while ready:
            node_id = ready.popleft()
            done.append(node_id)
            for child in children.get(node_id, ()):
                pending[child] -= 1
                if not pending[child]:
                    ready.append(child)
        if len(done) != len(pending):
            self._raise_cycle(needs, set(done))
        return done

    def _raise_cycle(self, needs: Mapping[int, set[int]], done: set[int]) -> None:
        names = {node.id: node.name for node in self.nodes}
        current = next(node_id for node_id in needs if node_id not in done)
        seen: list[int] = []
        while current not in seen:
            seen.append(current)
            current = min(parent for parent in needs[current] if parent not in done)
        circle = [*seen[seen.index(current) :], current]
        path = " → ".join(f"{names[node_id]} ({node_id})" for node_id in reversed(circle))
        raise CycleError(f"These tasks wait for each other in a circle: {path}.")

    def descendants(self, node_ids: Iterable[int]) -> set[int]:
        """Everything downstream of the given nodes, themselves excluded unless reached."""
        children: dict[int, list[int]] = {}
        for node_id, parents in self.dependencies().items():
            for parent in parents:
                children.setdefault(parent, []).append(node_id)
        found: set[int] = set()
        stack = [child for node_id in node_ids for child in children.get(node_id, ())]
        while stack:
            node_id = stack.pop()
            if node_id not in found:
                found.add(node_id)
                stack.extend(children.get(node_id, ()))
        return found

    # -- JSON ---------------------------------------------------------------------------------

    def to_json(self) -> bytes:
        """Compact JSON, the same bytes for the same graph."""
        lines: dict[str, int] = {}
        names: dict[str, int] = {}
        rows = [
            [
                node.id,
                node.kind,
                names.setdefault(node.name, len(names)),
                node.function,
                node.args,
                node.kwargs,
                node.after,
                node.policy,
                lines.setdefault(node.line, len(lines)),
                node.value.to_json() if node.value else None,
            ]
            for node in self.nodes
        ]
        document = {
            "format": FORMAT,
            "name": self.name,
            "names": list(names),
            "lines": list(lines),
            "functions": [
                [f.digest, f.name, f.parameters, f.ast, f.code, f.manifest, f.ignore]
                for f in self.functions
            ],
            "policies": [policy.to_json() for policy in self.policies],
            "values": [value.to_json() for value in self.values.values()],
            "nodes": rows,
            "result": self.result,
            "code": self.code,
            "metadata": self.metadata,
        }
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Graph:
        """The inverse of :meth:`to_json`.

        Raises:
            GraphError: the bytes are not a graph of a known format.
        """
        try:
            document = json.loads(data)
            if document["format"] != FORMAT:
                raise GraphError(
                    f"This graph has format {document['format']}; this chelate reads {FORMAT}."
                )
            names: Sequence[str] = document["names"]
            lines: Sequence[str] = document["lines"]
            refs = [ref for item in document["values"] if (ref := ValueRef.from_json(item))]
            return cls(
                name=document["name"],
                nodes=[
                    Node(
                        row[0],
                        names[row[2]],
                        row[1],
                        row[3],
                        row[4],
                        row[5],
                        tuple(row[6]),
                        row[7],
                        lines[row[8]],
                        ValueRef.from_json(row[9]),
                    )
                    for row in document["nodes"]
                ],
                functions=[
                    Function(row[0], row[1], tuple(row[2]), row[3], row[4], row[5], tuple(row[6]))
                    for row in document["functions"]
                ],
                policies=[TaskPolicy.from_json(item) for item in document["policies"]],
                values={ref.digest: ref for ref in refs},
                result=document["result"],
                code=document["code"],
                metadata=document["metadata"],
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise GraphError(f"These bytes are not a graph: {error!r}.") from error
