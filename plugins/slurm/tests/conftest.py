"""A cluster and an executor for the tests of the Slurm plugin."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.services.slurm import SlurmCluster
from tests.services.slurm import slurm_cluster as slurm_cluster
from tests.services.sshd import sshd_session as sshd_session

import chelate as ct
from chelate_slurm import SlurmExecutor

# Of the kit's seventy tests, each of which takes seconds here, those that say most; the others run
# with ``--large``.
CONFORMANCE = {
    "test_a_forbidden_key_never_starts",
    "test_a_forbidden_task_is_left_out_of_its_pack",
    "test_a_large_result_stays_until_it_is_fetched",
    "test_a_task_sent_again_in_other_company_runs_once",
    "test_a_task_whose_input_is_gone_is_refused",
    "test_no_job_is_guessed_during_an_outage",
    "test_one_task_of_a_pack_is_cancelled",
    "test_the_jobs_of_a_store_are_listed",
}
Make = Callable[..., SlurmExecutor]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Also when only these tests are named, and ``tests/conftest.py`` is not read."""
    for item in items:
        if "test_slurm_conformance" in item.nodeid and item.name not in CONFORMANCE:
            item.add_marker(pytest.mark.large)
    if not config.getoption("--large", default=False):
        dropped = [item for item in items if item.get_closest_marker("large") is not None]
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in set(dropped)]


def options_for(cluster: SlurmCluster, root: Path) -> dict[str, Any]:
    """Options of an executor on the cluster that is quick about everything."""
    return {
        "slurm_bin": str(cluster.programs),
        "slurm_conf": str(cluster.conf),
        "root": str(root),
        "python": sys.executable,
        # Where tests run from a checkout, tasks find chelate as this process does.
        "env_vars": {"PYTHONPATH": str(Path(ct.__file__).parents[1])},
        "poll_min": 0.3,
        "poll_max": 1.0,
        "gather": 0.2,
        "find_grace": 2.0,
        "absent_grace": 2.0,
        "cancel_grace": 3.0,
        "result_grace": 2.0,
        "unschedulable_after": 0.5,
    }


@pytest.fixture(scope="session")
def shared_root() -> Iterator[Path]:
    """A folder that all nodes see; one for all tests, so that values are sent once."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-root-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(slurm_cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    """The cluster, empty and with its calls counted from nothing."""
    slurm_cluster.forget_calls()
    yield slurm_cluster
    slurm_cluster.thaw()
    slurm_cluster.write_wrappers()
    slurm_cluster.clear()


@pytest.fixture
def options(cluster: SlurmCluster, shared_root: Path) -> dict[str, Any]:
    """Options of an executor on the cluster."""
    return options_for(cluster, shared_root)


@pytest.fixture
def make_executor(options: dict[str, Any]) -> Make:
    """``make_executor(**more)`` gives a new executor on the cluster."""
    return lambda **more: SlurmExecutor(**{**options, **more})


@pytest.fixture
def home(tmp_path: Path, options: dict[str, Any]) -> Iterator[Path]:
    """A kernel of its own whose executor ``slurm`` is the cluster."""
    saved = {name: value for name, value in os.environ.items() if name.startswith("CHELATE_")}
    os.environ["CHELATE_HOME"] = str(tmp_path / "home")
    ct.shutdown()
    ct.configure(executors={"slurm": options, "local": {"workers": 1}}, progress="off")
    yield tmp_path / "home"
    ct.shutdown()
    ct.configure(executors={}, progress="auto")
    for name in [name for name in os.environ if name.startswith("CHELATE_")]:
        del os.environ[name]
    os.environ.update(saved)
