"""A before/after pair: two programs, and what a redispatch with reuse decides for every task."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

DRIVER = Path(__file__).with_name("driver.py")
CORE = Path(__file__).resolve().parents[2] / "core"
HEAD = "import chelate as ct\n"
REUSED = {"SAME", "SAME_VALUE", "ALWAYS"}
UNDECIDED = {"NOT_REACHED", "OPEN"}


@dataclass(frozen=True)
class Pair:
    """``expected`` has one line per task in order of the nodes, ``name CODE words of the reason``;
    tasks inside a sub-workflow that was built again follow it as ``sub.name``. Operators and the
    rebuilding of results are not listed.
    """

    name: str
    before: dict[str, str]
    after: dict[str, str]
    expected: str
    status: str = "COMPLETED"
    fails_with: str = ""
    pythons: bool = True  # whether the outcome is the same when the two runs have other Pythons

    def lines(self) -> list[tuple[str, str, str]]:
        found = []
        for line in filter(None, map(str.strip, self.expected.strip().splitlines())):
            name, code, *words = line.split(None, 2)
            found.append((name, code, words[0] if words else ""))
        return found


def pair(
    name: str, before: str | dict[str, str], after: object, expected: str, **more: object
) -> Pair:
    """``after`` is a program, or a list of edits ``(old, new)``, or (module, old, new)."""
    first = before if isinstance(before, dict) else {"main": before}
    if isinstance(after, str):
        second = {**first, "main": after}
    elif isinstance(after, dict):
        second = after
    else:
        second = dict(first)
        for edit in after:  # type: ignore[attr-defined]
            module, old, new = edit if len(edit) == 3 else ("main", *edit)
            assert old in second[module], (name, old)
            second[module] = second[module].replace(old, new)
    return Pair(name, first, second, expected, **more)  # type: ignore[arg-type]


def write(folder: Path, name: str, source: dict[str, str]) -> None:
    package = folder / name
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()
    for module, text in source.items():
        head = HEAD if module == "main" else ""
        (package / f"{module}.py").write_text(head + text, encoding="utf-8")


def run(
    pairs: Iterable[Pair], folder: Path, first: str = sys.executable, second: str = sys.executable
) -> dict[str, dict[str, object]]:
    """Run the pairs, all of a phase in one process; what the second one reports, by name."""
    code, state = folder / "code", folder / "state.json"
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("CHELATE_")},
        "CHELATE_HOME": str(folder / "home"),
        "PYTHONPATH": str(CORE),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PAIRS_FOLDER": str(folder),
    }
    pairs = list(pairs)
    for seed, phase, python in (("1", "before", first), ("2", "after", second)):
        for item in pairs:
            write(code, item.name, item.before if phase == "before" else item.after)
        done = subprocess.run(
            [python, str(DRIVER), str(code), phase, str(state)],
            env={**environment, "PYTHONHASHSEED": seed, "PAIRS_PHASE": phase},
            capture_output=True, text=True, timeout=280, check=False, cwd=folder,
        )  # fmt: skip
        if done.returncode:
            raise AssertionError(done.stderr[-6000:])
    return json.loads(state.read_text())


def decision(code: str) -> str:
    if code in REUSED:
        return "REUSE"
    return "OPEN" if code in UNDECIDED else "RUN"


def check(item: Pair, outcome: dict[str, object]) -> None:
    """Compare what happened with what the pair says, and with its plan."""
    if item.fails_with:
        assert item.fails_with in str(outcome.get("error")), outcome
        return
    assert "error" not in outcome, outcome["error"]
    assert outcome["status"] == item.status, outcome["failure"]
    rows: list[list[str]] = outcome["rows"]  # type: ignore[assignment]
    tasks = [row for row in rows if row[4].rpartition(" ")[2] in ("task", "sublattice")]
    expected = item.lines()
    text = "\n".join(" ".join(row) for row in rows)
    assert [row[0] for row in tasks] == [name for name, _, _ in expected], text
    for row, (_, code, words) in zip(tasks, expected, strict=True):
        assert row[1:3] == [decision(code), code], text
        assert words in row[3], text
        assert row[3], text
    if item.status == "COMPLETED":
        assert outcome["result"] == outcome["expected"], text
    plan: list[list[str]] = outcome["plan"]  # type: ignore[assignment]
    happened = [row for row in rows if not row[4].startswith("sub ")]
    assert [row[0] for row in plan] == [row[0] for row in happened], (plan, text)
    for planned, did in zip(plan, happened, strict=True):
        if planned[1] != "OPEN":
            assert planned[1:4] == did[1:4], (plan, text)
    for line in str(outcome["text"]).splitlines():
        assert len(line) <= 100, line
