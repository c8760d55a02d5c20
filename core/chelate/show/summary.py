"""A result as text, as HTML and as JSON, whatever its values do when they are looked at.

A result is anything with the attributes of :class:`chelate.result.Result`: ``name, dispatch_id,
status, start_time, end_time, error, result, graph, node_records``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from html import escape
from typing import Any

from chelate.errors import ChelateError
from chelate.graph import Kind
from chelate.model import NodeRecord, NodeStatus
from chelate.show.marks import cells, cut, mark_of, plain

__all__ = [
    "duration_text",
    "iso_text",
    "moment_text",
    "result_as_html",
    "result_as_json",
    "result_as_text",
    "short_repr",
    "table",
]

_REPR = 200
_NOTE = 90
_SENTENCE = 1000
_MOST_SENTENCES = 3
_MOST_ROWS = 50
_MOST_FAILURES = 20
_MOST_BYTES = 1 << 20  # a larger value is not fetched only to show a piece of it
_COLUMNS = ("ID", "TASK", "STATUS", "EXECUTOR", "TIME", "NOTE")
_NOTABLE = (NodeStatus.FAILED, NodeStatus.UNCERTAIN)


@dataclass(frozen=True, slots=True)
class _Task:
    """One scheduled node with its row."""

    id: int
    name: str
    kind: str
    row: NodeRecord

    @property
    def executor(self) -> str:
        return (self.row.executor or "").partition(" ")[0]

    @property
    def seconds(self) -> float | None:
        row = self.row
        if row.started_at is None or row.ended_at is None:
            return None
        return max(0.0, row.ended_at - row.started_at)

    @property
    def note(self) -> str:
        row, parts = self.row, []
        if row.reused_from:
            parts.append(f"reused from {row.reused_from[0]}")
        if row.attempt > 1:
            parts.append(f"attempt {row.attempt}")
        if row.reason and row.status is not NodeStatus.COMPLETED:
            parts.append(row.reason)
        if row.error:
            # The last line of a traceback names the exception; the first only says "Traceback".
            lines = [line for line in row.error.splitlines() if line.strip()] or [""]
            parts.append(lines[-1] if lines[0].startswith("Traceback") else lines[0])
        return plain(": ".join(map(str, parts)))

    def cells(self) -> list[str]:
        time = duration_text(self.seconds)
        return [str(self.id), self.name, str(self.row.status), self.executor, time, self.note]


def short_repr(value: Any) -> str:
    """``repr`` on one line of at most 200 characters; says so when the repr itself raises."""
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - any error at all of the user's own __repr__
        text = f"<{type(value).__name__} whose repr raised {type(error).__name__}>"
    return cut(" ".join(plain(text).split()) if "\n" in text else plain(text), _REPR)


def duration_text(seconds: float | None) -> str:
    """``0.52 s``, ``12.3 s``, ``4:05 min``, ``2:03:04 h``; empty for None."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def moment_text(moment: datetime | float | None) -> str:
    """A moment in the local time zone, to the second; empty for None."""
    if moment is None:
        return ""
    if not isinstance(moment, datetime):
        moment = datetime.fromtimestamp(moment, timezone.utc)
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def iso_text(moment: datetime | float | None) -> str | None:
    """A moment as ISO 8601 in UTC; None for None."""
    if moment is not None and not isinstance(moment, datetime):
        moment = datetime.fromtimestamp(moment, timezone.utc)
    return None if moment is None else moment.isoformat()


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, colour: bool = False) -> str:
    """Aligned columns. With ``colour``, cells that are a status are coloured for a terminal."""
    every = [list(head), *([plain(cell) for cell in row] for row in rows)]
    widths = [max(cells(row[i]) for row in every) for i in range(len(head))]
    place = [name.lower() for name in head].index("status") if "STATUS" in head else -1
    lines = []
    for number, row in enumerate(every):
        padded = [
            cell + " " * (width - cells(cell)) for cell, width in zip(row, widths, strict=True)
        ]
        if colour and number and place >= 0:
            padded[place] = f"\x1b[{mark_of(row[place]).ansi}m{padded[place]}\x1b[0m"
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def result_as_text(result: Any, *, colour: bool = False) -> str:
    """A head and one line per task; for more than 50 tasks counts and what failed.

    Args:
        colour: colour the statuses, for a terminal.
    """
    lines = [f"{key + ':':<10} {text}" for key, text in _head(result)]
    tasks, trouble = _tasks(result)
    if trouble:
        lines += ["", trouble]
    for head, rows, more in _tables(tasks):
        lines += [
            "",
            table(head, [[cut(cell, _NOTE) for cell in row] for row in rows], colour=colour),
        ]
        if more:
            lines.append(more)
    # What to do stands at the end of a sentence, where the table has cut it.
    whole: dict[str, _Task] = {}
    for task in tasks:
        if cells(task.note) > _NOTE:
            whole.setdefault(task.note, task)
    for note, task in list(whole.items())[:_MOST_SENTENCES]:
        lines += ["", f"{plain(task.name)} ({task.id}): {cut(note, _SENTENCE)}"]
    return "\n".join(lines)


def result_as_html(result: Any) -> str:
    """As :func:`result_as_text`, for a notebook: readable on light and dark pages."""
    style = "text-align:left;padding:2px 10px 2px 0;vertical-align:top"
    parts = ['<div class="chelate-result" style="overflow:auto"><table>']
    for key, text in _head(result):
        parts.append(
            f'<tr><th style="{style}">{key}</th><td style="{style}">{escape(text)}</td></tr>'
        )
    parts.append("</table>")
    tasks, trouble = _tasks(result)
    if trouble:
        parts.append(f"<p>{escape(trouble)}</p>")
    for head, rows, more in _tables(tasks):
        cells_of_head = "".join(f'<th style="{style}">{word.capitalize()}</th>' for word in head)
        parts.append(f"<table><thead><tr>{cells_of_head}</tr></thead><tbody>")
        for row in rows:
            parts.append("<tr>")
            for word, cell in zip(head, row, strict=True):
                text = escape(plain(cut(cell, 300)))
                if word == "STATUS":
                    text = f"{mark_of(cell).symbol}&nbsp;{text}"
                parts.append(f'<td style="{style}">{text}</td>')
            parts.append("</tr>")
        parts.append("</tbody></table>")
        if more:
            parts.append(f"<p>{escape(more)}</p>")
    parts.append("</div>")
    return "".join(parts)


def result_as_json(result: Any) -> str:
    """One JSON object: the head, and every task under ``tasks``. Values only as cut reprs."""
    tasks, trouble = _tasks(result)
    document: dict[str, Any] = {
        "dispatch_id": result.dispatch_id,
        "root_dispatch_id": getattr(result, "root_dispatch_id", None),
        "redispatched_from": getattr(result, "redispatched_from", None),
        "name": result.name,
        "status": str(result.status),
        "start_time": iso_text(result.start_time),
        "end_time": iso_text(result.end_time),
        "result": _value(result),
        "error": result.error,
        "tasks": [
            {
                "node_id": task.id,
                "name": task.name,
                "kind": task.kind,
                "status": str(task.row.status),
                "executor": task.row.executor,
                "start_time": iso_text(task.row.started_at),
                "end_time": iso_text(task.row.ended_at),
                "attempts": task.row.attempt,
                "reason": task.row.reason,
                "error": task.row.error,
                "reused_from": task.row.reused_from,
                "sub_dispatch_id": task.row.child_id,
            }
            for task in tasks
        ],
    }
    if trouble:
        document["trouble"] = trouble
    return json.dumps(document, indent=2, default=short_repr)


def _value(result: Any) -> str | None:
    """The result's repr; None when there is none (yet)."""
    if str(result.status) != "COMPLETED":
        return None
    stored = getattr(getattr(result, "_record", None), "result", None)
    if stored is not None and stored.size > _MOST_BYTES:
        return f"<{stored.size / 2**20:.1f} MiB; .result loads it>"
    try:
        return short_repr(result.result)
    except Exception as error:  # noqa: BLE001 - unpickling runs code of the user's
        return f"<cannot be loaded here: {cut(plain(f'{type(error).__name__}: {error}'), 150)}>"


def _head(result: Any) -> list[tuple[str, str]]:
    start, end = result.start_time, result.end_time
    mark = mark_of(result.status)
    rows = [
        ("Dispatch", result.dispatch_id),
        ("Lattice", cut(plain(result.name), _REPR)),
        ("Status", f"{mark.symbol} {result.status}"),
    ]
    if start is not None:
        rows.append(("Started", moment_text(start)))
    if start is not None and end is not None:
        took = duration_text((end - start).total_seconds())
        rows.append(("Ended", f"{moment_text(end)} (after {took})"))
    if getattr(result, "redispatched_from", None):
        rows.append(("Repeats", result.redispatched_from))
    value = _value(result)
    if value is not None:
        rows.append(("Result", value))
    if result.error:
        first = plain(str(result.error).strip().partition("\n")[0])
        rows.append(("Error", cut(first, _REPR)))
    return rows


def _tasks(result: Any) -> tuple[list[_Task], str]:
    """The scheduled nodes in order of id, or a sentence why they cannot be read."""
    try:
        rows: Mapping[int, NodeRecord] = result.node_records
        nodes = sorted(result.graph.tasks(), key=lambda node: node.id)
    except ChelateError as error:
        return [], plain(f"Its tasks cannot be read: {error}")
    return [
        _Task(node.id, plain(node.name), node.kind, rows.get(node.id) or NodeRecord(node.id))
        for node in nodes
        if node.kind != Kind.PARAMETER
    ], ""


def _tables(tasks: list[_Task]) -> list[tuple[Sequence[str], list[list[str]], str]]:
    """Head, rows and a closing line of each table."""
    if not tasks:
        return []
    if len(tasks) <= _MOST_ROWS:
        return [(_COLUMNS, [task.cells() for task in tasks], "")]
    tables: list[tuple[Sequence[str], list[list[str]], str]] = []
    failed = [task for task in tasks if task.row.status in _NOTABLE]
    if failed:
        rest = len(failed) - _MOST_FAILURES
        more = f"… and {rest} more" if rest > 0 else ""
        tables.append((_COLUMNS, [task.cells() for task in failed[:_MOST_FAILURES]], more))
    counted: Counter[tuple[str, str]] = Counter((t.name, str(t.row.status)) for t in tasks)
    rows = [[name, status, str(count)] for (name, status), count in counted.items()]
    rest = len(rows) - _MOST_ROWS
    more = f"… and {rest} more" if rest > 0 else ""
    tables.append((("TASK", "STATUS", "COUNT"), rows[:_MOST_ROWS], more))
    return tables
