"""Before/after pairs through the real client, kernel and workers: decision, reason and result."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.redispatch.kit import Pair, check, run
from tests.redispatch.pairs_code import CODE
from tests.redispatch.pairs_redispatch import REDISPATCH
from tests.redispatch.pairs_shape import SHAPE
from tests.redispatch.pairs_values import LIBRARIES, VALUES

PAIRS: list[Pair] = [*CODE, *SHAPE, *VALUES, *LIBRARIES, *REDISPATCH]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return run(PAIRS, tmp_path_factory.mktemp("pairs"))


def test_the_table_is_long_and_without_repetition() -> None:
    assert len(PAIRS) >= 80
    assert [name for name, count in Counter(item.name for item in PAIRS).items() if count > 1] == []


@pytest.mark.parametrize("item", PAIRS, ids=lambda item: item.name)
def test_pair(item: Pair, outcomes) -> None:
    check(item, outcomes[item.name])
