"""kill -9 of the whole kernel at random moments, again and again, until the work is done."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from tests.crash.workflow import expected

from chelate.gateway import LocalGateway
from chelate.model import NodeStatus
from chelate.settings import Settings

SCRIPT = Path(__file__).with_name("workflow.py")
WIDTH = 24


def start(command: str, home: Path, argument: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), command, str(home), argument],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "CHELATE_EXIT_WAIT": "0"},
    )


def completed(home: Path) -> set[tuple[str, int, int]]:
    """Every task whose end is committed: dispatch, node, attempt."""
    gateway = LocalGateway(Settings(home=home))
    try:
        from chelate.contracts.store import DispatchFilter

        return {
            (record.dispatch_id, row.node_id, row.attempt)
            for record in gateway.records(DispatchFilter(roots_only=False))
            for row in gateway.nodes(record.dispatch_id).values()
            if row.status is NodeStatus.COMPLETED
        }
    finally:
        gateway.close()


def workers_of(dispatch_id: str) -> list[int]:
    """Processes that carry the key of one of the dispatch's tasks."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if f"CHELATE_TASK_KEY={dispatch_id}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def campaign(folder: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    home, ledger = folder / "home", folder / "ledger"
    ledger.touch()
    process = start("dispatch", home, str(ledger))
    assert process.stdout is not None
    dispatch_id = process.stdout.readline().strip()
    seen: dict[tuple[str, int, int], int] = {}
    for number in range(kills):
        deadline = time.monotonic() + rng.choice([0.0, 0.1, 0.6, 0.8, 1.0, 1.2])
        lines = len(ledger.read_text().splitlines()) + rng.randint(0, 6)
        while time.monotonic() < deadline or (
            number % 2 and len(ledger.read_text().splitlines()) < lines
        ):
            if process.poll() is not None or time.monotonic() > deadline + 5:
                break
            time.sleep(0.003)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        count = len(ledger.read_text().splitlines())
        for task in completed(home):
            seen.setdefault(task, count)
        process = start("resume", home, dispatch_id)
        assert process.stdout is not None
    try:
        output, _ = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert output.split() == ["COMPLETED", str(expected(WIDTH))]
    lines = ledger.read_text().splitlines()
    ended = Counter()
    for index, line in enumerate(lines):
        word, dispatch, node, attempt = line.split()
        task = (dispatch, int(node), int(attempt))
        ended[word, task] += 1
        assert not (word == "start" and index >= seen.get(task, len(lines))), f"{task} ran again"
    nodes = {(dispatch, node) for dispatch, node, _ in seen}
    later = {
        (task[0], task[1])
        for index, line in enumerate(lines)
        if line.startswith("start")
        for task in [(line.split()[1], int(line.split()[2]), 0)]
        if any((task[0], task[1]) == (d, n) and index >= at for (d, n, _), at in seen.items())
    }
    assert not later & nodes, f"completed tasks ran again: {later}"
    assert max(ended.values()) == 1, "one attempt ran twice"
    deadline = time.monotonic() + 5
    while workers_of(dispatch_id) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers_of(dispatch_id) == []


def test_killed_fifteen_times_nothing_is_lost(tmp_path: Path) -> None:
    campaign(tmp_path, kills=15, seed=1)


@pytest.mark.large
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(2, 6))
def test_killed_fifty_times_nothing_is_lost(tmp_path: Path, seed: int) -> None:
    campaign(tmp_path, kills=50, seed=seed)
