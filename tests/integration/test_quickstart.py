"""The quickstart example runs, says what it found, and leaves its plot."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_quickstart(tmp_path) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("CHELATE_")}
    environ = {
        **kept,
        "CHELATE_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    begin = time.monotonic()
    run = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "quickstart.py")],
        env=environ, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", timeout=240,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert time.monotonic() - begin < 180
    assert run.stderr == ""
    assert "finals (21) · sub-workflow" in run.stdout
    found = re.search(r"reads (\d+\.\d)% of unseen digits right", run.stdout)
    assert found is not None
    assert float(found[1]) > 95
    plot = re.search(r"drawn in (.*)\n", run.stdout)
    assert plot is not None
    assert Path(plot[1]).read_bytes().startswith(b"\x89PNG")
