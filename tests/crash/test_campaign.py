"""Kernels, workers, supervisors, tasks and a scheduler, killed at random: see ``campaign/``."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.crash.campaign import campaign, table
from tests.crash.campaign.examiner import Line, Seen, executions

from chelate.model import NodeRecord, NodeStatus


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder of its own; what a failing round leaves there stays."""
    folder = Path(tempfile.mkdtemp(prefix="chelate-campaign-"))
    yield folder
    if not list(folder.iterdir()):
        shutil.rmtree(folder)


@pytest.mark.timeout(600)
def test_killed_eighty_five_times_every_promise_holds(place: Path) -> None:
    outcome = campaign(place, kills=85, seed=1, per_round=85, pace=0.06)
    assert outcome.violations == [], f"{table(outcome)}\nThe evidence is in {place}."
    assert outcome.executions > 20


@pytest.mark.large
@pytest.mark.timeout(14400)
def test_killed_two_thousand_times_every_promise_holds(place: Path) -> None:
    outcome = campaign(place, kills=2000, seed=2)
    assert outcome.violations == [], f"{table(outcome)}\nThe evidence is in {place}."


def lines(*entries: str) -> list[Line]:
    """A ledger from ``"moment word attempt"``, of one task."""
    fields = [entry.split() for entry in entries]
    return [Line(float(at), word, f"d:0:{n}:x", 0, 1, "-") for at, word, n in fields]


ONCE = ("1 start 1", "2 end 1")


@pytest.mark.parametrize(
    ("ledger", "status", "attempt", "ended", "says"),
    [
        (ONCE, NodeStatus.COMPLETED, 1, 3.0, ""),
        (("1 start 1", "3 start 2", "4 end 2"), NodeStatus.COMPLETED, 2, 5.0, ""),
        ((*ONCE, "2.5 start 1"), NodeStatus.COMPLETED, 1, 3.0, "ran 2 times"),
        (("1 start 1", "2 start 2", "3 end 1", "4 end 2"), NodeStatus.COMPLETED, 2, 5.0, "earlier"),
        (ONCE, NodeStatus.CANCELLED, 1, 1.5, "ran until"),
        (("1 start 1",), NodeStatus.COMPLETED, 1, 3.0, "did not run to its end"),
        ((), NodeStatus.COMPLETED, 1, 3.0, "never ran"),
    ],
)
def test_the_examiner_sees_what_must_not_be(
    ledger: tuple[str, ...], status: NodeStatus, attempt: int, ended: float, says: str
) -> None:
    row = NodeRecord(0, status, attempt=attempt, key=f"d:0:{attempt}:x", ended_at=ended)
    found = executions(Seen({}, {("d", 0): row}), lines(*ledger))
    assert len(found) == bool(says), found
    assert says in "".join(found)
