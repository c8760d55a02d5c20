"""Workflows on a real cluster: results, reasons, outages, arrays, cancels, a dying kernel."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.services.slurm import PROGRAMS, SlurmCluster
from tests.services.sshd import Sshd

import chelate as ct
from chelate_ssh import SSHExecutor

pytestmark = pytest.mark.usefixtures("home")

NO_RETRY = ct.Retry(infrastructure=0)


def wait_until(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
    return found


def nodes_of(result: Any) -> dict[str, dict[str, Any]]:
    """Node results by task name."""
    found = [result.get_node_result(index) for index in range(len(result.get_all_node_results()))]
    return {node["node_name"]: node for node in found}


def note(path: str, word: object) -> None:
    with Path(path).open("a") as file:
        file.write(f"{word}\n")


@ct.electron(executor="slurm")
def noted(path, word, seconds=0.0):
    note(path, word)
    time.sleep(seconds)
    return word


@ct.electron(executor="slurm")
def held(go, path, word):
    note(path, word)
    while not os.path.exists(go):  # noqa: PTH110 - runs on the node
        time.sleep(0.1)
    return word


# -- the workflows of the guides ------------------------------------------------------------------


@ct.electron
def task_0(a):
    return a


@ct.electron
def task_1(a, b):
    return a + b


@ct.electron
def task_2(a, b):
    return a / b


@ct.electron
def task_2_redefined(a, b):
    return a * b


@ct.electron(executor="local")
def here(a):
    return a, "SLURM_JOB_ID" in os.environ


@ct.electron(executor="slurm")
def there(a):
    return a, "SLURM_JOB_ID" in os.environ


@ct.lattice(executor="slurm")
def workflow(a, b):
    return task_2(task_1(task_0(a), b), b)


@ct.lattice
def mixed(a):
    return here(there(here(a)))


def test_the_guides_workflows_run_unchanged():
    mixed_id = ct.dispatch(mixed)(1)
    dispatch_id = ct.dispatch(workflow)(1, 2)
    result = ct.get_result(dispatch_id, wait=True)
    assert (str(result.status), result.result) == ("COMPLETED", 1.5)
    redispatch_id = ct.redispatch(
        dispatch_id, replace_electrons={"task_2": task_2_redefined}, reuse_previous_results=True
    )()
    result = ct.get_result(redispatch_id, wait=True)
    assert (str(result.status), result.result) == ("COMPLETED", 6)
    for node in (0, 2):
        again = result.get_node_result(node)
        assert again["start_time"] == again["end_time"]
    assert ct.get_result(mixed_id, wait=True).result == (((1, False), True), False)


def test_a_login_node_is_reached_by_ssh(
    make_executor, options, sshd_session: Sshd, cluster: SlurmCluster
):
    """And one lattice has tasks by Slurm, Slurm over SSH, SSH alone, and here."""
    login = make_executor(ssh=sshd_session.client())
    common = {name: options[name] for name in ("python", "env_vars", "root")}
    beyond = ct.electron(there, executor=SSHExecutor(**sshd_session.client(), **common))
    first = ct.electron(there, executor=login)

    @ct.lattice
    def by_ssh():
        return [first(word) for word in range(3)]

    result = ct.get_result(ct.dispatch(by_ssh)(), wait=True)
    assert result.result == [(word, True) for word in range(3)], result.error
    assert cluster.calls()["sbatch"] == 1
    assert sshd_session.accepted >= 1

    @ct.lattice
    def everywhere(word):
        return beyond(here(there(first(word))))

    result = ct.get_result(ct.dispatch(everywhere)(5), wait=True)
    assert result.result == ((((5, True), True), False), False), result.error


# -- why a job ended ------------------------------------------------------------------------------


def sleeper(name: str, executor: Any, **more: Any) -> Any:
    """A task that runs until it is ended."""

    def nap(folder):
        Path(folder, name).touch()
        time.sleep(600)

    return ct.electron(executor=executor, retries=NO_RETRY, name=name, **more)(nap)


REFUSALS = [
    ({"partition": "nowhere"}, "INVALID_SPEC", "invalid partition specified: nowhere"),
    ({"mem": "900G"}, "UNSCHEDULABLE", "Memory specification can not be satisfied"),
    ({"constraint": "warp"}, "INVALID_SPEC", "Invalid feature specification"),
    ({"options": {"bogus": "x"}}, "INVALID_SPEC", "unrecognized option '--bogus=x'"),
    ({"nodes": 99}, "UNSCHEDULABLE", "it asks for more than the partition has"),
    ({"time": "30-0"}, "UNSCHEDULABLE", "more time than the partition allows"),
]


def test_every_end_has_its_reason(make_executor, cluster: SlurmCluster, tmp_path: Path):
    def eat(folder):
        Path(folder, "oom").touch()
        data = bytearray(600 << 20)
        time.sleep(600)
        return len(data)

    lost = sleeper("node_fail", make_executor(nodelist="n2"))
    limit = sleeper("timeout", make_executor(time=1, nodelist="n1"))
    gone = sleeper("scancel", make_executor(nodelist="n1"))
    moved = sleeper("preempted", make_executor(partition="low", nodelist="n1", cpus_per_task=20))
    urgent = ct.electron(executor=make_executor(nodelist="n1", cpus_per_task=26))(lambda: 1)
    prerun = ct.electron(
        executor=make_executor(prerun="echo no licence >&2; exit 3"), name="prerun"
    )(lambda: 1)
    python = ct.electron(executor=make_executor(python="/nowhere/python3"), name="python")(
        lambda: 1
    )
    oom = ct.electron(executor="slurm", resources=ct.Resources(mem="200M"), retries=NO_RETRY,
                      name="oom")(eat)  # fmt: skip
    refused = [
        ct.electron(executor=make_executor(**more), name=f"refused {index}")(lambda: 1)
        for index, (more, _, _) in enumerate(REFUSALS)
    ]

    @ct.lattice
    def ends(folder):
        for task in (lost, limit, gone, moved, oom):
            task(folder)
        for task in (prerun, python, *refused):
            task()

    @ct.lattice
    def urgently():
        return urgent()

    again = ct.electron(executor=make_executor(nodelist="n1", requeue=True))(held.function)

    @ct.lattice
    def requeued(go, path):
        return again(go, path, "run")

    dispatch_id = ct.dispatch(ends)(str(tmp_path))
    ledger, go = tmp_path / "ledger", tmp_path / "go"
    requeued_id = ct.dispatch(requeued)(str(go), str(ledger))

    def handle_of(name: str) -> str:
        node = nodes_of(ct.get_result(dispatch_id))[name]
        return node["job_handle"]["native_id"] if node["job_handle"] else ""

    names = ("node_fail", "timeout", "scancel", "preempted", "oom")
    wait_until(lambda: all((tmp_path / name).exists() for name in names))
    wait_until(lambda: all(handle_of(name) for name in names))
    wait_until(ledger.exists)
    handle = wait_until(lambda: ct.get_result(requeued_id).get_node_result(0)["job_handle"])
    cluster.run("scontrol", "requeue", handle["native_id"])
    # Slurm looks at limits twice a minute; the job's own end is moved to now.
    job = f"job={handle_of('timeout')}"
    cluster.run("scontrol", "update", job, "EndTime=now+1", check=False)  # may be over by itself
    cluster.run("scancel", handle_of("scancel"))
    cluster.run("scontrol", "update", "node=n2", "state=down", "reason=test")
    try:
        urgent_id = ct.dispatch(urgently)()
        assert ct.get_result(urgent_id, wait=True).result == 1
        wait_until(lambda: ledger.read_text() == "run\nrun\n")
        go.touch()
        result = ct.get_result(dispatch_id, wait=True)
    finally:
        cluster.wait_for_nodes()  # a node that answers is taken back
    again_result = ct.get_result(requeued_id, wait=True)
    assert again_result.result == "run"
    node = again_result.get_node_result(0)
    assert node["attempts"] == 1  # Slurm's doing, not another attempt of ours
    assert node["job_handle"]["native_id"] == handle["native_id"]
    found = nodes_of(result)
    assert {name: node["reason"] for name, node in found.items() if node["reason"]} == {
        "node_fail": "NODE_FAIL",
        "timeout": "TIMEOUT",
        "scancel": "CANCELLED_BY_BACKEND",
        "preempted": "PREEMPTED",
        "oom": "OOM",
        "prerun": "PRERUN",
        "python": "ENV_MISSING",
        **{f"refused {index}": reason for index, (_, reason, _) in enumerate(REFUSALS)},
    }
    for index, (_, _, words) in enumerate(REFUSALS):
        node = found[f"refused {index}"]
        assert node["attempts"] == 1
        assert words in node["error"]
    assert found["prerun"]["attempts"] == 1
    assert "no licence" in found["prerun"]["error"]
    assert "/nowhere/python3" in found["python"]["error"]
    assert "n2" in found["node_fail"]["error"]
    assert "DUE TO TIME LIMIT" in found["timeout"]["error"]


# -- how little Slurm is asked ---------------------------------------------------------------------


@ct.lattice(executor="slurm")
def many(path, count, seconds):
    return [noted(path, word, seconds) for word in range(count)]


def check_many(cluster: SlurmCluster, options: dict[str, Any], path: Path, count: int) -> None:
    interval = 1.0
    ct.configure(executors={"slurm": {**options, "poll_min": interval, "poll_max": interval}})
    cluster.forget_calls()
    began = time.monotonic()
    result = ct.get_result(ct.dispatch(many)(str(path), count, 1.0), wait=True)
    lasted = time.monotonic() - began
    assert result.result == list(range(count)), result.error
    calls = cluster.calls()
    assert calls["squeue"] <= lasted / interval + 2
    assert calls["sacct"] == 0
    assert calls["sbatch"] <= count / 1000 + 2
    assert sorted(map(int, path.read_text().split())) == list(range(count))


def test_one_squeue_per_interval_for_all_jobs(cluster, options, tmp_path):
    check_many(cluster, options, tmp_path / "ledger", 20)


@pytest.mark.large
@pytest.mark.timeout(3000)
def test_one_squeue_per_interval_for_a_thousand_jobs(cluster, options, tmp_path):
    check_many(cluster, options, tmp_path / "ledger", 1000)


@ct.lattice
def waiting(path, count):
    return [noted(path, word) for word in range(count)]


def check_array(
    cluster: SlurmCluster, options: dict[str, Any], path: Path, count: int, least: int
) -> None:
    """All go out with few calls and wait; all are cancelled with few calls, and at once."""
    more = {"partition": "closed", "absent_grace": 3600.0}  # Slurm forgets what it cancels so
    ct.configure(executors={"slurm": {**options, **more}})
    dispatch_id = ct.dispatch(waiting)(str(path), count)
    wait_until(lambda: len(cluster.active()) == count, 600)
    assert cluster.calls()["sbatch"] <= least
    cluster.forget_calls()
    ct.cancel(dispatch_id)
    assert str(ct.get_result(dispatch_id, wait=True).status) == "CANCELLED"
    assert not cluster.active()
    assert cluster.calls()["scancel"] <= 3
    assert not path.exists()


def test_equal_tasks_go_out_as_an_array(cluster, options, tmp_path):
    check_array(cluster, options, tmp_path / "ledger", 100, 2)


@pytest.mark.large
@pytest.mark.timeout(3000)
def test_five_thousand_equal_tasks_go_out_as_arrays(cluster, options, tmp_path):
    check_array(cluster, options, tmp_path / "ledger", 5000, 6)


# -- cancelling ------------------------------------------------------------------------------------


@ct.lattice
def crowd(go, path, count, singles):
    for word in range(singles):
        ct.electron(held, resources=ct.Resources(mem=100 + word))(go, path, count + word)
    return [held(go, path, word) for word in range(count)]


def check_cancel(
    cluster: SlurmCluster, options: dict[str, Any], folder: Path, count: int, singles: int
) -> None:
    """Half is cancelled: elements and single jobs, running and pending; the others go on."""
    more = {"cpus_per_task": 8, "array_throttle": max(4, count // 10)}
    ct.configure(executors={"slurm": {**options, **more}})
    go, ledger = folder / "go", folder / "ledger"
    dispatch_id = ct.dispatch(crowd)(str(go), str(ledger), count, singles)
    count += singles
    wait_until(lambda: ledger.exists() and len(ledger.read_text().split()) >= 4)
    wait_until(lambda: len(cluster.active()) == count)
    result = ct.get_result(dispatch_id)
    ids = [index for index, node in enumerate(result.get_all_node_results())
           if node["node_name"] == "held"]  # fmt: skip
    cluster.forget_calls()
    ct.cancel(dispatch_id, task_ids=ids[::2])
    wait_until(lambda: len(cluster.active()) == count - len(ids[::2]))
    assert cluster.calls()["scancel"] <= 3
    go.touch()
    result = ct.get_result(dispatch_id, wait=True)
    statuses = Counter(str(result.get_node_result(index)["status"]) for index in ids)
    assert statuses == {"CANCELLED": len(ids[::2]), "COMPLETED": len(ids[1::2])}


def test_a_cancel_ends_elements_and_leaves_their_siblings(cluster, options, tmp_path):
    check_cancel(cluster, options, tmp_path, 9, 3)


@pytest.mark.large
@pytest.mark.timeout(1200)
def test_a_cancel_of_a_hundred_jobs(cluster, options, tmp_path):
    check_cancel(cluster, options, tmp_path, 170, 30)


# -- outages ---------------------------------------------------------------------------------------


@ct.lattice
def different(path, count):
    return [
        ct.electron(noted, resources=ct.Resources(mem=100 + word))(path, word)
        for word in range(count)
    ]


def notices(caplog: Any) -> list[str]:
    """What was said of a queue that does not answer."""
    told = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    return [text for text in told if "squeue" in text]


def check_frozen(
    cluster: SlurmCluster, caplog: Any, folder: Path, count: int, seconds: float
) -> None:
    ledger, go = folder / "ledger", folder / "go"
    first = ct.dispatch(crowd)(str(go), str(folder / "first"), 1, 0)
    wait_until(lambda: str(nodes_of(ct.get_result(first))["held"]["status"]) == "RUNNING")
    cluster.freeze()
    began = time.monotonic()
    ids = [ct.dispatch(waiting)(str(ledger), count // 2), ct.dispatch(different)(str(ledger), 3)]
    wait_until(lambda: time.monotonic() - began > seconds and notices(caplog), seconds + 60)
    assert str(nodes_of(ct.get_result(first))["held"]["status"]) == "RUNNING"
    assert len(notices(caplog)) <= 1 + seconds // 60  # repeated after a minute, then ever less
    cluster.thaw()
    go.touch()
    assert ct.get_result(first, wait=True).result == [0]
    for dispatch_id in ids:
        result = ct.get_result(dispatch_id, wait=True)
        assert str(result.status) == "COMPLETED", result.error
    words = Counter(ledger.read_text().split())
    assert sum(words.values()) == count // 2 + 3
    wait_until(lambda: not cluster.active())
    assert Counter(ledger.read_text().split()) == words


def test_a_frozen_controller_makes_no_copies_and_changes_no_state(cluster, caplog, tmp_path):
    check_frozen(cluster, caplog, tmp_path, 6, 7.0)  # sbatch gives up after 5


@pytest.mark.large
@pytest.mark.timeout(1200)
def test_a_controller_frozen_for_a_minute_around_a_hundred_jobs(cluster, caplog, tmp_path):
    check_frozen(cluster, caplog, tmp_path, 200, 60.0)


@pytest.mark.large
@pytest.mark.timeout(1500)
def test_a_hundred_submissions_with_a_frozen_controller_and_lost_answers(
    cluster, options, tmp_path
):
    """Each job is an sbatch of its own; some of them are killed when the job is in the queue."""
    ct.configure(executors={"slurm": {**options, "array": False}})
    real, ledger = cluster.programs / "sbatch.real", tmp_path / "ledger"
    (cluster.programs / "sbatch").rename(real)
    cluster.write_program(
        "sbatch",
        f'{real} "$@" >"{tmp_path}/answer.$$" || exit 1\n'
        f'case $(cat "{tmp_path}/answer.$$") in *7) kill -9 $$;; esac\ncat "{tmp_path}/answer.$$"',
    )
    dispatch_id = ct.dispatch(waiting)(str(ledger), 100)
    wait_until(lambda: cluster.calls()["sbatch"] >= 30)
    cluster.freeze()
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 60.0)
    cluster.thaw()
    result = ct.get_result(dispatch_id, wait=True)
    assert result.result == list(range(100)), result.error
    wait_until(lambda: not cluster.active())
    assert sorted(map(int, ledger.read_text().split())) == list(range(100))


@pytest.mark.large
@pytest.mark.timeout(1500)
def test_while_squeue_is_silent_for_long_nothing_changes(cluster, caplog, tmp_path):
    """It fails, then hangs: states stay, one notice is given, and records still count."""
    go, ledger = tmp_path / "go", tmp_path / "ledger"
    dispatch_id = ct.dispatch(crowd)(str(go), str(ledger), 2, 1)
    wait_until(lambda: ledger.exists() and len(ledger.read_text().split()) == 3)
    result = ct.get_result(dispatch_id)
    ids = [index for index, node in enumerate(result.get_all_node_results())
           if node["node_name"] == "held"]  # fmt: skip
    wait_until(lambda: all(str(ct.get_result(dispatch_id).get_node_result(index)["status"])
                           == "RUNNING" for index in ids))  # fmt: skip
    for body in ("echo 'slurm_load_jobs error: Zero Bytes' >&2; exit 1", "exec sleep 600"):
        cluster.write_program("squeue", f"echo squeue >>{cluster.folder}/calls; {body}")
        cluster.forget_calls()
        wait_until(lambda: cluster.calls()["squeue"] >= 1)
        began = time.monotonic()
        while time.monotonic() - began < 150.0:
            nodes = ct.get_result(dispatch_id).get_all_node_results()
            assert {str(nodes[index]["status"]) for index in ids} == {"RUNNING"}
            time.sleep(0.5)
    failed, hung = notices(caplog)  # once for each way
    assert "Zero Bytes" in failed
    assert "did not end" in hung
    go.touch()
    result = ct.get_result(dispatch_id, wait=True)
    assert result.result == [0, 1]
    assert sorted(ledger.read_text().split()) == ["0", "1", "2"]


def test_a_kernel_that_is_killed_finds_its_jobs_again(cluster, options, home, tmp_path):
    go, ledger = tmp_path / "go", tmp_path / "ledger"
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time\nimport chelate as ct\n"
        "@ct.electron(executor='slurm')\n"
        "def held(go, path, word):\n"
        "    open(path, 'a').write(f'{word}\\n')\n"
        "    while not os.path.exists(go):\n        time.sleep(0.1)\n    return word\n"
        "@ct.lattice\n"
        "def crowd(go, path):\n    return [held(go, path, word) for word in range(4)]\n"
        "if __name__ == '__main__':\n"
        "    print(ct.dispatch(crowd)(*sys.argv[1:]), flush=True)\n    time.sleep(600)\n"
    )
    told = {"CHELATE_EXECUTORS": json.dumps({"slurm": options}), "CHELATE_HOME": str(home)}
    process = subprocess.Popen(
        [sys.executable, str(script), str(go), str(ledger)], env={**os.environ, **told},
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        dispatch_id = process.stdout.readline().strip()
        wait_until(lambda: ledger.exists() and len(ledger.read_text().split()) == 4)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    go.touch()
    result = ct.get_result(dispatch_id, wait=True)
    assert result.result == [0, 1, 2, 3]
    assert sorted(ledger.read_text().split()) == ["0", "1", "2", "3"]
    assert cluster.calls()["sbatch"] == 1


# -- bad input -------------------------------------------------------------------------------------


def refusal(executor: Any, **more: Any) -> dict[str, Any]:
    task = ct.electron(executor=executor, **more)(lambda: 1)

    @ct.lattice
    def one():
        return task()

    result = ct.get_result(ct.dispatch(one)(), wait=True)
    assert str(result.status) == "FAILED"
    return result.get_node_result(0)


def test_without_slurm_the_sentence_says_what_to_do(cluster, make_executor):
    for name in PROGRAMS:
        cluster.write_program(name, "exit 127")
    node = refusal(make_executor())
    assert "scontrol was not found" in node["error"]
    assert "slurm_bin=" in node["error"]
    assert node["reason"] == "PLUGIN"


def test_a_limit_on_submitted_jobs_is_waited_for(cluster, tmp_path):
    """The first submissions hit a limit, as a QOS has it; smaller ones get through."""
    real = cluster.programs / "sbatch.real"
    (cluster.programs / "sbatch").rename(real)
    cluster.write_program(
        "sbatch",
        f'for one in "$@"; do case $one in --array=0-[4-9]*) '
        f'echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1;; esac; done\n'
        f'exec {real} "$@"',
    )
    ledger = tmp_path / "ledger"
    result = ct.get_result(ct.dispatch(waiting)(str(ledger), 8), wait=True)
    assert result.result == list(range(8))
    assert sorted(ledger.read_text().split()) == [str(word) for word in range(8)]
