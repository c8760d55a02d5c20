"""The protocol with one rule removed: seeds find every removal."""

from __future__ import annotations

import pytest
from tests.simulation.campaign import Bench, run_seed
from tests.simulation.planted import PLANTED
from tests.simulation.running import killed_quietly

SEEDS = 120  # within which each is found
ALWAYS = {
    "no intent before the call",
    "sent again at once after an unknown outcome",
    "no tombstone",
    "cancelled when asked",
    "row before blob",
    "owner and epoch unchecked",
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ALWAYS else pytest.mark.large)
        for name in sorted(PLANTED)
    ],
)
def test_a_removed_rule_is_found(name: str) -> None:
    planted = PLANTED[name]
    with pytest.MonkeyPatch.context() as patch, killed_quietly():
        planted.plant(patch)
        bench = Bench()
        try:
            found = any(
                run_seed(seed, bench, models=planted.models, faults=planted.faults).violations
                for seed in range(SEEDS)
            )
        finally:
            bench.close()
    assert found, f"{SEEDS} seeds did not notice: {name}"
