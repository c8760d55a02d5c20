"""Kernels, workers, supervisors, tasks and a scheduler, killed at random: see ``campaign/``."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.crash.campaign import campaign, table


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder of its own; what a failing round leaves there stays."""
    folder = Path(tempfile.mkdtemp(prefix="chelate-campaign-"))
    yield folder
    if not list(folder.iterdir()):
        shutil.rmtree(folder)


@pytest.mark.timeout(600)
def test_killed_a_hundred_times_every_promise_holds(place: Path) -> None:
    outcome = campaign(place, kills=100, seed=1, per_round=100, pace=0.15)
    assert outcome.violations == [], f"{table(outcome)}\nThe evidence is in {place}."
    assert outcome.executions > 20


@pytest.mark.large
@pytest.mark.timeout(7200)
def test_killed_two_thousand_times_every_promise_holds(place: Path) -> None:
    outcome = campaign(place, kills=2000, seed=2)
    assert outcome.violations == [], f"{table(outcome)}\nThe evidence is in {place}."
