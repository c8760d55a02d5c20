"""The kit that every executor passes, against a real server."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.services.sshd import Sshd

from chelate.testing import ExecutorConformance
from chelate_ssh import SSHExecutor


class TestSSH(ExecutorConformance):
    @pytest.fixture
    def make_executor(self, sshd_session: Sshd, tmp_path: Path) -> Callable[[], SSHExecutor]:
        options = sshd_session.client(
            python=sys.executable,
            root=str(tmp_path / "root"),
            slots=8,
            grace=2.0,
            poll_interval=0.1,
        )
        return lambda: SSHExecutor(**options)
