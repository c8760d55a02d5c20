"""Pictures of graphs, as SVG and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from html import escape
from os import PathLike
from pathlib import Path

from chelate.errors import ConfigError
from chelate.graph import Graph, Kind
from chelate.show.boxes import Box, boxes_of
from chelate.show.layout import Layout, arrange
from chelate.show.marks import MARKS, Mark, cells, cut, plain, worst
from chelate.show.rails import as_lines

__all__ = ["Drawing", "draw"]

_BOX_HEIGHT = 42.0
_MARGIN = 16.0
_HEAD = 30.0
_COMFORT = 940.0  # pixels across that a notebook shows without scrolling
_FONT = "font-family:system-ui,'Segoe UI',Helvetica,Arial,'DejaVu Sans',sans-serif"
# Readable on white and on black alike (4.5 : 1 against both).
_GREY = "#767676"


class Drawing:
    """A picture of a graph.

    ``svg`` and ``text`` are strings, made when first asked for; ``print`` shows the text and a
    notebook the picture.
    """

    def __init__(self, boxes: list[Box], name: str, shown: str = "svg") -> None:
        self._boxes = boxes
        self._name = plain(name)
        self._shown = shown

    @property
    def title(self) -> str:
        """The graph's name and its number of tasks."""
        count = sum(len(box.ids) for box in self._boxes if box.kind != Kind.PARAMETER)
        return f"{cut(self._name, 60)} · {count} task{'' if count == 1 else 's'}"

    @cached_property
    def svg(self) -> str:
        """A complete SVG document, readable on light and on dark backgrounds."""
        return _svg(self._boxes, self.title)

    @cached_property
    def text(self) -> str:
        """Lines of at most 80 columns, a task each."""
        return as_lines(self._boxes, self.title)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"<Drawing of {self.title}; print it, or .save('graph.svg')>"

    def _repr_svg_(self) -> str | None:
        return self.svg if self._shown == "svg" else None

    def _repr_html_(self) -> str:
        if self._shown == "svg":
            return f'<div style="overflow:auto;max-height:800px">{self.svg}</div>'
        return f'<pre style="line-height:1.2">{escape(self.text)}</pre>'

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the picture (``.svg``) or the text (``.txt``); the path.

        Raises:
            ConfigError: another suffix.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in (".svg", ".txt"):
            raise ConfigError(f"{path.name!r}: a drawing is saved as .svg or .txt.")
        path.write_text(self.svg if suffix == ".svg" else self.text + "\n", encoding="utf-8")
        return path


def draw(
    graph: Graph,
    *,
    statuses: Mapping[int, str] | None = None,
    format: str = "svg",  # noqa: A002 - the word users look for
    parameters: bool = False,
) -> Drawing:
    """A picture of a graph.

    More than 24 equal tasks side by side become one box with a count; a graph that is large even
    so is folded further, so that 10,000 tasks are still legible.

    Args:
        graph: what to draw.
        statuses: status by node id, to colour and mark the tasks; others count as waiting.
        format: what a notebook shows, ``"svg"`` or ``"text"``.
        parameters: draw constant arguments as well.

    Raises:
        ConfigError: an unknown format.
        CycleError: the tasks wait for each other.
    """
    if format not in ("svg", "text"):
        raise ConfigError(f"format={format!r} must be 'svg' or 'text'.")
    return Drawing(boxes_of(graph, statuses, parameters), graph.name, format)


def _svg(boxes: list[Box], title: str) -> str:
    second = [_second(box) for box in boxes]
    letters = max(
        (
            max(cells(box.label) * 7.4, cells(two) * 6.2)
            for box, two in zip(boxes, second, strict=True)
        ),
        default=0.0,
    )
    width = min(max(letters + 44, 96.0), 236.0)
    plan, downwards = _plan(boxes, width)
    pace = (_BOX_HEIGHT + 38.0) if downwards else (width + 56.0)
    deep = max(plan.depth - 1, 0) * pace + (_BOX_HEIGHT if downwards else width)
    used = {word for box in boxes for word, count in (box.found or {}).items() if count}
    across, along = (plan.extent, deep) if downwards else (deep, plan.extent)
    legend = [MARKS[word] for word in MARKS if word in used]
    total = max(across, cells(title) * 7.6, len(legend) * 88.0) + 2 * _MARGIN
    height = along + 2 * _MARGIN + _HEAD + (32.0 if legend else 0.0)
    shift = (total - 2 * _MARGIN - across) / 2 + _MARGIN

    def point(level: float, place: float) -> tuple[float, float]:
        main = level * pace
        if downwards:
            return shift + place, _MARGIN + _HEAD + main + _BOX_HEIGHT / 2
        return shift + main + width / 2, _MARGIN + _HEAD + place

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {total:.0f} {height:.0f}" role="img" style="{_FONT};font-size:13px">',
        f"<title>{escape(title)}</title>",
        f'<text x="{_MARGIN:g}" y="{_MARGIN + 10:g}" font-weight="600" fill="{_GREY}">'
        f"{escape(title)}</text>",
        *_edges(plan, point, (_BOX_HEIGHT if downwards else width) / 2, downwards),
    ]
    for index, box in enumerate(boxes):
        x, y = point(plan.layers[index], plan.places[index])
        parts += _box(box, second[index], x - width / 2, y - _BOX_HEIGHT / 2, width)
    for position, mark in enumerate(legend):
        x, y = _MARGIN + 6 + position * 88, height - _MARGIN - 2
        parts.append(
            f'<g fill="{_GREY}"><circle cx="{x:g}" cy="{y:g}" r="9" fill="{mark.fill}"/>'
            f'{_icon(mark, x, y)}<text x="{x + 14:g}" y="{y + 4:g}" font-size="12">{mark.word}'
            "</text></g>"
        )
    return "\n".join([*parts, "</svg>\n"])


def _plan(boxes: list[Box], width: float) -> tuple[Layout, bool]:
    """The layout, and whether it flows downwards: it does where that is not too broad."""
    parents = [box.parents for box in boxes]
    late = {index for index, box in enumerate(boxes) if box.kind == Kind.PARAMETER}
    down = arrange(parents, width, 22.0, late)
    if down.extent <= max(_COMFORT, down.depth * (width + 56.0)):
        return down, True
    return arrange(parents, _BOX_HEIGHT, 14.0, late), False


def _second(box: Box) -> str:
    """The smaller line of a box."""
    if box.found is not None and len(box.ids) > 1:
        text = f"{box.found['done']}/{len(box.ids)} done"
        return text + (f" · {box.found['failed']} failed" if box.found["failed"] else "")
    words = [box.where, cut(box.executor, 18)]
    if box.kind == Kind.SUBLATTICE:
        words[1:] = ["sub-workflow", *words[1:]]
    return " · ".join(word for word in words if word)


def _box(box: Box, second: str, x: float, y: float, width: float) -> list[str]:
    mark = worst(box.found) if box.found is not None else None
    fill, ink = (mark.fill, mark.ink) if mark else ("#f4f6f8", "#4a5560")
    middle = y + _BOX_HEIGHT / 2
    small = box.kind in (Kind.PARAMETER, Kind.OPERATOR, Kind.RETURN)
    shape = (
        f'width="{width:.1f}" height="{_BOX_HEIGHT:g}" rx="{20 if small else 7}" '
        f'fill="{fill}" stroke="{ink}"'
    )
    if box.kind == Kind.PARAMETER:
        shape += ' stroke-dasharray="3 3"'
    parts = ["<g>", f"<title>{escape(_tooltip(box))}</title>"]
    if len(box.ids) > 1:
        parts.append(f'<rect x="{x + 5:.1f}" y="{y + 5:.1f}" {shape}/>')
    parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" {shape}/>')
    if box.kind == Kind.SUBLATTICE:
        parts.append(
            f'<rect x="{x + 3:.1f}" y="{y + 3:.1f}" width="{width - 6:.1f}" '
            f'height="{_BOX_HEIGHT - 6:g}" rx="4" fill="none" stroke="{ink}" stroke-width=".7"/>'
        )
    start = x + 14
    if mark is not None:
        parts.append(_icon(mark, x + 18, middle))
        start = x + 32
    room = int((x + width - start - 8) / 7.2) - cells(box.suffix)
    name = cut(box.name, max(4, room)) + box.suffix
    parts.append(
        f'<text x="{start:.1f}" y="{middle - 2:.1f}" fill="#1b1f23" font-weight="500">'
        f"{escape(name)}</text>"
        f'<text x="{start:.1f}" y="{middle + 13:.1f}" fill="#4a5560" font-size="11">'
        f"{escape(second)}</text>"
    )
    if box.found is not None and len(box.ids) > 1:
        parts += _bar(box, x + 7, y + _BOX_HEIGHT - 4, width - 14)
    return [*parts, "</g>"]


def _bar(box: Box, x: float, y: float, width: float) -> list[str]:
    found = box.found or Counter()
    total = sum(found.values()) or 1
    parts = []
    for word in reversed(list(MARKS)):
        share = width * found[word] / total
        if share:
            ink = MARKS[word].ink
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{share:.1f}" height="3" fill="{ink}"/>'
            )
            x += share
    return parts


def _tooltip(box: Box) -> str:
    lines = [f"{cut(box.name, 500)}{box.suffix}", f"node {box.where}"]
    if box.kind != Kind.TASK:
        lines.append({Kind.SUBLATTICE: "sub-workflow"}.get(box.kind, box.kind))
    if box.executor:
        lines.append(f"executor {box.executor}")
    if box.line:
        lines.append(box.line)
    lines += [f"{box.found[word]} {word}" for word in MARKS if box.found and box.found[word]]
    return "\n".join(lines)


def _icon(mark: Mark, x: float, y: float) -> str:
    solid = mark.ink if mark.word == "running" else "none"
    return (
        f'<path transform="translate({x:.1f} {y:.1f})" d="{mark.icon}" fill="{solid}" '
        f'stroke="{mark.ink}" stroke-width="1.8" stroke-linecap="round" stroke-linejoin="round"/>'
    )


def _edges(
    plan: Layout,
    point: Callable[[float, float], tuple[float, float]],
    half: float,
    downwards: bool,
) -> list[str]:
    """All edges as one path, and their heads as another.

    ``half`` is half a box along the flow: a bend passes its layer straight, so that lines do not
    cut across the boxes next to it.
    """
    lines, heads = [], []

    def moved(at: tuple[float, float], by: float) -> tuple[float, float]:
        return (at[0], at[1] + by) if downwards else (at[0] + by, at[1])

    def control(at: tuple[float, float], to: tuple[float, float]) -> str:
        if downwards:
            middle = (at[1] + to[1]) / 2
            return f"C{at[0]:.1f} {middle:.1f} {to[0]:.1f} {middle:.1f} {to[0]:.1f} {to[1]:.1f}"
        middle = (at[0] + to[0]) / 2
        return f"C{middle:.1f} {at[1]:.1f} {middle:.1f} {to[1]:.1f} {to[0]:.1f} {to[1]:.1f}"

    for route in plan.routes:
        points = [point(*step) for step in route]
        at = moved(points[0], half)
        text = f"M{at[0]:.1f} {at[1]:.1f}"
        for bend in points[1:-1]:
            text += control(at, moved(bend, -half))
            at = moved(bend, half)
            text += f"L{at[0]:.1f} {at[1]:.1f}"
        tip = moved(points[-1], -half)
        lines.append(text + control(at, moved(tip, -5)))
        wing = "l-4-7h8z" if downwards else "l-7-4v8z"
        heads.append(f"M{tip[0]:.1f} {tip[1]:.1f}{wing}")
    if not lines:
        return []
    return [
        f'<path d="{"".join(lines)}" fill="none" stroke="{_GREY}" stroke-width="1.2"/>',
        f'<path d="{"".join(heads)}" fill="{_GREY}"/>',
    ]
