"""From a graph to the boxes of its picture: equal tasks side by side become one box.

A picture of ten thousand boxes shows nothing, so what repeats is drawn once, with a count.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from chelate.graph import Graph, Kind, Node
from chelate.show.marks import plain, tally

__all__ = ["Box", "boxes_of", "children_of", "in_order", "layers_of"]

SIBLINGS = 24  # more equal tasks than this side by side become one box
MOST = 300  # with more boxes than this, everything that repeats is folded
_BANDS = 60


@dataclass(slots=True)
class Box:
    """One task or several equal ones; ``found`` counts words of ``MARKS``, None if not asked."""

    name: str
    kind: str
    executor: str
    ids: list[int]
    line: str = ""
    found: Counter[str] | None = None
    parents: set[int] = field(default_factory=set)  # indices of boxes

    @property
    def label(self) -> str:
        """The name, with a count when it stands for several."""
        return self.name + self.suffix

    @property
    def suffix(self) -> str:
        """What must stay readable when the name is cut."""
        return f" × {len(self.ids)}" if len(self.ids) > 1 else ""

    @property
    def where(self) -> str:
        """The node id or ids."""
        if len(self.ids) == 1:
            return str(self.ids[0])
        return f"{min(self.ids)} … {max(self.ids)}"


def children_of(parents: list[set[int]]) -> list[list[int]]:
    """The inverse, children in ascending order."""
    children: list[list[int]] = [[] for _ in parents]
    for index, found in enumerate(parents):
        for parent in found:
            children[parent].append(index)
    return children


def in_order(parents: list[set[int]]) -> list[int]:
    """Every index after its parents, the smallest first; what lies on a circle is left out."""
    children = children_of(parents)
    pending = [len(found) for found in parents]
    ready = [index for index, count in enumerate(pending) if not count]
    done = []
    while ready:
        index = heapq.heappop(ready)
        done.append(index)
        for child in children[index]:
            pending[child] -= 1
            if not pending[child]:
                heapq.heappush(ready, child)
    return done


def layers_of(parents: list[set[int]]) -> list[int]:
    """For every index the length of the longest path that leads to it."""
    layers = [0] * len(parents)
    for index in in_order(parents):
        layers[index] = max((layers[parent] + 1 for parent in parents[index]), default=0)
    return layers


def boxes_of(
    graph: Graph, statuses: Mapping[int, str] | None = None, parameters: bool = False
) -> list[Box]:
    """The boxes, each with the indices of its parents.

    Raises:
        CycleError, GraphError: the graph is none.
    """
    graph.order()
    nodes = sorted(graph.nodes if parameters else graph.tasks(), key=lambda node: node.id)
    index = {node.id: position for position, node in enumerate(nodes)}
    boxes = []
    for node in nodes:
        box = Box(plain(node.name), node.kind, _executor(graph, node), [node.id], plain(node.line))
        box.parents = {index[parent] for parent in node.parents() if parent in index}
        if statuses is not None and node.kind != Kind.PARAMETER:
            box.found = tally([statuses.get(node.id, "WAITING")])
        boxes.append(box)
    boxes = _fold_siblings(boxes, SIBLINGS)
    if len(boxes) > MOST:
        boxes = _fold_rows(_fold_siblings(boxes, 1))
    if len(boxes) > MOST:
        boxes = _fold_bands(boxes)
    return boxes


def _executor(graph: Graph, node: Node) -> str:
    if not 0 <= node.policy < len(graph.policies):
        return ""
    return plain(graph.policies[node.policy].executor.name)


def _fold_siblings(boxes: list[Box], most: int) -> list[Box]:
    """Merge equal boxes of one layer; no circle can arise, since edges lead to later layers."""
    layers = layers_of([box.parents for box in boxes])

    def key(index: int) -> Hashable:
        box = boxes[index]
        return layers[index], box.name, box.kind, box.executor

    sizes = Counter(key(index) for index in range(len(boxes)))
    return _merge(boxes, lambda index: key(index) if sizes[key(index)] > most else index)


def _fold_rows(boxes: list[Box]) -> list[Box]:
    """Merge a box into its only parent when they are equal and it is the only child."""
    children = children_of([box.parents for box in boxes])
    head = list(range(len(boxes)))
    for index in in_order([box.parents for box in boxes]):
        box = boxes[index]
        if len(box.parents) != 1:
            continue
        (parent,) = box.parents
        above = boxes[parent]
        same = (above.name, above.kind, above.executor) == (box.name, box.kind, box.executor)
        if same and len(children[parent]) == 1:
            head[index] = head[parent]
    return _merge(boxes, lambda index: head[index])


def _fold_bands(boxes: list[Box]) -> list[Box]:
    """The last resort: everything in a run of neighbouring layers becomes one box."""
    layers = layers_of([box.parents for box in boxes])
    depth = max(layers) + 1
    return _merge(boxes, lambda index: ("band", layers[index] * min(_BANDS, depth) // depth))


def _merge(boxes: list[Box], key: Callable[[int], Hashable]) -> list[Box]:
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index in range(len(boxes)):
        groups[key(index)].append(index)
    if len(groups) == len(boxes):
        return boxes
    where = {old: new for new, members in enumerate(groups.values()) for old in members}
    merged = []
    for new, members in enumerate(groups.values()):
        first = boxes[members[0]]
        ids = [node_id for old in members for node_id in boxes[old].ids]
        box = Box(
            _listed(boxes[old].name for old in members),
            first.kind,
            _listed(boxes[old].executor for old in members),
            ids,
            first.line,
        )
        if any(boxes[old].found is not None for old in members):
            box.found = sum((boxes[old].found or Counter() for old in members), Counter())
        box.parents = {where[parent] for old in members for parent in boxes[old].parents} - {new}
        merged.append(box)
    return merged


def _listed(words: Iterable[str]) -> str:
    different = list(dict.fromkeys(words))
    return ", ".join(different[:4]) + (", …" if len(different) > 4 else "")
