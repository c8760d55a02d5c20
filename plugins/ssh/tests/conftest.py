"""Servers for the tests of the SSH plugin."""

from __future__ import annotations

import pytest
from tests.services.sshd import sshd as sshd
from tests.services.sshd import sshd_session as sshd_session


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration, keys or agent of whoever runs the tests."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ssh").mkdir(mode=0o700)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Also when only these tests are named, and ``tests/conftest.py`` is not read."""
    if not config.getoption("--large", default=False):
        dropped = [item for item in items if item.get_closest_marker("large") is not None]
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in set(dropped)]
