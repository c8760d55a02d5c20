"""Options of the whole suite, and which tests stay together when several processes share it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

# Begun first, so that at the end no process waits long for another.
_LONGEST = [
    "plugins/slurm",
    "tests/simulation/test_simulation.py",
    "plugins/ssh",
    "tests/triggers/test_conformance.py",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--large", action="store_true", help="run the campaigns of minutes, too")


@pytest.fixture(autouse=True)
def own_settings() -> Iterator[None]:
    """What one test configures, and the kernel it leaves, are not for the next."""
    from chelate import embedding

    before = dict(embedding._overrides)
    yield
    if embedding._overrides != before:
        embedding.shutdown()
        embedding._overrides.clear()
        embedding._overrides.update(before)


def _group(nodeid: str) -> str:
    """A plugin's tests share the services they start; other files share their fixtures."""
    parts = nodeid.split("::")[0].split("/")
    return "/".join(parts[:2] if parts[0] == "plugins" else parts)


def _begun(group: str) -> int:
    return _LONGEST.index(group) if group in _LONGEST else len(_LONGEST)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--large"):
        large = [item for item in items if item.get_closest_marker("large") is not None]
        config.hook.pytest_deselected(items=large)
        items[:] = [item for item in items if item.get_closest_marker("large") is None]
    items.sort(key=lambda item: _begun(_group(item.nodeid)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Groups by the path: xdist's own groups by mark are lost with pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return Together(config, log)
