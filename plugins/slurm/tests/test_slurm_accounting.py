"""Jobs that the controller has forgotten: slurmdbd knows of them, or only their records do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.services import slurmdbd
from tests.services.slurm import SlurmCluster, is_installed, start

import chelate as ct

pytestmark = [pytest.mark.usefixtures("home"), pytest.mark.large, pytest.mark.timeout(900)]

SOON = {"MinJobAge": "2"}  # seconds for which the controller remembers a job; stock: 300


def wait_until(condition: Callable[[], Any], seconds: float = 240.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
    return found


@ct.electron(executor="slurm", retries=ct.Retry(infrastructure=0))
def held(go, path, word):
    with open(path, "a") as file:  # noqa: PTH123 - runs on the node
        file.write(f"{word}\n")
    while not os.path.exists(go):  # noqa: PTH110
        time.sleep(0.1)
    if word == "bad":
        raise ValueError("this word")
    return word


@ct.lattice
def crowd(go, path, words):
    return [held(go, path, word) for word in words]


def begin(folder: Path, words: list[object]) -> tuple[str, Path, Path]:
    """Dispatch, and see all tasks running."""
    go, ledger = folder / "go", folder / "ledger"
    dispatch_id = ct.dispatch(crowd)(str(go), str(ledger), words)
    wait_until(lambda: ledger.exists() and len(ledger.read_text().split()) == len(words))
    wait_until(lambda: len(ended(dispatch_id, "RUNNING")) == len(words))
    return dispatch_id, go, ledger


def ended(dispatch_id: str, status: str) -> list[dict[str, Any]]:
    """The held tasks of this status."""
    result = ct.get_result(dispatch_id)
    found = [result.get_node_result(index) for index in range(len(result.get_all_node_results()))]
    return [node for node in found if node["node_name"] == "held" and str(node["status"]) == status]


class TestAccounting:
    """With slurmdbd."""

    @pytest.fixture(scope="class")
    @classmethod
    def slurm_cluster(cls) -> Iterator[SlurmCluster]:
        if not is_installed() or slurmdbd.missing():
            pytest.skip(
                f"not installed: {', '.join(slurmdbd.missing()) or 'Slurm'} "
                "(on Debian: apt install slurm-wlm munge slurmdbd mariadb-server)"
            )
        with start(accounting=True, settings=SOON) as cluster:
            yield cluster

    def test_what_the_queue_has_forgotten_is_asked_of_sacct(self, cluster, tmp_path):
        dispatch_id, _, _ = begin(tmp_path, list(range(5)))
        jobs = [node["job_handle"]["native_id"] for node in ended(dispatch_id, "RUNNING")]
        assert cluster.calls()["sacct"] == 0
        cluster.write_program("squeue", "exit 1")  # so that no poll sees them end
        cluster.run("scancel", *jobs)
        wait_until(lambda: not cluster.jobs())
        cluster.forget_calls()
        cluster.write_wrappers()
        result = ct.get_result(dispatch_id, wait=True)
        assert str(result.status) == "FAILED"
        nodes = ended(dispatch_id, "FAILED")
        assert [node["reason"] for node in nodes] == ["CANCELLED_BY_BACKEND"] * 5
        assert all("state CANCELLED on node n" in node["error"] for node in nodes)
        calls = cluster.calls()
        assert 1 <= calls["sacct"] <= calls["squeue"]

    def test_without_its_slurmdbd_all_jobs_end_right(self, cluster, tmp_path):
        dispatch_id, go, ledger = begin(tmp_path, [0, 1, "bad", 3])
        cluster.stop_accounting()
        try:
            cluster.write_program("squeue", "exit 1")
            go.touch()
            wait_until(lambda: not cluster.jobs())
            cluster.write_wrappers()
            ct.get_result(dispatch_id, wait=True)
            later = ct.dispatch(crowd)(str(go), str(ledger), [4, 5])
            assert ct.get_result(later, wait=True).result == [4, 5]
        finally:
            cluster.start_accounting()
        assert [node["output"] for node in ended(dispatch_id, "COMPLETED")] == [0, 1, 3]
        (bad,) = ended(dispatch_id, "FAILED")
        assert bad["reason"] == "USER_ERROR"
        assert "this word" in bad["error"]
        assert sorted(ledger.read_text().split()) == ["0", "1", "3", "4", "5", "bad"]


class TestForgetful:
    """Without accounting."""

    @pytest.fixture(scope="class")
    @classmethod
    def slurm_cluster(cls) -> Iterator[SlurmCluster]:
        if not is_installed():
            pytest.skip("not installed: Slurm (on Debian: apt install slurm-wlm munge)")
        with start(settings=SOON) as cluster:
            yield cluster

    def test_jobs_that_end_while_no_kernel_runs_are_known_by_their_records(self, cluster, tmp_path):
        dispatch_id, go, ledger = begin(tmp_path, [0, 1, "bad"])
        ct.shutdown()
        go.touch()
        wait_until(lambda: not cluster.jobs())
        ct.get_result(dispatch_id, wait=True)
        assert [node["output"] for node in ended(dispatch_id, "COMPLETED")] == [0, 1]
        (bad,) = ended(dispatch_id, "FAILED")
        assert bad["reason"] == "USER_ERROR"
        assert sorted(ledger.read_text().split()) == ["0", "1", "bad"]
        assert cluster.calls()["sacct"] == 0
