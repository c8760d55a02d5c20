"""``ct.explain`` and ``plan()``: decision and one reason for every node, for people and as data."""

from __future__ import annotations

import html
import json
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from chelate.client.codec import load_value
from chelate.client.fingerprint.manifest import compare_manifests, shown
from chelate.embedding import current
from chelate.errors import ChelateError
from chelate.gateway import LocalGateway
from chelate.graph import Function, Graph, Kind, Node, nodes_in
from chelate.kernel.reuse import Reuse, collecting_later, nondeterminism_fact, parent_trouble
from chelate.model import FINAL, DispatchRecord, NodeRecord, ValueRef
from chelate.reasons import Decision, Reasons
from chelate.values import File

__all__ = ["Explanation", "explain", "is_unbuilt", "plan_dispatch", "stored_graph"]

_COLUMNS = 100
_NAME = 30
_FEW = 3


def _folded(text: str, initial_indent: str = "", subsequent_indent: str = "") -> list[str]:
    """Lines of at most ``_COLUMNS``; ids and paths stay whole, so that they can be copied."""
    return textwrap.wrap(
        text,
        _COLUMNS,
        initial_indent=initial_indent,
        subsequent_indent=subsequent_indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


class Explanation:
    """Decisions in order of node id. Iterate it, index it by node id or task name, print it, or
    show it in a notebook; :meth:`to_json` gives plain data."""

    def __init__(self, title: str, rows: list[Decision], notes: list[str]) -> None:
        self.title = title
        self.rows = rows
        self.notes = notes

    def __iter__(self) -> Iterator[Decision]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | str) -> Decision:
        for row in self.rows:
            if row.node_id == key or (isinstance(key, str) and row.name == key):
                return row
        raise KeyError(key)

    @property
    def counts(self) -> dict[str, int]:
        """How many nodes are REUSE, RUN and OPEN."""
        found = {"REUSE": 0, "RUN": 0, "OPEN": 0}
        for row in self.rows:
            found[row.decision] += 1
        return found

    def to_json(self) -> dict[str, Any]:
        """``{"title", "counts", "nodes": [{"node_id", "name", "decision", "code", "reason",
        "origin"}], "notes"}``."""
        return {
            "title": self.title,
            "counts": self.counts,
            "nodes": [
                {
                    "node_id": row.node_id,
                    "name": row.name,
                    "decision": row.decision,
                    "code": row.code,
                    "reason": row.sentence,
                    "origin": list(row.origin) if row.origin else None,
                }
                for row in self.rows
            ],
            "notes": self.notes,
        }

    def __str__(self) -> str:
        counts = self.counts
        told = ", ".join(f"{number} {word.lower()}" for word, number in counts.items() if number)
        lines = _folded(f"{self.title}: {told or 'no tasks'}")
        width = min(_NAME, max([4, *(len(row.name) for row in self.rows)]))
        hanging = " " * (width + 16)
        for row in self.rows:
            name = row.name if len(row.name) <= width else row.name[: width - 1] + "…"
            head = f"{row.node_id:>5}  {name:<{width}}  {row.decision:<5}  "
            text = " ".join(row.sentence.split())
            lines += _folded(text, initial_indent=head, subsequent_indent=hanging) or [
                head.rstrip()
            ]
        for note in self.notes:
            lines += _folded(f"Note: {note}", subsequent_indent="  ")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td>{row.node_id}</td><td>{html.escape(row.name)}</td>"
            f"<td>{row.decision}</td><td>{html.escape(row.sentence)}</td></tr>"
            for row in self.rows
        )
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return (
            f"<table><caption>{html.escape(self.title)}</caption><thead><tr><th>node</th>"
            f"<th>task</th><th>decision</th><th>reason</th></tr></thead><tbody>{cells}</tbody>"
            f"</table>{notes}"
        )

    def __bool__(self) -> bool:
        return True

    def json(self) -> str:
        """:meth:`to_json` as text."""
        return json.dumps(self.to_json())


def explain(dispatch_id: str, dispatcher_addr: str | None = None) -> Explanation:
    """Why each node of a dispatch was reused or run.

    Raises:
        InvalidDispatchIdError, DispatchNotFoundError: the id is wrong.
        StoreError: the dispatch's own graph cannot be read.
    """
    gateway = current()
    record = gateway.record(dispatch_id)
    with collecting_later():
        return _explain(gateway, record)


def _explain(gateway: LocalGateway, record: DispatchRecord) -> Explanation:
    graph = gateway.graph(record)
    if is_unbuilt(graph):
        how = "could not be built" if record.status.final else "is being built"
        then = "" if record.status.final else " yet; wait for it, and ask again"
        note = f"The workflow {how} from its new inputs, so there is nothing to explain{then}."
        return Explanation(f"{record.name} {record.dispatch_id}", [], [note])
    rows = gateway.nodes(record.dispatch_id)
    reuse = Reuse.of(gateway.store, record, graph)
    outputs = {node.id: node.value for node in graph.nodes if node.value is not None}
    outputs.update({i: row.output for i, row in rows.items() if row.output is not None})
    taken = frozenset[int]()
    if reuse is not None:
        taken = reuse.index.taken(row.reused_from for row in rows.values())
    reasons = _reasons(gateway, record.options, graph, reuse, taken)
    found: list[Decision] = []
    for node in graph.tasks():
        row = rows.get(node.id) or NodeRecord(node.id)
        if row.reused_from is not None:
            found.append(_reused(graph, node.id, row.reused_from, rows))
        elif row.attempt == 0:
            code = "NOT_REACHED" if row.status in FINAL else "OPEN"
            text = row.error or "not decided yet"
            found.append(Decision(node.id, node.name, "OPEN", code, text))
        else:
            code, text = reasons.run(node, row.decision, outputs)
            found.append(Decision(node.id, node.name, "RUN", code, text))
    source = record.options.get("reuse_from")
    title = f"{record.name} {record.dispatch_id}" + (f", reusing {source}" if source else "")
    notes = _notes(gateway, graph)
    inside = [row for row in found if row.decision == "RUN" and rows[row.node_id].child_id]
    if source and inside:
        few = ", ".join(f"{row.name} {rows[row.node_id].child_id}" for row in inside[:_FEW])
        more = f", and {len(inside) - _FEW} more" if len(inside) > _FEW else ""
        notes.append(f"Sub-workflows that ran have decisions of their own to explain: {few}{more}.")
    return Explanation(title, found, notes)


def is_unbuilt(graph: Graph) -> bool:
    """Whether a graph only says that the workflow is to be built in a worker."""
    return bool(graph.nodes) and graph.nodes[0].kind == Kind.BUILD


def stored_graph(gateway: LocalGateway, record: DispatchRecord, graph: Graph) -> tuple[str, Graph]:
    """The dispatch itself and its graph or, while that has not been built (or could not be), the
    one that it came from."""
    while is_unbuilt(graph) and record.redispatched_from:
        record = gateway.record(record.redispatched_from)
        graph = gateway.graph(record)
    return record.dispatch_id, graph


def plan_dispatch(
    gateway: LocalGateway,
    graph: Graph,
    options: Mapping[str, Any],
    blobs: Mapping[str, bytes] | None = None,
) -> Explanation:
    """Decide as far as can be known without running anything."""
    with collecting_later():
        return _plan(gateway, graph, options, blobs)


def _plan(
    gateway: LocalGateway,
    graph: Graph,
    options: Mapping[str, Any],
    blobs: Mapping[str, bytes] | None,
) -> Explanation:
    record = DispatchRecord("plan", graph.name, options=dict(options))
    reuse = Reuse.of(gateway.store, record, graph)
    outputs: dict[int, ValueRef] = {
        node.id: node.value for node in graph.nodes if node.value is not None
    }
    decided: dict[int, tuple[str, str | None, tuple[str, int] | None]] = {}
    needs = graph.dependencies()
    ordered = all(parent < node_id for node_id, found in needs.items() for parent in found)
    for node_id in needs if ordered else graph.order():
        if reuse is None:
            decided[node_id] = ("RUN", None, None)
            continue
        opted_out = graph.policies[graph.nodes[node_id].policy].reuse is False
        if not opted_out and any(parent not in outputs for parent in needs[node_id]):
            decided[node_id] = ("OPEN", None, None)
            continue
        look = reuse.look(node_id, outputs.__getitem__)
        if look.output is not None:
            decided[node_id] = ("REUSE", None, look.origin)
            outputs[node_id] = look.output
        else:
            decided[node_id] = ("RUN", look.code, None)
    taken = frozenset[int]()
    if reuse is not None:
        taken = reuse.index.taken(origin for _, _, origin in decided.values())
    reasons = _reasons(gateway, options, graph, reuse, taken, blobs)
    found: list[Decision] = []
    for node in graph.tasks():
        word, code, origin = decided[node.id]
        if word == "REUSE":
            found.append(_reused(graph, node.id, origin, {}))
        elif word == "OPEN":
            text = f"decided when {_waiting(graph, node, outputs)}"
            found.append(Decision(node.id, node.name, "OPEN", "OPEN", text))
        else:
            why = reasons.run(node, code, outputs)
            found.append(Decision(node.id, node.name, "RUN", *why))
    source = options.get("reuse_from")
    title = f"Plan for {graph.name}" + (f", reusing {source}" if source else "")
    notes = _notes(gateway, graph)
    if source and any(
        row.decision != "REUSE" and graph.nodes[row.node_id].kind == Kind.SUBLATTICE
        for row in found
    ):
        notes.append("A sub-workflow that runs decides for each of its own tasks when it is built.")
    return Explanation(title, found, notes)


def _waiting(graph: Graph, node: Node, outputs: Mapping[int, ValueRef]) -> str:
    """Whose results a node's decision waits for, in the order of its arguments."""
    needed = [i for reference in node.references() for i in nodes_in(reference)]
    names = list(
        dict.fromkeys(graph.nodes[i].name for i in (*needed, *node.after) if i not in outputs)
    )
    if len(names) == 1:
        return f"{names[0]} finishes"
    if len(names) > _FEW:
        names = [*names[:_FEW], f"{len(names) - _FEW} more"]
    return f"{', '.join(names[:-1])} and {names[-1]} finish"


def _reused(
    graph: Graph,
    node_id: int,
    origin: tuple[str, int] | None,
    rows: Mapping[int, NodeRecord],
) -> Decision:
    node = graph.nodes[node_id]
    if graph.policies[node.policy].reuse == "always":
        return Decision(node_id, node.name, "REUSE", "ALWAYS", 'reuse="always"', origin)
    ran = [
        graph.nodes[parent].name
        for parent in (sorted(node.parents()) if rows else ())
        if (row := rows.get(parent)) is not None and row.attempt > 0 and row.reused_from is None
    ]
    if ran:
        text = f"same value although {ran[0]}() ran again"
        return Decision(node_id, node.name, "REUSE", "SAME_VALUE", text, origin)
    return Decision(node_id, node.name, "REUSE", "SAME", "same code and same inputs", origin)


def _reasons(
    gateway: LocalGateway,
    options: Mapping[str, Any],
    graph: Graph,
    reuse: Reuse | None,
    taken: frozenset[int],
    blobs: Mapping[str, bytes] | None = None,
) -> Reasons:
    store = gateway.store

    def read(digest: str) -> bytes:
        known = (blobs or {}).get(digest)
        return store.read(digest) if known is None else known

    compared: dict[tuple[str | None, str | None], tuple[str, str] | None] = {}

    def compare(old: Function, new: Function) -> tuple[str, str] | None:
        key = old.manifest, new.manifest
        if key not in compared:
            compared[key] = _compare(*key, read)
        return compared[key]

    def text(name: str, digest: str) -> str:
        try:
            value = load_value(read(digest))
        except ChelateError:
            return "a value that cannot be shown here"
        return f"File({value})" if isinstance(value, File) else shown(name, value)

    if reuse is None:
        nothing = _nothing(gateway, options)
        return Reasons(graph, None, frozenset(), compare, text, nothing=nothing)
    replaced = frozenset(options.get("replaced") or ())
    return Reasons(graph, reuse.index, replaced, compare, text, reuse.replaced_inside, taken)


def _compare(
    old: str | None, new: str | None, read: Callable[[str], bytes]
) -> tuple[str, str] | None:
    if old is None or new is None:
        return None
    try:
        return compare_manifests(json.loads(read(old)), json.loads(read(new)))
    except (ChelateError, ValueError):
        return None


def _nothing(gateway: LocalGateway, options: Mapping[str, Any]) -> tuple[str, str]:
    """Why every task of a dispatch runs."""
    if options.get("reuse_from"):
        trouble = parent_trouble(gateway.store, options) or "it could not be read"
        return "PARENT_DAMAGED", f"the earlier dispatch cannot be compared with: {trouble}"
    if options.get("reuse_child"):
        return "NEW_TASK", "the earlier dispatch has no such sub-workflow left to compare with"
    return "REUSE_OFF", "reuse was not asked for"


def _notes(gateway: LocalGateway, graph: Graph) -> list[str]:
    notes = []
    for name in sorted({node.name for node in graph.tasks()}):
        seen = gateway.store.get_fact(nondeterminism_fact(name))
        if seen:
            notes.append(
                f"{name} is nondeterministic: an audit in dispatch {seen['dispatch_id']} gave "
                "another value for equal inputs."
            )
    return notes
