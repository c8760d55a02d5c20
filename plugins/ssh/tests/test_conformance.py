"""The kit that every executor passes, against a real server."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.services.sshd import Sshd

from chelate.testing import ExecutorConformance
from chelate_ssh import SSHExecutor


class TestSSH(ExecutorConformance):
    cannot = {"queue": "a host has no queue: tasks wait in the kernel for a free slot"}  # noqa: RUF012
    many = 24
    names = 8

    @contextmanager
    def outage(self, bench: object) -> Iterator[None]:
        self.server.kill()
        try:
            yield
        finally:
            self.server.start()

    @pytest.fixture
    def make_executor(self, sshd_session: Sshd, tmp_path: Path) -> Callable[[], SSHExecutor]:
        self.server = sshd_session
        options = sshd_session.client(
            python=sys.executable,
            root=str(tmp_path / "root"),
            slots=24,
            grace=2.0,
            poll_interval=0.1,
            # Sub-workflows are built where they run, by chelate.
            env_vars={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        return lambda: SSHExecutor(**options)
