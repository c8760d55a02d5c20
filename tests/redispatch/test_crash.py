"""A redispatch whose process is killed goes on, and no result is taken over twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import chelate as ct

PROGRAM = """
import os, sys, time, uuid
import chelate as ct

@ct.electron
def sample(n):
    return uuid.uuid4().hex

@ct.electron(reuse=False)
def gate(path, value):
    while not os.path.exists(path):
        time.sleep(0.02)
    return value

@ct.electron
def more(n, value):
    return uuid.uuid4().hex

@ct.electron
@ct.lattice
def inner(n):
    return sample(n)

@ct.lattice
def workflow(path, calls):
    early = [sample(1) for _ in range(2)]
    value = gate(path, 1)
    late = [more(1, value) for _ in range(calls)]
    return [early, late, inner(1), [inner(value) for _ in range(calls)]]

def main(phase, path, state):
    if phase == "first":
        open(path, "w").close()
        first = ct.dispatch(workflow)(path, 2)
        assert ct.get_result(first, wait=True).status == "COMPLETED"
        os.unlink(path)
        second = ct.dispatch(workflow, reuse_from=first)(path, 3)
        while ct.get_result(second).get_node_result(0)["reused_from"] is None:
            time.sleep(0.02)
        with open(state, "w") as file:
            file.write(first + " " + second)
        time.sleep(600)

main(*sys.argv[1:])
"""


def test_killed_in_the_middle(home, tmp_path: Path) -> None:
    program, gate, state = (tmp_path / name for name in ("program.py", "gate", "state"))
    program.write_text(PROGRAM)
    environment = {**os.environ, "CHELATE_HOME": str(home), "CHELATE_PROGRESS": "off"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    process = subprocess.Popen(
        [sys.executable, str(program), "first", str(gate), str(state)], env=environment
    )
    try:
        deadline = time.monotonic() + 120
        while not (state.exists() and len(state.read_text().split()) == 2):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    first, second = state.read_text().split()
    gate.touch()
    result = ct.get_result(second, wait=True, timeout=200)
    assert result.status == "COMPLETED", result.error
    before, after = ct.get_result(first).result, result.result
    assert after[0] == before[0]
    assert after[1][:2] == before[1]
    assert after[1][2] not in before[1]
    assert after[2] == before[2]
    assert after[3][:2] == before[3]
    assert len({*after[0], *after[1], after[2], *after[3]}) == 9
    rows = list(ct.explain(second))
    origins = [row.origin for row in rows if row.origin is not None]
    assert len(origins) == len(set(origins))
    assert [row.code for row in rows if row.name == "more"] == [
        "SAME_VALUE", "SAME_VALUE", "EXTRA_CALL",
    ]  # fmt: skip
