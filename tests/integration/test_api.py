"""What users call, end to end on the local executor: values, errors, limits, bad input."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import sqlite3
import subprocess
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest
from tests.integration.scripts import run

import chelate as ct
from chelate.embedding import current
from chelate.executors.local import LocalExecutor


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    saved = {key: os.environ.get(key) for key in ("CHELATE_HOME", "CHELATE_SYNCHRONOUS")}
    os.environ.update(CHELATE_HOME=str(folder), CHELATE_SYNCHRONOUS="normal")
    ct.shutdown()
    yield folder
    ct.shutdown()
    for key, value in saved.items():
        os.environ.pop(key, None)
        if value is not None:
            os.environ[key] = value


pytestmark = pytest.mark.usefixtures("home")


@ct.electron
def add(a, b=10):
    return a + b


@ct.electron
def fail(x):
    raise ValueError(f"no {x}")


@ct.electron
def nap(seconds):
    print("begun", flush=True)  # noqa: T201 - what the task says is what is tested
    time.sleep(seconds)
    return seconds


@ct.lattice
def flow(a, b):
    return add(add(a, b), b=b)


@ct.lattice
def napping(seconds):
    return nap(seconds)


@ct.electron
@ct.lattice
def inner(x):
    return add(x, 1)


@ct.electron
@ct.lattice
def broken_inner(x):
    return fail(x)


def until(condition, timeout=20.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- results --------------------------------------------------------------------------------------


def test_a_result_has_everything_the_reference_names():
    before = datetime.now(timezone.utc)
    dispatch_id = ct.dispatch(flow)(1, 2)
    result = ct.get_result(dispatch_id, wait=True)
    assert result.dispatch_id == result.root_dispatch_id == dispatch_id
    assert result.status == "COMPLETED" == ct.Result.COMPLETED
    assert result.result == 5 == result.encoded_result.get_deserialized()
    assert result.inputs == {"args": (1, 2), "kwargs": {}}
    assert result.error is None
    assert before <= result.start_time <= result.end_time
    assert result.start_time.tzinfo is not None
    assert result.lattice(1, 2) == 5
    assert result.post_process() == 5
    assert result.results_dir.endswith(dispatch_id)
    assert dispatch_id in repr(result)
    node = result.get_node_result(0)
    assert set(node) >= {
        "node_id", "node_name", "start_time", "end_time", "status", "output", "error",
        "sublattice_result", "stdout", "stderr", "executor", "job_handle", "attempts",
        "reused_from", "reason", "usage",
    }  # fmt: skip
    assert (node["node_name"], node["output"], node["status"]) == ("add", 3, "COMPLETED")
    assert [n["node_id"] for n in result.get_all_node_results()] == [0, 1, 2, 3, 4]
    assert result.get_all_node_outputs()["add(0)"] == 3
    assert ct.get_result(dispatch_id, status_only=True) == {
        "id": dispatch_id,
        "status": "COMPLETED",
    }
    with pytest.raises(ct.errors.TaskNotFoundError, match="99"):
        result.get_node_result(99)


def test_save_result(tmp_path):
    folder = ct.dispatch_sync(flow)(1, 2).save_result(tmp_path / "kept")
    assert {"result.pkl", "result.json"} <= {path.name for path in folder.iterdir()}


def test_a_time_out_of_waiting_changes_nothing():
    dispatch_id = ct.dispatch(napping)(1.0)
    with pytest.raises(ct.errors.ResultNotReadyError, match=dispatch_id):
        ct.get_result(dispatch_id, timeout=0.1)
    with pytest.raises(TimeoutError):
        ct.get_result(dispatch_id, wait=True, timeout=0.05, status_only=True)
    assert ct.get_result(dispatch_id).status == "RUNNING"
    assert ct.get_result(dispatch_id, wait=True, status_only=True)["status"] == "COMPLETED"
    assert ct.wait(dispatch_id) == "COMPLETED"


def test_output_of_a_running_task_is_readable():
    dispatch_id = ct.dispatch(napping)(2.0)
    until(lambda: "begun" in ct.get_result(dispatch_id).get_node_result("nap")["stdout"])
    assert ct.get_result(dispatch_id).status == "RUNNING"
    ct.cancel(dispatch_id, wait=True)


@pytest.mark.parametrize("wrong", ["", "nonsense", "../../etc/passwd", 7, None, b"x", "a" * 1000])
def test_an_id_that_is_no_id(wrong):
    for call in (ct.get_result, ct.cancel):
        with pytest.raises(ct.errors.InvalidDispatchIdError):
            call(wrong)


def test_an_id_that_nobody_has():
    for call in (ct.get_result, ct.cancel):
        with pytest.raises(ct.errors.DispatchNotFoundError, match="00000000"):
            call("00000000-0000-4000-8000-000000000000")


def test_list_dispatches_filters():
    moment = time.time()
    good = ct.dispatch_sync(flow)(1, 1).dispatch_id

    @ct.lattice
    def failing_flow():
        return fail(1)

    bad = ct.dispatch_sync(failing_flow)().dispatch_id
    ids = [result.dispatch_id for result in ct.list_dispatches(since=moment)]
    assert ids == [bad, good]
    assert [r.dispatch_id for r in ct.list_dispatches("FAILED", since=moment)] == [bad]
    assert [r.dispatch_id for r in ct.list_dispatches(name="flow", limit=1)] == [good]
    both = ct.list_dispatches([ct.Status.FAILED, ct.Status.COMPLETED], since=moment)
    assert len(both) == 2
    assert ct.list_dispatches(since=moment, offset=1)[0].dispatch_id == good
    with pytest.raises(ct.errors.ConfigError, match="COMPLETED"):
        ct.list_dispatches("DONE")


# -- functions of every kind ----------------------------------------------------------------------


class Scaler:
    def __init__(self, factor):
        self.factor = factor

    @ct.electron
    def scale(self, x):
        return self.factor * x

    def __call__(self, x):
        return -self.factor * x


def test_electrons_of_every_kind_run():
    double = ct.electron(lambda x: 2 * x)
    plus = ct.electron(functools.partial(add.function if hasattr(add, "function") else add, b=5))
    make = ct.electron(Scaler)
    total = ct.electron(sum)

    @ct.lattice
    def kinds(x):
        scaled = Scaler(3).scale(x)
        made = make(7)
        return {
            "lambda": double(x),
            "partial": plus(x),
            "method": scaled,
            "class": made.factor,
            "builtin": total([x, scaled, 1]),
            "star": add(*[x, 2]),
        }

    result = ct.dispatch_sync(kinds)(2).raise_for_status()
    assert result.result == {
        "lambda": 4, "partial": 7, "method": 6, "class": 7, "builtin": 9, "star": 4,
    }  # fmt: skip


def test_a_lattice_without_electrons():
    assert ct.dispatch_sync(ct.lattice(lambda x: x + 1))(1).result == 2


def test_types_survive():
    @ct.electron
    def names(value):
        return type(value).__name__

    @ct.lattice
    def types(x):
        return [names((add(x), 1)), names([add(x)]), names({add(x)}), names({"k": add(x)})]

    assert ct.dispatch_sync(types)(1).raise_for_status().result == ["tuple", "list", "set", "dict"]


# -- failures -------------------------------------------------------------------------------------


def test_a_failure_shows_the_users_frames_and_skips_what_depends_on_it():
    @ct.lattice
    def branches():
        return add(fail("here")), add(1)

    result = ct.dispatch_sync(branches)()
    assert result.status == "FAILED"
    assert "ValueError: no here" in result.error
    assert "fail (node 0" in result.error
    assert "test_api.py" in result.error
    assert "site-packages/chelate" not in result.error
    with pytest.raises(ct.errors.TaskFailedError, match="no here"):
        result.raise_for_status()
    rows = {n["node_name"] + str(n["node_id"]): n for n in result.get_all_node_results()}
    completed = [n for n in rows.values() if n["node_name"] == "add" and n["output"] == 11]
    assert len(completed) == 1
    skipped = [n for n in rows.values() if n["status"] == "SKIPPED"]
    assert skipped
    assert "fail (0)" in skipped[0]["error"]


def test_retries_wait_longer_each_time(tmp_path):
    log = tmp_path / "log"

    @ct.electron(retries=ct.Retry(2, delay=0.2))
    def stubborn():
        with log.open("a") as file:
            file.write(f"{time.time()}\n")
        raise ValueError("again")

    result = ct.dispatch_sync(ct.lattice(lambda: stubborn()))()
    moments = [float(line) for line in log.read_text().split()]
    assert len(moments) == 3
    assert moments[1] - moments[0] >= 0.2
    assert moments[2] - moments[1] >= 0.4
    assert "after 3 attempts" in result.error
    assert result.get_node_result(0)["attempts"] == 3


def test_a_timeout_kills_the_task(tmp_path):
    survived = tmp_path / "survived"

    @ct.electron(timeout=0.5)
    def slow():
        time.sleep(3)
        survived.write_text("yes")

    begin = time.monotonic()
    result = ct.dispatch_sync(ct.lattice(lambda: slow()))()
    assert time.monotonic() - begin < 10
    assert result.get_node_result(0)["reason"] == "TIMEOUT"
    assert "0.5 s" in result.error
    time.sleep(2.8)
    assert not survived.exists()


def test_a_crash_is_named():
    @ct.electron
    def crash():
        os.kill(os.getpid(), signal.SIGSEGV)

    result = ct.dispatch_sync(ct.lattice(lambda: crash()))()
    assert result.status == "FAILED"
    assert result.get_node_result(0)["reason"] == "CRASHED"
    assert "SIGSEGV" in result.error
    assert ct.dispatch_sync(flow)(1, 2).result == 5


def test_values_that_cannot_be_pickled():
    with pytest.raises(ct.errors.SerializationError, match="lock"):
        ct.dispatch(flow)(threading.Lock(), 1)

    @ct.electron
    def bad_output():
        return threading.Lock()

    result = ct.dispatch_sync(ct.lattice(lambda: bad_output()))()
    assert result.status == "FAILED"
    assert result.get_node_result(0)["reason"] == "UNPICKLABLE"

    lock = threading.Lock()

    @ct.electron
    def holds_lock():
        return lock.locked()

    with pytest.raises(ct.errors.SerializationError):
        ct.dispatch(ct.lattice(lambda: holds_lock()))()


def test_a_lattice_that_raises():
    def body():
        raise RuntimeError("while building")

    with pytest.raises(ct.errors.BuildError, match="while building"):
        ct.dispatch(ct.lattice(body))()


def test_foreign_placeholders():
    kept = []

    @ct.lattice
    def first():
        kept.append(add(1))
        return kept[0]

    ct.dispatch_sync(first)()
    with pytest.raises(ct.errors.ForeignPlaceholderError):
        ct.dispatch(ct.lattice(lambda: add(kept[0])))()


def test_unknown_executors_say_what_to_install():
    @ct.electron(executor="braket")
    def remote():
        return 1

    with pytest.raises(ct.errors.PluginNotFoundError, match="pip install chelate-braket"):
        ct.dispatch(ct.lattice(lambda: remote()))()


def test_resources_are_respected(tmp_path):
    log = tmp_path / "log"

    def work(n):
        with log.open("a") as file:
            file.write("+\n")
        time.sleep(0.15)
        with log.open("a") as file:
            file.write("-\n")

    wide = ct.electron(work, executor=ct.LocalExecutor(workers=2), resources=ct.Resources(cpus=2))

    @ct.lattice
    def four():
        return [wide(n) for n in range(4)]

    ct.dispatch_sync(four)().raise_for_status()
    assert log.read_text().split() == ["+", "-"] * 4
    too_wide = ct.electron(
        work, executor=ct.LocalExecutor(workers=2), resources=ct.Resources(cpus=3)
    )
    result = ct.dispatch_sync(ct.lattice(lambda: too_wide(1)))()
    assert "2 slots" in result.error


# -- sub-workflows --------------------------------------------------------------------------------


def test_a_killed_build_is_a_loss_of_the_infrastructure(tmp_path):
    def killed_at_first(x, mark, times):
        tries = len(list(tmp_path.glob(f"{mark}*")))
        if tries < times:
            (tmp_path / f"{mark}{tries}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return add(x)

    child = ct.electron(ct.lattice(killed_at_first), retries=ct.Retry(delay=0.0))
    result = ct.dispatch_sync(ct.lattice(lambda: child(1, "once", 1)))()
    assert result.raise_for_status().result == 11
    (first,) = result.node_records[0].attempts
    assert first["reason"] == "CRASHED"
    result = ct.dispatch_sync(ct.lattice(lambda: child(1, "always", 9)))()
    assert result.status == "FAILED"
    assert len(list(tmp_path.glob("always*"))) == 4
    assert "CRASHED" in result.error


def test_builds_leave_room_for_others(monkeypatch):
    limits = dataclasses.replace(LocalExecutor.limits, max_in_flight=2)
    ct.shutdown()
    monkeypatch.setattr(LocalExecutor, "limits", limits)
    dispatch_id = ct.dispatch(flow)(1, 2)
    for number in range(3):
        again = ct.redispatch(dispatch_id)(number, 2)
        assert ct.get_result(again, timeout=60).result == number + 4
    ct.shutdown()


def test_ten_subworkflows_in_parallel():
    @ct.lattice
    def outer(n):
        return [inner(x) for x in range(n)]

    result = ct.dispatch_sync(outer)(10).raise_for_status()
    assert result.result == list(range(1, 11))
    child = result.get_node_result(0)["sublattice_result"]
    assert child.root_dispatch_id == result.dispatch_id
    assert child.result == 1
    tree = ct.list_dispatches(root_dispatch_id=result.dispatch_id)
    assert len(tree) == 11


def test_a_failing_subworkflow_shows_its_error_above():
    result = ct.dispatch_sync(ct.lattice(lambda: broken_inner("deep")))()
    assert result.status == "FAILED"
    assert "ValueError: no deep" in result.error


@ct.electron
@ct.lattice
def endless(n):
    return endless(n + 1)


@ct.electron
@ct.lattice
def factorial(n):
    return 1 if n <= 1 else multiply(n, factorial(n - 1))


@ct.electron
def multiply(a, b):
    return a * b


def test_recursion_ends_or_says_how_deep_it_went():
    assert ct.dispatch_sync(ct.lattice(lambda: factorial(4)))().raise_for_status().result == 24
    ct.configure(max_depth=3)
    try:
        result = ct.dispatch_sync(ct.lattice(lambda: endless(0)))()
    finally:
        ct.configure(max_depth=None)
    assert result.status == "FAILED"
    assert "3 deep" in result.error
    assert "max_depth" in result.error


@ct.electron
@ct.lattice
def sleepy_inner(path):
    return slow_note(path)


@ct.electron
def slow_note(path):
    with Path(path).open("a") as file:
        file.write("start\n")
    time.sleep(20)
    with Path(path).open("a") as file:
        file.write("end\n")


@ct.electron
@ct.lattice
def sleepy_outer(path):
    return sleepy_inner(path)


@pytest.mark.parametrize(
    "bad",
    [99, -1, True, 1.0, 10**30, float("nan"), "nobody", "", b"nap", {0: 1}, object, [0.0],
     [None], [[0]], [0, 99], ["nap", "nobody"], range(99)],
    ids=str,
)  # fmt: skip
def test_a_target_that_does_not_exist_cancels_nothing(held, bad):
    with pytest.raises((ct.errors.TaskNotFoundError, ct.errors.ConfigError), match="nothing was"):
        ct.cancel(held, bad)
    assert not any(row.cancel_requested for row in ct.get_result(held).node_records.values())


@pytest.fixture(scope="module")
def held(home):
    return ct.dispatch(ct.lattice(lambda: [nap(1), nap(1)]), disable_run=True)()


def test_an_empty_list_cancels_nothing(held):
    assert "nothing to cancel" in ct.cancel(held, [], wait=True)
    assert not any(row.cancel_requested for row in ct.get_result(held).node_records.values())


@pytest.mark.parametrize("bad", [-1, float("nan"), True, "soon"])
def test_limits_of_waiting_are_checked(held, bad):
    for call in (ct.get_result, ct.cancel):
        with pytest.raises(ct.errors.ConfigError, match="0 or more"):
            call(held, timeout=bad)


def test_names_repeats_and_limits_of_a_cancel():
    dispatch_id = ct.dispatch(ct.lattice(lambda: [nap(60), nap(61), add(1)]))()
    with pytest.raises(ct.errors.ResultNotReadyError):
        ct.get_result(dispatch_id, timeout=0)
    said = ct.cancel(dispatch_id, ["nap", 0, "nap"], timeout=60)
    assert said.startswith("Tasks [0, 2]")
    assert "being cancelled. Now: " in said
    assert ct.get_result(dispatch_id, timeout=60).status == "CANCELLED"
    assert "already ended: CANCELLED" in ct.cancel(dispatch_id, ["nap"])
    assert "already ended: CANCELLED" in ct.cancel(dispatch_id, wait=True)
    with pytest.raises(ct.errors.TaskNotFoundError, match="no task 99"):
        ct.cancel(dispatch_id, [0, 99])
    assert ct.get_result(dispatch_id).node_records[4].status == "COMPLETED"


class Number:
    """A whole number as numpy has them."""

    def __index__(self):
        return 0


def test_tasks_of_a_dispatch_that_waits_are_cancelled_before_it_starts():
    dispatch_id = ct.dispatch(ct.lattice(lambda: [nap(60), add(1)]), disable_run=True)()
    for one in (Number(), [Number()]):
        said = ct.cancel(dispatch_id, one, wait=True)
        assert "has not been started; its tasks [0] will not run" in said
    assert current().start_held(dispatch_id)
    assert ct.get_result(dispatch_id, timeout=60).status == "CANCELLED"
    assert ct.get_result(dispatch_id).node_records[2].status == "COMPLETED"


def test_a_cancel_is_visible_before_anybody_acts_on_it():
    dispatch_id = ct.dispatch(ct.lattice(lambda: nap(60)), disable_run=True)()
    current().store.request_cancel(dispatch_id, None)  # of a dispatch that nobody runs yet
    assert ct.get_result(dispatch_id).status == "CANCELLING"
    assert ct.get_result(dispatch_id, status_only=True)["status"] == "CANCELLING"
    ct.cancel(dispatch_id, wait=True)
    assert ct.get_result(dispatch_id).status == "CANCELLED"


def test_a_task_of_a_workflow_that_is_still_built():
    def naps(seconds):
        time.sleep(seconds)
        return nap(1)

    held = ct.dispatch(ct.lattice(naps), disable_run=True)(0)
    dispatch_id = ct.redispatch(held)(60)
    with pytest.raises(ct.errors.TaskNotFoundError, match="still being built; nothing was"):
        ct.cancel(dispatch_id, "nap")
    ct.cancel(dispatch_id, wait=True)
    assert ct.get_result(dispatch_id).status == "CANCELLED"


def test_a_name_inside_a_sub_workflow_is_told_where_to_look():
    dispatch_id = ct.dispatch(ct.lattice(lambda: inner(1)), disable_run=True)()
    with pytest.raises(ct.errors.TaskNotFoundError, match="ids of the sub-workflows' dispatches"):
        ct.cancel(dispatch_id, "add")


def test_cancel_reaches_the_whole_tree(tmp_path):
    ledger = tmp_path / "ledger"
    dispatch_id = ct.dispatch(ct.lattice(lambda: sleepy_outer(str(ledger))))()
    until(ledger.exists)
    assert "being cancelled" in ct.cancel(dispatch_id, wait=True)
    tree = ct.list_dispatches(root_dispatch_id=dispatch_id)
    assert len(tree) == 3
    assert {result.status for result in tree} == {"CANCELLED"}
    assert ledger.read_text() == "start\n"
    assert "had already ended" in ct.cancel(dispatch_id)


def test_cancel_of_a_subworkflow_node_leaves_the_rest(tmp_path):
    ledger = tmp_path / "ledger"

    @ct.lattice
    def two():
        return sleepy_inner(str(ledger)), nap(1.0)

    dispatch_id = ct.dispatch(two)()
    until(ledger.exists)
    ct.cancel(dispatch_id, "sleepy_inner", wait=True)
    result = ct.get_result(dispatch_id, wait=True)
    assert result.status == "CANCELLED"
    assert result.get_node_result("nap")["status"] == "COMPLETED"
    with pytest.raises(ct.errors.TaskNotFoundError, match="sleepy_inner"):
        ct.cancel(ct.dispatch(two)(), ["nobody", 0])
    for left in ct.list_dispatches("RUNNING"):
        ct.cancel(left.dispatch_id, wait=True)


# -- configuration and homes ----------------------------------------------------------------------


def test_configuration_from_code():
    assert ct.get_config("max_depth") == 20
    ct.set_config("max_depth", 7)
    try:
        assert ct.get_config()["max_depth"] == 7
        with pytest.raises(ct.errors.ConfigError):
            ct.set_config("max_dpeth", 7)
        with pytest.raises(ct.errors.ConfigError):
            ct.configure(poll_interval=-1)
        assert ct.get_config("max_depth") == 7
    finally:
        ct.configure(max_depth=None)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that nobody can write")
def test_a_home_that_cannot_be_written(tmp_path):
    output, errors = run(
        tmp_path,
        """
        ct.configure(home="/proc/chelate")
        try:
            ct.dispatch(flow)(1, 2)
        except ct.errors.StoreUnavailableError as error:
            print("unavailable", error)
        """,
    )
    assert output.startswith("unavailable")
    assert "/proc/chelate" in output
    assert errors == ""


def test_a_home_of_a_newer_chelate(tmp_path):
    home = tmp_path / "home"
    run(home, "ct.dispatch_sync(flow)(1, 2)")
    with sqlite3.connect(home / "chelate.db") as link:
        (version,) = link.execute("PRAGMA user_version").fetchone()
        link.execute(f"PRAGMA user_version = {version + 1000}")
    link.close()
    code = """
    try:
        ct.dispatch(flow)(1, 2)
    except ct.errors.SchemaTooNewError as error:
        print("too new")
    """
    assert run(home, code)[0].strip() == "too new"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system to fill")
def test_a_full_disk_is_said_once_and_what_was_stored_stays(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    try:
        output, errors = run(
            folder,
            """
            first = ct.dispatch_sync(flow)(1, 2)
            try:
                ct.dispatch(flow)(os.urandom(4_000_000), b"")
            except ct.errors.StoreUnavailableError as error:
                print("full", "Traceback" in str(error))
            print(ct.get_result(first.dispatch_id).result, ct.dispatch_sync(flow)(2, 2).result)
            """,
        )
        assert output.split() == ["full", "False", "5", "6"], errors
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.mark.parametrize(
    ("said", "times", "losses"),
    [(None, 0, 1), (2, 2, 1), (ct.Retry(times=2, infrastructure=5), 2, 5), (ct.Retry(4), 4, 1)],
)
def test_the_setting_for_losses_holds_where_a_task_says_nothing_of_them(said, times, losses):
    @ct.electron(retries=said)
    def one():
        return 1

    @ct.electron
    @ct.lattice
    def inner():
        return one()

    @ct.lattice
    def outer():
        return inner()

    ct.configure(infrastructure_retries=1)
    try:
        result = ct.dispatch_sync(outer)()
    finally:
        ct.configure(infrastructure_retries=None)
    child = result.get_node_result(0)["sublattice_result"]
    for one_result in (result, child):
        graph = current().graph(current().record(one_result.dispatch_id))
        retry = graph.policies[graph.nodes[0].policy].retry
        assert retry.losses == (losses if one_result is child else 1)
    assert retry.times == times
