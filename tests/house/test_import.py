"""`import chelate` is cheap, and loads nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from tests.house.layout import CORE

BUDGET = 0.15  # seconds above a bare interpreter
TRIES = 7
HEAVY = {
    "asyncssh", "boto3", "botocore", "croniter", "distributed", "fastapi", "hypothesis",
    "matplotlib", "numpy", "pandas", "psycopg", "pydantic", "pytest", "rich", "sklearn",
    "sqlalchemy", "sqlite3", "sqlmodel", "tenacity", "typer", "uvicorn", "watchdog",
}  # fmt: skip


def python(code: str) -> str:
    paths = [str(CORE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def seconds(code: str) -> float:
    begin = time.perf_counter()
    python(code)
    return time.perf_counter() - begin


def test_import_loads_nothing_heavy() -> None:
    loaded = python("import sys, chelate; print(*{name.split('.')[0] for name in sys.modules})")
    assert not HEAVY & set(loaded.split()), "import it inside the function that needs it"


def test_import_is_within_its_budget() -> None:
    python("import chelate")  # compiled files are written once
    pairs = [(seconds("pass"), seconds("import chelate")) for _ in range(TRIES)]
    bare, full = (min(column) for column in zip(*pairs, strict=True))
    assert full - bare < BUDGET, f"import chelate costs {full - bare:.3f} s above bare Python"
