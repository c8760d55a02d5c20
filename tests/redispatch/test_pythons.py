"""The table across Pythons: run by one, edited and run again by another.

Other interpreters are those of ``CHELATE_TEST_PYTHONS`` (separated like ``PATH``, each with
chelate's dependencies). Without ``--large`` one chain through a part of the table is run, with it
the whole table for every ordered pair.
"""

from __future__ import annotations

import itertools
import os
import sys

import pytest
from tests.redispatch.kit import check, run
from tests.redispatch.pairs_code import CODE
from tests.redispatch.pairs_shape import SHAPE
from tests.redispatch.pairs_values import VALUES

OTHERS = [path for path in os.environ.get("CHELATE_TEST_PYTHONS", "").split(os.pathsep) if path]
PYTHONS = [sys.executable, *OTHERS]
TABLE = [*CODE, *SHAPE, *VALUES]
SMALL = TABLE[:: max(1, len(TABLE) // 20)]


def _chain() -> list[tuple[str, str]]:
    return list(zip(PYTHONS, [*PYTHONS[1:], PYTHONS[0]], strict=True))


@pytest.mark.parametrize(("first", "second"), _chain())
def test_some_pairs(first, second, tmp_path):
    outcomes = run(SMALL, tmp_path, first, second)
    for item in SMALL:
        check(item, outcomes[item.name])


@pytest.mark.large
@pytest.mark.parametrize(("first", "second"), list(itertools.product(PYTHONS, PYTHONS)))
def test_every_pair(first, second, tmp_path):
    outcomes = run(TABLE, tmp_path, first, second)
    for item in TABLE:
        check(item, outcomes[item.name])
