"""Servers for the tests of the SSH plugin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.services.sshd import sshd as sshd
from tests.services.sshd import sshd_session as sshd_session

import chelate as ct

from .kit import installed


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration, keys or agent of whoever runs the tests."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ssh").mkdir(mode=0o700)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A kernel in this process, with a store of its own, that knows the plugin."""
    for folder in installed(tmp_path / "installed"):
        monkeypatch.syspath_prepend(folder)
    ct.configure(home=tmp_path / "chelate", poll_interval=0.05)
    yield
    ct.shutdown()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Also when only these tests are named, and ``tests/conftest.py`` is not read."""
    if not config.getoption("--large", default=False):
        dropped = [item for item in items if item.get_closest_marker("large") is not None]
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in set(dropped)]
