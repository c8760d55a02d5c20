"""The built-in stores pass the kit that outsiders' stores have to pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from chelate.store import SQLStore
from chelate.testing.store_conformance import StoreConformance, StoreFactory


class TestSQLite(StoreConformance):
    @pytest.fixture
    def make_store(self, tmp_path: Path) -> StoreFactory:
        return lambda: SQLStore("", tmp_path / "home")


class TestPostgres(StoreConformance):
    @pytest.fixture
    def make_store(self, tmp_path: Path, postgres_url: str) -> StoreFactory:
        return lambda: SQLStore(postgres_url, tmp_path / "home")
