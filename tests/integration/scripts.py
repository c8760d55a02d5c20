"""Running small scripts in processes of their own, as users do."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

HEAD = """
import os, sys, time, signal, threading
# Tests may run in the background, where a shell lets its children ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
import chelate as ct

@ct.electron
def add(a, b):
    return a + b

@ct.electron
def nap(seconds, path=None):
    if path:
        open(path, "a").write("start\\n")
    time.sleep(seconds)
    if path:
        open(path, "a").write("end\\n")
    return seconds

@ct.lattice
def flow(a, b):
    return add(add(a, b), b)

@ct.lattice
def napping(seconds, path=None):
    return nap(seconds, path)
"""


def environment(home: Path, **extra: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("CHELATE_")}
    return {
        **kept,
        "CHELATE_HOME": str(home),
        "CHELATE_SYNCHRONOUS": "normal",
        "CHELATE_POLL_INTERVAL": "0.1",
        **extra,
    }


def start(home: Path, body: str, *, how: str = "file", **extra: str) -> subprocess.Popen[str]:
    """A script with ``body`` after the usual tasks: from a file, ``-c`` or standard input."""
    code = HEAD + textwrap.dedent(body)
    home.mkdir(parents=True, exist_ok=True)
    command: list[str] = [sys.executable, "-W", "error::ResourceWarning"]
    if how == "file":
        path = home / f"script_{abs(hash(body))}.py"
        path.write_text(code)
        command.append(str(path))
    elif how == "-c":
        command += ["-c", code]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE if how == "stdin" else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(home, **extra),
        start_new_session=True,
    )
    if how == "stdin":
        assert process.stdin is not None
        process.stdin.write(code)
        process.stdin.close()
        process.stdin = None
    return process


def run(home: Path, body: str, **options: Any) -> tuple[str, str]:
    """What the script printed, after it ended well."""
    process = start(home, body, **options)
    try:
        output, errors = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == 0, errors
    return output, errors
