"""How statuses look, and how untrusted text is made fit to print."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["MARKS", "Mark", "cells", "cut", "mark_of", "plain", "tally", "worst"]


@dataclass(frozen=True, slots=True)
class Mark:
    """The look of one kind of status.

    ``symbol`` is one character, ``icon`` an SVG path within ±5, so that nothing is told by colour
    alone; ``fill`` and ``ink`` are CSS colours, ``ansi`` a terminal's SGR code.
    """

    word: str
    symbol: str
    icon: str
    fill: str
    ink: str
    ansi: str


# In order of urgency: a group of tasks shows the mark of the first that occurs in it.
MARKS: Mapping[str, Mark] = {
    word: Mark(word, symbol, icon, fill, ink, ansi)
    for word, symbol, fill, ink, ansi, icon in (
        ("failed", "✗", "#fde3e1", "#b3261e", "31", "M-4-4L4 4M4-4L-4 4"),
        ("uncertain", "?", "#fdeedb", "#8a4b00", "33", "M-3-3C-3-6 3-6 3-3C3-1 0-1 0 1M0 4V4.5"),
        ("running", "▶", "#dfecfd", "#0b57d0", "34", "M-3-5L5 0L-3 5Z"),
        (
            "cancelled",
            "⊘",
            "#efe6f7",
            "#6b3fa0",
            "35",
            "M-5 0A5 5 0 1 0 5 0A5 5 0 1 0-5 0M-3 3L3-3",
        ),
        ("skipped", "↷", "#ececec", "#5f5f5f", "2", "M-5 3C-4-5 3-5 4 1M1-1L4 2L6-2"),
        ("waiting", "○", "#f7f7f7", "#5f5f5f", "2", "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0-4 0"),
        ("done", "✓", "#e0f3e4", "#146c2e", "32", "M-5 0L-1 4L5-4"),
    )
}

_WORDS = {
    "NEW_OBJ": "waiting",
    "WAITING": "waiting",
    "READY": "waiting",
    "BACKOFF": "waiting",
    "SUBMITTING": "running",
    "SUBMITTED": "running",
    "RUNNING": "running",
    "EXPANDED": "running",
    "CANCELLING": "cancelled",
    "CANCELLED": "cancelled",
    "UNCERTAIN": "uncertain",
    "COMPLETED": "done",
    "FAILED": "failed",
    "SKIPPED": "skipped",
}


def mark_of(status: str) -> Mark:
    """The look of a node's or a dispatch's status; unknown ones look uncertain."""
    return MARKS[_WORDS.get(str(status), "uncertain")]


def tally(statuses: Iterable[str] | Mapping[str, int]) -> Counter[str]:
    """How many of each word of :data:`MARKS`; statuses one by one, or counted already."""
    pairs = statuses.items() if isinstance(statuses, Mapping) else Counter(statuses).items()
    found: Counter[str] = Counter()
    for status, count in pairs:
        found[mark_of(status).word] += count
    return found


def worst(found: Mapping[str, int]) -> Mark:
    """The most urgent mark that occurs; done when nothing does."""
    return next((mark for word, mark in MARKS.items() if found.get(word)), MARKS["done"])


def plain(text: object) -> str:
    """One line without control characters, which could steer a terminal or break XML."""
    return "".join(
        char if char.isprintable() else " " if char in "\n\r\t" else "\N{REPLACEMENT CHARACTER}"
        for char in str(text)
    )


def cells(text: str) -> int:
    """How many columns a terminal gives the text."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)


def cut(text: str, width: int) -> str:
    """At most ``width`` columns, the end replaced by "…" when it is longer."""
    if cells(text) <= width:
        return text
    kept, used = [], 1
    for char in text:
        used += cells(char)
        if used > width:
            break
        kept.append(char)
    return "".join(kept).rstrip() + "…"
