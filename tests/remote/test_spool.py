"""Folders for values on their way here, of which none outlives its process for long."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile

import pytest

from chelate.remote import Spool

HOLDS = """
import signal, sys
from chelate.remote import Spool
spool = Spool()
(spool.folder() / "value.part").write_bytes(b"x" * 1000)
print(spool.path, flush=True)
signal.pause()
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_what_a_killed_process_left_is_removed_by_the_next_and_nothing_else(temporary) -> None:
    (temporary / "chelate-spool-unfinished").mkdir()  # just made, and not locked yet
    (temporary / "chelate-spool-unfinished" / "owner").touch()
    (temporary / "chelate-spool-file").touch()
    others = {path.name for path in temporary.iterdir()}
    command = [sys.executable, "-c", HOLDS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left = process.stdout.readline().strip()
        living = Spool()
        assert living.folder() == living.folder()
        there = {path.name for path in temporary.iterdir()}
        assert len(there) == len(others) + 2, "that of a living process stays"
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    third = Spool()
    third.folder()
    there = {str(path) for path in temporary.iterdir()}
    assert left not in there
    assert str(living.path) in there
    for spool in (living, third):
        (spool.folder() / "a-1.part").touch()
        spool.drop("a")
        assert [path.name for path in spool.folder().iterdir()] == ["owner"]
        spool.close()
        spool.close()
    assert {path.name for path in temporary.iterdir()} == others
