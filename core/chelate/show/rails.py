"""A graph as lines of text: one task per line, rails on the left lead from task to task."""

from __future__ import annotations

from chelate.graph import Kind
from chelate.show.boxes import Box, children_of, in_order
from chelate.show.marks import MARKS, cells, cut, worst

__all__ = ["as_lines"]

_WIDTH = 80
_MOST_RAILS = 18
_KINDS = {Kind.SUBLATTICE: "sub-workflow", Kind.PARAMETER: "parameter"}


def as_lines(boxes: list[Box], title: str) -> str:
    """The graph in 80 columns. The numbers behind ``←`` are the nodes that a task needs."""
    order = in_order([box.parents for box in boxes])
    rails = _rails(boxes, order)
    broad = max((len(rail) for rail in rails), default=0)
    executors = {box.executor for box in boxes if box.executor}
    lines = [title, ""]
    needs = [", ".join(boxes[i].where for i in sorted(boxes[index].parents)) for index in order]
    room = _WIDTH - broad - 1 - min(max(map(cells, needs), default=0) + 4, 20)
    labels = [_label(boxes[index], executors, room) for index in order]
    column = min(max(map(cells, labels), default=0), room)
    for rail, label, need in zip(rails, labels, needs, strict=True):
        line = f"{rail:<{broad}} {label}"
        if need:
            line += " " * (column - cells(label)) + f"  ← {need}"
        lines.append(cut(line, _WIDTH).rstrip())
    used = {word for box in boxes for word, count in (box.found or {}).items() if count}
    if used:
        lines += ["", "  ".join(f"{m.symbol} {m.word}" for m in MARKS.values() if m.word in used)]
    return "\n".join(lines)


def _label(box: Box, executors: set[str], width: int) -> str:
    notes = [_KINDS[box.kind]] if box.kind in _KINDS else []
    if box.executor and executors != {"local"}:
        notes.append(box.executor)
    if box.found is not None and len(box.ids) > 1:
        counts = [f"{box.found[mark.word]}{mark.symbol}" for mark in MARKS.values()]
        notes.append(" ".join(text for text in reversed(counts) if text[0] != "0"))
    rest = f"{box.suffix} ({box.where})" + "".join(f" · {note}" for note in notes)
    return cut(box.name, max(8, width - cells(rest))) + rest


def _rails(boxes: list[Box], order: list[int]) -> list[str]:
    children = children_of([box.parents for box in boxes])
    left = [len(found) for found in children]
    open_rails: list[int | None] = []
    rows = []
    for index in order:
        box = boxes[index]
        used = [i for i, rail in enumerate(open_rails) if rail is not None and rail in box.parents]
        for parent in box.parents:
            left[parent] -= 1
        over = {i for i in used if not left[open_rails[i] or 0]}
        if used and used[-1] in over:
            spot = used[-1]
        else:
            start = used[-1] + 1 if used else 0
            free = (i for i in range(start, len(open_rails)) if open_rails[i] is None)
            spot = next(free, len(open_rails))
        if spot == len(open_rails):
            open_rails.append(None)
        rows.append(_row(open_rails, used, over, spot, _dot(box)))
        for i in over:
            open_rails[i] = None
        if children[index]:
            open_rails[spot] = index
        while open_rails and open_rails[-1] is None:
            open_rails.pop()
        if len(open_rails) > _MOST_RAILS:
            return [_dot(boxes[i]) for i in order]
    return rows


def _dot(box: Box) -> str:
    if box.kind == Kind.PARAMETER:
        return "·"
    return worst(box.found).symbol if box.found else "●"


def _row(rails: list[int | None], used: list[int], over: set[int], spot: int, dot: str) -> str:
    """One line: ``├`` and ``╰`` branch off a rail, a bare ``│`` is only crossed."""
    first = used[0] if used else spot
    text = ""
    for i, rail in enumerate(rails):
        across = first < i < spot
        if i == spot:
            text += dot
        elif i in over:
            text += "┴" if across else "╰"
        elif i in used:
            text += "┼" if across else "├"
        elif rail is not None:
            text += "│"
        else:
            text += "─" if across else " "
        text += "─" if first <= i < spot else " "
    return text.rstrip()
