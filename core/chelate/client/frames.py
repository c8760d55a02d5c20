"""Which line of the user's code is running: for node records and for error messages."""

from __future__ import annotations

import os
import sys
from bisect import bisect_right
from types import CodeType, FrameType, TracebackType

__all__ = ["LineFinder", "current_line", "is_own", "raising_line"]

_HERE = __file__.removesuffix(os.path.join("client", "frames.py"))  # noqa: PTH118


def is_own(filename: str) -> bool:
    """Whether a source file belongs to chelate itself."""
    return filename.startswith(_HERE)


def _user_frame(frame: FrameType | None) -> FrameType | None:
    while frame is not None and is_own(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def _text(filename: str, line: int | None) -> str:
    return f"{os.path.basename(filename)}:{line}"  # noqa: PTH119 (a name such as "<stdin>", too)


def current_line() -> str:
    """``"file.py:12"`` of the innermost frame that is not chelate's, or ``""``."""
    frame = _user_frame(sys._getframe(1))
    return "" if frame is None else _text(frame.f_code.co_filename, frame.f_lineno)


def raising_line(error: BaseException, function: object) -> str:
    """The line of ``function`` that ``error`` came through, else the innermost user line."""
    code = getattr(function, "__code__", None)
    found = ""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        here = trace.tb_frame.f_code
        if not is_own(here.co_filename):
            found = _text(here.co_filename, trace.tb_lineno)
            if here is code:
                break
        trace = trace.tb_next
    return found


class LineFinder:
    """``current_line`` for the hot path: a call site is looked up once per build."""

    __slots__ = ("_lines", "_tables")

    def __init__(self) -> None:
        # Identities are safe as keys because the code objects are kept alive beside them.
        self._tables: dict[int, tuple[CodeType, list[int], list[int]]] = {}
        self._lines: dict[tuple[int, int], str | None] = {}

    def __call__(self, frame: FrameType | None) -> str:
        """The line of ``frame`` or, where that is chelate's own, of the nearest caller."""
        lines = self._lines
        while frame is not None:
            code = frame.f_code
            key = (id(code), frame.f_lasti)
            try:
                line = lines[key]
            except KeyError:
                line = lines[key] = self._find(code, frame.f_lasti)
            if line is not None:
                return line
            frame = frame.f_back
        return ""

    def _find(self, code: CodeType, offset: int) -> str | None:
        if is_own(code.co_filename):
            self._tables.setdefault(id(code), (code, [], []))
            return None
        # frame.f_lineno reads the table from its start each time, which long bodies would feel.
        table = self._tables.get(id(code))
        if table is None:
            spans = [(start, line) for start, _, line in code.co_lines() if line is not None]
            table = self._tables[id(code)] = (code, [s for s, _ in spans], [n for _, n in spans])
        _, starts, numbers = table
        place = bisect_right(starts, offset) - 1
        return _text(code.co_filename, numbers[place] if place >= 0 else code.co_firstlineno)
