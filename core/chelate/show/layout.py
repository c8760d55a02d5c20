"""A layered layout: longest-path layers, barycentre ordering, straightened positions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise

from chelate.show.boxes import children_of, layers_of

__all__ = ["Layout", "arrange"]

_SWEEPS = 6
_STRAIGHTENINGS = 10
_MOST_BENDS = 6_000  # beyond, long edges are drawn straight: linear time comes first


@dataclass(slots=True)
class Layout:
    """Where things are: ``layers[i]`` along the flow, ``places[i]`` across it, in pixels from 0.

    ``routes`` has one list of ``(layer, place)`` per edge, from parent to child. ``extent`` is the
    size across the flow.
    """

    layers: list[int]
    places: list[float]
    routes: list[list[tuple[int, float]]]
    extent: float

    @property
    def depth(self) -> int:
        """Number of layers."""
        return max(self.layers, default=-1) + 1


def arrange(parents: list[set[int]], size: float, gap: float, late: Collection[int] = ()) -> Layout:
    """Lay out boxes that are ``size`` wide across the flow and ``gap`` apart.

    Sources in ``late`` move down next to the first that needs them.

    Time and memory are linear in boxes and edges, but for sorting within layers.
    """
    count = len(parents)
    layers = layers_of(parents)
    children = children_of(parents)
    for index in late:
        if children[index]:
            layers[index] = min(layers[child] for child in children[index]) - 1
    edges = [(parent, child) for child in range(count) for parent in sorted(parents[child])]
    bends = sum(layers[child] - layers[parent] - 1 for parent, child in edges)
    levels = list(layers)
    chains: list[list[int]] = []
    for parent, child in edges:
        chain = [parent]
        if bends <= _MOST_BENDS:
            for level in range(layers[parent] + 1, layers[child]):
                chain.append(len(levels))
                levels.append(level)
        chains.append([*chain, child])
    above: list[list[int]] = [[] for _ in levels]
    below: list[list[int]] = [[] for _ in levels]
    for chain in chains:
        for first, second in pairwise(chain):
            below[first].append(second)
            above[second].append(first)
    rows: list[list[int]] = [[] for _ in range(max(levels, default=-1) + 1)]
    for index, level in enumerate(levels):
        rows[level].append(index)
    _order(rows, above, below)
    places = _place(
        rows, above, below, [size if i < count else 0.0 for i in range(len(levels))], gap
    )
    left = min(places, default=0.0) - size / 2
    places = [place - left for place in places]
    routes = [[(levels[index], places[index]) for index in chain] for chain in chains]
    extent = max(places, default=0.0) + size / 2
    return Layout(layers, places[:count], routes, extent)


def _order(rows: list[list[int]], above: list[list[int]], below: list[list[int]]) -> None:
    """Sort every row by the mean position of its neighbours, downwards and upwards in turn."""
    where: dict[int, float] = {}

    def note(row: list[int]) -> None:
        for position, index in enumerate(row):
            where[index] = (position + 0.5) / len(row)

    for row in rows:
        note(row)
    for sweep in range(_SWEEPS):
        near = above if sweep % 2 == 0 else below
        for row in rows if sweep % 2 == 0 else reversed(rows):
            row.sort(key=lambda index: _mean(near[index], where, where[index]))
            note(row)


def _mean(neighbours: list[int], where: dict[int, float] | list[float], alone: float) -> float:
    if not neighbours:
        return alone
    return sum(where[index] for index in neighbours) / len(neighbours)


def _place(
    rows: list[list[int]],
    above: list[list[int]],
    below: list[list[int]],
    sizes: list[float],
    gap: float,
) -> list[float]:
    """Pull every box towards its neighbours while the order and the gaps stay."""
    places = [0.0] * len(sizes)
    steps: list[list[float]] = []
    for row in rows:
        step = [0.0]
        for first, second in pairwise(row):
            step.append((sizes[first] + sizes[second]) / 2 + gap)
        steps.append(step)
        total = sum(step)
        position = -total / 2
        for index, move in zip(row, step, strict=True):
            position += move
            places[index] = position
    pairs = list(zip(rows, steps, strict=True))
    for turn in range(_STRAIGHTENINGS):
        down = turn % 2 == 0
        near = above if down else below
        for row, step in pairs if down else reversed(pairs):
            wish = [_mean(near[index], places, places[index]) for index in row]
            # Both of these keep the gaps, and so does their mean, which leans to neither side.
            right = list(wish)
            for i in range(1, len(row)):
                right[i] = max(wish[i], right[i - 1] + step[i])
            left = list(wish)
            for i in range(len(row) - 2, -1, -1):
                left[i] = min(wish[i], left[i + 1] - step[i + 1])
            for i, index in enumerate(row):
                places[index] = (left[i] + right[i]) / 2
    return places
