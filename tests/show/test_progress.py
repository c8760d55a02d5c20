"""The progress line."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import time

import pytest

from chelate.model import DispatchRecord, Status
from chelate.show.marks import cells
from chelate.show.progress import Progress, progress_line


def record(done: int = 120, failed: int = 1, name: str = "grid") -> DispatchRecord:
    counts = {"COMPLETED": done, "RUNNING": 3, "SUBMITTED": 1, "FAILED": failed}
    counts["WAITING"] = 300 - sum(counts.values())
    return DispatchRecord("id", name, Status.RUNNING, started_at=1000.0, counts=counts)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_the_line() -> None:
    line = progress_line(record(), 100, 1042.0)
    assert line.startswith("grid  ████████████░░░")
    assert line.endswith("░ 120/300 done · 4 running · 1 failed · 0:42")
    assert progress_line(record(), 100, 1000.0 + 3_725).endswith("1:02:05")


@pytest.mark.parametrize("width", [1, 5, 12, 20, 40, 41, 60, 79, 80, 200, 1000])
@pytest.mark.parametrize("name", ["grid", "n" * 300, "漢字" * 40, "\x1b[2J"])
def test_the_line_fits(width: int, name: str) -> None:
    line = progress_line(record(name=name), width, 1042.0)
    assert cells(line) <= width
    assert "\x1b" not in line


def test_a_dispatch_without_tasks_yet() -> None:
    assert "0/0 done" in progress_line(DispatchRecord("id", "wf", created_at=5.0), 80, 6.0)


def test_nothing_is_written_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with Progress(stream) as progress:
        assert not progress.active
        progress.update(record())
    assert stream.getvalue() == ""


def test_off_is_off_and_on_writes_plain_lines() -> None:
    terminal, log = Terminal(), io.StringIO()
    with Progress(terminal, "off") as progress:
        progress.update(record())
    with Progress(log, "on") as progress:
        progress.update(record())
        progress.update(record(done=130))
    assert terminal.getvalue() == ""
    assert log.getvalue().count("\n") == 1
    assert "\r" not in log.getvalue()


def test_drawn_at_once_then_rarely_then_wiped(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with Progress(terminal) as progress:
        for done in range(100):
            progress.update(record(done))
        assert terminal.getvalue().count("\r") == 1
        assert "0/300 done" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")
    assert terminal.getvalue().rstrip("\r").rpartition("\r")[2].strip() == ""


def test_a_shorter_line_leaves_nothing_behind(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    moment = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: next(moment))
    terminal = Terminal()
    with Progress(terminal) as progress:
        progress.update(record(name="a_long_name"))
        progress.update(record(name="short"))
    first, second = terminal.getvalue().split("\r")[1:3]
    assert len(second) == len(first)


def test_an_ascii_terminal_gets_ascii(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    terminal.encoding = "ascii"
    with Progress(terminal) as progress:
        progress.update(record())
    assert terminal.getvalue().isascii()
    assert "###" in terminal.getvalue()


def test_a_closed_stream_does_no_harm(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with Progress(terminal) as progress:
        terminal.close()
        progress.update(record())
        assert not progress.active
    with Progress(terminal) as progress:
        progress.update(record())


def test_on_a_real_terminal() -> None:
    script = (
        "import time; from chelate.model import *; from chelate.show.progress import Progress\n"
        "with Progress() as p:\n"
        "    p.update(DispatchRecord('id', 'grid', started_at=time.time(), counts={'READY': 7}))\n"
    )
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", script], stderr=theirs, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    seen = b""
    try:
        while piece := os.read(ours, 4096):
            seen += piece
    except OSError:  # Linux reports the end of a terminal as an error
        pass
    os.close(ours)
    assert child.wait(60) == 0
    assert "0/7 done" in seen.decode()
    assert seen.endswith(b"\r")
