"""The real kernel in virtual time: seeds choose workflows, schedules and faults.

``python -m tests.simulation --replay SEED`` prints the schedule of a seed that failed here.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
from tests.simulation.campaign import Bench, run_seed
from tests.simulation.running import killed_quietly, run_seeds

SEEDS = 2_000
# docs/reliability.md
FOUND = (4_378, 1_007_575, 1_010_907, 1_011_193, 1_020_727, 1_037_431, 1_040_843, 1_065_697)
JOBS = min(2, os.cpu_count() or 1)


def _campaign(first: int, seeds: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    bad = {}
    for report in run_seeds(range(first, first + seeds), JOBS):
        counts.update(report.counts)
        if report.violations:
            bad[report.seed] = report.violations
    assert not bad
    return counts


@pytest.mark.timeout(900)  # two minutes of both processors
def test_no_seed_breaks_a_promise():
    counts = _campaign(0, SEEDS)
    assert counts["bodies"] > 8_000
    assert counts["crashes"] > 1_500
    assert min(counts[what] for what in ("late", "twins", "takeovers", "uncertain", "reused")) > 30
    assert counts["packs"] > 300
    assert counts["stops"] > 500


def test_seeds_that_found_a_defect_find_it_no_more():
    bench = Bench()
    try:
        with killed_quietly():
            for seed in FOUND:
                assert not run_seed(seed, bench).violations, seed
    finally:
        bench.close()


@pytest.mark.large
@pytest.mark.timeout(0)  # hours
def test_no_seed_of_the_large_campaign_breaks_a_promise():
    _campaign(1_000_000, 100_000)


def test_a_seed_plays_the_same_way_again():
    bench = Bench()
    try:
        with killed_quietly():
            first, again = (run_seed(33, bench, tracing=True).trace for _ in range(2))
    finally:
        bench.close()
    assert len(first) > 50
    assert first == again
