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


class Here:
    """The executor under test, and how its host is cut off."""

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


@pytest.mark.large
@pytest.mark.timeout(900)
class TestSSH(Here, ExecutorConformance):
    """The whole kit."""


class TestSSHInShort(Here, ExecutorConformance):
    """What no other test of the default run covers."""


SHORT = {
    "test_a_forbidden_key_never_starts",
    "test_a_forbidden_task_is_left_out_of_its_pack",
    "test_a_second_process_polls_and_collects_by_handle_alone",
    "test_a_task_sent_again_in_other_company_runs_once",
    "test_a_task_that_takes_its_process_down",
    "test_a_whole_tree_of_processes",
    "test_logs_while_it_runs_by_offset",
    "test_no_job_is_guessed_during_an_outage",
    "test_no_process_but_the_worker_unpickles",
    "test_one_key_is_one_run",
    "test_one_task_of_a_pack_is_cancelled",
    "test_the_jobs_of_a_store_are_listed",
}
for name in dir(ExecutorConformance):
    if name.startswith("test_") and name not in SHORT:
        setattr(TestSSHInShort, name, None)
