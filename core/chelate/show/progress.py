"""The progress line of a waiting terminal."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TextIO

from chelate.model import DispatchRecord
from chelate.show.marks import cells, cut, plain, tally

__all__ = ["Progress", "progress_line"]

_PAUSE = 0.2  # seconds between two drawings of the line
_LOG_PAUSE = 5.0  # and between two lines where nothing can be redrawn
_SHOWN = ("running", "failed", "uncertain", "cancelled", "skipped")
_LEAST_BAR = 6


def progress_line(record: DispatchRecord, width: int, now: float, blocks: str = "█░") -> str:
    """``fit  ████░░░░ 120/300 done · 4 running · 1 failed · 0:42`` in at most ``width`` columns.

    Args:
        record: a dispatch's row; ``counts`` are its nodes by status.
        width: columns.
        now: seconds since the epoch.
        blocks: what the full and the empty part of the bar are drawn with.
    """
    found = tally(record.counts)
    total = sum(found.values())
    dot = " · " if blocks[0] == "█" else ", "
    seconds = int(max(0.0, (record.ended_at or now) - (record.started_at or record.created_at)))
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    parts = [f"{found['done']}/{total} done"]
    parts += [f"{found[word]} {word}" for word in _SHOWN if found[word]]
    text = dot.join([*parts, clock])
    name = cut(plain(record.name), max(8, width // 4))
    room = width - cells(name) - len(text) - 4
    if total and room >= _LEAST_BAR:
        size = min(30, room)
        full = size * found["done"] // total
        text = f"{blocks[0] * full}{blocks[1] * (size - full)} {text}"
    line = f"{name}  {text}"
    if cells(line) > width:
        line = dot.join([parts[0], clock])
    return line if cells(line) <= width else line[: max(0, width)]


class Progress:
    """A line that is redrawn in place, at most five times a second, and wiped at the end.

    Args:
        stream: where to; standard error unless said.
        enabled: ``"auto"`` draws on a terminal only, ``"on"`` writes lines elsewhere, too,
            ``"off"`` nothing.

    Use it as a context manager. It falls silent when the stream breaks and raises nothing.
    """

    def __init__(self, stream: TextIO | None = None, enabled: str = "auto") -> None:
        self._stream: TextIO | None = sys.stderr if stream is None else stream
        self._terminal = _is_terminal(self._stream)
        self._blocks = "█░"
        self._drawn = 0
        self._last = float("-inf")
        self._said = ""
        self.active = self._stream is not None and (
            enabled == "on" or (enabled == "auto" and self._terminal)
        )
        if self.active and not _can_encode(self._stream, self._blocks):
            self._blocks = "#-"

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()

    def update(self, record: DispatchRecord) -> None:
        """Show a dispatch's row, unless the last drawing is too fresh."""
        now = time.monotonic()
        if not self.active or now - self._last < (_PAUSE if self._terminal else _LOG_PAUSE):
            return
        self._last = now
        width = _columns(self._stream) - 1 if self._terminal else 100
        line = progress_line(record, width, time.time(), self._blocks)
        if not self._terminal:
            if line != self._said:
                self._said = line
                self._write(line + "\n")
            return
        self._write("\r" + line + " " * max(0, self._drawn - cells(line)))
        self._drawn = cells(line)

    def clear(self) -> None:
        """Wipe the line; the next update draws at once."""
        self._last = float("-inf")
        if self._drawn and self.active:
            # The window may have become narrower: wiping beyond its edge would leave a new line.
            blank = min(self._drawn, _columns(self._stream) - 1)
            self._write("\r" + " " * blank + "\r")
        self._drawn = 0

    def _write(self, text: str) -> None:
        try:
            if self._stream is not None:
                self._stream.write(text)
                self._stream.flush()
        except (OSError, ValueError):
            # Closed or broken: waiting matters, showing it does not.
            self.active = False


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
    except (OSError, ValueError, AttributeError):
        return False


def _can_encode(stream: TextIO | None, text: str) -> bool:
    try:
        (text + "·").encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _columns(stream: TextIO | None) -> int:
    try:
        columns = os.get_terminal_size(stream.fileno()).columns if stream is not None else 0
    except (OSError, ValueError, AttributeError):
        columns = 0
    return columns if columns > 0 else 80
